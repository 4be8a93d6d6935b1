"""Moving events to where they belong: into a person's timeline after a link or a merge, back after an undo, or nowhere.

Each of these took effect when its call committed; this only moves rows. Events that arrive later go straight to their
owner, so what is left to move is what was there, and the stragglers: events whose transaction began before the call
was committed and ended after. None of those lives longer than the transaction timeout, so a pass that begins that much
after a worker first saw the move leaves nothing behind, and closes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from onefold.clock import EARLIEST
from onefold.db.pool import TRANSACTION_TIMEOUT_SECONDS
from onefold.db.queries import Connection, Queries, Query, Record
from onefold.events.store import recipient_id
from onefold.intents import store as intents
from onefold.intents.store import Lease
from onefold.limits import ANONYMOUS_LIFETIME, TRIGGER_AGE
from onefold.triggers import store as triggers
from onefold.triggers.rules import Mark
from onefold.triggers.store import NewTrigger

queries: Final = Queries("onefold.workflows")

CHUNK_EVENTS: Final = 5_000
# The statements that bring a person what a link associates.
_TRIGGERING: Final = (queries.subject_to_profile, queries.profile_to_profile, queries.count_in_place)
# One second more than a straggler can live.
SETTLE_AFTER: Final = timedelta(seconds=TRANSACTION_TIMEOUT_SECONDS + 1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a pass stands: when it and the first one began, and the last key it looked at."""

    pass_time: datetime
    first_pass_time: datetime
    after_time: datetime = EARLIEST
    after_id: str = ""


async def move_chunk(connection: Connection, lease: Lease, position: Position | None) -> Position | None:
    """One transaction's worth of work; returns where to go on, or None when the intent is finished or postponed.

    Safe to run again from the start at any time: what was moved is not found again. Raises LeaseLostError.
    """
    await intents.renew(connection, lease)
    project_id, move_id = lease.intent.project_id, lease.intent.intent_id
    if position is None:
        begun = await queries.begin_pass.fetchrow(connection, project_id=project_id, move_id=move_id)
        if begun is not None:
            position = Position(begun["pass_time"], begun["first_pass_time"])
    move = await queries.lock_move.fetchrow(connection, project_id=project_id, move_id=move_id)
    if move is None or position is None:
        # Undone: what was not moved need not be.
        await intents.finish(connection, lease)
        return None
    settle_from = position.first_pass_time + SETTLE_AFTER
    is_last_pass = position.pass_time >= settle_from
    query = _chunk_query(move)
    arguments: dict[str, object] = {
        "project_id": project_id,
        "move_id": move_id,
        "after_time": position.after_time,
        "after_id": position.after_id,
        "count": CHUNK_EVENTS,
    }
    if query is queries.profile_to_subject:
        arguments["lifetime"] = ANONYMOUS_LIFETIME
    if query is queries.count_in_place:
        arguments["is_last_pass"] = is_last_pass
    if query in _TRIGGERING:
        arguments["trigger_after"] = move["link_time"] - TRIGGER_AGE if move["link_time"] is not None else None
    moved = await _move(connection, query, arguments)
    assert moved is not None  # a SELECT without FROM returns one row
    if moved["event_count"]:
        await intents.note_progress(connection, lease, moved["event_count"])
    if query in _TRIGGERING and moved["trigger_ids"]:
        await triggers.record(
            connection,
            project_id,
            [
                NewTrigger(Mark.MERGED, move["owner_profile_id"], None, event_time, event_id)
                for event_time, event_id in zip(moved["trigger_times"], moved["trigger_ids"], strict=True)
            ],
        )
    if moved["event_count"] and move["counted_merge_ids"]:
        await queries.count_moved.execute(
            connection,
            event_count=moved["event_count"],
            oldest_event_time=moved["oldest_event_time"],
            project_id=project_id,
            merge_ids=move["counted_merge_ids"],
        )
    if moved["last_time"] is not None:
        return Position(position.pass_time, position.first_pass_time, moved["last_time"], moved["last_id"])
    is_erasure = move["owner_profile_id"] is None and move["owner_subject_id"] is None
    # Of a container that holds another's events only in part the answers and notes are that other's.
    if is_erasure and move["origin_ids"] is None:
        # Answers that were stored while the person was being forgotten go with the pass after.
        await queries.delete_answers.execute(
            connection,
            project_id=project_id,
            profile_id=move["container_profile_id"]
            or move["container_subject_id"]
            or recipient_id(project_id, move["container_recipient"]),
            until=move["window_end_time"],
        )
        if move["container_profile_id"] is not None:
            erased = await queries.erase_activities.execute(
                connection, project_id=project_id, profile_id=move["container_profile_id"], count=CHUNK_EVENTS
            )
            if erased == CHUNK_EVENTS:
                return position
    if not is_last_pass:
        await intents.postpone(connection, lease, settle_from)
        return None
    await queries.finish_move.execute(connection, project_id=project_id, move_id=move_id)
    if move["counted_merge_ids"]:
        await queries.settle_merges.execute(connection, project_id=project_id, merge_ids=move["counted_merge_ids"])
    await intents.finish(connection, lease)
    return None


async def _move(connection: Connection, query: Query, arguments: dict[str, object]) -> Record | None:
    await connection.execute("SAVEPOINT before_move")
    try:
        return await query.fetchrow(connection, **arguments)
    except asyncpg.UniqueViolationError:
        await connection.execute("ROLLBACK TO SAVEPOINT before_move")
        drop = (
            queries.drop_told_again_to_subject
            if query is queries.subject_to_profile
            else queries.drop_told_again_to_profile
        )
        await drop.execute(connection, project_id=arguments["project_id"], move_id=arguments["move_id"])
        return await query.fetchrow(connection, **arguments)


def _chunk_query(move: Record) -> Query:
    """The statement that moves a chunk, by where the rows lie and who owns them. Without an owner they are erased."""
    if move["container_recipient"] is not None:
        return queries.erase_invites
    from_profile = move["container_profile_id"] is not None
    if from_profile and move["container_profile_id"] == move["owner_profile_id"]:
        return queries.count_in_place
    if move["owner_subject_id"] is not None:
        return queries.profile_to_subject
    if move["owner_profile_id"] is not None:
        return queries.profile_to_profile if from_profile else queries.subject_to_profile
    return queries.erase_profile if from_profile else queries.erase_subject
