"""Which events trigger, how far a reader may read, and what a cursor holds. Pure."""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
from dataclasses import dataclass, replace
from datetime import datetime

import orjson

from onefold.errors import Kind, OnefoldError, Reason, failed_precondition
from onefold.limits import TRIGGER_AGE, TRIGGER_LIFETIME

_LARGEST_NUMBER = 2**63 - 1


class Mark(enum.IntEnum):
    """How a trigger came about; the numbers are those in the protos and in the table."""

    LIVE = 1
    BACKFILLED = 2
    MERGED = 3


def mark_of(event_time: datetime, link_time: datetime | None, *, backfilled: bool) -> Mark | None:
    """The mark of an event that belongs to somebody; None if it does not trigger.

    `link_time` is that of the anonymous_id by whose link it came to the person, if it did (A9).
    """
    if link_time is not None:
        return Mark.MERGED if event_time > link_time - TRIGGER_AGE else None
    return Mark.BACKFILLED if backfilled else Mark.LIVE


@dataclass(frozen=True, slots=True)
class Fence:
    """How far the numbers of a project's triggers are decided.

    All up to `decided` belong to transactions that have ended, None if that is not known yet; all up to `number` will,
    once the `writers` have.
    """

    decided: int | None
    number: int
    writers: frozenset[str]


def advance(fence: Fence | None, number: int, writers: frozenset[str]) -> Fence:
    """The fence after another look: the newest committed number, and then, who may have taken one and has not ended.

    Numbers are no commit order: a transaction may take a low one and commit late. But whoever has taken one is among
    the writers until the end. So once all writers of one look are gone, every number below the newest one of that look
    is decided. Whoever begins to write later takes a higher number, and need not be waited for. A number that is
    committed is on the disk, so none below it is handed out again, whatever happens to PostgreSQL.
    """
    if fence is None:
        return Fence(None if writers else number, number, writers)
    if fence.writers & writers:
        return replace(fence, writers=fence.writers & writers)
    decided = fence.number if writers else max(fence.number, number)
    # Erasing may take the newest away; what was decided stays so.
    return Fence(max(decided, fence.decided or 0), number, writers)


def make_cursor(project_id: str, number: int) -> str:
    """The cursor behind the trigger of a number, good in one project only."""
    return base64.urlsafe_b64encode(orjson.dumps([_digest(project_id), number])).decode().rstrip("=")


def read_cursor(project_id: str, cursor: str) -> int:
    """The number in a cursor. Raises CURSOR_INVALID.

    A cursor is not signed: it says where to go on in what the caller may read anyway.
    """
    try:
        digest, number = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, TypeError):
        raise cursor_invalid() from None
    if digest != _digest(project_id) or type(number) is not int or not 0 <= number <= _LARGEST_NUMBER:
        raise cursor_invalid()
    return number


def cursor_invalid() -> OnefoldError:
    """The cursor was not given by WatchTriggers in this project."""
    return OnefoldError(
        Kind.INVALID_ARGUMENT, Reason.CURSOR_INVALID, "The cursor is not one that WatchTriggers gave in this project."
    )


def cursor_expired() -> OnefoldError:
    """What comes after the cursor is gone in part."""
    return failed_precondition(
        Reason.CURSOR_EXPIRED,
        f"Triggers behind the cursor are older than {TRIGGER_LIFETIME.days} days and gone. Begin at the oldest.",
    )


def triggers_disabled() -> OnefoldError:
    """The project does not keep triggers."""
    return failed_precondition(Reason.TRIGGERS_DISABLED, "The project's triggers_enabled is off.")


def _digest(project_id: str) -> str:
    return hashlib.blake2b(f"triggers\0{project_id}".encode(), digest_size=8).hexdigest()
