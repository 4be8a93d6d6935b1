"""How far the streams of a server may read: one look for all of them, five times a second while there are any.

A stream waits here and not on a connection of its own; nothing is held open in PostgreSQL meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import structlog

from onefold.db.pool import Database
from onefold.errors import OnefoldError
from onefold.triggers import store
from onefold.triggers.rules import Fence, advance

_log = structlog.get_logger()

_LOOK_SECONDS: Final = 0.2
# While somebody is writing whom the numbers wait for.
_LOOK_AGAIN_SECONDS: Final = 0.05


class Horizon:
    """The number, by project, up to which all triggers are decided: committed and seen by every statement from now on,
    or never."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watchers: Counter[str] = Counter()
        self._fences: dict[str, Fence] = {}
        self._looker: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()

    @asynccontextmanager
    async def watched(self, project_id: str) -> AsyncIterator[None]:
        """Looks at the project as long as the block of any of its streams runs."""
        self._watchers[project_id] += 1
        if self._looker is None:
            self._looker = asyncio.create_task(self._look_forever(), name="horizon")
        try:
            yield
        finally:
            self._watchers -= Counter([project_id])
            if project_id not in self._watchers:
                self._fences.pop(project_id, None)
            if not self._watchers and self._looker is not None:
                looker, self._looker = self._looker, None
                looker.cancel()
                await asyncio.wait({looker})

    async def beyond(self, project_id: str, number: int, seconds: float | None = None) -> int | None:
        """The project's horizon, as soon as it lies beyond a number; None if it does not within the time.

        Only while the project is watched.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    fence = self._fences.get(project_id)
                    if fence is not None and fence.decided is not None and fence.decided > number:
                        return fence.decided
                    await self._moved.wait()
        return None

    async def _look_forever(self) -> None:
        while True:
            watched = list(self._watchers)
            writers: frozenset[str] = frozenset()
            try:
                newest, writers = await self._database.read(partial(store.look, project_ids=watched))
            except OnefoldError as error:
                # A stream finds out by itself when it reads; one that has nothing to read just waits.
                _log.warning("triggers could not be looked for", reason=str(error.reason))
            else:
                for project_id in self._watchers.keys() & set(watched):
                    self._fences[project_id] = advance(self._fences.get(project_id), newest.get(project_id, 0), writers)
                self._moved.set()
                self._moved = asyncio.Event()
            await asyncio.sleep(_LOOK_AGAIN_SECONDS if writers else _LOOK_SECONDS)
