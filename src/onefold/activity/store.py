"""The activity log in PostgreSQL: what is noted for it, and what is read for it elsewhere. The caller owns the
transaction; pages of several places are of one moment if it reads them in one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from onefold.activity.rules import ActivityKind, Key, Place, bound
from onefold.db.queries import Connection, Queries, Record
from onefold.limits import ACTIVITY_COUNT_EVENTS, ANONYMOUS_LIFETIME

queries: Final = Queries("onefold.activity")

_FIRST: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class Window:
    """Which entries of a place to read: before a key, from a time on, newest first, at most `count`."""

    before: Key
    start_time: datetime
    count: int

    def arguments(self, place: Place) -> dict[str, object]:
        """The same for the statements that read a place."""
        before_time, text = bound(place, self.before)
        before_id: object = text
        if place is not Place.EVENTS:
            before_id = UUID(text) if text else _FIRST
        return {
            "before_time": before_time,
            "before_id": before_id,
            "start_time": self.start_time,
            "count": self.count,
        }


@dataclass(frozen=True, slots=True)
class CreatedRow:
    """A profile that was made, and whom it belongs to: itself, or the profile that it was merged into."""

    profile_id: UUID
    create_time: datetime
    signup_source: int
    owner_profile_id: UUID


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A merge; the counts are those of the ledger so far."""

    merge_id: UUID
    kind: str
    source_profile_id: UUID | None
    target_profile_id: UUID
    anonymous_id: str | None
    create_time: datetime
    undo_time: datetime | None
    settle_time: datetime | None
    event_count: int
    oldest_event_time: datetime | None


@dataclass(frozen=True, slots=True)
class NoteRow:
    """What was noted: profile_id is None for a token disabled for all its holders."""

    activity_time: datetime
    activity_id: UUID
    kind: ActivityKind
    profile_id: UUID | None
    token: str | None
    platform: int | None
    identifiers_blocked: bool


@dataclass(frozen=True, slots=True)
class EventKeyRow:
    """Where an event lies (with a person or a visitor; an invite, under an address), and whose it is: a person's, or
    nobody's. One that is not there is passed over."""

    event_time: datetime
    event_id: str
    container_id: UUID | str
    owner_profile_id: UUID | None
    is_there: bool


@dataclass(frozen=True, slots=True)
class ContentRow:
    """What an event holds; data is JSON text."""

    event_time: datetime
    event_id: str
    receive_time: datetime
    kind: int
    was_anonymous: bool
    name: str
    anonymous_id: str | None
    data: str


# --- what others note ------------------------------------------------------------------------------------------------


async def note_registered(connection: Connection, project_id: str, profile_id: UUID, token: str, platform: int) -> None:
    """A device was registered for a profile, or registered again with a change."""
    await _note(connection, project_id, ActivityKind.DEVICE_REGISTERED, profile_id, token, platform)


async def note_disabled(connection: Connection, project_id: str, profile_id: UUID, token: str, platform: int) -> None:
    """A profile's device was switched off."""
    await _note(connection, project_id, ActivityKind.DEVICE_DISABLED, profile_id, token, platform)


async def note_disabled_for_all(
    connection: Connection, project_id: str, token: str, kept_by: UUID | None = None
) -> None:
    """A token was switched off for all its holders, but the profile that it is left to: one note, whatever their
    number."""
    await _note(connection, project_id, ActivityKind.DEVICE_DISABLED, None, token, None, kept_by=kept_by)


async def note_forgotten(connection: Connection, project_id: str, profile_id: UUID, *, blocked: bool) -> None:
    """A person was forgotten, with the identifiers `blocked`, or deleted. It outlives the person and names nobody."""
    await _note(
        connection, project_id, ActivityKind.PROFILE_FORGOTTEN, profile_id, None, None, identifiers_blocked=blocked
    )


async def _note(
    connection: Connection,
    project_id: str,
    kind: ActivityKind,
    profile_id: UUID | None,
    token: str | None,
    platform: int | None,
    *,
    identifiers_blocked: bool = False,
    kept_by: UUID | None = None,
) -> None:
    await queries.note.execute(
        connection,
        project_id=project_id,
        kind=kind,
        profile_id=profile_id,
        token=token,
        platform=platform,
        identifiers_blocked=identifiers_blocked,
        kept_by_profile_id=kept_by,
    )


# --- whose entries ---------------------------------------------------------------------------------------------------


async def find_members(connection: Connection, project_id: str, profile_id: UUID) -> list[UUID]:
    """A person's id, and those of all that is part of the person by merges."""
    rows = await queries.merged_profiles.fetch(connection, project_id=project_id, profile_id=profile_id)
    return [profile_id, *(row["profile_id"] for row in rows)]


async def find_survivors(connection: Connection, project_id: str, profile_ids: Iterable[UUID]) -> dict[UUID, UUID]:
    """Who has become of profiles; one that was forgotten has no entry."""
    rows = await queries.survivors.fetch(connection, profile_ids=list(set(profile_ids)), project_id=project_id)
    return {row["profile_id"]: row["survivor_id"] for row in rows}


async def events_on_the_move(connection: Connection, project_id: str) -> tuple[bool, bool]:
    """Whether rows of visitors belong to people already, and rows of people to visitors again."""
    row = await queries.events_on_the_move.fetchrow(connection, project_id=project_id)
    assert row is not None  # a SELECT without FROM returns one row
    return row["to_people"], row["to_visitors"]


# --- the places ------------------------------------------------------------------------------------------------------


async def created(
    connection: Connection, project_id: str, members: Sequence[UUID] | None, window: Window
) -> list[CreatedRow]:
    """Profiles that were made: those of a person's members, or all of a project."""
    arguments = {"project_id": project_id, **window.arguments(Place.CREATED)}
    if members is None:
        rows = await queries.created_of_project.fetch(connection, **arguments)
    else:
        rows = await queries.created_of_person.fetch(connection, profile_ids=members, **arguments)
    return [
        CreatedRow(row["profile_id"], row["create_time"], row["signup_source"], row["owner_profile_id"]) for row in rows
    ]


async def ledger(
    connection: Connection, project_id: str, members: Sequence[UUID] | None, window: Window
) -> list[LedgerRow]:
    """Merges: those that a person's members took part in, or all of a project."""
    arguments = {"project_id": project_id, **window.arguments(Place.LEDGER)}
    if members is None:
        rows = await queries.ledger_of_project.fetch(connection, **arguments)
    else:
        rows = await queries.ledger_of_person.fetch(connection, profile_ids=members, **arguments)
    return [_ledger(row) for row in rows]


async def remaining_events(
    connection: Connection, project_id: str, owners: dict[UUID, UUID]
) -> dict[UUID, tuple[int, datetime | None]]:
    """What workers have still to bring for merges, given with whom each brings it to: how many events, of one move
    ACTIVITY_COUNT_EVENTS at most, and when the oldest happened."""
    if not owners:
        return {}
    rows = await queries.remaining_events.fetch(
        connection,
        merge_ids=list(owners),
        profile_ids=list(owners.values()),
        project_id=project_id,
        count=ACTIVITY_COUNT_EVENTS,
    )
    return {row["merge_id"]: (row["event_count"], row["oldest_event_time"]) for row in rows}


async def notes(
    connection: Connection, project_id: str, members: Sequence[UUID] | None, window: Window
) -> list[NoteRow]:
    """What was noted: about a person's members, or in a project."""
    arguments = {"project_id": project_id, **window.arguments(Place.NOTES)}
    if members is None:
        rows = await queries.notes_of_project.fetch(connection, **arguments)
    else:
        rows = await queries.notes_of_person.fetch(connection, profile_ids=members, **arguments)
    return [
        NoteRow(
            row["activity_time"],
            row["activity_id"],
            ActivityKind(row["kind"]),
            row["profile_id"],
            row["token"],
            row["platform"],
            row["identifiers_blocked"],
        )
        for row in rows
    ]


async def event_keys(connection: Connection, project_id: str, window: Window, *, anonymous: bool) -> list[EventKeyRow]:
    """The events of a project that lie with people, or with visitors."""
    query = queries.anonymous_events_of_project if anonymous else queries.events_of_project
    rows = await query.fetch(
        connection, project_id=project_id, lifetime=ANONYMOUS_LIFETIME, **window.arguments(Place.EVENTS)
    )
    return [
        EventKeyRow(row["event_time"], row["event_id"], row["container_id"], row["owner_profile_id"], row["is_there"])
        for row in rows
    ]


async def invite_keys(connection: Connection, project_id: str, window: Window) -> list[EventKeyRow]:
    """The invites of a project."""
    rows = await queries.invites_of_project.fetch(connection, project_id=project_id, **window.arguments(Place.EVENTS))
    return [EventKeyRow(row["event_time"], row["event_id"], row["recipient"], None, row["is_there"]) for row in rows]


async def contents(
    connection: Connection, project_id: str, keys: Sequence[EventKeyRow]
) -> dict[tuple[UUID | str, datetime, str], ContentRow]:
    """What the events of these keys hold, by container, time and id."""
    found: dict[tuple[UUID | str, datetime, str], ContentRow] = {}
    invites = [key for key in keys if isinstance(key.container_id, str)]
    others = [key for key in keys if not isinstance(key.container_id, str)]
    if others:
        rows = await queries.contents.fetch(
            connection,
            container_ids=[key.container_id for key in others],
            event_times=[key.event_time for key in others],
            event_ids=[key.event_id for key in others],
            project_id=project_id,
        )
        for row in rows:
            found[row["container_id"], row["event_time"], row["event_id"]] = ContentRow(
                row["event_time"],
                row["event_id"],
                row["receive_time"],
                row["kind"],
                row["was_anonymous"],
                row["name"],
                row["anonymous_id"],
                row["data"],
            )
    if invites:
        rows = await queries.invites.fetch(
            connection,
            recipients=[key.container_id for key in invites],
            event_times=[key.event_time for key in invites],
            event_ids=[key.event_id for key in invites],
            project_id=project_id,
        )
        for row in rows:
            found[row["recipient"], row["event_time"], row["event_id"]] = ContentRow(
                row["event_time"],
                row["event_id"],
                row["receive_time"],
                row["kind"],
                False,
                row["name"],
                None,
                row["data"],
            )
    return found


def _ledger(row: Record) -> LedgerRow:
    return LedgerRow(
        row["merge_id"],
        row["kind"],
        row["source_profile_id"],
        row["target_profile_id"],
        row["anonymous_id"],
        row["create_time"],
        row["undo_time"],
        row["settle_time"],
        row["event_count"],
        row["oldest_event_time"],
    )
