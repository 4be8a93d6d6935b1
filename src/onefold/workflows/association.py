"""Relocating an anonymous_id's events into the timeline of the person it was linked to.

The link took effect when Identify committed; this only moves rows. Events that arrive later find the link and go
straight to the person, so what is left to move is what was there, and the stragglers: events whose transaction began
before the link was committed and ended after. None of those lives longer than the transaction timeout, so a pass that
begins that much after a worker first saw the link leaves nothing behind, and closes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from onefold.clock import EARLIEST
from onefold.db.pool import TRANSACTION_TIMEOUT_SECONDS
from onefold.db.queries import Connection, Queries
from onefold.intents import store as intents
from onefold.intents.store import Lease
from onefold.limits import ANONYMOUS_LIFETIME

queries: Final = Queries("onefold.workflows")

CHUNK_EVENTS: Final = 5_000
# One second more than a straggler can live.
SETTLE_AFTER: Final = timedelta(seconds=TRANSACTION_TIMEOUT_SECONDS + 1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a pass stands: when it and the first one began, and the last key it looked at."""

    pass_time: datetime
    first_pass_time: datetime
    after_time: datetime = EARLIEST
    after_id: str = ""


async def relocate_chunk(connection: Connection, lease: Lease, position: Position | None) -> Position | None:
    """One transaction's worth of work; returns where to go on, or None when the intent is finished or postponed.

    Safe to run again from the start at any time: what was moved is not found again. Raises LeaseLostError.
    """
    await intents.renew(connection, lease)
    project_id, merge_id = lease.intent.project_id, lease.intent.intent_id
    if position is None:
        begun = await queries.begin_pass.fetchrow(connection, project_id=project_id, merge_id=merge_id)
        if begun is None:
            # Settled, or undone: there is nothing left to move.
            await intents.finish(connection, lease)
            return None
        position = Position(begun["pass_time"], begun["first_pass_time"])
    moved = await queries.relocate_chunk.fetchrow(
        connection,
        project_id=project_id,
        merge_id=merge_id,
        after_time=position.after_time,
        after_id=position.after_id,
        count=CHUNK_EVENTS,
        lifetime=ANONYMOUS_LIFETIME,
    )
    assert moved is not None  # a SELECT without FROM returns one row
    if moved["event_count"]:
        await queries.count_moved.execute(
            connection,
            event_count=moved["event_count"],
            oldest_event_time=moved["oldest_event_time"],
            project_id=project_id,
            merge_id=merge_id,
        )
    if moved["last_time"] is not None:
        return Position(position.pass_time, position.first_pass_time, moved["last_time"], moved["last_id"])
    settle_from = position.first_pass_time + SETTLE_AFTER
    if position.pass_time >= settle_from:
        await queries.settle_merge.execute(connection, project_id=project_id, merge_id=merge_id)
        await intents.finish(connection, lease)
    else:
        await intents.postpone(connection, lease, settle_from)
    return None
