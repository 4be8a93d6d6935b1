"""Making a project and a key from outside the API: the first of each has to come from somewhere."""

from __future__ import annotations

from onefold.callers import IdentifierType, ProjectSettings, Region, Scope
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import Kind, OnefoldError, Reason, Violation, already_exists, invalid, not_found
from onefold.projects import store
from onefold.projects.keys import new_key
from onefold.projects.rules import ALL_SCOPES, check_region, check_type_stays, project_id_problem, split_key


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
        if await store.get_project(connection, project_id) is None:
            raise not_found(Reason.PROFILE_NOT_FOUND, f"There is no project {project_id}.")
        await store.insert_api_key(connection, project_id, split_key(text), scopes, display_name, None)

    await database.transact(work)
    return text


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
            raise OnefoldError(Kind.INTERNAL, Reason.INTERNAL, f"Project {project_id} vanished.")
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


def _check_id(project_id: str) -> None:
    problem = project_id_problem(project_id)
    if problem:
        raise invalid([Violation("project_id", problem)])
