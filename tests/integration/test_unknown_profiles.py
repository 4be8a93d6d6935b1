"""Unknown profiles: how they are made, and what becomes of them when it is known who the visitor is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from conftest import MakeProject
from onefold.config import Settings
from onefold.v1.activation_service_pb2 import CreateUnknownProfileRequest
from onefold.v1.consent_pb2 import DeviceInfo
from onefold.v1.event_pb2 import EVENT_KIND_CUSTOM
from onefold.v1.identity_service_pb2 import (
    MERGE_OUTCOME_CONVERTED,
    MERGE_OUTCOME_MERGED,
    ForgetProfileRequest,
    GetProfileRequest,
    UpdateEmailRequest,
    UpdateUserIdRequest,
)
from onefold.v1.profile_pb2 import (
    SIGNUP_SOURCE_ACTIVATION,
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_UNCHANGED,
    Identifiers,
)
from support.client import Client, email, failure, timestamp, user
from support.criteria import delete_criterion, make_criterion, named
from support.holding import held, until_waiting
from support.merging import chunks, fields, merge, person, profile, put, undo
from support.placeholders import short_placeholder
from support.visitors import make_unknown, sessions
from support.world import World

TYPES = ["EMAIL", "USER_ID", "HYBRID"]
VISITOR = "6f1c1f63-8a51-4b0e-9d51-1f0ab1c2d3e4"


async def profiles(world: World, client: Client) -> int:
    """How many profiles a project has."""
    count: int = await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", client.project_id)
    return count


async def stages(world: World, client: Client) -> AsyncGenerator[str]:
    """Every stage of the workers' work: nothing done, each chunk, everything settled."""
    yield "before"
    async for _ in chunks(world, client.project_id):
        yield "chunk"
    await world.settle(client.project_id)
    yield "settled"


# --- made ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
async def test_a_visitor_gets_a_profile(make_project: MakeProject, world: World, kind: str) -> None:
    """U3, I8: an unknown profile under the UUID, with its data and one unknownSession event that tells the session."""
    client = await make_project(kind)
    criterion = await make_criterion(client, named("Viewed"))
    now = await world.now()
    first, last = timestamp(now - timedelta(days=3)), timestamp(now - timedelta(minutes=1))
    made = await make_unknown(
        client,
        VISITOR,
        criterion_id=criterion.criterion_id,
        session_count=4,
        first_session_time=first,
        last_session_time=last,
        device=DeviceInfo(device_id="d-1", platform="iOS", application_name="Pizza"),
        data_fields_json='{"likes":["pizza"]}',
    )
    assert (made.profile.outcome, made.is_unknown) == (WRITE_OUTCOME_CREATED, True)
    there = await profile(client, user(VISITOR))
    assert there.profile_id == made.profile.profile_id
    assert (there.is_unknown, there.signup_source) == (True, SIGNUP_SOURCE_ACTIVATION)
    assert there.identifiers.user_id == VISITOR
    assert there.identifiers.email == (short_placeholder(VISITOR) if kind == "EMAIL" else "")
    assert there.email_is_placeholder == (kind == "EMAIL")
    assert json.loads(there.data_fields_json) == {"likes": ["pizza"]}
    [event] = await client.timeline(identifiers=user(VISITOR))
    assert (event.name, event.kind, event.event_id) == ("unknownSession", EVENT_KIND_CUSTOM, made.event_id)
    assert event.event_time == there.signup_time
    assert not event.was_anonymous
    [told] = await sessions(client, identifiers=user(VISITOR))
    assert told == {
        "criterionId": criterion.criterion_id,
        "sessionCount": 4,
        "firstSessionTime": first.ToJsonString(),
        "lastSessionTime": last.ToJsonString(),
        "deviceInfo": {"deviceId": "d-1", "platform": "iOS", "applicationName": "Pizza"},
    }


@pytest.mark.parametrize("kind", TYPES)
async def test_making_it_again_changes_nothing(make_project: MakeProject, world: World, kind: str) -> None:
    """U3: the same visitor again gets the same answer, one profile and one event, even when the criterion is gone."""
    client = await make_project(kind)
    criterion = await make_criterion(client, named("Viewed"))
    made = await make_unknown(client, VISITOR, criterion_id=criterion.criterion_id, data_fields_json='{"a":1}')
    await delete_criterion(client, criterion.criterion_id)
    again = await make_unknown(
        client, VISITOR, criterion_id=criterion.criterion_id, session_count=9, data_fields_json='{"a":2}'
    )
    assert again.profile.outcome == WRITE_OUTCOME_UNCHANGED
    assert (again.profile.profile_id, again.event_id) == (made.profile.profile_id, made.event_id)
    assert again.profile.identifiers == made.profile.identifiers
    assert again.is_unknown
    assert await fields(client, user(VISITOR)) == {"a": 1}
    assert len(await sessions(client, identifiers=user(VISITOR))) == 1
    assert await profiles(world, client) == 1


@pytest.mark.parametrize("kind", TYPES)
async def test_two_sessions_of_one_visitor_at_once(
    make_project: MakeProject, settings: Settings, world: World, kind: str
) -> None:
    """U3, F45: two calls for one UUID that meet make one profile with one event, and answer the same profile."""
    client = await make_project(kind)
    claim = (
        "INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive) VALUES ($1, $2, $3, uuidv7(), true)"
    )
    key = (1, short_placeholder(VISITOR)) if kind == "EMAIL" else (2, VISITOR)
    async with held(settings, claim, client.project_id, *key):
        calls = [asyncio.create_task(make_unknown(client, VISITOR)) for _ in range(2)]
        await until_waiting(world, 2)
    one, other = await asyncio.gather(*calls)
    assert {one.profile.outcome, other.profile.outcome} == {WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UNCHANGED}
    assert (one.profile.profile_id, one.event_id) == (other.profile.profile_id, other.event_id)
    assert await profiles(world, client) == 1
    assert len(await sessions(client, identifiers=user(VISITOR))) == 1


async def test_a_session_can_be_sent_again(hybrid_project: Client) -> None:
    """X1: the same request_id gives the stored answer, and with another body is refused."""
    request = CreateUnknownProfileRequest(user_id=VISITOR, request_id="session")
    made, again = [await hybrid_project.activation.CreateUnknownProfile(request) for _ in range(2)]
    assert (made.replayed, again.replayed) == (False, True)
    assert again.profile == made.profile
    refused = await failure(make_unknown(hybrid_project, VISITOR, session_count=2, request_id="session"))
    assert refused.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    "user_id",
    [
        "",
        "visitor",
        VISITOR.replace("-", ""),
        "{" + VISITOR + "}",
        "urn:uuid:" + VISITOR,
        VISITOR + " ",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        VISITOR[:-1] + "\0",
    ],
)
async def test_only_a_uuid_is_a_visitor(hybrid_project: Client, world: World, user_id: str) -> None:
    """U3: a user_id that is no UUID, or the one that stands for nobody, is refused and makes nothing."""
    request = CreateUnknownProfileRequest(user_id=user_id)
    refused = await failure(hybrid_project.activation.CreateUnknownProfile(request))
    assert (refused.code, refused.fields[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "user_id")
    assert await profiles(world, hybrid_project) == 0


async def test_a_uuid_keeps_its_letters(hybrid_project: Client) -> None:
    """U3, I2: a UUID in capitals is taken as it is, and is another visitor than the same in small letters."""
    upper = await make_unknown(hybrid_project, VISITOR.upper())
    lower = await make_unknown(hybrid_project, VISITOR)
    assert upper.profile.identifiers.user_id == VISITOR.upper()
    assert upper.profile.profile_id != lower.profile.profile_id


async def test_everything_wrong_with_a_session_is_said(hybrid_project: Client, world: World) -> None:
    """X2, X5: the fields of a session are judged together."""
    now = await world.now()
    refused = await failure(
        make_unknown(
            hybrid_project,
            "nobody",
            criterion_id="no id",
            session_count=-1,
            first_session_time=timestamp(now),
            last_session_time=timestamp(now - timedelta(seconds=1)),
            device=DeviceInfo(device_id="x" * 257, platform="\n", application_name="x" * 101),
            data_fields_json="[]",
            request_id=" ",
        )
    )
    assert refused.fields == [
        "user_id",
        "criterion_id",
        "session_count",
        "last_session_time",
        "device.device_id",
        "device.platform",
        "device.application_name",
        "data_fields_json",
        "request_id",
    ]


async def test_a_criterion_that_is_gone_makes_nobody(
    hybrid_project: Client, email_project: Client, world: World
) -> None:
    """U3: a criterion that was deleted, never was, or is another project's is CRITERIA_STALE, and nothing is made."""
    gone = await make_criterion(hybrid_project, named("Viewed"))
    await delete_criterion(hybrid_project, gone.criterion_id)
    others = await make_criterion(email_project, named("Viewed"))
    for criterion_id in (gone.criterion_id, others.criterion_id, str(uuid4())):
        refused = await failure(make_unknown(hybrid_project, VISITOR, criterion_id=criterion_id))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CRITERIA_STALE")
    assert await profiles(world, hybrid_project) == 0


async def test_a_criterion_deleted_while_a_profile_is_made(
    hybrid_project: Client, settings: Settings, world: World
) -> None:
    """U3: a profile that is being made comes before the deletion of its criterion, or is refused after it."""
    criterion = await make_criterion(hybrid_project, named("Viewed"))
    claim = (
        "INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive) VALUES ($1, 2, $2, uuidv7(), true)"
    )
    async with held(settings, claim, hybrid_project.project_id, VISITOR):
        making = asyncio.create_task(make_unknown(hybrid_project, VISITOR, criterion_id=criterion.criterion_id))
        await until_waiting(world, 1)
        deleting = asyncio.create_task(delete_criterion(hybrid_project, criterion.criterion_id))
        await until_waiting(world, 2)
    assert (await making).profile.outcome == WRITE_OUTCOME_CREATED
    await deleting

    second = await make_criterion(hybrid_project, named("Viewed"))
    async with held(settings, "SELECT FROM criteria WHERE project_id = $1 FOR UPDATE", hybrid_project.project_id):
        deleting = asyncio.create_task(delete_criterion(hybrid_project, second.criterion_id))
        await until_waiting(world, 1)
        making = asyncio.create_task(make_unknown(hybrid_project, criterion_id=second.criterion_id))
        await until_waiting(world, 2)
    await deleting
    assert (await failure(making)).reason == "CRITERIA_STALE"


@pytest.mark.parametrize("kind", TYPES)
async def test_a_known_persons_id_is_no_visitors(make_project: MakeProject, world: World, kind: str) -> None:
    """U3: a UUID that is a known person's user_id is refused as taken, and the person stays as they are."""
    client = await make_project(kind)
    known = Identifiers(email="a@example.com" if kind == "EMAIL" else "", user_id=VISITOR)
    await put(client, known, '{"a":1}')
    before = await profile(client, user(VISITOR))
    refused = await failure(make_unknown(client, VISITOR, data_fields_json='{"a":2}'))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDENTIFIER_TAKEN")
    assert refused.metadata == {"kind": "user_id"}
    assert await profile(client, user(VISITOR)) == before
    assert await client.names(identifiers=user(VISITOR)) == []


@pytest.mark.parametrize("kind", TYPES)
async def test_a_forgotten_visitor_does_not_come_back(make_project: MakeProject, world: World, kind: str) -> None:
    """I20, F42: the UUID of a forgotten visitor makes no profile any more."""
    client = await make_project(kind)
    made = await make_unknown(client, VISITOR)
    who = made.profile.identifiers
    who = email(who.email) if kind == "EMAIL" else user(who.user_id)
    await client.identity.ForgetProfile(ForgetProfileRequest(identifiers=who))
    refused = await failure(make_unknown(client, VISITOR))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
    await world.settle(client.project_id)
    assert await profiles(world, client) == 0
    assert await world.value("SELECT count(*) FROM events WHERE project_id = $1", client.project_id) == 0


async def test_a_taken_placeholder_makes_nobody(email_project: Client) -> None:
    """I8: a generated placeholder that is somebody's email already is ALREADY_EXISTS."""
    await put(email_project, email(short_placeholder(VISITOR)))
    refused = await failure(make_unknown(email_project, VISITOR))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "PLACEHOLDER_TAKEN")


# --- learning who it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
async def test_nobody_there_the_visitor_becomes_the_person(make_project: MakeProject, world: World, kind: str) -> None:
    """U5, U6, I17: converted in place: the same profile under a new name, the UUID leads to it, no mark is made."""
    client = await make_project(kind)
    made = await make_unknown(client, VISITOR, data_fields_json='{"a":1}')
    answer = await merge(client, user(VISITOR), person(kind, "ada"), allow_known_source=False)
    assert answer.outcome == MERGE_OUTCOME_CONVERTED
    assert answer.survivor.profile_id == made.profile.profile_id
    there = await profile(client, person(kind, "ada"))
    assert (there.profile_id, there.is_unknown) == (made.profile.profile_id, False)
    assert there.identifiers == Identifiers(
        email="" if kind == "USER_ID" else "ada@example.com", user_id=VISITOR if kind == "EMAIL" else "id-ada"
    )
    assert await sessions(client, identifiers=person(kind, "ada")) == [{}]
    again = await make_unknown(client, VISITOR)
    assert (again.profile.outcome, again.is_unknown) == (WRITE_OUTCOME_UNCHANGED, False)
    assert again.profile.profile_id == made.profile.profile_id
    assert await sessions(client, identifiers=user(VISITOR)) == [{}]
    assert await profiles(world, client) == 1


@pytest.mark.parametrize("kind", TYPES)
async def test_somebody_there_the_visitor_is_merged(make_project: MakeProject, world: World, kind: str) -> None:
    """U5, U6, I16, I17: merged into the person, marked isUnknownUser = false, and the UUID leads to the person."""
    client = await make_project(kind)
    known = await put(client, person(kind, "ada"), '{"a":0}')
    await make_unknown(client, VISITOR, session_count=2, data_fields_json='{"a":1,"b":1}')
    await client.track(identifiers=user(VISITOR), name="Viewed")
    answer = await merge(client, user(VISITOR), person(kind, "ada"), allow_known_source=False)
    assert answer.outcome == MERGE_OUTCOME_MERGED
    async for stage in stages(world, client):
        assert await client.names(identifiers=person(kind, "ada")) == ["Viewed", "unknownSession"], stage
        assert await sessions(client, identifiers=person(kind, "ada")) == [
            {"sessionCount": 2, "isUnknownUser": False}
        ], stage
    assert await fields(client, person(kind, "ada")) == {"a": 0, "b": 1}
    later = await make_unknown(client, VISITOR, data_fields_json='{"c":1}')
    assert (later.profile.outcome, later.is_unknown, later.event_id) == (WRITE_OUTCOME_UNCHANGED, False, "")
    assert later.profile.profile_id == known
    assert later.profile.identifiers == person(kind, "ada")
    assert await fields(client, person(kind, "ada")) == {"a": 0, "b": 1}
    assert await profiles(world, client) == 1


@pytest.mark.parametrize("settled", ["not moved", "moved", "given back half", "given back"])
async def test_the_mark_follows_the_event_wherever_it_lies(hybrid_project: Client, world: World, settled: str) -> None:
    """U6, I19: merged, undone and merged again, the event is marked and unmarked at every stage of the moves."""
    known, visitor = user("id-ada"), user(VISITOR)
    await put(hybrid_project, known)
    await make_unknown(hybrid_project, VISITOR, session_count=1)
    first = await merge(hybrid_project, visitor, known, allow_known_source=False)
    if settled != "not moved":
        await world.settle(hybrid_project.project_id)
    await undo(hybrid_project, first.merge.merge_id)
    assert await sessions(hybrid_project, identifiers=visitor) == [{"sessionCount": 1}]
    assert await sessions(hybrid_project, identifiers=known) == []
    if settled == "given back half":
        await world.work_off(hybrid_project.project_id)
    if settled == "given back":
        await world.settle(hybrid_project.project_id)
    assert await sessions(hybrid_project, identifiers=visitor) == [{"sessionCount": 1}]
    second = await merge(hybrid_project, visitor, known, allow_known_source=False)
    async for stage in stages(world, hybrid_project):
        marked = [{"sessionCount": 1, "isUnknownUser": False}]
        assert await sessions(hybrid_project, identifiers=known) == marked, stage
    await undo(hybrid_project, second.merge.merge_id)
    async for stage in stages(world, hybrid_project):
        assert await sessions(hybrid_project, identifiers=visitor) == [{"sessionCount": 1}], stage
    assert (await profile(hybrid_project, visitor)).is_unknown


@pytest.mark.parametrize("moved", [False, True])
async def test_a_chain_of_visitors_is_marked_one_by_one(hybrid_project: Client, world: World, moved: bool) -> None:
    """U6, F36: each unknown profile's own event is marked by its own merge, and unmarked by the undoing of that one."""
    other = str(uuid4())
    await make_unknown(hybrid_project, VISITOR, session_count=1)
    await make_unknown(hybrid_project, other, session_count=2)
    await put(hybrid_project, user("id-ada"))

    async def told(who: str) -> dict[int, bool]:
        return {
            each["sessionCount"]: "isUnknownUser" in each
            for each in await sessions(hybrid_project, identifiers=user(who))
        }

    one = await merge(hybrid_project, user(VISITOR), user(other), allow_known_source=False)
    assert await told(other) == {1: True, 2: False}
    if moved:
        await world.settle(hybrid_project.project_id)
    two = await merge(hybrid_project, user(other), user("id-ada"), allow_known_source=False)
    assert await told("id-ada") == {1: True, 2: True}
    if moved:
        await world.settle(hybrid_project.project_id)
    await undo(hybrid_project, two.merge.merge_id)
    assert await told(other) == {1: True, 2: False}
    await undo(hybrid_project, one.merge.merge_id)
    async for _ in stages(world, hybrid_project):
        assert await told(VISITOR) == {1: False}
        assert await told(other) == {2: False}
        assert await told("id-ada") == {}


async def test_a_person_who_once_was_a_visitor_is_not_marked(hybrid_project: Client) -> None:
    """U6: merging a profile that was converted in place before, and so is known, marks nothing."""
    await make_unknown(hybrid_project, VISITOR)
    await merge(hybrid_project, user(VISITOR), user("id-ada"), allow_known_source=False)
    await put(hybrid_project, user("id-bob"))
    await merge(hybrid_project, user("id-ada"), user("id-bob"))
    assert await sessions(hybrid_project, identifiers=user("id-bob")) == [{}]


NAMES = {"email": "ada@example.com", "user_id": "id-ada", "placeholder": "x@placeholder.email"}


@pytest.mark.parametrize(
    ("kind", "what", "is_unknown"),
    [
        ("EMAIL", "email", False),
        ("EMAIL", "user_id", False),
        ("EMAIL", "placeholder", True),
        ("USER_ID", "user_id", False),
        ("USER_ID", "email", True),
        ("HYBRID", "user_id", False),
        ("HYBRID", "email", False),
        ("HYBRID", "placeholder", True),
    ],
)
async def test_a_name_of_its_own_makes_a_visitor_known(
    make_project: MakeProject, kind: str, what: str, is_unknown: bool
) -> None:
    """U5, I12: an unknown profile that gets an identifier by which people are known is known; else it stays unknown."""
    client = await make_project(kind)
    made = await make_unknown(client, VISITOR)
    call: Any
    if what == "user_id":
        call = client.identity.UpdateUserId(UpdateUserIdRequest(identifiers=user(VISITOR), new_user_id="id-ada"))
    else:
        call = client.identity.UpdateEmail(UpdateEmailRequest(identifiers=user(VISITOR), new_email=NAMES[what]))
    assert (await call).profile.profile_id == made.profile.profile_id
    there = await client.identity.GetProfile(GetProfileRequest(profile_id=made.profile.profile_id))
    assert there.profile.is_unknown == is_unknown


@pytest.mark.parametrize(
    ("kind", "who", "is_unknown"),
    [
        ("EMAIL", Identifiers(email=short_placeholder(VISITOR), user_id="id-ada"), False),
        ("EMAIL", user(VISITOR), True),
        ("USER_ID", Identifiers(email="ada@example.com", user_id=VISITOR), True),
        ("HYBRID", Identifiers(email="ada@example.com", user_id=VISITOR), False),
    ],
)
async def test_an_update_that_names_a_visitor_makes_them_known(
    make_project: MakeProject, kind: str, who: Identifiers, is_unknown: bool
) -> None:
    """U5, I3: the same where the identifier comes along with an update of the profile."""
    client = await make_project(kind)
    made = await make_unknown(client, VISITOR)
    await put(client, who, '{"a":1}')
    there = await client.identity.GetProfile(GetProfileRequest(profile_id=made.profile.profile_id))
    assert there.profile.is_unknown == is_unknown
    assert there.profile.data_fields.fields["a"].number_value == 1


async def test_an_unknown_profile_is_made_once_per_project(hybrid_project: Client, user_id_project: Client) -> None:
    """P6, F73: the same UUID in two projects is two visitors."""
    one, other = await make_unknown(hybrid_project, VISITOR), await make_unknown(user_id_project, VISITOR)
    assert one.profile.profile_id != other.profile.profile_id
    assert {one.profile.outcome, other.profile.outcome} == {WRITE_OUTCOME_CREATED}
    assert UUID(one.profile.profile_id).version == 7
