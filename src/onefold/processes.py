"""`onefold serve --workers N`: several servers on one port, as one tree of processes.

    onefold serve --workers 2 ─┬─ onefold serve --shared-port
                               └─ onefold serve --shared-port

Each has its own PostgreSQL connections and its own limit of calls. The kernel gives every new connection to one of them
(SO_REUSEPORT); the calls of a connection stay together. This process starts them, restarts those that end, and has all
of them drain when it is told to stop; when it is killed, the kernel tells them to. It never imports grpc, which does
not survive a fork.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import click

from onefold.config import Settings
from onefold.embedded import EmbeddedError, process
from onefold.embedded.supervisor import DiesTooOftenError, StopRequestedError, StopSignals, Supervisor, describe
from onefold.ports import held

_READY_SECONDS: Final = 60.0
# What a server needs beside the drain: being out of the load balancers first, and closing its connections last.
_CLOSING_SECONDS: Final = 20.0


class _NotStartedError(Exception):
    """A server did not become ready; it has said why itself if the text is empty."""


def serve_processes(settings: Settings, *, on_ready: Callable[[str], None]) -> int:
    """Serves until SIGTERM, SIGINT or SIGHUP; returns the exit status: 0 when every server has drained as it should.

    Calls `on_ready` with "HOST:PORT" when calls can come to all of them. Raises OnefoldError when another program has
    the port. To be called from the main thread, before grpc is imported.
    """
    status = 0
    with StopSignals() as signals, held(settings.host, settings.port) as port:
        supervisor = Supervisor(signals, _report)
        servers = [_Server(settings, port, number) for number in range(1, settings.server_processes + 1)]
        try:
            # The first alone: what is wrong with the settings or with PostgreSQL is then told once.
            _start(supervisor, servers[:1])
            _start(supervisor, servers[1:])
            on_ready(f"{settings.host}:{port}")
            supervisor.watch()
        except StopRequestedError:
            pass
        except (_NotStartedError, DiesTooOftenError, EmbeddedError) as error:
            if str(error):
                _report(str(error))
            status = 1
        finally:
            # All of them at once, or the last would serve for as long as the others drain.
            draining = [server for server in servers if server.drain()]
            supervisor.stop()
        for server in draining:
            if server.failed():
                _report(f"the {server.name} did not end as it should: {describe(server.poll() or 0)}")
                status = 1
    return status


class _Server:
    """One of the servers: a process that reports through a pipe when it is ready."""

    def __init__(self, settings: Settings, port: int, number: int) -> None:
        self.name = f"server process {number}"
        self._arguments = ["--host", settings.host, "--port", str(port), "--workers", "1", "--shared-port"]
        if settings.allow_plaintext:
            self._arguments.append("--allow-plaintext")
        if settings.http_port is not None:
            # A port for each: what a process counts is its own, and starts anew with it, as Prometheus expects.
            self._arguments += ["--http-port", str(settings.http_port + number - 1 if settings.http_port else 0)]
        self._drain_seconds = settings.drain_seconds + _CLOSING_SECONDS
        self._child: process.Child | None = None
        self._pipe: int | None = None
        self._ready = False

    def start(self) -> _Server:
        """Starts the process, for the first time or again, without waiting for it."""
        self._close_pipe()
        self._pipe, ready_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._pipe, False)
        try:
            self._child = process.spawn(
                [sys.executable, "-m", "onefold", "serve", *self._arguments, "--ready-fd", str(ready_fd)],
                # The calls that it has in hand end properly even if it is left alone.
                death_signal=signal.SIGTERM,
                output=sys.stderr.fileno(),
                pass_fds=[ready_fd],
            )
        finally:
            os.close(ready_fd)
        return self

    def poll(self) -> int | None:
        """The exit status if the process has ended, otherwise None."""
        return self._child.poll() if self._child else None

    def unread(self) -> list[int]:
        """The descriptor that becomes readable when the process is ready, while that is awaited."""
        return [] if self._pipe is None or self._ready else [self._pipe]

    def is_ready(self) -> bool:
        """Whether the process has become ready for the first time. Raises _NotStartedError when it ended instead."""
        for descriptor in self.unread():
            with suppress(BlockingIOError):
                self._ready = bool(os.read(descriptor, 4096))
        status = self.poll()
        if status is not None:
            # Status 1 is that of a command that has said in one line why it fails.
            raise _NotStartedError("" if status == 1 else f"the {self.name} ended with {describe(status)}")
        return self._ready

    def drain(self) -> bool:
        """Tells the process to end its calls; False if there is none that runs."""
        if self._child is None or self.poll() is not None:
            return False
        self._child.terminate()
        return True

    def stop(self) -> None:
        """Waits for the end of a process that was told to drain; one that drains for too long is killed."""
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(self._drain_seconds)
            process.stop(self._child)
        self._close_pipe()

    def failed(self) -> bool:
        """Whether a process that was told to drain ended by anything else, be it that it had hardly begun."""
        return self.poll() not in (0, -signal.SIGTERM)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


def _start(supervisor: Supervisor, servers: Sequence[_Server]) -> None:
    """Starts servers and returns when all of them are ready."""
    for server in servers:
        supervisor.add(server.name, server.start)
    supervisor.watch(
        restart=False,
        until=lambda: _all_ready(servers),
        descriptors=lambda: [descriptor for server in servers for descriptor in server.unread()],
        timeout_seconds=_READY_SECONDS,
    )
    for server in servers:
        if not server.is_ready():
            raise _NotStartedError(f"the {server.name} was not ready within {_READY_SECONDS:.0f} s")


def _all_ready(servers: Sequence[_Server]) -> bool:
    # Each is asked, so that the end of one is noticed while another is still starting.
    ready = [server.is_ready() for server in servers]
    return all(ready)


def _report(message: str) -> None:
    click.echo(f"onefold serve: {message}", err=True)
