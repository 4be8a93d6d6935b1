"""Consent: recorded, taken back, required, and gone with its person."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.config import Settings
from onefold.v1.activation_service_pb2 import RecordConsentRequest
from onefold.v1.consent_pb2 import DeviceInfo
from onefold.v1.identity_service_pb2 import DeleteProfileRequest, ForgetProfileRequest
from onefold.v1.profile_pb2 import WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UNCHANGED, Identifiers
from onefold.workflows.retention import purge
from support.client import Client, email, failure, timestamp, user
from support.holding import held, until_waiting
from support.merging import identify, merge, person, put
from support.probes import rows_of
from support.visitors import consent, make_unknown, switch
from support.world import World

TYPES = ["EMAIL", "USER_ID", "HYBRID"]
VISITOR = "6f1c1f63-8a51-4b0e-9d51-1f0ab1c2d3e4"
PHONE = DeviceInfo(device_id="canary-device", platform="iOS", application_name="Pizza")


async def records(world: World, client: Client) -> int:
    """How many consents a project holds."""
    count: int = await world.value("SELECT count(*) FROM consents WHERE project_id = $1", client.project_id)
    return count


async def test_consent_is_recorded_with_what_was_told(hybrid_project: Client, world: World) -> None:
    """U8: the time, whether it was known who it is, and the device; for a visitor, a UUID to come, and a person."""
    now = await world.now()
    told = timestamp(now - timedelta(hours=1))
    profile_id = await put(hybrid_project, email("ada@example.com"))
    for holder, whose in (
        ({"anonymous_id": "x"}, ""),
        ({"identifiers": user(VISITOR)}, ""),
        ({"identifiers": email("ada@example.com")}, profile_id),
    ):
        answer = await consent(hybrid_project, decision_time=told, is_known=True, device=PHONE, **holder)
        assert answer.profile_id == whose
        assert answer.consent.is_given
        assert (answer.consent.consent_time, answer.consent.is_known, answer.consent.device) == (told, True, PHONE)
        assert not answer.consent.HasField("withdraw_time")
        assert answer.consent.record_time.ToDatetime(now.tzinfo) >= now
    untold = await consent(hybrid_project, anonymous_id="y")
    assert untold.consent.consent_time == untold.consent.record_time
    assert (untold.consent.is_known, untold.consent.HasField("device")) == (False, False)
    ahead = await consent(hybrid_project, anonymous_id="z", decision_time=timestamp(now + timedelta(days=9)))
    assert ahead.consent.consent_time == ahead.consent.record_time


HOURS = {"given": 3, "taken back": 2, "given again": 1}


@pytest.mark.parametrize("order", list(itertools.permutations(HOURS)))
@pytest.mark.parametrize("last", ["given", "taken back", "given again"])
async def test_the_last_decision_stands_in_whatever_order_it_is_told(
    hybrid_project: Client, world: World, order: tuple[str, ...], last: str
) -> None:
    """U8: decisions told late, twice or out of order end up as if they had been told when they were made."""
    now = await world.now()
    known = list(HOURS)[: list(HOURS).index(last) + 1]
    for name in [name for name in order if name in known] * 2:
        answer = await consent(
            hybrid_project,
            anonymous_id="x",
            decision_time=timestamp(now - timedelta(hours=HOURS[name])),
            is_withdrawn=name == "taken back",
            device=DeviceInfo(device_id=name),
        )
    assert answer.consent.is_given == (last != "taken back")
    assert answer.consent.device.device_id == ("given" if last == "taken back" else last)


async def test_taking_back_wins_at_the_same_moment(hybrid_project: Client, world: World) -> None:
    """U8: given and taken back at one moment is taken back, whichever is told first."""
    moment = timestamp(await world.now())
    for order, holder in (([False, True], "x"), ([True, False], "y")):
        for is_withdrawn in order:
            answer = await consent(hybrid_project, anonymous_id=holder, decision_time=moment, is_withdrawn=is_withdrawn)
        assert not answer.consent.is_given


@pytest.mark.parametrize("kind", TYPES)
async def test_a_project_may_require_consent(make_project: MakeProject, world: World, kind: str) -> None:
    """U8: with require_consent no unknown profile is made without consent, nor after it was taken back; else it is."""
    client = await make_project(kind)
    await switch(client, require_consent=True)
    for given in (None, False):
        if given is not None:
            await consent(client, identifiers=user(VISITOR))
            await consent(client, identifiers=user(VISITOR), is_withdrawn=True)
        refused = await failure(make_unknown(client, VISITOR))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONSENT_REQUIRED")
    assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", client.project_id) == 0
    await consent(client, identifiers=user(VISITOR), device=PHONE)
    made = await make_unknown(client, VISITOR)
    assert made.profile.outcome == WRITE_OUTCOME_CREATED
    # The profile is there: what is decided now is its own, and it stays.
    taken = await consent(client, identifiers=user(VISITOR), is_withdrawn=True)
    assert taken.profile_id == made.profile.profile_id
    assert (taken.consent.is_given, taken.consent.device) == (False, PHONE)
    assert (await make_unknown(client, VISITOR)).profile.outcome == WRITE_OUTCOME_UNCHANGED
    assert await records(world, client) == 1


async def test_others_consent_is_not_ones_own(hybrid_project: Client) -> None:
    """U8: consent under another UUID, or under an anonymous_id of the same text, counts for nothing."""
    await switch(hybrid_project, require_consent=True)
    await consent(hybrid_project, identifiers=user(VISITOR.upper()))
    await consent(hybrid_project, anonymous_id=VISITOR)
    assert (await failure(make_unknown(hybrid_project, VISITOR))).reason == "CONSENT_REQUIRED"


async def test_consent_taken_back_while_a_profile_is_made(
    hybrid_project: Client, settings: Settings, world: World
) -> None:
    """U8: a profile that is being made comes before the withdrawal that meets it, or is refused after it."""
    await switch(hybrid_project, require_consent=True)
    await consent(hybrid_project, identifiers=user(VISITOR))
    claim = (
        "INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive) VALUES ($1, 2, $2, uuidv7(), true)"
    )

    async def take_back() -> Any:
        return await consent(hybrid_project, identifiers=user(VISITOR), is_withdrawn=True)

    async with held(settings, claim, hybrid_project.project_id, VISITOR):
        making = asyncio.create_task(make_unknown(hybrid_project, VISITOR))
        await until_waiting(world, 1)
        taking = asyncio.create_task(take_back())
        await until_waiting(world, 2)
    assert (await making).profile.outcome == WRITE_OUTCOME_CREATED
    await taking

    other = VISITOR.upper()
    await consent(hybrid_project, identifiers=user(other))
    hold = "UPDATE consents SET withdraw_time = now() WHERE project_id = $1"
    async with held(settings, hold, hybrid_project.project_id):
        making = asyncio.create_task(make_unknown(hybrid_project, other))
        await until_waiting(world, 1)
    # What held it was rolled back, so the consent stands.
    assert (await making).profile.outcome == WRITE_OUTCOME_CREATED


async def test_a_withdrawal_that_commits_first_counts(hybrid_project: Client, settings: Settings, world: World) -> None:
    """U8: a profile whose making waits for a withdrawal is refused when that is committed."""
    await switch(hybrid_project, require_consent=True)
    await consent(hybrid_project, identifiers=user(VISITOR))
    async with held(settings, "SELECT FROM consents WHERE project_id = $1 FOR UPDATE", hybrid_project.project_id):
        taking = asyncio.create_task(_take_back(hybrid_project))
        await until_waiting(world, 1)
        making = asyncio.create_task(make_unknown(hybrid_project, VISITOR))
        await until_waiting(world, 2)
    await taking
    assert (await failure(making)).reason == "CONSENT_REQUIRED"


async def _take_back(client: Client) -> None:
    await consent(client, identifiers=user(VISITOR), is_withdrawn=True)


@pytest.mark.parametrize("how", ["forget", "delete"])
async def test_consent_goes_with_its_person(hybrid_project: Client, world: World, how: str) -> None:
    """U8, I20, F43: everything that a person allowed, as a visitor too, is gone when they are, and no other's is."""
    known, bystander = email("ada@example.com"), email("bob@example.com")
    await put(hybrid_project, known)
    await put(hybrid_project, bystander)
    await consent(hybrid_project, identifiers=bystander, device=DeviceInfo(device_id="stays"))
    await consent(hybrid_project, anonymous_id="x", device=PHONE, request_id="visitor")
    await consent(hybrid_project, identifiers=user(VISITOR), device=PHONE, request_id="session")
    await make_unknown(hybrid_project, VISITOR)
    await consent(hybrid_project, identifiers=known, device=PHONE, request_id="person")
    await identify(hybrid_project, known, "x")
    await merge(hybrid_project, user(VISITOR), known, allow_known_source=False)
    await world.settle(hybrid_project.project_id)
    assert await records(world, hybrid_project) == 4
    if how == "forget":
        await hybrid_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=known))
    else:
        await hybrid_project.identity.DeleteProfile(DeleteProfileRequest(identifiers=known))
    await world.settle(hybrid_project.project_id)
    assert await records(world, hybrid_project) == 1
    everything = str(await rows_of(world, hybrid_project.project_id))
    assert "canary-device" not in everything
    assert "stays" in everything


async def test_consent_for_a_profile_that_was_never_made_is_forgotten(hybrid_project: Client, world: World) -> None:
    """I20, F42: forgetting a UUID that nobody has takes what was allowed under it, and refuses more."""
    await consent(hybrid_project, identifiers=user(VISITOR), device=PHONE, request_id="session")
    await hybrid_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=user(VISITOR)))
    assert await records(world, hybrid_project) == 0
    for request_id in ("session", "another"):
        refused = await failure(consent(hybrid_project, identifiers=user(VISITOR), device=PHONE, request_id=request_id))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
    assert "canary-device" not in str(await rows_of(world, hybrid_project.project_id))


async def test_consent_beside_forgetting(hybrid_project: Client, settings: Settings, world: World) -> None:
    """F43: consent that is being recorded when its person is forgotten is gone, too, or refused."""
    await put(hybrid_project, user("id-ada"))
    lock = "SELECT FROM profiles WHERE project_id = $1 FOR UPDATE"
    async with held(settings, lock, hybrid_project.project_id):
        recording = asyncio.create_task(consent(hybrid_project, identifiers=user("id-ada"), device=PHONE))
        await until_waiting(world, 1)
        forgetting = asyncio.ensure_future(
            hybrid_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=user("id-ada")))
        )
        await until_waiting(world, 2)
    await forgetting
    await asyncio.gather(recording, return_exceptions=True)
    await world.settle(hybrid_project.project_id)
    assert await records(world, hybrid_project) == 0


async def test_a_visitors_consent_goes_after_a_year(hybrid_project: Client, world: World) -> None:
    """U8: what was recorded for somebody without a profile is removed a year later; a person's stays."""
    await put(hybrid_project, user("id-ada"))
    for holder in ({"anonymous_id": "x"}, {"identifiers": user(VISITOR)}, {"identifiers": user("id-ada")}):
        await consent(hybrid_project, **holder)
    await world.pass_time(hybrid_project.project_id, timedelta(days=364, hours=23))
    await purge(world.database)
    assert await records(world, hybrid_project) == 3
    await world.pass_time(hybrid_project.project_id, timedelta(hours=2))
    await purge(world.database)
    assert await records(world, hybrid_project) == 1


async def test_consent_can_be_sent_again(hybrid_project: Client) -> None:
    """X1: the same request_id gives the stored answer."""
    request = RecordConsentRequest(anonymous_id="x", request_id="allowed")
    first, again = [await hybrid_project.activation.RecordConsent(request) for _ in range(2)]
    assert (first.replayed, again.replayed) == (False, True)
    assert first.consent == again.consent


@pytest.mark.parametrize("kind", TYPES)
async def test_nobodys_consent_is_refused(make_project: MakeProject, kind: str) -> None:
    """U8, X2: neither a person nor a UUID nor an anonymous_id: refused, by the right reason."""
    client = await make_project(kind)
    refused = await failure(consent(client, identifiers=person(kind, "nobody")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    wrong = await failure(consent(client, anonymous_id="null", device=DeviceInfo(device_id="\n"), request_id=" "))
    assert wrong.fields == ["anonymous_id", "device.device_id", "request_id"]
    assert (await failure(consent(client))).fields == ["identifiers"]
    assert (await failure(consent(client, identifiers=Identifiers()))).fields == ["identifiers"]
