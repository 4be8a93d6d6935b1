"""Updating many profiles at once: the whole of BatchUpdateProfiles below the messages.

A batch costs a fixed number of statements, whatever its size. Items are worked out in memory in the order of the
request, so that a batch does what its updates would have done one by one; an item that is refused leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from onefold.callers import IdentifierType, Project
from onefold.db.queries import Connection
from onefold.errors import OnefoldError
from onefold.identity import store
from onefold.identity.naming import IdentifierKind, Named
from onefold.identity.people import Written
from onefold.identity.rules import Call, Directory, Outcome, VacatedError, updated_fields, wanted_identifiers


class Update(NamedTuple):
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
    stored = list(directory.people.values())
    texts = await store.lock_many_data_fields(connection, project.project_id, stored)
    changed: dict[UUID, str] = {}
    waiting: list[tuple[int, Update]] = []
    for index, (position, update) in enumerate(items):
        try:
            written = _update(directory, update, texts, changed)
            if _by_user_id_alone(project, update) and update.named.user_id:
                key = (IdentifierKind.USER_ID, update.named.user_id)
                written = written._replace(holder_count=found.holder_counts.get(key, 0))
            results[position] = written
        except VacatedError:
            waiting = items[index:]
            break
        except OnefoldError as error:
            results[position] = error
    await store.write_people(connection, project, directory, changed)
    of_stored = {person.profile_id: changed[person.profile_id] for person in stored if person.profile_id in changed}
    await store.set_many_data_fields(connection, project.project_id, of_stored)
    return waiting


def _update(directory: Directory, update: Update, texts: dict[UUID, str], changed: dict[UUID, str]) -> Written:
    person = directory.find_to_write(update.named)
    before = texts.get(person.profile_id, "{}") if person is not None else "{}"
    # Worked out before the identifiers are touched: an item that is too large leaves no trace.
    fields = updated_fields(before, update.data_fields, nested=update.merge_nested_objects)
    placement = directory.settle(person, update.named, update.call)
    person, outcome = placement.person, placement.outcome
    if person is None:
        return Written(None, outcome, 0)
    if fields is not None:
        texts[person.profile_id] = changed[person.profile_id] = fields
        if outcome is Outcome.UNCHANGED:
            outcome = Outcome.UPDATED
    return Written.of(person, outcome)


def _by_user_id_alone(project: Project, update: Update) -> bool:
    return project.identifier_type is IdentifierType.EMAIL and update.named.email is None
