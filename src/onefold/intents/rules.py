"""When an intent is tried again, and when nobody tries any more. Pure."""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import Final

# A chunk takes well under a second and renews the lease; whoever is silent for this long is gone or frozen.
LEASE: Final = timedelta(seconds=30)
MAX_ATTEMPTS: Final = 12
_FIRST_DELAY: Final = timedelta(seconds=1)
_LONGEST_DELAY: Final = timedelta(minutes=10)


class IntentKind(enum.StrEnum):
    """What a worker is to do. A kind that this version does not know is left alone (it belongs to a newer one)."""

    MOVE = "MOVE"
    # A move without an owner as well, but of a container that came with it.
    ERASE_INVITES = "ERASE_INVITES"
    DISABLE = "DISABLE"
    # Looking at visitors whose events have left a note.
    ACTIVATE = "ACTIVATE"
    # Leaving a note of every visitor of a project.
    REVIEW = "REVIEW"


def retry_delay(attempt: int) -> timedelta:
    """How long to wait after the attempt of this number (from 1) failed: 1 s, doubling, 10 min at most."""
    doublings = min(max(attempt - 1, 0), 20)
    return min(_FIRST_DELAY * (1 << doublings), _LONGEST_DELAY)


def gives_up(attempt: int) -> bool:
    """Whether the attempt of this number was the last: the intent is stuck then and waits for an operator."""
    return attempt >= MAX_ATTEMPTS
