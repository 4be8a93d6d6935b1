"""Profiles and identifiers in PostgreSQL. Typed functions over queries.sql; the caller owns the transaction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from asyncpg.pgproto import pgproto

from onefold.callers import Project
from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection, Record
from onefold.errors import OnefoldError
from onefold.identity import claims
from onefold.identity.links import LinkRow, settle_links, subject_id, to_link
from onefold.identity.links import queries as queries
from onefold.identity.naming import IdentifierKind, Named, is_session_id
from onefold.identity.rules import (
    Directory,
    Key,
    Person,
    SignupSource,
    forgotten_hashes,
    is_exclusive,
    is_named_anew,
    wanted_identifiers,
)

_KINDS: Final = {kind.value: kind for kind in IdentifierKind}

_NOTHING: Final[Mapping[UUID, str]] = {}


@dataclass(frozen=True, slots=True)
class Profile:
    """A row of profiles; data_fields is JSON text."""

    profile_id: UUID
    email: str | None
    user_id: str | None
    data_fields: str
    is_unknown: bool
    signup_source: SignupSource
    signup_time: datetime
    profile_update_time: datetime
    create_time: datetime
    update_time: datetime
    # The event that its cart stands as of. Only a merge asks for it.
    cart_event_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What the identifiers of a batch lead to, at the moment `now` of the database's clock.

    `holder_counts` says how many hold each of those that somebody has, if that was asked for.
    """

    directory: Directory
    now: datetime
    links: dict[str, LinkRow]
    holder_counts: dict[Key, int]


async def find(
    connection: Connection,
    project: Project,
    wanted: Sequence[tuple[IdentifierKind, str]],
    *,
    count_holders: bool = False,
) -> Found:
    """Looks up identifiers in one statement. An anonymous_id that is linked comes back in `links`."""
    unique = list(dict.fromkeys(wanted))
    hashes = forgotten_hashes(project, unique)
    rows = await queries.find_holders.fetch(
        connection,
        count_holders=count_holders,
        project_id=project.project_id,
        kinds=[kind for kind, _ in unique],
        values=[value for _, value in unique],
        hashes=hashes,
    )
    directory = Directory(
        project.identifier_type, _ids_from(rows[0]["first_new_id"]), dict(zip(unique, hashes, strict=True))
    )
    links: dict[str, LinkRow] = {}
    counts: dict[Key, int] = {}
    for row in rows:
        if row["kind"] is None:
            # Nobody has any of them.
            break
        profile_id = row["profile_id"]
        key = (_KINDS[row["kind"]], row["value"])
        if row["is_forgotten"]:
            directory.forgotten.add(key)
        if profile_id is None:
            continue
        if key[0] is IdentifierKind.ANONYMOUS_ID:
            links[row["value"]] = to_link(row, subject_id(project.project_id, row["value"]))
            continue
        person = directory.people.get(profile_id) or Person(
            profile_id, row["email"], row["user_id"], stored_email=row["email"], stored_user_id=row["user_id"]
        )
        directory.add(*key, person)
        if row["is_redirect"]:
            directory.redirects.add(key)
        if row["holder_count"]:
            counts[key] = row["holder_count"]
    return Found(directory, rows[0]["now"], links, counts)


def _ids_from(first: UUID) -> Iterator[UUID]:
    """Ids that count on from one, by the driver's own type: made and sent several times as fast as the standard one."""
    return (pgproto.UUID((first.int + number).to_bytes(16)) for number in itertools.count())


async def find_person(
    connection: Connection, project: Project, named: Named, *, to_write: bool = False
) -> Person | None:
    """Whom a call names; None for nobody. Raises IDENTIFIERS_CONFLICT, and, for one that writes, FORGOTTEN."""
    found = await find(connection, project, wanted_identifiers(project.identifier_type, named))
    if to_write:
        found.directory.refuse_forgotten(named)
    return found.directory.find(named)


async def get_profile(connection: Connection, project_id: str, profile_id: UUID) -> Profile | None:
    """One profile by its id."""
    row = await queries.get_profile.fetchrow(connection, project_id=project_id, profile_id=profile_id)
    return to_profile_row(row) if row else None


async def get_profiles(
    connection: Connection, project: Project, profile_ids: Sequence[UUID]
) -> Sequence[Profile | None]:
    """Profiles by their ids, in order; None for one that is not there."""
    rows = await queries.get_profiles.fetch(connection, project_id=project.project_id, profile_ids=profile_ids)
    profiles = {row["profile_id"]: to_profile_row(row) for row in rows}
    return [profiles.get(profile_id) for profile_id in profile_ids]


async def profile_exists(connection: Connection, project_id: str, profile_id: UUID) -> bool:
    """Whether the project has a profile of this id."""
    exists: bool = await queries.profile_exists.fetchval(connection, project_id=project_id, profile_id=profile_id)
    return exists


async def find_profiles(
    connection: Connection, project: Project, names: Sequence[Named], *, count_holders: bool = True
) -> list[tuple[Profile | None, int] | OnefoldError]:
    """Profiles by their identifiers, in order and in one statement: None for nobody, the error for a conflict.

    With count_holders, each comes with how many hold the user_id, if that alone named it.
    """
    counted = {named.user_id for named in names if named.email is None} if count_holders else set()
    wanted = list(dict.fromkeys(key for named in names for key in wanted_identifiers(project.identifier_type, named)))
    rows = await queries.find_profiles.fetch(
        connection,
        project_id=project.project_id,
        kinds=[kind for kind, _ in wanted],
        values=[value for _, value in wanted],
        count_holders=[kind is IdentifierKind.USER_ID and value in counted for kind, value in wanted],
    )
    directory = Directory(project.identifier_type)
    profiles: dict[UUID, Profile] = {}
    counts: dict[str, int] = {}
    for row in rows:
        profile = to_profile_row(row)
        profiles[profile.profile_id] = profile
        person = directory.people.get(profile.profile_id) or Person(profile.profile_id, profile.email, profile.user_id)
        directory.add(_KINDS[row["kind"]], row["value"], person)
        if row["holder_count"] is not None:
            counts[row["value"]] = row["holder_count"]
    found: list[tuple[Profile | None, int] | OnefoldError] = []
    for named in names:
        try:
            holder = directory.find(named)
        except OnefoldError as error:
            found.append(error)
        else:
            count = counts.get(named.user_id or "", 0) if named.email is None else 0
            found.append((profiles[holder.profile_id], count) if holder is not None else (None, 0))
    return found


async def find_many_profiles(
    connection: Connection, project: Project, names: Sequence[Named | UUID]
) -> list[Profile | OnefoldError | None]:
    """The profiles of people named by identifiers or id, in order: None for nobody, the error for a conflict.

    Two statements, whatever their number; the caller sees to it that they see one moment.
    """
    by_name = [name for name in names if isinstance(name, Named)]
    by_id = [name for name in names if isinstance(name, UUID)]
    found = iter(await find_profiles(connection, project, by_name, count_holders=False) if by_name else [])
    stored = iter(await get_profiles(connection, project, by_id) if by_id else [])
    result: list[Profile | OnefoldError | None] = []
    for name in names:
        one = next(found) if isinstance(name, Named) else next(stored)
        result.append(one[0] if isinstance(one, tuple) else one)
    return result


async def lock_data_fields(connection: Connection, project_id: str, person: Person) -> str:
    """Holds a person's row and returns its data fields as JSON text.

    LostRaceError if its identifiers are no longer those that the person was found by.
    """
    row = await queries.lock_profile.fetchrow(connection, project_id=project_id, profile_id=person.profile_id)
    if row is None or (row["email"], row["user_id"]) != (person.stored_email, person.stored_user_id):
        raise LostRaceError
    text: str = row["data_fields"]
    return text


async def set_data_fields(connection: Connection, project_id: str, profile_id: UUID, data_fields: str) -> None:
    """Replaces a profile's data fields."""
    await queries.set_data_fields.execute(
        connection, data_fields=data_fields, project_id=project_id, profile_id=profile_id
    )


async def write_people(
    connection: Connection, project: Project, directory: Directory, data_fields: Mapping[UUID, str] = _NOTHING
) -> None:
    """Writes what a batch did to people: new profiles and changed identifiers.

    `data_fields` holds JSON text for new people, by their ids; others start empty. LostRaceError if another transaction
    changed or took what this one builds on.

    The order is that of all writers: rows, then identifiers, each sorted; so no two of them deadlock.
    """
    created, changed = directory.new_people(), directory.changed_people()
    new = _new_identifiers(project, created + changed)
    if changed:
        await _lock_unchanged(connection, project, changed)
        await _release_old(connection, project, changed)
        await claims.claim_identifiers(connection, project, new)
    elif created:
        await claims.claim(connection, project, new, queries.claim_for_new_people)
    if created:
        inserted = await queries.insert_profiles.execute(
            connection,
            project_id=project.project_id,
            profile_ids=[person.profile_id for person in created],
            emails=[person.email for person in created],
            user_ids=[person.user_id for person in created],
            data_fields=[data_fields.get(person.profile_id, "{}") for person in created],
            sources=[person.source for person in created],
            hashes=[directory.hashes[kind, value] for kind, value, _, _ in new],
        )
        if inserted != len(created):
            raise LostRaceError
    if changed:
        await queries.set_identifiers.execute(
            connection,
            profile_ids=[person.profile_id for person in changed],
            emails=[person.email for person in changed],
            user_ids=[person.user_id for person in changed],
            project_id=project.project_id,
        )
        await _note_known(connection, project, changed)


async def hold_profile(connection: Connection, project_id: str, profile_id: UUID) -> None:
    """Holds a profile until the end of the transaction. LostRaceError if it is gone."""
    if await queries.lock_profile.fetchrow(connection, project_id=project_id, profile_id=profile_id) is None:
        raise LostRaceError


async def lock_many_data_fields(connection: Connection, project_id: str, people: Sequence[Person]) -> dict[UUID, str]:
    """Holds people's rows, in order, and returns their data fields as JSON text.

    LostRaceError if the identifiers of one are no longer those that it was found by.
    """
    if not people:
        return {}
    rows = await queries.lock_data_fields.fetch(
        connection, project_id=project_id, profile_ids=[person.profile_id for person in people]
    )
    found = {row["profile_id"]: row for row in rows}
    for person in people:
        row = found.get(person.profile_id)
        if row is None or (row["email"], row["user_id"]) != (person.stored_email, person.stored_user_id):
            raise LostRaceError
    return {row["profile_id"]: row["data_fields"] for row in rows}


async def set_many_data_fields(connection: Connection, project_id: str, data_fields: dict[UUID, str]) -> None:
    """Replaces the data fields of several profiles."""
    if data_fields:
        await queries.set_many_data_fields.execute(
            connection,
            profile_ids=list(data_fields),
            data_fields=list(data_fields.values()),
            project_id=project_id,
        )


async def lookup_profiles(
    connection: Connection, project_id: str, kind: IdentifierKind, value: str, after_profile_id: UUID, count: int
) -> list[Profile]:
    """At most `count` holders of an identifier whose ids come after one, oldest first."""
    rows = await queries.lookup_profiles.fetch(
        connection, project_id=project_id, kind=kind, value=value, after_profile_id=after_profile_id, count=count
    )
    return [to_profile_row(row) for row in rows]


async def _note_known(connection: Connection, project: Project, changed: list[Person]) -> None:
    """An unknown profile that got a name of its own is a known one."""
    named = [
        person.profile_id
        for person in changed
        # Every unknown profile has a UUID as its user_id, and hardly any other has.
        if is_session_id(person.stored_user_id) and is_named_anew(project.identifier_type, person)
    ]
    if named and await queries.become_known.execute(connection, project_id=project.project_id, profile_ids=named):
        for profile_id in named:
            if profile_id is not None:
                await settle_links(connection, project.project_id, profile_id)


async def _lock_unchanged(connection: Connection, project: Project, people: list[Person]) -> None:
    rows = await queries.lock_profiles.fetch(
        connection, project_id=project.project_id, profile_ids=[person.profile_id for person in people]
    )
    stored = {row["profile_id"]: (row["email"], row["user_id"]) for row in rows}
    for person in people:
        if stored.get(person.profile_id) != (person.stored_email, person.stored_user_id):
            raise LostRaceError


async def _release_old(connection: Connection, project: Project, people: list[Person]) -> None:
    old = [
        (kind, before, person.profile_id)
        for person in people
        for kind, before, after in _identifier_changes(person)
        if before is not None and before != after
    ]
    if old:
        kinds, values, profile_ids = map(list, zip(*old, strict=True))
        await queries.release_identifiers.execute(
            connection, kinds=kinds, values=values, profile_ids=profile_ids, project_id=project.project_id
        )


def _new_identifiers(project: Project, people: list[Person]) -> list[claims.NewIdentifier]:
    exclusive = {kind: is_exclusive(project.identifier_type, kind) for kind in IdentifierKind}
    return [
        (kind, after, person.profile_id, exclusive[kind])
        for person in people
        for kind, before, after in _identifier_changes(person)
        if after is not None and before != after
    ]


def _identifier_changes(person: Person) -> tuple[tuple[IdentifierKind, str | None, str | None], ...]:
    return (
        (IdentifierKind.EMAIL, person.stored_email, person.email),
        (IdentifierKind.USER_ID, person.stored_user_id, person.user_id),
    )


def to_profile_row(row: Record) -> Profile:
    return Profile(
        row["profile_id"],
        row["email"],
        row["user_id"],
        row["data_fields"],
        row["is_unknown"],
        SignupSource(row["signup_source"]),
        row["signup_time"],
        row["profile_update_time"],
        row["create_time"],
        row["update_time"],
        row.get("cart_event_time"),
    )
