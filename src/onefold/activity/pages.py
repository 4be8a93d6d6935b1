"""Putting a page of the activity log together: of a person, a visitor, or a project. Reads only, in one snapshot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, TypeAlias
from uuid import UUID

from onefold.activity import store
from onefold.activity.rules import ActivityKind, Entry, Key, Looked, Place, bound, cut
from onefold.activity.store import CreatedRow, EventKeyRow, LedgerRow, NoteRow, Window
from onefold.clock import LATEST
from onefold.db.queries import Connection
from onefold.events import store as events
from onefold.events.rules import EventKind
from onefold.events.store import Filter, StoredEvent
from onefold.limits import ACTIVITY_COUNT_EVENTS, ACTIVITY_LOOK_ROWS

# Newer than any entry can be.
NEWEST: Final = Key(LATEST + timedelta(days=3), Place.CREATED, "")

_LEDGER_KINDS: Final = {
    "ASSOCIATION": ActivityKind.ANONYMOUS_DATA_MERGED,
    "PROFILE": ActivityKind.PROFILE_MERGED,
    "CONVERSION": ActivityKind.PROFILE_MERGED,
}
_NOTE_KINDS: Final = {
    ActivityKind.PROFILE_FORGOTTEN,
    ActivityKind.DEVICE_REGISTERED,
    ActivityKind.DEVICE_DISABLED,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries: of these kinds, of people or of nobody, before a key, from a time on, at most so many."""

    kinds: Collection[ActivityKind]
    identified: bool
    anonymous: bool
    before: Key
    start_time: datetime
    count: int


@dataclass(frozen=True, slots=True)
class OwnedEvent:
    """An event, and whose it is: a person's, or nobody's; of an invite the address it was sent to."""

    event: StoredEvent
    owner_profile_id: UUID | None
    recipient: str = ""


@dataclass(frozen=True, slots=True)
class CountedLedger:
    """A merge with its counts as they are at this moment, whatever a worker has still to do."""

    row: LedgerRow
    owner_profile_id: UUID | None
    counting: bool = False


@dataclass(frozen=True, slots=True)
class OwnedCreated:
    """A profile that was made, and whose part it is now."""

    row: CreatedRow
    owner_profile_id: UUID | None


@dataclass(frozen=True, slots=True)
class OwnedNote:
    """What was noted, and about whom."""

    row: NoteRow
    owner_profile_id: UUID | None


Row: TypeAlias = "OwnedEvent | EventKeyRow | CountedLedger | OwnedCreated | OwnedNote"


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, newest first, and the key to go on before; None after the last."""

    entries: list[Entry[Row]] = field(default_factory=list)
    next_key: Key | None = None


async def of_person(connection: Connection, project_id: str, profile_id: UUID, wanted: Wanted) -> Page:
    """A page of a person's log: the person's own entries and those of all that is part of the person."""
    if not wanted.identified:
        return Page()
    window = Window(wanted.before, wanted.start_time, wanted.count + 1)
    places: list[Looked[Row]] = []
    if ActivityKind.EVENT in wanted.kinds:
        stored = await events.list_events(connection, project_id, profile_id, _filter(window))
        places.append(_looked([_event(event, profile_id) for event in stored], window))
    members = await store.find_members(connection, project_id, profile_id)
    created, ledger, notes = await _read_people(connection, project_id, members, window, wanted)
    places += [
        _looked((_created(row, profile_id) for row in created), window),
        _looked((_ledger(row, profile_id, wanted) for row in ledger), window),
        _looked((_note(row, profile_id, wanted) for row in notes), window),
    ]
    return await _page(connection, project_id, places, wanted)


async def of_visitor(connection: Connection, project_id: str, anonymous_id: str, wanted: Wanted) -> Page:
    """A page of a visitor's log: the events that belong to no person."""
    if not wanted.anonymous or ActivityKind.EVENT not in wanted.kinds:
        return Page()
    window = Window(wanted.before, wanted.start_time, wanted.count + 1)
    stored = await events.list_anonymous_events(connection, project_id, anonymous_id, _filter(window))
    place = _looked([_event(event, None) for event in stored], window)
    return await _page(connection, project_id, [place], wanted)


async def of_project(connection: Connection, project_id: str, wanted: Wanted) -> Page:
    """A page of a project's log. Looks at no more than ACTIVITY_LOOK_ROWS rows of each place, whatever it may show."""
    # Twice what is asked for: some may have to be passed over.
    window = Window(wanted.before, wanted.start_time, min(2 * wanted.count + 100, ACTIVITY_LOOK_ROWS))
    places: list[Looked[Row]] = []
    if ActivityKind.EVENT in wanted.kinds:
        to_people, to_visitors = await store.events_on_the_move(connection, project_id)
        if wanted.identified or to_visitors:
            places.append(await _event_keys(connection, project_id, window, wanted, anonymous=False))
        if wanted.anonymous or to_people:
            places.append(await _event_keys(connection, project_id, window, wanted, anonymous=True))
        if wanted.anonymous:
            invites = await store.invite_keys(connection, project_id, window)
            places.append(_looked((_event_key(row, wanted) for row in invites), window))
    if wanted.identified:
        created, ledger, notes = await _read_people(connection, project_id, None, window, wanted)
        # Who was forgotten has become nobody, and what there is about them still is passed over.
        ids = [row.owner_profile_id for row in created] + [row.target_profile_id for row in ledger]
        ids += [row.profile_id for row in notes if row.profile_id is not None]
        survivors = await store.find_survivors(connection, project_id, ids)
        places += [
            _looked((_created(row, survivors.get(row.owner_profile_id)) for row in created), window),
            _looked((_ledger(row, survivors.get(row.target_profile_id), wanted) for row in ledger), window),
            _looked(
                (_note(row, survivors.get(row.profile_id) if row.profile_id else None, wanted) for row in notes),
                window,
            ),
        ]
    return await _page(connection, project_id, places, wanted)


async def _read_people(
    connection: Connection, project_id: str, members: Sequence[UUID] | None, window: Window, wanted: Wanted
) -> tuple[list[CreatedRow], list[LedgerRow], list[NoteRow]]:
    """What happened to people beside their events: to a person's members, or in a project."""
    created: list[CreatedRow] = []
    ledger: list[LedgerRow] = []
    notes: list[NoteRow] = []
    if ActivityKind.PROFILE_CREATED in wanted.kinds:
        created = await store.created(connection, project_id, members, window)
    if not set(_LEDGER_KINDS.values()).isdisjoint(wanted.kinds):
        ledger = await store.ledger(connection, project_id, members, window)
    if not _NOTE_KINDS.isdisjoint(wanted.kinds):
        notes = await store.notes(connection, project_id, members, window)
    return created, ledger, notes


async def _event_keys(
    connection: Connection, project_id: str, window: Window, wanted: Wanted, *, anonymous: bool
) -> Looked[Row]:
    rows = await store.event_keys(connection, project_id, window, anonymous=anonymous)
    return _looked((_event_key(row, wanted) for row in rows), window)


async def _page(connection: Connection, project_id: str, places: Sequence[Looked[Row]], wanted: Wanted) -> Page:
    entries, next_key = cut(places, wanted.count)
    keys = [entry.row for entry in entries if isinstance(entry.row, EventKeyRow)]
    contents = await store.contents(connection, project_id, keys)
    running = {
        entry.row.row.merge_id: entry.row.owner_profile_id
        for entry in entries
        if isinstance(entry.row, CountedLedger) and _is_running(entry.row) and entry.row.owner_profile_id is not None
    }
    remaining = await store.remaining_events(connection, project_id, running)
    filled: list[Entry[Row]] = []
    for entry in entries:
        row = entry.row
        if isinstance(row, EventKeyRow):
            found = contents[row.container_id, row.event_time, row.event_id]
            row = OwnedEvent(
                StoredEvent(
                    found.event_time,
                    found.event_id,
                    found.receive_time,
                    EventKind(found.kind),
                    found.was_anonymous and row.owner_profile_id is not None,
                    found.name,
                    found.anonymous_id,
                    found.data,
                ),
                row.owner_profile_id,
                row.container_id if isinstance(row.container_id, str) else "",
            )
        elif isinstance(row, CountedLedger) and row.row.merge_id in remaining:
            row = _counted(row, *remaining[row.row.merge_id])
        filled.append(replace(entry, row=row))
    return Page(filled, next_key)


def _counted(ledger: CountedLedger, event_count: int, oldest_event_time: datetime | None) -> CountedLedger:
    counting = event_count >= ACTIVITY_COUNT_EVENTS
    times = [time for time in (ledger.row.oldest_event_time, oldest_event_time) if time is not None]
    row = replace(
        ledger.row,
        event_count=ledger.row.event_count + (0 if counting else event_count),
        oldest_event_time=min(times, default=None),
    )
    return replace(ledger, row=row, counting=counting)


def _is_running(ledger: CountedLedger) -> bool:
    row = ledger.row
    return row.kind == "ASSOCIATION" and row.settle_time is None and row.undo_time is None


def _looked(entries: Iterable[Entry[Row]], window: Window) -> Looked[Row]:
    found = list(entries)
    return Looked(found, more=len(found) == window.count)


def _filter(window: Window) -> Filter:
    before_time, before_id = bound(Place.EVENTS, window.before)
    return Filter(before_time, before_id, window.start_time, None, None, window.count)


def _event(event: StoredEvent, owner: UUID | None) -> Entry[Row]:
    return Entry(Key(event.event_time, Place.EVENTS, event.event_id), OwnedEvent(event, owner))


def _event_key(row: EventKeyRow, wanted: Wanted) -> Entry[Row]:
    is_asked_for = wanted.identified if row.owner_profile_id is not None else wanted.anonymous
    return Entry(Key(row.event_time, Place.EVENTS, row.event_id), row, row.is_there and is_asked_for)


def _created(row: CreatedRow, owner: UUID | None) -> Entry[Row]:
    key = Key(row.create_time, Place.CREATED, str(row.profile_id))
    return Entry(key, OwnedCreated(row, owner), owner is not None)


def _ledger(row: LedgerRow, owner: UUID | None, wanted: Wanted) -> Entry[Row]:
    key = Key(row.create_time, Place.LEDGER, str(row.merge_id))
    return Entry(key, CountedLedger(row, owner), owner is not None and _LEDGER_KINDS[row.kind] in wanted.kinds)


def _note(row: NoteRow, owner: UUID | None, wanted: Wanted) -> Entry[Row]:
    # What names nobody, or only that somebody was forgotten, is shown whoever is there.
    is_shown = owner is not None or row.profile_id is None or row.kind is ActivityKind.PROFILE_FORGOTTEN
    key = Key(row.activity_time, Place.NOTES, str(row.activity_id))
    return Entry(key, OwnedNote(row, owner), is_shown and row.kind in wanted.kinds)
