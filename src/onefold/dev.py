"""`onefold dev`: the whole service from one command, as one tree of processes.

    onefold dev ─┬─ postgres   \\ unless ONEFOLD_DATABASE_URL and ONEFOLD_REDIS_URL
                 ├─ valkey     / name servers that are there already
                 ├─ onefold work
                 └─ onefold serve

This process starts the others, restarts those that end, and stops them in the order serve, work, valkey, postgres. When
it is killed, the kernel tells each of them. It never imports grpc, which does not survive a fork.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

import asyncpg
import click

from onefold.db.migrate import migrate
from onefold.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedValkey, folder, process
from onefold.embedded.account import server_account
from onefold.embedded.supervisor import DiesTooOftenError, StopRequestedError, StopSignals, Supervisor, describe
from onefold.errors import Kind, OnefoldError, Reason
from onefold.projects.bootstrap import ensure_project
from onefold.projects.keys import new_key
from onefold.setting_files import SettingFileError, setting_from_file

_HOST: Final = "127.0.0.1"
_READY_TIMEOUT_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0  # a server first ends the calls it has, a worker its chunk
_LOG_LINES_SHOWN: Final = 20
# Of our own environment; the addresses they get are those that these files hold, or of servers that we have started.
_NOT_FOR_SERVICES: Final = {"ONEFOLD_DEV_API_KEY", "ONEFOLD_DATABASE_URL_FILE", "ONEFOLD_REDIS_URL_FILE"}


@dataclass(frozen=True)
class DevOptions:
    """What `onefold dev` can be told.

    `port` 0 means any free one. `data_dir` None means the per-user data folder. `ephemeral` uses a temporary folder
    that is removed at the end. `project_type` is "email", "user_id" or "hybrid", in either case. `api_key` None
    means ONEFOLD_DEV_API_KEY, or else a key that is made once and kept in the data folder.
    """

    port: int = 50051
    data_dir: Path | None = None
    ephemeral: bool = False
    json: bool = False
    project: str = "default"
    project_type: str = "hybrid"
    api_key: str | None = None


class DevError(Exception):
    """`onefold dev` cannot go on; the text says what to do about it."""


@dataclass(frozen=True)
class _Addresses:
    database_url: str
    redis_url: str


def run_dev(options: DevOptions) -> int:
    """Run the service until SIGINT, SIGTERM or SIGHUP and return the exit status: 0 after such a signal, 1 on an error.

    Standard output gets one block of text once the service is ready, or one line of JSON with `options.json`; standard
    error gets what goes wrong. Call it from the main thread, before grpc is imported.
    """
    with StopSignals() as signals:
        try:
            with _data_folder(options) as data:
                supervisor = Supervisor(signals, _report)
                try:
                    _run(options, data, signals, supervisor)
                finally:
                    supervisor.stop()
        except StopRequestedError:
            pass
        except (DevError, EmbeddedError, DiesTooOftenError) as error:
            _report(str(error))
            return 1
    return 0


def _run(options: DevOptions, data: Path, signals: StopSignals, supervisor: Supervisor) -> None:
    """Start everything, say so, and watch it; ends by an exception only."""
    _require_free(options.port)
    addresses = _external_addresses() or _start_embedded(data, supervisor)
    signals.check()
    kept_key = data / f"api-key-{quote(options.project, safe='')}"
    known_key = options.api_key or os.environ.get("ONEFOLD_DEV_API_KEY") or _read_key(kept_key)
    api_key = known_key or new_key(options.project)
    asyncio.run(_prepare(addresses, options, api_key))
    if not known_key:
        _keep_key(kept_key, api_key)

    environment = {
        **{name: value for name, value in os.environ.items() if name not in _NOT_FOR_SERVICES},
        "ONEFOLD_DATABASE_URL": addresses.database_url,
        "ONEFOLD_REDIS_URL": addresses.redis_url,
    }
    worker = _Service("worker", ["work"], environment, data)
    server = _Server(options.port, environment, data)
    services = (worker, server)
    for service in services:
        supervisor.add(service.name, service.start)
    supervisor.watch(
        restart=False,
        until=lambda: _all_ready(services),
        descriptors=lambda: [fd for service in services for fd in service.unread()],
        timeout_seconds=_READY_TIMEOUT_SECONDS,
    )
    for service in services:
        if not service.is_ready():
            raise DevError(
                f"the {service.name} was not ready within {_READY_TIMEOUT_SECONDS:.0f} s{service.last_words()}"
            )

    _announce(options, data, server, worker, api_key)
    supervisor.watch()


def _start_embedded(data: Path, supervisor: Supervisor) -> _Addresses:
    started: dict[str, str] = {}

    def start_postgres() -> EmbeddedPostgres:
        postgres = EmbeddedPostgres.start(data)
        started["database"] = postgres.url()
        return postgres

    def start_valkey() -> EmbeddedValkey:
        valkey = EmbeddedValkey.start(data)
        started["redis"] = valkey.url
        return valkey

    supervisor.add("PostgreSQL server", start_postgres)
    supervisor.add("Valkey server", start_valkey)
    # A server that is started again has the same address.
    return _Addresses(started["database"], started["redis"])


def _external_addresses() -> _Addresses | None:
    try:
        database_url = os.environ.get("ONEFOLD_DATABASE_URL") or setting_from_file("database_url")
        redis_url = os.environ.get("ONEFOLD_REDIS_URL") or setting_from_file("redis_url")
    except SettingFileError as error:
        raise DevError(str(error)) from None
    if database_url and redis_url:
        return _Addresses(database_url, redis_url)
    if not database_url and not redis_url:
        return None
    given, missing = "ONEFOLD_DATABASE_URL", "ONEFOLD_REDIS_URL"
    if redis_url:
        given, missing = missing, given
    raise DevError(
        f"{given} is set but {missing} is not: set both to use servers of your own, or neither to have them started"
    )


async def _prepare(addresses: _Addresses, options: DevOptions, api_key: str) -> None:
    """Bring the schema up to date and make sure that the project exists and the key opens it."""
    try:
        await migrate(addresses.database_url)
        await ensure_project(
            addresses.database_url,
            project_id=options.project,
            identifier_type=options.project_type.upper(),
            api_key=api_key,
        )
    except OnefoldError as error:
        raise DevError(_in_our_terms(error, options)) from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # The first line only: what follows it may show values.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DevError(f"the database could not be prepared: {reason}") from error


def _in_our_terms(error: OnefoldError, options: DevOptions) -> str:
    """What to do about an error whose own message is meant for a caller of the service."""
    if error.kind is Kind.UNAVAILABLE:
        return "the database cannot be reached or refuses us: is its address right?"
    if error.reason is Reason.IDENTIFIER_TYPE_FIXED:
        return (
            f"project {options.project} exists with another identifier type than {options.project_type}: "
            "give its type with --project-type, or choose another data folder with --data-dir"
        )
    return " ".join([error.message, *(f"{wrong.field}: {wrong.description}" for wrong in error.violations)])


class _Service:
    """A part of the service that runs as `python -m onefold ...`, logs to a file, and reports through a pipe when it
    is ready: one line, `ready` and a detail."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], data: Path) -> None:
        self.name = name
        self.log = data / f"{name}.log"
        self._arguments = arguments
        self._environment = environment
        self._pipe: int | None = None
        self._child: process.Child | None = None
        self._log_start = 0
        self._received = b""

    def start(self) -> "_Service":
        """Start the process, for the first time or again, without waiting for it."""
        self._close_pipe()
        self._pipe, ready_fd = os.pipe2(os.O_CLOEXEC)
        output = folder.open_log(self.log)
        try:
            self._log_start = os.fstat(output).st_size
            # Any that is free; the same one when it is started again.
            side_port = ["--http-port", self.http.rpartition(":")[2] or "0"]
            self._child = process.spawn(
                [sys.executable, "-m", "onefold", *self._arguments, *side_port, "--ready-fd", str(ready_fd)],
                death_signal=signal.SIGTERM,
                output=output,
                environment=self._environment,
                pass_fds=[ready_fd],
            )
        finally:
            os.close(output)
            os.close(ready_fd)
        return self

    def poll(self) -> int | None:
        """The exit status if the process has ended, otherwise None."""
        return self._child.poll() if self._child else None

    def stop(self) -> None:
        """End the process; one that has not ended after 20 seconds is killed."""
        if self._child:
            process.stop(self._child, (signal.SIGTERM, _STOP_SECONDS))
        self._close_pipe()

    def unread(self) -> list[int]:
        """The descriptor that becomes readable when the process has something to report, while that is awaited."""
        return [] if self._pipe is None or b"\n" in self._received else [self._pipe]

    def is_ready(self) -> bool:
        """Whether the process has reported ready; raises DevError, with the end of its log, when it ended instead."""
        for descriptor in self.unread():
            os.set_blocking(descriptor, False)
            with suppress(BlockingIOError):
                chunk = os.read(descriptor, 4096)
                self._received += chunk
                if not chunk:  # it will not report any more: its end is what remains to wait for
                    self._close_pipe()
        status = self.poll()
        if status is not None:
            raise DevError(f"the {self.name} ended with {describe(status)} before it was ready{self.last_words()}")
        return b"\n" in self._received

    @property
    def http(self) -> str:
        """HOST:PORT of the side port, once the process has reported ready for the first time."""
        return self._received.partition(b"\n")[0].decode().partition(" http ")[2].strip()

    def last_words(self) -> str:
        """The end of what the process has logged, as the end of an error message."""
        lines = folder.last_lines(self.log, _LOG_LINES_SHOWN, from_byte=self._log_start)
        return "\n".join([f"; the end of {self.log}:", *(f"  {line}" for line in lines)])

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


class _Server(_Service):
    """The gRPC server, which reports its address and keeps it when it is started again."""

    def __init__(self, port: int, environment: Mapping[str, str], data: Path) -> None:
        super().__init__("server", (), environment, data)
        self._port = port

    def start(self) -> "_Server":
        if self._received:
            self._port = int(self.address.rpartition(":")[2])
        self._arguments = ["serve", "--host", _HOST, "--port", str(self._port)]
        super().start()
        return self

    @property
    def address(self) -> str:
        """HOST:PORT, once the server has reported ready for the first time."""
        return self._received.partition(b"\n")[0].decode().removeprefix("ready").partition(" http ")[0].strip()


def _all_ready(services: Sequence[_Service]) -> bool:
    # Each is asked, so that the end of one is noticed while another is still starting.
    ready = [service.is_ready() for service in services]
    return all(ready)


def _require_free(port: int) -> None:
    """Refuse a port that is in use now, rather than after everything else was started."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise DevError(
                f"cannot listen on {_HOST}:{port} ({error.strerror}): choose another port with --port, 0 for any"
            ) from error


@contextmanager
def _data_folder(options: DevOptions) -> Iterator[Path]:
    """The data folder, made if it is missing; an ephemeral one is removed at the end."""
    account = None if _external_addresses() else server_account()
    if not options.ephemeral:
        yield folder.prepare(options.data_dir or _default_data_dir(), account)
        return
    if options.data_dir is not None:
        raise DevError("--ephemeral has a temporary data folder of its own: leave out --data-dir")
    with folder.temporary(account) as path:
        yield path


def _default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/onefold")
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data_home if data_home.is_absolute() else Path.home() / ".local" / "share") / "onefold"


def _read_key(path: Path) -> str | None:
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    return None


def _keep_key(path: Path, api_key: str) -> None:
    """Write a key for the next start, under another name first, so that a kept key is always a whole one."""
    descriptor, unfinished = tempfile.mkstemp(prefix=".api-key-", dir=path.parent)  # readable for us alone
    with os.fdopen(descriptor, "w") as file:
        file.write(api_key + "\n")
    Path(unfinished).replace(path)


def _announce(options: DevOptions, data: Path, server: _Server, worker: _Service, api_key: str) -> None:
    address = server.address
    if options.json:
        ready: dict[str, object] = {"ready": True, "grpc": address, "project": options.project, "api_key": api_key}
        ready["http"] = {"server": server.http, "worker": worker.http}
        click.echo(json.dumps(ready))
        return
    kept = "removed at the end" if options.ephemeral else "kept"
    click.echo(f"""
onefold is ready

  address  {address}
  project  {options.project} ({options.project_type.lower()})
  api key  {api_key}
  metrics  http://{server.http}/metrics (server), http://{worker.http}/metrics (worker)
  data     {data} ({kept}; the logs are there, too)

Track a first event:

  grpcurl -plaintext -H 'authorization: Bearer {api_key}' \\
    -d '{{"event": {{"anonymous_id": "abc123", "name": "first visit"}}}}' \\
    {address} onefold.v1.EventsService/Track

Ctrl-C stops everything.
""")


def _report(message: str) -> None:
    click.echo(f"onefold dev: {message}", err=True)
