"""Identify for a visitor who has an unknown profile already: who it turns out to be gets everything."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_ALREADY_LINKED,
    LINK_OUTCOME_LINKED,
    LINK_OUTCOME_MERGING_OFF,
    LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE,
    LINK_OUTCOME_SKIPPED,
    ForgetProfileRequest,
    GetProfileRequest,
    IdentifyRequest,
    IdentifyResponse,
    UpdateEmailRequest,
)
from onefold.v1.merge_pb2 import MERGE_KIND_CONVERSION, MERGE_KIND_PROFILE
from onefold.v1.profile_pb2 import (
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_SKIPPED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
)
from support.client import Client, email, failure, user
from support.merging import fields, get_merge, merge, person, profile, put, undo
from support.relocation import stages
from support.visitors import activate, sessions, switch, unknown_profiles, watched
from support.world import World

TYPES = ["EMAIL", "USER_ID", "HYBRID"]
GRACE = timedelta(minutes=5)


async def sign_in(client: Client, who: Identifiers, anonymous_id: str = "x", **request: Any) -> IdentifyResponse:
    """Identify, in short."""
    return await client.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id=anonymous_id, **request))


async def uuid_of(client: Client, profile_id: str) -> str:
    """The temporary user_id of an unknown profile."""
    answer = await client.identity.GetProfile(GetProfileRequest(profile_id=profile_id))
    return answer.profile.identifiers.user_id


async def late_events(world: World, client: Client, who: Identifiers) -> None:
    """U5, A3, A5: an event within 5 minutes of the sign-in is the person's, one after it stays anonymous."""
    await world.pass_time(client.project_id, GRACE - timedelta(seconds=2))
    assert (await client.track(anonymous_id="x", name="in time")).profile_id
    await world.pass_time(client.project_id, timedelta(seconds=3))
    assert not (await client.track(anonymous_id="x", name="too late")).profile_id
    assert len(await client.timeline(identifiers=who, names=["in time", "too late"])) == 1
    assert await client.names(anonymous_id="x") == ["too late"]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("settled", [False, True])
async def test_the_person_who_is_there_gets_the_visitor(
    make_project: MakeProject, world: World, kind: str, settled: bool
) -> None:
    """U5, U6, A3, I16, I17: everything up to the sign-in is the person's, and the unknown profile is gone."""
    client = await make_project(kind)
    await watched(client, world)
    who = person(kind, "ada")
    known = await put(client, who, '{"a":0}')
    unknown = await activate(world, client, "x")
    if settled:
        await world.settle(client.project_id)
    # Longer than any grace: an id that stands for an unknown profile follows the visitor.
    await world.pass_time(client.project_id, timedelta(hours=3))
    await client.track(anonymous_id="x", name="Later")
    visitor = await uuid_of(client, unknown)
    await put(client, user(visitor), '{"a":1,"b":1}')

    answer = await sign_in(client, who, data_fields_json='{"c":1}')
    assert (answer.profile.profile_id, answer.profile.outcome) == (known, WRITE_OUTCOME_UPDATED)
    assert answer.link.outcome == LINK_OUTCOME_LINKED
    assert answer.link.grace_end_time.ToDatetime() - answer.link.link_time.ToDatetime() == GRACE
    entry = await get_merge(client, answer.link.merge_id)
    assert (entry.kind, entry.source_profile_id, entry.target_profile_id) == (MERGE_KIND_PROFILE, unknown, known)
    async for stage in stages(world, client.project_id):
        names = await client.names(identifiers=who)
        assert names == ["Later", "unknownSession", "Viewed", "Viewed"], stage
        assert await client.names(anonymous_id="x") == []
    assert (await sessions(client, identifiers=who))[0]["isUnknownUser"] is False
    assert await fields(client, who) == {"a": 0, "b": 1, "c": 1}
    assert await unknown_profiles(world, client) == []
    assert (await profile(client, user(visitor))).profile_id == known
    await late_events(world, client, who)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("settled", [False, True])
async def test_where_nobody_is_there_the_visitor_becomes_the_person(
    make_project: MakeProject, world: World, kind: str, settled: bool
) -> None:
    """U5, U6: converted in place: the same profile, no second one, no mark."""
    client = await make_project(kind)
    await watched(client, world)
    who = person(kind, "ada")
    unknown = await activate(world, client, "x")
    if settled:
        await world.settle(client.project_id)
    answer = await sign_in(client, who)
    assert (answer.profile.profile_id, answer.profile.outcome) == (unknown, WRITE_OUTCOME_UPDATED)
    assert answer.link.outcome == LINK_OUTCOME_LINKED
    assert (await get_merge(client, answer.link.merge_id)).kind == MERGE_KIND_CONVERSION
    there = await profile(client, who)
    assert not there.is_unknown
    assert there.identifiers.email == ("" if kind == "USER_ID" else "ada@example.com")
    assert "isUnknownUser" not in (await sessions(client, identifiers=who))[0]
    assert await client.names(identifiers=who) == ["unknownSession", "Viewed", "Viewed"]
    assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", client.project_id) == 1
    if not settled:
        # A worker that comes hours later sweeps in what the grace brought, and nothing after it.
        await world.pass_time(client.project_id, timedelta(minutes=6))
        await client.track(anonymous_id="x", name="too late")
        await world.settle(client.project_id)
        assert await client.names(anonymous_id="x") == ["too late"]
    else:
        await late_events(world, client, who)


async def test_signing_in_again_and_elsewhere(email_project: Client, world: World) -> None:
    """A4, X1: after that the id is the person's as any linked id is: linked already, and refused to all others."""
    await watched(email_project, world)
    await activate(world, email_project, "x")
    ada, bob = email("ada@example.com"), email("bob@example.com")
    first = await sign_in(email_project, ada, request_id="first")
    again = await sign_in(email_project, ada)
    assert again.link.outcome == LINK_OUTCOME_ALREADY_LINKED
    assert again.link.grace_end_time == first.link.grace_end_time
    assert again.profile.outcome == WRITE_OUTCOME_UNCHANGED
    replayed = await sign_in(email_project, ada, request_id="first")
    assert (replayed.replayed, replayed.link) == (True, first.link)
    refused = await sign_in(email_project, bob)
    assert refused.link.outcome == LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE
    assert refused.profile.outcome == WRITE_OUTCOME_CREATED
    assert await email_project.names(identifiers=bob) == []


async def test_the_visitor_named_by_the_uuid_is_who_they_were(hybrid_project: Client, world: World) -> None:
    """U5, A4: Identify of the unknown profile itself changes nothing about it."""
    await watched(hybrid_project, world)
    unknown = await activate(world, hybrid_project, "x")
    answer = await sign_in(hybrid_project, user(await uuid_of(hybrid_project, unknown)))
    assert (answer.link.outcome, answer.profile.profile_id) == (LINK_OUTCOME_ALREADY_LINKED, unknown)
    assert await unknown_profiles(world, hybrid_project) == [unknown]


async def test_a_call_that_makes_nobody_learns_nothing(email_project: Client, world: World) -> None:
    """I7, I14, P5: where Identify would not make the person, or associates nothing, the visitor stays unknown."""
    await watched(email_project, world)
    unknown = await activate(world, email_project, "x")
    skipped = await sign_in(email_project, email("ada@example.com"), update_existing_only=True)
    assert (skipped.profile.outcome, skipped.link.outcome) == (WRITE_OUTCOME_SKIPPED, LINK_OUTCOME_SKIPPED)
    missing = await failure(sign_in(email_project, user("id-ada")))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    await switch(email_project, event_merging_enabled=False)
    off = await sign_in(email_project, email("ada@example.com"))
    assert (off.profile.outcome, off.link.outcome) == (WRITE_OUTCOME_CREATED, LINK_OUTCOME_MERGING_OFF)
    assert await unknown_profiles(world, email_project) == [unknown]
    await switch(email_project, event_merging_enabled=True)
    named = await sign_in(email_project, user("id-bob"), prefer_user_id=True)
    assert (named.profile.profile_id, named.link.outcome) == (unknown, LINK_OUTCOME_LINKED)
    assert named.profile.email_is_placeholder
    assert await unknown_profiles(world, email_project) == []


async def test_a_forgotten_person_gets_nothing(email_project: Client, world: World) -> None:
    """I20, F42: signing in as somebody forgotten is refused, and the visitor stays who they were."""
    await watched(email_project, world)
    unknown = await activate(world, email_project, "x")
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=email("ada@example.com")))
    refused = await failure(sign_in(email_project, email("ada@example.com")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
    assert await unknown_profiles(world, email_project) == [unknown]


async def test_two_people_named_at_once_get_nothing(hybrid_project: Client, world: World) -> None:
    """I3, F72: identifiers of two people are refused, and the visitor is merged into neither."""
    await watched(hybrid_project, world)
    unknown = await activate(world, hybrid_project, "x")
    await put(hybrid_project, email("ada@example.com"))
    await put(hybrid_project, user("id-bob"))
    both = Identifiers(email="ada@example.com", user_id="id-bob")
    assert (await failure(sign_in(hybrid_project, both))).reason == "IDENTIFIERS_CONFLICT"
    assert await unknown_profiles(world, hybrid_project) == [unknown]


async def test_one_visitor_with_two_ids(email_project: Client, world: World) -> None:
    """U5, A4: each of a person's devices brings its own visitor, and the last one adds to the first."""
    await watched(email_project, world)
    for anonymous_id in ("x", "y"):
        await activate(world, email_project, anonymous_id)
    ada = email("ada@example.com")
    for anonymous_id in ("x", "y"):
        assert (await sign_in(email_project, ada, anonymous_id)).link.outcome == LINK_OUTCOME_LINKED
    assert len(await email_project.timeline(identifiers=ada, names=["Viewed"])) == 4
    marks = [each.get("isUnknownUser") for each in await sessions(email_project, identifiers=ada)]
    assert sorted(marks, key=str) == [False, None]
    assert await unknown_profiles(world, email_project) == []


@pytest.mark.parametrize("how", ["merge", "convert", "rename"])
async def test_the_grace_ends_however_it_is_learned(hybrid_project: Client, world: World, how: str) -> None:
    """U5, A5: by MergeProfiles or UpdateEmail, too, the id follows the visitor until then and 5 minutes longer."""
    await watched(hybrid_project, world)
    unknown = await activate(world, hybrid_project, "x")
    await world.settle(hybrid_project.project_id)
    visitor, ada = user(await uuid_of(hybrid_project, unknown)), email("ada@example.com")
    await world.pass_time(hybrid_project.project_id, timedelta(days=1))
    if how == "merge":
        await put(hybrid_project, ada)
    if how == "rename":
        await hybrid_project.identity.UpdateEmail(UpdateEmailRequest(identifiers=visitor, new_email=ada.email))
    else:
        await merge(hybrid_project, visitor, ada, allow_known_source=False)
    await late_events(world, hybrid_project, ada)


@pytest.mark.parametrize("there", [True, False])
async def test_what_was_learned_can_be_undone(hybrid_project: Client, world: World, there: bool) -> None:
    """U5, U6, I19: undoing gives the visitor back, unknown and unmarked, and the id follows the visitor again."""
    await watched(hybrid_project, world)
    ada = email("ada@example.com")
    if there:
        await put(hybrid_project, ada)
    unknown = await activate(world, hybrid_project, "x")
    visitor = user(await uuid_of(hybrid_project, unknown))
    learned = await sign_in(hybrid_project, ada)
    await world.settle(hybrid_project.project_id)
    await undo(hybrid_project, learned.link.merge_id)
    await world.settle(hybrid_project.project_id)
    assert await unknown_profiles(world, hybrid_project) == [unknown]
    assert await hybrid_project.names(identifiers=visitor) == ["unknownSession", "Viewed", "Viewed"]
    assert "isUnknownUser" not in (await sessions(hybrid_project, identifiers=visitor))[0]
    await world.pass_time(hybrid_project.project_id, timedelta(hours=1))
    assert (await hybrid_project.track(anonymous_id="x", name="Back")).profile_id == unknown
    assert (await sign_in(hybrid_project, user("id-bob"))).profile.profile_id == unknown
