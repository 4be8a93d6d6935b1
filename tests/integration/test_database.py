"""PostgreSQL away, restarted, busy or slow: what callers get, and what is there afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import asyncpg
import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from onefold.config import Settings
from onefold.db.migrate import migrate
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.embedded import EmbeddedPostgres
from onefold.errors import Kind, OnefoldError, Reason, not_found
from onefold.projects.bootstrap import ensure_project
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import GetProfileRequest, IdentifyRequest, UpdateProfileRequest
from support.client import Client, email, failure
from support.keeper import Kept, kept
from support.probes import eventually, held, rows_of, waits_for_lock, world_of
from support.serving import served
from support.world import World

A = email("a@example.com")
Mode = Literal["fast", "immediate"]

# --- a server whose PostgreSQL comes and goes -------------------------------------------------------------------------


@dataclass
class Restartable:
    """A PostgreSQL of our own that a test may stop and start, and a project on a server on it in this process."""

    postgres: Kept
    client: Client


@pytest_asyncio.fixture(scope="module")
async def restartable(folder: Path, settings: Settings) -> AsyncIterator[Restartable]:
    """One for all tests of this file; each leaves it running."""
    with kept("postgres", folder / "restartable") as postgres:
        await migrate(postgres.url)
        key = await ensure_project(postgres.url, project_id="shop", identifier_type="EMAIL", api_key=None)
        own = settings.model_copy(update={"database_url": postgres.url, "drain_seconds": 1.0})
        async with served(own) as channel:
            yield Restartable(postgres, Client(channel, "shop", key))


async def get(client: Client, timeout: float = 10.0) -> Any:
    return await client.identity.GetProfile(GetProfileRequest(identifiers=A), timeout=timeout)


async def write(client: Client, fields: str = '{"a":1}', request_id: str = "", timeout: float = 10.0) -> Any:
    request = UpdateProfileRequest(identifiers=A, data_fields_json=fields, request_id=request_id)
    return await client.identity.UpdateProfile(request, timeout=timeout)


async def codes(calls: list[Awaitable[Any]]) -> set[grpc.StatusCode]:
    """The codes that some calls at once came back with."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    told = set()
    for result in results:
        if isinstance(result, grpc.aio.AioRpcError):
            told.add(result.code())
        else:
            assert not isinstance(result, BaseException), result
            told.add(grpc.StatusCode.OK)
    return told


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("connections", [1, 8])
async def test_a_restart_under_an_idle_pool(restartable: Restartable, mode: Mode, connections: int) -> None:
    """F13: after a restart that nobody noticed every first read is OK, with any number of stale connections."""
    await write(restartable.client)
    # So many connections are open now, and idle.
    assert await codes([get(restartable.client) for _ in range(connections)]) == {grpc.StatusCode.OK}
    restartable.postgres.restart(mode)
    assert await codes([get(restartable.client) for _ in range(connections)]) == {grpc.StatusCode.OK}


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_first_write_after_a_restart(restartable: Restartable, mode: Mode) -> None:
    """F12, F13: the first writes after a restart are OK or UNAVAILABLE, never INTERNAL; what is OK is there."""
    await codes([get(restartable.client) for _ in range(8)])
    restartable.postgres.restart(mode)
    for number in range(8):
        told = await codes([write(restartable.client, f'{{"n{number}":1}}')])
        assert told <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        if grpc.StatusCode.OK in told:
            assert f"n{number}" in (await get(restartable.client)).profile.data_fields
    assert await codes([write(restartable.client)]) == {grpc.StatusCode.OK}


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_while_postgresql_is_away(restartable: Restartable, mode: Mode) -> None:
    """F12: while PostgreSQL is away every call is UNAVAILABLE within its 2 s, with RetryInfo, and health says so.

    By itself, and with nothing lost, the server is back when PostgreSQL is.
    """
    client = restartable.client
    await write(client, '{"kept":"yes"}')
    health: Any = health_pb2_grpc.HealthStub(client.channel)

    async def reports(status: int) -> bool:
        answer = await health.Check(health_pb2.HealthCheckRequest())
        return bool(answer.status == status)

    await eventually(lambda: reports(health_pb2.HealthCheckResponse.SERVING))
    restartable.postgres.stop(mode)
    # A call that is not answered within its deadline would be DEADLINE_EXCEEDED.
    for call in (get(client, 2.0), write(client, timeout=2.0), get(client, 2.0), write(client, timeout=2.0)):
        away = await failure(call)
        assert (away.code, away.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert away.retry_seconds
        assert away.message
        assert "postgres" not in away.message.lower()
        assert str(restartable.postgres.folder) not in away.message
    await eventually(lambda: reports(health_pb2.HealthCheckResponse.NOT_SERVING))
    restartable.postgres.start()

    async def answers() -> bool:
        return await codes([get(client)]) == {grpc.StatusCode.OK}

    await eventually(answers, 5.0)
    assert (await get(client)).profile.data_fields["kept"] == "yes"
    assert await codes([write(client)]) == {grpc.StatusCode.OK}
    await eventually(lambda: reports(health_pb2.HealthCheckResponse.SERVING))


async def test_an_immediate_shutdown_in_mid_call(restartable: Restartable) -> None:
    """F12, F14: a call whose transaction PostgreSQL loses is UNAVAILABLE and left nothing; its retry has one effect."""
    client = restartable.client
    await client.events.Track(TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed")))
    await write(client)
    async with world_of(restartable.postgres.url) as world:
        before = await rows_of(world, "shop")
        identify = IdentifyRequest(identifiers=A, anonymous_id="x", data_fields_json='{"new":1}', request_id="r1")
        # A foreign session holds the link's place, so that the call has written the profile and not yet committed.
        lock = (
            """
            INSERT INTO identifiers
            (project_id, kind, value, profile_id, exclusive, merge_id, link_time, grace_end_time)
            VALUES ('shop', 3, 'x', uuidv7(), true, uuidv7(), now(), now())
            """,
            (),
        )
        async with held(restartable.postgres.url, lock):
            call = asyncio.ensure_future(client.identity.Identify(identify))
            await waits_for_lock(world)
            restartable.postgres.restart("immediate")
            lost = await failure(call)
        assert (lost.code, lost.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    async with world_of(restartable.postgres.url) as world:
        assert await rows_of(world, "shop") == before
        first = await client.identity.Identify(identify)
        assert not first.replayed
        after = await rows_of(world, "shop")
        assert (await client.identity.Identify(identify)).replayed
        assert await rows_of(world, "shop") == after
        assert len(after["merges"]) == len(before["merges"]) + 1


async def test_acknowledged_writes_survive_an_immediate_shutdown(restartable: Restartable) -> None:
    """X3, F12: of many writes under way when PostgreSQL is shut down at once, each that was acknowledged is there."""
    client = restartable.client
    acknowledged: set[str] = set()
    told: set[grpc.StatusCode] = set()
    stop = asyncio.Event()

    async def track(writer: int) -> None:
        number = 0
        while not stop.is_set():
            event_id = f"{writer}-{number}"
            event = NewEvent(anonymous_id="writes", name="Viewed", event_id=event_id)
            try:
                await client.events.Track(TrackRequest(event=event), timeout=5.0)
            except grpc.aio.AioRpcError as error:
                told.add(error.code())
                await asyncio.sleep(0.01)
            else:
                acknowledged.add(event_id)
            number += 1

    writers = [asyncio.create_task(track(writer)) for writer in range(8)]

    async def some(count: int) -> bool:
        return len(acknowledged) >= count

    await eventually(lambda: some(100))
    restartable.postgres.restart("immediate")
    count = len(acknowledged)
    await eventually(lambda: some(count + 100))
    stop.set()
    await asyncio.gather(*writers)
    assert told <= {grpc.StatusCode.UNAVAILABLE}
    stored = {event.event_id for event in await client.timeline(anonymous_id="writes")}
    assert acknowledged <= stored


# --- the pool ---------------------------------------------------------------------------------------------------------


async def test_a_pool_that_is_held(email_project: Client, settings: Settings, world: World) -> None:
    """F16: with all connections held for longer than a call waits it is POOL_BUSY with RetryInfo, and wrote nothing."""
    await write(email_project)
    small = settings.model_copy(update={"server_connections": 2, "acquire_seconds": 0.1, "port": 0})
    async with served(small) as channel:
        client = Client(channel, email_project.project_id, email_project.key)
        await get(client)
        async with held(
            settings.database_url, ("SELECT FROM profiles WHERE project_id = $1 FOR UPDATE", (client.project_id,))
        ):
            holding = [asyncio.ensure_future(write(client, '{"b":1}')) for _ in range(2)]
            await waits_for_lock(world, 2)
            before = await rows_of(world, client.project_id)
            # At once: whoever holds a connection waits for the lock for a second only.
            calls = (get(client), write(client, '{"c":1}'), client.track(anonymous_id="x", name="Viewed"))
            for busy in await asyncio.gather(*map(failure, calls)):
                assert (busy.code, busy.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "POOL_BUSY")
                assert busy.retry_seconds
            assert await rows_of(world, client.project_id) == before
        # The lock is free again: those that held the connections go on, and so does everybody else.
        await asyncio.gather(*holding)
        assert sorted((await get(client)).profile.data_fields) == ["a", "b"]


@pytest_asyncio.fixture
async def tiny(settings: Settings) -> AsyncIterator[Database]:
    """A pool of one connection: one that is not given back is missed at once."""
    database = await Database.connect(settings.database_url, connections=1, acquire_seconds=0.5)
    yield database
    await database.close()


@pytest_asyncio.fixture
async def notes(world: World) -> AsyncIterator[str]:
    """A table whose COMMIT waits for the advisory lock 4712 when its row says so."""
    await world.fetch("CREATE TABLE test_notes (text text PRIMARY KEY)")
    await world.fetch(
        """
        CREATE FUNCTION test_wait() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock_shared(4712); RETURN NULL; END $$
        """
    )
    await world.fetch(
        """
        CREATE CONSTRAINT TRIGGER test_wait AFTER INSERT ON test_notes DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (new.text LIKE 'slow%') EXECUTE FUNCTION test_wait()
        """
    )
    yield "test_notes"
    await world.fetch("DROP TABLE test_notes")
    await world.fetch("DROP FUNCTION test_wait")


def note(text: str) -> Callable[[Connection], Awaitable[str]]:
    """Work that stores a note."""

    async def work(connection: Connection) -> str:
        await connection.execute("INSERT INTO test_notes (text) VALUES ($1)", text)
        return text

    return work


async def noted(world: World) -> list[str]:
    return [row[0] for row in await world.fetch("SELECT text FROM test_notes ORDER BY 1")]


async def test_a_cancelled_commit_commits(tiny: Database, notes: str, world: World, settings: Settings) -> None:
    """F20: a caller cancelled during the COMMIT leaves at once; the COMMIT goes on, and the connection comes back."""
    async with held(settings.database_url, ("SELECT pg_advisory_xact_lock(4712)", ())) as other:
        committing = asyncio.create_task(tiny.transact(note("slow 1")))
        await waits_for_lock(world)
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        assert await noted(world) == []
        # The one connection is still busy with the COMMIT, and nobody else may have it meanwhile.
        with pytest.raises(OnefoldError) as busy:
            await tiny.read(note("never"))
        assert busy.value.reason is Reason.POOL_BUSY
        await other.rollback()
    assert await tiny.transact(note("next")) == "next"
    assert await noted(world) == ["next", "slow 1"]


async def test_closing_lets_commits_end(notes: str, world: World, settings: Settings) -> None:
    """F18: a server that stops while a COMMIT of a caller who has gone is under way lets it end first."""
    database = await Database.connect(settings.database_url, connections=2)
    async with held(settings.database_url, ("SELECT pg_advisory_xact_lock(4712)", ())) as other:
        committing = asyncio.create_task(database.transact(note("slow 2")))
        await waits_for_lock(world)
        committing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await committing
        closing = asyncio.create_task(database.close())
        await other.rollback()
        await closing
    assert await noted(world) == ["slow 2"]


async def test_cancelled_work_is_rolled_back(tiny: Database, notes: str, world: World, settings: Settings) -> None:
    """F21: work that is cancelled at any statement leaves nothing, and its connection serves the next caller."""
    await tiny.transact(note("taken"))
    async with held(settings.database_url, ("INSERT INTO test_notes (text) VALUES ('held')", ())):

        async def work(connection: Connection) -> None:
            await note("first half")(connection)
            await note("held")(connection)

        for _ in range(3):
            working = asyncio.create_task(tiny.transact(work))
            await waits_for_lock(world)
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
            assert await tiny.read(lambda connection: connection.fetchval("SELECT count(*) FROM test_notes")) == 1
    assert await noted(world) == ["taken"]


async def test_work_that_fails_is_rolled_back(tiny: Database, notes: str, world: World) -> None:
    """X2: an error of the work comes out as it is, leaves nothing, and the connection serves the next caller."""

    async def work(connection: Connection) -> None:
        await note("half")(connection)
        raise ValueError("ours")

    for _ in range(3):
        with pytest.raises(ValueError, match="ours"):
            await tiny.transact(work)
    assert await noted(world) == []
    assert await tiny.transact(note("whole")) == "whole"


@pytest.mark.parametrize("snapshot", [False, True])
async def test_cancelled_reads_give_their_connection_back(tiny: Database, snapshot: bool) -> None:
    """F16: a caller that goes away in mid-read does not keep a connection."""
    for _ in range(3):
        begun = asyncio.Event()

        async def read(connection: Connection, begun: asyncio.Event = begun) -> None:
            begun.set()
            await connection.execute("SELECT pg_sleep(60)")

        reading = asyncio.create_task(tiny.read(read, snapshot=snapshot))
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await tiny.read(lambda connection: connection.fetchval("SELECT 1"), snapshot=snapshot) == 1


async def test_a_read_stopped_before_its_statement_ran_leaves_no_transaction(tiny: Database, world: World) -> None:
    """F20: a read that is cancelled between preparing a statement and running it leaves no transaction behind, so that
    the next use of the connection works and has the time of its own beginning."""

    async def stopped(connection: Connection) -> None:
        # asyncpg has sent no Sync yet: to PostgreSQL this has begun a transaction.
        await connection.prepare("SELECT count(*) FROM projects")
        raise asyncio.CancelledError

    async def began(connection: Connection) -> Any:
        return await connection.fetchval("SELECT now()")

    with pytest.raises(asyncio.CancelledError):
        await tiny.read(stopped)
    await tiny.read(began, snapshot=True)
    with pytest.raises(asyncio.CancelledError):
        await tiny.read(stopped)
    before = await world.value("SELECT clock_timestamp()")
    assert await tiny.transact(began) > before


async def test_a_connection_lost_on_its_way_back_changes_no_outcome(restartable: Restartable) -> None:
    """F12, X2: what a call came to is told, also when its connection proves to be lost as it goes back to the pool."""
    database = await Database.connect(restartable.postgres.url, connections=1)

    async def refused(connection: Connection) -> None:
        # Going back, asyncpg would end this transaction, and finds nobody there.
        await connection.execute("BEGIN")
        restartable.postgres.restart("immediate")
        raise not_found(Reason.PROFILE_NOT_FOUND, "Nobody.")

    try:
        with pytest.raises(OnefoldError) as error:
            await database.read(refused)
        assert error.value.reason == Reason.PROFILE_NOT_FOUND
    finally:
        await database.close()


async def test_a_lock_that_is_not_to_be_had(email_project: Client, world: World, settings: Settings) -> None:
    """X2, F21: a call that waits too long for another's lock is UNAVAILABLE / LOCK_TIMEOUT, and had no effect."""
    await write(email_project)
    before = await rows_of(world, email_project.project_id)
    lock = ("SELECT FROM profiles WHERE project_id = $1 FOR UPDATE", (email_project.project_id,))
    async with held(settings.database_url, lock):
        late = await failure(write(email_project, '{"b":1}', "r1"))
    assert (late.code, late.reason) == (grpc.StatusCode.UNAVAILABLE, "LOCK_TIMEOUT")
    assert late.retry_seconds
    assert await rows_of(world, email_project.project_id) == before
    assert not (await write(email_project, '{"b":1}', "r1")).replayed


async def test_a_read_only_database(email_project: Client, settings: Settings, world: World) -> None:
    """F15: when PostgreSQL refuses writes they are UNAVAILABLE, without effect; reads go on; health is NOT_SERVING."""
    await write(email_project)
    before = await rows_of(world, email_project.project_id)
    read_only = settings.database_url + "&default_transaction_read_only=on"
    async with served(settings.model_copy(update={"database_url": read_only, "port": 0})) as channel:
        client = Client(channel, email_project.project_id, email_project.key)
        refused = await failure(write(client, '{"b":1}'))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
        assert (await get(client)).profile.identifiers == A
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def not_serving() -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest())
            return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

        await eventually(not_serving)
    assert await rows_of(world, email_project.project_id) == before


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://onefold@127.0.0.1:1/onefold",
        "postgresql://onefold@/onefold?host=/nowhere",
        "postgresql://onefold@unknown.invalid/onefold",
    ],
)
async def test_nobody_there(url: str) -> None:
    """X2, F12: a PostgreSQL that cannot be reached is UNAVAILABLE, told without the address or the driver's text."""
    for connecting in (Database.connect(url), migrate(url)):
        with pytest.raises(OnefoldError) as away:
            await connecting
        assert (away.value.kind, away.value.reason) == (Kind.UNAVAILABLE, Reason.DATABASE_UNAVAILABLE)
        assert url not in away.value.message


async def test_no_driver_text_gets_out(email_project: Client, world: World) -> None:
    """X2: what PostgreSQL says about a row that it refuses stays inside: a fixed sentence and an id come out."""
    await world.fetch(
        "ALTER TABLE events ADD CONSTRAINT test_no_secret CHECK (data->>'a' IS DISTINCT FROM 'secret') NOT VALID"
    )
    try:
        await write(email_project)
        event = NewEvent(identifiers=A, name="Viewed", data_json='{"a":"secret"}')
        broken = await failure(email_project.events.Track(TrackRequest(event=event)))
    finally:
        await world.fetch("ALTER TABLE events DROP CONSTRAINT test_no_secret")
    assert (broken.code, broken.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert set(broken.metadata) == {"error_id"}
    for hidden in ("secret", "test_no_secret", "CheckViolation", "INSERT", "events"):
        assert hidden not in broken.message


async def test_migrating_twice_at_once_does_it_once(postgres: EmbeddedPostgres) -> None:
    """F27: processes that start together on an empty database apply each migration once; later ones find none."""
    connection = await asyncpg.connect(postgres.url())
    try:
        await connection.execute("CREATE DATABASE test_migrate")
        done = await asyncio.gather(*(migrate(postgres.url("test_migrate")) for _ in range(4)))
        assert sorted(map(bool, done)) == [False, False, False, True]
        assert await migrate(postgres.url("test_migrate")) == []
    finally:
        await connection.execute("DROP DATABASE IF EXISTS test_migrate WITH (FORCE)")
        await connection.close()
