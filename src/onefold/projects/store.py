"""Projects and keys in PostgreSQL. Typed functions over queries.sql; the caller owns the transaction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Final

from onefold.callers import Caller, IdentifierType, Project, ProjectSettings, Region, Scope
from onefold.db.queries import Connection, Queries, Record
from onefold.projects.rules import KeyText, is_live, secret_hash

queries: Final = Queries("onefold.projects")


@dataclass(frozen=True, slots=True)
class ApiKeyRow:
    """A key without its secret."""

    key_id: str
    scopes: frozenset[Scope]
    display_name: str
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None


async def insert_project(
    connection: Connection,
    project_id: str,
    identifier_type: IdentifierType,
    region: Region,
    settings: ProjectSettings,
    creator_project_id: str | None = None,
) -> Project | None:
    """Makes a project; None if the id is taken, or being brought in from a file."""
    await hold_project_id(connection, project_id)
    row = await queries.insert_project.fetchrow(
        connection,
        project_id=project_id,
        identifier_type=identifier_type,
        region=region,
        **asdict(settings),
        creator_project_id=creator_project_id,
    )
    return _project(row) if row else None


async def hold_project_id(connection: Connection, project_id: str) -> None:
    """Keeps others from making or importing a project of this id until the end of the transaction."""
    await queries.hold_project_id.fetchval(connection, project_id=project_id)


async def list_projects(connection: Connection, project_id: str, after_project_id: str, count: int) -> list[Project]:
    """At most `count` of a project and those made with its keys, whose ids come after one, by id."""
    rows = await queries.list_projects.fetch(
        connection, project_id=project_id, after_project_id=after_project_id, count=count
    )
    return [_project(row) for row in rows]


async def list_all_projects(connection: Connection) -> list[Project]:
    """Every project of the database, by id."""
    return [_project(row) for row in await queries.list_all_projects.fetch(connection)]


async def list_api_keys(connection: Connection, project_id: str, after_key_id: str, count: int) -> list[ApiKeyRow]:
    """At most `count` keys of a project whose ids come after one, by id."""
    rows = await queries.list_api_keys.fetch(connection, project_id=project_id, after_key_id=after_key_id, count=count)
    return [_api_key(row) for row in rows]


async def forget_secret(connection: Connection) -> bytes:
    """The secret that all servers of this database share."""
    secret: bytes = await queries.forget_secret.fetchval(connection)
    return secret


async def get_project(connection: Connection, project_id: str, *, lock: bool = False) -> Project | None:
    """A project by its id; with `lock`, held until the end of the transaction."""
    query = queries.lock_project if lock else queries.get_project
    row = await query.fetchrow(connection, project_id=project_id)
    return _project(row) if row else None


async def update_project(connection: Connection, project_id: str, region: Region, settings: ProjectSettings) -> Project:
    """Writes a project's settings."""
    row = await queries.update_project.fetchrow(connection, region=region, **asdict(settings), project_id=project_id)
    assert row is not None  # the caller holds the row
    return _project(row)


async def insert_api_key(
    connection: Connection,
    project_id: str,
    key: KeyText,
    scopes: frozenset[Scope],
    display_name: str,
    expire_time: datetime | None,
) -> ApiKeyRow:
    """Registers a key under its id; of its secret only the hash."""
    row = await queries.insert_api_key.fetchrow(
        connection,
        project_id=project_id,
        key_id=key.key_id,
        secret_hash=secret_hash(key.secret),
        scopes=sorted(scopes),
        display_name=display_name,
        expire_time=expire_time,
    )
    assert row is not None  # an INSERT of one row returns one row
    return _api_key(row)


async def revoke_api_key(connection: Connection, project_id: str, key_id: str) -> ApiKeyRow | None:
    """Ends a key; None if the project has none of this id."""
    row = await queries.revoke_api_key.fetchrow(connection, project_id=project_id, key_id=key_id)
    return _api_key(row) if row else None


async def find_caller(connection: Connection, key: KeyText) -> Caller | None:
    """Whom a key lets in; None if it lets nobody in. Its id may stand in several projects; its secret does not."""
    for row in await queries.find_api_key.fetch(connection, key_id=key.key_id):
        if is_live(row["secret_hash"], key.secret, row["now"], row["expire_time"], row["revoke_time"]):
            left = (row["expire_time"] - row["now"]).total_seconds() if row["expire_time"] else None
            project = replace(_project(row), forget_name=row["forget_name"])
            return Caller(project, row["key_id"], frozenset(map(Scope, row["scopes"])), left)
    return None


async def is_ahead(connection: Connection, moment: datetime) -> bool:
    """Whether a moment lies in the future of the database's clock."""
    ahead: bool = await queries.is_ahead.fetchval(connection, moment=moment)
    return ahead


def _project(row: Record) -> Project:
    return Project(
        row["project_id"],
        IdentifierType(row["identifier_type"]),
        Region(row["region"]),
        ProjectSettings(**{setting.name: row[setting.name] for setting in fields(ProjectSettings)}),
        row["create_time"],
        row["update_time"],
    )


def _api_key(row: Record) -> ApiKeyRow:
    return ApiKeyRow(
        row["key_id"],
        frozenset(map(Scope, row["scopes"])),
        row["display_name"],
        row["create_time"],
        row["expire_time"],
        row["revoke_time"],
    )
