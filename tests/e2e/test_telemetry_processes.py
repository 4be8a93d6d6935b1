"""Metrics, probes, log lines and traces of real processes, as an operator has them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from onefold.projects.bootstrap import ensure_project
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import IdentifyRequest
from support.client import Client, email, failure
from support.keeper import Kept, kept
from support.probes import eventually
from support.processes import Running, environment, run, running
from support.scraping import get, scrape

CANARY = "canary-5d1c"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass(frozen=True)
class Servers:
    """A PostgreSQL and a Valkey of these tests' own."""

    postgres: Kept
    valkey: Kept

    def settings(self, **changes: str) -> dict[str, str]:
        """The environment of a process on them."""
        return {"ONEFOLD_DATABASE_URL": self.postgres.url, "ONEFOLD_REDIS_URL": self.valkey.url, **changes}

    async def client(self, channel: grpc.aio.Channel, project_id: str) -> Client:
        """A project's stubs."""
        key = await ensure_project(self.postgres.url, project_id=project_id, identifier_type="EMAIL", api_key=None)
        return Client(channel, project_id, key)


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[Servers]:
    """One pair for all tests of this file."""
    with kept("postgres", folder / "telemetry") as postgres, kept("valkey", folder / "telemetry") as valkey:
        assert run("migrate", ONEFOLD_DATABASE_URL=postgres.url, ONEFOLD_REDIS_URL=valkey.url).returncode == 0
        yield Servers(postgres, valkey)


@pytest.fixture(scope="module")
def pair(servers: Servers) -> Iterator[tuple[Running, Running]]:
    """A server and a worker with side ports; the last test with them stops them."""
    settings = servers.settings(ONEFOLD_HTTP_PORT="0")
    with running("serve", "--port", "0", **settings) as server, running("work", **settings) as worker:
        yield server, worker


def two_free_ports() -> int:
    """The first of two ports that follow each other."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
            except OSError:
                continue


def lines(process: Running) -> list[dict[str, Any]]:
    """What a process has logged; the time, the level and the event come first in every line."""
    found = [json.loads(line) for line in process.said().splitlines()]
    assert [list(line)[:3] for line in found] == [["time", "level", "event"]] * len(found)
    return found


async def test_each_process_of_a_server_tells_what_it_did(servers: Servers) -> None:
    """F18: of a server of two processes each has a port of its own, and together they have counted every call; with the
    share of good calls at 0, only those that failed are logged."""
    port = two_free_ports()
    settings = servers.settings(ONEFOLD_LOG_OK_SHARE="0")
    with running("serve", "--workers", "2", "--port", "0", "--http-port", str(port), **settings) as server:
        async with AsyncExitStack() as stack:
            for _ in range(32):
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.address, options))
                client = await servers.client(channel, "several")
                await client.track(anonymous_id="x", name="Viewed")
            await failure(client.events.Track(TrackRequest()))
        pages = [await scrape(f"127.0.0.1:{each}") for each in (port, port + 1)]
        counts = [page.value("grpc_server_handled_total", grpc_method="Track", grpc_code="OK") for page in pages]
        assert sum(counts) == 32
        assert all(counts)
        assert len({page.value("process_start_time_seconds") for page in pages}) == 2
        assert server.stop() == 0
        [line] = lines(server)
        assert (line["event"], line["code"], line["reason"]) == ("call", "INVALID_ARGUMENT", "FIELDS_INVALID")


async def test_a_line_for_each_call_and_each_intent(servers: Servers, pair: tuple[Running, Running]) -> None:
    """F42: server and worker log calls and intents in one shape, with ids of ours and the caller's trace, and nothing
    that a caller sent."""
    server, worker = pair
    async with grpc.aio.insecure_channel(server.address) as channel:
        client = await servers.client(channel, "logged")
        await client.track(anonymous_id=CANARY, name=CANARY)
        await failure(client.events.Track(TrackRequest(event=NewEvent(anonymous_id=CANARY, name=CANARY * 100))))
        identify = IdentifyRequest(identifiers=email(f"{CANARY}@example.com"), anonymous_id=CANARY)
        await client.identity.Identify(identify, metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),))

    async def told() -> bool:
        return "Identify" in server.said() and '"intent"' in worker.said()

    await eventually(told)
    calls = [line for line in lines(server) if line["event"] == "call"]
    assert [(line["level"], line["method"].split("/")[2], line["code"]) for line in calls] == [
        ("info", "Track", "OK"),
        ("info", "Track", "INVALID_ARGUMENT"),
        ("info", "Identify", "OK"),
    ]
    assert {line["project_id"] for line in calls} == {"logged"}
    assert calls[1]["reason"] == "FIELDS_INVALID"
    assert calls[2]["trace_id"] == TRACE
    assert all(0 < line["milliseconds"] < 60_000 for line in calls)
    [intent] = [line for line in lines(worker) if line["event"] == "intent"]
    assert (intent["kind"], intent["result"], intent["attempt"], intent["rows"]) == ("MOVE", "ended", 1, 1)
    assert intent["project_id"] == "logged"
    for process in pair:
        assert CANARY not in process.said()
        assert client.key not in process.said()


async def test_readiness_follows_postgresql(servers: Servers, pair: tuple[Running, Running]) -> None:
    """F12, F15: while PostgreSQL is away server and worker are live and not ready, and say why; when it is back they
    are ready again. While Valkey is away they are ready. Whatever they log meanwhile has the one shape."""

    async def all_are(status: int) -> bool:
        return {(await get(each.http, "/readyz")).status for each in pair} == {status}

    servers.valkey.stop()
    await eventually(lambda: all_are(200))
    servers.postgres.stop("immediate")
    try:
        await eventually(lambda: all_are(503))
        for each in pair:
            assert (await get(each.http, "/livez")).status == 200
            assert "PostgreSQL" in (await get(each.http, "/readyz")).body
            assert (await scrape(each.http)).value("onefold_ready") == 0
    finally:
        servers.postgres.start()
        servers.valkey.start()
    await eventually(lambda: all_are(200))
    for each in pair:
        assert each.stop() == 0
        assert {line["level"] for line in lines(each)} <= {"info", "warning", "error"}


async def test_traces_go_where_the_standard_variables_say(servers: Servers) -> None:
    """F18, F19: OTEL_* alone turns traces on, and a collector that is away fails nothing and holds up no end."""
    printing = servers.settings(OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="shop-onefold")
    to_nobody = servers.settings(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    with running("serve", "--port", "0", **printing) as server, running("work", **to_nobody) as worker:
        async with grpc.aio.insecure_channel(server.address) as channel:
            client = await servers.client(channel, "exported")
            identify = IdentifyRequest(identifiers=email(f"{CANARY}@example.com"), anonymous_id=CANARY)
            await client.identity.Identify(identify)

            async def worked() -> bool:
                return '"intent"' in worker.said()

            await eventually(worked)
        assert (server.stop(), worker.stop(timeout=10)) == (0, 0)
        assert '"name": "onefold.v1.IdentityService/Identify"' in server.said()
        assert '"service.name": "shop-onefold"' in server.said()
        for process in (server, worker):
            assert "Traceback" not in process.said()
            assert CANARY not in process.said()


def test_without_the_extra_there_are_no_traces() -> None:
    """F18: nothing of OpenTelemetry is imported unless it is asked for; a missing extra is one line in the log."""
    program = (
        "import os, sys; sys.modules['opentelemetry'] = None\n"
        "import onefold.server, onefold.worker\n"
        "from onefold import logs\nfrom onefold.telemetry import tracing\n"
        "logs.configure()\n"
        "for asked in ({}, {'OTEL_TRACES_EXPORTER': 'none'}, {'OTEL_TRACES_EXPORTER': 'otlp'}):\n"
        "    os.environ.update(asked); tracing.configure('server')\n"
        "    assert tracing.trace_parent() is None\n"
        "    assert [name for name in sys.modules if name.startswith('opentelemetry')] == ['opentelemetry']"
    )
    variables = {name: value for name, value in environment().items() if not name.startswith("OTEL_")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert "the extra otel is not installed" in json.loads(line)["event"]
