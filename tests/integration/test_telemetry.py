"""What a real server and a real worker tell of themselves: metrics, probes, traces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio

from onefold.config import Settings
from onefold.db.errors import LostRaceError
from onefold.db.health import problem
from onefold.db.pool import Database, after_commit
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, not_found
from onefold.server import FILES
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, TrackRequest, TrackStreamRequest
from onefold.v1.identity_service_pb2 import IdentifyRequest, UpdateProfileRequest
from support.client import Client, email, failure
from support.probes import eventually, held, world_of
from support.scraping import Page, get, scrape
from support.serving import served
from support.watched import Watched, watching
from support.world import World

CANARY = "canary-7f3a"
METHODS = {
    (service.full_name, method.name)
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
# As in test_worker.py: arq's and redis' own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest_asyncio.fixture(scope="module")
async def watched(settings: Settings) -> AsyncIterator[Watched]:
    """A server and a worker for all tests of this file."""
    async with watching(settings) as both:
        yield both


@pytest_asyncio.fixture
async def world(watched: Watched) -> AsyncIterator[World]:
    """Hands behind these two."""
    async with world_of(watched.settings.database_url) as behind:
        yield behind


@asynccontextmanager
async def server_of_its_own(settings: Settings, **changes: Any) -> AsyncIterator[str]:
    """The side port of another server, which has not looked at the database yet."""
    http: list[str] = []
    async with served(settings.model_copy(update={"http_port": 0, **changes}), on_http=http.append):
        yield http[0]


# --- metrics ----------------------------------------------------------------------------------------------------------


async def test_every_call_is_counted_by_its_method_and_code(watched: Watched) -> None:
    """X2: started, handled by code, messages and seconds go up by what was called, and the reasons of errors."""
    client = await watched.client("counted")
    labels = {"grpc_service": "onefold.v1.EventsService", "grpc_method": "Track", "grpc_type": "unary"}
    before = await watched.pages()
    for _ in range(3):
        await client.events.Track(TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed")))
    await failure(client.events.Track(TrackRequest()))
    await failure(Client(watched.channel, "", "nobody").events.Track(TrackRequest()))
    enough = before.value("grpc_server_handled_total", **labels) + 5
    after = await watched.until(lambda page: page.value("grpc_server_handled_total", **labels) >= enough)

    def more(name: str, **wanted: str) -> float:
        return after.value(name, **wanted) - before.value(name, **wanted)

    codes = {"OK": 3, "INVALID_ARGUMENT": 1, "UNAUTHENTICATED": 1}
    assert {code: more("grpc_server_handled_total", grpc_code=code, **labels) for code in codes} == codes
    assert more("grpc_server_started_total", **labels) == 5
    # The message of a call without a good key is not read.
    assert more("grpc_server_msg_received_total", **labels) == 4
    assert more("grpc_server_msg_sent_total", **labels) == 3
    assert more("grpc_server_handling_seconds_count", **labels) == 5
    assert more("grpc_server_handling_seconds_bucket", le="+Inf", **labels) == 5
    assert more("onefold_call_errors_total", reason="FIELDS_INVALID") == 1
    assert more("onefold_call_errors_total", reason="API_KEY_INVALID") == 1
    assert more("onefold_batch_events_sum") == 3
    assert more("onefold_pool_acquire_seconds_count") >= 3


async def test_the_messages_of_a_stream_are_counted(watched: Watched) -> None:
    """E4: each batch and each acknowledgement counts, and the stream once, when it has ended."""
    client = await watched.client("streams")
    labels = {"grpc_service": "onefold.v1.EventsService", "grpc_method": "TrackStream", "grpc_type": "bidi_stream"}
    before = await watched.pages()
    requests = [
        TrackStreamRequest(sequence=number, events=[NewEvent(anonymous_id="x", name="Viewed")]) for number in (1, 2, 3)
    ]
    assert [answer.sequence async for answer in client.events.TrackStream(iter(requests))] == [1, 2, 3]
    names = ("grpc_server_msg_received_total", "grpc_server_msg_sent_total", "grpc_server_handled_total")

    def more(page: Page) -> list[float]:
        return [page.value(name, **labels) - before.value(name, **labels) for name in names]

    assert more(await watched.until(lambda page: more(page)[2] >= 1)) == [3, 3, 1]


async def test_labels_are_names_of_ours_and_hold_nobodys_data(watched: Watched) -> None:
    """F42: whatever callers send, to methods that are there or not, no label grows by it and no page has it."""
    client = await watched.client("labels")
    await client.identity.Identify(IdentifyRequest(identifiers=email(f"{CANARY}@example.com"), anonymous_id=CANARY))
    await failure(client.events.Track(TrackRequest(event=NewEvent(name=CANARY, anonymous_id=CANARY, event_id="\0"))))
    for method in (f"/onefold.v1.EventsService/{CANARY}", f"/{CANARY}/Track", "/onefold.v1.EventsService/"):
        stub: Any = watched.channel.unary_unary(method)
        call = stub(b"", metadata=(("authorization", f"Bearer {client.key}"),))
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    page = await watched.pages()
    for name, labels in page.series:
        has = dict(labels)
        # Another test of this process may have served methods of its own.
        if name.startswith("grpc_") and not has["grpc_service"].startswith("onefold.test."):
            assert (has["grpc_service"], has["grpc_method"]) in METHODS
    for address in (watched.server, watched.worker):
        body = (await get(address, "/metrics")).body
        assert CANARY not in body
        assert client.key not in body
        assert client.project_id not in body


async def test_every_method_is_there_before_its_first_call(watched: Watched) -> None:
    """X2: a method that nobody has called yet is shown with 0, so that its first failure is an increase."""
    page = await watched.pages()
    for service, method in METHODS:
        labels = frozenset(
            labels
            for name, labels in page.series
            if name == "grpc_server_handled_total" and ("grpc_method", method) in labels
        )
        assert any(("grpc_service", service) in has for has in labels)


async def test_what_is_not_done_twice_is_counted(watched: Watched) -> None:
    """E3, X1: an event that was stored before counts as a duplicate, an answer that was stored as replayed."""
    client = await watched.client("again")
    before = await watched.pages()
    event = NewEvent(anonymous_id="x", name="Viewed", event_id="once")
    for _ in range(3):
        await client.events.Track(TrackRequest(event=event))
    batch = BatchTrackRequest(events=[event, event, NewEvent(anonymous_id="x", name="Viewed")])
    assert [item.result.duplicate for item in (await client.events.BatchTrack(batch)).results] == [True, True, False]
    write = UpdateProfileRequest(identifiers=email("a@example.com"), request_id="one")
    assert [(await client.identity.UpdateProfile(write)).replayed for _ in range(3)] == [False, True, True]
    after = await watched.until(
        lambda page: page.value("onefold_replayed_answers_total") > before.value("onefold_replayed_answers_total") + 1
    )
    for name, count in (("onefold_duplicate_events_total", 4), ("onefold_replayed_answers_total", 2)):
        assert after.value(name) - before.value(name) == count


async def test_the_work_of_the_workers_is_counted(watched: Watched) -> None:
    """A3, D3: the rows that a worker has relocated or switched off are counted by kind, with its chunks and its runs,
    and the bells that told of them."""
    client = await watched.client("work")
    before = await watched.pages()
    for _ in range(4):
        await client.events.Track(TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed")))
    for name in ("a", "b", "c"):
        device = NewDevice(token="t", platform=PLATFORM_FCM, application_name="app")
        await client.devices.RegisterDevice(
            RegisterDeviceRequest(identifiers=email(f"{name}@example.com"), device=device)
        )
    await client.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"))
    await client.devices.DisableDevice(DisableDeviceRequest(token="t"))

    def more(page: Page, name: str, **labels: str) -> float:
        return page.value(name, **labels) - before.value(name, **labels)

    after = await watched.until(
        lambda page: all(more(page, "onefold_intent_runs_total", kind=kind) >= 1 for kind in ("MOVE", "DISABLE"))
    )
    assert more(after, "onefold_intent_rows_total", kind="MOVE") == 4
    assert more(after, "onefold_intent_rows_total", kind="DISABLE") == 3
    assert more(after, "onefold_intent_chunk_seconds_count", kind="MOVE") >= 1
    assert more(after, "onefold_intent_runs_total", kind="DISABLE", result="ended") >= 1
    assert more(after, "onefold_doorbell_rings_total", result="rung") >= 2
    assert after.value("onefold_doorbell_degraded") == 0


async def test_the_backlog_is_told_by_kind(watched: Watched, world: World) -> None:
    """F26, F27: what is open, stuck and overdue is PostgreSQL's own count, whichever process is asked; kinds of a newer
    version are counted under one name."""
    add = (
        "INSERT INTO intents (project_id, intent_id, kind, create_time, due_time, stuck_time) "
        "VALUES ('telemetry-backlog', $1, $2, now() - $3::interval, now() - $3::interval, $4)"
    )
    async with server_of_its_own(watched.settings) as address:
        before = await scrape(address)
    ids = [uuid4() for _ in range(3)]

    async def insert(connection: Any) -> None:
        now = await connection.fetchval("SELECT now()")
        await connection.execute(add, ids[0], "REVIEW", timedelta(hours=1), now)
        await connection.execute(add, ids[1], "OF_TOMORROW", timedelta(hours=2), None)
        await connection.execute(add, ids[2], "OF_NEXT_WEEK", timedelta(hours=3), None)

    await world.database.transact(insert)
    try:
        async with server_of_its_own(watched.settings) as address:
            page = await scrape(address)
    finally:
        await world.database.transact(
            lambda connection: connection.execute("DELETE FROM intents WHERE project_id = 'telemetry-backlog'")
        )
    assert page.value("onefold_backlog_known") == 1
    stuck = "onefold_intents_stuck"
    assert page.value(stuck, kind="REVIEW") - before.value(stuck, kind="REVIEW") == 1
    assert page.value("onefold_intents_open", kind="NEWER") == 2
    assert 3 * 3600 <= page.value("onefold_intents_overdue_seconds", kind="NEWER") < 3 * 3600 + 60
    assert 3 * 3600 <= page.value("onefold_intents_oldest_seconds", kind="NEWER") < 3 * 3600 + 60
    assert not {"OF_TOMORROW", "OF_NEXT_WEEK"} & page.values("kind")


async def test_a_scrape_does_not_wait_for_the_database(watched: Watched) -> None:
    """F15, F16: while PostgreSQL does not answer, a page comes within seconds. It says that the backlog is not known,
    shows no old numbers, and has the rest."""
    async with held(watched.settings.database_url, ("LOCK TABLE intents IN ACCESS EXCLUSIVE MODE", ())):
        async with server_of_its_own(watched.settings) as address, asyncio.timeout(5):
            page = await scrape(address)
    assert page.value("onefold_backlog_known") == 0
    assert "onefold_intents_open" not in page.labels()
    assert page.value("onefold_build_info", role="server") == 1
    assert page.value("onefold_pool_connections_max") == watched.settings.server_connections


async def test_who_waits_for_a_connection_is_told(watched: Watched) -> None:
    """F16: the pool shows what is in use and what waits."""
    settings = watched.settings.model_copy(update={"http_port": 0, "server_connections": 2, "acquire_seconds": 20.0})
    http: list[str] = []
    client = await watched.client("waits")
    lock = ("LOCK TABLE profiles IN ACCESS EXCLUSIVE MODE", ())
    async with served(settings, on_http=http.append) as channel:
        other = Client(channel, client.project_id, client.key)
        await other.events.Track(TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed")))
        async with held(settings.database_url, lock):
            calls = [
                asyncio.ensure_future(
                    other.identity.UpdateProfile(UpdateProfileRequest(identifiers=email(f"w{number}@example.com")))
                )
                for number in range(6)
            ]

            async def waiting() -> bool:
                page = await scrape(http[0])
                return (
                    page.value("onefold_pool_waiting") >= 4
                    and page.value("onefold_pool_connections", state="in_use") == 2
                )

            await eventually(waiting)
        await asyncio.gather(*calls, return_exceptions=True)


# --- probes -----------------------------------------------------------------------------------------------------------


async def test_a_server_that_is_stopping_is_live_and_not_ready(watched: Watched) -> None:
    """F18: from the moment a server is asked to stop, /readyz is 503 while calls still end, and /livez is 200."""
    stop = asyncio.Event()
    http: list[str] = []
    settings = watched.settings.model_copy(update={"http_port": 0})
    async with served(settings, stop, on_http=http.append):
        assert (await get(http[0], "/livez")).status == 200

        async def ready() -> bool:
            return (await get(http[0], "/readyz")).status == 200

        await eventually(ready)
        stop.set()
        answer = await get(http[0], "/readyz")
        assert (answer.status, answer.body) == (503, "stopping\n")
        assert (await get(http[0], "/livez")).status == 200


async def test_a_worker_is_ready_too(watched: Watched) -> None:
    """F19: a worker answers probes as a server does."""

    async def ready() -> bool:
        return (await get(watched.worker, "/readyz")).status == 200

    await eventually(ready)
    assert (await scrape(watched.worker)).value("onefold_build_info", role="worker") == 1


async def test_a_database_that_does_not_fit_is_told(settings: Settings, world: World) -> None:
    """F15, F27: a database that takes no writes, or was put back to an older schema, is named as what is wrong; a
    newer one is fine."""
    name = f"unfit_{uuid4().hex}"
    url = settings.database_url.replace("@/onefold?", f"@/{name}?")
    steps = [
        ("SELECT 1", "the schema is older than this version"),
        ("CREATE TABLE schema_migrations (version integer)", "the schema is older than this version"),
        ("INSERT INTO schema_migrations SELECT generate_series(2, 10000)", "the schema is older than this version"),
        ("INSERT INTO schema_migrations VALUES (1)", None),
        (f"ALTER DATABASE {name} SET default_transaction_read_only = on", "PostgreSQL takes no writes"),
    ]
    await world.database.maintain(lambda connection: connection.execute(f"CREATE DATABASE {name}"))
    try:
        for statement, expected in steps:
            unfit = await Database.connect(url, connections=1)
            await unfit.maintain(partial(execute, statement))
            await unfit.close()
            # Anew, for what is set for a database counts for new sessions.
            unfit = await Database.connect(url, connections=1)
            assert await problem(unfit) == expected, statement
            await unfit.close()
    finally:
        await world.database.maintain(lambda connection: connection.execute(f"DROP DATABASE {name} WITH (FORCE)"))


async def execute(statement: str, connection: Connection) -> None:
    """Runs a statement."""
    await connection.execute(statement)


async def test_what_is_rolled_back_is_not_counted(database: Database) -> None:
    """X3: what a transaction counts counts when it has committed, once, however often it was run again."""
    counted: list[str] = []
    attempts = iter([LostRaceError(), LostRaceError(), None])
    lost = database.lost_races

    async def work_(connection: Connection) -> None:
        after_commit(partial(counted.append, "raced"))
        fault = next(attempts)
        if fault is not None:
            raise fault

    async def refused(connection: Connection) -> None:
        after_commit(partial(counted.append, "refused"))
        raise not_found(Reason.PROFILE_NOT_FOUND, "Nobody.")

    await database.transact(work_)
    with pytest.raises(OnefoldError):
        await database.transact(refused)
    assert counted == ["raced"]
    assert database.lost_races - lost == 2
