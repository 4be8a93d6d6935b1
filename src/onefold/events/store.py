"""Events in PostgreSQL. Typed functions over queries.sql; the caller owns the transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from onefold import failpoints
from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection, Queries, Record
from onefold.events.rules import EventKind, EventRow
from onefold.identity.links import subject_id
from onefold.limits import ANONYMOUS_LIFETIME, EVENT_ID_LIFETIME

queries: Final = Queries("onefold.events")

# What `copy` fills in: every column of the two tables. A row of events is what an EventRow begins with.
EVENT_COLUMNS: Final = EventRow._fields[: EventRow._fields.index("origin_id") + 1]
_COMMON: Final = slice(EVENT_COLUMNS.index("event_time"), EVENT_COLUMNS.index("suppress_triggers") + 1)
ANONYMOUS_EVENT_COLUMNS: Final = ("project_id", "subject_id", *EVENT_COLUMNS[_COMMON])


@dataclass(frozen=True, slots=True)
class KnownEventId:
    """What is remembered of an event_id that a caller gave."""

    body_hash: bytes
    receive_time: datetime


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """A row of a timeline; data is JSON text."""

    event_time: datetime
    event_id: str
    receive_time: datetime
    kind: EventKind
    was_anonymous: bool
    name: str
    anonymous_id: str | None
    data: str


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events to list: before a key, not older than a time, and of these names and kinds (None for any)."""

    before_time: datetime
    before_id: str
    start_time: datetime
    names: Sequence[str] | None
    kinds: Sequence[int] | None
    count: int


async def claim_event_ids(
    connection: Connection, project_id: str, body_hashes: dict[str, bytes]
) -> dict[str, KnownEventId]:
    """Remembers ids that are new; returns what is known of those that are not."""
    claimed = await queries.claim_event_ids.fetch(
        connection,
        project_id=project_id,
        event_ids=list(body_hashes),
        body_hashes=list(body_hashes.values()),
        lifetime=EVENT_ID_LIFETIME,
    )
    taken = body_hashes.keys() - {row["event_id"] for row in claimed}
    if not taken:
        return {}
    rows = await queries.find_event_ids.fetch(connection, project_id=project_id, event_ids=list(taken))
    return {row["event_id"]: KnownEventId(row["body_hash"], row["receive_time"]) for row in rows}


async def release_event_ids(connection: Connection, project_id: str, event_ids: list[str]) -> None:
    """Gives back ids that this transaction has claimed."""
    if event_ids:
        await queries.release_event_ids.execute(connection, project_id=project_id, event_ids=event_ids)


async def copy(connection: Connection, rows: Sequence[EventRow]) -> None:
    """Stores events of people and visitors, none of them late, whose ids the server has made.

    Such an id is new for certain, so the rows go by COPY: with no conflict to look for and no arrays to take apart, it
    costs both sides half of what `insert` does. Their receive_time must be the transaction's own.
    """
    width = len(EVENT_COLUMNS)
    known = [row[:width] for row in rows if row.profile_id is not None]
    anonymous = [
        (row.project_id, subject_id(row.project_id, row.anonymous_id), *tuple(row)[_COMMON])
        for row in rows
        if row.profile_id is None and row.anonymous_id is not None
    ]
    if rows and failpoints.hook is not None:
        await failpoints.hook(failpoints.COPY_EVENTS, connection)
    if known:
        await connection.copy_records_to_table("events", columns=EVENT_COLUMNS, records=known)
    if anonymous:
        await connection.copy_records_to_table("anonymous_events", columns=ANONYMOUS_EVENT_COLUMNS, records=anonymous)


async def insert(
    connection: Connection, project_id: str, rows: Sequence[EventRow], *, is_noted: bool = False
) -> list[EventRow]:
    """Stores events, with the transaction's time as receive_time, and counts the late ones among them.

    With `is_noted` the workers are asked to look at the visitors among those whose events they are.

    Returns those for which there was no room, because the person (or the invite's recipient) has an event of that id
    and time. LostRaceError if a recipient is just being forgotten.
    """
    refused: list[EventRow] = []
    known = [row for row in rows if row.profile_id is not None]
    invites = [row for row in rows if row.recipient is not None]
    anonymous = [(row, row.anonymous_id) for row in rows if row.profile_id is None and row.anonymous_id is not None]
    if known:
        stored = await queries.insert_events.fetch(
            connection,
            project_id=project_id,
            profile_ids=[row.profile_id for row in known],
            event_times=[row.event_time for row in known],
            event_ids=[row.event_id for row in known],
            kinds=[row.kind for row in known],
            origin_ids=[row.origin_id for row in known],
            names=[row.name for row in known],
            anonymous_ids=[row.anonymous_id for row in known],
            suppress_triggers=[row.suppress_triggers for row in known],
            data=[row.data for row in known],
        )
        if len(stored) != len(known):
            keys = {(row["profile_id"], row["event_time"], row["event_id"]) for row in stored}
            refused = [row for row in known if (row.profile_id, row.event_time, row.event_id) not in keys]
            known = [row for row in known if row not in refused]
    if anonymous:
        await queries.insert_anonymous_events.execute(
            connection,
            project_id=project_id,
            is_noted=is_noted,
            subject_ids=[subject_id(project_id, anonymous_id) for _, anonymous_id in anonymous],
            event_times=[row.event_time for row, _ in anonymous],
            event_ids=[row.event_id for row, _ in anonymous],
            kinds=[row.kind for row, _ in anonymous],
            names=[row.name for row, _ in anonymous],
            anonymous_ids=[anonymous_id for _, anonymous_id in anonymous],
            suppress_triggers=[row.suppress_triggers for row, _ in anonymous],
            data=[row.data for row, _ in anonymous],
        )
    if invites:
        refused += await _insert_invites(connection, project_id, invites)
    await _count_late(connection, project_id, known)
    return refused


async def note_visitors(connection: Connection, project_id: str, anonymous_ids: Sequence[str]) -> None:
    """Asks the workers to look at everything that is stored of visitors."""
    if anonymous_ids:
        await queries.note_visitors.execute(connection, project_id=project_id, anonymous_ids=list(anonymous_ids))


async def list_events(connection: Connection, project_id: str, profile_id: UUID, wanted: Filter) -> list[StoredEvent]:
    """A page of a person's timeline, newest first."""
    rows = await queries.list_events.fetch(
        connection,
        project_id=project_id,
        profile_id=profile_id,
        before_time=wanted.before_time,
        before_id=wanted.before_id,
        start_time=wanted.start_time,
        names=wanted.names,
        kinds=wanted.kinds,
        count=wanted.count,
    )
    return [_event(row) for row in rows]


async def list_anonymous_events(
    connection: Connection, project_id: str, anonymous_id: str, wanted: Filter
) -> list[StoredEvent]:
    """A page of a visitor's events that belong to nobody, newest first."""
    rows = await queries.list_anonymous_events.fetch(
        connection,
        project_id=project_id,
        subject_id=subject_id(project_id, anonymous_id),
        lifetime=ANONYMOUS_LIFETIME,
        before_time=wanted.before_time,
        before_id=wanted.before_id,
        start_time=wanted.start_time,
        names=wanted.names,
        kinds=wanted.kinds,
        anonymous_id=anonymous_id,
        count=wanted.count,
    )
    return [_event(row) for row in rows]


async def list_invite_events(
    connection: Connection, project_id: str, recipient: str, wanted: Filter
) -> list[StoredEvent]:
    """A page of the invites sent to an address, newest first."""
    rows = await queries.list_invite_events.fetch(
        connection,
        project_id=project_id,
        recipient=recipient,
        before_time=wanted.before_time,
        before_id=wanted.before_id,
        start_time=wanted.start_time,
        names=wanted.names,
        kinds=wanted.kinds,
        count=wanted.count,
    )
    return [_event(row) for row in rows]


def recipient_id(project_id: str, recipient: str) -> UUID:
    """What stands for a recipient where visitors and profiles have an id; equal to none of theirs."""
    # No anonymous_id holds a NUL, so no visitor's id is made of the same text.
    return subject_id(project_id, f"recipient\0{recipient}")


async def _insert_invites(connection: Connection, project_id: str, rows: Sequence[EventRow]) -> list[EventRow]:
    recipients = [row.recipient for row in rows]
    if await queries.are_being_erased.fetchval(connection, project_id=project_id, recipients=recipients):
        # The look-up did not know yet that the address is forgotten; from the start again it does.
        raise LostRaceError
    stored = await queries.insert_invite_events.fetch(
        connection,
        project_id=project_id,
        recipients=recipients,
        event_times=[row.event_time for row in rows],
        event_ids=[row.event_id for row in rows],
        kinds=[row.kind for row in rows],
        names=[row.name for row in rows],
        suppress_triggers=[row.suppress_triggers for row in rows],
        data=[row.data for row in rows],
    )
    keys = {(row["recipient"], row["event_time"], row["event_id"]) for row in stored}
    return [row for row in rows if (row.recipient, row.event_time, row.event_id) not in keys]


async def _count_late(connection: Connection, project_id: str, rows: Sequence[EventRow]) -> None:
    late: dict[UUID, list[datetime]] = {}
    for row in rows:
        if row.merge_id is not None:
            late.setdefault(row.merge_id, []).append(row.event_time)
    if not late:
        return
    await queries.lock_ledger.fetch(connection, project_id=project_id, merge_ids=list(late))
    await queries.count_late_events.execute(
        connection,
        merge_ids=list(late),
        counts=[len(times) for times in late.values()],
        oldest=[min(times) for times in late.values()],
        project_id=project_id,
    )


def _event(row: Record) -> StoredEvent:
    return StoredEvent(
        row["event_time"],
        row["event_id"],
        row["receive_time"],
        EventKind(row["kind"]),
        row["was_anonymous"],
        row["name"],
        row["anonymous_id"],
        row["data"],
    )
