"""The day partitions of anonymous_events: made ahead, dropped when their 30 days are over.

Creating and dropping need an ACCESS EXCLUSIVE lock for a moment. It is asked for with a short lock_timeout and tried
again later, because every reader that comes after a waiting lock queues behind it.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

import asyncpg

from onefold.db.queries import Connection
from onefold.limits import ANONYMOUS_LIFETIME, EVENT_AHEAD

_DAY = timedelta(days=1)
_NAME = re.compile(r"anonymous_events_(\d{4})(\d{2})(\d{2})")
# An event may be stored up to 24 hours ahead; the rest is slack for a worker that does not run for a while.
_DAYS_AHEAD = EVENT_AHEAD.days + 7
_LOCK_TIMEOUT = "100ms"


def partition_name(day: date) -> str:
    """The name of the partition that holds a day (UTC)."""
    return f"anonymous_events_{day:%Y%m%d}"


def wanted_days(now: datetime) -> list[date]:
    """Every day whose events may be stored now: from 30 days ago to 8 days ahead."""
    first = (now - ANONYMOUS_LIFETIME).astimezone(UTC).date()
    last = (now + _DAYS_AHEAD * _DAY).astimezone(UTC).date()
    return [first + _DAY * offset for offset in range((last - first).days + 1)]


def expired_partitions(names: list[str], now: datetime, oldest_wanted: datetime | None) -> list[str]:
    """The partitions of which no row can be seen or moved any more.

    An event belongs to a person for good if it was less than 30 days old when its id was linked; so what a worker has
    still to move (from `oldest_wanted` on) is kept for it. One more hour covers links that are being committed.
    """
    expired_before = now - ANONYMOUS_LIFETIME
    horizon = min(expired_before, oldest_wanted or expired_before) - timedelta(hours=1)
    expired = []
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            year, month, day = map(int, match.groups())
            if datetime(year, month, day, tzinfo=UTC) + _DAY <= horizon:
                expired.append(name)
    return sorted(expired)


async def ensure_partitions(connection: Connection) -> list[str]:
    """Makes the partitions that are missing; returns their names.

    One that cannot be made now (locked, or a row of its day arrived just then) is left for the next time: inserts go to
    the default partition meanwhile, and reads see both.
    """
    now = await connection.fetchval("SELECT now()")
    existing = set(await partitions(connection))
    made = []
    for day in wanted_days(now):
        name = partition_name(day)
        if name in existing:
            continue
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                await _make(connection, name, day)
            made.append(name)
        except (asyncpg.LockNotAvailableError, asyncpg.CheckViolationError, asyncpg.DeadlockDetectedError):
            continue
    return made


async def _make(connection: Connection, name: str, day: date) -> None:
    """Makes a day's partition. Rows of the day that had to go to the default partition move over in the same
    transaction, or it could not be made.
    """
    bounds = f"FROM ('{day} 00:00Z') TO ('{day + _DAY} 00:00Z')"
    # Both are made of a date, so nothing can be slipped in.
    within = f"event_time >= '{day} 00:00Z' AND event_time < '{day + _DAY} 00:00Z'"
    stray = await connection.fetchval(f"SELECT EXISTS (SELECT FROM anonymous_events_default WHERE {within})")  # noqa: S608
    if stray:
        await connection.execute("CREATE TEMP TABLE stray_events (LIKE anonymous_events) ON COMMIT DROP")
        await connection.execute(
            f"WITH stray AS (DELETE FROM anonymous_events_default WHERE {within} RETURNING *) "  # noqa: S608
            "INSERT INTO stray_events SELECT * FROM stray"
        )
    await connection.execute(f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF anonymous_events FOR VALUES {bounds}")
    if stray:
        await connection.execute("INSERT INTO anonymous_events SELECT * FROM stray_events")


async def drop_partition(connection: Connection, name: str) -> bool:
    """Drops one partition; False if a reader held it for longer than the call waits."""
    if not _NAME.fullmatch(name):
        raise ValueError(name)
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            await connection.execute(f"DROP TABLE IF EXISTS {name}")
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        return False
    return True


async def partitions(connection: Connection) -> list[str]:
    """The names of all partitions of anonymous_events."""
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid "
        "WHERE i.inhparent = 'anonymous_events'::regclass ORDER BY 1"
    )
    return [row["relname"] for row in rows]
