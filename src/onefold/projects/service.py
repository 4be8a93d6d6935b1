"""ProjectsService: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import grpc

from onefold.callers import IdentifierType, Project, ProjectSettings, Region, Scope, caller
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import Kind, OnefoldError, Reason, already_exists, not_found
from onefold.limits import NAME_BYTES, RATE_MAX_PER_SECOND
from onefold.projects import store
from onefold.projects.keys import Authenticator, new_key
from onefold.projects.rules import (
    ALL_SCOPES,
    check_region,
    check_type_stays,
    identifying_kinds,
    project_id_problem,
    split_key,
)
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import make_token, page_size, read_token, text_part
from onefold.v1 import options_pb2, project_pb2, projects_service_pb2, projects_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class ProjectsService(projects_service_pb2_grpc.ProjectsServiceServicer):
    """Makes and keeps projects and their keys."""

    def __init__(self, database: Database, authenticator: Authenticator) -> None:
        self._database = database
        self._authenticator = authenticator

    async def GetProject(
        self, request: projects_service_pb2.GetProjectRequest, context: Context
    ) -> projects_service_pb2.GetProjectResponse:
        """Reads the caller's project."""
        project_id = caller().project.project_id
        project = await self._database.read(lambda connection: store.get_project(connection, project_id))
        return projects_service_pb2.GetProjectResponse(project=_to_project(_there(project)))

    async def CreateProject(
        self, request: projects_service_pb2.CreateProjectRequest, context: Context
    ) -> projects_service_pb2.CreateProjectResponse:
        """Makes a project and its first key."""
        creator = caller().project.project_id
        checker = Checker()
        problem = project_id_problem(request.project_id)
        if problem:
            checker.refuse("project_id", problem if request.project_id else "is required")
        identifier_type = _read_type(checker, request.identifier_type) or IdentifierType.HYBRID
        if request.identifier_type == project_pb2.IDENTIFIER_TYPE_UNSPECIFIED:
            checker.refuse("identifier_type", "is required")
        region = _read_region(checker, request.region) or Region.US
        _check_rates(checker, request)
        checker.raise_if_wrong()
        check_region(identifier_type, region)
        text = new_key(request.project_id)

        async def work(connection: Connection) -> Project:
            project = await store.insert_project(
                connection,
                request.project_id,
                identifier_type,
                region,
                _read_settings(request, ProjectSettings()),
                creator_project_id=creator,
            )
            if project is None:
                raise already_exists(Reason.PROJECT_EXISTS, "The project_id is taken.")
            await store.insert_api_key(connection, project.project_id, split_key(text), ALL_SCOPES, "first key", None)
            return project

        project = await self._database.transact(work)
        return projects_service_pb2.CreateProjectResponse(project=_to_project(project), api_key=text)

    async def ListProjects(
        self, request: projects_service_pb2.ListProjectsRequest, context: Context
    ) -> projects_service_pb2.ListProjectsResponse:
        """Lists the caller's project and those made with its keys."""
        project_id = caller().project.project_id
        checker = Checker()
        count = page_size(checker, request.page_size)
        checker.raise_if_wrong()
        [after] = read_token(request, request.page_token, text_part) or [""]
        rows = await self._database.read(
            lambda connection: store.list_projects(connection, project_id, after, count + 1)
        )
        answer = projects_service_pb2.ListProjectsResponse(projects=[_to_project(row) for row in rows[:count]])
        if len(rows) > count:
            answer.next_page_token = make_token(request, [rows[count - 1].project_id])
        return answer

    async def ListApiKeys(
        self, request: projects_service_pb2.ListApiKeysRequest, context: Context
    ) -> projects_service_pb2.ListApiKeysResponse:
        """Lists the keys of the caller's project."""
        project_id = caller().project.project_id
        checker = Checker()
        count = page_size(checker, request.page_size)
        checker.raise_if_wrong()
        [after] = read_token(request, request.page_token, text_part) or [""]
        rows = await self._database.read(
            lambda connection: store.list_api_keys(connection, project_id, after, count + 1)
        )
        answer = projects_service_pb2.ListApiKeysResponse(api_keys=[_to_api_key(row) for row in rows[:count]])
        if len(rows) > count:
            answer.next_page_token = make_token(request, [rows[count - 1].key_id])
        return answer

    async def UpdateProject(
        self, request: projects_service_pb2.UpdateProjectRequest, context: Context
    ) -> projects_service_pb2.UpdateProjectResponse:
        """Changes the settings of the caller's project."""
        project_id = caller().project.project_id
        checker = Checker()
        identifier_type = _read_type(checker, request.identifier_type)
        region = _read_region(checker, request.region)
        _check_rates(checker, request)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> Project:
            project = _there(await store.get_project(connection, project_id, lock=True))
            check_type_stays(project.identifier_type, identifier_type)
            check_region(project.identifier_type, region or project.region)
            return await store.update_project(
                connection,
                project_id,
                region or project.region,
                _read_settings(request, project.settings),
            )

        project = await self._database.transact(work)
        self._authenticator.forget(project_id)
        return projects_service_pb2.UpdateProjectResponse(project=_to_project(project))

    async def CreateApiKey(
        self, request: projects_service_pb2.CreateApiKeyRequest, context: Context
    ) -> projects_service_pb2.CreateApiKeyResponse:
        """Makes a key for the caller's project."""
        project_id = caller().project.project_id
        checker = Checker()
        known = [number for number in options_pb2.Scope.values() if number]
        for index, number in enumerate(request.scopes):
            checker.one_of(f"scopes[{index}]", number, known)
        if not request.scopes:
            checker.refuse("scopes", "needs at least one scope")
        display_name = checker.text("display_name", request.display_name, max_bytes=NAME_BYTES)
        expire_time = checker.timestamp("expire_time", request.expire_time) if request.HasField("expire_time") else None
        checker.raise_if_wrong()
        scopes = frozenset(Scope(options_pb2.Scope.Name(number).removeprefix("SCOPE_")) for number in request.scopes)
        text = new_key(project_id)

        async def work(connection: Connection) -> store.ApiKeyRow:
            if expire_time is not None and not await store.is_ahead(connection, expire_time):
                checker.refuse("expire_time", "must lie in the future")
                checker.raise_if_wrong()
            return await store.insert_api_key(
                connection, project_id, split_key(text), scopes, display_name, expire_time
            )

        row = await self._database.transact(work)
        return projects_service_pb2.CreateApiKeyResponse(api_key=_to_api_key(row), secret_text=text)

    async def RevokeApiKey(
        self, request: projects_service_pb2.RevokeApiKeyRequest, context: Context
    ) -> projects_service_pb2.RevokeApiKeyResponse:
        """Ends a key of the caller's project."""
        project_id = caller().project.project_id
        checker = Checker()
        key_id = checker.text("key_id", request.key_id, required=True, max_bytes=NAME_BYTES)
        checker.raise_if_wrong()
        row = await self._database.transact(lambda connection: store.revoke_api_key(connection, project_id, key_id))
        if row is None:
            raise not_found(Reason.API_KEY_NOT_FOUND, "The project has no key of this id.")
        self._authenticator.forget(project_id)
        return projects_service_pb2.RevokeApiKeyResponse(api_key=_to_api_key(row))


def _there(project: Project | None) -> Project:
    """Every caller has a project; projects are never deleted."""
    if project is None:
        raise OnefoldError(Kind.INTERNAL, Reason.INTERNAL, "The project of the key is gone.")
    return project


def _read_type(checker: Checker, number: project_pb2.IdentifierType.ValueType) -> IdentifierType | None:
    checker.one_of("identifier_type", number, project_pb2.IdentifierType.values())
    if number not in project_pb2.IdentifierType.values() or number == project_pb2.IDENTIFIER_TYPE_UNSPECIFIED:
        return None
    return IdentifierType(project_pb2.IdentifierType.Name(number).removeprefix("IDENTIFIER_TYPE_"))


def _read_region(checker: Checker, number: project_pb2.Region.ValueType) -> Region | None:
    checker.one_of("region", number, project_pb2.Region.values())
    if number not in project_pb2.Region.values() or number == project_pb2.REGION_UNSPECIFIED:
        return None
    return Region(project_pb2.Region.Name(number).removeprefix("REGION_"))


def _check_rates(
    checker: Checker, request: projects_service_pb2.CreateProjectRequest | projects_service_pb2.UpdateProjectRequest
) -> None:
    for field in ("max_calls_per_second", "max_events_per_second"):
        if not 0 <= getattr(request, field) <= RATE_MAX_PER_SECOND:
            checker.refuse(field, f"must lie between 0 and {RATE_MAX_PER_SECOND:,}")


def _read_settings(
    request: projects_service_pb2.CreateProjectRequest | projects_service_pb2.UpdateProjectRequest,
    before: ProjectSettings,
) -> ProjectSettings:
    """The settings after a request, which says only those that it wants otherwise."""
    told = {setting.name for setting in fields(ProjectSettings) if request.HasField(setting.name)}  # type: ignore[arg-type]  # a test compares the names
    return replace(before, **{name: getattr(request, name) for name in told})


def _to_project(project: Project) -> project_pb2.Project:
    return project_pb2.Project(
        project_id=project.project_id,
        identifier_type=project_pb2.IdentifierType.Value(f"IDENTIFIER_TYPE_{project.identifier_type}"),
        region=project_pb2.Region.Value(f"REGION_{project.region}"),
        identifying_kinds=[
            project_pb2.IdentifierKind.Value(f"IDENTIFIER_KIND_{kind.name}")
            for kind in identifying_kinds(project.identifier_type)
        ],
        **asdict(project.settings),
        create_time=to_timestamp(project.create_time),
        update_time=to_timestamp(project.update_time),
    )


def _to_api_key(row: store.ApiKeyRow) -> project_pb2.ApiKey:
    return project_pb2.ApiKey(
        key_id=row.key_id,
        scopes=[options_pb2.Scope.Value(f"SCOPE_{scope}") for scope in sorted(row.scopes)],
        display_name=row.display_name,
        create_time=to_timestamp(row.create_time),
        expire_time=to_timestamp(row.expire_time) if row.expire_time else None,
        revoke_time=to_timestamp(row.revoke_time) if row.revoke_time else None,
    )
