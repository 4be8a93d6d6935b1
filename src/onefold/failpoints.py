"""Named places at which a test may stop, or end, whoever comes by.

There is one before every statement, under the statement's name; `begin`, `commit` and `committed` of every transaction
(the last one is after the commit, before the bell and the answer); and `copy_events`, which is no statement of a file.
In production nobody waits there: the hook is None, and a place costs one look at it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

BEGIN: Final = "begin"
COMMIT: Final = "commit"
COMMITTED: Final = "committed"
COPY_EVENTS: Final = "copy_events"

# Given the place, and the connection that the transaction is on (None after the commit). What it raises, the caller
# raises: before the commit, that rolls everything back.
Hook: TypeAlias = Callable[[str, object], Awaitable[None]]

hook: Hook | None = None
