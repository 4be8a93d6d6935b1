"""Exclusive registrations: a phone or a browser that several people sign in on reaches the last one only."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from onefold.callers import IdentifierType
from onefold.config import Settings
from onefold.v1.device_pb2 import DISABLE_STATE_DONE, DISABLE_STATE_RUNNING, PLATFORM_FCM, PLATFORM_WEB
from onefold.v1.devices_service_pb2 import RegisterBrowserTokenResponse, RegisterDeviceResponse
from onefold.v1.identity_service_pb2 import ForgetProfileRequest
from onefold.v1.profile_pb2 import (
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_SKIPPED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
)
from onefold.workflows import disabling
from support.client import Client, email, failure, user
from support.devices import (
    Register,
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
from support.merging import chunks, merge, put, undo
from support.probes import eventually, held, rows_of, waits_for_lock
from support.traces import keys_with, tables_with
from support.world import World

MakeProject = Callable[..., Awaitable[Client]]

A, B, C = email("a@example.com"), email("b@example.com"), email("c@example.com")
BOTH_CALLS = pytest.mark.parametrize("call", [register, register_browser])


async def forget(client: Client, who: Identifiers) -> None:
    await client.identity.ForgetProfile(ForgetProfileRequest(identifiers=who))


# --- what it does -----------------------------------------------------------------------------------------------------


@BOTH_CALLS
async def test_every_other_copy_is_off_at_once(
    make_project: MakeProject, world: World, settings: Settings, call: Register
) -> None:
    """D5, D2, D3, X3: the others are off in both reads when the call returns, and the answer's disable tells progress;
    other tokens, and other projects that know the token, are not concerned."""
    client, elsewhere = await make_project(), await make_project()
    await call(client, A)
    await call(client, B)
    await call(client, A, "other-token")
    await call(elsewhere, A)
    await disable(client, identifiers=B)

    answer = await call(client, C, exclusive=True)
    assert (answer.profile.outcome, answer.device_outcome) == (WRITE_OUTCOME_CREATED, WRITE_OUTCOME_CREATED)
    assert (answer.disable.token, answer.disable.state, answer.disable.disabled_count) == (
        "T",
        DISABLE_STATE_RUNNING,
        0,
    )
    assert answer.disable == await get_disable(client, answer.disable.disable_id)

    async def rung() -> bool:
        return bool(await keys_with(settings.redis_url, answer.disable.disable_id))

    await eventually(rung)
    for _ in range(2):
        assert await enabled(client) == {"a@example.com": False, "b@example.com": False, "c@example.com": True}
        assert await enabled(client, "other-token") == {"a@example.com": True}
        assert await enabled(elsewhere) == {"a@example.com": True}
        await world.work_off(client.project_id)
    done = await get_disable(client, answer.disable.disable_id)
    # B's copy was off before, and C's is not one that is switched off.
    assert (done.state, done.disabled_count) == (DISABLE_STATE_DONE, 1)
    assert await world.open_intents(client.project_id) == 0


@BOTH_CALLS
async def test_signing_in_on_a_shared_phone(email_project: Client, world: World, call: Register) -> None:
    """D5: whoever signs in is the only one who is reached, though nobody signs out, whether workers run or not."""
    for number, person in enumerate([A, B, C, A, A, B]):
        answer = await call(email_project, person, exclusive=True)
        assert answer.HasField("disable") is (number > 0)
        on = {address for address, is_on in (await enabled(email_project)).items() if is_on}
        assert on == {person.email}
        if number % 2:
            await world.work_off(email_project.project_id)
    assert answer.device_outcome == WRITE_OUTCOME_UPDATED
    # Registering what is on already is no change, and still switches the others off.
    await call(email_project, A)
    again = await call(email_project, B, exclusive=True)
    assert again.device_outcome == WRITE_OUTCOME_UNCHANGED
    for _ in range(2):
        assert await enabled(email_project) == {"a@example.com": False, "b@example.com": True, "c@example.com": False}
        await world.work_off(email_project.project_id)
    # Without the flag nobody else is concerned.
    await call(email_project, A)
    assert await enabled(email_project) == {"a@example.com": True, "b@example.com": True, "c@example.com": False}


@BOTH_CALLS
async def test_nobody_else_no_disable(email_project: Client, world: World, call: Register) -> None:
    """D5: where nobody else holds the token the answer has no disable, and no work is left to a worker."""
    await call(email_project, B, "other-token")
    for outcome in (WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UNCHANGED):
        answer = await call(email_project, A, exclusive=True)
        assert answer.device_outcome == outcome
        assert not answer.HasField("disable")
    rows = await rows_of(world, email_project.project_id)
    assert rows["token_disables"] == rows["intents"] == []
    assert await enabled(email_project) == {"a@example.com": True}


async def test_both_calls_know_the_same_holders(email_project: Client) -> None:
    """D5, D2: registered exclusively by one call, a browser is switched off for who registered it by the other."""
    await register(email_project, A, platform=PLATFORM_WEB)
    await register_browser(email_project, B, exclusive=True)
    assert await enabled(email_project) == {"a@example.com": False, "b@example.com": True}
    await register(email_project, A, platform=PLATFORM_WEB, exclusive=True)
    assert await enabled(email_project) == {"a@example.com": True, "b@example.com": False}


# --- what does not happen ---------------------------------------------------------------------------------------------


@BOTH_CALLS
async def test_skipped_or_refused_it_switches_nobody_off(
    make_project: MakeProject, world: World, call: Register
) -> None:
    """D5, D6, I3, I7, I14, F42, X1, X2: a registration that is not made disables nobody and stores nothing."""
    client, hybrid = await make_project(), await make_project(IdentifierType.HYBRID)
    for project in (client, hybrid):
        await call(project, A)
        await call(project, email("full@example.com"), "2nd", request_id="used")
    [copy] = await devices(client, email("full@example.com"))
    platform = PLATFORM_WEB if call is register_browser else PLATFORM_FCM
    await hold_devices(world, client.project_id, copy.profile_id, platform, 499)
    await forget(client, email("gone@example.com"))
    await call(hybrid, user("u1"), "2nd")
    before = [await rows_of(world, project.project_id) for project in (client, hybrid)]

    skipped = await call(client, B, exclusive=True, update_existing_only=True)
    assert skipped.profile.outcome == skipped.device_outcome == WRITE_OUTCOME_SKIPPED
    assert not skipped.HasField("disable")
    two = Identifiers(email="a@example.com", user_id="u1")
    refused: list[tuple[Awaitable[object], str]] = [
        (call(client, email("full@example.com"), exclusive=True), "DEVICE_LIMIT"),
        (call(client, user("nobody"), exclusive=True), "PROFILE_NOT_FOUND"),
        (call(client, email("gone@example.com"), exclusive=True), "FORGOTTEN"),
        (call(client, B, exclusive=True, request_id="used"), "REQUEST_ID_REUSED"),
        (call(client, B, exclusive=True, request_id="\n"), "FIELDS_INVALID"),
        (call(hybrid, two, exclusive=True), "IDENTIFIERS_CONFLICT"),
    ]
    for attempt, reason in refused:
        assert (await failure(attempt)).reason == reason
    assert [await rows_of(world, project.project_id) for project in (client, hybrid)] == before
    assert await enabled(client) == {"a@example.com": True}


@pytest.mark.parametrize("work_before", [False, True])
@BOTH_CALLS
async def test_a_late_retry_changes_nothing(
    email_project: Client, world: World, call: Register, work_before: bool
) -> None:
    """F49, D4, D5, X1: an exclusive registration sent again gives the stored answer, its disable included, and switches
    nobody off who has registered since."""
    await call(email_project, B)
    first = await call(email_project, A, exclusive=True, request_id="r1")
    assert first.disable.token == "T"
    await call(email_project, B)
    await disable(email_project, identifiers=A)
    if work_before:
        await world.work_off(email_project.project_id)
    before = await rows_of(world, email_project.project_id)

    again = await call(email_project, A, exclusive=True, request_id="r1")
    assert again.replayed
    again.replayed = False
    assert again == first
    assert await rows_of(world, email_project.project_id) == before
    for _ in range(2):
        assert await enabled(email_project) == {"a@example.com": False, "b@example.com": True}
        await world.work_off(email_project.project_id)
    # The flag is part of the request.
    reused = await failure(call(email_project, A, request_id="r1"))
    assert reused.reason == "REQUEST_ID_REUSED"


# --- at the same time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False), (True, True)])
async def test_the_second_waits_for_the_first(
    email_project: Client, world: World, settings: Settings, first: bool, second: bool
) -> None:
    """D5, F47, pinned: of an exclusive registration and another one in flight, the second waits, and decides."""
    await register(email_project, C)
    request_id = str(uuid4())
    async with held(settings.database_url, claim(email_project, request_id)) as other:
        # The first has done its work and waits for the fate of the same request_id.
        one = asyncio.create_task(register(email_project, A, exclusive=first, request_id=request_id))
        await waits_for_lock(world)
        two = asyncio.create_task(register(email_project, B, exclusive=second))
        await waits_for_lock(world, 2)
        await other.rollback()
        await one
        assert (await two).HasField("disable") is second
    for _ in range(2):
        assert await enabled(email_project) == {
            "a@example.com": not second,
            "b@example.com": True,
            "c@example.com": False,
        }
        await world.work_off(email_project.project_id)


async def test_many_exclusive_registrations_at_once(email_project: Client, world: World) -> None:
    """D5: however many people sign in on one phone at one time, exactly one is reached, before and after the work."""
    for round_number in range(15):
        token = f"T{round_number}"
        people = [email(f"p{number}@example.com") for number in range(5)]
        answers = await asyncio.gather(*(register(email_project, who, token, exclusive=True) for who in people))
        # All but the first to commit found somebody to switch off.
        assert sum(answer.HasField("disable") for answer in answers) == 4
        told = await enabled(email_project, token)
        assert sorted(told.values()) == [False] * 4 + [True]
        await world.work_off(email_project.project_id)
        assert await enabled(email_project, token) == told


@pytest.mark.parametrize("beside", ["disable", "merge", "merge of oneself", "undo"])
async def test_beside_other_changes_many_rounds(make_project: MakeProject, world: World, beside: str) -> None:
    """D5, D4, D7, F47, I19: beside a disable for all, a merge or an undo at the same time, all others are off."""
    for round_number in range(8):
        client = await make_project()
        for who in (A, B) if round_number % 2 else (B, A):
            await register(client, who)
        signs_in = C
        change: Awaitable[object]
        if beside == "disable":
            change = disable(client)
        elif beside == "merge":
            change = merge(client, A, B)
        elif beside == "merge of oneself":
            # The registration is made for A before the merge, or for B, to whom A's name leads after it.
            signs_in, change = A, merge(client, A, B)
            await register(client, C)
        else:
            change = undo(client, (await merge(client, A, B)).merge.merge_id)
        registering = register(client, signs_in, exclusive=True)
        await asyncio.gather(*((change, registering) if round_number % 4 > 1 else (registering, change)))
        told = await enabled(client)
        on = {address for address, is_on in told.items() if is_on}
        if beside == "disable":
            # The registration if it came second, else nobody.
            assert on <= {"c@example.com"}
        else:
            assert on == {"b@example.com" if beside == "merge of oneself" else "c@example.com"}
        await world.settle(client.project_id)
        assert await enabled(client) == told


async def test_over_10000_holders(email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """D5, D4, F48: one of 10,000 holders signs in exclusively and is the only one reached at once; while the worker
    goes on, those who register are on too, in every read."""
    monkeypatch.setattr(disabling, "CHUNK_COPIES", 2_000)
    await hold_token(world, email_project.project_id, 10_000)
    on = {"p5000@example.com"}
    answer = await register(email_project, email("p5000@example.com"), exclusive=True)

    async def read_all() -> None:
        told = await holders(email_project)
        assert len(told) == len({holder.device.profile_id for holder in told})
        assert {holder.identifiers.email for holder in told if holder.device.endpoint_enabled} == on

    await read_all()
    lease = await world.take(email_project.project_id, UUID(answer.disable.disable_id))
    assert lease is not None
    position: Any = None
    for chunk in range(10):
        people = [f"p{9_999 - chunk}@example.com", f"p{chunk}@example.com", f"new{chunk}@example.com"]
        position, *_ = await asyncio.gather(
            world.chunk(lease, position), *(register(email_project, email(person)) for person in people)
        )
        on.update(people)
        if chunk % 3 == 0 or position is None:
            await read_all()
        if position is None:
            break
    assert position is None
    assert (await get_disable(email_project, answer.disable.disable_id)).state == DISABLE_STATE_DONE
    off = await world.value(
        "SELECT count(*) FROM devices WHERE project_id = $1 AND NOT endpoint_enabled", email_project.project_id
    )
    assert off == len(await holders(email_project)) - len(on)


# --- merged and forgotten holders -------------------------------------------------------------------------------------


async def test_a_merged_holder_counts_until_the_copy_is_off(email_project: Client, world: World) -> None:
    """D5, D8, I19: the copy that an undo would bring back is switched off with the others', once."""
    visitor = user("0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11")
    await put(email_project, A)
    await register(email_project, visitor, prefer_user_id=True)
    merged = await merge(email_project, visitor, A)
    assert (await register(email_project, A, exclusive=True)).HasField("disable")
    await world.settle(email_project.project_id)
    assert not (await register(email_project, A, exclusive=True)).HasField("disable")
    await undo(email_project, merged.merge.merge_id)
    assert [device.endpoint_enabled for device in await devices(email_project, visitor)] == [False]
    assert [device.endpoint_enabled for device in await devices(email_project, A)] == [True]


async def test_a_merge_between_the_chunks(email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """D5, D7, F51: merged while the worker is anywhere among the copies, the people it is at are off, and stay off."""
    monkeypatch.setattr(disabling, "CHUNK_COPIES", 1)
    pairs = [(email(f"s{n}@example.com"), email(f"t{n}@example.com")) for n in range(3)]
    for source, target in pairs:
        for who in (source, target) if source != pairs[1][0] else (target, source):
            await put(email_project, who)
        await register(email_project, source)
    await register(email_project, A, exclusive=True)
    left = list(pairs)
    merges = []
    async for _ in chunks(world, email_project.project_id):
        if left:
            merges.append((await merge(email_project, *left.pop())).merge.merge_id)
        assert {address for address, is_on in (await enabled(email_project)).items() if is_on} == {"a@example.com"}
    await world.settle(email_project.project_id)
    for merge_id in merges:
        await undo(email_project, merge_id)
        assert {address for address, is_on in (await enabled(email_project)).items() if is_on} == {"a@example.com"}


async def test_a_forgotten_holder_is_nobody(email_project: Client, world: World) -> None:
    """D5, I20: somebody who was forgotten holds nothing, so there is nobody to switch off."""
    await register(email_project, A)
    await forget(email_project, A)
    answer = await register(email_project, C, exclusive=True)
    assert not answer.HasField("disable")
    assert await enabled(email_project) == {"c@example.com": True}


@pytest.mark.parametrize("forgotten", [A, C])
async def test_forgetting_in_the_middle_of_the_work(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, forgotten: Identifiers
) -> None:
    """D5, I20: whether a holder or the one who signed in is forgotten meanwhile, the others stay as they are."""
    monkeypatch.setattr(disabling, "CHUNK_COPIES", 1)
    for person in (A, B):
        await register(email_project, person)
    answer = await register(email_project, C, exclusive=True)
    expected = {"a@example.com": False, "b@example.com": False, "c@example.com": True}
    del expected[forgotten.email]
    lease = await world.take(email_project.project_id, UUID(answer.disable.disable_id))
    assert lease is not None
    position = await world.chunk(lease)
    await forget(email_project, forgotten)
    while position is not None:
        assert await enabled(email_project) == expected
        position = await world.chunk(lease, position)
    assert (await get_disable(email_project, answer.disable.disable_id)).state == DISABLE_STATE_DONE
    await world.settle(email_project.project_id)
    assert await enabled(email_project) == expected


@BOTH_CALLS
async def test_nothing_of_the_token_stays(email_project: Client, world: World, call: Register) -> None:
    """F43, I20, X1: when the last holder is forgotten, no table holds the token, stored answers of registrations and
    disables included."""
    token = f"canary{secrets.token_hex(8)}"
    await call(email_project, A, token, request_id="r1")
    answer = await call(email_project, B, token, exclusive=True, request_id="r2")
    assert isinstance(answer, RegisterDeviceResponse | RegisterBrowserTokenResponse)
    first = await disable(email_project, token, request_id="r3")
    again = await disable(email_project, token, request_id="r3")
    assert first.disable.token == again.disable.token == answer.disable.token == token
    for person in (B, A):
        assert await tables_with(world, token) != set()
        await forget(email_project, person)
    # The people's own entries in the activity log are out of sight, and erased with their events.
    assert await tables_with(world, token) - {"intents", "activities"} == set()
    await world.settle(email_project.project_id)
    assert await tables_with(world, token) == set()
