"""The calls of IdentityService that forget: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

from typing import Any

import grpc

from onefold.callers import IdentifierType, Project, caller
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.forgetting.forgetting import Blocked, erase, forget, list_forgotten, unforget
from onefold.identity.messages import read_identifiers
from onefold.identity.naming import Named
from onefold.identity.people import find_profile_id
from onefold.intents.doorbell import Doorbell
from onefold.intents.store import Intent
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import make_token, page_size, read_token
from onefold.rpc.replay import write_once
from onefold.v1 import forgotten_pb2, identity_service_pb2, identity_service_pb2_grpc, profile_pb2, project_pb2

Context = grpc.aio.ServicerContext[Any, Any]


class ForgetCalls(identity_service_pb2_grpc.IdentityServiceServicer):
    """ForgetProfile, UnforgetProfile, ListForgotten, DeleteProfile."""

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        self._forget_database = database
        self._forget_doorbell = doorbell

    async def ForgetProfile(
        self, request: identity_service_pb2.ForgetProfileRequest, context: Context
    ) -> identity_service_pb2.ForgetProfileResponse:
        """Forgets a person."""
        project = caller().project
        checker = Checker()
        named = _read_forgettable(checker, project, request.identifiers)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        left: list[Intent] = []

        async def work(connection: Connection) -> identity_service_pb2.ForgetProfileResponse:
            forgot = await forget(connection, project, named)
            left[:] = forgot.intents
            return identity_service_pb2.ForgetProfileResponse(
                profile_existed=forgot.profile_existed,
                forgotten=[_to_forgotten(blocked) for blocked in forgot.blocked],
            )

        answer, replayed = await write_once(
            self._forget_database,
            project.project_id,
            request,
            request_id,
            identity_service_pb2.ForgetProfileResponse,
            work,
        )
        self._ring(left, replayed=replayed)
        return answer

    async def UnforgetProfile(
        self, request: identity_service_pb2.UnforgetProfileRequest, context: Context
    ) -> identity_service_pb2.UnforgetProfileResponse:
        """Lets forgotten identifiers be used again."""
        project = caller().project
        checker = Checker()
        named = _read_forgettable(checker, project, request.identifiers)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> identity_service_pb2.UnforgetProfileResponse:
            count = await unforget(connection, project, named)
            return identity_service_pb2.UnforgetProfileResponse(unblocked_count=count)

        answer, _ = await write_once(
            self._forget_database,
            project.project_id,
            request,
            request_id,
            identity_service_pb2.UnforgetProfileResponse,
            work,
        )
        return answer

    async def ListForgotten(
        self, request: identity_service_pb2.ListForgottenRequest, context: Context
    ) -> identity_service_pb2.ListForgottenResponse:
        """Lists the hashes of forgotten identifiers."""
        project_id = caller().project.project_id
        checker = Checker()
        count = page_size(checker, request.page_size)
        checker.raise_if_wrong()
        [after] = read_token(request, request.page_token, bytes.fromhex) or [b""]
        rows = await self._forget_database.read(
            lambda connection: list_forgotten(connection, project_id, after, count + 1)
        )
        answer = identity_service_pb2.ListForgottenResponse(forgotten=[_to_forgotten(row) for row in rows[:count]])
        if len(rows) > count:
            answer.next_page_token = make_token(request, [rows[count - 1].hash.hex()])
        return answer

    async def DeleteProfile(
        self, request: identity_service_pb2.DeleteProfileRequest, context: Context
    ) -> identity_service_pb2.DeleteProfileResponse:
        """Deletes a person; blocks nothing."""
        project = caller().project
        checker = Checker()
        by_id = request.WhichOneof("person") == "profile_id"
        asked_id = checker.uuid("profile_id", request.profile_id) if by_id else None
        named = None if by_id else read_identifiers(checker, project, request.identifiers, long_user_id=True)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        left: list[Intent] = []

        async def work(connection: Connection) -> identity_service_pb2.DeleteProfileResponse:
            profile_id = await find_profile_id(connection, project, named, asked_id, to_write=True)
            left[:] = await erase(connection, project, profile_id)
            return identity_service_pb2.DeleteProfileResponse(profile_id=str(profile_id))

        answer, replayed = await write_once(
            self._forget_database,
            project.project_id,
            request,
            request_id,
            identity_service_pb2.DeleteProfileResponse,
            work,
            # It is the proof of the deletion.
            outlives_people=True,
        )
        self._ring(left, replayed=replayed)
        return answer

    def _ring(self, left: list[Intent], *, replayed: bool) -> None:
        if not replayed:
            for intent in left:
                self._forget_doorbell.ring(intent)


def _read_forgettable(checker: Checker, project: Project, identifiers: profile_pb2.Identifiers) -> Named:
    """Whom to forget: EMAIL projects by email only, USER_ID by user_id, HYBRID by either (P3)."""
    if project.identifier_type is IdentifierType.EMAIL and identifiers.user_id:
        checker.refuse("identifiers.user_id", "does not name a person to forget in an EMAIL project; give email")
    if project.identifier_type is IdentifierType.USER_ID and identifiers.email:
        checker.refuse("identifiers.email", "does not name a person to forget in a USER_ID project; give user_id")
        return Named(None, None)
    return read_identifiers(checker, project, identifiers)


def _to_forgotten(blocked: Blocked) -> forgotten_pb2.Forgotten:
    return forgotten_pb2.Forgotten(
        hash=blocked.hash.hex(),
        kind=project_pb2.IdentifierKind.Value(f"IDENTIFIER_KIND_{blocked.kind.name}"),
        forget_time=to_timestamp(blocked.forget_time),
    )
