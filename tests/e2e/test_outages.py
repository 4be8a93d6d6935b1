"""PostgreSQL fails under real servers and workers: shut down at once in the midst of a move, restarted, read-only."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from onefold.identity.links import subject_id
from onefold.projects.bootstrap import ensure_project
from onefold.v1.event_pb2 import EVENT_KIND_CART_UPDATE, NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import GetProfileRequest, UpdateProfileRequest
from support.client import Client, email, failure, read_failure
from support.keeper import Kept, kept
from support.merging import identify
from support.probes import eventually, held, rows_of, world_of
from support.processes import run, running
from support.world import World

A = email("a@example.com")
EVENTS = 40_000
UNAVAILABLE, EXHAUSTED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED


@dataclass
class Servers:
    """A PostgreSQL with the schema and a Valkey of these tests' own."""

    postgres: Kept
    settings: dict[str, str]

    async def key(self, project_id: str) -> str:
        """Makes a project; its key."""
        return await ensure_project(self.postgres.url, project_id=project_id, identifier_type="EMAIL", api_key=None)


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[Servers]:
    """One pair for all tests of this file; each leaves them running."""
    with kept("postgres", folder / "outages") as postgres, kept("valkey", folder / "outages") as valkey:
        settings = {"ONEFOLD_DATABASE_URL": postgres.url, "ONEFOLD_REDIS_URL": valkey.url}
        assert run("migrate", **settings).returncode == 0
        yield Servers(postgres, settings)


async def store_events(world: World, project_id: str) -> None:
    """Gives the visitor x a history."""
    await world.fetch(
        """
        INSERT INTO anonymous_events (
            project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, data
        )
        SELECT $1, $2, now() - number * interval '1 s', 'e' || number, now(), 1, 'Viewed', 'x', '{}'
        FROM generate_series(1, $3::integer) AS number
        """,
        project_id,
        subject_id(project_id, "x"),
        EVENTS,
    )


async def moved(world: World, merge_id: UUID) -> int:
    """How many events of a merge lie with their owner, as the ledger has it."""
    count: int = await world.value("SELECT moved_event_count FROM merges WHERE merge_id = $1", merge_id)
    return count


async def test_postgresql_is_shut_down_in_mid_move(servers: Servers) -> None:
    """F12, X3: while PostgreSQL is shut down in the midst of a move, every call is UNAVAILABLE within 2 s. Server
    and worker come back by themselves within 5 s of its return; what was acknowledged is there, each event once."""
    project_id, acknowledged = "moving", set()
    key = await servers.key(project_id)
    async with world_of(servers.postgres.url) as world:
        await store_events(world, project_id)
    with running("serve", "--port", "0", **servers.settings) as server, running("work", **servers.settings) as worker:
        async with grpc.aio.insecure_channel(server.address) as channel:
            client = Client(channel, project_id, key)
            stop = asyncio.Event()
            told: set[grpc.StatusCode] = set()

            async def write(writer: int) -> None:
                for number in itertools.count():
                    event = NewEvent(anonymous_id="y", name="Viewed", event_id=f"{writer}-{number}")
                    try:
                        # One that is not answered within its 2 s would be DEADLINE_EXCEEDED.
                        await client.events.Track(TrackRequest(event=event), timeout=2.0)
                        acknowledged.add(event.event_id)
                    except grpc.aio.AioRpcError as error:
                        told.add(error.code())
                    if stop.is_set():
                        return

            async with asyncio.TaskGroup() as writers:
                for writer in range(4):
                    writers.create_task(write(writer))
                async with world_of(servers.postgres.url) as world:
                    merge_id = UUID((await identify(client, A, "x")).merge_id)

                    async def some_are_moved() -> bool:
                        return await moved(world, merge_id) > 0

                    await eventually(some_are_moved)
                servers.postgres.stop("immediate")
                away = await failure(client.identity.GetProfile(GetProfileRequest(identifiers=A), timeout=2.0))
                assert (away.code, away.reason) == (UNAVAILABLE, "DATABASE_UNAVAILABLE")
                servers.postgres.start()

                async def answers() -> bool:
                    try:
                        await client.identity.GetProfile(GetProfileRequest(identifiers=A), timeout=2.0)
                    except grpc.aio.AioRpcError:
                        return False
                    return True

                await eventually(answers, 5.0)
                count = len(acknowledged)

                async def writes_again() -> bool:
                    return len(acknowledged) > count

                await eventually(writes_again, 5.0)
                stop.set()
            assert told <= {UNAVAILABLE}
            async with world_of(servers.postgres.url) as world:
                assert 0 < await moved(world, merge_id) <= EVENTS
                # The lease that the chunk left ends 30 s after it began. These 30 s pass now.
                await world.fetch("UPDATE intents SET lease_end_time = lease_end_time - '30 s'::interval")

                async def all_are_moved() -> bool:
                    return await moved(world, merge_id) == EVENTS

                await eventually(all_are_moved)
                sql = "SELECT count(*), count(DISTINCT event_id) FROM events WHERE project_id = $1"
                [row] = await world.fetch(sql, project_id)
                assert tuple(row) == (EVENTS, EVENTS)
                rows = await world.fetch("SELECT event_id FROM anonymous_events WHERE project_id = $1", project_id)
                assert acknowledged <= {row[0] for row in rows}
        assert worker.process.poll() is None
        for process in (server, worker):
            assert process.stop(timeout=10) == 0
            assert "Traceback" not in process.said()


async def test_postgresql_is_restarted_under_an_idle_server(servers: Servers) -> None:
    """F13: after a restart that a server did not notice, its first reads, as many as it has connections, are all OK."""
    key = await servers.key("idle")
    with running("serve", "--port", "0", **servers.settings) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            client = Client(channel, "idle", key)
            await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))

            async def read_all() -> None:
                await asyncio.gather(*(client.names(identifiers=A) for _ in range(10)))

            await read_all()
            servers.postgres.restart()
            await read_all()


async def test_postgresql_becomes_read_only(servers: Servers) -> None:
    """F15: when PostgreSQL takes no more writes under a running server and worker, writes are UNAVAILABLE, reads go on,
    health is NOT_SERVING and nothing is half done; when it takes them again, all goes on by itself."""
    project_id = "read-only"
    key = await servers.key(project_id)
    admin = await asyncpg.connect(servers.postgres.url)

    async def set_read_only(value: str) -> None:
        await admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        await admin.execute("SELECT pg_reload_conf()")

    try:
        with (
            running("serve", "--port", "0", **servers.settings) as server,
            running("work", **servers.settings) as worker,
        ):
            async with grpc.aio.insecure_channel(server.address) as channel, world_of(servers.postgres.url) as world:
                client = Client(channel, project_id, key)
                health: Any = health_pb2_grpc.HealthStub(channel)

                async def reports(status: int) -> bool:
                    answer = await health.Check(health_pb2.HealthCheckRequest())
                    return bool(answer.status == status)

                await client.track(anonymous_id="x", name="Viewed")
                # The worker is in the midst of a chunk when it happens.
                async with held(servers.postgres.url, ("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE", ())):
                    await identify(client, A, "x")
                    await set_read_only("on")
                    await eventually(lambda: reports(health_pb2.HealthCheckResponse.NOT_SERVING))
                before = await rows_of(world, project_id)
                for call in (
                    client.track(identifiers=A, name="Lost"),
                    client.identity.UpdateProfile(UpdateProfileRequest(identifiers=A, data_fields_json='{"a":1}')),
                ):
                    refused = await failure(call)
                    assert (refused.code, refused.reason) == (UNAVAILABLE, "DATABASE_UNAVAILABLE")
                assert await client.names(identifiers=A) == ["Viewed"]
                after = await rows_of(world, project_id)
                # The worker may have ended what it had begun.
                for table in ("profiles", "identifiers", "event_ids", "requests"):
                    assert after.get(table) == before.get(table)
                await set_read_only("off")
                await eventually(lambda: reports(health_pb2.HealthCheckResponse.SERVING))
                await client.track(identifiers=A, name="Later")
                await world.fetch("UPDATE intents SET lease_end_time = lease_end_time - '30 s'::interval")

                async def all_is_moved() -> bool:
                    return not await world.value(
                        "SELECT count(*) FROM anonymous_events WHERE project_id = $1", project_id
                    )

                await eventually(all_is_moved)
                assert await client.names(identifiers=A) == ["Later", "Viewed"]
            assert worker.process.poll() is None
    finally:
        await admin.execute("SET default_transaction_read_only = off")
        await admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.close()


async def test_the_disk_is_full(servers: Servers) -> None:
    """F15: when PostgreSQL has no room for what is written, that is UNAVAILABLE and leaves nothing, reads go on, and
    health is NOT_SERVING; when there is room again all goes on. (It says that it has no room by a trigger here.)"""
    project_id = "full"
    key = await servers.key(project_id)
    with running("serve", "--port", "0", **servers.settings) as server:
        async with grpc.aio.insecure_channel(server.address) as channel, world_of(servers.postgres.url) as world:
            client = Client(channel, project_id, key)
            health: Any = health_pb2_grpc.HealthStub(channel)

            async def reports(status: int) -> bool:
                answer = await health.Check(health_pb2.HealthCheckRequest())
                return bool(answer.status == status)

            await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))
            await world.fetch(
                "CREATE FUNCTION test_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
            )
            await world.fetch(
                "CREATE TRIGGER test_full BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION test_full()"
            )
            before = await rows_of(world, project_id)
            new = NewEvent(identifiers=email("new@example.com"), name="cart", kind=EVENT_KIND_CART_UPDATE)
            for event in (NewEvent(identifiers=A, name="Lost"), new):
                refused = await failure(client.events.Track(TrackRequest(event=event)))
                assert (refused.code, refused.reason) == (UNAVAILABLE, "DATABASE_UNAVAILABLE")
                assert "space" not in refused.message
            await eventually(lambda: reports(health_pb2.HealthCheckResponse.NOT_SERVING))
            assert await client.names(identifiers=A) == []
            assert await rows_of(world, project_id) == before
            await world.fetch("DROP FUNCTION test_full CASCADE")
            await client.track(identifiers=A, name="Stored")
            await eventually(lambda: reports(health_pb2.HealthCheckResponse.SERVING))
            assert await client.names(identifiers=A) == ["Stored"]


async def test_ten_times_the_load(servers: Servers) -> None:
    """F17: of ten times the calls that a server takes the excess is refused at once, its memory stays flat, and when
    the load is over every call is OK again."""
    key = await servers.key("load")
    settings = {**servers.settings, "ONEFOLD_CONCURRENT_CALLS": "20"}
    with running("serve", "--port", "0", **settings) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            client = Client(channel, "load", key)
            acknowledged: set[str] = set()
            refused: list[str] = []

            async def call(event_id: str) -> None:
                request = TrackRequest(
                    event=NewEvent(anonymous_id="x", name="Viewed", event_id=event_id), request_id=event_id
                )
                while True:
                    try:
                        await client.events.Track(request, timeout=10.0)
                        acknowledged.add(event_id)
                    except grpc.aio.AioRpcError as error:
                        if read_failure(error).reason == "LOCK_TIMEOUT":
                            continue
                        assert error.code() == EXHAUSTED
                        refused.append(read_failure(error).reason)
                    return

            async def burst(count: int) -> None:
                first = len(acknowledged) + len(refused)
                await asyncio.gather(*(call(f"{first + number}") for number in range(count)))

            async def overload() -> None:
                """Nobody gets done before all others are refused."""
                expected = len(refused) + 180

                async def all_others_are_refused() -> bool:
                    return len(refused) >= expected

                async with asyncio.TaskGroup() as tasks:
                    async with held(servers.postgres.url, ("LOCK TABLE anonymous_events IN SHARE MODE", ())):
                        tasks.create_task(burst(200))
                        await eventually(all_others_are_refused)

            await overload()
            process = psutil.Process(server.process.pid)
            before = process.memory_info().rss
            for _ in range(10):
                await overload()
            assert set(refused) == {"SERVER_BUSY"}
            assert process.memory_info().rss - before < 50_000_000
            refused.clear()
            for _ in range(10):
                await burst(20)
            assert refused == []
        assert server.stop(timeout=10) == 0
    async with world_of(servers.postgres.url) as world:
        rows = await world.fetch("SELECT event_id FROM anonymous_events WHERE project_id = 'load'")
        assert {row[0] for row in rows} == acknowledged
