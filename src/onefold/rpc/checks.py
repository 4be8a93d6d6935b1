"""Checking a request: every wrong field is found in one go, and named by its path.

A Checker collects what is wrong; the code that uses it reads all fields first and calls `raise_if_wrong` once.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from onefold.clock import EARLIEST, LATEST, from_microseconds, to_microseconds
from onefold.errors import Reason, Violation, invalid
from onefold.limits import REQUEST_ID_CHARACTERS

_EARLIEST_SECOND: Final = 0
_LAST_SECOND: Final = to_microseconds(LATEST) // 1_000_000


class Checker:
    """Collects the violations of one request, or of one item of a batch."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.reason = Reason.FIELDS_INVALID
        self._prefix = ""

    def within(self, prefix: str) -> Checker:
        """A Checker for a part of the request: it notes with the others, under paths that begin with `prefix`."""
        part = Checker()
        part.violations = self.violations
        part._prefix = self._prefix + prefix
        return part

    def refuse(self, field: str, description: str) -> None:
        """Notes that a field is wrong."""
        self.violations.append(Violation(self._prefix + field, description))

    def raise_if_wrong(self) -> None:
        """Raises INVALID_ARGUMENT with everything noted so far, if anything was."""
        if self.violations:
            raise invalid(self.violations, self.reason)

    def text(
        self,
        field: str,
        value: str,
        *,
        required: bool = False,
        max_bytes: int | None = None,
        max_characters: int | None = None,
    ) -> str:
        """Checks that a text is printable (so it has no NUL, line break or control character), unpadded and short."""
        if not value:
            if required:
                self.refuse(field, "is required")
            return value
        problem = text_problem(value, max_bytes=max_bytes, max_characters=max_characters)
        if problem:
            self.refuse(field, problem)
        return value

    def request_id(self, value: str) -> str:
        """Checks a request_id; "" stands for none."""
        return self.text("request_id", value, max_characters=REQUEST_ID_CHARACTERS)

    def uuid(self, field: str, value: str) -> uuid.UUID:
        """Checks an id that onefold gave. Returns the nil UUID after noting that it is none."""
        try:
            # The standard parser also takes braces, URNs and any hyphens; an id has one spelling.
            parsed = uuid.UUID(value)
            if str(parsed) == value.lower():
                return parsed
        except ValueError:
            pass
        self.refuse(
            field, "is required" if not value else "must be a UUID such as 0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11"
        )
        return uuid.UUID(int=0)

    def one_of(self, field: str, value: int, known: Collection[int]) -> int:
        """Checks that an enum's number is one that this version knows."""
        if value not in known:
            self.refuse(field, f"has the unknown value {value}")
        return value

    def timestamp(self, field: str, value: Timestamp) -> datetime:
        """Checks a time: from 1970 to before 2100, nanos from 0 to 999,999,999. Nanoseconds are cut to microseconds.

        Returns 1970 after noting a violation.
        """
        if not _EARLIEST_SECOND <= value.seconds < _LAST_SECOND:
            self.refuse(field, "must lie between 1970-01-01 and 2100-01-01")
        elif not 0 <= value.nanos <= 999_999_999:
            self.refuse(field, "must have nanos between 0 and 999999999")
        else:
            return from_microseconds(value.seconds * 1_000_000 + value.nanos // 1_000)
        return EARLIEST


def text_problem(value: str, *, max_bytes: int | None = None, max_characters: int | None = None) -> str | None:
    """What is wrong with a text that should be printable, unpadded and not too long; None if nothing is."""
    if "\x00" in value:
        return "must not contain NUL"
    if max_characters is not None and len(value) > max_characters:
        return f"must have at most {max_characters} characters"
    if max_bytes is not None and len(value.encode()) > max_bytes:
        return f"must have at most {max_bytes} bytes"
    if not value.isprintable():
        return "must have printable characters only"
    if value != value.strip():
        return "must not begin or end with a space"
    return None


def to_timestamp(moment: datetime) -> Timestamp:
    """A moment as a message, exact to the microsecond."""
    timestamp = Timestamp()
    fill_timestamp(timestamp, moment)
    return timestamp


def fill_timestamp(timestamp: Timestamp, moment: datetime) -> None:
    """The same in place, which spares a message that holds it a copy."""
    seconds, microseconds = divmod(to_microseconds(moment), 1_000_000)
    timestamp.seconds = seconds
    timestamp.nanos = microseconds * 1_000
