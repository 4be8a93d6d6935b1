"""UpdateEmail and UpdateUserId: the same person under another name."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import ListDevicesRequest, ListTokenHoldersRequest, RegisterDeviceRequest
from onefold.v1.identity_service_pb2 import (
    GetProfileRequest,
    GetProfileResponse,
    IdentifyRequest,
    LookupProfilesRequest,
    MergeProfilesRequest,
    UpdateEmailRequest,
    UpdateProfileRequest,
    UpdateUserIdRequest,
)
from onefold.v1.profile_pb2 import (
    SIGNUP_SOURCE_PROFILE_UPDATE,
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
    ProfileWrite,
)
from support.client import Client, Failure, email, failure, read_failure, user
from support.traces import rows_of
from support.world import World

TYPES = ["EMAIL", "USER_ID", "HYBRID"]
KINDS = ["email", "user_id"]
# What is unique where (P2), and what several may share.
UNIQUE = [("EMAIL", "email"), ("USER_ID", "user_id"), ("HYBRID", "email"), ("HYBRID", "user_id")]
SHARED = [("EMAIL", "user_id"), ("USER_ID", "email")]
# By what a person may be named (P3).
NAMED_BY = [
    ("EMAIL", "email"),
    ("EMAIL", "user_id"),
    ("USER_ID", "user_id"),
    ("HYBRID", "email"),
    ("HYBRID", "user_id"),
]


def both(name: str) -> Identifiers:
    """A person by both identifiers."""
    return Identifiers(email=f"{name}@example.com", user_id=name)


def value(kind: str, name: str) -> str:
    """One of a person's identifiers."""
    return f"{name}@example.com" if kind == "email" else name


def only(kind: str, name: str) -> Identifiers:
    """A person by one of the identifiers."""
    return email(value(kind, name)) if kind == "email" else user(name)


def main_kind(project_type: str) -> str:
    """The identifier by which a type always takes a person."""
    return "user_id" if project_type == "USER_ID" else "email"


async def put(c: Client, identifiers: Identifiers, **more: Any) -> str:
    """Writes a profile; returns its id."""
    answer = await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=identifiers, **more))
    return answer.profile.profile_id


def renaming(c: Client, who: Identifiers, kind: str, new: str, request_id: str = "") -> Awaitable[Any]:
    """The call that gives a person another email or user_id."""
    if kind == "email":
        return c.identity.UpdateEmail(UpdateEmailRequest(identifiers=who, new_email=new, request_id=request_id))
    return c.identity.UpdateUserId(UpdateUserIdRequest(identifiers=who, new_user_id=new, request_id=request_id))


async def rename(c: Client, who: Identifiers, kind: str, new: str) -> ProfileWrite:
    """Gives a person another email or user_id."""
    written: ProfileWrite = (await renaming(c, who, kind, new)).profile
    return written


async def get(c: Client, who: Identifiers) -> GetProfileResponse:
    """Reads a profile."""
    return await c.identity.GetProfile(GetProfileRequest(identifiers=who))


async def merge(c: Client, source: Identifiers, target: Identifiers) -> None:
    """Merges known people."""
    await c.identity.MergeProfiles(MergeProfilesRequest(source=source, target=target, allow_known_source=True))


async def outcome(call: Awaitable[Any]) -> Any:
    """The answer of a call, or its failure."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return read_failure(error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("project_type", "named_by"), NAMED_BY)
async def test_a_renamed_person_is_the_same_profile(
    make_project: MakeProject, world: World, project_type: str, named_by: str, kind: str
) -> None:
    """I12: fields, events, devices and anonymous ids follow, at every stage of a move that was under way, and the old
    name is free for somebody else."""
    c = await make_project(project_type)
    profile_id = await put(c, both("old"), data_fields_json='{"plan":"gold"}')
    await c.track(anonymous_id="x", name="visited")
    main = main_kind(project_type)
    await c.identity.Identify(IdentifyRequest(identifiers=only(main, "old"), anonymous_id="x"))
    await c.track(identifiers=only(main, "old"), name="bought")
    device = NewDevice(token="t", platform=PLATFORM_FCM, application_name="app")
    await c.devices.RegisterDevice(RegisterDeviceRequest(identifiers=only(main, "old"), device=device))
    before = (await get(c, only(main, "old"))).profile

    written = await rename(c, only(named_by, "old"), kind, value(kind, "new"))
    expected = Identifiers(
        email=value("email", "new" if kind == "email" else "old"), user_id="new" if kind == "user_id" else "old"
    )
    assert (written.profile_id, written.outcome) == (profile_id, WRITE_OUTCOME_UPDATED)
    assert written.identifiers == expected
    who = email(expected.email) if main == "email" else user(expected.user_id)
    await c.track(anonymous_id="x", name="late")
    after = (await get(c, who)).profile
    assert after.create_time == before.create_time
    assert after.profile_update_time.ToDatetime() > before.profile_update_time.ToDatetime()
    for _ in range(3):
        read = (await get(c, who)).profile
        assert (read.profile_id, read.identifiers) == (profile_id, expected)
        assert read.data_fields == before.data_fields
        assert sorted(await c.names(identifiers=who)) == ["bought", "late", "visited"]
        devices = (await c.devices.ListDevices(ListDevicesRequest(identifiers=who))).devices
        assert [each.token for each in devices] == ["t"]
        holders = (await c.devices.ListTokenHolders(ListTokenHoldersRequest(token="t"))).holders
        assert [holder.identifiers for holder in holders] == [expected]
        await world.work_off(c.project_id)
        await world.pass_time(c.project_id, timedelta(seconds=17))
    assert (await rename(c, who, kind, value(kind, "new"))).outcome == WRITE_OUTCOME_UNCHANGED
    if (project_type, kind) != ("USER_ID", "email"):
        old = LookupProfilesRequest(**{kind: value(kind, "old")})  # type: ignore[arg-type]  # one of two strings
        assert not (await c.identity.LookupProfiles(old)).profiles
    stranger = await put(c, both("s"))
    await rename(c, only(main, "s"), kind, value(kind, "old"))
    assert stranger != profile_id


@pytest.mark.parametrize(("project_type", "kind"), UNIQUE)
async def test_a_taken_name_is_refused(make_project: MakeProject, world: World, project_type: str, kind: str) -> None:
    """I12 P2: an identifier that is unique and somebody else's is ALREADY_EXISTS, and nothing happens."""
    c = await make_project(project_type)
    await put(c, both("a"))
    await put(c, both("b"))
    before = await rows_of(world, c.project_id)
    who = only(main_kind(project_type), "a")
    unknown = [] if project_type == "EMAIL" else [only(main_kind(project_type), "nobody")]
    for name in [who, *unknown]:
        taken = await failure(renaming(c, name, kind, value(kind, "b").upper() if kind == "email" else "b", "r"))
        assert (taken.code, taken.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDENTIFIER_TAKEN")
        assert taken.metadata == {"kind": kind}
        assert "b@example.com" not in taken.message
    assert await rows_of(world, c.project_id) == before


@pytest.mark.parametrize(("project_type", "kind"), SHARED)
async def test_a_shared_name_is_legal(make_project: MakeProject, project_type: str, kind: str) -> None:
    """I12 P2: where several may share an identifier, one may be given to a second person."""
    c = await make_project(project_type)
    ids = [await put(c, both(each)) for each in "ab"]
    main = main_kind(project_type)
    written = await rename(c, only(main, "b"), kind, value(kind, "a"))
    assert (written.profile_id, written.outcome) == (ids[1], WRITE_OUTCOME_UPDATED)
    for each in "ab":
        read = (await get(c, only(main, each))).profile
        assert getattr(read.identifiers, kind) == value(kind, "a")
    assert [(await get(c, only(main, each))).profile.profile_id for each in "ab"] == ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("project_type", "named_by"), NAMED_BY)
async def test_an_unknown_current_name(
    make_project: MakeProject, world: World, project_type: str, named_by: str, kind: str
) -> None:
    """I12 I5 I6: nobody there, an EMAIL project answers NOT_FOUND and stores nothing; the others create the person."""
    c = await make_project(project_type)
    before = await rows_of(world, c.project_id)
    call = renaming(c, only(named_by, "old"), kind, value(kind, "new"))
    if project_type == "EMAIL":
        missing = await failure(call)
        assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
        assert await rows_of(world, c.project_id) == before
        return
    written = (await call).profile
    assert written.outcome == WRITE_OUTCOME_CREATED
    expected = only(named_by, "old")
    expected.MergeFrom(only(kind, "new"))
    assert written.identifiers == expected
    who = user(expected.user_id) if expected.user_id else email(expected.email)
    read = (await get(c, who)).profile
    assert (read.profile_id, read.identifiers) == (written.profile_id, expected)
    assert read.signup_source == SIGNUP_SOURCE_PROFILE_UPDATE and not read.email_is_placeholder
    if named_by == kind:
        # What was replaced in the very call was never anybody's.
        assert (await failure(get(c, only(named_by, "old")))).reason == "PROFILE_NOT_FOUND"


@pytest.mark.parametrize("kind", KINDS)
async def test_an_ambiguous_user_id_renames_the_oldest_and_says_so(email_project: Client, kind: str) -> None:
    """I10 I12: by a user_id that several hold, the oldest is renamed, and the answer says how many hold it."""
    c = email_project
    ids = [await put(c, Identifiers(email=f"{each}@example.com", user_id="shared")) for each in "abc"]
    written = await rename(c, user("shared"), kind, value(kind, "new"))
    assert written.profile_id == ids[0]
    assert written.user_id_holder_count == 3


@pytest.mark.parametrize(("project_type", "kind"), UNIQUE)
async def test_a_name_that_a_merge_left_may_become_the_survivors_own(
    make_project: MakeProject, world: World, project_type: str, kind: str
) -> None:
    """I12 I17: the survivor of a merge may take the source's identifier for good; it stays theirs after 5 minutes."""
    c = await make_project(project_type)
    main = main_kind(project_type)
    await put(c, both("a"))
    survivor = await put(c, both("b"))
    await merge(c, only(main, "a"), only(main, "b"))
    written = await rename(c, only(main, "b"), kind, value(kind, "a"))
    assert (written.profile_id, written.outcome) == (survivor, WRITE_OUTCOME_UPDATED)
    assert getattr(written.identifiers, kind) == value(kind, "a")
    for _ in range(2):
        assert (await get(c, only(kind, "a"))).profile.profile_id == survivor
        gone = await failure(get(c, only(kind, "b")))
        assert gone.reason == "PROFILE_NOT_FOUND"
        await world.pass_time(c.project_id, timedelta(minutes=6))
    # The name that the survivor gave up is free.
    assert await put(c, Identifiers(**{"user_id": "other", kind: value(kind, "b")})) != survivor


@pytest.mark.parametrize(("project_type", "kind"), UNIQUE)
async def test_a_name_that_a_merge_left_is_taken_for_five_minutes(
    make_project: MakeProject, world: World, project_type: str, kind: str
) -> None:
    """I12 I17: a third person may have the source's identifier only when it no longer leads to the survivor."""
    c = await make_project(project_type)
    main = main_kind(project_type)
    ids = {each: await put(c, both(each)) for each in "abc"}
    await merge(c, only(main, "a"), only(main, "b"))
    taken = await failure(renaming(c, only(main, "c"), kind, value(kind, "a")))
    assert (taken.code, taken.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDENTIFIER_TAKEN")
    await world.pass_time(c.project_id, timedelta(minutes=4, seconds=50))
    assert (await get(c, only(kind, "a"))).profile.profile_id == ids["b"]
    await world.pass_time(c.project_id, timedelta(seconds=11))
    assert (await failure(get(c, only(kind, "a")))).reason == "PROFILE_NOT_FOUND"
    written = await rename(c, only(main, "c"), kind, value(kind, "a"))
    assert (written.profile_id, written.outcome) == (ids["c"], WRITE_OUTCOME_UPDATED)
    assert (await get(c, only(kind, "a"))).profile.profile_id == ids["c"]
    assert (await get(c, only(main, "b"))).profile.profile_id == ids["b"]


async def test_the_survivor_is_renamed_by_a_name_that_a_merge_left(email_project: Client) -> None:
    """I12 I17: named by the source's email, the survivor is renamed."""
    c = email_project
    await put(c, email("a@example.com"))
    survivor = await put(c, email("b@example.com"))
    await merge(c, email("a@example.com"), email("b@example.com"))
    written = await rename(c, email("a@example.com"), "email", "new@example.com")
    assert (written.profile_id, written.identifiers.email) == (survivor, "new@example.com")
    assert (await get(c, email("a@example.com"))).profile.profile_id == survivor


@pytest.mark.parametrize("how", ["rename", "update", "create"])
@pytest.mark.parametrize(("project_type", "kind"), SHARED)
async def test_a_shared_name_that_a_merge_left_may_be_anybodys(
    make_project: MakeProject, world: World, project_type: str, kind: str, how: str
) -> None:
    """I3 I12 I17: where several may share an identifier, one left by a merge is set on whoever it is given to."""
    c = await make_project(project_type)
    main = main_kind(project_type)
    await put(c, both("a"))
    await put(c, both("b"))
    await merge(c, only(main, "a"), only(main, "b"))
    who = only(main, "c")
    given = Identifiers(**{main: getattr(who, main), kind: value(kind, "a")})
    if how != "create":
        await put(c, both("c"))
    if how == "rename":
        await rename(c, who, kind, value(kind, "a"))
    else:
        await put(c, given)
    for _ in range(2):
        assert (await get(c, who)).profile.identifiers == given
        await world.pass_time(c.project_id, timedelta(minutes=6))


async def test_an_email_is_the_same_in_any_case(email_project: Client) -> None:
    """I1 I12: the person's own email in other letters changes nothing; a new one is stored lower-cased."""
    c = email_project
    await put(c, email("a@example.com"))
    assert (await rename(c, email("A@example.com"), "email", "A@EXAMPLE.COM")).outcome == WRITE_OUTCOME_UNCHANGED
    assert (await rename(c, email("a@example.com"), "email", "New@Example.COM")).identifiers.email == "new@example.com"


async def test_a_placeholder_gives_way_to_the_real_email_and_back(email_project: Client) -> None:
    """I9 I12: the real email replaces a generated placeholder, and a caller may name a placeholder itself."""
    c = email_project
    profile_id = await put(c, user("some-user-id"), prefer_user_id=True)
    assert (await get(c, user("some-user-id"))).profile.email_is_placeholder
    written = await rename(c, user("some-user-id"), "email", "real@example.com")
    assert (written.profile_id, written.email_is_placeholder) == (profile_id, False)
    assert not (await get(c, email("real@example.com"))).profile.email_is_placeholder
    assert (await rename(c, email("real@example.com"), "email", "me@placeholder.email")).email_is_placeholder


async def test_two_people_are_not_renamed_at_once(hybrid_project: Client, world: World) -> None:
    """I3 I12: current identifiers of two people are refused, and nothing happens."""
    c = hybrid_project
    await put(c, email("a@example.com"))
    await put(c, user("b"))
    before = await rows_of(world, c.project_id)
    for kind in KINDS:
        who = Identifiers(email="a@example.com", user_id="b")
        refused = await failure(renaming(c, who, kind, value(kind, "new")))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IDENTIFIERS_CONFLICT")
        assert refused.metadata == {"kinds": "email,user_id"}
    assert await rows_of(world, c.project_id) == before


@pytest.mark.parametrize(
    ("project_type", "who", "kind", "new", "fields"),
    [
        ("EMAIL", Identifiers(), "email", "", ["identifiers", "new_email"]),
        ("EMAIL", Identifiers(), "user_id", "", ["identifiers", "new_user_id"]),
        ("EMAIL", email("bad"), "email", "worse", ["identifiers.email", "new_email"]),
        ("EMAIL", email("a@example.com"), "email", "ü@example.com", ["new_email"]),
        ("EMAIL", email("a@example.com"), "email", "a\0@example.com", ["new_email"]),
        ("EMAIL", email("a@example.com"), "user_id", "u" * 53, ["new_user_id"]),
        ("USER_ID", email("a@example.com"), "email", "b@example.com", ["identifiers.email"]),
        ("USER_ID", user("a"), "user_id", "NULL", ["new_user_id"]),
        ("USER_ID", user("a"), "user_id", " a", ["new_user_id"]),
        ("HYBRID", Identifiers(email="bad", user_id="a"), "user_id", "b", ["identifiers.email"]),
        ("HYBRID", user("a"), "user_id", "[object Object]", ["new_user_id"]),
    ],
)
async def test_every_wrong_field_is_told(
    make_project: MakeProject,
    world: World,
    project_type: str,
    who: Identifiers,
    kind: str,
    new: str,
    fields: list[str],
) -> None:
    """I1 I2 P3 X2: INVALID_ARGUMENT names all wrong fields at once, and nothing happens."""
    c = await make_project(project_type)
    await put(c, both("a"))
    before = await rows_of(world, c.project_id)
    refused = await failure(renaming(c, who, kind, new, request_id="bad "))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
    assert sorted(refused.fields) == sorted([*fields, "request_id"])
    assert await rows_of(world, c.project_id) == before


@pytest.mark.parametrize("kind", KINDS)
async def test_request_ids(hybrid_project: Client, world: World, kind: str) -> None:
    """X1: the same request again gives the stored answer and no second effect, though the name was changed since; the
    id with another body is refused; after 24 hours it is free."""
    c = hybrid_project
    profile_id = await put(c, both("a"))
    other = "user_id" if kind == "email" else "email"
    first = await renaming(c, only(other, "a"), kind, value(kind, "b"), request_id="r")
    assert not first.replayed
    await rename(c, only(other, "a"), kind, value(kind, "c"))
    before = await rows_of(world, c.project_id)
    again = await renaming(c, only(other, "a"), kind, value(kind, "b"), request_id="r")
    assert again.replayed and again.profile == first.profile
    reused = await failure(renaming(c, only(other, "a"), kind, value(kind, "d"), request_id="r"))
    assert (reused.code, reused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    assert reused.metadata == {"request_id": "r"}
    assert await rows_of(world, c.project_id) == before
    await world.pass_time(c.project_id, timedelta(hours=24, seconds=1))
    fresh = await renaming(c, only(other, "a"), kind, value(kind, "d"), request_id="r")
    assert not fresh.replayed and fresh.profile.profile_id == profile_id
    assert (await get(c, only(kind, "d"))).profile.profile_id == profile_id


@pytest.mark.parametrize("project_type", TYPES)
async def test_two_who_want_one_name(make_project: MakeProject, project_type: str) -> None:
    """I12 P2: of two people given one unique name at once, one gets it and the other is refused; and of two who want
    each other's names neither waits for ever."""
    c = await make_project(project_type)
    main = main_kind(project_type)
    for index in range(10):
        a, b, new = f"a{index}", f"b{index}", f"new{index}"
        for each in (a, b):
            await put(c, both(each))
        answers = await asyncio.gather(
            *(outcome(renaming(c, only(main, each), main, value(main, new))) for each in (a, b))
        )
        refused = [answer for answer in answers if isinstance(answer, Failure)]
        assert [answer.reason for answer in refused] == ["IDENTIFIER_TAKEN"]
        loser = a if isinstance(answers[0], Failure) else b
        winner = next(answer.profile.profile_id for answer in answers if not isinstance(answer, Failure))
        assert (await get(c, only(main, new))).profile.profile_id == winner
        swapped = await asyncio.gather(
            outcome(renaming(c, only(main, loser), main, value(main, new))),
            outcome(renaming(c, only(main, new), main, value(main, loser))),
        )
        assert {answer.reason for answer in swapped if isinstance(answer, Failure)} == {"IDENTIFIER_TAKEN"}
        assert (await get(c, only(main, loser))).profile.profile_id != winner
