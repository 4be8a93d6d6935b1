"""Errors as the service means them: a kind, a published reason and a sentence, and never the text of a driver.

Everything below the gRPC boundary raises OnefoldError; only rpc/ knows how it becomes a status.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from onefold.limits import ERROR_FIELDS_BYTES, ERROR_TEXT_BYTES

# What a violation takes in a message beside its texts.
_OVERHEAD_BYTES: Final = 6


class Kind(enum.IntEnum):
    """The kinds of failure; each value is the gRPC status code of the same name (google.rpc.Code)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Reason(enum.StrEnum):
    """The published reasons. protos/onefold/v1/error_reason.proto says what each means; a test keeps the two equal."""

    FIELDS_INVALID = "FIELDS_INVALID"
    REQUEST_MALFORMED = "REQUEST_MALFORMED"
    EVENT_EXPIRED = "EVENT_EXPIRED"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105 - a reason, not a secret
    API_KEY_MISSING = "API_KEY_MISSING"
    API_KEY_INVALID = "API_KEY_INVALID"
    SCOPE_MISSING = "SCOPE_MISSING"
    PROFILE_NOT_FOUND = "PROFILE_NOT_FOUND"
    DEVICE_NOT_FOUND = "DEVICE_NOT_FOUND"
    DISABLE_NOT_FOUND = "DISABLE_NOT_FOUND"
    MERGE_NOT_FOUND = "MERGE_NOT_FOUND"
    API_KEY_NOT_FOUND = "API_KEY_NOT_FOUND"
    PLACEHOLDER_TAKEN = "PLACEHOLDER_TAKEN"
    EVENT_ID_REUSED = "EVENT_ID_REUSED"
    PROJECT_EXISTS = "PROJECT_EXISTS"
    IDENTIFIER_TAKEN = "IDENTIFIER_TAKEN"
    IDENTIFIERS_CONFLICT = "IDENTIFIERS_CONFLICT"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    IDENTIFIER_TYPE_FIXED = "IDENTIFIER_TYPE_FIXED"
    REGION_REFUSES_EMAIL = "REGION_REFUSES_EMAIL"
    FORGOTTEN = "FORGOTTEN"
    KNOWN_SOURCE = "KNOWN_SOURCE"
    ARRAY_NOT_MERGEABLE = "ARRAY_NOT_MERGEABLE"
    MERGE_BUILT_ON = "MERGE_BUILT_ON"
    MERGE_NOT_UNDOABLE = "MERGE_NOT_UNDOABLE"
    SOURCE_IDENTIFIER_TAKEN = "SOURCE_IDENTIFIER_TAKEN"
    DEVICE_LIMIT = "DEVICE_LIMIT"
    DATA_FIELDS_LIMIT = "DATA_FIELDS_LIMIT"
    POOL_BUSY = "POOL_BUSY"
    SERVER_BUSY = "SERVER_BUSY"
    RATE_LIMITED = "RATE_LIMITED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    LOCK_TIMEOUT = "LOCK_TIMEOUT"
    SERVER_STOPPING = "SERVER_STOPPING"
    DEADLINE_PASSED = "DEADLINE_PASSED"
    STREAM_STALLED = "STREAM_STALLED"
    INTERNAL = "INTERNAL"
    CURSOR_INVALID = "CURSOR_INVALID"
    CURSOR_EXPIRED = "CURSOR_EXPIRED"
    TRIGGERS_DISABLED = "TRIGGERS_DISABLED"
    CRITERION_NOT_FOUND = "CRITERION_NOT_FOUND"
    CRITERIA_STALE = "CRITERIA_STALE"
    CRITERIA_LIMIT = "CRITERIA_LIMIT"
    CONSENT_REQUIRED = "CONSENT_REQUIRED"


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: its path in the request, such as "identifiers.email", and what is wrong with it."""

    field: str
    description: str


@dataclass(eq=False)
class OnefoldError(Exception):
    """A failure that a caller may see.

    `message` is one English sentence without anybody's data; `metadata` holds the keys that error_reason.proto names
    for the reason; `retry_after_seconds` is set where sending the same call again later helps.
    """

    kind: Kind
    reason: Reason
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after_seconds: float | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)


def invalid(
    violations: tuple[Violation, ...] | list[Violation], reason: Reason = Reason.FIELDS_INVALID
) -> OnefoldError:
    """An INVALID_ARGUMENT that lists every wrong field and sums them up in its message."""
    found = tuple(Violation(shortened(each.field), each.description) for each in violations)
    fields = ", ".join(violation.field for violation in found[:3]) + (
        f" and {len(found) - 3} more" if len(found) > 3 else ""
    )
    message = f"{len(found)} field{'s are' if len(found) > 1 else ' is'} not valid: {fields}."
    return OnefoldError(Kind.INVALID_ARGUMENT, reason, message, violations=_as_fits(found))


def shortened(text: str, max_bytes: int = ERROR_TEXT_BYTES) -> str:
    """A text that a caller chose, such as a key of data in a path, with no more of it than an error may repeat."""
    whole = text.encode()
    return text if len(whole) <= max_bytes else whole[:max_bytes].decode(errors="ignore") + "..."


def _as_fits(found: tuple[Violation, ...]) -> tuple[Violation, ...]:
    """The first violations, and how many are left out. An error travels in the trailers of a call, and gRPC drops a
    call whose trailers are larger than 8 kB: its caller would not even learn the code."""
    size = 0
    for index, violation in enumerate(found):
        size += len(violation.field.encode()) + len(violation.description.encode()) + _OVERHEAD_BYTES
        if size > ERROR_FIELDS_BYTES:
            left_out = len(found) - index
            return (
                *found[:index],
                Violation(violation.field, f"is not valid; {left_out} wrong fields are not listed, this one included"),
            )
    return found


def not_found(reason: Reason, message: str) -> OnefoldError:
    """A NOT_FOUND; what is missing and what belongs to another project look the same."""
    return OnefoldError(Kind.NOT_FOUND, reason, message)


def already_exists(reason: Reason, message: str, **metadata: str) -> OnefoldError:
    """An ALREADY_EXISTS."""
    return OnefoldError(Kind.ALREADY_EXISTS, reason, message, metadata)


def failed_precondition(reason: Reason, message: str, **metadata: str) -> OnefoldError:
    """A FAILED_PRECONDITION: the request is well-formed, but the state of things refuses it."""
    return OnefoldError(Kind.FAILED_PRECONDITION, reason, message, metadata)


def exhausted(reason: Reason, message: str, **metadata: str) -> OnefoldError:
    """A RESOURCE_EXHAUSTED: a limit is reached and nothing happened."""
    return OnefoldError(Kind.RESOURCE_EXHAUSTED, reason, message, metadata)
