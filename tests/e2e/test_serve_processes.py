"""`onefold serve --workers N` as its operator and its callers meet it: one port, several processes, one end.

The kernel spreads connections over the processes, so these tests call through many channels, each with a connection of
its own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from onefold.projects.bootstrap import ensure_project
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from support.client import Client
from support.keeper import kept
from support.probes import eventually, world_of
from support.processes import Running, environment, run, running

# All of them end up at one of two processes once in four billion runs.
CHANNELS = 32


@pytest.fixture(scope="module")
def settings(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of servers on a PostgreSQL and a Valkey of these tests' own."""
    with kept("postgres", folder / "processes") as postgres, kept("valkey", folder / "processes") as valkey:
        names = {"ONEFOLD_DATABASE_URL": postgres.url, "ONEFOLD_REDIS_URL": valkey.url}
        assert run("migrate", **names).returncode == 0
        yield names


@pytest.fixture(scope="module")
def server(settings: dict[str, str]) -> Iterator[Running]:
    """A server of two processes, for the tests that leave it as it was."""
    with running("serve", "--workers", "2", "--port", "0", **settings) as started:
        yield started
        assert started.stop() == 0


@asynccontextmanager
async def clients(address: str, settings: dict[str, str], project_id: str) -> AsyncIterator[list[Client]]:
    """Clients of a project, each with a connection of its own, which it renews as soon as it can."""
    key = await ensure_project(
        settings["ONEFOLD_DATABASE_URL"], project_id=project_id, identifier_type="HYBRID", api_key=None
    )
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(CHANNELS)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        yield [Client(channel, project_id, key) for channel in channels]


def processes(server: Running) -> dict[int, psutil.Process]:
    """The serving processes by their ids."""
    return {child.pid: child for child in psutil.Process(server.process.pid).children()}


def takes_calls(child: psutil.Process) -> bool:
    """Whether a process has somebody's connection."""
    return any(each.status == psutil.CONN_ESTABLISHED for each in child.net_connections("tcp"))


def is_gone(child: psutil.Process) -> bool:
    """Whether a process has ended; nobody may be there to take note of it."""
    return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def all_gone(children: dict[int, psutil.Process]) -> None:
    """Returns when all of them have ended."""

    async def gone() -> bool:
        return all(is_gone(child) for child in children.values())

    await eventually(gone)


async def stored(settings: dict[str, str], project_id: str) -> list[str]:
    """The ids of a project's events, as they lie in the table."""
    async with world_of(settings["ONEFOLD_DATABASE_URL"]) as world:
        sql = "SELECT event_id FROM anonymous_events WHERE project_id = $1"
        return [row[0] for row in await world.fetch(sql, project_id)]


def event(event_id: str) -> TrackRequest:
    """A visitor's event."""
    return TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed", event_id=event_id))


async def test_both_processes_take_calls(server: Running, settings: dict[str, str]) -> None:
    """X3: the connections of one port are spread over both processes, and each sees what the other acknowledged."""
    async with clients(server.address, settings, "spread") as all_clients:
        await asyncio.gather(
            *(client.events.Track(event(f"event-{number}")) for number, client in enumerate(all_clients))
        )
        assert [takes_calls(child) for child in processes(server).values()] == [True, True]
        for client in all_clients:
            assert len(await client.timeline(anonymous_id="x")) == CHANNELS


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_port_of_several_processes_is_in_use(server: Running, settings: dict[str, str], workers: str) -> None:
    """X2: a server that comes second is refused in one line naming the port; it never shares the first one's calls."""
    assert_refused(server.address.rpartition(":")[2], workers, settings)


def test_several_processes_on_a_port_in_use(settings: dict[str, str]) -> None:
    """X2: several processes are refused a port that another program has."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert_refused(str(other.getsockname()[1]), "2", settings)


def assert_refused(port: str, workers: str, settings: dict[str, str]) -> None:
    """A server on this port must fail with status 1 and one line about it."""
    done = run("serve", "--port", port, "--workers", workers, **settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"onefold: .*:{port}\b.*\n", done.stderr)


def test_what_is_wrong_is_told_once(settings: dict[str, str]) -> None:
    """X2: several processes that cannot reach PostgreSQL say so in one line, and the exit status is 1."""
    away = {**settings, "ONEFOLD_DATABASE_URL": "postgresql://onefold@127.0.0.1:1/onefold"}
    done = run("serve", "--port", "0", "--workers", "3", **away)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"onefold: .*database.*reached.*\n", done.stderr)


def test_what_it_says_and_how_ctrl_c_ends_it(settings: dict[str, str]) -> None:
    """F18: a setting says how many processes there are, the ready line tells it, and SIGINT ends all with status 0."""
    started = subprocess.Popen(
        [sys.executable, "-m", "onefold", "serve", "--port", "0"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**settings, ONEFOLD_SERVER_PROCESSES="2"),
    )
    try:
        assert started.stderr is not None
        assert re.fullmatch(r"serving on 127\.0\.0\.1:[1-9][0-9]+ \(2 processes\)\n", started.stderr.readline())
        children = psutil.Process(started.pid).children()
        assert len(children) == 2
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == 0
        assert started.stderr.read() == ""
        assert all(is_gone(child) for child in children)
    finally:
        started.kill()
        started.wait()


async def test_a_killed_process_is_replaced(server: Running, settings: dict[str, str]) -> None:
    """F2, F3: after SIGKILL of one process calls go on, repeated ones happen once, and a new process takes its part."""
    acknowledged: set[str] = set()
    enough = asyncio.Event()

    async def track(client: Client, writer: int) -> None:
        for number in itertools.count():
            event_id = f"{writer}-{number}"
            while event_id not in acknowledged:
                try:
                    await client.events.Track(event(event_id), timeout=10.0)
                    acknowledged.add(event_id)
                except grpc.aio.AioRpcError as error:
                    # The killed one had it, or the connection: the same event again, to the other process.
                    assert error.code() is grpc.StatusCode.UNAVAILABLE, error.details()
            if enough.is_set():
                return

    before = processes(server)
    victim = min(before)
    async with clients(server.address, settings, "killed") as all_clients:
        writers = [asyncio.create_task(track(client, number)) for number, client in enumerate(all_clients)]

        async def some() -> bool:
            return len(acknowledged) >= 10 * CHANNELS

        await eventually(some)
        os.kill(victim, signal.SIGKILL)

        async def replaced() -> bool:
            now = processes(server)
            return victim not in now and len(now) == 2 and all(_listens(child) for child in now.values())

        await eventually(replaced)
        async with clients(server.address, settings, "killed") as later_clients:
            goal = len(acknowledged) + 10 * CHANNELS
            late = [asyncio.create_task(track(client, number)) for number, client in enumerate(later_clients, CHANNELS)]
            [replacement] = [child for pid, child in processes(server).items() if pid not in before]
            assert takes_calls(replacement)

            async def more() -> bool:
                return len(acknowledged) >= goal

            await eventually(more)
            enough.set()
            await asyncio.wait_for(asyncio.gather(*writers, *late), 30)
    rows = await stored(settings, "killed")
    assert sorted(rows) == sorted(acknowledged)


def _listens(child: psutil.Process) -> bool:
    try:
        return any(each.status == psutil.CONN_LISTEN for each in child.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return False


async def test_sigterm_drains_all(settings: dict[str, str]) -> None:
    """F18, X3: told to end under load, every process finishes what it has begun and refuses the rest with UNAVAILABLE.

    The whole ends with status 0, and every write that was acknowledged is there.
    """
    acknowledged: set[str] = set()
    told: set[grpc.StatusCode] = set()

    async def track(client: Client, writer: int) -> None:
        for number in itertools.count():
            try:
                await client.events.Track(event(f"{writer}-{number}"), timeout=10.0)
            except grpc.aio.AioRpcError as error:
                told.add(error.code())
                return
            acknowledged.add(f"{writer}-{number}")

    with running("serve", "--workers", "2", "--port", "0", **settings) as server:
        children = processes(server)
        async with clients(server.address, settings, "drained") as all_clients:
            writers = [asyncio.create_task(track(client, number)) for number, client in enumerate(all_clients)]

            async def some() -> bool:
                return len(acknowledged) >= 10 * CHANNELS

            await eventually(some)
            assert [takes_calls(child) for child in children.values()] == [True, True]
            server.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*writers), 30)
        assert server.process.wait(15) == 0
        assert all(is_gone(child) for child in children.values())
        assert "Traceback" not in server.said()
    assert told == {grpc.StatusCode.UNAVAILABLE}
    assert acknowledged <= set(await stored(settings, "drained"))


async def test_the_death_of_the_supervisor_ends_all(settings: dict[str, str]) -> None:
    """F18: when the process that supervises is killed, the others drain by themselves and leave the port."""
    with running("serve", "--workers", "2", "--port", "0", **settings) as server:
        children = processes(server)
        assert len(children) == 2
        server.kill()
        await all_gone(children)
        with socket.create_server(("127.0.0.1", int(server.address.rpartition(":")[2]))):
            pass


async def test_a_process_that_keeps_dying(settings: dict[str, str]) -> None:
    """F2: when a process is killed again and again, the whole gives up: the others drain, and the exit status is 1."""
    with running("serve", "--workers", "2", "--port", "0", **settings) as server:
        survivor, victim = processes(server).values()
        others = {survivor.pid: survivor}
        deaths = 0

        async def given_up() -> bool:
            nonlocal deaths
            if server.process.poll() is None:
                for pid, child in processes(server).items():
                    if pid not in others and not is_gone(child):
                        child.kill()
                        deaths += 1
                        others[pid] = child
            return server.process.poll() is not None

        await eventually(given_up)
        assert server.process.wait() == 1
        assert deaths == 5
        assert victim.pid in others
        await all_gone(others)
        [line] = [line for line in server.said().splitlines() if "5 times" in line]
        assert line.startswith("onefold serve: ")
