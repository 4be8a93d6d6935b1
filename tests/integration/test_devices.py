"""Devices: registering, switching off for one and for all, and what reads show meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest

from onefold.callers import IdentifierType
from onefold.config import Settings
from onefold.intents.rules import IntentKind
from onefold.intents.store import Lease
from onefold.v1.device_pb2 import (
    DISABLE_STATE_DONE,
    DISABLE_STATE_RUNNING,
    DISABLE_STATE_STUCK,
    PLATFORM_APNS,
    PLATFORM_APNS_SANDBOX,
    PLATFORM_FCM,
    PLATFORM_WEB,
    NewDevice,
    Platform,
)
from onefold.v1.devices_service_pb2 import (
    GetDisableRequest,
    ListDevicesRequest,
    ListTokenHoldersRequest,
    RegisterDeviceRequest,
    RegisterDeviceResponse,
)
from onefold.v1.identity_service_pb2 import UpdateProfileRequest
from onefold.v1.profile_pb2 import (
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_SKIPPED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
)
from onefold.workflows import disabling
from onefold.workflows.run import CHUNKS
from support.client import Client, email, failure, user
from support.devices import (
    claim,
    devices,
    disable,
    enabled,
    get_disable,
    hold_devices,
    hold_token,
    holders,
    register,
    register_browser,
)
from support.merging import put_unknown
from support.probes import eventually, held, rows_of, waits_for_lock
from support.world import World

MakeProject = Callable[..., Awaitable[Client]]

A, B, C = email("a@example.com"), email("b@example.com"), email("c@example.com")
NOBODY = "0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11"


# --- registering ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", [PLATFORM_APNS, PLATFORM_APNS_SANDBOX, PLATFORM_FCM, PLATFORM_WEB])
async def test_a_registered_device_is_there(email_project: Client, platform: Platform.ValueType) -> None:
    """D1, D2, D6, X3: a device of any platform is read back whole by either list, as soon as the call has returned."""
    answer = await register(email_project, A, "T", platform, '{"model":"one","n":1}')
    assert answer.device_outcome == WRITE_OUTCOME_CREATED
    assert answer.profile.outcome == WRITE_OUTCOME_CREATED
    assert not answer.replayed

    [device] = await devices(email_project, A)
    assert (device.token, device.platform, device.application_name) == ("T", platform, "shop")
    assert device.data_fields_json == '{"model":"one","n":1}'
    assert device.HasField("endpoint_enabled")
    assert device.endpoint_enabled
    assert device.profile_id == answer.profile.profile_id
    assert device.create_time == device.update_time

    [holder] = await holders(email_project)
    assert holder.identifiers == A
    assert dict(holder.device.data_fields.items()) == {"model": "one", "n": 1.0}
    holder.device.data_fields_json = device.data_fields_json
    assert holder.device == device


async def test_again_updates_merges_and_enables(email_project: Client) -> None:
    """D1: registering again replaces platform and application, merges the fields and switches the copy on."""
    await register(email_project, A, "T", PLATFORM_APNS, '{"kept":1,"replaced":{"a":1}}')
    [first] = await devices(email_project, A)
    await disable(email_project, identifiers=A)

    again = await register(email_project, A, "T", PLATFORM_FCM, '{"replaced":{"b":2}}', "other")
    assert again.device_outcome == WRITE_OUTCOME_UPDATED
    [device] = await devices(email_project, A)
    assert (device.platform, device.application_name, device.endpoint_enabled) == (PLATFORM_FCM, "other", True)
    assert device.data_fields_json == '{"kept":1,"replaced":{"b":2}}'
    assert device.create_time == first.create_time

    same = await register(email_project, A, "T", PLATFORM_FCM, '{"kept":1}', "other")
    assert same.device_outcome == WRITE_OUTCOME_UNCHANGED
    assert await devices(email_project, A) == [device]


@pytest.mark.parametrize(
    ("identifier_type", "identifiers", "request_fields"),
    [
        (IdentifierType.EMAIL, A, {}),
        (IdentifierType.EMAIL, Identifiers(email="a@example.com", user_id="u1"), {}),
        (IdentifierType.EMAIL, user("u1"), {"prefer_user_id": True}),
        (IdentifierType.USER_ID, user("u1"), {}),
        (IdentifierType.HYBRID, user("u1"), {}),
        (IdentifierType.HYBRID, A, {}),
        (IdentifierType.HYBRID, Identifiers(email="a@example.com", user_id="u1"), {}),
    ],
)
async def test_whom_a_registration_creates(
    make_project: MakeProject, identifier_type: IdentifierType, identifiers: Identifiers, request_fields: dict[str, Any]
) -> None:
    """D1, D8, I5, I6, I7: each way to name a person who is not there makes the profile, and its devices work."""
    client = await make_project(identifier_type)
    answer = await register(client, identifiers, **request_fields)
    assert answer.profile.outcome == WRITE_OUTCOME_CREATED
    assert answer.profile.email_is_placeholder is bool(request_fields)

    again = await register(client, identifiers, "T2", PLATFORM_WEB, **request_fields)
    assert again.profile.profile_id == answer.profile.profile_id
    assert again.profile.outcome == WRITE_OUTCOME_UNCHANGED
    assert [device.token for device in await devices(client, identifiers)] == ["T", "T2"]
    [holder] = await holders(client)
    assert holder.identifiers == answer.profile.identifiers
    assert (await disable(client, identifiers=identifiers)).outcome == WRITE_OUTCOME_UPDATED
    assert [device.endpoint_enabled for device in await devices(client, identifiers)] == [False, True]


async def test_a_visitors_devices(email_project: Client, world: World) -> None:
    """D8: the devices of an unknown profile are registered, listed and disabled as anybody's."""
    visitor = user(NOBODY)
    await register(email_project, visitor, prefer_user_id=True)
    await put_unknown(email_project, world, visitor)
    again = await register(email_project, visitor, fields='{"a":1}')
    assert (again.profile.outcome, again.device_outcome) == (WRITE_OUTCOME_UNCHANGED, WRITE_OUTCOME_UPDATED)
    await register_browser(email_project, visitor, "browser")
    await disable(email_project, identifiers=visitor)
    assert [(d.token, d.endpoint_enabled) for d in await devices(email_project, visitor)] == [
        ("T", False),
        ("browser", True),
    ]
    [holder] = await holders(email_project)
    assert (holder.identifiers.user_id, holder.device.endpoint_enabled) == (NOBODY, False)


async def test_who_is_not_created(email_project: Client, hybrid_project: Client, world: World) -> None:
    """I7, I14, I3, X2: nobody there by user_id alone, update_existing_only, two people named: nothing is written."""
    before = await rows_of(world, email_project.project_id)
    missing = await failure(register(email_project, user("u1")))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    skipped = await register(email_project, A, update_existing_only=True)
    assert skipped.profile.outcome == skipped.device_outcome == WRITE_OUTCOME_SKIPPED
    assert await rows_of(world, email_project.project_id) == before

    await register(hybrid_project, A)
    await register(hybrid_project, user("u1"), "T2")
    before = await rows_of(world, hybrid_project.project_id)
    two = Identifiers(email="a@example.com", user_id="u1")
    conflict = await failure(register(hybrid_project, two, "T3"))
    assert (conflict.code, conflict.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IDENTIFIERS_CONFLICT")
    assert conflict.metadata == {"kinds": "email,user_id"}
    assert await rows_of(world, hybrid_project.project_id) == before


@pytest.mark.parametrize("limited", [PLATFORM_APNS, PLATFORM_WEB])
async def test_500_devices_and_500_browser_tokens(
    email_project: Client, world: World, limited: Platform.ValueType
) -> None:
    """D6: the 500th of either sort is taken; the 501st is refused, naming the limit, and nothing of it is stored."""
    other = PLATFORM_WEB if limited != PLATFORM_WEB else PLATFORM_FCM
    profile_id = (await email_project.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))).profile.profile_id
    await hold_devices(world, email_project.project_id, profile_id, limited, 499)
    await hold_devices(world, email_project.project_id, profile_id, other, 500)
    assert (await register(email_project, A, "last", limited)).device_outcome == WRITE_OUTCOME_CREATED

    before = await rows_of(world, email_project.project_id)
    for platform in (limited, other):
        refused = await failure(register(email_project, A, "one too many", platform))
        assert refused.fields == ["device.token"]  # A token has no spaces.
        refused = await failure(
            register(email_project, Identifiers(email="a@example.com", user_id="new"), "one-too-many", platform)
        )
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_LIMIT")
        assert refused.metadata == {"limit": "500"}
    assert await rows_of(world, email_project.project_id) == before

    # What is held may still be registered again, and another person is not concerned.
    assert (await register(email_project, A, "last", limited, '{"a":1}')).device_outcome == WRITE_OUTCOME_UPDATED
    assert (await register(email_project, B, "last", limited)).device_outcome == WRITE_OUTCOME_CREATED
    assert len(await devices(email_project, A)) == 1_000


async def test_the_limit_holds_for_a_changed_platform(email_project: Client, world: World) -> None:
    """D6: a device that turns into a browser token counts as one, so the 501st cannot come in by that door."""
    profile_id = (await register(email_project, A, "T", PLATFORM_APNS)).profile.profile_id
    await hold_devices(world, email_project.project_id, profile_id, PLATFORM_WEB, 500)
    refused = await failure(register(email_project, A, "T", PLATFORM_WEB))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_LIMIT")


async def test_the_limit_holds_for_two_at_once(email_project: Client, world: World) -> None:
    """D6: of several last registrations at one time exactly one finds room."""
    profile_id = (await email_project.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))).profile.profile_id
    await hold_devices(world, email_project.project_id, profile_id, PLATFORM_APNS, 499)
    results = await asyncio.gather(
        *(register(email_project, A, f"new-{number}") for number in range(6)), return_exceptions=True
    )
    assert sum(isinstance(result, RegisterDeviceResponse) for result in results) == 1
    assert len(await devices(email_project, A)) == 500


# --- wrong input ------------------------------------------------------------------------------------------------------


async def test_every_wrong_field_is_named(email_project: Client, world: World) -> None:
    """X2, X5: a bad request is INVALID_ARGUMENT and lists all that is wrong with it at once."""
    before = await rows_of(world, email_project.project_id)
    stub = email_project.devices
    wrong: list[tuple[Awaitable[object], list[str]]] = [
        (
            stub.RegisterDevice(RegisterDeviceRequest(request_id=" x")),
            ["identifiers", "device.token", "device.platform", "device.application_name", "request_id"],
        ),
        (
            stub.RegisterDevice(
                RegisterDeviceRequest(
                    identifiers=email("no address"),
                    device=NewDevice(
                        token="t" * 1_025,
                        platform=99,  # type: ignore[arg-type]  # an unknown number is the point
                        application_name="n" * 101,
                        data_fields_json="[]",
                    ),
                    request_id="r" * 129,
                )
            ),
            [
                *("identifiers.email", "device.token", "device.platform", "device.application_name"),
                *("device.data_fields_json", "request_id"),
            ],
        ),
        (
            register(email_project, A, "sp ace", application_name="line\nbreak"),
            ["device.token", "device.application_name"],
        ),
        (register(email_project, A, "tök", application_name="nul\0"), ["device.token", "device.application_name"]),
        (register(email_project, A, fields='{"a":"' + "x" * 16_000 + '"}'), ["device.data_fields_json"]),
        (register(email_project, A, fields='{"a":NaN}'), ["device.data_fields_json"]),
        (register(email_project, A, fields='{"a":"\\u0000"}'), ["device.data_fields_json.a"]),
        (disable(email_project, "", request_id="\n"), ["token", "request_id"]),
        (disable(email_project, "tök", identifiers=email("no address")), ["token", "identifiers.email"]),
        (disable(email_project, "T", identifiers=Identifiers()), ["identifiers"]),
        (stub.GetDisable(GetDisableRequest()), ["disable_id"]),
        (stub.GetDisable(GetDisableRequest(disable_id="{" + NOBODY + "}")), ["disable_id"]),
        (stub.ListDevices(ListDevicesRequest(page_size=-1)), ["page_size", "identifiers"]),
        (stub.ListDevices(ListDevicesRequest(profile_id="x", page_size=-1)), ["page_size", "profile_id"]),
        (stub.ListTokenHolders(ListTokenHoldersRequest(page_size=-1)), ["page_size", "token"]),
    ]
    for call, fields in wrong:
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID"), fields
        assert sorted(refused.fields) == sorted(fields)
    assert await rows_of(world, email_project.project_id) == before


async def test_limits_are_inclusive(email_project: Client) -> None:
    """X5: a token of 1,024 bytes, a name of 100 and fields of 16 kB are good, and come back as they were."""
    token, name, fields = "t" * 1_024, "n" * 100, '{"a":"' + "x" * (16_000 - 8) + '"}'
    assert len(fields) == 16_000
    await register(email_project, A, token, fields=fields, application_name=name)
    [device] = await devices(email_project, A)
    assert (device.token, device.application_name, device.data_fields_json) == (token, name, fields)


async def test_what_is_not_there(email_project: Client, user_id_project: Client, world: World) -> None:
    """D3, X2, F73: a token, profile or disable that is missing is NOT_FOUND; another project's looks just the same."""
    await register(email_project, A)
    await email_project.identity.UpdateProfile(UpdateProfileRequest(identifiers=B))
    elsewhere = await disable(email_project)
    before = await rows_of(world, email_project.project_id)

    nothing: list[tuple[Awaitable[object], str]] = [
        (disable(email_project, "unknown"), "DEVICE_NOT_FOUND"),
        (disable(email_project, identifiers=B), "DEVICE_NOT_FOUND"),
        (disable(email_project, identifiers=C), "PROFILE_NOT_FOUND"),
        (devices(email_project, C), "PROFILE_NOT_FOUND"),
        (email_project.devices.ListDevices(ListDevicesRequest(profile_id=NOBODY)), "PROFILE_NOT_FOUND"),
        (get_disable(email_project, NOBODY), "DISABLE_NOT_FOUND"),
    ]
    for call, reason in nothing:
        missing = await failure(call)
        assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, reason)
    assert await holders(email_project, "unknown") == []

    [own] = await devices(email_project, A)
    by_id = ListDevicesRequest(profile_id=own.profile_id)
    pairs: list[tuple[Awaitable[object], Awaitable[object]]] = [
        (disable(user_id_project, "T"), disable(user_id_project, "unknown")),
        (get_disable(user_id_project, elsewhere.disable.disable_id), get_disable(user_id_project, NOBODY)),
        (
            user_id_project.devices.ListDevices(by_id),
            user_id_project.devices.ListDevices(ListDevicesRequest(profile_id=NOBODY)),
        ),
    ]
    for real, made_up in pairs:
        assert await failure(real) == await failure(made_up)
    assert await holders(user_id_project) == []
    assert await rows_of(world, email_project.project_id) == before


# --- reading ----------------------------------------------------------------------------------------------------------


async def test_pages(email_project: Client) -> None:
    """D6: pages of any size yield each device once, by token, and each holder once, the oldest profile first."""
    tokens = ["b", "B", "a2", "a10", "c", "~", "!"]
    for token in tokens:
        await register(email_project, A, token)
    for person in (C, B):
        await register(email_project, person, "c")
    for page_size in (1, 2, 3, 7, 100):
        assert [device.token for device in await devices(email_project, A, page_size)] == sorted(tokens)
        assert [h.identifiers for h in await holders(email_project, "c", page_size)] == [A, C, B]

    page = await email_project.devices.ListDevices(ListDevicesRequest(identifiers=A, page_size=1))
    for request in (
        ListDevicesRequest(identifiers=B, page_token=page.next_page_token),
        ListDevicesRequest(identifiers=A, page_token="x" + page.next_page_token),
    ):
        refused = await failure(email_project.devices.ListDevices(request))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_a_page_fits_into_a_message(email_project: Client, world: World) -> None:
    """D6, X5: however large the devices are, a page never exceeds a message, and the pages together have them all."""
    for number in range(300):
        fields = '{"a":"' + "x" * 15_900 + '"}'
        await register(email_project, A, f"t{number:03}", PLATFORM_WEB if number % 2 else PLATFORM_FCM, fields)
    page = await email_project.devices.ListDevices(ListDevicesRequest(identifiers=A, page_size=500))
    assert 0 < len(page.devices) < 300
    assert [device.token for device in await devices(email_project, A)] == [f"t{number:03}" for number in range(300)]


# --- switching off ----------------------------------------------------------------------------------------------------


async def test_disable_for_one(email_project: Client, world: World) -> None:
    """D3, D5, F50: only the named person's copy is off; the row stays, and nobody else's changes."""
    await register(email_project, A, fields='{"a":1}')
    await register(email_project, A, "T2")
    await register(email_project, B)
    b_before = await devices(email_project, B)

    answer = await disable(email_project, identifiers=A)
    assert answer.outcome == WRITE_OUTCOME_UPDATED
    assert not answer.HasField("disable")
    [own, own2] = await devices(email_project, A)
    assert (own.endpoint_enabled, own.HasField("endpoint_enabled"), own.data_fields_json) == (False, True, '{"a":1}')
    assert own2.endpoint_enabled
    assert await devices(email_project, B) == b_before
    assert await world.open_intents(email_project.project_id) == 0

    assert (await disable(email_project, identifiers=A)).outcome == WRITE_OUTCOME_UNCHANGED
    assert await devices(email_project, A) == [own, own2]


@pytest.mark.parametrize("work_before", [False, True])
async def test_disable_for_one_after_all(email_project: Client, world: World, work_before: bool) -> None:
    """D3, D4, F50: a copy that a disable for all has switched off stays off when it is disabled once more."""
    await register(email_project, A)
    await register(email_project, B)
    everywhere = await disable(email_project)
    if work_before:
        await world.work_off(email_project.project_id)
    before = await devices(email_project, A)
    assert (await disable(email_project, identifiers=A)).outcome == WRITE_OUTCOME_UNCHANGED
    for _ in range(2):
        assert await devices(email_project, A) == before
        assert before[0].update_time == everywhere.disable.create_time
        assert await enabled(email_project) == {"a@example.com": False, "b@example.com": False}
        await world.work_off(email_project.project_id)


async def test_two_share_a_phone(email_project: Client, world: World) -> None:
    """D5: sign-in registers, sign-out disables: at every time the phone reaches just the one who is signed in."""
    for person, other in [(A, B), (B, A), (A, B)]:
        await register(email_project, person)
        told = await enabled(email_project)
        assert told[person.email]
        assert not told.get(other.email, False)
        await disable(email_project, identifiers=person)
        assert not any((await enabled(email_project)).values())


@pytest.mark.parametrize("chunk_copies", [1, 2, 3, 5, 6])
async def test_disable_for_all_at_every_stage(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, chunk_copies: int
) -> None:
    """D3, D4: from the answer on every copy is off in both reads, before, between and after the worker's chunks.

    A person who registers at any of these stages is on from then on, others are not; progress counts a copy once.
    """
    monkeypatch.setattr(disabling, "CHUNK_COPIES", chunk_copies)
    people = [email(f"p{number}@example.com") for number in range(6)]
    for person in people:
        await register(email_project, person)
    await register(email_project, people[0], "T2")
    await disable(email_project, identifiers=people[3])

    answer = await disable(email_project)
    assert answer.outcome == WRITE_OUTCOME_UPDATED
    assert answer.disable.token == "T"
    assert answer.disable.state == DISABLE_STATE_RUNNING
    assert answer.disable.disabled_count == 0
    disable_id = answer.disable.disable_id
    expected = {person.email: False for person in people}
    assert await enabled(email_project) == expected
    [copy, other_token] = await devices(email_project, people[0])
    assert copy.update_time == answer.disable.create_time
    assert other_token.endpoint_enabled

    [intent_id] = await world.due(email_project.project_id)
    lease = await world.take(email_project.project_id, intent_id)
    assert lease is not None
    position: Any = None
    stage = registered = switched_before = 0
    while True:
        # The last person registers before the first chunk, the one before them after it.
        if stage < 2:
            late = people[-1 - stage]
            # Whether the worker has been there already: then the copy was switched off, and counted, before it is on.
            switched_before += await world.value(
                "SELECT NOT endpoint_enabled FROM devices JOIN profiles USING (project_id, profile_id) "
                "WHERE project_id = $1 AND token = 'T' AND email = $2",
                email_project.project_id,
                late.email,
            )
            await register(email_project, late)
            expected[late.email] = True
            registered += 1
        assert await enabled(email_project) == expected
        now = await get_disable(email_project, disable_id)
        assert now.state == DISABLE_STATE_RUNNING
        assert not now.HasField("finish_time")
        position = await world.chunk(lease, position)
        stage += 1
        assert await enabled(email_project) == expected
        if position is None:
            break

    done = await get_disable(email_project, disable_id)
    assert done.state == DISABLE_STATE_DONE
    assert done.HasField("finish_time")
    # One of the six was off before.
    assert done.disabled_count == 5 - registered + switched_before
    assert await world.open_intents(email_project.project_id) == 0
    off = await world.value(
        "SELECT count(*) FROM devices WHERE project_id = $1 AND token = 'T' AND NOT endpoint_enabled",
        email_project.project_id,
    )
    assert off == 6 - registered

    # A registration after it all is on, too, and a second disable counts just the copies that are on.
    await register(email_project, people[0])
    assert (await enabled(email_project))[people[0].email]
    again = await disable(email_project)
    await world.work_off(email_project.project_id)
    assert not any((await enabled(email_project)).values())
    assert (await get_disable(email_project, again.disable.disable_id)).disabled_count == registered + 1


async def test_several_disables_and_registrations_in_a_row(email_project: Client, world: World) -> None:
    """D4: with the work of several disables still open, each copy follows the last thing that happened to it."""
    for person in (A, B, C):
        await register(email_project, person)
    first = await disable(email_project)
    await register(email_project, A)
    await register(email_project, B)
    second = await disable(email_project)
    await register(email_project, B)
    await disable(email_project, identifiers=B)
    await register(email_project, C)
    expected = {"a@example.com": False, "b@example.com": False, "c@example.com": True}
    assert await enabled(email_project) == expected
    # The workers may take the younger one first.
    for intent_id in (second.disable.disable_id, first.disable.disable_id):
        lease = await world.take(email_project.project_id, UUID(intent_id))
        assert lease is not None
        assert await world.chunk(lease) is None
        assert await enabled(email_project) == expected


async def test_stuck_is_told_and_reads_stay_right(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D3, F26: a fan-out that the workers gave up is STUCK in GetDisable, and the token is off in every read."""

    async def broken(connection: object, lease: Lease, position: object) -> None:
        raise RuntimeError("this chunk always fails")

    monkeypatch.setitem(CHUNKS, IntentKind.DISABLE, broken)
    await register(email_project, A)
    answer = await disable(email_project)
    for _ in range(12):
        assert (await get_disable(email_project, answer.disable.disable_id)).state == DISABLE_STATE_RUNNING
        await world.work_off(email_project.project_id)
        await world.pass_time(email_project.project_id, timedelta(minutes=11))
    stuck = await get_disable(email_project, answer.disable.disable_id)
    assert (stuck.state, stuck.disabled_count, stuck.HasField("finish_time")) == (DISABLE_STATE_STUCK, 0, False)
    assert await enabled(email_project) == {"a@example.com": False}
    await register(email_project, A)
    assert await enabled(email_project) == {"a@example.com": True}


# --- at the same time -------------------------------------------------------------------------------------------------


async def test_register_beside_disable_many_rounds(email_project: Client, world: World) -> None:
    """F47, D4: whichever order the database gave a registration and a disable, reads follow it, and the worker too."""
    await register(email_project, B)
    for round_number in range(30):
        token = f"T{round_number}"
        await register(email_project, A, token)
        await register(email_project, B, token)
        answered: list[str] = []

        async def registers(token: str = token, answered: list[str] = answered) -> None:
            await register(email_project, A, token, fields='{"a":1}')
            answered.append("register")

        async def disables(token: str = token, answered: list[str] = answered) -> None:
            await disable(email_project, token)
            answered.append("disable")

        calls = [registers(), disables()] if round_number % 2 else [disables(), registers()]
        await asyncio.gather(*calls)
        told = await enabled(email_project, token)
        # Numbers are handed out in the order of the commits.
        registered_later = await world.value(
            "SELECT devices.operation_number > token_disables.operation_number FROM devices JOIN token_disables "
            "USING (project_id, token) JOIN profiles USING (project_id, profile_id) "
            "WHERE project_id = $1 AND token = $2 AND email = 'a@example.com'",
            email_project.project_id,
            token,
        )
        assert told == {"a@example.com": registered_later, "b@example.com": False}
        if answered == ["disable", "register"]:
            assert told["a@example.com"]
        await world.work_off(email_project.project_id)
        assert await enabled(email_project, token) == told


async def test_a_disable_waits_for_a_registration_that_came_first(
    email_project: Client, world: World, settings: Settings
) -> None:
    """F47, pinned: a disable that comes while a registration is being committed takes effect after it."""
    await register(email_project, A)
    request_id = str(uuid4())
    async with held(settings.database_url, claim(email_project, request_id)) as other:
        # The registration has done its work and waits for the fate of the same request_id.
        registering = asyncio.create_task(register(email_project, A, request_id=request_id))
        await waits_for_lock(world)
        disabling_all = asyncio.create_task(disable(email_project))
        await waits_for_lock(world, 2)
        await other.rollback()
        await registering
        await disabling_all
    assert await enabled(email_project) == {"a@example.com": False}
    await world.work_off(email_project.project_id)
    assert await enabled(email_project) == {"a@example.com": False}


async def test_a_registration_answered_after_a_disable_of_the_same_copy_is_on(
    email_project: Client, world: World, settings: Settings
) -> None:
    """D4, F47, pinned: a registration acknowledged after a disable of that very copy was stays on.

    It began while the copy was on and found nothing to change; the disable came before it was committed.
    """
    await register(email_project, A)
    request_id = str(uuid4())
    async with held(settings.database_url, claim(email_project, request_id)) as other:
        registering = asyncio.create_task(register(email_project, A, request_id=request_id))
        await waits_for_lock(world)
        disabling_one = asyncio.create_task(disable(email_project, identifiers=A))

        async def decided() -> bool:
            waiting = await world.value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database() AND application_name = 'onefold server'"
            )
            return disabling_one.done() or waiting >= 2

        await eventually(decided)
        disabled_first = disabling_one.done()
        await other.rollback()
        await registering
        await disabling_one
    # Either the disable waited and came second, or it was first and the registration, answered later, stands.
    assert await enabled(email_project) == {"a@example.com": disabled_first}


async def test_disable_over_10000_holders(email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """F48, D3, D4: while a disable works over 10,000 holders, those who register are on in every read, others off."""
    monkeypatch.setattr(disabling, "CHUNK_COPIES", 1_000)
    await hold_token(world, email_project.project_id, 10_000)
    answer = await disable(email_project)
    on: set[str] = set()

    async def read_all() -> None:
        told = await holders(email_project)
        assert len(told) == len({holder.device.profile_id for holder in told})
        assert {holder.identifiers.email for holder in told if holder.device.endpoint_enabled} == on

    await read_all()
    [intent_id] = await world.due(email_project.project_id)
    lease = await world.take(email_project.project_id, intent_id)
    assert lease is not None
    position: Any = None
    for chunk in range(20):
        # One who will be worked through, one who has been, one who never held the token: at once with the chunk.
        people = [f"p{9_999 - chunk}@example.com", f"p{chunk}@example.com", f"new{chunk}@example.com"]
        position, *_ = await asyncio.gather(
            world.chunk(lease, position), *(register(email_project, email(person)) for person in people)
        )
        on.update(people)
        if chunk % 4 == 0 or position is None:
            await read_all()
        if position is None:
            break
    assert position is None
    await read_all()
    done = await get_disable(email_project, answer.disable.disable_id)
    assert done.state == DISABLE_STATE_DONE
    off = await world.value(
        "SELECT count(*) FROM devices WHERE project_id = $1 AND NOT endpoint_enabled", email_project.project_id
    )
    assert off == len(await holders(email_project)) - len(on)


@pytest.mark.parametrize("work_before", [False, True])
@pytest.mark.parametrize("by", ["one", "all"])
async def test_a_late_retry_changes_nothing(email_project: Client, world: World, by: str, work_before: bool) -> None:
    """F49, D4, X1: an old registration sent again after a disable gives the stored answer and leaves the device off."""
    await register(email_project, B)
    first = await register(email_project, A, request_id="r1")
    await disable(email_project, identifiers=A if by == "one" else None)
    if work_before:
        await world.work_off(email_project.project_id)
    before = await rows_of(world, email_project.project_id)

    again = await register(email_project, A, request_id="r1")
    assert again.replayed
    again.replayed = False
    assert again == first
    assert await rows_of(world, email_project.project_id) == before
    expected = {"b@example.com": by == "one", "a@example.com": False}
    assert await enabled(email_project) == expected
    await world.work_off(email_project.project_id)
    assert await enabled(email_project) == expected
