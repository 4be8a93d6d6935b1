"""The commands as an operator meets them: what they print, how they fail, how they end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import click
import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc

from onefold.cli import main
from onefold.db.migrate import migrate
from onefold.projects.bootstrap import ensure_project
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import IdentifyRequest, UpdateProfileRequest
from onefold.v1.projects_service_pb2 import GetProjectRequest
from support.client import Client, email, failure
from support.keeper import Kept, kept
from support.probes import eventually, held, world_of
from support.processes import run, running

A = email("a@example.com")
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
LATER = datetime(2099, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Servers:
    """A PostgreSQL with the schema and a Valkey of these tests' own."""

    postgres: Kept
    valkey: Kept

    def settings(self, database: str | None = None) -> dict[str, str]:
        """The environment of a process on them, or on another database of that PostgreSQL."""
        return {
            "ONEFOLD_DATABASE_URL": self.url(database) if database else self.postgres.url,
            "ONEFOLD_REDIS_URL": self.valkey.url,
        }

    def url(self, database: str) -> str:
        """The address of another database."""
        return self.postgres.url.replace("@/onefold?", f"@/{database}?")


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[Servers]:
    """One pair for all tests of this file."""
    with kept("postgres", folder / "cli") as postgres, kept("valkey", folder / "cli") as valkey:
        assert run("migrate", ONEFOLD_DATABASE_URL=postgres.url, ONEFOLD_REDIS_URL=valkey.url).returncode == 0
        yield Servers(postgres, valkey)


@asynccontextmanager
async def empty_database(servers: Servers, name: str) -> AsyncIterator[str]:
    """A database without any table."""
    connection = await asyncpg.connect(servers.postgres.url)
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield name
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


def assert_fails_plainly(*arguments: str, **settings: str) -> str:
    """A command that must fail: exit status 1 and one line on stderr, which is returned; nothing else."""
    done = run(*arguments, **settings)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("onefold: ")
    assert len(line) > len("onefold: ") + 10
    assert "Traceback" not in line
    return line


# --- help -------------------------------------------------------------------------------------------------------------


def commands() -> Iterator[list[str]]:
    """Every command and group there is."""

    def below(command: click.Command, path: list[str]) -> Iterator[list[str]]:
        yield path
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from below(child, [*path, name])

    return below(main, [])


def test_every_command_is_there() -> None:
    """F26, F27: an operator finds the commands that the documents name."""
    wanted = {"dev", "serve", "work", "migrate", "project create", "key create", "health"}
    assert wanted <= {" ".join(path) for path in commands()}


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_help(path: list[str]) -> None:
    """X2: every command explains itself with status 0 and needs no setting for it; an unknown option is refused."""
    done = CliRunner(env=dict.fromkeys(("ONEFOLD_DATABASE_URL", "ONEFOLD_REDIS_URL"))).invoke(main, [*path, "--help"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage:")
    # A hidden option is for the parent process.
    assert "--ready-fd" not in done.stdout
    unknown = CliRunner().invoke(main, [*path, "--no-such-option"])
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "--no-such-option" in unknown.stderr


def test_the_program() -> None:
    """X2: `python -m onefold` is the same program, and tells its version."""
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert "onefold" in done.stdout


# --- failing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["serve --port 0", "work", "migrate", "project create shop --type EMAIL", "key create shop"],
)
def test_without_settings(command: str) -> None:
    """X2: a setting that is missing is named, as the environment has it."""
    line = assert_fails_plainly(*command.split())
    assert "ONEFOLD_DATABASE_URL" in line
    assert "ONEFOLD_REDIS_URL" in line


# Which commands meet which address is no matter: they share two ways to connect, and each of these is one of the two.
@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("migrate", "nonsense"),
        ("serve --port 0", "http://example.com/"),
        ("migrate", "postgresql://onefold@127.0.0.1:no-port/onefold"),
        ("work", "postgresql://onefold@127.0.0.1:no-port/onefold"),
        ("serve --port 0", "postgresql://onefold@127.0.0.1:99999/onefold"),
        ("project create shop --type EMAIL", "postgresql://onefold@[::1/onefold"),
        ("key create shop", "postgresql://onefold@/onefold?host=/nowhere"),
    ],
)
def test_a_wrong_database_address(command: str, url: str) -> None:
    """X2: an address that is none, or leads nowhere, is told in one line."""
    assert_fails_plainly(*command.split(), ONEFOLD_DATABASE_URL=url, ONEFOLD_REDIS_URL="redis://127.0.0.1:1")


@pytest.mark.parametrize("command", ["migrate", "serve --port 0", "work"])
def test_postgresql_is_away(command: str) -> None:
    """X2, F12: a PostgreSQL that cannot be reached is told as that, without the secret that its address holds."""
    url = "postgresql://onefold:sesame@127.0.0.1:1/onefold"
    line = assert_fails_plainly(*command.split(), ONEFOLD_DATABASE_URL=url, ONEFOLD_REDIS_URL="redis://127.0.0.1:1")
    assert "database" in line.lower()
    assert "reached" in line
    assert "sesame" not in line


@pytest.mark.parametrize("command", ["migrate", "serve --port 0"])
def test_a_database_that_is_not_there(servers: Servers, command: str) -> None:
    """X2: a database that PostgreSQL does not have is one line."""
    assert_fails_plainly(*command.split(), **servers.settings("not_there"))


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["work"]], ids=" ".join)
async def test_an_older_schema(servers: Servers, command: list[str]) -> None:
    """F27: a server or worker on a schema that lacks a migration does not start, and says which command helps."""
    async with empty_database(servers, "older") as name:
        line = assert_fails_plainly(*command, **servers.settings(name))
        assert "0001_initial" in line
        assert "onefold migrate" in line
        await migrate(servers.url(name))
        # A migration of tomorrow is no reason not to start.
        connection = await asyncpg.connect(servers.url(name))
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, '9999_of_tomorrow', '')"
        )
        await connection.close()
        with running(*command, **servers.settings(name)) as started:
            assert started.stop() == 0


def test_a_port_in_use(servers: Servers) -> None:
    """X2: a port that another program has is told, naming it."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = assert_fails_plainly("serve", "--port", str(port), **servers.settings())
        assert str(port) in line
    with running("serve", "--port", "0", **servers.settings()) as server:
        # Another server of ours is another program, too: two of them would share the calls without a word.
        line = assert_fails_plainly("serve", "--port", server.address.rpartition(":")[2], **servers.settings())
        assert server.address in line


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("serve", "ONEFOLD_PORT", "70000"),
        ("serve", "ONEFOLD_SERVER_CONNECTIONS", "one"),
        ("work", "ONEFOLD_SWEEP_SECONDS", "-1"),
        ("serve", "ONEFOLD_REDIS_URL", "nonsense"),
        ("work", "ONEFOLD_REDIS_URL", "http://example.com"),
    ],
)
def test_a_wrong_setting(servers: Servers, command: str, name: str, value: str) -> None:
    """X2: a setting with a value that it cannot have is named in one line."""
    assert name in assert_fails_plainly(command, **{**servers.settings(), name: value})


def test_a_worker_on_an_evicting_valkey(servers: Servers) -> None:
    """F11: a worker does not start on a Valkey that may evict keys, and names the policy that it needs."""
    _command(servers.valkey, "CONFIG SET maxmemory-policy allkeys-lru")
    try:
        assert "noeviction" in assert_fails_plainly("work", **servers.settings())
        # A server only rings; it starts.
        with running("serve", "--port", "0", **servers.settings()) as server:
            assert server.stop() == 0
    finally:
        _command(servers.valkey, "CONFIG SET maxmemory-policy noeviction")


def _command(valkey: Kept, text: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(valkey.url.removeprefix("unix://"))
        connection.sendall(text.encode() + b"\r\n")
        assert connection.recv(64) == b"+OK\r\n"


# --- working ----------------------------------------------------------------------------------------------------------


async def test_migrate(servers: Servers) -> None:
    """F27: migrate says what it applied, and the next time that there is nothing to do."""
    async with empty_database(servers, "fresh") as name:
        first = run("migrate", **servers.settings(name))
        assert (first.returncode, first.stderr) == (0, "")
        assert "0001_initial" in first.stdout
        again = run("migrate", **servers.settings(name))
        assert (again.returncode, again.stdout, again.stderr) == (0, "up to date\n", "")


async def test_projects_and_keys(servers: Servers) -> None:
    """P1, P4, P5, P6: what `project create` and `key create` print are keys that a running server knows at once."""
    settings = servers.settings()
    with running("serve", "--port", "0", **settings) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            made = run("project", "create", "garden", "--type", "user_id", "--region", "eu", **settings)
            assert (made.returncode, made.stderr) == (0, "")
            [key] = made.stdout.splitlines()
            told = (await Client(channel, "garden", key).projects.GetProject(GetProjectRequest())).project
            assert told.project_id == "garden"

            assert "garden" in assert_fails_plainly("project", "create", "garden", "--type", "EMAIL", **settings)
            assert_fails_plainly("project", "create", "meadow", "--type", "EMAIL", "--region", "EU", **settings)
            assert "project_id" in assert_fails_plainly("project", "create", "No Name", "--type", "EMAIL", **settings)
            assert "meadow" in assert_fails_plainly("key", "create", "meadow", **settings)

            read_only = run("key", "create", "garden", "--scope", "read", **settings)
            [read_key] = read_only.stdout.splitlines()
            reader = Client(channel, "garden", read_key)
            assert (await reader.projects.GetProject(GetProjectRequest())).project.project_id == "garden"
            refused = await failure(reader.identity.UpdateProfile(UpdateProfileRequest()))
            assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")


def test_health(servers: Servers) -> None:
    """F18: health says SERVING with status 0 while the server serves, and fails in one line when it is gone."""
    with running("serve", "--port", "0", **servers.settings()) as server:
        done = run("health", "--target", server.address)
        assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
        assert server.stop() == 0
        assert server.address in assert_fails_plainly("health", "--target", server.address, "--timeout", "2")


async def test_stuck_intents(servers: Servers) -> None:
    """F26: an operator sees what is left to do and why it is stuck, and lets it begin anew, one project's or by id."""
    assert run("migrate", **servers.settings()).returncode == 0
    connection = await asyncpg.connect(servers.postgres.url)
    first, second, waiting = (uuid4() for _ in range(3))
    try:
        await connection.executemany(
            "INSERT INTO intents (project_id, intent_id, kind, stuck_time, last_error, attempt_count, due_time) "
            "VALUES ($1, $2, 'UNHEARD_OF', $3, $4, $5, $6)",
            [
                ("garden", first, LONG_AGO, "LOCK_TIMEOUT", 12, LONG_AGO),
                ("orchard", second, LONG_AGO, "LOCK_TIMEOUT", 12, LONG_AGO),
                ("garden", waiting, None, None, 0, LATER),
            ],
        )

        def listed(*options: str) -> dict[str, str]:
            done = run("intents", "list", "--json", *options, **servers.settings())
            assert (done.returncode, done.stderr) == (0, "")
            return {line["intent_id"]: line["state"] for line in map(json.loads, done.stdout.splitlines())}

        assert listed() == {str(first): "STUCK", str(second): "STUCK", str(waiting): "WAITING"}
        assert listed("--project", "garden", "--stuck") == {str(first): "STUCK"}
        plain = run("intents", "list", "--stuck", "--project", "orchard", **servers.settings()).stdout
        assert all(
            word in plain for word in ("orchard", str(second), "UNHEARD_OF", "STUCK", "12 tries", "LOCK_TIMEOUT")
        )

        assert run("intents", "retry", **servers.settings()).returncode == 2
        assert run("intents", "retry", str(first), str(waiting), **servers.settings()).stdout == "1\n"
        assert listed() == {str(first): "DUE", str(second): "STUCK", str(waiting): "WAITING"}
        assert run("intents", "retry", "--all", **servers.settings()).stdout == "1\n"
        assert run("intents", "list", "--stuck", **servers.settings()).stdout == "nothing to do\n"
    finally:
        await connection.execute("DELETE FROM intents WHERE intent_id = ANY($1)", [first, second, waiting])
        await connection.close()


# --- ending -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "number"),
    [(["serve", "--port", "0"], signal.SIGTERM), (["work"], signal.SIGTERM), (["work"], signal.SIGINT)],
)
def test_an_idle_process_ends(servers: Servers, command: list[str], number: signal.Signals) -> None:
    """F18, F19: SIGTERM and SIGINT end a server and a worker within 10 s with status 0, and leave no complaint."""
    with running(*command, **servers.settings()) as started:
        assert started.stop(number, timeout=10) == 0
        assert "Traceback" not in started.said()


@pytest.mark.parametrize(
    ("command", "missing"),
    [(["serve", "--port", "0"], "postgres"), (["work"], "postgres"), (["work"], "valkey")],
)
def test_a_process_ends_while_a_server_is_away(servers: Servers, command: list[str], missing: str) -> None:
    """F18, F19, X4: the same holds while Valkey or PostgreSQL is away, which by itself ends neither of the two."""
    server = servers.valkey if missing == "valkey" else servers.postgres
    with running(*command, **servers.settings()) as started:
        server.stop()
        try:
            assert started.process.poll() is None
            assert started.stop(timeout=10) == 0
        finally:
            server.start()
        assert "Traceback" not in started.said()


async def test_sigterm_under_load(servers: Servers) -> None:
    """F18, X3: told to end under load, a server finishes what it has begun and refuses the rest with UNAVAILABLE only.

    Health goes to NOT_SERVING, the process ends with status 0, and every write that it acknowledged is there.
    """
    key = await ensure_project(servers.postgres.url, project_id="load", identifier_type="EMAIL", api_key=None)
    acknowledged: set[str] = set()
    told: set[tuple[grpc.StatusCode, str]] = set()
    # Set where the server knows of no call yet; it ends the writers.
    refused = asyncio.Event()

    async def track(client: Client, writer: int) -> None:
        number = 0
        while not refused.is_set():
            event_id = f"{writer}-{number}"
            event = NewEvent(anonymous_id="load", name="Viewed", event_id=event_id)
            try:
                await client.events.Track(TrackRequest(event=event), timeout=10.0)
            except grpc.aio.AioRpcError as error:
                told.add((error.code(), error.details() or ""))
                refused.set()
            else:
                acknowledged.add(event_id)
            number += 1

    with running("serve", "--port", "0", **servers.settings()) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            client = Client(channel, "load", key)
            health: Any = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            writers = [asyncio.create_task(track(client, writer)) for writer in range(16)]

            async def some() -> bool:
                return len(acknowledged) >= 200

            await eventually(some)
            server.process.send_signal(signal.SIGTERM)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            await asyncio.wait_for(asyncio.gather(*writers), 30)
        assert server.process.wait(15) == 0
        assert "Traceback" not in server.said()
    assert {code for code, _ in told} == {grpc.StatusCode.UNAVAILABLE}, told
    async with world_of(servers.postgres.url) as world:
        rows = await world.fetch("SELECT event_id FROM anonymous_events WHERE project_id = 'load'")
        assert acknowledged <= {row[0] for row in rows}


async def test_sigterm_lets_a_call_end(servers: Servers) -> None:
    """F18: a call that waits for a lock when SIGTERM comes is answered OK, and the process ends after it."""
    key = await ensure_project(servers.postgres.url, project_id="drain", identifier_type="EMAIL", api_key=None)
    with running("serve", "--port", "0", **servers.settings()) as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            client = Client(channel, "drain", key)
            await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))
            lock = ("SELECT FROM profiles WHERE project_id = 'drain' FOR UPDATE", ())
            async with world_of(servers.postgres.url) as world, held(servers.postgres.url, lock) as other:
                request = UpdateProfileRequest(identifiers=A, data_fields_json='{"a":1}')
                call = asyncio.ensure_future(client.identity.UpdateProfile(request))

                async def waits() -> bool:
                    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                    return bool(await world.value(sql))

                await eventually(waits)
                server.process.send_signal(signal.SIGTERM)
                assert server.process.poll() is None
                await other.rollback()
                assert (await call).profile.profile_id
                assert '"a"' in await world.value("SELECT data_fields::text FROM profiles WHERE project_id = 'drain'")
        assert server.process.wait(15) == 0


async def test_sigterm_to_a_worker_in_mid_chunk(servers: Servers) -> None:
    """F19: a worker told to end in mid-chunk rolls it back, frees the lease and ends within 10 s with status 0."""
    key = await ensure_project(servers.postgres.url, project_id="stopping", identifier_type="EMAIL", api_key=None)
    settings = servers.settings()
    async with world_of(servers.postgres.url) as world:
        with running("serve", "--port", "0", **settings) as server, running("work", **settings) as worker:
            async with grpc.aio.insecure_channel(server.address) as channel:
                client = Client(channel, "stopping", key)
                await client.track(anonymous_id="x", name="Viewed")
                async with held(servers.postgres.url, ("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE", ())):
                    await client.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="x"))

                    async def waits() -> bool:
                        sql = (
                            "SELECT count(*) FROM pg_stat_activity "
                            "WHERE wait_event_type = 'Lock' AND application_name = 'onefold worker'"
                        )
                        return bool(await world.value(sql))

                    await eventually(waits)
                    assert worker.stop(timeout=10) == 0
                    assert "Traceback" not in worker.said()
                row = (await world.fetch("SELECT * FROM intents WHERE project_id = 'stopping'"))[0]
                assert (row["lease_token"], row["attempt_count"], row["stuck_time"]) == (None, 0, None)
                assert await client.names(identifiers=A) == ["Viewed"]
                # The next worker does it.
                with running("work", **settings):

                    async def moved() -> bool:
                        return bool(await world.value("SELECT count(*) FROM events WHERE project_id = 'stopping'"))

                    await eventually(moved)
                assert await client.names(identifiers=A) == ["Viewed"]
