"""IdentityService: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
import orjson

from onefold.callers import Project, caller
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.identity import store
from onefold.identity.messages import (
    read_anonymous_id,
    read_data_format,
    read_identifiers,
    to_identifiers,
    to_profile_write,
)
from onefold.identity.people import Written, profile_not_found, write_profile
from onefold.identity.rules import Call, SignupSource, is_placeholder
from onefold.intents import store as intents
from onefold.intents.doorbell import Doorbell
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent
from onefold.limits import DATA_FIELDS_BYTES
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.payload import read_json, read_struct, write_struct
from onefold.rpc.replay import write_once
from onefold.v1 import identity_service_pb2, identity_service_pb2_grpc, profile_pb2

Context = grpc.aio.ServicerContext[Any, Any]


class IdentityService(identity_service_pb2_grpc.IdentityServiceServicer):
    """Keeps one profile per person."""

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        self._database = database
        self._doorbell = doorbell

    async def UpdateProfile(
        self, request: identity_service_pb2.UpdateProfileRequest, context: Context
    ) -> identity_service_pb2.UpdateProfileResponse:
        """Creates or updates one profile."""
        project = caller().project
        checker = Checker()
        named = read_identifiers(checker, project, request.identifiers, long_user_id=request.prefer_user_id)
        fields = _read_fields(checker, request)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        call = Call(
            SignupSource.PROFILE_UPDATE,
            prefer_user_id=request.prefer_user_id,
            update_existing_only=request.update_existing_only,
        )

        async def work(connection: Connection) -> identity_service_pb2.UpdateProfileResponse:
            written = await write_profile(
                connection,
                project,
                named,
                call,
                data_fields=fields,
                merge_nested_objects=request.merge_nested_objects,
            )
            return identity_service_pb2.UpdateProfileResponse(profile=to_profile_write(written))

        answer, _ = await write_once(
            self._database,
            project.project_id,
            request,
            request_id,
            identity_service_pb2.UpdateProfileResponse,
            work,
        )
        return answer

    async def GetProfile(
        self, request: identity_service_pb2.GetProfileRequest, context: Context
    ) -> identity_service_pb2.GetProfileResponse:
        """Reads one profile."""
        project = caller().project
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        holder_count = 0
        profile: store.Profile | None
        match request.WhichOneof("person"):
            case "profile_id":
                profile_id = checker.uuid("profile_id", request.profile_id)
                checker.raise_if_wrong()
                profile = await self._database.read(
                    lambda connection: store.get_profile(connection, project.project_id, profile_id)
                )
            case _:
                named = read_identifiers(checker, project, request.identifiers, long_user_id=True)
                checker.raise_if_wrong()
                profile, holder_count = await self._database.read(
                    lambda connection: store.find_profile(connection, project, named)
                )
        if profile is None:
            raise profile_not_found()
        return identity_service_pb2.GetProfileResponse(
            profile=_to_profile(profile, as_json=as_json),
            user_id_holder_count=holder_count if holder_count > 1 else 0,
        )

    async def Identify(
        self, request: identity_service_pb2.IdentifyRequest, context: Context
    ) -> identity_service_pb2.IdentifyResponse:
        """Writes the profile and links the anonymous_id to it."""
        project = caller().project
        checker = Checker()
        named = read_identifiers(checker, project, request.identifiers, long_user_id=request.prefer_user_id)
        fields = _read_fields(checker, request)
        anonymous_id = read_anonymous_id(checker, "anonymous_id", request.anonymous_id)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        call = Call(
            SignupSource.IDENTIFY,
            prefer_user_id=request.prefer_user_id,
            update_existing_only=request.update_existing_only,
        )

        async def work(connection: Connection) -> identity_service_pb2.IdentifyResponse:
            written = await write_profile(
                connection,
                project,
                named,
                call,
                data_fields=fields,
                merge_nested_objects=request.merge_nested_objects,
            )
            link = await _link(connection, project, anonymous_id, written)
            return identity_service_pb2.IdentifyResponse(profile=to_profile_write(written), link=link)

        answer, replayed = await write_once(
            self._database, project.project_id, request, request_id, identity_service_pb2.IdentifyResponse, work
        )
        if answer.link.outcome == identity_service_pb2.LINK_OUTCOME_LINKED and not replayed:
            self._doorbell.ring(_intent(project, answer.link.merge_id))
        return answer


async def _link(
    connection: Connection, project: Project, anonymous_id: str, written: Written
) -> identity_service_pb2.Link:
    if written.person is None or written.person.profile_id is None:
        return identity_service_pb2.Link(outcome=identity_service_pb2.LINK_OUTCOME_SKIPPED)
    if not project.event_merging_enabled:
        return identity_service_pb2.Link(outcome=identity_service_pb2.LINK_OUTCOME_MERGING_OFF)
    link, is_new = await store.claim_link(connection, project.project_id, anonymous_id, written.person.profile_id)
    if is_new:
        outcome = identity_service_pb2.LINK_OUTCOME_LINKED
        await intents.add(connection, _intent(project, str(link.merge_id)))
    elif link.profile_id == written.person.profile_id:
        outcome = identity_service_pb2.LINK_OUTCOME_ALREADY_LINKED
    else:
        # Whose it is, and since when, is another person's data.
        return identity_service_pb2.Link(outcome=identity_service_pb2.LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE)
    return identity_service_pb2.Link(
        outcome=outcome,
        link_time=to_timestamp(link.link_time),
        grace_end_time=to_timestamp(link.grace_end_time),
        merge_id=str(link.merge_id),
    )


def _intent(project: Project, merge_id: str) -> Intent:
    return Intent(project.project_id, UUID(merge_id), IntentKind.ASSOCIATION)


def _read_fields(
    checker: Checker, request: identity_service_pb2.UpdateProfileRequest | identity_service_pb2.IdentifyRequest
) -> dict[str, object]:
    match request.WhichOneof("fields"):
        case "data_fields":
            payload = read_struct(checker, "data_fields", request.data_fields, max_bytes=DATA_FIELDS_BYTES)
        case "data_fields_json":
            payload = read_json(checker, "data_fields_json", request.data_fields_json, max_bytes=DATA_FIELDS_BYTES)
        case _:
            return {}
    return payload.value


def _to_profile(profile: store.Profile, *, as_json: bool) -> profile_pb2.Profile:
    answer = profile_pb2.Profile(
        profile_id=str(profile.profile_id),
        identifiers=to_identifiers(profile.email, profile.user_id),
        email_domain=profile.email.rpartition("@")[2] if profile.email else "",
        email_is_placeholder=is_placeholder(profile.email),
        is_unknown=profile.is_unknown,
        signup_source=profile_pb2.SignupSource.ValueType(profile.signup_source),
        signup_time=to_timestamp(profile.signup_time),
        profile_update_time=to_timestamp(profile.profile_update_time),
        create_time=to_timestamp(profile.create_time),
        update_time=to_timestamp(profile.update_time),
    )
    if as_json:
        answer.data_fields_json = profile.data_fields
    else:
        write_struct(answer.data_fields, orjson.loads(profile.data_fields))
        answer.data_fields.SetInParent()
    return answer
