"""Track, BatchTrack and ListEvents: what is stored, for whom, once, and how it is read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
import orjson
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code

from conftest import MakeProject
from onefold.events.rules import Arrival
from onefold.events.rules import EventKind as Kind
from onefold.rpc.payload import EMPTY, write_struct
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.error_reason_pb2 import ErrorReason
from onefold.v1.event_pb2 import Event, EventKind, NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, ListEventsRequest, TrackRequest
from onefold.v1.identity_service_pb2 import (
    GetProfileRequest,
    IdentifyRequest,
    MergeProfilesRequest,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import (
    SIGNUP_SOURCE_EVENT,
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_SKIPPED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
)
from onefold.workflows import moving
from support.client import Client, email, failure, timestamp, user
from support.probes import rows_of
from support.relocation import stages
from support.world import World

A = email("a@example.com")
COMMERCE = {Kind.PURCHASE, Kind.CART_UPDATE}
REASONS = ErrorReason


async def known(client: Client, *people: Identifiers) -> None:
    """Makes profiles."""
    for who in people:
        await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=who))


async def count(world: World, client: Client, table: str) -> int:
    """How many rows a project has in a table."""
    rows: int = await world.value(f"SELECT count(*) FROM {table} WHERE project_id = $1", client.project_id)
    return rows


def of_kind(kind: Kind, **fields: Any) -> NewEvent:
    """An event of a kind."""
    return NewEvent(name=kind.name, kind=EventKind.ValueType(kind), **fields)


# --- E2, I5, I6, I7: whom an event creates ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier_type", "by"),
    [("EMAIL", "email"), ("USER_ID", "user_id"), ("HYBRID", "email"), ("HYBRID", "user_id"), ("HYBRID", "both")],
)
@pytest.mark.parametrize("bulk", [False, True])
async def test_which_events_create_a_profile(
    make_project: MakeProject, world: World, identifier_type: str, by: str, bulk: bool
) -> None:
    """E2, I5, I6: in EMAIL projects purchases and carts create it and all else is NOT_FOUND; elsewhere all do."""
    client = await make_project(identifier_type)
    told = {}
    for kind in Kind:
        names = {"email": f"p{kind}@example.com", "user_id": f"u{kind}"}
        told[kind] = Identifiers(**(names if by == "both" else {by: names[by]}))
    creating = [kind for kind in Kind if identifier_type != "EMAIL" or kind in COMMERCE]

    async def outcome(kind: Kind) -> Any:
        try:
            return (await client.track(**_fields(of_kind(kind, identifiers=told[kind])))).profile_outcome
        except grpc.aio.AioRpcError as error:
            return error.code()

    if bulk:
        results = await client.batch([of_kind(kind, identifiers=told[kind]) for kind in Kind])
        outcomes = [result.error.code or result.result.profile_outcome for result in results]
        missing: Any = Code.NOT_FOUND
    else:
        outcomes = [await outcome(kind) for kind in Kind]
        missing = grpc.StatusCode.NOT_FOUND
    assert outcomes == [WRITE_OUTCOME_CREATED if kind in creating else missing for kind in Kind]
    assert await count(world, client, "profiles") == await count(world, client, "events") == len(creating)
    for kind in creating:
        assert await client.names(identifiers=told[kind]) == [kind.name]
        profile = (await client.identity.GetProfile(GetProfileRequest(identifiers=told[kind]))).profile
        assert profile.signup_source == SIGNUP_SOURCE_EVENT
        assert profile.identifiers == told[kind]


def _fields(event: NewEvent) -> dict[str, Any]:
    return {field.name: value for field, value in event.ListFields()}


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("prefer", [False, True])
async def test_a_user_id_alone_in_an_email_project(
    email_project: Client, world: World, kind: Kind, prefer: bool
) -> None:
    """E2, I7, I8: NOT_FOUND, unless it is a purchase or cart that prefers user_id and so gets the known placeholder."""
    event = of_kind(kind, identifiers=user("some-user-id"), prefer_user_id=prefer)
    if prefer and kind in COMMERCE:
        result = await email_project.track(**_fields(event))
        assert result.profile_outcome == WRITE_OUTCOME_CREATED
        told = await email_project.identity.GetProfile(GetProfileRequest(identifiers=user("some-user-id")))
        assert told.profile.identifiers.email == "some-user-id+-1073031548@placeholder.email"
        assert told.profile.email_is_placeholder
    else:
        refused = await failure(email_project.events.Track(TrackRequest(event=event)))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
        rows = await rows_of(world, email_project.project_id)
        assert not [table for table, found in rows.items() if found and table not in ("projects", "api_keys")]


async def test_an_event_for_somebody_known(email_project: Client) -> None:
    """E1, E2, I3: in an EMAIL project an event finds its person by email, overwriting user_id, or by user_id alone."""
    await known(email_project, A)
    unchanged = await email_project.track(identifiers=A, name="1")
    assert unchanged.profile_outcome == WRITE_OUTCOME_UNCHANGED
    updated = await email_project.track(identifiers=Identifiers(email="A@Example.COM", user_id="u1"), name="2")
    assert updated.profile_outcome == WRITE_OUTCOME_UPDATED
    by_user_id = await email_project.track(identifiers=user("u1"), name="3")
    assert by_user_id.profile_outcome == WRITE_OUTCOME_UNCHANGED
    assert {unchanged.profile_id, updated.profile_id, by_user_id.profile_id} == {unchanged.profile_id}
    assert await email_project.names(identifiers=A) == ["3", "2", "1"]


async def test_update_existing_only_skips(user_id_project: Client, world: World) -> None:
    """I14: an event that may not create its person is skipped, stores nothing and does not use its event_id up."""
    before = await rows_of(world, user_id_project.project_id)
    event = {"identifiers": user("u1"), "name": "Viewed", "event_id": "e1"}
    skipped = await user_id_project.track(**event, update_existing_only=True)
    assert (skipped.profile_outcome, skipped.profile_id) == (WRITE_OUTCOME_SKIPPED, "")
    assert await rows_of(world, user_id_project.project_id) == before
    stored = await user_id_project.track(**event)
    assert (stored.profile_outcome, stored.duplicate) == (WRITE_OUTCOME_CREATED, False)


async def test_first_events_for_one_person_together(user_id_project: Client, world: World) -> None:
    """F45, I6: however many first events arrive together, one profile comes of it and all events are on it."""
    for round_number in range(8):
        who = user(f"u{round_number}")
        results = await asyncio.gather(*(user_id_project.track(identifiers=who, name=f"{n}") for n in range(4)))
        assert len({result.profile_id for result in results}) == 1
        assert sorted(await user_id_project.names(identifiers=who)) == ["0", "1", "2", "3"]
        assert await count(world, user_id_project, "profiles") == round_number + 1


# --- E1, E5: what is stored ------------------------------------------------------------------------------------------

DATA = {
    "text": "é\u2028\\\"'",
    "none": None,
    "yes": True,
    "number": -1.5,
    "list": [1, [2], {}],
    "object": {"a": {"b": 1}},
}


@pytest.mark.parametrize("subject", [{"identifiers": A}, {"anonymous_id": "x"}], ids=["person", "visitor"])
@pytest.mark.parametrize("told_as", ["data", "data_json"])
async def test_everything_told_is_read_again(email_project: Client, subject: dict[str, Any], told_as: str) -> None:
    """E1, E8: name, kind, data, id and time come back as they were told, as Struct and as JSON text."""
    await known(email_project, A)
    text = orjson.dumps(DATA).decode()
    struct = Struct()
    write_struct(struct, DATA)
    told: dict[str, Any] = {"data": struct} if told_as == "data" else {"data_json": text}
    moment = Timestamp(seconds=int(datetime.now(UTC).timestamp()) - 3_600, nanos=123_456_789)
    result = await email_project.track(
        **subject, name="Größe", kind=EventKind.EVENT_KIND_SCREEN, event_id="e-1 ü", event_time=moment, **told
    )
    assert (result.event_id, result.duplicate) == ("e-1 ü", False)
    [event] = await email_project.timeline(**subject)
    assert (event.name, event.kind, event.event_id) == ("Größe", EventKind.EVENT_KIND_SCREEN, "e-1 ü")
    assert (event.event_time.seconds, event.event_time.nanos) == (moment.seconds, 123_456_000)
    assert event.receive_time == result.receive_time
    assert event.profile_id == result.profile_id
    assert event.backfilled
    assert event.WhichOneof("payload") == "data"
    assert event.data == struct
    [event] = await email_project.timeline(**subject, data_format=DATA_FORMAT_JSON)
    assert orjson.loads(event.data_json) == DATA
    if told_as == "data_json":
        assert event.data_json == text


async def test_what_is_left_out_has_a_default(email_project: Client) -> None:
    """E1, E3, E5: now, CUSTOM, an empty object, and a UUIDv7 as the id; not backfilled."""
    result = await email_project.track(anonymous_id="x", name="Viewed")
    [event] = await email_project.timeline(anonymous_id="x")
    assert event.event_time == event.receive_time == result.receive_time
    assert event.kind == EventKind.EVENT_KIND_CUSTOM
    assert MessageToDict(event.data) == {}
    assert event.HasField("data")
    assert not event.backfilled
    assert event.event_id == result.event_id
    assert UUID(event.event_id).version == 7


@pytest.mark.parametrize(
    ("age", "backfilled"),
    [
        (timedelta(minutes=4), False),
        (timedelta(minutes=6), True),
        (timedelta(days=10_000), True),
        (-timedelta(hours=23), False),
    ],
)
async def test_a_past_time_is_kept(email_project: Client, world: World, age: timedelta, backfilled: bool) -> None:
    """E5: an event_time is kept as given, up to 24 hours ahead, and marked if over 5 minutes old at receipt."""
    await known(email_project, A)
    moment = timestamp(await world.now() - age)
    await email_project.track(identifiers=A, name="Viewed", event_time=moment)
    [event] = await email_project.timeline(identifiers=A)
    assert event.event_time == moment
    assert event.backfilled is backfilled


async def test_the_earliest_time(user_id_project: Client) -> None:
    """E1: 1970 itself is accepted."""
    await user_id_project.track(identifiers=user("u1"), name="Viewed", event_time=Timestamp())
    [event] = await user_id_project.timeline(identifiers=user("u1"))
    assert event.event_time == Timestamp()


BIG = '{"a":"' + "x" * (100_000 - 8) + '"}'


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x" * 100},
        {"name": "é" * 50},
        {"event_id": "é" * 128},
        {"anonymous_id": "é" * 128},
        {"data_json": BIG},
        {"data_json": '{"a":' * 16 + "1" + "}" * 16},
        {"data_json": orjson.dumps({f"k{number}": number for number in range(512)}).decode()},
        {"data_json": '{"a": 9007199254740993, "b": 123456789012345678901234567890}'},
        {"data_json": '{"a":1.0,"a":2,"b":1e308}'},
    ],
    ids=lambda fields: str(fields)[:30],
)
async def test_the_very_limits_are_accepted(email_project: Client, fields: dict[str, Any]) -> None:
    """X5, F67: what is exactly as long, deep or many as may be is stored, and JSON text letter by letter."""
    told = {"anonymous_id": "x", "name": "Viewed", "data_json": "{}", **fields}
    await email_project.track(**told)
    [event] = await email_project.timeline(anonymous_id=told["anonymous_id"], data_format=DATA_FORMAT_JSON)
    assert (event.name, event.anonymous_id, event.data_json) == (told["name"], told["anonymous_id"], told["data_json"])


@pytest.mark.parametrize(
    "odd", ["o'Brien\"; DROP TABLE events; --", "%_\\", "{}", "$1", ":name", "é" * 52, "Null.", "\u0130d"]
)
async def test_odd_ids_are_only_ids(user_id_project: Client, odd: str) -> None:
    """F69: quotes and other marks of a language in a user_id, a name or an anonymous_id mean nothing to onefold."""
    await user_id_project.track(identifiers=user(odd), anonymous_id=odd, name=odd[:50], event_id=odd)
    [event] = await user_id_project.timeline(identifiers=user(odd), names=[odd[:50]])
    assert (event.name, event.anonymous_id, event.event_id) == (odd[:50], odd, odd)


# --- E3: once --------------------------------------------------------------------------------------------------------

SUBJECTS = [{"identifiers": A}, {"anonymous_id": "x"}]
each_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=["person", "visitor"])


@each_subject
async def test_the_same_event_again_is_a_duplicate(
    email_project: Client, world: World, subject: dict[str, Any]
) -> None:
    """E3, F60: the same id and body is OK with duplicate = true, the first receive time and one stored event."""
    await known(email_project, A)
    event = {**subject, "name": "Viewed", "event_id": "e1", "data_json": '{"a":1,"b":2}'}
    first = await email_project.track(**event)
    before = await rows_of(world, email_project.project_id)
    again = await email_project.track(**{**event, "data_json": '{ "b": 2, "a": 1 }'})
    assert (first.duplicate, again.duplicate) == (False, True)
    assert (again.event_id, again.receive_time) == ("e1", first.receive_time)
    [result] = await email_project.batch([NewEvent(**event)])
    assert result.result.duplicate
    assert await rows_of(world, email_project.project_id) == before


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Clicked"},
        {"kind": EventKind.EVENT_KIND_PAGE},
        {"data_json": '{"a":2}'},
        {"anonymous_id": "y"},
        {"identifiers": A},
        {"event_time": timestamp(datetime.now(UTC))},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_another_body_is_refused(email_project: Client, world: World, change: dict[str, Any]) -> None:
    """E3, F61: the same id with another body is ALREADY_EXISTS / EVENT_ID_REUSED naming the id; the first one stays."""
    await known(email_project, A)
    event: dict[str, Any] = {"anonymous_id": "x", "name": "Viewed", "event_id": "e1", "data_json": '{"a":1}'}
    await email_project.track(**event)
    before = await rows_of(world, email_project.project_id)
    other = NewEvent(**{**event, **change})
    told = await failure(email_project.events.Track(TrackRequest(event=other, request_id="r1")))
    assert (told.code, told.reason) == (grpc.StatusCode.ALREADY_EXISTS, "EVENT_ID_REUSED")
    assert told.metadata == {"event_id": "e1"}
    [result] = await email_project.batch([other])
    assert (result.error.code, result.error.reason) == (Code.ALREADY_EXISTS, REASONS.ERROR_REASON_EVENT_ID_REUSED)
    assert await rows_of(world, email_project.project_id) == before


async def test_one_id_many_times_in_a_batch(email_project: Client) -> None:
    """E3, E4, F60, F61: within one batch the first telling counts, the same is a duplicate, another body is refused."""
    await known(email_project, A)
    same = NewEvent(identifiers=A, name="first", event_id="e1")
    other = NewEvent(anonymous_id="x", name="other", event_id="e1")
    nobody = NewEvent(identifiers=email("nobody@example.com"), name="refused", event_id="e2")
    after_nobody = NewEvent(identifiers=A, name="takes the id", event_id="e2")
    results = await email_project.batch([same, same, other, nobody, after_nobody, same, nobody])
    told = [(result.error.code, result.result.duplicate) for result in results]
    assert told == [
        (0, False),
        (0, True),
        (Code.ALREADY_EXISTS, False),
        (Code.NOT_FOUND, False),
        (0, False),
        (0, True),
        (Code.ALREADY_EXISTS, False),
    ]
    assert results[0].result.receive_time == results[1].result.receive_time
    assert sorted(await email_project.names(identifiers=A)) == ["first", "takes the id"]
    assert await email_project.names(anonymous_id="x") == []


async def test_one_id_in_two_projects(email_project: Client, user_id_project: Client) -> None:
    """F62: the same event id in two projects is two events."""
    for client in (email_project, user_id_project):
        result = await client.track(anonymous_id="x", name="Viewed", event_id="e1")
        assert not result.duplicate
        assert await client.names(anonymous_id="x") == ["Viewed"]


async def test_batches_with_the_same_ids_together(user_id_project: Client, world: World) -> None:
    """E3, F60: of batches in flight together that share ids in any order, each event is stored once; none deadlocks."""
    generator = random.Random(60)
    for round_number in range(8):
        events = [
            NewEvent(identifiers=user(f"u{n % 3}"), name="Viewed", event_id=f"e{round_number}-{n}") for n in range(12)
        ]
        batches = [generator.sample(events, k=10) for _ in range(4)]
        told = await asyncio.gather(*(user_id_project.batch(batch) for batch in batches))
        assert not [result.error for results in told for result in results if result.HasField("error")]
        fresh = [result.result.event_id for results in told for result in results if not result.result.duplicate]
        ids = {event.event_id for batch in batches for event in batch}
        assert sorted(fresh) == sorted(ids)
    stored = await world.fetch("SELECT event_id FROM events WHERE project_id = $1", user_id_project.project_id)
    assert len(stored) == len({row["event_id"] for row in stored})
    assert await count(world, user_id_project, "profiles") == 3


async def test_dedupe_across_a_link_and_its_relocation(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E3, F60: a visitor's event told again before, at every stage of and after its relocation is a duplicate."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 1)
    moment = timestamp(await world.now() - timedelta(days=1))
    events = [NewEvent(anonymous_id="x", name=f"{n}", event_id=f"e{n}", event_time=moment) for n in range(3)]
    first = await email_project.batch(events)
    await email_project.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="x"))
    async for _ in stages(world, email_project.project_id):
        again = await email_project.batch(events)
        assert [result.result.duplicate for result in again] == [True] * 3
        assert [result.result.receive_time for result in again] == [result.result.receive_time for result in first]
        other = NewEvent(anonymous_id="x", name="other body", event_id="e0")
        [refused] = await email_project.batch([other])
        assert refused.error.code == Code.ALREADY_EXISTS
        assert await email_project.names(identifiers=A) == ["2", "1", "0"]
        assert await email_project.names(anonymous_id="x") == []
    assert await count(world, email_project, "events") == 3


async def test_dedupe_across_a_merge(email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """E3, F60: a person's event told again after a merge, at every stage of its relocation, is a duplicate that names
    the survivor; another body is refused."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 1)
    source = email("b@example.com")
    await known(email_project, A, source)
    events = [NewEvent(identifiers=source, name=f"{n}", event_id=f"e{n}") for n in range(3)]
    first = await email_project.batch(events)
    merged = await email_project.identity.MergeProfiles(
        MergeProfilesRequest(source=source, target=A, allow_known_source=True)
    )
    async for _ in stages(world, email_project.project_id):
        again = await email_project.batch([*events, NewEvent(identifiers=source, name="other body", event_id="e0")])
        assert [result.result.duplicate for result in again] == [True] * 3 + [False]
        assert [each.result.receive_time for each in again[:3]] == [each.result.receive_time for each in first]
        assert {each.result.profile_id for each in again[:3]} == {merged.survivor.profile_id}
        assert again[3].error.code == Code.ALREADY_EXISTS
        assert await email_project.names(identifiers=A) == ["2", "1", "0"]


@each_subject
@pytest.mark.parametrize(
    ("passed", "duplicate"),
    [
        (timedelta(days=29), True),
        (timedelta(days=35) - timedelta(minutes=1), True),
        (timedelta(days=35), False),
        (timedelta(days=300), False),
    ],
    ids=str,
)
async def test_an_id_is_remembered_for_35_days(
    email_project: Client, world: World, subject: dict[str, Any], passed: timedelta, duplicate: bool
) -> None:
    """E3, F60: up to 35 days later the same id is a duplicate; then it is new, may have another body, and is stored."""
    await known(email_project, A)
    event = {**subject, "name": "Viewed", "event_id": "e1"}
    await email_project.track(**event)
    await world.pass_time(email_project.project_id, passed)
    again = await email_project.track(**event)
    assert again.duplicate is duplicate
    other = NewEvent(**{**event, "name": "Clicked"})
    [refused] = await email_project.batch([other])
    assert refused.error.code == Code.ALREADY_EXISTS
    if not duplicate:
        assert (await email_project.names(**subject))[0] == "Viewed"
        assert abs(again.receive_time.ToDatetime(UTC) - await world.now()) < timedelta(minutes=1)


async def test_a_forgotten_id_with_another_body_loses_nothing(email_project: Client, world: World) -> None:
    """E3, X3: an id whose 35 days are over may name another event, but not one of the same person and moment: that is
    refused, and never lost under an OK.
    """
    await known(email_project, A)
    moment = await world.now() - timedelta(days=1)
    await email_project.track(identifiers=A, name="first", event_id="e1", event_time=timestamp(moment))
    await world.pass_time(email_project.project_id, timedelta(days=36))
    same_moment = timestamp(moment - timedelta(days=36))
    [refused] = await email_project.batch(
        [NewEvent(identifiers=A, name="second", event_id="e1", event_time=same_moment)]
    )
    assert refused.error.code == Code.ALREADY_EXISTS
    other_moment = timestamp(moment - timedelta(days=35))
    result = await email_project.track(identifiers=A, name="third", event_id="e2", event_time=other_moment)
    assert not result.duplicate
    assert sorted(await email_project.names(identifiers=A)) == ["first", "third"]


async def test_a_retry_after_the_event_is_over(email_project: Client, world: World) -> None:
    """E3, A2: an accepted visitor's event told again 29 days later is a duplicate, even if it would now be refused."""
    over = await world.now() - timedelta(days=31)
    hash_of_it = Arrival(None, "x", "Viewed", Kind.CUSTOM, EMPTY, "e1", over).body_hash()

    async def accepted_ten_days_ago(connection: Any) -> None:
        await connection.execute(
            "INSERT INTO event_ids (project_id, event_id, body_hash, receive_time) "
            "VALUES ($1, 'e1', $2, now() - interval '10 days')",
            email_project.project_id,
            hash_of_it,
        )

    await world.database.transact(accepted_ten_days_ago)
    event = NewEvent(anonymous_id="x", name="Viewed", event_id="e1", event_time=timestamp(over))
    [result] = await email_project.batch([event])
    assert result.result.duplicate


async def test_server_made_ids_are_unique_and_in_order(email_project: Client) -> None:
    """E3: events without an id get UUIDv7s, one each, that keep the order of the batch at one moment."""
    moment = timestamp(datetime.now(UTC))
    results = await email_project.batch(
        [NewEvent(anonymous_id="x", name=f"{number}", event_time=moment) for number in range(300)]
    )
    ids = [result.result.event_id for result in results]
    assert {UUID(event_id).version for event_id in ids} == {7}
    assert sorted(set(ids)) == ids
    assert await email_project.names(anonymous_id="x") == [f"{number}" for number in reversed(range(300))]


# --- E4: batches -----------------------------------------------------------------------------------------------------


async def test_a_batch_of_a_thousand_with_one_bad(user_id_project: Client, world: World) -> None:
    """E4, F63: with item 37 bad, 999 are stored; results come in order, and the bad one says what is wrong."""
    events = [NewEvent(identifiers=user(f"u{n % 50}"), name=f"{n}", event_id=f"e{n}") for n in range(1_000)]
    events[37].name = ""
    results = await user_id_project.batch(events)
    assert [result.result.event_id for result in results] == [f"e{n}" if n != 37 else "" for n in range(1_000)]
    assert [n for n, result in enumerate(results) if result.HasField("error")] == [37]
    assert [violation.field for violation in results[37].error.field_violations] == ["name"]
    stored = await world.fetch("SELECT event_id FROM events WHERE project_id = $1", user_id_project.project_id)
    assert {row["event_id"] for row in stored} == {f"e{n}" for n in range(1_000) if n != 37}
    created = [result.result.profile_outcome for result in results[:50]]
    assert created.count(WRITE_OUTCOME_CREATED) == 49
    assert results[87].result.profile_outcome == WRITE_OUTCOME_CREATED
    assert await count(world, user_id_project, "profiles") == 50


async def test_every_kind_of_failure_stays_with_its_item(hybrid_project: Client) -> None:
    """E4, X2: each item fails for its own reason, and those between them are stored as if told alone."""
    await hybrid_project.track(identifiers=email("a@example.com"), name="A")
    await hybrid_project.track(identifiers=user("u2"), name="B", event_id="taken")
    good: dict[str, Any] = {"name": "good", "anonymous_id": "x"}
    results = await hybrid_project.batch(
        [
            NewEvent(**good),
            NewEvent(identifiers=Identifiers(email="a@example.com", user_id="u2"), name="conflict"),
            NewEvent(**good),
            NewEvent(identifiers=user("null"), name="nobody"),
            NewEvent(**good, event_time=timestamp(datetime.now(UTC) - timedelta(days=31))),
            NewEvent(**good, event_id="taken"),
            NewEvent(**good, event_time=timestamp(datetime.now(UTC) + timedelta(days=2))),
            NewEvent(identifiers=user("u3"), name="skipped", update_existing_only=True),
            NewEvent(**good),
        ]
    )
    assert [result.error.reason for result in results] == [
        REASONS.ERROR_REASON_UNSPECIFIED,
        REASONS.ERROR_REASON_IDENTIFIERS_CONFLICT,
        REASONS.ERROR_REASON_UNSPECIFIED,
        REASONS.ERROR_REASON_FIELDS_INVALID,
        REASONS.ERROR_REASON_EVENT_EXPIRED,
        REASONS.ERROR_REASON_EVENT_ID_REUSED,
        REASONS.ERROR_REASON_FIELDS_INVALID,
        REASONS.ERROR_REASON_UNSPECIFIED,
        REASONS.ERROR_REASON_UNSPECIFIED,
    ]
    assert results[7].result.profile_outcome == WRITE_OUTCOME_SKIPPED
    assert all(result.error.message for result in results if result.HasField("error"))
    assert await hybrid_project.names(anonymous_id="x") == ["good"] * 3


async def test_an_item_sees_what_the_items_before_it_did(user_id_project: Client, email_project: Client) -> None:
    """E4, I3: a batch does what its events would have done one by one, in their order."""
    told = [
        await user_id_project.batch(
            [
                NewEvent(identifiers=user("u1"), name="1"),
                NewEvent(identifiers=user("u1"), name="2", update_existing_only=True),
                NewEvent(identifiers=Identifiers(user_id="u1", email="new@example.com"), name="3"),
            ]
        ),
        await email_project.batch(
            [
                NewEvent(identifiers=A, name="1"),
                of_kind(Kind.PURCHASE, identifiers=Identifiers(email="a@example.com", user_id="u1")),
                NewEvent(identifiers=user("u1"), name="3"),
                NewEvent(identifiers=Identifiers(email="a@example.com", user_id="u2"), name="4"),
                NewEvent(identifiers=user("u1"), name="5"),
            ]
        ),
    ]
    assert [result.result.profile_outcome for result in told[0]] == [
        WRITE_OUTCOME_CREATED,
        WRITE_OUTCOME_UNCHANGED,
        WRITE_OUTCOME_UPDATED,
    ]
    assert [result.error.code or result.result.profile_outcome for result in told[1]] == [
        Code.NOT_FOUND,
        WRITE_OUTCOME_CREATED,
        WRITE_OUTCOME_UNCHANGED,
        WRITE_OUTCOME_UPDATED,
        Code.NOT_FOUND,
    ]
    assert await email_project.names(identifiers=user("u2")) == ["4", "3", "PURCHASE"]


async def test_an_empty_batch(email_project: Client, world: World) -> None:
    """E4: no events, no results, no rows."""
    before = await rows_of(world, email_project.project_id)
    assert await email_project.batch([]) == []
    assert await rows_of(world, email_project.project_id) == before


@pytest.mark.parametrize("bulk", [False, True])
async def test_a_request_id_gives_the_same_answer_again(user_id_project: Client, world: World, bulk: bool) -> None:
    """X1: the same request again answers field for field as before and stores nothing; another body is refused."""
    event = NewEvent(identifiers=user("u1"), name="Viewed")
    bad = NewEvent(name="of nobody")

    def call(*events: NewEvent) -> Any:
        if bulk:
            request = BatchTrackRequest(events=[*events, bad], request_id="r1")
            return user_id_project.events.BatchTrack(request)
        return user_id_project.events.Track(TrackRequest(event=events[0], request_id="r1"))

    first = await call(event)
    before = await rows_of(world, user_id_project.project_id)
    again = await call(event)
    assert (first.replayed, again.replayed) == (False, True)
    again.replayed = False
    assert again == first
    refused = await failure(call(NewEvent(identifiers=user("u2"), name="Viewed")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    assert await rows_of(world, user_id_project.project_id) == before


# --- E8: reading -----------------------------------------------------------------------------------------------------

HOUR = timedelta(hours=1)


async def tell_ten(client: Client, subject: dict[str, Any], now: datetime) -> list[NewEvent]:
    """Ten events, an hour apart, the newest last; names a, b in turn, kinds CUSTOM, PAGE, SCREEN in turn."""
    events = [
        NewEvent(
            **subject,
            name="ab"[n % 2],
            kind=EventKind.ValueType(n % 3 + 1),
            event_id=f"e{n}",
            event_time=timestamp(now - HOUR * (10 - n)),
        )
        for n in range(10)
    ]
    await client.batch(random.Random(8).sample(events, k=10))
    return events


@pytest.mark.parametrize("subject", [*SUBJECTS, {"anonymous_id": "linked"}], ids=["person", "visitor", "linked"])
@pytest.mark.parametrize("page_size", [3, 500])
async def test_the_filters(email_project: Client, world: World, subject: dict[str, Any], page_size: int) -> None:
    """E8: names, kinds and the half-open time range select, together and on every page, newest first."""
    await known(email_project, A)
    now = await world.now()
    events = await tell_ten(email_project, subject, now)
    if subject == {"anonymous_id": "linked"}:
        # Linked and not yet relocated: the filters see through the merge too.
        await email_project.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="linked"))
        subject = {"identifiers": A}
    start, end = events[2].event_time, events[7].event_time
    filters: list[tuple[dict[str, Any], Sequence[int]]] = [
        ({}, range(10)),
        ({"names": ["a"]}, [0, 2, 4, 6, 8]),
        ({"names": ["a", "b", "c"]}, range(10)),
        ({"names": ["A"]}, []),
        ({"kinds": [2]}, [1, 4, 7]),
        ({"kinds": [1, 3]}, [0, 2, 3, 5, 6, 8, 9]),
        ({"kinds": [4]}, []),
        ({"start_time": start}, range(2, 10)),
        ({"end_time": end}, range(7)),
        ({"start_time": start, "end_time": end}, range(2, 7)),
        ({"start_time": end, "end_time": start}, []),
        ({"start_time": start, "end_time": start}, []),
        ({"names": ["b"], "kinds": [2, 3], "start_time": start, "end_time": end}, [5]),
    ]
    for wanted, expected in filters:
        listed = await email_project.timeline(page_size, **subject, **wanted)
        assert [event.event_id for event in listed] == [f"e{n}" for n in reversed(expected)], wanted


async def test_page_sizes(email_project: Client) -> None:
    """E8: 50 if nothing is said, 500 at most however many are asked for, and no token after the last page."""
    await email_project.batch([NewEvent(anonymous_id="x", name="Viewed") for _ in range(501)])
    for asked, given in ((0, 50), (1, 1), (500, 500), (501, 500), (2**31 - 1, 500)):
        page = await email_project.events.ListEvents(ListEventsRequest(anonymous_id="x", page_size=asked))
        assert len(page.events) == given
        assert page.next_page_token
    last = await email_project.events.ListEvents(
        ListEventsRequest(anonymous_id="x", page_size=1, page_token=page.next_page_token)
    )
    assert (len(last.events), last.next_page_token) == (1, "")


async def test_a_full_last_page_has_no_token(email_project: Client) -> None:
    """E8: when the events end where the page does, no empty page follows."""
    await email_project.batch([NewEvent(anonymous_id="x", name="Viewed") for _ in range(4)])
    page = await email_project.events.ListEvents(ListEventsRequest(anonymous_id="x", page_size=4))
    assert (len(page.events), page.next_page_token) == (4, "")


async def test_events_of_one_moment_are_paged_once(email_project: Client) -> None:
    """E8: events of the very same event_time fall on one page each, in a settled order."""
    moment = timestamp(datetime.now(UTC))
    await email_project.batch(
        [NewEvent(anonymous_id="x", name="Viewed", event_id=f"e{n:02}", event_time=moment) for n in range(11)]
    )
    listed = await email_project.timeline(2, anonymous_id="x")
    assert [event.event_id for event in listed] == [f"e{n:02}" for n in reversed(range(11))]


async def test_new_events_do_not_shift_the_pages(email_project: Client, world: World) -> None:
    """E8: what arrives between two pages is neither repeated nor makes anything else be skipped."""
    now = await world.now()
    await tell_ten(email_project, {"anonymous_id": "x"}, now)
    seen: list[str] = []
    token = ""
    for number in range(4):
        page = await email_project.events.ListEvents(ListEventsRequest(anonymous_id="x", page_size=3, page_token=token))
        seen += [event.event_id for event in page.events]
        token = page.next_page_token
        await email_project.track(anonymous_id="x", name="newer", event_id=f"n{number}")
    assert token == ""
    assert seen == [f"e{n}" for n in reversed(range(10))]


async def test_a_token_is_good_for_its_request_only(email_project: Client, world: World) -> None:
    """E8: another subject, filter or format with a page's token is PAGE_TOKEN_INVALID; another page size is fine."""
    await tell_ten(email_project, {"anonymous_id": "x"}, await world.now())
    asked: dict[str, Any] = {"anonymous_id": "x", "names": ["a"]}
    page = await email_project.events.ListEvents(ListEventsRequest(**asked, page_size=2))
    token = page.next_page_token
    changes: list[dict[str, Any]] = [
        {"anonymous_id": "y"},
        {"names": ["b"]},
        {"names": []},
        {"kinds": [1]},
        {"end_time": timestamp(datetime.now(UTC))},
        {"data_format": DATA_FORMAT_JSON},
    ]
    for change in changes:
        told = await failure(
            email_project.events.ListEvents(ListEventsRequest(**{**asked, **change}, page_token=token))
        )
        assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"), change
    following = await email_project.events.ListEvents(ListEventsRequest(**asked, page_size=500, page_token=token))
    assert [event.event_id for event in following.events] == ["e4", "e2", "e0"]


async def test_a_page_ends_before_it_is_too_large(email_project: Client) -> None:
    """E8, X5: a page stops at 3 MiB of data though more was asked for; the sequence still yields each event once."""
    await email_project.batch([NewEvent(anonymous_id="x", name=f"{n}", data_json=BIG) for n in range(38)])
    page = await email_project.events.ListEvents(ListEventsRequest(anonymous_id="x", page_size=500))
    assert 0 < len(page.events) < 38
    assert page.ByteSize() < 4 * 1024 * 1024
    names = await email_project.names(anonymous_id="x")
    assert names == [f"{n}" for n in reversed(range(38))]


async def test_a_page_of_numbers_is_not_too_large_as_a_struct(email_project: Client) -> None:
    """E8, X5: what grows on its way from JSON text to a Struct still arrives in messages of 4 MiB at most."""
    numbers = orjson.dumps({"a": [1] * 49_990}).decode()
    await email_project.batch([NewEvent(anonymous_id="x", name=f"{n}", data_json=numbers) for n in range(8)])
    listed = await email_project.timeline(anonymous_id="x")
    assert [event.name for event in listed] == [f"{n}" for n in reversed(range(8))]


# --- E8 across a relocation ------------------------------------------------------------------------------------------


async def history(client: Client, now: datetime) -> list[str]:
    """Events of a person and of two visitors, interleaved and some of one moment; returns the ids newest first."""
    await known(client, A)
    events = []
    for n in range(24):
        subject: dict[str, Any] = {"anonymous_id": "xyx"[n % 4 - 1]} if n % 4 else {"identifiers": A}
        event_time = timestamp(now - HOUR * (n // 3))
        events.append(NewEvent(**subject, name="Viewed", event_id=f"e{99 - n}", event_time=event_time))
    await client.batch(events)
    return [event.event_id for event in events]


async def page_of(client: Client, token: str, size: int) -> tuple[list[Event], str]:
    """One page of A's timeline."""
    page = await client.events.ListEvents(ListEventsRequest(identifiers=A, page_size=size, page_token=token))
    return list(page.events), page.next_page_token


@pytest.mark.parametrize("size", [1, 5])
async def test_pages_at_every_stage_of_a_relocation(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """E8, A3: a whole page sequence read after each chunk yields each event once, in the same order."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 4)
    expected = await history(email_project, await world.now())
    for anonymous_id in ("x", "y"):
        await email_project.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id=anonymous_id))
    stage = 0
    async for stage in stages(world, email_project.project_id):  # noqa: B007 - its last value is looked at below
        assert [event.event_id for event in await email_project.timeline(size, identifiers=A)] == expected
        assert await email_project.names(anonymous_id="x") == []
    assert stage > 6


@pytest.mark.parametrize("begun", range(9))
async def test_a_page_sequence_across_a_relocation(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, begun: int
) -> None:
    """E8, F40: a page sequence begun before a chunk and ended after the work yields each event exactly once."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 3)
    expected = await history(email_project, await world.now())
    for anonymous_id in ("x", "y"):
        await email_project.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id=anonymous_id))
    seen: list[str] = []
    token = ""
    async for stage in stages(world, email_project.project_id):
        if stage >= begun and (token or not seen):
            events, token = await page_of(email_project, token, 4)
            seen += [event.event_id for event in events]
    while token:
        events, token = await page_of(email_project, token, 4)
        seen += [event.event_id for event in events]
    assert seen == expected


async def test_a_reader_beside_the_worker(email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """E8, F40: with the worker moving rows meanwhile, every page sequence of a reader yields each event once."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 5)
    now = await world.now()
    events = [
        NewEvent(
            anonymous_id="x", name="Viewed", event_id=f"e{n:03}", event_time=timestamp(now - timedelta(seconds=n // 2))
        )
        for n in range(200)
    ]
    await email_project.batch(events)
    await email_project.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="x"))
    expected = sorted(event.event_id for event in events)

    async def work() -> None:
        async for _ in stages(world, email_project.project_id):
            pass

    working = asyncio.create_task(work())
    sequences = 0
    while not working.done() or not sequences:
        listed = await email_project.timeline(30, identifiers=A)
        assert sorted(event.event_id for event in listed) == expected
        sequences += 1
    await working
    assert await email_project.names(anonymous_id="x") == []
