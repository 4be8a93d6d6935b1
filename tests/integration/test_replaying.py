"""Replay: everything that a client kept of a visitor, in one call."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import pytest

from conftest import MakeProject
from onefold.config import Settings
from onefold.v1.activation_service_pb2 import ReplayItem, ReplayRequest
from onefold.v1.error_reason_pb2 import ErrorReason
from onefold.v1.event_pb2 import EVENT_KIND_PURCHASE
from onefold.v1.identity_service_pb2 import ForgetProfileRequest
from onefold.v1.profile_pb2 import (
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_SKIPPED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
)
from support.client import Client, email, failure, timestamp, user
from support.holding import held, until_waiting
from support.merging import fields, merge, person, profile, put
from support.visitors import change, event, make_unknown, replay
from support.world import World

TYPES = ["EMAIL", "USER_ID", "HYBRID"]
VISITOR = "6f1c1f63-8a51-4b0e-9d51-1f0ab1c2d3e4"


@pytest.mark.parametrize("kind", TYPES)
async def test_an_unknown_profile_gets_what_its_client_kept(make_project: MakeProject, world: World, kind: str) -> None:
    """U4: events keep their own times and ids, updates are applied in their order, one result for each item."""
    client = await make_project(kind)
    made = await make_unknown(client, VISITOR)
    now = await world.now()
    days = [timestamp(now - timedelta(days=number)) for number in (2, 40)]
    answer = await replay(
        client,
        user(VISITOR),
        event(name="Viewed", event_id="one", event_time=days[0]),
        change('{"a":{"b":1}}'),
        event(name="Found", event_id="two", event_time=days[1], data_json='{"x":1}'),
        change('{"a":{"c":2}}', merge_nested_objects=True),
        event(name="Bought", kind=EVENT_KIND_PURCHASE, event_time=timestamp(datetime(1970, 1, 2, tzinfo=UTC))),
    )
    assert answer.profile.outcome == WRITE_OUTCOME_UPDATED
    assert answer.profile.profile_id == made.profile.profile_id
    assert [each.WhichOneof("outcome") for each in answer.results] == ["event", "profile", "event", "profile", "event"]
    assert [answer.results[index].event.event_id for index in (0, 2)] == ["one", "two"]
    assert {each.event.profile_id for each in answer.results if each.HasField("event")} == {made.profile.profile_id}
    assert answer.results[1].profile.outcome == answer.results[3].profile.outcome == WRITE_OUTCOME_UPDATED
    assert await fields(client, user(VISITOR)) == {"a": {"b": 1, "c": 2}}
    timeline = await client.timeline(identifiers=user(VISITOR))
    assert [each.name for each in timeline] == ["unknownSession", "Viewed", "Found", "Bought"]
    assert [each.event_time for each in timeline[1:3]] == days
    assert [each.backfilled for each in timeline] == [False, True, True, True]
    assert (await profile(client, user(VISITOR))).is_unknown


@pytest.mark.parametrize("kind", TYPES)
async def test_a_known_person_gets_it_directly(make_project: MakeProject, world: World, kind: str) -> None:
    """U7: identity learned before any criterion matched: straight to the known profile, and no unknown one is made."""
    client = await make_project(kind)
    known = await put(client, person(kind, "ada"), '{"a":1}')
    answer = await replay(client, person(kind, "ada"), event(name="Viewed"), change('{"b":2}'))
    assert (answer.profile.profile_id, answer.profile.outcome) == (known, WRITE_OUTCOME_UPDATED)
    assert await client.names(identifiers=person(kind, "ada")) == ["Viewed"]
    assert await fields(client, person(kind, "ada")) == {"a": 1, "b": 2}
    assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", client.project_id) == 1


@pytest.mark.parametrize("kind", TYPES)
async def test_a_person_who_is_not_there_is_created(make_project: MakeProject, kind: str) -> None:
    """U7, I5, I6: somebody who is new is created as by an update, also for a mere event of an EMAIL project."""
    client = await make_project(kind)
    answer = await replay(client, person(kind, "ada"), event(name="Viewed"))
    assert answer.profile.outcome == WRITE_OUTCOME_CREATED
    assert await client.names(identifiers=person(kind, "ada")) == ["Viewed"]
    assert not (await profile(client, person(kind, "ada"))).is_unknown


@pytest.mark.parametrize(
    ("who", "flags", "outcome", "reason"),
    [
        (user("id-ada"), {}, None, "PROFILE_NOT_FOUND"),
        (user("id-ada"), {"prefer_user_id": True}, WRITE_OUTCOME_CREATED, ""),
        (email("ada@example.com"), {"update_existing_only": True}, WRITE_OUTCOME_SKIPPED, ""),
    ],
)
async def test_whom_a_replay_may_create(
    email_project: Client, world: World, who: Identifiers, flags: dict[str, bool], outcome: int | None, reason: str
) -> None:
    """I7, I14: the flags of creating calls hold; what is skipped stores nothing."""
    call = replay(email_project, who, event(name="Viewed", event_id="e"), change('{"a":1}'), ReplayItem(), **flags)
    if outcome is None:
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, reason)
    else:
        answer = await call
        assert answer.profile.outcome == outcome
        assert answer.results[2].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        if outcome == WRITE_OUTCOME_SKIPPED:
            assert answer.results[0].event.profile_outcome == answer.results[1].profile.outcome == outcome
    stored = outcome == WRITE_OUTCOME_CREATED
    for table in ("profiles", "events", "event_ids"):
        count = await world.value(f"SELECT count(*) FROM {table} WHERE project_id = $1", email_project.project_id)
        assert count == stored


async def test_a_thousand_events_with_bad_ones_among_them(hybrid_project: Client, world: World) -> None:
    """U4, F63: of 1,000 items the bad ones get their errors, by the paths of their fields; all others are stored."""
    await make_unknown(hybrid_project, VISITOR)
    now = await world.now()
    bad = {
        3: event(name=""),
        37: event(name="x", event_time=timestamp(now + timedelta(days=2))),
        200: event(name="x", data_json="[]"),
        512: event(name="x", identifiers=user("somebody-else")),
        700: ReplayItem(),
        701: change("[]"),
        999: event(name="x\0"),
    }
    items = [bad.get(number) or event(name="Viewed", event_id=f"e-{number}") for number in range(1_000)]
    answer = await replay(hybrid_project, user(VISITOR), *items)
    assert len(answer.results) == 1_000
    wrong = {index: each.error for index, each in enumerate(answer.results) if each.HasField("error")}
    assert {index: [violation.field for violation in error.field_violations] for index, error in wrong.items()} == {
        3: ["event.name"],
        37: ["event.event_time"],
        200: ["event.data_json"],
        512: ["event.identifiers"],
        700: ["item"],
        701: ["update.data_fields_json"],
        999: ["event.name"],
    }
    assert {error.reason for error in wrong.values()} == {ErrorReason.ERROR_REASON_FIELDS_INVALID}
    assert len(await hybrid_project.names(identifiers=user(VISITOR))) == 1_000 - len(bad) + 1
    assert await hybrid_project.timeline(identifiers=user(VISITOR), names=["x"]) == []


async def test_a_replay_repeated_stores_nothing_twice(hybrid_project: Client) -> None:
    """U4, E3, F60: the same events again are duplicates, the same updates change nothing, whatever happened since."""
    await make_unknown(hybrid_project, VISITOR)
    items = [event(name="Viewed", event_id=f"e-{number}") for number in range(20)] + [change('{"a":1}')]
    first = await replay(hybrid_project, user(VISITOR), *items)
    assert not any(each.event.duplicate for each in first.results)
    again = await replay(hybrid_project, user(VISITOR), *items)
    assert all(each.event.duplicate for each in again.results[:-1])
    assert [each.event.receive_time for each in again.results] == [each.event.receive_time for each in first.results]
    assert again.profile.outcome == again.results[-1].profile.outcome == WRITE_OUTCOME_UNCHANGED
    await put(hybrid_project, user("id-ada"))
    await merge(hybrid_project, user(VISITOR), user("id-ada"), allow_known_source=False)
    after = await replay(hybrid_project, user(VISITOR), *items)
    assert all(each.event.duplicate for each in after.results[:-1])
    assert len(await hybrid_project.timeline(identifiers=user("id-ada"), names=["Viewed"])) == 20


async def test_a_merged_visitors_replay_goes_to_the_person(hybrid_project: Client, world: World) -> None:
    """U4, I17: a client that does not know yet who the visitor is tells it to the person by the old UUID."""
    await make_unknown(hybrid_project, VISITOR)
    known = await put(hybrid_project, user("id-ada"))
    await merge(hybrid_project, user(VISITOR), user("id-ada"), allow_known_source=False)
    await world.settle(hybrid_project.project_id)
    answer = await replay(hybrid_project, user(VISITOR), event(name="Late"), change('{"late":true}'))
    assert answer.profile.profile_id == known
    assert await hybrid_project.names(identifiers=user("id-ada")) == ["Late", "unknownSession"]
    assert await fields(hybrid_project, user("id-ada")) == {"late": True}


async def test_a_replay_can_be_sent_again(hybrid_project: Client) -> None:
    """X1: with a request_id also events without ids are stored once."""
    request = ReplayRequest(identifiers=user(VISITOR), items=[event(name="Viewed")], request_id="kept")
    first, again = [await hybrid_project.activation.Replay(request) for _ in range(2)]
    assert (first.replayed, again.replayed) == (False, True)
    assert first.results == again.results
    assert await hybrid_project.names(identifiers=user(VISITOR)) == ["Viewed"]


async def test_two_replays_at_once(hybrid_project: Client, settings: Settings, world: World) -> None:
    """U4, F45, F60: two that meet, with the same events, make one person and store each event once."""
    items = [event(name="Viewed", event_id=f"e-{number}") for number in range(5)]
    claim = (
        "INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive) VALUES ($1, 2, $2, uuidv7(), true)"
    )
    async with held(settings, claim, hybrid_project.project_id, "id-ada"):
        calls = [asyncio.create_task(replay(hybrid_project, user("id-ada"), *items)) for _ in range(2)]
        await until_waiting(world, 2)
    one, other = await asyncio.gather(*calls)
    assert one.profile.profile_id == other.profile.profile_id
    assert sorted(each.event.duplicate for each in [*one.results, *other.results]) == [False] * 5 + [True] * 5
    assert len(await hybrid_project.names(identifiers=user("id-ada"))) == 5


async def test_a_replay_as_a_whole_is_refused(hybrid_project: Client) -> None:
    """X2, X5, I3, I20: too many items, nobody named, two people named or a forgotten one: nothing is taken."""
    many = await failure(replay(hybrid_project, user("id-ada"), *[event(name="x")] * 1_001, request_id=" "))
    assert (many.code, many.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["items", "request_id"])
    nobody = await failure(replay(hybrid_project, Identifiers(), event(name="x")))
    assert nobody.fields == ["identifiers"]
    await put(hybrid_project, user("id-ada"))
    await put(hybrid_project, email("bob@example.com"))
    both = Identifiers(email="bob@example.com", user_id="id-ada")
    two = await failure(replay(hybrid_project, both, event(name="x")))
    assert (two.code, two.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IDENTIFIERS_CONFLICT")
    await hybrid_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=user("id-ada")))
    forgotten = await failure(replay(hybrid_project, user("id-ada"), event(name="x")))
    assert (forgotten.code, forgotten.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
    assert await hybrid_project.names(identifiers=email("bob@example.com")) == []


async def test_nothing_to_replay(hybrid_project: Client) -> None:
    """U4: no items at all still finds or makes the person."""
    answer = await replay(hybrid_project, user(str(uuid4())))
    assert (answer.profile.outcome, list(answer.results)) == (WRITE_OUTCOME_CREATED, [])
