"""Visitors who become unknown profiles by themselves: working off the notes that their events left.

A note is in the transaction of its events, and whoever takes it removes it in the transaction of what it makes of them:
each event is looked at exactly once. An intent lives as long as there are notes; `note_visitors` says how no note is
ever without one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from onefold.activation import store
from onefold.activation.store import queries
from onefold.activation.watching import look_at
from onefold.db.queries import Connection
from onefold.events.store import note_visitors
from onefold.intents import store as intents
from onefold.intents.store import Lease
from onefold.projects.store import get_project

CHUNK_EVENTS: Final = 500
REVIEW_VISITORS: Final = 200
_PAUSE: Final = timedelta(milliseconds=200)


async def activate_chunk(connection: Connection, lease: Lease, position: bool | None) -> bool | None:
    """One transaction's worth of work; returns True to go on, or None when the intent is finished or postponed.

    Raises LeaseLostError, and LostRaceError.
    """
    project_id = lease.intent.project_id
    if not await _are_notes_left(connection, project_id):
        return await _end(connection, lease)
    await intents.renew(connection, lease)
    notes = await store.take_notes(connection, project_id, CHUNK_EVENTS)
    if not notes:
        # Another worker has them in hand.
        await _look_again_later(connection, lease)
        return None
    project = await get_project(connection, project_id)
    if project is not None and project.settings.watches_visitors:
        await look_at(connection, project, notes)
    await intents.note_progress(connection, lease, len(notes))
    return True


async def _end(connection: Connection, lease: Lease) -> bool | None:
    """Finishes the intent if nobody can be leaving a note that relies on it.

    Nothing has been written to the intent's row in this transaction: PostgreSQL's SKIP LOCKED would wait for the second
    version of a row that is deleted, and whoever leaves a note must never wait for a worker.
    """
    held = await queries.hold_intent.fetchval(
        connection,
        project_id=lease.intent.project_id,
        intent_id=lease.intent.intent_id,
        lease_token=lease.token,
    )
    if held is None:
        await _look_again_later(connection, lease)
        return None
    # Asked again now that it is held: whoever relied on the intent has ended, and left what is seen here.
    if await _are_notes_left(connection, lease.intent.project_id):
        return True
    await intents.finish(connection, lease)
    return None


async def _are_notes_left(connection: Connection, project_id: str) -> bool:
    are_left: bool = await queries.are_notes_left.fetchval(connection, project_id=project_id)
    return are_left


async def _look_again_later(connection: Connection, lease: Lease) -> None:
    moment: datetime = await queries.moment_after.fetchval(connection, pause=_PAUSE)
    await intents.postpone(connection, lease, moment)


async def review_chunk(connection: Connection, lease: Lease, position: UUID | None) -> UUID | None:
    """Leaves a note of the next visitors of a project; returns the last one, or None when the intent is finished.

    How far it is stands in a table: a review of many visitors takes longer than one worker's stretch.
    """
    await intents.renew(connection, lease)
    project_id, review_id = lease.intent.project_id, lease.intent.intent_id
    after: UUID | None = await queries.lock_review.fetchval(connection, project_id=project_id, review_id=review_id)
    rows = []
    if after is not None:
        rows = await queries.next_visitors.fetch(
            connection, project_id=project_id, after_subject_id=after, count=REVIEW_VISITORS
        )
    await note_visitors(connection, project_id, [row["anonymous_id"] for row in rows])
    if len(rows) < REVIEW_VISITORS:
        await queries.end_review.execute(connection, project_id=project_id, review_id=review_id)
        await intents.finish(connection, lease)
        return None
    last: UUID = rows[-1]["subject_id"]
    await queries.move_review.execute(connection, after_subject_id=last, project_id=project_id, review_id=review_id)
    await intents.note_progress(connection, lease, len(rows))
    return last
