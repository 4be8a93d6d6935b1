"""Looking people up by an identifier that several may hold."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.device_pb2 import PLATFORM_APNS, NewDevice
from onefold.v1.devices_service_pb2 import RegisterDeviceRequest
from onefold.v1.event_pb2 import EVENT_KIND_PURCHASE
from onefold.v1.identity_service_pb2 import (
    BatchUpdateProfilesRequest,
    DeleteProfileRequest,
    GetProfileRequest,
    IdentifyRequest,
    LookupProfilesRequest,
    MergeProfilesRequest,
    ProfileUpdate,
    UpdateProfileRequest,
    UpdateUserIdRequest,
)
from onefold.v1.profile_pb2 import Identifiers, Profile
from support.client import Client, email, failure, user
from support.world import World


async def put(c: Client, identifiers: Identifiers, fields: str = "{}") -> str:
    """Writes a profile; returns its id."""
    answer = await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=identifiers, data_fields_json=fields))
    return answer.profile.profile_id


async def sharing(c: Client, count: int) -> list[str]:
    """Profiles that share a user_id; returns their ids, the oldest first."""
    updates = [
        ProfileUpdate(identifiers=Identifiers(email=f"p{index}@example.com", user_id="shared"))
        for index in range(count)
    ]
    answer = await c.identity.BatchUpdateProfiles(BatchUpdateProfilesRequest(updates=updates))
    return [result.profile.profile_id for result in answer.results]


async def pages(c: Client, **request: Any) -> list[list[Profile]]:
    """All pages of a look-up."""
    found: list[list[Profile]] = []
    token = ""
    while not found or token:
        page = await c.identity.LookupProfiles(LookupProfilesRequest(page_token=token, **request))
        found.append(list(page.profiles))
        token = page.next_page_token
    return found


async def holders(c: Client, **request: Any) -> list[str]:
    """The ids of all holders, in order."""
    return [profile.profile_id for page in await pages(c, **request) for profile in page]


async def test_all_holders_oldest_first(email_project: Client) -> None:
    """I10: a look-up lists every holder of a shared user_id once, oldest first, page by page."""
    c = email_project
    ids = await sharing(c, 7)
    await put(c, Identifiers(email="other@example.com", user_id="Shared"))
    found = await pages(c, user_id="shared", page_size=3)
    assert [[profile.profile_id for profile in page] for page in found] == [ids[:3], ids[3:6], ids[6:]]
    assert [profile.identifiers.email for page in found for profile in page] == [
        f"p{index}@example.com" for index in range(7)
    ]
    # A last page that is just full has no successor.
    assert [len(page) for page in await pages(c, user_id="shared", page_size=7)] == [7]
    assert await holders(c, email="P3@Example.com") == [ids[3]]


@pytest.mark.parametrize(("page_size", "expected"), [(0, [50, 50, 50, 50, 50, 50, 50, 50, 50, 50, 2]), (501, [500, 2])])
async def test_page_sizes(email_project: Client, page_size: int, expected: list[int]) -> None:
    """I10: a page has 50 profiles if nothing is said, and 500 at most."""
    ids = await sharing(email_project, 502)
    found = await pages(email_project, user_id="shared", page_size=page_size)
    assert [len(page) for page in found] == expected
    assert [profile.profile_id for page in found for profile in page] == ids


async def test_pages_end_at_three_mebibytes(email_project: Client) -> None:
    """I10 X5: large profiles make small pages, and each of them is on one."""
    c = email_project
    ids = await sharing(c, 5)
    for index in range(5):
        await put(c, email(f"p{index}@example.com"), json.dumps({"big": "x" * 900_000}))
    found = await pages(c, user_id="shared", data_format=DATA_FORMAT_JSON)
    assert [[profile.profile_id for profile in page] for page in found] == [ids[:3], ids[3:]]


async def test_by_user_id_alone_the_oldest_is_taken(email_project: Client) -> None:
    """I10: every call by an ambiguous user_id takes the oldest and says how many hold it; whoever is the oldest now."""
    c = email_project
    ids = await sharing(c, 3)
    await put(c, Identifiers(email="single@example.com", user_id="single"))

    async def counts(who: Identifiers) -> set[tuple[str, int]]:
        read = await c.identity.GetProfile(GetProfileRequest(identifiers=who))
        device = NewDevice(token="t", platform=PLATFORM_APNS, application_name="app")
        written = [
            (await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=who))).profile,
            (await c.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="x"))).profile,
            (await c.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=device))).profile,
        ]
        return {(read.profile.profile_id, read.user_id_holder_count)} | {
            (each.profile_id, each.user_id_holder_count) for each in written
        }

    assert await counts(user("shared")) == {(ids[0], 3)}
    assert {count for _, count in await counts(user("single"))} == {0}
    # By email nothing is ambiguous.
    assert await counts(Identifiers(email="p1@example.com", user_id="shared")) == {(ids[1], 0)}
    await c.track(identifiers=user("shared"), name="bought", kind=EVENT_KIND_PURCHASE)
    assert await c.names(profile_id=ids[0]) == ["bought"]

    await c.identity.UpdateUserId(UpdateUserIdRequest(identifiers=email("p0@example.com"), new_user_id="own"))
    assert await counts(user("shared")) == {(ids[1], 2)}
    await c.identity.DeleteProfile(DeleteProfileRequest(profile_id=ids[1]))
    assert await counts(user("shared")) == {(ids[2], 0)}
    # The oldest is the oldest profile, not the one that got the user_id first.
    await put(c, Identifiers(email="p0@example.com", user_id="shared"))
    assert await counts(user("shared")) == {(ids[0], 2)}
    assert await holders(c, user_id="shared") == [ids[0], ids[2]]


async def test_nobody_and_somebody_elsewhere(make_project: MakeProject) -> None:
    """I10 P6: an identifier that nobody has here is an empty page, whoever has it in another project."""
    here, elsewhere = await make_project("HYBRID"), await make_project("HYBRID")
    await put(elsewhere, Identifiers(email="a@example.com", user_id="a"))
    assert await pages(here, email="a@example.com") == [[]]
    assert await pages(here, user_id="a") == [[]]
    mine = await put(here, Identifiers(email="a@example.com", user_id="a"))
    assert await holders(here, email="a@example.com") == await holders(here, user_id="a") == [mine]


async def test_a_user_id_project_looks_up_by_user_id_only(user_id_project: Client) -> None:
    """P3: look-ups follow the keys by which a project names people, so USER_ID refuses one by email."""
    c = user_id_project
    profile_id = await put(c, Identifiers(email="a@example.com", user_id="a"))
    assert await holders(c, user_id="a") == [profile_id]
    refused = await failure(c.identity.LookupProfiles(LookupProfilesRequest(email="a@example.com")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
    assert refused.fields == ["email"]


async def test_a_name_that_a_merge_left_is_looked_up_for_five_minutes(email_project: Client, world: World) -> None:
    """I10 I17: a merged person's email leads to the survivor for 5 minutes, then to nobody; a shared user_id that the
    merge left counts the survivor once."""
    c = email_project
    await put(c, Identifiers(email="a@example.com", user_id="shared"))
    survivor = await put(c, Identifiers(email="b@example.com", user_id="shared"))
    other = await put(c, Identifiers(email="c@example.com", user_id="shared"))
    await c.identity.MergeProfiles(
        MergeProfilesRequest(source=email("a@example.com"), target=email("b@example.com"), allow_known_source=True)
    )
    assert await holders(c, email="a@example.com") == [survivor]
    for _ in range(2):
        assert await holders(c, user_id="shared") == [survivor, other]
        read = await c.identity.GetProfile(GetProfileRequest(identifiers=user("shared")))
        assert (read.profile.profile_id, read.user_id_holder_count) == (survivor, 2)
        await world.pass_time(c.project_id, timedelta(minutes=5, seconds=1))
    assert await holders(c, email="a@example.com") == []


@pytest.mark.parametrize(
    ("request_fields", "fields"),
    [
        ({"email": "bad"}, ["email"]),
        ({"email": ""}, ["email"]),
        ({"user_id": "null"}, ["user_id"]),
        ({"user_id": "a\0"}, ["user_id"]),
        ({"user_id": "u" * 257}, ["user_id"]),
        ({"email": "bad", "page_size": -1, "data_format": 9}, ["data_format", "email", "page_size"]),
    ],
)
async def test_wrong_look_ups(email_project: Client, request_fields: dict[str, Any], fields: list[str]) -> None:
    """I1 I2 X2: a look-up that names nobody rightly is INVALID_ARGUMENT with all its wrong fields."""
    refused = await failure(email_project.identity.LookupProfiles(LookupProfilesRequest(**request_fields)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
    assert sorted(refused.fields) == fields


async def test_a_look_up_for_nothing(email_project: Client) -> None:
    """X2: a look-up by neither identifier is INVALID_ARGUMENT, with what is missing."""
    refused = await failure(email_project.identity.LookupProfiles(LookupProfilesRequest()))
    assert (refused.code, refused.reason, len(refused.fields)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "FIELDS_INVALID",
        1,
    )


async def test_page_tokens_are_of_one_look_up(email_project: Client) -> None:
    """X2: a page token is good for the look-up that gave it, with any page_size, and for no other."""
    c = email_project
    ids = await sharing(c, 3)
    first = await c.identity.LookupProfiles(LookupProfilesRequest(user_id="shared", page_size=1))
    token = first.next_page_token
    rest = await c.identity.LookupProfiles(LookupProfilesRequest(user_id="shared", page_size=2, page_token=token))
    assert [profile.profile_id for profile in rest.profiles] == ids[1:]
    for request in (
        LookupProfilesRequest(user_id="other", page_token=token),
        LookupProfilesRequest(email="shared@example.com", page_token=token),
        LookupProfilesRequest(user_id="shared", page_token=token, data_format=DATA_FORMAT_JSON),
        LookupProfilesRequest(user_id="shared", page_token=token[:-4]),
        LookupProfilesRequest(user_id="shared", page_token="ü"),
        LookupProfilesRequest(user_id="shared", page_token="WzFd"),
    ):
        refused = await failure(c.identity.LookupProfiles(request))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
