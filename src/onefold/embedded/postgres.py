"""PostgreSQL 18 as a child process."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

from onefold.embedded import folder, process
from onefold.embedded.account import Account, server_account
from onefold.embedded.errors import EmbeddedError
from onefold.embedded.programs import POSTGRES, program_folder

_USER: Final = "onefold"
_DATABASE: Final = "onefold"
_PORT: Final = 5432  # only a part of the socket's name
_SOCKET_NAME: Final = f".s.PGSQL.{_PORT}"
_MAJOR_VERSION: Final = "18"
# A start after a kill replays the log first, max_wal_size at most.
_READY_TIMEOUT_SECONDS: Final = 120.0
_STATUS_LINE: Final = 7  # of postmaster.pid, from 0: what pg_ctl waits for, too

_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "port": str(_PORT),
    "shared_buffers": "256MB",
    "max_connections": "100",
    "max_wal_size": "2GB",
    "wal_level": "replica",
    "synchronous_commit": "on",
    "jit": "off",  # statements here are short: compiling one costs more than running it
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Parameters and error details carry personal data, so the log has neither.
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
}
# For data that nobody misses after a power cut.
_NOT_DURABLE: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
# Nothing of our own environment: it holds keys, and PGOPTIONS and the like would change the server.
_ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class EmbeddedPostgres:
    """A running PostgreSQL server that is our child; made by `start`."""

    def __init__(self, child: process.Child, cluster: Path, sockets: Path) -> None:
        self._child = child
        self._cluster = cluster
        self._sockets = sockets

    @classmethod
    def start(
        cls, data_dir: Path, *, durable: bool = True, settings: Mapping[str, str] | None = None
    ) -> "EmbeddedPostgres":
        """Start the server on `data_dir`/postgres and return when it accepts connections; blocking.

        A new cluster, with the user and the database "onefold", is made when there is none (about 1 second). Data and
        every acknowledged commit survive the end of this process and, if `durable`, of the machine; not durable is
        for tests. `settings` are PostgreSQL settings that override ours. The server gets SIGINT, a clean shutdown, when
        this process dies. Call it from the main thread.

        Raises EmbeddedError, with one line that says what to do, when another process uses the folder, when the
        server's account cannot reach it, or when the server ends or is not ready within 120 seconds.
        """
        account = server_account()
        programs = program_folder(POSTGRES, account)
        home = folder.prepare(data_dir, account)
        cluster = home / "postgres"
        log = home / "postgres.log"
        lock = folder.lock(home, "postgres")
        try:
            output = folder.open_log(log)
            try:
                if not cluster.exists():
                    _make_cluster(cluster, programs, account, lock=lock, output=output, log=log, durable=durable)
                _check_cluster(cluster, account)
                sockets = folder.socket_folder(cluster, _SOCKET_NAME + ".lock", account)
                _remove_stale_files(cluster, sockets)
                effective = {
                    **_SETTINGS,
                    **({} if durable else _NOT_DURABLE),
                    "unix_socket_directories": str(sockets),
                    **(settings or {}),
                }
                written = os.fstat(output).st_size
                child = process.spawn(
                    [programs / "postgres", "-D", cluster, *_as_arguments(effective)],
                    death_signal=signal.SIGINT,
                    output=output,
                    account=account,
                    environment=_ENVIRONMENT,
                    pass_fds=[lock],
                )
            finally:
                os.close(output)
        finally:
            # From here on the server holds the lock, and it is free again once its last process is gone.
            os.close(lock)
        server = cls(child, cluster, sockets)
        if not process.wait_until_ready(child, server._is_ready, timeout_seconds=_READY_TIMEOUT_SECONDS):
            server.stop(mode="immediate")
            raise _failure("start", log, written)
        return server

    @property
    def pid(self) -> int:
        """The process id of the server's main process."""
        return self._child.pid

    def url(self, database: str = _DATABASE) -> str:
        """The address of a database as asyncpg reads it: the unix socket, as user "onefold", without a password."""
        return f"postgresql://{_USER}@/{quote(database, safe='')}?host={self._sockets}&port={_PORT}"

    def poll(self) -> int | None:
        """The exit status if the server has ended (negative: the signal that ended it), otherwise None."""
        return self._child.poll()

    def stop(self, *, mode: Literal["fast", "immediate"] = "fast", timeout_seconds: float = 10) -> None:
        """End the server and wait for it; does nothing when it has ended already.

        "fast" ends all connections and writes everything out; "immediate" leaves that to the next start, which
        loses nothing acknowledged either. What does not end within `timeout_seconds` is ended by stronger means.
        """
        ladder = [(signal.SIGINT, timeout_seconds)] if mode == "fast" else []
        process.stop(self._child, *ladder, (signal.SIGQUIT, timeout_seconds))
        folder.remove_socket_folder(self._cluster)

    def _is_ready(self) -> bool:
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        # The file grows line by line, so any of them may not be there yet.
        return lines[:1] == [str(self.pid)] and lines[_STATUS_LINE : _STATUS_LINE + 1] == ["ready   "]


def _make_cluster(
    cluster: Path, programs: Path, account: Account, *, lock: int, output: int, log: Path, durable: bool
) -> None:
    """Make the cluster under a temporary name and rename it when complete, so that a half-made one is never used."""
    unfinished = cluster.with_name("postgres.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    folder.own(unfinished, account)
    written = os.fstat(output).st_size
    initdb = process.spawn(
        [
            programs / "initdb",
            *("--pgdata", unfinished),
            *("--username", _USER),
            # Whoever can enter the socket's folder (0700) is the server's own account or root.
            *("--auth-local=trust", "--auth-host=reject"),
            *("--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"),
            "--no-instructions",
            *([] if durable else ["--no-sync"]),
        ],
        death_signal=signal.SIGTERM,
        output=output,
        account=account,
        environment=_ENVIRONMENT,
        pass_fds=[lock],
    )
    if initdb.wait() != 0:
        raise _failure("be set up", log, written)
    # Single-user mode needs no client and no event loop.
    creation = process.spawn(
        [
            *(programs / "postgres", "--single", "-D", unfinished),
            *_as_arguments({"exit_on_error": "on", "fsync": "on" if durable else "off"}),
            "template1",
        ],
        death_signal=signal.SIGTERM,
        output=output,
        account=account,
        environment=_ENVIRONMENT,
        pass_fds=[lock],
        stdin=subprocess.PIPE,
    )
    creation.communicate(f'CREATE DATABASE "{_DATABASE}"\n'.encode())
    if creation.returncode != 0:
        raise _failure("be set up", log, written)
    unfinished.rename(cluster)


def _check_cluster(cluster: Path, account: Account) -> None:
    folder.own(cluster, account)
    version = (cluster / "PG_VERSION").read_text().strip()
    if version != _MAJOR_VERSION:
        raise EmbeddedError(
            f"{cluster} was made by PostgreSQL {version}, this is PostgreSQL {_MAJOR_VERSION}: "
            "choose another data folder with --data-dir"
        )


def _remove_stale_files(cluster: Path, sockets: Path) -> None:
    """Remove what a killed server left behind, which would stop the next one if its process id is in use again.

    Allowed because the lock is ours; only a server that somebody started by hand could still run here.
    """
    pid_file = cluster / "postmaster.pid"
    with contextlib.suppress(OSError, IndexError):
        pid = pid_file.read_text().splitlines()[0]
        if Path(f"/proc/{pid}/cwd").readlink() == cluster:
            raise EmbeddedError(f"{cluster} is in use by a PostgreSQL server, process {pid}: stop it first")
    for leftover in (pid_file, sockets / _SOCKET_NAME, sockets / f"{_SOCKET_NAME}.lock"):
        leftover.unlink(missing_ok=True)


def _as_arguments(settings: Mapping[str, str]) -> list[str]:
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def _failure(what: str, log: Path, from_byte: int) -> EmbeddedError:
    last = folder.last_lines(log, 1, from_byte=from_byte)
    return EmbeddedError(f"PostgreSQL could not {what}: {last[0] if last else 'no reason given'} (see {log})")
