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


@asynccontextmanager
async def stuck(settings: Settings, table: str, project_id: str) -> AsyncIterator[None]:
    """Whoever writes a row of the project into the table is stuck during the block.

    Unlike a lock that somebody holds, for which a call waits 1 s, this lasts for the 5 s that a statement may take.
    """
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute(
            """
            CREATE FUNCTION test_stuck() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM set_config('lock_timeout', '0', true);
                PERFORM pg_advisory_xact_lock_shared(4713);
                RETURN NEW;
            END $$
            """
        )
        await connection.execute(
            f"CREATE TRIGGER test_stuck BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW "
            f"WHEN (NEW.project_id = '{project_id}') EXECUTE FUNCTION test_stuck()"
        )
        await connection.execute("SELECT pg_advisory_lock(4713)")
        try:
            yield
        finally:
            await connection.execute("SELECT pg_advisory_unlock(4713)")
            await connection.execute("DROP FUNCTION test_stuck CASCADE")
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
