"""RegisterBrowserToken: what is its own. For exclusive see test_exclusive.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from onefold.callers import IdentifierType
from onefold.v1.device_pb2 import PLATFORM_APNS, PLATFORM_WEB
from onefold.v1.devices_service_pb2 import RegisterBrowserTokenRequest, RegisterBrowserTokenResponse
from onefold.v1.identity_service_pb2 import GetProfileRequest, UpdateProfileRequest
from onefold.v1.profile_pb2 import (
    SIGNUP_SOURCE_DEVICE,
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
)
from support.client import Client, email, failure, user
from support.devices import devices, disable, enabled, hold_devices, holders, register, register_browser
from support.probes import rows_of
from support.world import World

MakeProject = Callable[..., Awaitable[Client]]

A = email("a@example.com")
LONG = "u" * 60


async def test_a_browser_token_is_there(email_project: Client) -> None:
    """D2, D6, X3: a browser token makes the profile and is read back whole, as a device of platform WEB, by either
    list."""
    answer = await register_browser(email_project, A, fields='{"browser":"one","n":1}')
    assert (answer.profile.outcome, answer.device_outcome) == (WRITE_OUTCOME_CREATED, WRITE_OUTCOME_CREATED)
    assert not answer.replayed
    assert not answer.HasField("disable")
    [device] = await devices(email_project, A)
    assert (device.token, device.platform, device.application_name) == ("T", PLATFORM_WEB, "web")
    assert device.data_fields_json == '{"browser":"one","n":1}'
    assert device.endpoint_enabled
    assert device.profile_id == answer.profile.profile_id
    [holder] = await holders(email_project)
    assert holder.identifiers == A
    assert dict(holder.device.data_fields.items()) == {"browser": "one", "n": 1.0}
    profile = (await email_project.identity.GetProfile(GetProfileRequest(identifiers=A))).profile
    assert profile.signup_source == SIGNUP_SOURCE_DEVICE


async def test_it_is_the_same_as_a_device_of_platform_web(email_project: Client) -> None:
    """D1, D2: RegisterDevice with WEB and RegisterBrowserToken write one copy; an application not named stays."""
    await register(email_project, A, "T", PLATFORM_WEB, '{"kept":1,"replaced":{"a":1}}', "pizza.example.com")
    same = await register_browser(email_project, A)
    assert same.device_outcome == WRITE_OUTCOME_UNCHANGED
    await disable(email_project, identifiers=A)
    again = await register_browser(email_project, A, fields='{"replaced":{"b":2}}')
    assert again.device_outcome == WRITE_OUTCOME_UPDATED
    [device] = await devices(email_project, A)
    assert (device.platform, device.application_name) == (PLATFORM_WEB, "pizza.example.com")
    assert (device.endpoint_enabled, device.data_fields_json) == (True, '{"kept":1,"replaced":{"b":2}}')

    named = await register_browser(email_project, A, application_name="shop.example.com")
    assert named.device_outcome == WRITE_OUTCOME_UPDATED
    assert (await register(email_project, A, "T", PLATFORM_WEB, "", "shop.example.com")).device_outcome == (
        WRITE_OUTCOME_UNCHANGED
    )
    [device] = await devices(email_project, A)
    assert device.application_name == "shop.example.com"


async def test_it_is_disabled_as_a_device_is(email_project: Client, world: World) -> None:
    """D2, D3, D4, F50: off for one or for all, and on again by a registration made after."""
    other = email("b@example.com")
    for person in (A, other):
        await register_browser(email_project, person)
    assert (await disable(email_project, identifiers=A)).outcome == WRITE_OUTCOME_UPDATED
    assert await enabled(email_project) == {"a@example.com": False, "b@example.com": True}
    await disable(email_project)
    await register_browser(email_project, A)
    for _ in range(2):
        assert await enabled(email_project) == {"a@example.com": True, "b@example.com": False}
        await world.work_off(email_project.project_id)


async def test_500_browser_tokens(email_project: Client, world: World) -> None:
    """D6: beside 500 devices the 500th browser token is taken; the 501st is refused, and nothing of it is stored."""
    profile_id = (await email_project.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))).profile.profile_id
    await hold_devices(world, email_project.project_id, profile_id, PLATFORM_APNS, 500)
    await hold_devices(world, email_project.project_id, profile_id, PLATFORM_WEB, 499)
    assert (await register_browser(email_project, A, "last")).device_outcome == WRITE_OUTCOME_CREATED
    before = await rows_of(world, email_project.project_id)
    refused = await failure(register_browser(email_project, A, "one-too-many"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_LIMIT")
    assert refused.metadata == {"limit": "500"}
    assert "500 browser tokens" in refused.message
    # A device is none of the browser tokens until it is registered as one.
    refused = await failure(register_browser(email_project, A, f"{PLATFORM_APNS}-1"))
    assert refused.reason == "DEVICE_LIMIT"
    assert await rows_of(world, email_project.project_id) == before
    assert (await register_browser(email_project, A, "last", '{"a":1}')).device_outcome == WRITE_OUTCOME_UPDATED


@pytest.mark.parametrize("identifier_type", IdentifierType)
async def test_no_prefer_user_id(make_project: MakeProject, identifier_type: IdentifierType) -> None:
    """I7, I6, I8, D8: a user_id alone makes nobody in EMAIL projects, but finds whom another call made under a
    placeholder, however long the user_id is; elsewhere it makes the person, if it is not too long."""
    assert "prefer_user_id" not in RegisterBrowserTokenRequest.DESCRIPTOR.fields_by_name
    client = await make_project(identifier_type)
    if identifier_type is not IdentifierType.EMAIL:
        assert (await register_browser(client, user("u1"))).profile.outcome == WRITE_OUTCOME_CREATED
        assert (await failure(register_browser(client, user(LONG)))).fields == ["identifiers.user_id"]
        return
    for user_id in ("u1", LONG):
        missing = await failure(register_browser(client, user(user_id)))
        assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
        await register(client, user(user_id), "phone", prefer_user_id=True)
        found = await register_browser(client, user(user_id), user_id)
        assert (found.profile.outcome, found.profile.email_is_placeholder) == (WRITE_OUTCOME_UNCHANGED, True)
        assert [device.token for device in await devices(client, user(user_id))] == ["phone", user_id]


async def test_every_wrong_field_is_named(email_project: Client, world: World) -> None:
    """X2, X5, I1: a bad request is INVALID_ARGUMENT and lists all that is wrong with it at once."""
    before = await rows_of(world, email_project.project_id)
    wrong: list[tuple[Awaitable[object], list[str]]] = [
        (
            email_project.devices.RegisterBrowserToken(RegisterBrowserTokenRequest(request_id=" x")),
            ["browser_token", "identifiers", "request_id"],
        ),
        (
            register_browser(
                email_project, email("no address"), "t" * 1_025, "[]", application_name="n" * 101, request_id="r" * 129
            ),
            ["application_name", "browser_token", "data_fields_json", "identifiers.email", "request_id"],
        ),
        (register_browser(email_project, A, "sp ace"), ["browser_token"]),
        (register_browser(email_project, A, "tök", application_name="nul\0"), ["application_name", "browser_token"]),
        (register_browser(email_project, A, fields='{"a":"' + "x" * 16_000 + '"}'), ["data_fields_json"]),
        (register_browser(email_project, A, fields='{"a":"\\u0000"}'), ["data_fields_json.a"]),
        (register_browser(email_project, A, data_fields={"a": float("nan")}), ["data_fields.a"]),
    ]
    for call, fields in wrong:
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID"), fields
        assert sorted(refused.fields) == fields
    assert await rows_of(world, email_project.project_id) == before

    token, name, fields_text = "t" * 1_024, "n" * 100, '{"a":"' + "x" * (16_000 - 8) + '"}'
    await register_browser(email_project, A, token, fields_text, application_name=name)
    [device] = await devices(email_project, A)
    assert (device.token, device.application_name, device.data_fields_json) == (token, name, fields_text)


@pytest.mark.parametrize(
    "changed",
    [
        {"identifiers": email("b@example.com")},
        {"browser_token": "T2"},
        {"application_name": "shop"},
        {"data_fields_json": '{"a":2}'},
        {"update_existing_only": True},
        {"exclusive": True},
    ],
)
async def test_a_request_id_makes_it_safe_to_send_again(
    email_project: Client, world: World, changed: dict[str, Any]
) -> None:
    """X1, F49: the same request gives the stored answer and changes nothing, though the copy was disabled since; any
    other body under the id is refused."""
    request = RegisterBrowserTokenRequest(
        identifiers=Identifiers(email="a@example.com"), browser_token="T", data_fields_json='{"a":1}', request_id="r1"
    )
    first: RegisterBrowserTokenResponse = await email_project.devices.RegisterBrowserToken(request)
    await disable(email_project)
    before = await rows_of(world, email_project.project_id)
    again = await email_project.devices.RegisterBrowserToken(request)
    assert again.replayed
    again.replayed = False
    assert again == first
    request.MergeFrom(RegisterBrowserTokenRequest(**changed))
    refused = await failure(email_project.devices.RegisterBrowserToken(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    assert await rows_of(world, email_project.project_id) == before
    assert await enabled(email_project) == {"a@example.com": False}
