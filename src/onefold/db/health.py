"""Whether PostgreSQL is as a server or a worker needs it."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Final

import asyncpg

from onefold.db.migrate import migrations
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError

HEALTH_SECONDS: Final = 2.0
_OLDER: Final = "the schema is older than this version"


@cache
def _versions() -> list[int]:
    return [migration.version for migration in migrations()]


async def problem(database: Database) -> str | None:
    """What is wrong with PostgreSQL, for an operator; None if it takes writes and has the schema of this version.

    Answers within 2 s.
    """
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            found = await database.read(_look)
    except asyncpg.UndefinedTableError:
        return _OLDER
    except (OnefoldError, asyncpg.PostgresError, TimeoutError):
        return "PostgreSQL does not answer"
    # That the disk is full shows in writes only; with none coming, it is tried again after a while.
    return found or ("PostgreSQL has no room on its disk" if database.is_full else None)


async def _look(connection: Connection) -> str | None:
    writable = await connection.fetchval(
        "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'"
    )
    if not writable:
        return "PostgreSQL takes no writes"
    # A backup that was put back may be of an older version. One that has more migrations is newer, and is fine.
    applied = await connection.fetchval(
        "SELECT count(*) FROM schema_migrations WHERE version = ANY($1::integer [])", _versions()
    )
    return None if applied == len(_versions()) else _OLDER
