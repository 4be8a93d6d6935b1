"""Projects, their keys, and what keeps one project's data from another's callers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from onefold.db.queries import Connection
from onefold.server import FILES
from onefold.v1.activation_service_pb2 import (
    CreateCriterionRequest,
    CreateUnknownProfileRequest,
    DeleteCriterionRequest,
    EvaluateCriteriaRequest,
    ListCriteriaRequest,
    RecordConsentRequest,
    ReplayRequest,
    UpdateCriterionRequest,
)
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import (
    DisableDeviceRequest,
    GetDisableRequest,
    ListDevicesRequest,
    ListTokenHoldersRequest,
    RegisterBrowserTokenRequest,
    RegisterDeviceRequest,
)
from onefold.v1.events_service_pb2 import (
    BatchTrackRequest,
    ListActivityRequest,
    ListEventsRequest,
    TrackRequest,
    TrackStreamRequest,
    WatchTriggersRequest,
)
from onefold.v1.identity_service_pb2 import (
    BatchGetProfilesRequest,
    BatchUpdateProfilesRequest,
    DeleteProfileRequest,
    ForgetProfileRequest,
    GetMergeRequest,
    GetProfileRequest,
    IdentifyRequest,
    ListForgottenRequest,
    ListMergesRequest,
    LookupProfilesRequest,
    MergeProfilesRequest,
    PreviewMergeRequest,
    UndoMergeRequest,
    UnforgetProfileRequest,
    UpdateEmailRequest,
    UpdateProfileRequest,
    UpdateProfileResponse,
    UpdateUserIdRequest,
)
from onefold.v1.options_pb2 import SCOPE_ADMIN, SCOPE_READ, SCOPE_UNSPECIFIED, SCOPE_WRITE, Scope
from onefold.v1.profile_pb2 import Identifiers
from onefold.v1.project_pb2 import (
    IDENTIFIER_KIND_EMAIL,
    IDENTIFIER_KIND_USER_ID,
    IDENTIFIER_TYPE_EMAIL,
    IDENTIFIER_TYPE_HYBRID,
    IDENTIFIER_TYPE_UNSPECIFIED,
    IDENTIFIER_TYPE_USER_ID,
    REGION_EU,
    REGION_UNSPECIFIED,
    REGION_US,
    ApiKey,
    IdentifierKind,
    IdentifierType,
    Project,
    Region,
)
from onefold.v1.projects_service_pb2 import (
    CreateApiKeyRequest,
    CreateProjectRequest,
    GetProjectRequest,
    ListApiKeysRequest,
    ListProjectsRequest,
    RevokeApiKeyRequest,
    UpdateProjectRequest,
)
from support.client import Client, Failure, email, failure, first_answer, timestamp, user
from support.world import World

MakeProject = Callable[..., Awaitable[Client]]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED

TYPES = [IDENTIFIER_TYPE_EMAIL, IDENTIFIER_TYPE_USER_ID, IDENTIFIER_TYPE_HYBRID]
DEVICE = NewDevice(token="t", platform=PLATFORM_FCM, application_name="app")


def new_id() -> str:
    """A project_id that no other test has."""
    return "made-" + uuid.uuid4().hex[:12]


async def create(admin: Client, project_id: str | None = None, **request: Any) -> Client:
    """Makes a project by the API; gives stubs that hold its first key."""
    request.setdefault("identifier_type", IDENTIFIER_TYPE_EMAIL)
    answer = await admin.projects.CreateProject(CreateProjectRequest(project_id=project_id or new_id(), **request))
    return Client(admin.channel, answer.project.project_id, answer.api_key)


async def read_project(project: Client) -> Project:
    """The project of a key."""
    return (await project.projects.GetProject(GetProjectRequest())).project


async def make_key(
    project: Client, *scopes: Scope.ValueType, expire_time: Timestamp | None = None, display_name: str = ""
) -> tuple[ApiKey, Client]:
    """Makes a key of the project; gives stubs that hold it."""
    answer = await project.projects.CreateApiKey(
        CreateApiKeyRequest(scopes=scopes, expire_time=expire_time, display_name=display_name)
    )
    return answer.api_key, Client(project.channel, project.project_id, answer.secret_text)


def with_key(project: Client, text: str) -> Client:
    """Stubs that hold any text as their key."""
    return Client(project.channel, project.project_id, text)


async def refused(project: Client) -> Failure:
    """How a call with the project's key fails."""
    return await failure(project.projects.GetProject(GetProjectRequest()))


# --- projects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier_type", "kinds"),
    [
        (IDENTIFIER_TYPE_EMAIL, [IDENTIFIER_KIND_EMAIL]),
        (IDENTIFIER_TYPE_USER_ID, [IDENTIFIER_KIND_USER_ID]),
        (IDENTIFIER_TYPE_HYBRID, [IDENTIFIER_KIND_EMAIL, IDENTIFIER_KIND_USER_ID]),
    ],
)
async def test_a_project_tells_what_it_is(
    email_project: Client,
    world: World,
    identifier_type: IdentifierType.ValueType,
    kinds: list[IdentifierKind.ValueType],
) -> None:
    """P1, P5: type, identifying kinds, region, merging (on by default) and times, from its making and from a read."""
    start = await world.now()
    answer = await email_project.projects.CreateProject(
        CreateProjectRequest(project_id=new_id(), identifier_type=identifier_type)
    )
    made = answer.project
    assert (made.identifier_type, list(made.identifying_kinds)) == (identifier_type, kinds)
    assert (made.region, made.event_merging_enabled) == (REGION_US, True)
    for moment in (made.create_time, made.update_time):
        assert start <= moment.ToDatetime(start.tzinfo) <= await world.now()
    assert await read_project(with_key(email_project, answer.api_key)) == made


@pytest.mark.parametrize("setting", ["triggers_enabled", "server_side_activation", "require_consent"])
async def test_what_is_off_can_be_switched_on(email_project: Client, setting: str) -> None:
    """P1: a setting that is off by default is switched on at the making or by an update, and no other with it."""
    project = await create(email_project, None, **{setting: True})
    assert getattr(await read_project(project), setting) is True
    plain = await create(email_project)
    before = await read_project(plain)
    assert getattr(before, setting) is False
    request = UpdateProjectRequest()
    setattr(request, setting, True)
    answer = await plain.projects.UpdateProject(request)
    after = await read_project(plain)
    assert answer.project == after
    changed = {
        field.name for field in Project.DESCRIPTOR.fields if getattr(before, field.name) != getattr(after, field.name)
    }
    assert changed == {setting, "update_time"}


async def test_merging_can_be_off_from_the_start(email_project: Client) -> None:
    """P5: a project may be made with event merging off."""
    project = await create(email_project, event_merging_enabled=False)
    assert (await read_project(project)).event_merging_enabled is False


@pytest.mark.parametrize("identifier_type", TYPES)
async def test_the_type_is_for_good(email_project: Client, identifier_type: IdentifierType.ValueType) -> None:
    """P1: an update to another type is refused with all that it holds; one to the same type, or to none, passes."""
    project = await create(email_project, identifier_type=identifier_type)
    before = await read_project(project)
    for other in TYPES:
        request = UpdateProjectRequest(identifier_type=other, event_merging_enabled=False)
        if other == identifier_type:
            continue
        failed = await failure(project.projects.UpdateProject(request))
        assert (failed.code, failed.reason) == (FAILED_PRECONDITION, "IDENTIFIER_TYPE_FIXED")
        assert failed.metadata == {"identifier_type": IdentifierType.Name(identifier_type)[len("IDENTIFIER_TYPE_") :]}
        assert await read_project(project) == before
    for same in (identifier_type, IDENTIFIER_TYPE_UNSPECIFIED):
        answer = await project.projects.UpdateProject(UpdateProjectRequest(identifier_type=same))
        assert answer.project.identifier_type == identifier_type


@pytest.mark.parametrize("identifier_type", TYPES)
@pytest.mark.parametrize("region", [REGION_UNSPECIFIED, REGION_US, REGION_EU])
async def test_the_eu_takes_user_id_and_hybrid_projects(
    email_project: Client, identifier_type: IdentifierType.ValueType, region: Region.ValueType
) -> None:
    """P4: an EMAIL project in the EU is refused when made there and when moved there; all others are taken."""
    project_id = new_id()
    making = create(email_project, project_id, identifier_type=identifier_type, region=region)
    if (identifier_type, region) != (IDENTIFIER_TYPE_EMAIL, REGION_EU):
        assert (await read_project(await making)).region == (region or REGION_US)
        return
    failed = await failure(making)
    assert (failed.code, failed.reason) == (FAILED_PRECONDITION, "REGION_REFUSES_EMAIL")
    # Nothing of it was made: the id is free for a project that is admitted.
    project = await create(email_project, project_id, identifier_type=identifier_type)
    failed = await failure(
        project.projects.UpdateProject(UpdateProjectRequest(region=REGION_EU, event_merging_enabled=False))
    )
    assert (failed.code, failed.reason) == (FAILED_PRECONDITION, "REGION_REFUSES_EMAIL")
    stored = await read_project(project)
    assert (stored.region, stored.event_merging_enabled) == (REGION_US, True)


async def test_an_update_leaves_what_it_does_not_name(email_project: Client) -> None:
    """P5: merging and region change one by one, an unset field stays, and a read sees the change at once."""
    project = await create(email_project, identifier_type=IDENTIFIER_TYPE_HYBRID)
    first = await read_project(project)
    for request, merging, region in [
        (UpdateProjectRequest(event_merging_enabled=False), False, REGION_US),
        (UpdateProjectRequest(region=REGION_EU), False, REGION_EU),
        (UpdateProjectRequest(event_merging_enabled=True), True, REGION_EU),
        (UpdateProjectRequest(), True, REGION_EU),
        (UpdateProjectRequest(region=REGION_US), True, REGION_US),
    ]:
        answer = await project.projects.UpdateProject(request)
        assert (answer.project.event_merging_enabled, answer.project.region) == (merging, region)
        assert await read_project(project) == answer.project
        assert answer.project.create_time == first.create_time
    assert answer.project.update_time.ToDatetime() > first.update_time.ToDatetime()


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (CreateProjectRequest(project_id="ab", identifier_type=IDENTIFIER_TYPE_EMAIL), ["project_id"]),
        (CreateProjectRequest(identifier_type=IDENTIFIER_TYPE_EMAIL), ["project_id"]),
        (CreateProjectRequest(project_id="With-Capitals", identifier_type=IDENTIFIER_TYPE_EMAIL), ["project_id"]),
        (CreateProjectRequest(project_id="a\x00bc", identifier_type=IDENTIFIER_TYPE_EMAIL), ["project_id"]),
        (CreateProjectRequest(project_id="good-id"), ["identifier_type"]),
        (CreateProjectRequest(project_id="good-id", identifier_type=99), ["identifier_type"]),  # type: ignore[arg-type]
        (
            CreateProjectRequest(project_id="-", identifier_type=99, region=99),  # type: ignore[arg-type]
            ["project_id", "identifier_type", "region"],
        ),
    ],
)
async def test_a_project_that_cannot_be_is_refused_by_its_fields(
    email_project: Client, request_: CreateProjectRequest, fields: list[str]
) -> None:
    """P1, X2: everything that is wrong with a new project is named at once."""
    failed = await failure(email_project.projects.CreateProject(request_))
    assert (failed.code, failed.reason, failed.fields) == (INVALID, "FIELDS_INVALID", fields)


async def test_a_project_id_is_given_once(email_project: Client) -> None:
    """P6: of two projects made under one id together one is made, and a third later is refused and changes nothing."""
    project_id = new_id()
    made = await asyncio.gather(
        create(email_project, project_id, identifier_type=IDENTIFIER_TYPE_EMAIL),
        create(email_project, project_id, identifier_type=IDENTIFIER_TYPE_HYBRID),
        return_exceptions=True,
    )
    [project] = [client for client in made if isinstance(client, Client)]
    [error] = [client for client in made if isinstance(client, grpc.aio.AioRpcError)]
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    before = await read_project(project)
    failed = await failure(create(email_project, project_id, identifier_type=IDENTIFIER_TYPE_USER_ID))
    assert (failed.code, failed.reason) == (grpc.StatusCode.ALREADY_EXISTS, "PROJECT_EXISTS")
    assert await read_project(project) == before


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_call_without_a_key_is_refused(email_project: Client) -> None:
    """P6, X2: no key, another scheme and an empty key are UNAUTHENTICATED / API_KEY_MISSING."""
    call = email_project.channel.unary_unary(
        "/onefold.v1.IdentityService/UpdateProfile",
        request_serializer=UpdateProfileRequest.SerializeToString,
        response_deserializer=UpdateProfileResponse.FromString,
    )
    for metadata in [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", email_project.key),),
        (("authorization", f"Basic {email_project.key}"),),
        (("x-api-key", email_project.key),),
    ]:
        failed = await failure(call(UpdateProfileRequest(identifiers=email("a@example.com")), metadata=metadata))
        assert (failed.code, failed.reason) == (UNAUTHENTICATED, "API_KEY_MISSING"), metadata
    nobody = await failure(email_project.identity.GetProfile(GetProfileRequest(identifiers=email("a@example.com"))))
    assert nobody.code == NOT_FOUND


async def test_a_key_that_is_not_known_is_refused(email_project: Client, hybrid_project: Client) -> None:
    """P6, X2: a made-up key, a good id with another secret, and a secret under another id are API_KEY_INVALID."""
    prefix, project_id, key_id, secret = email_project.key.split("_")
    other = hybrid_project.key.split("_")
    for text in [
        "nonsense",
        "x" * 4000,
        "_",
        f"{prefix}_{project_id}_{key_id}",
        f"{prefix}_{project_id}_{key_id}_",
        f"{prefix}_{project_id}_{key_id}_{secret[:-1]}",
        f"{prefix}_{project_id}_{key_id}_{secret}x",
        f"{prefix}_{project_id}_{key_id}_{other[3]}",
        f"{prefix}_{project_id}_{other[2]}_{secret}",
        f"{prefix}_{project_id}__{secret}",
        email_project.key.upper(),
        secret,
    ]:
        failed = await refused(with_key(email_project, text))
        assert (failed.code, failed.reason) == (UNAUTHENTICATED, "API_KEY_INVALID"), text
        assert secret[:-1] not in failed.message
    assert (await read_project(email_project)).project_id == email_project.project_id


async def test_a_key_never_leads_to_a_project_that_its_text_claims(
    email_project: Client, hybrid_project: Client
) -> None:
    """P6: a key whose text is changed to name another project gives nothing of that project."""
    prefix, _, key_id, secret = email_project.key.split("_")
    forged = with_key(email_project, f"{prefix}_{hybrid_project.project_id}_{key_id}_{secret}")
    await hybrid_project.identity.UpdateProfile(UpdateProfileRequest(identifiers=email("a@example.com")))
    failed = await failure(forged.identity.GetProfile(GetProfileRequest(identifiers=email("a@example.com"))))
    assert failed.code in (NOT_FOUND, UNAUTHENTICATED)
    failed = await failure(forged.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=hybrid_project.key.split("_")[2])))
    assert failed.code in (NOT_FOUND, UNAUTHENTICATED)
    assert (await read_project(hybrid_project)).project_id == hybrid_project.project_id


async def test_the_first_key_may_do_everything(email_project: Client) -> None:
    """P6: the key that CreateProject gives holds every scope, in the new project and in no other."""
    project = await create(email_project, identifier_type=IDENTIFIER_TYPE_HYBRID)
    await project.identity.UpdateProfile(UpdateProfileRequest(identifiers=user("u")))
    assert (await project.identity.GetProfile(GetProfileRequest(identifiers=user("u")))).profile.profile_id
    await project.projects.UpdateProject(UpdateProjectRequest())
    assert (await read_project(project)).project_id == project.project_id != email_project.project_id


async def test_a_key_is_made_as_asked_and_kept_as_a_hash(email_project: Client, world: World) -> None:
    """P6: CreateApiKey tells scopes, name and times, its text works, and nothing stored lets anybody in."""
    expire_time = timestamp(await world.now() + timedelta(hours=1))
    key, holder = await make_key(
        email_project, SCOPE_WRITE, SCOPE_READ, SCOPE_READ, expire_time=expire_time, display_name="web shop"
    )
    assert (list(key.scopes), key.display_name, key.expire_time) == (
        [SCOPE_READ, SCOPE_WRITE],
        "web shop",
        expire_time,
    )
    assert key.HasField("create_time")
    assert not key.HasField("revoke_time")
    assert key.key_id in holder.key
    assert (await read_project(holder)).project_id == email_project.project_id
    for row in await world.fetch("SELECT * FROM api_keys WHERE project_id = $1", email_project.project_id):
        stored = " ".join(map(str, row.values()))
        assert holder.key not in stored
        assert holder.key.split("_")[3] not in stored


async def test_keys_live_side_by_side(email_project: Client) -> None:
    """P6: keys can be rotated: each of several works, and revoking one leaves the others."""
    keys = [await make_key(email_project, SCOPE_READ, SCOPE_ADMIN) for _ in range(3)]
    assert len({key.key_id for key, _ in keys}) == 3
    await keys[0][1].projects.RevokeApiKey(RevokeApiKeyRequest(key_id=keys[1][0].key_id))
    assert (await refused(keys[1][1])).reason == "API_KEY_INVALID"
    for _, holder in (keys[0], keys[2]):
        assert (await read_project(holder)).project_id == email_project.project_id


async def test_a_revoked_key_is_refused_at_once(email_project: Client) -> None:
    """F74: the server that took the revocation refuses the key in the next call, also one that was used just before."""
    key, holder = await make_key(email_project, SCOPE_READ, SCOPE_WRITE)
    await read_project(holder)
    first = await email_project.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=key.key_id))
    assert first.api_key.HasField("revoke_time")
    failed = await refused(holder)
    assert (failed.code, failed.reason) == (UNAUTHENTICATED, "API_KEY_INVALID")
    # Revoked once: the time stays the first one's.
    again = await email_project.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=key.key_id))
    assert again.api_key == first.api_key


async def test_a_key_may_revoke_itself(email_project: Client) -> None:
    """F74: an admin key may end itself, and is refused from then on."""
    key, holder = await make_key(email_project, SCOPE_ADMIN)
    await holder.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=key.key_id))
    failed = await failure(holder.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=key.key_id)))
    assert (failed.code, failed.reason) == (UNAUTHENTICATED, "API_KEY_INVALID")


async def test_an_expired_key_is_refused(email_project: Client, world: World) -> None:
    """F74: a key works before its expire_time and is refused after it, by the database's clock."""
    expire_time = timestamp(await world.now() + timedelta(hours=1))
    _, good = await make_key(email_project, SCOPE_READ, expire_time=expire_time)
    key, over = await make_key(email_project, SCOPE_READ, expire_time=expire_time)

    async def an_hour_passes(connection: Connection) -> None:
        await connection.execute(
            "UPDATE api_keys SET expire_time = expire_time - interval '1 hour' WHERE project_id = $1 AND key_id = $2",
            email_project.project_id,
            key.key_id,
        )

    await world.database.transact(an_hour_passes)
    failed = await refused(over)
    assert (failed.code, failed.reason) == (UNAUTHENTICATED, "API_KEY_INVALID")
    assert (await read_project(good)).project_id == email_project.project_id


async def test_refused_keys_all_look_the_same(email_project: Client) -> None:
    """X2, F74: the answers to an unknown and to a revoked key are equal to the byte."""
    key, revoked = await make_key(email_project, SCOPE_READ)
    await email_project.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=key.key_id))
    unknown = with_key(email_project, f"onefold_{email_project.project_id}_0123456789ab_{'0' * 48}")
    wanted = await raw_failure(unknown.projects.GetProject(GetProjectRequest()))
    assert await raw_failure(revoked.projects.GetProject(GetProjectRequest())) == wanted


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (CreateApiKeyRequest(), ["scopes"]),
        (CreateApiKeyRequest(scopes=[SCOPE_UNSPECIFIED]), ["scopes[0]"]),
        (CreateApiKeyRequest(scopes=[SCOPE_READ, 99]), ["scopes[1]"]),  # type: ignore[list-item]
        (CreateApiKeyRequest(scopes=[SCOPE_READ], display_name="x" * 101), ["display_name"]),
        (CreateApiKeyRequest(scopes=[SCOPE_READ], display_name="a\x00b"), ["display_name"]),
        (CreateApiKeyRequest(scopes=[SCOPE_READ], expire_time=Timestamp(seconds=1_000_000_000)), ["expire_time"]),
        (CreateApiKeyRequest(scopes=[SCOPE_READ], expire_time=Timestamp(seconds=2**62)), ["expire_time"]),
        (CreateApiKeyRequest(display_name="x" * 101), ["scopes", "display_name"]),
    ],
)
async def test_a_key_that_cannot_be_is_refused_by_its_fields(
    email_project: Client, world: World, request_: CreateApiKeyRequest, fields: list[str]
) -> None:
    """X2: a key without scopes, with an unknown one, a bad name, or an end in the past is refused and not made."""
    failed = await failure(email_project.projects.CreateApiKey(request_))
    assert (failed.code, failed.reason, failed.fields) == (INVALID, "FIELDS_INVALID", fields)
    keys = "SELECT count(*) FROM api_keys WHERE project_id = $1"
    assert await world.value(keys, email_project.project_id) == 1


# --- scopes ----------------------------------------------------------------------------------------------------------

# Every method and the one scope it needs, as the protos promise. The requests are empty: what is refused for its key is
# refused before anything else is looked at.
METHODS: list[tuple[str, str, Any, Scope.ValueType]] = [
    ("identity", "UpdateProfile", UpdateProfileRequest(), SCOPE_WRITE),
    ("identity", "GetProfile", GetProfileRequest(), SCOPE_READ),
    ("identity", "Identify", IdentifyRequest(), SCOPE_WRITE),
    ("identity", "BatchGetProfiles", BatchGetProfilesRequest(), SCOPE_READ),
    ("identity", "BatchUpdateProfiles", BatchUpdateProfilesRequest(), SCOPE_WRITE),
    ("identity", "LookupProfiles", LookupProfilesRequest(), SCOPE_READ),
    ("identity", "UpdateEmail", UpdateEmailRequest(), SCOPE_WRITE),
    ("identity", "UpdateUserId", UpdateUserIdRequest(), SCOPE_WRITE),
    ("identity", "MergeProfiles", MergeProfilesRequest(), SCOPE_WRITE),
    ("identity", "PreviewMerge", PreviewMergeRequest(), SCOPE_READ),
    ("identity", "GetMerge", GetMergeRequest(), SCOPE_READ),
    ("identity", "ListMerges", ListMergesRequest(), SCOPE_READ),
    ("identity", "UndoMerge", UndoMergeRequest(), SCOPE_WRITE),
    ("identity", "ForgetProfile", ForgetProfileRequest(), SCOPE_ADMIN),
    ("identity", "UnforgetProfile", UnforgetProfileRequest(), SCOPE_ADMIN),
    ("identity", "ListForgotten", ListForgottenRequest(), SCOPE_ADMIN),
    ("identity", "DeleteProfile", DeleteProfileRequest(), SCOPE_ADMIN),
    ("events", "Track", TrackRequest(), SCOPE_WRITE),
    ("events", "BatchTrack", BatchTrackRequest(), SCOPE_WRITE),
    # A stream's request is its messages.
    ("events", "TrackStream", [TrackStreamRequest()], SCOPE_WRITE),
    ("events", "ListEvents", ListEventsRequest(), SCOPE_READ),
    # Refused for their fields, as the empty requests of the others are.
    ("events", "ListActivity", ListActivityRequest(page_size=-1), SCOPE_READ),
    ("events", "WatchTriggers", WatchTriggersRequest(names=[""]), SCOPE_READ),
    ("devices", "RegisterDevice", RegisterDeviceRequest(), SCOPE_WRITE),
    ("devices", "RegisterBrowserToken", RegisterBrowserTokenRequest(), SCOPE_WRITE),
    ("devices", "DisableDevice", DisableDeviceRequest(), SCOPE_WRITE),
    ("devices", "GetDisable", GetDisableRequest(), SCOPE_READ),
    ("devices", "ListDevices", ListDevicesRequest(), SCOPE_READ),
    ("devices", "ListTokenHolders", ListTokenHoldersRequest(), SCOPE_READ),
    ("projects", "GetProject", GetProjectRequest(), SCOPE_READ),
    ("projects", "CreateProject", CreateProjectRequest(), SCOPE_ADMIN),
    ("projects", "UpdateProject", UpdateProjectRequest(), SCOPE_ADMIN),
    ("projects", "CreateApiKey", CreateApiKeyRequest(), SCOPE_ADMIN),
    ("projects", "ListProjects", ListProjectsRequest(), SCOPE_ADMIN),
    ("projects", "ListApiKeys", ListApiKeysRequest(), SCOPE_ADMIN),
    ("projects", "RevokeApiKey", RevokeApiKeyRequest(), SCOPE_ADMIN),
    ("activation", "CreateCriterion", CreateCriterionRequest(), SCOPE_ADMIN),
    ("activation", "UpdateCriterion", UpdateCriterionRequest(), SCOPE_ADMIN),
    ("activation", "DeleteCriterion", DeleteCriterionRequest(), SCOPE_ADMIN),
    ("activation", "ListCriteria", ListCriteriaRequest(), SCOPE_READ),
    ("activation", "EvaluateCriteria", EvaluateCriteriaRequest(), SCOPE_READ),
    ("activation", "CreateUnknownProfile", CreateUnknownProfileRequest(), SCOPE_WRITE),
    ("activation", "Replay", ReplayRequest(), SCOPE_WRITE),
    ("activation", "RecordConsent", RecordConsentRequest(), SCOPE_WRITE),
]


def test_no_method_is_left_out() -> None:
    """X2: the list above has every method of every service, so that a new one must say here which scope it needs."""
    services = [service for file in FILES for service in file.services_by_name.values()]
    assert sorted(method.name for service in services for method in service.methods) == sorted(
        method for _, method, _, _ in METHODS
    )


@pytest.mark.parametrize("held", [SCOPE_READ, SCOPE_WRITE, SCOPE_ADMIN])
async def test_a_key_does_what_its_scope_says_and_nothing_else(email_project: Client, held: Scope.ValueType) -> None:
    """X2, P6: every method is refused to a key without its scope, which is named, and not to a key with it."""
    _, holder = await make_key(email_project, held)
    for service, method, request, needed in METHODS:
        call = first_answer(getattr(getattr(holder, service), method)(request))
        if held == needed:
            try:
                await call
            except grpc.aio.AioRpcError as error:
                assert error.code() == INVALID, method
            continue
        failed = await failure(call)
        assert (failed.code, failed.reason) == (PERMISSION_DENIED, "SCOPE_MISSING"), method
        assert failed.metadata == {"required_scope": Scope.Name(needed).removeprefix("SCOPE_")}, method
        assert failed.fields == [], method


async def test_a_write_that_is_refused_for_its_key_writes_nothing(email_project: Client, world: World) -> None:
    """X2: a READ key's writes are PERMISSION_DENIED and leave no profile, event, device or key behind."""
    _, reader = await make_key(email_project, SCOPE_READ)
    before = await snapshot(world, email_project)
    who = email("a@example.com")
    calls: list[Awaitable[object]] = [
        reader.identity.UpdateProfile(UpdateProfileRequest(identifiers=who)),
        reader.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="x")),
        reader.track(anonymous_id="x", name="Event"),
        reader.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=DEVICE)),
        reader.projects.UpdateProject(UpdateProjectRequest(event_merging_enabled=False)),
        reader.projects.CreateApiKey(CreateApiKeyRequest(scopes=[SCOPE_ADMIN])),
    ]
    for call in calls:
        failed = await failure(call)
        assert (failed.code, failed.reason) == (PERMISSION_DENIED, "SCOPE_MISSING")
    assert await snapshot(world, email_project) == before


# --- one project and another -----------------------------------------------------------------------------------------

TABLES = [
    *["projects", "api_keys", "profiles", "identifiers", "events", "anonymous_events", "event_ids", "merges"],
    *["devices", "token_disables", "intents", "requests", "moves", "forgotten", "invite_events"],
    *["triggers", "trigger_purges", "activities", "imports"],
    *["criteria", "consents", "activation_visitors", "activation_notes", "activation_reviews"],
]


async def snapshot(world: World, project: Client) -> dict[str, list[str]]:
    """Every row of a project, with the transaction that wrote it last: equal only if no row was touched."""
    return {
        table: sorted(
            str(tuple(row))
            for row in await world.fetch(
                f"SELECT xmin::text, stored.* FROM {table} AS stored WHERE project_id = $1", project.project_id
            )
        )
        for table in TABLES
    }


async def raw_failure(call: Any) -> tuple[grpc.StatusCode, str | None, list[tuple[str, Any]]]:
    """All that a failed call sent: the code, the text, and every byte of the trailing metadata."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details(), sorted(error.trailing_metadata())
    raise AssertionError(f"the call succeeded: {answer}")


async def test_the_snapshot_covers_every_table_of_projects(world: World) -> None:
    """F73: no table that holds a project's rows is left out of the comparison."""
    rows = await world.fetch(
        "SELECT DISTINCT columns.table_name FROM information_schema.columns"
        " JOIN pg_class ON relname = columns.table_name AND NOT relispartition"
        " WHERE column_name = 'project_id' AND table_schema = 'public'"
    )
    assert {row["table_name"] for row in rows} == set(TABLES)


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_another_projects_ids_look_like_missing_ones(
    make_project: MakeProject, world: World, project_type: str
) -> None:
    """F73, P6: with another project's key each of this project's ids is NOT_FOUND, byte for byte as one that nobody
    has, and no row of this project is touched."""
    owner, stranger = await make_project(project_type), await make_project(project_type)
    who = Identifiers(email="a@example.com", user_id="u")
    made = await owner.identity.UpdateProfile(UpdateProfileRequest(identifiers=who, data_fields_json='{"a":1}'))
    profile_id = made.profile.profile_id
    await owner.track(identifiers=user("u"), name="Event", event_id="event")
    await owner.track(anonymous_id="x", name="Event")
    await owner.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="y"))
    await owner.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=DEVICE))
    disabled = await owner.devices.DisableDevice(DisableDeviceRequest(token="t"))
    key, _ = await make_key(owner, SCOPE_READ)
    # The stranger has a person of its own, so that naming a device is not refused for want of a person.
    await stranger.identity.UpdateProfile(UpdateProfileRequest(identifiers=user("mine"), prefer_user_id=True))
    before = await snapshot(world, owner)

    missing_id = "0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11"
    asked: list[tuple[Callable[[Any], Any], Any, Any]] = [
        (lambda it: stranger.identity.GetProfile(GetProfileRequest(profile_id=it)), profile_id, missing_id),
        (lambda it: stranger.events.ListEvents(ListEventsRequest(profile_id=it)), profile_id, missing_id),
        (lambda it: stranger.devices.ListDevices(ListDevicesRequest(profile_id=it)), profile_id, missing_id),
        (
            lambda it: stranger.devices.GetDisable(GetDisableRequest(disable_id=it)),
            disabled.disable.disable_id,
            missing_id,
        ),
        (
            lambda it: stranger.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=it)),
            key.key_id,
            "0123456789ab",
        ),
        (lambda it: stranger.identity.GetProfile(GetProfileRequest(identifiers=it)), user("u"), user("w")),
        (lambda it: stranger.events.ListEvents(ListEventsRequest(identifiers=it)), user("u"), user("w")),
        (lambda it: stranger.devices.ListDevices(ListDevicesRequest(identifiers=it)), user("u"), user("w")),
        (
            lambda it: stranger.devices.DisableDevice(DisableDeviceRequest(token="t", identifiers=it)),
            user("u"),
            user("w"),
        ),
        (
            lambda it: stranger.devices.DisableDevice(DisableDeviceRequest(token=it, identifiers=user("mine"))),
            "t",
            "missing",
        ),
    ]
    if project_type == "EMAIL":
        asked += [
            (lambda it: stranger.identity.UpdateProfile(UpdateProfileRequest(identifiers=it)), user("u"), user("w")),
            (
                lambda it: stranger.identity.Identify(IdentifyRequest(identifiers=it, anonymous_id="z")),
                user("u"),
                user("w"),
            ),
        ]
    for ask, theirs, missing in asked:
        found = await raw_failure(ask(theirs))
        assert found[0] == NOT_FOUND
        assert found == await raw_failure(ask(missing))
    for token in ("t", "missing"):
        holders = await stranger.devices.ListTokenHolders(ListTokenHoldersRequest(token=token))
        assert not holders.holders
    assert await stranger.names(anonymous_id="x") == []
    assert await snapshot(world, owner) == before


async def test_the_same_ids_in_two_projects_are_two_of_everything(make_project: MakeProject, world: World) -> None:
    """P6: people, events, devices, anonymous ids, event ids and request ids of one name live apart in two projects."""
    one, two = await make_project("HYBRID"), await make_project("HYBRID")
    who = Identifiers(email="a@example.com", user_id="u")
    profiles = []
    for project, plan in ((one, "gold"), (two, "free")):
        await project.track(anonymous_id="x", name=f"Viewed {plan}", event_id="event")
        answer = await project.identity.Identify(
            IdentifyRequest(
                identifiers=who, anonymous_id="x", request_id="request", data_fields_json=f'{{"plan":"{plan}"}}'
            )
        )
        assert not answer.replayed
        assert answer.link.merge_id
        await project.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=DEVICE))
        profiles.append(answer.profile.profile_id)
    assert profiles[0] != profiles[1]
    before = await snapshot(world, one)
    await two.devices.DisableDevice(DisableDeviceRequest(token="t"))
    await world.settle(two.project_id)
    assert await snapshot(world, one) == before
    for project, plan, enabled in ((one, "gold", True), (two, "free", False)):
        profile = (await project.identity.GetProfile(GetProfileRequest(identifiers=who))).profile
        assert profile.data_fields["plan"] == plan
        assert await project.names(identifiers=who) == [f"Viewed {plan}"]
        [device] = (await project.devices.ListDevices(ListDevicesRequest(identifiers=who))).devices
        assert device.endpoint_enabled is enabled
