"""Projects and keys from outside the API, for an operator: the first of each has to come from somewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from onefold.callers import IdentifierType, Project, ProjectSettings, Region, Scope
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import Kind, OnefoldError, Reason, Violation, already_exists, invalid, not_found
from onefold.projects import store
from onefold.projects.keys import new_key
from onefold.projects.rules import ALL_SCOPES, check_region, check_type_stays, project_id_problem, split_key

# A listing for people; whoever has more keys asks the API, page by page.
_MOST_KEYS: Final = 100_000


async def create_project(database: Database, project_id: str, identifier_type: IdentifierType, region: Region) -> str:
    """Makes a project and its first key, with every scope; returns the key's text."""
    _check_id(project_id)
    check_region(identifier_type, region)
    text = new_key(project_id)

    async def work(connection: Connection) -> None:
        made = await store.insert_project(connection, project_id, identifier_type, region, ProjectSettings())
        if made is None:
            raise already_exists(Reason.PROJECT_EXISTS, f"There is a project {project_id} already.")
        await store.insert_api_key(connection, project_id, split_key(text), ALL_SCOPES, "first key", None)

    await database.transact(work)
    return text


async def create_key(database: Database, project_id: str, scopes: frozenset[Scope], display_name: str) -> str:
    """Makes a key of a project; returns its text."""
    text = new_key(project_id)

    async def work(connection: Connection) -> None:
        await _require(connection, project_id)
        await store.insert_api_key(connection, project_id, split_key(text), scopes, display_name, None)

    await database.transact(work)
    return text


async def all_projects(database: Database) -> list[Project]:
    """Every project of the database, by id."""
    return await database.read(store.list_all_projects)


async def find_project(database: Database, project_id: str) -> Project:
    """A project. Raises NOT_FOUND."""
    return await database.read(lambda connection: _require(connection, project_id))


async def change_project(
    database: Database, project_id: str, region: Region | None, changes: Mapping[str, bool | int]
) -> Project:
    """Changes the settings of a project that are named; returns the project as it is then."""

    async def work(connection: Connection) -> Project:
        found = await _require(connection, project_id, lock=True)
        new_region = region or found.region
        check_region(found.identifier_type, new_region)
        return await store.update_project(
            connection, project_id, new_region, replace(found.settings, **dict[str, Any](changes))
        )

    return await database.transact(work)


async def all_keys(database: Database, project_id: str) -> list[store.ApiKeyRow]:
    """Every key of a project, the ended ones too."""

    async def work(connection: Connection) -> list[store.ApiKeyRow]:
        await _require(connection, project_id)
        return await store.list_api_keys(connection, project_id, "", _MOST_KEYS)

    return await database.read(work)


async def revoke_key(database: Database, project_id: str, key_id: str) -> store.ApiKeyRow:
    """Ends a key; one that has ended stays as it is."""

    async def work(connection: Connection) -> store.ApiKeyRow:
        await _require(connection, project_id)
        row = await store.revoke_api_key(connection, project_id, key_id)
        if row is None:
            raise not_found(Reason.API_KEY_NOT_FOUND, f"Project {project_id} has no key {key_id}.")
        return row

    return await database.transact(work)


async def ensure_project(database_url: str, *, project_id: str, identifier_type: str, api_key: str | None) -> str:
    """Makes the project unless it is there, and a key unless it is good already; returns the key's text.

    Raises OnefoldError when the project has another identifier type.
    """
    _check_id(project_id)
    wanted = IdentifierType(identifier_type)
    text = api_key or new_key(project_id)

    async def work(connection: Connection) -> None:
        await store.insert_project(connection, project_id, wanted, Region.US, ProjectSettings())
        project = await store.get_project(connection, project_id)
        if project is None:
            raise OnefoldError(Kind.INTERNAL, Reason.INTERNAL, f"Project {project_id} is being imported.")
        check_type_stays(project.identifier_type, wanted)
        known = await store.find_caller(connection, split_key(text))
        if known is None or known.project.project_id != project_id:
            await store.insert_api_key(connection, project_id, split_key(text), ALL_SCOPES, "development", None)

    database = await Database.connect(database_url, connections=1)
    try:
        await database.transact(work)
    finally:
        await database.close()
    return text


async def _require(connection: Connection, project_id: str, *, lock: bool = False) -> Project:
    found = await store.get_project(connection, project_id, lock=lock)
    if found is None:
        raise not_found(Reason.PROFILE_NOT_FOUND, f"There is no project {project_id}.")
    return found


def _check_id(project_id: str) -> None:
    problem = project_id_problem(project_id)
    if problem:
        raise invalid([Violation("project_id", problem)])
