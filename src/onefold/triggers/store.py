"""The outbox of triggers in PostgreSQL. Typed functions over queries.sql; the caller owns the transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from onefold.db.queries import Connection, Queries
from onefold.triggers.rules import Mark

queries: Final = Queries("onefold.triggers")


@dataclass(frozen=True, slots=True)
class NewTrigger:
    """An event that triggers: a person's, or an invite sent to a recipient."""

    mark: Mark
    profile_id: UUID | None
    recipient: str | None
    event_time: datetime
    event_id: str


@dataclass(frozen=True, slots=True)
class TriggerRow:
    """A trigger, with the key of its event as it was when it was recorded."""

    trigger_number: int
    mark: Mark
    profile_id: UUID | None
    recipient: str | None
    event_time: datetime
    event_id: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class TriggeredEvent:
    """The event of a trigger, and whose it is now: a person's, or an invite's recipient's; data is JSON text."""

    profile_id: UUID | None
    recipient: str | None
    event_time: datetime
    event_id: str
    receive_time: datetime
    kind: int
    was_anonymous: bool
    name: str
    anonymous_id: str | None
    data: str


@dataclass(frozen=True, slots=True)
class State:
    """What a project's settings and the retention say about its triggers."""

    triggers_enabled: bool
    purged_number: int


async def record(connection: Connection, project_id: str, triggers: Sequence[NewTrigger]) -> None:
    """Records the triggers of events that this transaction has stored, in their order."""
    if triggers:
        await queries.record_triggers.execute(
            connection,
            project_id=project_id,
            marks=[trigger.mark for trigger in triggers],
            profile_ids=[trigger.profile_id for trigger in triggers],
            recipients=[trigger.recipient for trigger in triggers],
            event_times=[trigger.event_time for trigger in triggers],
            event_ids=[trigger.event_id for trigger in triggers],
        )


async def last_number(connection: Connection) -> int:
    """The last number handed out to a trigger of any project."""
    number: int = await queries.last_trigger_number.fetchval(connection)
    return number


async def look(connection: Connection, project_ids: Sequence[str]) -> tuple[dict[str, int], frozenset[str]]:
    """The newest committed number of each of some projects (of those that have one), and then, in a statement of its
    own, the transactions that may have taken a number and have not ended."""
    newest = await queries.newest_triggers.fetch(connection, project_ids=list(project_ids))
    writers = await queries.trigger_writers.fetch(connection)
    return (
        {row["project_id"]: row["trigger_number"] for row in newest},
        frozenset(row["virtualtransaction"] for row in writers),
    )


async def find_state(connection: Connection, project_id: str) -> State:
    """How a project's triggers stand."""
    row = await queries.trigger_state.fetchrow(connection, project_id=project_id)
    return State(row["triggers_enabled"], row["purged_number"]) if row else State(False, 0)


async def next_triggers(
    connection: Connection, project_id: str, after_number: int, decided_number: int, count: int
) -> list[TriggerRow]:
    """At most `count` triggers after a number, in order."""
    rows = await queries.next_triggers.fetch(
        connection, project_id=project_id, after_number=after_number, decided_number=decided_number, count=count
    )
    return [
        TriggerRow(
            row["trigger_number"],
            Mark(row["mark"]),
            row["profile_id"],
            row["recipient"],
            row["event_time"],
            row["event_id"],
            row["create_time"],
        )
        for row in rows
    ]


async def triggered_events(
    connection: Connection,
    project_id: str,
    triggers: Sequence[TriggerRow],
    names: Sequence[str] | None,
    kinds: Sequence[int] | None,
) -> dict[int, TriggeredEvent]:
    """The events of triggers, by number: those of these names and kinds (None for any) that are somebody's now."""
    found = await _invites(connection, project_id, triggers, names, kinds)
    wanted = [trigger for trigger in triggers if trigger.profile_id is not None]
    if not wanted:
        return found
    rows = await queries.triggered_events.fetch(
        connection,
        profile_ids=[trigger.profile_id for trigger in wanted],
        project_id=project_id,
        trigger_numbers=[trigger.trigger_number for trigger in wanted],
        event_times=[trigger.event_time for trigger in wanted],
        event_ids=[trigger.event_id for trigger in wanted],
        names=names,
        kinds=kinds,
    )
    return found | {
        row["trigger_number"]: TriggeredEvent(
            row["profile_id"],
            None,
            row["event_time"],
            row["event_id"],
            row["receive_time"],
            row["kind"],
            row["was_anonymous"],
            row["name"],
            row["anonymous_id"],
            row["data"],
        )
        for row in rows
    }


async def _invites(
    connection: Connection,
    project_id: str,
    triggers: Sequence[TriggerRow],
    names: Sequence[str] | None,
    kinds: Sequence[int] | None,
) -> dict[int, TriggeredEvent]:
    wanted = [trigger for trigger in triggers if trigger.recipient is not None]
    if not wanted:
        return {}
    rows = await queries.triggered_invites.fetch(
        connection,
        trigger_numbers=[trigger.trigger_number for trigger in wanted],
        recipients=[trigger.recipient for trigger in wanted],
        event_times=[trigger.event_time for trigger in wanted],
        event_ids=[trigger.event_id for trigger in wanted],
        project_id=project_id,
        names=names,
        kinds=kinds,
    )
    return {
        row["trigger_number"]: TriggeredEvent(
            None,
            row["recipient"],
            row["event_time"],
            row["event_id"],
            row["receive_time"],
            row["kind"],
            False,
            row["name"],
            None,
            row["data"],
        )
        for row in rows
    }
