"""What goes by itself: anonymous events after 30 days, answers by request_id after 24 hours, event ids after 35 days,
triggers after 7 days, what visitors without a profile allowed after a year, what an undo would need after its 30 days.

Reads hide each of these at the moment its time is over; here it is only removed from the disk.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Final

from onefold.db.partitions import drop_partition, ensure_partitions, expired_partitions, partitions
from onefold.db.pool import Database
from onefold.db.queries import Connection, Queries, Query
from onefold.limits import (
    ANONYMOUS_LIFETIME,
    CONSENT_LIFETIME,
    EVENT_ID_LIFETIME,
    REQUEST_ID_LIFETIME,
    TRIGGER_LIFETIME,
)
from onefold.merges.rules import UNDO_PERIOD

queries: Final = Queries("onefold.workflows")

_PURGE_ROWS: Final = 2_000
_PURGE_STEPS: Final = 500
# An undo that began in its last second is over by then.
_UNDO_OVER: Final = UNDO_PERIOD + timedelta(minutes=1)


async def keep_partitions(database: Database) -> list[str]:
    """Makes the partitions ahead, and drops those whose time is over; returns the names of the dropped ones.

    One that a reader holds is left for the next time.
    """

    async def keep(connection: Connection) -> list[str]:
        await ensure_partitions(connection)
        row = await queries.oldest_wanted_event.fetchrow(connection)
        assert row is not None  # an aggregate returns one row
        names = await partitions(connection)
        expired = expired_partitions(names, row["now"], row["oldest_wanted"])
        return [name for name in expired if await drop_partition(connection, name)]

    return await database.maintain(keep)


async def purge(database: Database) -> int:
    """Removes answers and event ids whose time is over, in steps of at most 2,000 rows; returns how many."""
    removed = 0
    steps: list[tuple[Query, object]] = [
        (queries.purge_requests, REQUEST_ID_LIFETIME),
        (queries.purge_event_ids, EVENT_ID_LIFETIME),
        (queries.purge_triggers, TRIGGER_LIFETIME),
        (queries.purge_default_partition, ANONYMOUS_LIFETIME),
        (queries.purge_disables, UNDO_PERIOD),
        (queries.purge_copies, _UNDO_OVER),
        (queries.purge_snapshots, _UNDO_OVER),
        # A month of slack: an undo may want them back.
        (queries.purge_redirects, UNDO_PERIOD),
        (queries.purge_consents, CONSENT_LIFETIME),
        # One day more, because they are counted in days.
        (queries.purge_visitors, ANONYMOUS_LIFETIME + timedelta(days=1)),
    ]
    for query, lifetime in steps:
        for _ in range(_PURGE_STEPS):
            count = await database.transact(partial(query.execute, lifetime=lifetime, count=_PURGE_ROWS))
            removed += count
            if count < _PURGE_ROWS:
                break
    return removed
