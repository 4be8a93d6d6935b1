"""Looking at everything a project has, and waiting for something real to come about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
from asyncpg.transaction import Transaction

from onefold.db.pool import WORKER_SETTINGS, Database
from support.world import World

# A crash between two halves of a test should not hold the run up for long; a healthy wait is over in milliseconds.
PATIENCE_SECONDS = 30.0


async def eventually(holds: Callable[[], Awaitable[bool]], seconds: float = PATIENCE_SECONDS) -> None:
    """Returns as soon as the condition holds; fails when it does not within the time."""
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


async def rows_of(world: World, project_id: str, *, with_writers: bool = False) -> dict[str, list[str]]:
    """Every row that a project has in any table, as text, by table. Two calls compare equal if nothing changed.

    With the transactions that wrote the rows, they compare equal only if no row was written again as it was.
    """
    row = "t.xmin::text || t::text" if with_writers else "t::text"
    tables = await world.fetch(
        "SELECT c.table_name FROM information_schema.columns AS c "
        "JOIN pg_class AS r ON r.relname = c.table_name AND NOT r.relispartition "
        "WHERE c.table_schema = 'public' AND c.column_name = 'project_id' ORDER BY 1"
    )
    return {
        name: [
            found[0]
            for found in await world.fetch(
                f"SELECT {row} FROM {name} AS t WHERE project_id = $1 ORDER BY 1", project_id
            )
        ]
        for (name,) in tables
    }


async def waits_for_lock(world: World, sessions: int = 1) -> None:
    """Returns when so many of the servers' sessions wait for a lock that somebody else holds."""

    async def waiting() -> bool:
        count: int = await world.value(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() "
            "AND application_name = 'onefold server'"
        )
        return count >= sessions

    await eventually(waiting)


@asynccontextmanager
async def held(url: str, *statements: tuple[str, tuple[object, ...]]) -> AsyncIterator[Transaction]:
    """A transaction of somebody else that has run some statements and holds what they locked.

    It is rolled back at the end unless the block ended it.
    """
    connection = await asyncpg.connect(url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        for sql, arguments in statements:
            await connection.execute(sql, *arguments)
        yield transaction
    finally:
        await connection.close()


@asynccontextmanager
async def world_of(url: str) -> AsyncIterator[World]:
    """The hands of a test on another database than the shared one."""
    database = await Database.connect(url, settings=WORKER_SETTINGS, connections=4)
    try:
        yield World(database)
    finally:
        await database.close()
