"""What the races share: a project with a schedule, and guards that a test switches off."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

import pytest

from onefold.db.queries import Queries
from onefold.intents.store import Lease
from onefold.v1.profile_pb2 import Identifiers
from onefold.workflows.run import CHUNKS
from races.schedule import Actor, Schedule
from support.client import Client, email
from support.world import World

T = TypeVar("T")
A, B, C = (email(f"{letter}@example.com") for letter in "abc")

# Every race is run with its guard, and without it: then the same reads must show the wrong outcome.
GUARDED: Final = pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "unguarded"])


@dataclass
class Stage(Client):
    """A project, the hands of a test on the world behind it, and the order in which its calls go on."""

    world: World
    schedule: Schedule

    async def start(self, name: str, work: Awaitable[T], stop: str | None = None) -> Actor[T]:
        """Starts a call or a chunk; returns when it stands at the place, has ended, or waits for a lock."""
        return await self.schedule.start(name, work, stop)

    async def lease(self) -> Lease:
        """The lease of the one intent that is due."""
        [intent_id] = await self.world.due(self.project_id)
        lease = await self.world.take(self.project_id, intent_id)
        assert lease is not None
        return lease

    async def chunk(self, lease: Lease, stop: str | None = None, position: Any = None) -> Actor[Any]:
        """Starts a worker's chunk."""
        work = partial(CHUNKS[lease.intent.kind], lease=lease, position=position)
        return await self.start("chunk", self.world.database.transact(work), stop)

    async def named(self, *people: Identifiers) -> list[list[str]]:
        """The names of the events of each of these people, newest first."""
        return [await self.names(identifiers=who) for who in people]


def switch_off(patch: pytest.MonkeyPatch, queries: Queries, name: str, guard: str, instead: str = "") -> None:
    """Takes a guard out of a statement, for this process. The guard must be there, once."""
    query = getattr(queries, name)
    assert query.sql.count(guard) == 1, f"{name} does not say {guard!r} once"
    patch.setitem(queries._queries, name, replace(query, sql=query.sql.replace(guard, instead)))
