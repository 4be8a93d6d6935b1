"""Pinned interleavings: a test holds a lock that calls need, sees them queue up, and lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from onefold.config import Settings
from support.world import World


@asynccontextmanager
async def held(settings: Settings, statement: str, *arguments: object) -> AsyncIterator[None]:
    """Runs a statement in a transaction of its own, keeps its locks during the block, and rolls it back."""
    connection = await asyncpg.connect(settings.database_url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(statement, *arguments)
        try:
            yield
        finally:
            await transaction.rollback()
    finally:
        await connection.close()


async def until_waiting(world: World, count: int) -> None:
    """Returns when that many transactions of servers and workers wait for a lock."""
    async with asyncio.timeout(5.0):
        while (
            await world.value(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND application_name LIKE 'onefold %'"
            )
            != count
        ):
            pass
