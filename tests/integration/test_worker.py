"""The worker with a Valkey that is emptied, stopped, replaced or wrongly set up, and a PostgreSQL that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
import pytest_asyncio
from arq.connections import ArqRedis, create_pool
from arq.constants import job_key_prefix
from arq.utils import timestamp_ms
from grpc_health.v1 import health_pb2, health_pb2_grpc

from onefold.config import Settings
from onefold.db.migrate import migrate
from onefold.errors import Kind, OnefoldError
from onefold.intents.doorbell import QUEUE_NAME, Doorbell, job_id, redis_settings, ring_once, serialize_job
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent
from onefold.projects.bootstrap import ensure_project
from onefold.server import serve
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, ListTokenHoldersRequest, RegisterDeviceRequest
from onefold.v1.identity_service_pb2 import IdentifyRequest
from onefold.worker import work
from onefold.workflows import disabling, moving
from support.client import Client, email
from support.keeper import Kept, kept
from support.probes import eventually, held, rows_of, world_of
from support.world import World

PEOPLE = 5

# What arq calls, and how redis closes a connection that lost its server; neither is ours. Here, where tests end workers
# by the dozen, they are collected at once, so that they do not turn up in the midst of somebody else's test.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@dataclass
class Stack:
    """Servers of these tests' own, which they may stop and start, and a gRPC server on them in this process."""

    postgres: Kept
    valkey: Kept
    settings: Settings
    channel: grpc.aio.Channel
    world: World

    async def redis(self) -> ArqRedis:
        """A connection to Valkey."""
        return await create_pool(redis_settings(self.valkey.url), job_serializer=serialize_job)

    async def flush(self) -> None:
        """Empties Valkey."""
        redis = await self.redis()
        await redis.flushall()
        await redis.aclose()

    async def bells(self) -> int:
        """How many bells wait to be heard."""
        redis = await self.redis()
        try:
            return int(await redis.zcard(QUEUE_NAME))
        finally:
            await redis.aclose()


@pytest_asyncio.fixture(scope="module")
async def stack(folder: Path) -> AsyncIterator[Stack]:
    """One for all tests of this file; each leaves everything running, Valkey empty and no worker."""
    with kept("postgres", folder / "of-worker") as postgres, kept("valkey", folder / "of-worker") as valkey:
        await migrate(postgres.url)
        settings = Settings(
            database_url=postgres.url, redis_url=valkey.url, port=0, sweep_seconds=0.2, drain_seconds=1.0
        )
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        serving = asyncio.create_task(serve(settings, on_ready=ready.set_result, stop=stop))
        async with world_of(postgres.url) as world, grpc.aio.insecure_channel(await ready) as channel:
            yield Stack(postgres, valkey, settings, channel, world)
            stop.set()
            await serving


_numbers = itertools.count(1)


@pytest_asyncio.fixture
async def client(stack: Stack) -> AsyncIterator[Client]:
    """A fresh project, with Valkey empty."""
    await stack.flush()
    project_id = f"worker-{next(_numbers)}"
    key = await ensure_project(stack.postgres.url, project_id=project_id, identifier_type="EMAIL", api_key=None)
    yield Client(stack.channel, project_id, key)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two rows, so that there is a middle of the work."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    monkeypatch.setattr(disabling, "CHUNK_COPIES", 2)


@asynccontextmanager
async def working(settings: Settings) -> AsyncIterator[asyncio.Task[None]]:
    """A real worker in this process; at the end it is asked to stop, and must do so without a fault."""
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(work(settings, on_ready=ready.set, stop=stop))
    starting = asyncio.create_task(ready.wait())
    await asyncio.wait([task, starting], return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)
        gc.collect()


async def call_all(client: Client, names: list[str]) -> None:
    """For each name a person whose visitor is identified, and a token that is switched off for all who hold it.

    Every call must be OK, at its usual speed: within a second, whatever Valkey does.
    """
    for name in names:
        for number in range(PEOPLE):
            await client.track(anonymous_id=name, name=f"{name}{number}")
            device = NewDevice(token=name, platform=PLATFORM_FCM, application_name="shop")
            await client.devices.RegisterDevice(
                RegisterDeviceRequest(identifiers=email(f"p{number}@example.com"), device=device)
            )
        await client.identity.Identify(
            IdentifyRequest(identifiers=email(f"{name}@example.com"), anonymous_id=name), timeout=1.0
        )
        await client.devices.DisableDevice(DisableDeviceRequest(token=name), timeout=1.0)


async def check_reads(client: Client, names: list[str]) -> None:
    """What the calls promised is so, whatever the worker has done."""
    for name in names:
        events = await client.names(identifiers=email(f"{name}@example.com"), page_size=2)
        assert sorted(events) == [f"{name}{number}" for number in range(PEOPLE)]
        answer = await client.devices.ListTokenHolders(ListTokenHoldersRequest(token=name))
        assert [holder.device.endpoint_enabled for holder in answer.holders] == [False] * PEOPLE


async def finished(stack: Stack, client: Client, names: list[str]) -> None:
    """Returns when the worker, by itself, has done all the work; then each row was moved and counted just once."""
    world, project_id = stack.world, client.project_id

    async def at_rest() -> bool:
        await check_reads(client, names)
        # Only postponed associations are left: nobody touches them until their time has come.
        open_count, resting = (
            await world.fetch(
                """
                SELECT count(*), count(*) FILTER (WHERE lease_token IS NULL AND due_time > now() AND attempt_count = 0)
                FROM intents WHERE project_id = $1
                """,
                project_id,
            )
        )[0]
        if open_count and open_count == resting:
            await world.pass_time(project_id, timedelta(seconds=17))
        return bool(open_count == 0)

    await eventually(at_rest)
    await check_reads(client, names)
    moved = await world.value("SELECT sum(moved_event_count)::int FROM merges WHERE project_id = $1", project_id)
    switched = await world.value(
        "SELECT sum(disabled_count)::int FROM token_disables WHERE project_id = $1", project_id
    )
    left = await world.value("SELECT count(*) FROM anonymous_events WHERE project_id = $1", project_id)
    on = await world.value("SELECT count(*) FROM devices WHERE project_id = $1 AND endpoint_enabled", project_id)
    assert (moved, switched, left, on) == (PEOPLE * len(names), PEOPLE * len(names), 0, 0)


async def test_a_bell_wakes_the_worker(stack: Stack, client: Client) -> None:
    """D3, A3: the worker starts at the bell, long before its sweep would look."""
    async with working(stack.settings.model_copy(update={"sweep_seconds": 10.0})):
        await call_all(client, ["a"])

        async def begun() -> bool:
            sql = "SELECT count(*) FROM merges WHERE project_id = $1 AND moved_event_count = $2"
            return bool(await stack.world.value(sql, client.project_id, PEOPLE)) and not bool(
                await stack.world.value(
                    "SELECT count(*) FROM intents WHERE project_id = $1 AND kind = 'DISABLE'", client.project_id
                )
            )

        # The first sweep was before the calls; the next one is further away than this.
        await eventually(begun, 5.0)
        await check_reads(client, ["a"])


async def test_flushall_while_intents_are_open(stack: Stack, client: Client) -> None:
    """F7, X4: Valkey is emptied again and again, before, during and after the work: no call fails, and all is done."""
    flushing = True

    async def flush_for_ever() -> None:
        while flushing:
            await stack.flush()
            await asyncio.sleep(0)

    names = ["a", "b", "c", "d"]
    await call_all(client, names[:1])
    await stack.flush()
    async with working(stack.settings):
        flusher = asyncio.create_task(flush_for_ever())
        await call_all(client, names[1:])
        for _ in range(20):
            await stack.flush()
        flushing = False
        await flusher
        await stack.flush()
        await finished(stack, client, names)


async def test_a_lost_bell(stack: Stack, client: Client) -> None:
    """F7, F1: bells that were lost while no worker ran are rung again by the sweep of the next one."""
    await call_all(client, ["a", "b"])
    # A bell that the server is ringing just now may still come; without the others the work must be done all the same.
    await stack.flush()
    async with working(stack.settings):
        await finished(stack, client, ["a", "b"])


async def test_valkey_is_away(stack: Stack, client: Client) -> None:
    """F8, F9, X4: without Valkey every call is OK, health is SERVING, and the workers do the work from PostgreSQL.

    The doorbell is shown degraded meanwhile. When Valkey is back, bells are heard again.
    """
    async with working(stack.settings):
        await call_all(client, ["before"])
        stack.valkey.stop()
        try:
            await call_all(client, ["a", "b", "c"])
            health: Any = health_pb2_grpc.HealthStub(stack.channel)
            answer = await health.Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

            async def degraded() -> bool:
                shown = await health.Check(health_pb2.HealthCheckRequest(service="onefold.doorbell"))
                return bool(shown.status == health_pb2.HealthCheckResponse.NOT_SERVING)

            await eventually(degraded)
            await finished(stack, client, ["before", "a", "b", "c"])
        finally:
            stack.valkey.start()
        await call_all(client, ["after"])
        await finished(stack, client, ["before", "a", "b", "c", "after"])


async def test_a_worker_starts_without_valkey(stack: Stack, client: Client) -> None:
    """F9: a worker that finds no Valkey starts all the same, and does the work."""
    stack.valkey.stop()
    try:
        await call_all(client, ["a"])
        async with working(stack.settings):
            await finished(stack, client, ["a"])
    finally:
        stack.valkey.start()


async def test_valkey_is_back_with_old_bells(stack: Stack, client: Client) -> None:
    """F10: bells that come back for work that is done meanwhile are heard and write nothing."""
    names = ["a", "b"]
    await call_all(client, names)

    async def rung() -> bool:
        return await stack.bells() >= 2 * len(names)

    # The server may take a moment to find Valkey again after an earlier test: what it did not ring, we do.
    redis = await stack.redis()
    for intent_id in await stack.world.due(client.project_id):
        kind = await stack.world.value("SELECT kind FROM intents WHERE intent_id = $1", intent_id)
        await ring_once(redis, Intent(client.project_id, intent_id, IntentKind(kind)))
    await redis.aclose()
    await eventually(rung)
    stack.valkey.stop()
    try:
        async with working(stack.settings):
            await finished(stack, client, names)
    finally:
        stack.valkey.start()
    assert await stack.bells() >= 2 * len(names)
    before = await rows_of(stack.world, client.project_id)
    async with working(stack.settings):

        async def heard() -> bool:
            return await stack.bells() == 0

        await eventually(heard)
    assert await rows_of(stack.world, client.project_id) == before


async def test_two_workers(stack: Stack, client: Client) -> None:
    """F6: two workers on one Valkey, which is emptied so that bells ring twice, move and count each row once."""
    names = ["a", "b", "c"]
    async with working(stack.settings), working(stack.settings):
        await call_all(client, names)
        for _ in range(5):
            await stack.flush()
            await asyncio.sleep(0)
        await finished(stack, client, names)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_valkey_that_evicts(stack: Stack, policy: str) -> None:
    """F11: a Valkey that may drop keys is refused at the start, in a sentence that names the policy to set."""
    redis = await stack.redis()
    await redis.config_set("maxmemory-policy", policy)
    try:
        with pytest.raises(OnefoldError) as refused:
            await asyncio.wait_for(work(stack.settings, on_ready=lambda: None, stop=asyncio.Event()), 10)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
        await redis.aclose()
    assert refused.value.kind is Kind.FAILED_PRECONDITION
    assert "noeviction" in refused.value.message
    assert policy in refused.value.message


@pytest.mark.parametrize("with_valkey", [True, False])
async def test_stopping_in_mid_job(stack: Stack, client: Client, with_valkey: bool) -> None:
    """F19: a worker asked to stop in mid-chunk ends within 10 s, rolls all chunks back and frees every lease."""
    # As many intents as a worker has in hand at a time.
    names = ["a", "b"]
    if not with_valkey:
        stack.valkey.stop()
    try:
        await call_all(client, names)
        lock = ("LOCK TABLE events, devices IN SHARE ROW EXCLUSIVE MODE", ())

        async def all_wait() -> bool:
            waiting: int = await stack.world.value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND application_name = 'onefold worker'"
            )
            return waiting >= 4

        # Several times: which of the four chunks is rolled back first is a matter of luck.
        for _ in range(6):
            async with held(stack.postgres.url, lock):
                async with working(stack.settings):
                    await eventually(all_wait)
            assert len(await stack.world.due(client.project_id)) == 4
            assert await stack.world.value(
                "SELECT max(attempt_count) = 0 AND count(lease_token) = 0 FROM intents WHERE project_id = $1",
                client.project_id,
            )
        await check_reads(client, names)
        async with working(stack.settings):
            await finished(stack, client, names)
    finally:
        with contextlib.suppress(RuntimeError):
            if not with_valkey:
                stack.valkey.start()


async def test_postgresql_restarts_under_a_worker(stack: Stack, client: Client) -> None:
    """F12: a worker outlives the restart of PostgreSQL, in the midst of work too, and finishes it by itself."""
    async with working(stack.settings) as worker:
        await call_all(client, ["a"])
        for _ in range(2):
            stack.postgres.restart("immediate")

        async def reachable() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await client.names(anonymous_id="nobody")
                return True
            return False

        await eventually(reachable)
        await call_all(client, ["b"])
        await finished(stack, client, ["a", "b"])
        assert not worker.done()


async def test_a_stuck_intent_holds_nobody_up(stack: Stack, client: Client) -> None:
    """F26, F27: beside an intent that is stuck and one of an unknown kind, a worker does all others."""
    for kind, stuck in (("DISABLE", True), ("OF_TOMORROW", False)):
        await stack.world.fetch(
            """
            INSERT INTO intents (project_id, intent_id, kind, due_time, stuck_time)
            VALUES ('elsewhere', uuidv7(), $1, now() - '1 day'::interval, CASE WHEN $2 THEN now() END)
            """,
            kind,
            stuck,
        )
    sql = "SELECT intents::text FROM intents WHERE project_id = 'elsewhere' ORDER BY 1"
    before = await stack.world.fetch(sql)
    async with working(stack.settings) as worker:
        await call_all(client, ["a"])
        await finished(stack, client, ["a"])
        assert not worker.done()
    assert await stack.world.fetch(sql) == before
    await stack.world.fetch("DELETE FROM intents WHERE project_id = 'elsewhere'")


# --- the doorbell by itself -------------------------------------------------------------------------------------------


def bell(number: int) -> Intent:
    return Intent("shop", UUID(int=number), IntentKind.DISABLE)


async def test_a_bell_rung_twice_waits_once(stack: Stack) -> None:
    """F7: the bell of one attempt waits once however often it is rung; that of the next attempt waits beside it."""
    await stack.flush()
    redis = await stack.redis()
    try:
        for _ in range(3):
            await ring_once(redis, bell(1))
        assert await stack.bells() == 1
        await ring_once(redis, Intent("shop", UUID(int=1), IntentKind.DISABLE, 1))
        assert await stack.bells() == 2
    finally:
        await redis.aclose()
        await stack.flush()


@pytest.mark.parametrize("ahead_seconds", [3_600, 0, -3_600])
async def test_a_bell_is_due_by_everybodys_clock(
    ahead_seconds: int, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F23: a bell rung by a server whose clock is an hour off is due at once for a worker an hour behind."""
    await stack.flush()
    redis = await stack.redis()
    now = timestamp_ms()
    try:
        monkeypatch.setattr("arq.connections.timestamp_ms", lambda: now + ahead_seconds * 1_000)
        await ring_once(redis, bell(1))
        assert await redis.zcount(QUEUE_NAME, 1, now - 3_600_000) == 1
        # And it waits for as long as one that is rung by a right clock.
        assert await redis.ttl(f"{job_key_prefix}{job_id(bell(1))}") > 3_600
    finally:
        await redis.aclose()
        await stack.flush()


async def test_the_doorbell_falls_silent_and_comes_back(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """F8: after three bells that could not be rung the doorbell is silent for a while, says so, and rings again."""
    monkeypatch.setattr("onefold.intents.doorbell._OPEN_SECONDS", 0.2)
    await stack.flush()
    stack.valkey.stop()
    doorbell = Doorbell(stack.valkey.url)
    await doorbell.start()
    try:
        for number in range(3):
            assert not doorbell.degraded
            doorbell.ring(bell(number))

        async def degraded() -> bool:
            return doorbell.degraded

        await eventually(degraded)
    finally:
        stack.valkey.start()
    numbers = itertools.count(10)

    async def heard() -> bool:
        doorbell.ring(bell(next(numbers)))
        return await stack.bells() > 0

    await eventually(heard)
    assert not doorbell.degraded
    await doorbell.stop()
    await stack.flush()


async def test_a_valkey_that_never_answers(stack: Stack, client: Client) -> None:
    """F8: calls do not wait for a Redis that accepts connections and says nothing, and stopping does not either."""
    connections: list[asyncio.StreamWriter] = []

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.read()

    mute = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = mute.sockets[0].getsockname()[1]
    settings = stack.settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{port}/0"})
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(settings, on_ready=ready.set_result, stop=stop))
    async with grpc.aio.insecure_channel(await ready) as channel:
        slow = Client(channel, client.project_id, client.key)
        await call_all(slow, ["a", "b"])
        async with working(settings):
            await finished(stack, slow, ["a", "b"])
    stop.set()
    await asyncio.wait_for(serving, 10)
    assert connections
    mute.close()
    for writer in connections:
        writer.close()
