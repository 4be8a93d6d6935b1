"""Criteria, and how near visitors are to them. Typed functions over queries.sql; the caller owns the transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Final
from uuid import UUID

import orjson

from onefold.activation.criteria import Node, from_document, to_document
from onefold.activation.rules import DATA_TYPES, CompiledCriterion, Event
from onefold.callers import Project
from onefold.clock import EARLIEST, LATEST
from onefold.db.queries import Connection, Queries, Record
from onefold.events import store as events
from onefold.events.rules import EventKind
from onefold.identity.links import subject_id
from onefold.limits import ANONYMOUS_LIFETIME, EVENT_AHEAD, VISITOR_EVENTS

queries: Final = Queries("onefold.activation")

# A server may act on settings that are 10 s old. What arrived there meanwhile has left no note.
_SETTINGS_SETTLE: Final = timedelta(seconds=30)
# What most visitors have done is read for all of them at once.
_FEW_EVENTS: Final = 50
# Later than any event can be.
_AFTER_ALL: Final = LATEST + 2 * EVENT_AHEAD


@dataclass(frozen=True, slots=True)
class CriterionRow:
    """A criterion; root is the tree as JSON text."""

    criterion_id: UUID
    name: str
    version: int
    root: str
    create_time: datetime
    update_time: datetime

    def compiled(self) -> CompiledCriterion:
        """The criterion, ready to be evaluated."""
        return _compiled(str(self.criterion_id), self.root)


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """An event and when it happened."""

    event_time: datetime
    event: Event


@dataclass(frozen=True, slots=True)
class Note:
    """A visitor to look at, because of an event or, without one, of all that is stored; and who left the note."""

    anonymous_id: str
    event_time: datetime | None
    event_id: str | None
    create_time: datetime
    transaction_id: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a statement saw: PostgreSQL's "xmin:xmax:xip,xip,...", and the moment."""

    counted_time: datetime
    text: str
    all_before: int
    none_from: int
    running: frozenset[int]

    @classmethod
    def of(cls, counted_time: datetime, text: str) -> Snapshot:
        """A snapshot as it was told or is stored."""
        xmin, xmax, running = text.split(":")
        return cls(counted_time, text, int(xmin), int(xmax), frozenset(map(int, filter(None, running.split(",")))))

    def saw(self, note: Note) -> bool:
        """Whether the events that a note came with were seen.

        The moment is asked first: in a database that was restored elsewhere the numbers of transactions begin anew.
        """
        if note.create_time > self.counted_time:
            return False
        number = note.transaction_id
        return number < self.all_before or (number < self.none_from and number not in self.running)


@dataclass(frozen=True, slots=True)
class Visit:
    """What a visitor did that counts, oldest first; and what was there to be seen."""

    events: list[TimedEvent]
    seen: Snapshot


@dataclass(slots=True)
class Counted:
    """How far a visitor is: for each criterion its counts, when the oldest event that counts happened, and what was
    there when all of them were counted."""

    counts: dict[str, list[int]]
    oldest_event_time: datetime | None
    seen: Snapshot


def encode_tree(root: Node) -> str:
    """A tree as it is stored."""
    return orjson.dumps(to_document(root)).decode()


def decode_tree(text: str) -> Node:
    """The inverse of encode_tree."""
    root: Node = from_document(orjson.loads(text))
    return root


async def insert_criterion(connection: Connection, project_id: str, name: str, root: str) -> CriterionRow:
    """Makes a criterion."""
    row = await queries.insert_criterion.fetchrow(connection, project_id=project_id, name=name, root=root)
    assert row is not None  # an INSERT of one row returns one row
    return _criterion(row)


async def count_criteria(connection: Connection, project_id: str) -> int:
    """How many criteria a project has."""
    count: int = await queries.count_criteria.fetchval(connection, project_id=project_id)
    return count


async def list_criteria(connection: Connection, project_id: str) -> list[CriterionRow]:
    """The criteria of a project, oldest first."""
    return [_criterion(row) for row in await queries.list_criteria.fetch(connection, project_id=project_id)]


async def lock_criterion(connection: Connection, project_id: str, criterion_id: UUID) -> CriterionRow | None:
    """A criterion, held for a change; None if there is none of this id."""
    row = await queries.lock_criterion.fetchrow(connection, project_id=project_id, criterion_id=criterion_id)
    return _criterion(row) if row else None


async def update_criterion(
    connection: Connection, project_id: str, criterion_id: UUID, name: str, root: str
) -> CriterionRow:
    """Changes a criterion that is held, which gives it the next version."""
    row = await queries.update_criterion.fetchrow(
        connection, name=name, root=root, project_id=project_id, criterion_id=criterion_id
    )
    assert row is not None  # the caller holds the row
    return _criterion(row)


async def delete_criterion(connection: Connection, project_id: str, criterion_id: UUID) -> bool:
    """Deletes a criterion; False if there was none of this id."""
    return bool(await queries.delete_criterion.execute(connection, project_id=project_id, criterion_id=criterion_id))


async def hold_criteria(connection: Connection, project_id: str, criterion_ids: Collection[UUID]) -> set[UUID]:
    """Keeps criteria from being deleted until the end of the transaction; returns those that are still there."""
    rows = await queries.hold_criteria.fetch(connection, project_id=project_id, criterion_ids=list(criterion_ids))
    return {row["criterion_id"] for row in rows}


async def stored_events(connection: Connection, project_id: str, anonymous_id: str) -> list[Event]:
    """What criteria see of a visitor's stored events that are nobody's: the newest 1,000, oldest first."""
    wanted = events.Filter(_AFTER_ALL, "", EARLIEST, None, list(DATA_TYPES), VISITOR_EVENTS)
    rows = await events.list_anonymous_events(connection, project_id, anonymous_id, wanted)
    return [_event(row.event_id, row.kind, row.name, row.data) for row in reversed(rows)]


async def take_notes(connection: Connection, project_id: str, count: int) -> list[Note]:
    """The oldest notes, of about so many events, which nobody else gets then; in the order in which they were left."""
    rows = await queries.take_notes.fetch(connection, project_id=project_id, count=count)
    return [
        Note(*each, row["create_time"], int(row["transaction_id"]))
        for row in sorted(rows, key=itemgetter("note_id"))
        for each in zip(row["anonymous_ids"], row["event_times"], row["event_ids"], strict=True)
    ]


async def linked_ids(connection: Connection, project_id: str, anonymous_ids: Collection[str]) -> set[str]:
    """Those of anonymous ids that are somebody's."""
    rows = await queries.linked_ids.fetch(connection, project_id=project_id, anonymous_ids=list(anonymous_ids))
    return {row["anonymous_id"] for row in rows}


async def read_noted(connection: Connection, project_id: str, notes: Sequence[Note]) -> list[tuple[Note, TimedEvent]]:
    """The events of notes that criteria see, in the order of the notes."""
    told = [note for note in notes if note.event_id is not None]
    if not told:
        return []
    rows = await queries.read_noted_events.fetch(
        connection,
        subject_ids=[subject_id(project_id, note.anonymous_id) for note in told],
        event_times=[note.event_time for note in told],
        event_ids=[note.event_id for note in told],
        project_id=project_id,
        lifetime=ANONYMOUS_LIFETIME,
    )
    return [(told[row["position"] - 1], _timed_event(row)) for row in rows if row["kind"] in DATA_TYPES]


async def hold_visitors(
    connection: Connection, project: Project, anonymous_ids: Collection[str], criteria_key: str
) -> dict[str, Counted | None]:
    """How far visitors are, held until the end of the transaction; None for one who must be counted anew."""
    project_id = project.project_id
    by_subject = {subject_id(project_id, anonymous_id): anonymous_id for anonymous_id in anonymous_ids}
    rows = await queries.hold_visitors.fetch(
        connection,
        project_id=project_id,
        settings_settle_time=project.update_time + _SETTINGS_SETTLE,
        subject_ids=list(by_subject),
        criteria_key=criteria_key,
        lifetime=ANONYMOUS_LIFETIME,
    )
    return {
        by_subject[row["subject_id"]]: Counted(
            orjson.loads(row["counts"]),
            row["oldest_event_time"],
            Snapshot.of(row["counted_time"], row["counted_snapshot"]),
        )
        if row["is_current"]
        else None
        for row in rows
    }


async def read_visitors(connection: Connection, project_id: str, anonymous_ids: Collection[str]) -> dict[str, Visit]:
    """Everything that counts of visitors: of each the newest 1,000 events."""
    visits = await _read_visitors(connection, project_id, anonymous_ids, _FEW_EVENTS)
    for anonymous_id in anonymous_ids:
        if len(visits[anonymous_id].events) == _FEW_EVENTS:
            # Those with many are read one by one, so that there is one at a time in memory on the way.
            visits |= await _read_visitors(connection, project_id, [anonymous_id], VISITOR_EVENTS)
    return visits


async def _read_visitors(
    connection: Connection, project_id: str, anonymous_ids: Collection[str], count: int
) -> dict[str, Visit]:
    by_subject = {subject_id(project_id, anonymous_id): anonymous_id for anonymous_id in anonymous_ids}
    rows = await queries.read_visitors.fetch(
        connection,
        subject_ids=list(by_subject),
        project_id=project_id,
        lifetime=ANONYMOUS_LIFETIME,
        kinds=list(DATA_TYPES),
        count=count,
    )
    visits: dict[str, Visit] = {}
    for row in rows:
        anonymous_id = by_subject[row["subject_id"]]
        if anonymous_id not in visits:
            visits[anonymous_id] = Visit([], Snapshot.of(row["counted_time"], row["counted_snapshot"]))
        if row["event_id"] is not None:
            visits[anonymous_id].events.append(_timed_event(row))
    return visits


async def write_visitors(
    connection: Connection, project_id: str, criteria_key: str, counted: Mapping[str, Counted]
) -> None:
    """Keeps how far visitors are, as counted under certain criteria."""
    if counted:
        await queries.write_visitors.execute(
            connection,
            criteria_key=criteria_key,
            subject_ids=[subject_id(project_id, anonymous_id) for anonymous_id in counted],
            counts=[orjson.dumps(each.counts).decode() for each in counted.values()],
            oldest_event_times=[each.oldest_event_time for each in counted.values()],
            counted_times=[each.seen.counted_time for each in counted.values()],
            counted_snapshots=[each.seen.text for each in counted.values()],
            project_id=project_id,
        )


async def drop_visitors(connection: Connection, project_id: str, anonymous_ids: Collection[str]) -> None:
    """Removes how far visitors were who have a profile now."""
    subject_ids = [subject_id(project_id, anonymous_id) for anonymous_id in anonymous_ids]
    await queries.drop_visitors.execute(connection, project_id=project_id, subject_ids=subject_ids)


async def add_review(connection: Connection, project_id: str) -> UUID:
    """Opens a review of all visitors of a project; its id is that of the intent to be added."""
    review_id: UUID = await queries.add_review.fetchval(connection, project_id=project_id)
    return review_id


@lru_cache(maxsize=512)
def _compiled(criterion_id: str, root: str) -> CompiledCriterion:
    # Compiling patterns costs more than a thousand evaluations, and a criterion seldom changes.
    return CompiledCriterion(criterion_id, decode_tree(root))


def _event(event_id: str, kind: int, name: str, data: str) -> Event:
    return Event(event_id, DATA_TYPES[EventKind(kind)], name, orjson.loads(data))


def _timed_event(row: Record) -> TimedEvent:
    return TimedEvent(row["event_time"], _event(row["event_id"], row["kind"], row["name"], row["data"]))


def _criterion(row: Record) -> CriterionRow:
    return CriterionRow(
        row["criterion_id"], row["name"], row["version"], row["root"], row["create_time"], row["update_time"]
    )
