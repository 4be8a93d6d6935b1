"""IdentityService: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cache
from typing import Any, TypeAlias
from uuid import UUID

import grpc

from onefold.callers import IdentifierType, Project, caller
from onefold.db.errors import LostRaceError
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, exhausted, invalid
from onefold.identity import links, store
from onefold.identity.batch import Update, update_profiles
from onefold.identity.messages import (
    fill_profile,
    fill_profile_write,
    read_anonymous_id,
    read_data_format,
    read_identifiers,
    to_profile,
    to_profile_write,
)
from onefold.identity.naming import IdentifierKind, Named, email_problem, fold_ascii, user_id_problem
from onefold.identity.people import Written, profile_not_found, rename, write_profile
from onefold.identity.reader import ProfileReader
from onefold.identity.rules import Call, Outcome, SignupSource
from onefold.intents import store as intents
from onefold.intents.doorbell import Doorbell
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent
from onefold.limits import BATCH_PROFILES, DATA_FIELDS_BYTES, PAGE_BYTES
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import build_page, make_token, page_size, read_token
from onefold.rpc.payload import read_json, read_struct
from onefold.rpc.replay import write_once
from onefold.rpc.status import to_item_error
from onefold.v1 import identity_service_pb2, identity_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
# Makes the unknown profile that an anonymous_id stands for the named person's, and gives the ledger's entry.
LearnWho: TypeAlias = Callable[[Connection, Project, Named, Call, str, str], Awaitable[UUID | None]]


class IdentityService(identity_service_pb2_grpc.IdentityServiceServicer):
    """Keeps one profile per person."""

    def __init__(self, database: Database, doorbell: Doorbell, learn_who: LearnWho) -> None:
        self._database = database
        self._doorbell = doorbell
        self._learn_who = learn_who
        self._reader = ProfileReader(database)

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
        call = _update_call(request.prefer_user_id, request.update_existing_only)

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
                profile = await self._reader.by_id(project, profile_id)
            case _:
                named = read_identifiers(checker, project, request.identifiers, long_user_id=True)
                checker.raise_if_wrong()
                profile, holder_count = await self._reader.by_name(project, named)
        if profile is None:
            raise profile_not_found()
        answer = identity_service_pb2.GetProfileResponse(user_id_holder_count=holder_count if holder_count > 1 else 0)
        fill_profile(answer.profile, profile, as_json=as_json)
        return answer

    async def BatchGetProfiles(
        self, request: identity_service_pb2.BatchGetProfilesRequest, context: Context
    ) -> identity_service_pb2.BatchGetProfilesResponse:
        """Reads up to 1,000 profiles, each for itself."""
        project = caller().project
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        if len(request.people) > BATCH_PROFILES:
            checker.refuse("people", f"must have at most {BATCH_PROFILES} items")
        checker.raise_if_wrong()
        read = [_read_person(project, person) for person in request.people]
        names = [item for item in read if not isinstance(item, OnefoldError)]
        found = iter(
            await self._database.read(
                lambda connection: store.find_many_profiles(connection, project, names), snapshot=True
            )
        )
        answer = identity_service_pb2.BatchGetProfilesResponse()
        room = PAGE_BYTES
        for item in read:
            result = item if isinstance(item, OnefoldError) else next(found) or profile_not_found()
            if isinstance(result, store.Profile):
                profile = to_profile(result, as_json=as_json)
                room -= profile.ByteSize()
                if room >= 0 or not answer.results:
                    answer.results.add(profile=profile)
                    continue
                result = exhausted(Reason.MESSAGE_TOO_LARGE, "The profile does not fit into this answer.")
            answer.results.add(error=to_item_error(result))
        return answer

    async def BatchUpdateProfiles(
        self, request: identity_service_pb2.BatchUpdateProfilesRequest, context: Context
    ) -> identity_service_pb2.BatchUpdateProfilesResponse:
        """Creates or updates up to 1,000 profiles, each for itself."""
        project = caller().project
        checker = Checker()
        if len(request.updates) > BATCH_PROFILES:
            checker.refuse("updates", f"must have at most {BATCH_PROFILES} items")
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        read = [_read_update_item(project, item) for item in request.updates]
        updates = [item for item in read if isinstance(item, Update)]

        async def work(connection: Connection) -> identity_service_pb2.BatchUpdateProfilesResponse:
            written = iter(await update_profiles(connection, project, updates))
            answer = identity_service_pb2.BatchUpdateProfilesResponse()
            for item in read:
                result = next(written) if isinstance(item, Update) else item
                if isinstance(result, OnefoldError):
                    answer.results.add(error=to_item_error(result))
                else:
                    fill_profile_write(answer.results.add().profile, result)
            return answer

        answer, _ = await write_once(
            self._database,
            project.project_id,
            request,
            request_id,
            identity_service_pb2.BatchUpdateProfilesResponse,
            work,
        )
        return answer

    async def LookupProfiles(
        self, request: identity_service_pb2.LookupProfilesRequest, context: Context
    ) -> identity_service_pb2.LookupProfilesResponse:
        """Lists every holder of an identifier."""
        project = caller().project
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        count = page_size(checker, request.page_size)
        kind, value = IdentifierKind.USER_ID, request.user_id
        if request.WhichOneof("identifier") == "email":
            kind, value = IdentifierKind.EMAIL, fold_ascii(request.email)
            problem = email_problem(value) if value else "is required"
            if project.identifier_type is IdentifierType.USER_ID:
                problem = "does not name people in a USER_ID project; give user_id"
        else:
            problem = user_id_problem(value, project.refused_ids, long=True) if value else "is required"
        if problem:
            checker.refuse(kind.name.lower(), problem)
        checker.raise_if_wrong()
        [after] = read_token(request, request.page_token, UUID) or [UUID(int=0)]
        rows = await self._database.read(
            lambda connection: store.lookup_profiles(connection, project.project_id, kind, value, after, count + 1)
        )
        answer = identity_service_pb2.LookupProfilesResponse()
        answer.profiles.extend(build_page(rows, count, lambda row: to_profile(row, as_json=as_json)))
        if len(answer.profiles) < len(rows):
            answer.next_page_token = make_token(request, [answer.profiles[-1].profile_id])
        return answer

    async def UpdateEmail(
        self, request: identity_service_pb2.UpdateEmailRequest, context: Context
    ) -> identity_service_pb2.UpdateEmailResponse:
        """Gives a person another email."""
        project = caller().project
        checker = Checker()
        named = read_identifiers(checker, project, request.identifiers, long_user_id=True)
        new_email = fold_ascii(request.new_email)
        problem = email_problem(new_email) if new_email else "is required"
        if problem:
            checker.refuse("new_email", problem)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> identity_service_pb2.UpdateEmailResponse:
            written = await rename(connection, project, named, IdentifierKind.EMAIL, new_email)
            return identity_service_pb2.UpdateEmailResponse(profile=to_profile_write(written))

        answer, _ = await write_once(
            self._database, project.project_id, request, request_id, identity_service_pb2.UpdateEmailResponse, work
        )
        return answer

    async def UpdateUserId(
        self, request: identity_service_pb2.UpdateUserIdRequest, context: Context
    ) -> identity_service_pb2.UpdateUserIdResponse:
        """Gives a person another user_id."""
        project = caller().project
        checker = Checker()
        named = read_identifiers(checker, project, request.identifiers, long_user_id=True)
        problem = user_id_problem(request.new_user_id, project.refused_ids) if request.new_user_id else "is required"
        if problem:
            checker.refuse("new_user_id", problem)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> identity_service_pb2.UpdateUserIdResponse:
            written = await rename(connection, project, named, IdentifierKind.USER_ID, request.new_user_id)
            return identity_service_pb2.UpdateUserIdResponse(profile=to_profile_write(written))

        answer, _ = await write_once(
            self._database, project.project_id, request, request_id, identity_service_pb2.UpdateUserIdResponse, work
        )
        return answer

    async def Identify(
        self, request: identity_service_pb2.IdentifyRequest, context: Context
    ) -> identity_service_pb2.IdentifyResponse:
        """Writes the profile and links the anonymous_id to it."""
        project, key_id = caller().project, caller().key_id
        checker = Checker()
        named = read_identifiers(checker, project, request.identifiers, long_user_id=request.prefer_user_id)
        fields = _read_fields(checker, request)
        anonymous_id = read_anonymous_id(checker, project, "anonymous_id", request.anonymous_id)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        call = Call(
            SignupSource.IDENTIFY,
            prefer_user_id=request.prefer_user_id,
            update_existing_only=request.update_existing_only,
        )

        async def work(connection: Connection) -> identity_service_pb2.IdentifyResponse:
            learned = None
            if project.settings.event_merging_enabled:
                learned = await self._learn_who(connection, project, named, call, anonymous_id, key_id)
            written = await write_profile(
                connection,
                project,
                named,
                call,
                data_fields=fields,
                merge_nested_objects=request.merge_nested_objects,
            )
            if learned is not None and written.outcome is Outcome.UNCHANGED:
                written = written._replace(outcome=Outcome.UPDATED)
            link = await _link(connection, project, anonymous_id, written, key_id, learned)
            return identity_service_pb2.IdentifyResponse(profile=to_profile_write(written), link=link)

        answer, replayed = await write_once(
            self._database, project.project_id, request, request_id, identity_service_pb2.IdentifyResponse, work
        )
        if answer.link.outcome == identity_service_pb2.LINK_OUTCOME_LINKED and not replayed:
            self._doorbell.ring(_intent(project, answer.link.merge_id))
        return answer


def _read_person(project: Project, person: identity_service_pb2.PersonName) -> Named | UUID | OnefoldError:
    checker = Checker()
    name: Named | UUID
    if person.WhichOneof("person") == "profile_id":
        name = checker.uuid("profile_id", person.profile_id)
    else:
        name = read_identifiers(checker, project, person.identifiers, long_user_id=True)
    return invalid(checker.violations) if checker.violations else name


def _read_update(checker: Checker, project: Project, item: identity_service_pb2.ProfileUpdate) -> Update:
    named = read_identifiers(checker, project, item.identifiers, long_user_id=item.prefer_user_id)
    call = _update_call(item.prefer_user_id, item.update_existing_only)
    return Update(named, call, _read_fields(checker, item), item.merge_nested_objects)


@cache
def _update_call(prefer_user_id: bool, update_existing_only: bool) -> Call:
    return Call(SignupSource.PROFILE_UPDATE, prefer_user_id=prefer_user_id, update_existing_only=update_existing_only)


def _read_update_item(project: Project, item: identity_service_pb2.ProfileUpdate) -> Update | OnefoldError:
    checker = Checker()
    update = _read_update(checker, project, item)
    return invalid(checker.violations) if checker.violations else update


async def _link(
    connection: Connection, project: Project, anonymous_id: str, written: Written, key_id: str, learned: UUID | None
) -> identity_service_pb2.Link:
    if written.person is None or written.person.profile_id is None:
        return identity_service_pb2.Link(outcome=identity_service_pb2.LINK_OUTCOME_SKIPPED)
    if not project.settings.event_merging_enabled:
        return identity_service_pb2.Link(outcome=identity_service_pb2.LINK_OUTCOME_MERGING_OFF)
    link, is_new = await links.claim_link(
        connection, project.project_id, anonymous_id, written.person.profile_id, key_id
    )
    if is_new:
        outcome = identity_service_pb2.LINK_OUTCOME_LINKED
        await intents.add(connection, _intent(project, str(link.merge_id)))
    elif link.profile_id == written.person.profile_id:
        outcome = identity_service_pb2.LINK_OUTCOME_ALREADY_LINKED
        if learned is not None:
            # To the caller this is when the visitor's history became the person's, and what undoing takes back.
            outcome, link = identity_service_pb2.LINK_OUTCOME_LINKED, replace(link, merge_id=learned)
    elif await links.find_unknown_holder(connection, project.project_id, anonymous_id) is not None:
        # A worker has just linked it to an unknown profile; from the start again, that is learned.
        raise LostRaceError
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
    return Intent(project.project_id, UUID(merge_id), IntentKind.MOVE)


def _read_fields(
    checker: Checker,
    request: identity_service_pb2.UpdateProfileRequest
    | identity_service_pb2.IdentifyRequest
    | identity_service_pb2.ProfileUpdate,
) -> dict[str, object]:
    match request.WhichOneof("fields"):
        case "data_fields":
            payload = read_struct(checker, "data_fields", request.data_fields, max_bytes=DATA_FIELDS_BYTES)
        case "data_fields_json":
            payload = read_json(checker, "data_fields_json", request.data_fields_json, max_bytes=DATA_FIELDS_BYTES)
        case _:
            return {}
    return payload.value
