"""What the figures are measured on: a PostgreSQL that waits for its disk, a Valkey, one server and one worker.

All of them are processes of their own, in a private folder, and end with the stage.
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from onefold.db.migrate import migrate
from onefold.db.partitions import partitions, wanted_days
from onefold.embedded import EmbeddedPostgres, EmbeddedValkey, process
from onefold.embedded.account import server_account
from onefold.projects.bootstrap import ensure_project

PROJECT: Final = "bench"
LOCK_WAIT_MILLISECONDS: Final = 50
_READY_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 20.0


class NotMeasuredError(Exception):
    """A figure could not be measured; the text says why, in one line."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for the data of servers, which may run as another account; removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="onefold-bench-"))
    try:
        if server_account().switch:
            path.chmod(0o711)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Processes:
    """The running stage. The worker is frozen but for the blocks of `working`."""

    database_url: str
    redis_url: str
    address: str
    api_key: str
    worker_pid: int
    worker_http: str
    server_pid: int
    folder: Path
    environment: Mapping[str, str]

    @contextmanager
    def working(self) -> Iterator[None]:
        """Lets the worker work while the block runs.

        It is frozen rather than stopped: starting a process must not happen once gRPC is in use here, and what it
        costs to start is no part of any figure. It must be idle when the block ends, or it would hold a lease.
        """
        os.kill(self.worker_pid, signal.SIGCONT)
        try:
            yield
        finally:
            os.kill(self.worker_pid, signal.SIGSTOP)


@contextmanager
def processes() -> Iterator[Processes]:
    """Starts the stage and ends it. To be called before anything here uses gRPC."""
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        # Autovacuum would fall into one measurement and not into the next. What it does is done between them instead.
        postgres = EmbeddedPostgres.start(
            folder,
            durable=True,
            settings={
                "autovacuum": "off",
                # Who waits longer than this for a lock stands in the log, and as whom.
                "log_lock_waits": "on",
                "deadlock_timeout": f"{LOCK_WAIT_MILLISECONDS}ms",
                "log_line_prefix": "%a ",
            },
        )
        stack.callback(postgres.stop)
        valkey = EmbeddedValkey.start(folder)
        stack.callback(valkey.stop)
        asyncio.run(migrate(postgres.url()))
        api_key = asyncio.run(ensure_project(postgres.url(), project_id=PROJECT, identifier_type="EMAIL", api_key=None))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ONEFOLD_")},
            "ONEFOLD_DATABASE_URL": postgres.url(),
            "ONEFOLD_REDIS_URL": valkey.url,
        }
        worker, told = stack.enter_context(part(folder / "worker.log", ["work", "--http-port", "0"], environment))
        worker_http = "http://" + told.removeprefix("ready http ")
        server, said = stack.enter_context(part(folder / "server.log", ["serve", "--port", "0"], environment))
        asyncio.run(_wait_for_partitions(postgres.url()))
        os.kill(worker.pid, signal.SIGSTOP)
        address = said.removeprefix("ready ")
        yield Processes(
            postgres.url(), valkey.url, address, api_key, worker.pid, worker_http, server.pid, folder, environment
        )


@contextmanager
def part(
    log: Path, arguments: list[str], environment: Mapping[str, str], module: str = "onefold"
) -> Iterator[tuple[process.Child, str]]:
    """A process of onefold, or of a module that starts like it, once it is ready, and what it said then."""
    reader, ready_fd = os.pipe2(os.O_CLOEXEC)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        child = process.spawn(
            [sys.executable, "-m", module, *arguments, "--ready-fd", str(ready_fd)],
            death_signal=signal.SIGKILL,  # a frozen process would never see a gentler one
            output=output,
            environment=environment,
            pass_fds=[ready_fd],
        )
    finally:
        os.close(output)
        os.close(ready_fd)
    try:
        with os.fdopen(reader) as pipe:
            readable, _, _ = select.select([pipe], [], [], _READY_SECONDS)
            said = pipe.readline().strip() if readable else ""
        if not said:
            raise NotMeasuredError(f"onefold {arguments[0]} did not start: {log.read_text()[-500:].strip()}")
        yield child, said
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
        process.stop(child, (signal.SIGTERM, _STOP_SECONDS))


async def _wait_for_partitions(url: str) -> None:
    """The worker makes the partitions after it said that it is ready; rows seeded before would land elsewhere."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    try:
        now = await connection.fetchval("SELECT now()")

        async def made() -> bool:
            # The default partition is one more.
            return len(await partitions(connection)) > len(wanted_days(now))

        await eventually(made, "the partitions were not made", seconds=_READY_SECONDS)
    finally:
        await connection.close()


async def eventually(
    holds: Callable[[], Awaitable[bool]], otherwise: str, *, seconds: float, every: float = 0.02
) -> None:
    """Returns when the condition holds; NotMeasuredError with the text `otherwise` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > deadline:
            raise NotMeasuredError(f"{otherwise} within {seconds:.0f} s")
        await asyncio.sleep(every)
