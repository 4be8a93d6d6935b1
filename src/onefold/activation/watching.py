"""Looking at what visitors do, and making the profile of one who matches a criterion (U2).

Each event is counted once, when the note that came with it is worked off; a visitor's earlier events are not read again
unless the criteria have changed since, or one of the events that were counted has had its 30 days. The profile, its
link to the anonymous_id, the event that tells of it and the end of the note are one transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid4

import structlog

from onefold.activation import consents, store
from onefold.activation.rules import CompiledCriterion
from onefold.activation.store import Counted, CriterionRow, Note, TimedEvent, Visit
from onefold.activation.unknown import MAKE_UNKNOWN, tell_sessions
from onefold.activation.visitors import session_data
from onefold.callers import Project
from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection
from onefold.errors import OnefoldError
from onefold.identity import links
from onefold.identity.batch import Update, update_profiles
from onefold.identity.links import subject_id
from onefold.identity.naming import Named
from onefold.intents import store as intents
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Criteria:
    """The criteria of a project, ready to be evaluated, and a key that changes with each of them."""

    rows: Sequence[CriterionRow]
    compiled: Sequence[CompiledCriterion]
    key: str

    @classmethod
    def of(cls, rows: Sequence[CriterionRow]) -> Criteria:
        """The criteria in these rows."""
        text = ",".join(f"{row.criterion_id}:{row.version}" for row in rows)
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return cls(rows, [row.compiled() for row in rows], key)


async def look_at(connection: Connection, project: Project, notes: Sequence[Note]) -> None:
    """Looks at the visitors of some notes. LostRaceError if one was linked, or a criterion deleted, meanwhile."""
    project_id = project.project_id
    linked = await store.linked_ids(connection, project_id, {note.anonymous_id for note in notes})
    notes = [note for note in notes if note.anonymous_id not in linked]
    asked = {note.anonymous_id for note in notes if note.event_id is None}
    told: dict[str, list[tuple[Note, TimedEvent]]] = {anonymous_id: [] for anonymous_id in asked}
    for note, event in await store.read_noted(connection, project_id, notes):
        told.setdefault(note.anonymous_id, []).append((note, event))
    criteria = Criteria.of(await store.list_criteria(connection, project_id))
    if not told or not criteria.rows:
        return
    known = await store.hold_visitors(connection, project, told, criteria.key)
    matched: dict[str, UUID] = {}
    counted: dict[str, Counted] = {}
    unclear: set[str] = set()
    anew = [anonymous_id for anonymous_id in told if anonymous_id in asked or known[anonymous_id] is None]
    visits = await store.read_visitors(connection, project_id, anew) if anew else {}
    for anonymous_id, events in told.items():
        before = known[anonymous_id]
        try:
            if before is None or anonymous_id in visits:
                criterion_id, now = count_all(criteria, visits.pop(anonymous_id), [event for _, event in events])
            else:
                # What all was counted with must not be counted again.
                new = [event for note, event in events if not before.seen.saw(note)]
                criterion_id, now = count_new(criteria, before, new, always=project.settings.require_consent)
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as fault:
            # One visitor's data must not keep all others of the project waiting. They are counted anew next time.
            _log.error("a visitor could not be evaluated", project_id=project_id, fault=type(fault).__name__)
            unclear.add(anonymous_id)
            continue
        if criterion_id is not None:
            matched[anonymous_id] = criterion_id
        if now != before:
            counted[anonymous_id] = now
    made = await _make(connection, project, matched)
    waiting = {anonymous_id: now for anonymous_id, now in counted.items() if anonymous_id not in made}
    await store.write_visitors(connection, project_id, criteria.key, waiting)
    if made or unclear:
        await store.drop_visitors(connection, project_id, made | unclear)


def count_all(criteria: Criteria, visit: Visit, new: Sequence[TimedEvent]) -> tuple[UUID | None, Counted]:
    """Counts everything that is stored of a visitor, the new events among it last and one by one.

    Returns the criterion that matched first, if any, and how far the visitor is.
    """
    now = Counted({each.criterion_id: each.start() for each in criteria.compiled}, None, visit.seen)
    told = {event.event.event_id for event in new}
    earlier = [event for event in visit.events if event.event.event_id not in told]
    for event in earlier:
        _add(criteria, now, event)
    matched = _match(criteria, now) if earlier else None
    return _count(criteria, now, new, matched, always=True)


def count_new(
    criteria: Criteria, before: Counted, new: Sequence[TimedEvent], *, always: bool
) -> tuple[UUID | None, Counted]:
    """Counts a visitor's new events, one by one, on top of what was counted before.

    A visitor who did not match does not do so now unless something counts; `always` asks all the same.
    """
    counts = {name: list(each) for name, each in before.counts.items()}
    return _count(criteria, Counted(counts, before.oldest_event_time, before.seen), new, None, always=always)


def _count(
    criteria: Criteria, now: Counted, new: Sequence[TimedEvent], matched: UUID | None, *, always: bool
) -> tuple[UUID | None, Counted]:
    for event in new:
        changed = _add(criteria, now, event)
        if matched is None and (changed or always):
            matched = _match(criteria, now)
    return matched, now


def _add(criteria: Criteria, now: Counted, event: TimedEvent) -> bool:
    changed = [each.update(now.counts[each.criterion_id], event.event) for each in criteria.compiled]
    if any(changed) and (now.oldest_event_time is None or event.event_time < now.oldest_event_time):
        now.oldest_event_time = event.event_time
    return any(changed)


def _match(criteria: Criteria, now: Counted) -> UUID | None:
    for row, each in zip(criteria.rows, criteria.compiled, strict=True):
        # Nothing but events is known of a visitor.
        if each.is_match(now.counts[each.criterion_id], {}):
            return row.criterion_id
    return None


async def _make(connection: Connection, project: Project, matched: Mapping[str, UUID]) -> set[str]:
    """Makes the unknown profiles of visitors, each with its history; returns whose were made."""
    project_id = project.project_id
    if project.settings.require_consent and matched:
        holders = {subject_id(project_id, anonymous_id): anonymous_id for anonymous_id in matched}
        allowed = await consents.hold(connection, project_id, holders)
        matched = {holders[each]: matched[holders[each]] for each in allowed}
    if not matched:
        return set()
    wanted = set(matched.values())
    if await store.hold_criteria(connection, project_id, wanted) != wanted:
        raise LostRaceError
    # In order: whoever else links some of them waits, and nobody deadlocks.
    names = sorted(matched)
    user_ids = [str(uuid4()) for _ in names]
    updates = [Update(Named(None, user_id), MAKE_UNKNOWN, {}, False) for user_id in user_ids]
    sessions = []
    made = await update_profiles(connection, project, updates)
    for name, user_id, written in zip(names, user_ids, made, strict=True):
        if isinstance(written, OnefoldError):
            raise written
        assert written.person is not None  # nobody has a fresh UUID, so all are made
        assert written.person.profile_id is not None  # it was written
        sessions.append((user_id, written.person.profile_id, session_data(str(matched[name]))))
    await tell_sessions(connection, project, sessions)
    for name, (_, profile_id, _) in zip(names, sessions, strict=True):
        link, is_new = await links.claim_link(connection, project_id, name, profile_id, "", links.OPEN_LINK)
        if not is_new:
            # Somebody has just said who the visitor is.
            raise LostRaceError
        await intents.add(connection, Intent(project_id, link.merge_id, IntentKind.MOVE))
    return set(names)
