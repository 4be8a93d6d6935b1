"""Valkey 9 as a child process."""

import os
import signal
import socket
from pathlib import Path
from typing import Final

from onefold.embedded import folder, process
from onefold.embedded.account import server_account
from onefold.embedded.errors import EmbeddedError
from onefold.embedded.programs import VALKEY, program_folder

_SOCKET_NAME: Final = "valkey.sock"
_READY_TIMEOUT_SECONDS: Final = 60.0
_PING_TIMEOUT_SECONDS: Final = 1.0
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


class EmbeddedValkey:
    """A running Valkey server that is our child; made by `start`."""

    def __init__(self, child: process.Child, home: Path, socket_path: Path) -> None:
        self._child = child
        self._home = home
        self._socket_path = socket_path

    @classmethod
    def start(cls, data_dir: Path) -> "EmbeddedValkey":
        """Start the server on `data_dir`/valkey and return when it answers; blocking.

        What was written survives the end of this process; of the last second before the machine itself stops,
        something may be lost. The server gets SIGTERM, a clean shutdown, when this process dies. Call it from the
        main thread.

        Raises EmbeddedError, with one line that says what to do, when another process uses the folder, when the
        server's account cannot reach it, or when the server ends or does not answer within 60 seconds.
        """
        account = server_account()
        programs = program_folder(VALKEY, account)
        parent = folder.prepare(data_dir, account)
        home = parent / "valkey"
        log = parent / "valkey.log"
        lock = folder.lock(parent, "valkey")
        try:
            folder.own(home, account)
            socket_path = folder.socket_folder(home, _SOCKET_NAME, account) / _SOCKET_NAME
            socket_path.unlink(missing_ok=True)
            output = folder.open_log(log)
            try:
                written = os.fstat(output).st_size
                child = process.spawn(
                    [
                        programs / "valkey-server",
                        *("--port", "0", "--unixsocket", socket_path, "--unixsocketperm", "700"),
                        *("--dir", home, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"),
                        *("--maxmemory-policy", "noeviction"),  # evicting would drop jobs
                        *("--daemonize", "no", "--logfile", ""),
                    ],
                    death_signal=signal.SIGTERM,
                    output=output,
                    account=account,
                    environment=_ENVIRONMENT,
                    pass_fds=[lock],
                )
            finally:
                os.close(output)
        finally:
            os.close(lock)  # the server holds it now
        server = cls(child, home, socket_path)
        if not process.wait_until_ready(child, server._is_ready, timeout_seconds=_READY_TIMEOUT_SECONDS):
            server.stop()
            last = folder.last_lines(log, 1, from_byte=written)
            raise EmbeddedError(f"Valkey could not start: {last[0] if last else 'no reason given'} (see {log})")
        return server

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._child.pid

    @property
    def url(self) -> str:
        """The address as redis-py and arq read it: `unix://` and the socket's path, database 0."""
        return f"unix://{self._socket_path}"

    def poll(self) -> int | None:
        """The exit status if the server has ended (negative: the signal that ended it), otherwise None."""
        return self._child.poll()

    def stop(self, *, timeout_seconds: float = 10) -> None:
        """End the server after it has written everything out; one that does not end in time is killed."""
        process.stop(self._child, (signal.SIGTERM, timeout_seconds))
        folder.remove_socket_folder(self._home)

    def _is_ready(self) -> bool:
        # While the file is being read, the answer is an error, not PONG.
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PING_TIMEOUT_SECONDS)
            try:
                connection.connect(str(self._socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False
