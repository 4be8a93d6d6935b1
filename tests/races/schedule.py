"""Pinning who goes first: a call or a worker's chunk stops at a named place, and goes on when the test says so.

Nobody sleeps. Whoever is let go runs until it stops at the next place that it was given, has ended, or waits in
PostgreSQL for a lock that somebody else holds, which PostgreSQL itself tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import asyncpg
import grpc

from onefold import failpoints
from support.client import read_failure
from support.crashing import KilledError

T = TypeVar("T")
_PATIENCE_SECONDS: Final = 20.0
_LOOKS: Final = 5
# Done once for all calls that need it, by a task of its own.
_SHARED: Final = frozenset({"find_api_key"})


@dataclass(eq=False)
class Actor(Generic[T]):
    """A call, or a chunk, that the schedule leads."""

    name: str
    schedule: Schedule
    task: asyncio.Task[T]
    # The place where it is to stop next, the one where it stands, and all that it came by.
    stop: str | None
    at: str | None = None
    seen: list[str] = field(default_factory=list)
    # The session whose transaction it is in, as PostgreSQL calls it.
    pid: int | None = None
    # Whether it waited for a lock when it was last looked at.
    blocked: bool = False
    is_killed: bool = False
    turn: asyncio.Event = field(default_factory=asyncio.Event)

    async def go(self, stop: str | None = None) -> Actor[T]:
        """Lets it go on, to the place `stop` if it is given; returns when it stands there, has ended, or is blocked."""
        self.stop, self.at = stop, None
        self.turn.set()
        await self.schedule.until_settled(self)
        return self

    async def end(self) -> T:
        """Lets it go on to its end; its result, or what it raised. Nobody may block it any more."""
        self.stop, self.at = None, None
        self.turn.set()
        return await asyncio.wait_for(asyncio.shield(self.task), _PATIENCE_SECONDS)

    async def die(self) -> None:
        """Ends it where it stands: before the commit nothing of it is left, after it only the answer is lost."""
        self.is_killed = True
        with contextlib.suppress(grpc.aio.AioRpcError, KilledError):
            await self.end()

    async def reason(self) -> str:
        """Lets it go on to its end; the published reason why it failed, or "" if it did not."""
        try:
            await self.end()
        except grpc.aio.AioRpcError as error:
            return read_failure(error).reason
        return ""


class Schedule:
    """The places of this process, and those who come by."""

    def __init__(self, watcher: asyncpg.Connection[asyncpg.Record]) -> None:
        self._watcher = watcher
        self._actors: list[Actor[Any]] = []
        self._by_task: dict[asyncio.Task[Any], Actor[Any]] = {}
        self._starting: Actor[Any] | None = None

    async def start(self, name: str, work: Awaitable[T], stop: str | None = None) -> Actor[T]:
        """Starts a call or a chunk; returns when it stands at the place `stop`, has ended, or is blocked.

        A call is served in a task of its own, which is told by its being the first that comes by a place after this:
        everybody else stands still, or is known. So the call must not have begun before.
        """
        actor = Actor(name, self, asyncio.ensure_future(work), stop)
        self._actors.append(actor)
        self._starting = actor
        await self.until_settled(actor)
        self._starting = None
        return actor

    async def until_settled(self, actor: Actor[Any]) -> None:
        """Returns when an actor stands at its place, has ended, or waits for a lock."""
        actor.blocked = False
        deadline = time.monotonic() + _PATIENCE_SECONDS
        looks = 0
        while actor.at is None and not actor.task.done():
            assert time.monotonic() < deadline, f"{actor.name} neither stops nor ends; it came by {actor.seen}"
            # More than once in a row: a wait for somebody who is about to go on is none.
            looks = looks + 1 if actor.pid is not None and await self._waits(actor.pid) else 0
            if looks == _LOOKS and actor.at is None:
                actor.blocked = True
                return
            # Lets the others run: what is waited for is a task of this loop, or a session of PostgreSQL.
            await asyncio.sleep(0.002)

    async def come_by(self, place: str, connection: Any) -> None:
        """The hook: whoever is led stops here if this is the place."""
        task = asyncio.current_task()
        if task is None or place in _SHARED:
            return
        actor = self._by_task.get(task)
        if actor is None and self._starting is not None:
            actor = self._by_task[task] = self._starting
            self._starting = None
        if actor is None or actor.task.done():
            return
        actor.seen.append(place)
        if connection is not None:
            actor.pid = connection.get_server_pid()
        if place == actor.stop:
            actor.turn.clear()
            actor.at = place
            await actor.turn.wait()
            if actor.is_killed:
                raise KilledError

    async def _waits(self, pid: int) -> bool:
        # Whom it waits for is asked for, too: a lock of its own that it is just being given has nobody who holds it.
        waits: bool = await self._watcher.fetchval("SELECT cardinality(pg_blocking_pids($1)) > 0", pid)
        return waits

    async def close(self) -> None:
        """Lets everybody go to their end."""
        for actor in self._actors:
            actor.stop = None
            actor.turn.set()
        await asyncio.gather(*(actor.task for actor in self._actors), return_exceptions=True)


@contextlib.contextmanager
def led_by(schedule: Schedule) -> Iterator[None]:
    """During the block everybody who comes by a place is the schedule's."""
    failpoints.hook = schedule.come_by
    try:
        yield
    finally:
        failpoints.hook = None
