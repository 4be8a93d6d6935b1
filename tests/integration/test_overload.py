"""More than a server can do: what is too much is refused at once, and what is in hand gets done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.timestamp_pb2 import Timestamp

from onefold.callers import IdentifierType, Project, ProjectSettings, Region
from onefold.config import Settings
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason
from onefold.events import batcher as batching
from onefold.events.batcher import Batcher
from onefold.events.rules import Arrival, EventKind
from onefold.rpc.payload import EMPTY
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, ListEventsRequest, TrackRequest
from onefold.v1.identity_service_pb2 import UpdateProfileRequest
from onefold.v1.projects_service_pb2 import GetProjectRequest
from support.client import Client, email, failure
from support.holding import stuck
from support.probes import eventually, waits_for_lock
from support.serving import served
from support.world import World

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
A = email("a@example.com")


def track(c: Client, event_id: str) -> Any:
    """Tells a visitor's event."""
    return c.events.Track(TrackRequest(event=NewEvent(anonymous_id="x", name=event_id, event_id=event_id)))


async def test_ten_times_the_load(email_project: Client, settings: Settings, world: World) -> None:
    """F17, X2: of ten times the calls that a server takes, the excess is refused at once, while the others still wait,
    with SERVER_BUSY and RetryInfo and nothing stored; those in hand get done, and the full number is served again."""
    own = settings.model_copy(update={"concurrent_calls": 8})
    async with served(own) as channel:
        c = Client(channel, email_project.project_id, email_project.key)
        async with stuck(settings, "event_ids", c.project_id):
            in_hand = [asyncio.ensure_future(track(c, f"{n}")) for n in range(8)]
            await waits_for_lock(world)
            refused = await asyncio.gather(*(failure(track(c, f"{n}")) for n in range(8, 80)))
            assert not [call for call in in_hand if call.done()]
        assert {(each.code, each.reason) for each in refused} == {(EXHAUSTED, "SERVER_BUSY")}
        assert all(each.retry_seconds for each in refused)
        await asyncio.gather(*in_hand)
        assert sorted(await c.names(anonymous_id="x")) == [f"{n}" for n in range(8)]
        for first in range(8, 80, 8):
            results = await asyncio.gather(*(track(c, f"{n}") for n in range(first, first + 8)))
            assert not any(each.result.duplicate for each in results)
        assert len(await c.names(anonymous_id="x")) == 80


@pytest_asyncio.fixture
async def small(email_project: Client, settings: Settings) -> AsyncIterator[Client]:
    """A server with two connections, for which a call waits 0.2 s."""
    own = settings.model_copy(update={"server_connections": 2, "acquire_seconds": 0.2})
    async with served(own) as channel:
        c = Client(channel, email_project.project_id, email_project.key)
        await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))
        yield c


@asynccontextmanager
async def held_pool(c: Client, settings: Settings, world: World) -> AsyncIterator[None]:
    """During the block two calls keep the two connections of the server."""
    request = UpdateProfileRequest(identifiers=A, data_fields_json='{"a":1}')
    async with stuck(settings, "profiles", c.project_id):
        holding = [asyncio.ensure_future(c.identity.UpdateProfile(request)) for _ in range(2)]
        await waits_for_lock(world, 2)
        yield
        assert not [call for call in holding if call.done()]
    await asyncio.gather(*holding)


async def test_events_while_the_pool_is_held(small: Client, settings: Settings, world: World) -> None:
    """F16: while no connection is to be had, every event told alone or in a batch is POOL_BUSY with RetryInfo, also one
    that waits behind another, and nothing is written; afterwards the same events are stored as new."""
    async with held_pool(small, settings, world):
        batch = BatchTrackRequest(events=[NewEvent(anonymous_id="x", name="b", event_id="b")])
        calls = [track(small, f"{n}") for n in range(40)]
        with_id = TrackRequest(event=NewEvent(anonymous_id="x", name="r", event_id="r"), request_id="r")
        calls += [small.events.BatchTrack(batch), small.events.Track(with_id)]
        refused = await asyncio.gather(*(failure(call) for call in calls))
    assert {(each.code, each.reason) for each in refused} == {(EXHAUSTED, "POOL_BUSY")}
    assert all(each.retry_seconds for each in refused)
    for table in ("anonymous_events", "event_ids", "requests"):
        sql = f"SELECT count(*) FROM {table} WHERE project_id = $1"
        assert await world.value(sql, small.project_id) == 0
    results = await asyncio.gather(*(track(small, f"{n}") for n in range(40)))
    assert not any(each.result.duplicate for each in results)


BAD_TIMES = {
    "year 10000": Timestamp(seconds=253_402_300_800),
    "the last microsecond of 9999": Timestamp(seconds=253_402_300_799, nanos=999_999_000),
    "negative nanos": Timestamp(seconds=1, nanos=-1),
    "2^62": Timestamp(seconds=2**62),
}


@pytest.mark.parametrize("moment", BAD_TIMES.values(), ids=BAD_TIMES)
async def test_bad_times_are_refused_before_any_sql(
    small: Client, settings: Settings, world: World, moment: Timestamp
) -> None:
    """F68: a time that no table could hold is INVALID_ARGUMENT, also while there is no connection to send SQL on."""
    async with held_pool(small, settings, world):
        event = NewEvent(anonymous_id="x", name="Viewed", event_time=moment)
        for call, fields in (
            (small.events.Track(TrackRequest(event=event)), ["event.event_time"]),
            (small.events.Track(TrackRequest(event=event, request_id="r1")), ["event.event_time"]),
            (small.events.ListEvents(ListEventsRequest(anonymous_id="x", start_time=moment)), ["start_time"]),
            (small.events.ListEvents(ListEventsRequest(anonymous_id="x", end_time=moment)), ["end_time"]),
        ):
            refused = await failure(call)
            assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


async def test_no_more_events_wait_than_there_is_room_for(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16, F17: the queue of events that wait for a connection is bounded: one more is refused at once, and when the
    wait for a connection is over, nobody is left in it."""
    monkeypatch.setattr(batching, "_WAITING_EVENTS", 20)
    now = await world.now()
    project = Project("queue", IdentifierType.EMAIL, Region.US, ProjectSettings(), now, now)
    one = await Database.connect(settings.database_url, connections=1, acquire_seconds=0.5)
    batcher = Batcher(one)
    await batcher.start()
    release = asyncio.Event()

    async def hold(_: Connection) -> None:
        await release.wait()

    try:
        holding = asyncio.create_task(one.transact(hold))
        await asyncio.sleep(0)
        waiting: list[asyncio.Future[Any]] = []

        async def is_full() -> bool:
            arrival = Arrival(None, "x", "Viewed", EventKind.CUSTOM, EMPTY, None, None)
            waiting.append(asyncio.ensure_future(batcher.track(project, arrival)))
            await asyncio.sleep(0)
            return waiting[-1].done()

        await eventually(is_full)
        # One that is being stored, and those that wait behind it.
        assert len(waiting) - 1 in (20, 21)
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert {each.reason for each in answers if isinstance(each, OnefoldError)} == {Reason.POOL_BUSY}
        assert len([each for each in answers if isinstance(each, OnefoldError)]) == len(waiting)
        release.set()
        await holding
    finally:
        release.set()
        await batcher.stop()
        await one.close()
    assert await world.value("SELECT count(*) FROM anonymous_events WHERE project_id = 'queue'") == 0


@pytest.mark.parametrize("key", [None, "made-up"])
async def test_a_stranger_holds_no_place(settings: Settings, hybrid_project: Client, key: str | None) -> None:
    """F75, P6: calls without a good key are refused before their message comes, and none that never comes holds a place
    that others need."""
    path = "/onefold.v1.ProjectsService/GetProject"
    async with served(settings.model_copy(update={"concurrent_calls": 2})) as channel:
        begun: list[Any] = [channel.stream_unary(path) for _ in range(40)]
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        never = asyncio.Event()

        async def nothing() -> AsyncIterator[bytes]:
            await never.wait()
            yield b""

        calls: list[Any] = [call(nothing(), metadata=metadata, timeout=30) for call in begun]
        for told in await asyncio.gather(*(failure(call) for call in calls)):
            assert told.code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        other = Client(channel, hybrid_project.project_id, hybrid_project.key)
        assert (await other.projects.GetProject(GetProjectRequest())).project.project_id == hybrid_project.project_id
