"""TrackStream while its server is killed, again and again, by SIGKILL."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import grpc

from onefold.db.migrate import migrate
from onefold.projects.bootstrap import ensure_project
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackStreamRequest, TrackStreamResponse
from support.client import Client, user
from support.keeper import kept
from support.probes import world_of
from support.processes import Running, running
from support.world import World

PROJECT = "shop"
BATCHES, EVENTS = 120, 25
# One kill early, one late, and one somewhere.
KILLS = [1, random.Random(20261122).randrange(10, BATCHES - 10), BATCHES - 2]


def request(number: int) -> TrackStreamRequest:
    """The batch of a number, always the same: people's and visitors' events, some of people who are new."""
    events = [
        NewEvent(name="Viewed", event_id=f"{number}-{n}", identifiers=user(f"u{(number + n) % 40}"))
        if n % 3
        else NewEvent(name="Viewed", event_id=f"{number}-{n}", anonymous_id=f"x{n % 5}")
        for n in range(EVENTS)
    ]
    return TrackStreamRequest(sequence=number, events=events)


async def stored(world: World) -> list[str]:
    """The ids of all events that are stored."""
    rows = await world.fetch(
        "SELECT event_id FROM events WHERE project_id = $1 UNION ALL "
        "SELECT event_id FROM anonymous_events WHERE project_id = $1",
        PROJECT,
    )
    return [row["event_id"] for row in rows]


async def stream(server: Running, key: str, acknowledged: int, kill_at: int | None) -> int:
    """Streams from the first batch that was not acknowledged; kills the server when a certain one is.

    Returns the last one that was acknowledged. Batches are sent as fast as they are taken, so that some are in flight
    at the kill.
    """
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = Client(channel, PROJECT, key).events.TrackStream()

        async def send() -> None:
            for number in range(acknowledged + 1, BATCHES + 1):
                await call.write(request(number))
            await call.done_writing()

        sending = asyncio.create_task(send())
        try:
            async with asyncio.timeout(60.0):
                while (answer := await call.read()) is not grpc.aio.EOF:
                    assert isinstance(answer, TrackStreamResponse)
                    assert answer.sequence == acknowledged + 1
                    assert [result.result.event_id for result in answer.results] == [
                        event.event_id for event in request(answer.sequence).events
                    ]
                    acknowledged = answer.sequence
                    if acknowledged == kill_at:
                        server.kill()
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            assert kill_at is not None
        finally:
            sending.cancel()
            await asyncio.wait({sending})
            if not sending.cancelled():
                # It failed as the call did, or had sent everything.
                sending.exception()
    return acknowledged


async def test_a_killed_server_loses_and_repeats_nothing(folder: Path) -> None:
    """E4, E3, F1, F2, F3, X3: whenever a server is killed, each batch that was acknowledged is stored whole; sent again
    from the first one that was not, every event is stored once, and each batch is stored whole or not at all.

    Valkey is not there at all: no batch needs it.
    """
    with kept("postgres", folder / "streams") as postgres:
        await migrate(postgres.url)
        key = await ensure_project(postgres.url, project_id=PROJECT, identifier_type="USER_ID", api_key=None)
        settings = {"ONEFOLD_DATABASE_URL": postgres.url, "ONEFOLD_REDIS_URL": "redis://127.0.0.1:1/0"}
        acknowledged = 0
        async with world_of(postgres.url) as world:
            for kill_at in [*KILLS, None]:
                with running("serve", "--port", "0", **settings) as server:
                    acknowledged = await stream(server, key, acknowledged, kill_at)
                there = await stored(world)
                assert len(there) == len(set(there))
                by_batch = [sum(1 for each in there if each.startswith(f"{n}-")) for n in range(1, BATCHES + 1)]
                assert set(by_batch[:acknowledged]) <= {EVENTS}
                assert set(by_batch[acknowledged:]) <= {0, EVENTS}
            assert acknowledged == BATCHES
            assert sorted(there) == sorted(event.event_id for n in range(1, BATCHES + 1) for event in request(n).events)
            assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", PROJECT) == 40
