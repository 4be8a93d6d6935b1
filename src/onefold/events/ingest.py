"""Taking events in: the whole of Track and BatchTrack below the messages.

A batch costs a fixed number of statements, whatever its size: one look-up of everybody it names, one that claims event
ids, at most a few that create people, two for carts if it has any, one to three inserts. Items are worked out in memory
in the order of the request, so that a batch does what its events would have done one by one; an item that is refused
leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from os import urandom
from typing import Final, TypeAlias
from uuid import UUID

from onefold.callers import Project
from onefold.clock import to_microseconds
from onefold.db.pool import after_commit
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, already_exists
from onefold.events import store
from onefold.events.carts import Carts
from onefold.events.rules import (
    Arrival,
    EventRow,
    call_of,
    changes_cart,
    check_time,
    is_associated,
    is_backfilled,
    may_take_user_id,
)
from onefold.identity import links
from onefold.identity import store as identity
from onefold.identity.naming import IdentifierKind, Named
from onefold.identity.rules import Outcome, Person, VacatedError, wanted_identifiers
from onefold.telemetry import metrics
from onefold.triggers import store as triggers
from onefold.triggers.rules import mark_of
from onefold.triggers.store import NewTrigger


@dataclass(slots=True)
class Accepted:
    """What became of one event. profile_outcome is None for an event without identifiers."""

    event_id: str
    receive_time: datetime
    duplicate: bool
    profile_outcome: Outcome | None
    profile_id: UUID | None


# Of a UUID's text: the version and the 12 bits behind it; and the digit of its variant, two of whose bits are random.
_POSITIONS: Final = tuple(f"-7{position:03x}-" for position in range(1 << 12))
_VARIANT: Final = {digit: "89ab"[int(digit, 16) >> 2] for digit in "0123456789abcdef"}

Result: TypeAlias = "Accepted | OnefoldError"


@dataclass(slots=True)
class _Item:
    """One event on its way: where it stands in the request, and to whom it goes."""

    position: int
    arrival: Arrival
    body_hash: bytes | None
    person: Person | None = None
    profile_outcome: Outcome | None = None
    link: links.LinkRow | None = None


@dataclass(slots=True)
class _Batch:
    """The results so far, by position, and with theirs the rows to insert: late ones, invites, and those with ids of
    callers. The others are stored already."""

    results: dict[int, Result] = field(default_factory=dict)
    rows: list[tuple[EventRow, int]] = field(default_factory=list)
    copied: list[tuple[EventRow, int]] = field(default_factory=list)


async def ingest(connection: Connection, project: Project, arrivals: Sequence[Arrival]) -> list[Result]:
    """Stores events; returns one result for each, in order.

    Raises LostRaceError, and what PostgreSQL raises; anything that is wrong with one event is its own result.
    """
    batch = _Batch()
    waiting = [
        _Item(position, arrival, arrival.body_hash() if arrival.event_id is not None else None)
        for position, arrival in enumerate(arrivals)
    ]
    while waiting:
        # One round, as a rule. An item waits for another one when what it depends on must first be written: an event_id
        # that stands twice in the batch, or an identifier that an earlier item took from its (oldest) holder.
        waiting = await _round(connection, project, batch, waiting)
    watched = project.settings.watches_visitors
    rows = [row for row, _ in batch.rows]
    for row in await store.insert(connection, project.project_id, rows, is_noted=watched):
        # Its id was forgotten (35 days), but the person has an event of this id and time: there is no room for another.
        [position] = [position for other, position in batch.rows if other is row]
        batch.results[position] = _id_reused(row.event_id)
    if project.settings.triggers_enabled:
        await triggers.record(connection, project.project_id, _triggers(batch))
    return [batch.results[position] for position in range(len(arrivals))]


async def _round(connection: Connection, project: Project, batch: _Batch, items: list[_Item]) -> list[_Item]:
    """Decides as many items as it can and writes the people they make; returns those that must wait."""
    found = await identity.find(connection, project, _wanted(project, items))
    # Before anything else is judged: what was accepted once is a duplicate, however old it is by now.
    fresh, waiting = await _claim_ids(connection, project, batch, _not_forgotten(batch, found, items), found)
    carts = await Carts.hold(connection, project.project_id, found.directory, [item.arrival for item in fresh])

    placed: list[_Item] = []
    unused: list[_Item] = []
    for index, item in enumerate(fresh):
        change = None
        try:
            if item.arrival.event_time is not None:
                _check_time(item, found.now)
            if changes_cart(item.arrival):
                # Worked out before the person is touched: an event whose cart is too large leaves no trace.
                change = carts.plan(found.directory, item.arrival, found.now)
            stored = _place(project, found, item)
        except VacatedError:
            unused += fresh[index:]
            waiting = sorted(waiting + fresh[index:], key=lambda later: later.position)
            break
        except OnefoldError as error:
            batch.results[item.position] = error
            unused.append(item)
            continue
        if stored:
            placed.append(item)
            if change is not None and item.person is not None and item.profile_outcome is not None:
                item.profile_outcome = carts.apply(item.person, change, item.profile_outcome)
        else:
            batch.results[item.position] = Accepted("", found.now, False, Outcome.SKIPPED, None)
            unused.append(item)

    await identity.write_people(connection, project, found.directory)
    await carts.write(connection, project.project_id)
    # An id is used up by a stored event only.
    await store.release_event_ids(
        connection, project.project_id, [item.arrival.event_id for item in unused if item.arrival.event_id is not None]
    )
    new: list[tuple[EventRow, int]] = []
    # For all ids at once: asking the system takes longer than making an id.
    random = urandom(8 * len(placed)).hex()
    for number, item in enumerate(placed):
        row = _row(project.project_id, item, found.now, random[16 * number : 16 * number + 16])
        needs_care = (
            item.arrival.event_id is not None
            or item.link is not None
            or row.recipient is not None
            # The note for the workers rides on the insert.
            or (row.profile_id is None and project.settings.watches_visitors)
        )
        (batch.rows if needs_care else new).append((row, item.position))
        batch.results[item.position] = Accepted(row.event_id, found.now, False, item.profile_outcome, row.profile_id)
    await store.copy(connection, [row for row, _ in new])
    batch.copied += new
    return waiting


def _wanted(project: Project, items: list[_Item]) -> list[tuple[IdentifierKind, str]]:
    wanted: list[tuple[IdentifierKind, str]] = []
    for item in items:
        arrival = item.arrival
        if arrival.named is not None:
            wanted += wanted_identifiers(
                project.identifier_type,
                arrival.named,
                prefer_user_id=may_take_user_id(arrival),
            )
        elif arrival.anonymous_id is not None:
            wanted.append((IdentifierKind.ANONYMOUS_ID, arrival.anonymous_id))
        elif arrival.recipient is not None:
            # Whoever has the address gets nothing of the invite, but it may have been forgotten.
            wanted.append((IdentifierKind.EMAIL, arrival.recipient))
    return wanted


async def _claim_ids(
    connection: Connection, project: Project, batch: _Batch, items: list[_Item], found: identity.Found
) -> tuple[list[_Item], list[_Item]]:
    """Claims the event ids that callers gave. Returns the items whose id is theirs, and those whose id another item of
    this round has just claimed; an item whose id was taken before gets its result (E3)."""
    hashes: dict[str, bytes] = {}
    for item in items:
        if item.arrival.event_id is not None and item.body_hash is not None:
            hashes.setdefault(item.arrival.event_id, item.body_hash)
    if not hashes:
        return items, []
    taken = await store.claim_event_ids(connection, project.project_id, hashes)
    fresh, waiting = [], []
    claimed: set[str] = set()
    for item in items:
        event_id = item.arrival.event_id
        if event_id is None:
            fresh.append(item)
        elif event_id in taken:
            if taken[event_id].body_hash == item.body_hash:
                after_commit(metrics.DUPLICATES.inc)
            batch.results[item.position] = _known(item, event_id, taken[event_id], found)
        elif event_id in claimed:
            waiting.append(item)
        else:
            claimed.add(event_id)
            fresh.append(item)
    return fresh, waiting


def _not_forgotten(batch: _Batch, found: identity.Found, items: list[_Item]) -> list[_Item]:
    """The items whose person or recipient may be written to; the others get their result."""
    if not found.directory.forgotten:
        return items
    allowed = []
    for item in items:
        arrival = item.arrival
        try:
            if arrival.named is not None:
                found.directory.refuse_forgotten(arrival.named)
            elif arrival.recipient is not None:
                found.directory.refuse_forgotten(Named(arrival.recipient, None))
            allowed.append(item)
        except OnefoldError as error:
            batch.results[item.position] = error
    return allowed


def _known(item: _Item, event_id: str, known: store.KnownEventId, found: identity.Found) -> Result:
    if known.body_hash != item.body_hash:
        return _id_reused(event_id)
    if item.arrival.named is None:
        return Accepted(event_id, known.receive_time, True, None, None)
    try:
        person = found.directory.find(item.arrival.named)
    except (OnefoldError, VacatedError):
        person = None
    return Accepted(
        event_id, known.receive_time, True, Outcome.UNCHANGED, person.profile_id if person is not None else None
    )


def _id_reused(event_id: str) -> OnefoldError:
    return already_exists(
        Reason.EVENT_ID_REUSED, "The event_id was used for an event with another body.", event_id=event_id
    )


def _check_time(item: _Item, now: datetime) -> None:
    error = check_time(item.arrival, now)
    if error is not None:
        raise error


def _place(project: Project, found: identity.Found, item: _Item) -> bool:
    """Works out to whom an event goes; False if it is to be skipped. Raises the error of an item that is refused."""
    arrival = item.arrival
    if arrival.named is not None:
        placement = found.directory.place(arrival.named, call_of(project.identifier_type, arrival))
        item.person, item.profile_outcome = placement.person, placement.outcome
        return placement.person is not None
    link = found.links.get(arrival.anonymous_id or "")
    if link is not None and is_associated(found.now, link.grace_end_time):
        # Within the grace the event goes straight to the person, so nobody has to move it later.
        item.link = link
    return True


def _row(project_id: str, item: _Item, now: datetime, random: str) -> EventRow:
    arrival, link = item.arrival, item.link
    profile_id = item.person.profile_id if item.person is not None else None
    origin_id = merge_id = link_time = None
    if link is not None:
        profile_id, origin_id, merge_id = link.profile_id, link.origin_id, link.merge_id
        # What an unknown profile's visitor does is the profile's own, and no history that a link brings.
        link_time = None if link.follows_visitor else link.link_time
    return EventRow(
        project_id,
        profile_id,
        arrival.event_time or now,
        arrival.event_id or event_id_at(now, item.position, random),
        now,
        arrival.kind,
        arrival.name,
        arrival.anonymous_id,
        arrival.payload.text,
        arrival.suppress_triggers,
        origin_id is not None,
        origin_id,
        merge_id,
        link_time,
        arrival.recipient,
    )


def _triggers(batch: _Batch) -> list[NewTrigger]:
    """The stored events of a batch that trigger: a person's, and an invite's; a visitor's are inert (A1)."""
    found = []
    for row, position in sorted(batch.copied + batch.rows, key=lambda placed: placed[1]):
        accepted = batch.results[position]
        inert = row.suppress_triggers or (row.profile_id is None and row.recipient is None)
        if inert or not isinstance(accepted, Accepted):
            continue
        backfilled = is_backfilled(row.event_time, accepted.receive_time)
        mark = mark_of(row.event_time, row.link_time, backfilled=backfilled)
        if mark is not None:
            found.append(NewTrigger(mark, row.profile_id, row.recipient, row.event_time, row.event_id))
    return found


def event_id_at(now: datetime, position: int, random: str) -> str:
    """A UUIDv7 (RFC 9562, 5.7) for the event at a position of a batch accepted at `now`.

    Its milliseconds are the database's, and the 12 bits after them count the position, so that the events of a batch
    that happened at one moment keep their order. `random`: 16 random hexadecimal digits.
    """
    return f"{_moment_of_id(now)}{_POSITIONS[position & 0xFFF]}{_VARIANT[random[0]]}{random[1:4]}-{random[4:]}"


@lru_cache(maxsize=1)
def _moment_of_id(now: datetime) -> str:
    text = f"{to_microseconds(now) // 1_000:012x}"
    return f"{text[:8]}-{text[8:]}"
