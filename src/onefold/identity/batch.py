"""Updating many profiles at once: the whole of BatchUpdateProfiles below the messages.

A batch costs a fixed number of statements, whatever its size. Items are worked out in memory in the order of the
request, so that a batch does what its updates would have done one by one; an item that is refused leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from uuid import UUID

from onefold.callers import IdentifierType, Project
from onefold.db.queries import Connection
from onefold.errors import OnefoldError
from onefold.identity import store
from onefold.identity.people import Written
from onefold.identity.rules import (
    Call,
    Directory,
    IdentifierKind,
    Named,
    Outcome,
    Person,
    VacatedError,
    updated_fields,
    wanted_identifiers,
)


@dataclass(frozen=True, slots=True)
class Update:
    """One item of a batch, checked."""

    named: Named
    call: Call
    data_fields: dict[str, Any]
    merge_nested_objects: bool


Result: TypeAlias = "Written | OnefoldError"


async def update_profiles(connection: Connection, project: Project, updates: Sequence[Update]) -> list[Result]:
    """Writes profiles; returns one result for each update, in order.

    Raises LostRaceError, and what PostgreSQL raises; anything that is wrong with one item is its own result.
    """
    results: dict[int, Result] = {}
    waiting = list(enumerate(updates))
    while waiting:
        # One round, unless an item names somebody by an identifier that an earlier one took from its (oldest) holder:
        # then the rest waits until that is written and can be looked up again.
        waiting = await _round(connection, project, results, waiting)
    return [results[position] for position in range(len(updates))]


async def _round(
    connection: Connection, project: Project, results: dict[int, Result], items: list[tuple[int, Update]]
) -> list[tuple[int, Update]]:
    wanted = [
        key
        for _, update in items
        for key in wanted_identifiers(project.identifier_type, update.named, prefer_user_id=update.call.prefer_user_id)
    ]
    found = await store.find(
        connection, project, wanted, count_holders=any(_by_user_id_alone(project, update) for _, update in items)
    )
    directory = found.directory
    stored = (
        await store.lock_many_data_fields(connection, project.project_id, directory.people) if directory.people else {}
    )
    texts = {id(person): stored[person.profile_id] for person in directory.people if person.profile_id is not None}
    changed: dict[int, str] = {}
    waiting: list[tuple[int, Update]] = []
    for index, (position, update) in enumerate(items):
        try:
            written = _update(directory, update, texts, changed)
            if _by_user_id_alone(project, update) and update.named.user_id:
                key = (IdentifierKind.USER_ID, update.named.user_id)
                written = replace(written, holder_count=found.holder_counts[key])
            results[position] = written
        except VacatedError:
            waiting = items[index:]
            break
        except OnefoldError as error:
            results[position] = error
    await store.write_people(connection, project, directory, changed)
    await store.set_many_data_fields(connection, project.project_id, _of_known(directory, changed))
    return waiting


def _update(directory: Directory, update: Update, texts: dict[int, str], changed: dict[int, str]) -> Written:
    person = directory.find(update.named)
    before = texts.get(id(person), "{}") if person is not None else "{}"
    # Worked out before the identifiers are touched: an item that is too large leaves no trace.
    fields = updated_fields(before, update.data_fields, nested=update.merge_nested_objects)
    placement = directory.place(update.named, update.call)
    outcome = placement.outcome
    if placement.person is not None and fields is not None:
        texts[id(placement.person)] = changed[id(placement.person)] = fields
        if outcome is Outcome.UNCHANGED:
            outcome = Outcome.UPDATED
    if placement.person is None:
        return Written(None, outcome, 0)
    return Written.of(placement.person, outcome)


def _by_user_id_alone(project: Project, update: Update) -> bool:
    return project.identifier_type is IdentifierType.EMAIL and update.named.email is None


def _of_known(directory: Directory, changed: dict[int, str]) -> dict[UUID, str]:
    known: list[Person] = [person for person in directory.people if not person.is_new]
    return {
        person.profile_id: changed[id(person)]
        for person in known
        if person.profile_id is not None and id(person) in changed
    }
