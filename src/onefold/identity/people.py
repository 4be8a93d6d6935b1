"""Finding or creating the one profile that a call names: what UpdateProfile, Identify and RegisterDevice share."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from onefold.callers import IdentifierType, Project
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, not_found
from onefold.identity import store
from onefold.identity.naming import IdentifierKind, Named
from onefold.identity.rules import Call, Outcome, Person, SignupSource, updated_fields, wanted_identifiers


class Written(NamedTuple):
    """What became of the profile: the person (None if skipped), the outcome, and how many hold an ambiguous user_id."""

    person: Person | None
    outcome: Outcome
    holder_count: int
    # As they stand after this write; a later item of the same batch may change the person again.
    email: str | None = None
    user_id: str | None = None

    @classmethod
    def of(cls, person: Person, outcome: Outcome, holder_count: int = 0) -> Written:
        """What became of a person, as it is now."""
        return cls(person, outcome, holder_count, person.email, person.user_id)


async def write_profile(
    connection: Connection,
    project: Project,
    named: Named,
    call: Call,
    *,
    data_fields: dict[str, object] | None = None,
    merge_nested_objects: bool = False,
) -> Written:
    """Finds or creates the person, sets the identifiers given and merges the data fields. The row stays locked.

    Raises what Directory.place and updated_fields raise, and LostRaceError.
    """
    by_user_id_alone = project.identifier_type is IdentifierType.EMAIL and named.email is None
    wanted = wanted_identifiers(project.identifier_type, named, prefer_user_id=call.prefer_user_id)
    found = await store.find(connection, project, wanted, count_holders=by_user_id_alone)
    holder_count = found.holder_counts.get(wanted[0], 0)
    placement = found.directory.place(named, call)
    person, outcome = placement.person, placement.outcome
    if person is None:
        return Written(None, outcome, holder_count)
    if person.is_new:
        fields = updated_fields("{}", data_fields or {}, nested=merge_nested_objects) or "{}"
        await store.write_people(connection, project, found.directory, {person.profile_id: fields})
        return Written.of(person, outcome, holder_count)
    stored = await store.lock_data_fields(connection, project.project_id, person)
    await store.write_people(connection, project, found.directory)
    updated = updated_fields(stored, data_fields or {}, nested=merge_nested_objects)
    if updated is not None:
        await store.set_data_fields(connection, project.project_id, person.profile_id, updated)
        outcome = Outcome.UPDATED
    return Written.of(person, outcome, holder_count)


async def rename(connection: Connection, project: Project, named: Named, kind: IdentifierKind, value: str) -> Written:
    """Gives the person another email or user_id; USER_ID and HYBRID projects create one who is not there (I6, I12).

    Raises PROFILE_NOT_FOUND, IDENTIFIERS_CONFLICT, IDENTIFIER_TAKEN, FORGOTTEN, and LostRaceError.
    """
    wanted = [*wanted_identifiers(project.identifier_type, named), (kind, value)]
    found = await store.find(connection, project, wanted, count_holders=named.email is None)
    directory = found.directory
    directory.refuse_forgotten(named)
    person = directory.find(named)
    outcome = Outcome.UPDATED
    if person is None:
        if project.identifier_type is IdentifierType.EMAIL:
            raise profile_not_found()
        outcome = Outcome.CREATED
        person = directory.create(named, SignupSource.PROFILE_UPDATE)
    renamed = directory.rename(person, kind, value)
    await store.write_people(connection, project, directory)
    by_user_id_alone = project.identifier_type is IdentifierType.EMAIL and named.email is None
    return Written.of(
        person,
        outcome if outcome is Outcome.CREATED else renamed,
        found.holder_counts.get(wanted[0], 0) if by_user_id_alone else 0,
    )


async def find_profile_id(
    connection: Connection,
    project: Project,
    named: Named | None,
    profile_id: UUID | None = None,
    *,
    to_write: bool = False,
) -> UUID:
    """The profile that a call names, by identifiers or by its id. Raises PROFILE_NOT_FOUND, IDENTIFIERS_CONFLICT, and,
    for a call that writes, FORGOTTEN.
    """
    if named is not None:
        person = await store.find_person(connection, project, named, to_write=to_write)
        profile_id = person.profile_id if person else None
    elif profile_id is not None and not await store.profile_exists(connection, project.project_id, profile_id):
        profile_id = None
    if profile_id is None:
        raise profile_not_found()
    return profile_id


def profile_not_found() -> OnefoldError:
    """Nobody has the identifiers or the id; a profile of another project looks the same."""
    return not_found(Reason.PROFILE_NOT_FOUND, "No profile has these identifiers.")
