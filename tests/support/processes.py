"""The commands of onefold as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SOURCE = Path(__file__).resolve().parents[2] / "src"


def environment(**changes: str) -> dict[str, str]:
    """Our environment without any setting of onefold, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONEFOLD_")}
    return {**kept, "PYTHONPATH": str(SOURCE), **changes}


def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself: its exit status, stdout and stderr."""
    return subprocess.run(
        [sys.executable, "-m", "onefold", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(**changes),
    )


@dataclass
class Running:
    """A server or a worker that has said that it is ready."""

    process: subprocess.Popen[bytes]
    ready: str
    log: IO[bytes]

    @property
    def address(self) -> str:
        """HOST:PORT of a server."""
        return self.ready.removeprefix("ready ").partition(" http ")[0]

    @property
    def http(self) -> str:
        """HOST:PORT of the side port, of a server or a worker that was given one."""
        return self.ready.partition("http ")[2]

    def kill(self) -> None:
        """SIGKILL, and the end."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20.0) -> int:
        """A signal, and the exit status that it led to."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def said(self) -> str:
        """What it has written to stdout and stderr so far."""
        self.log.seek(0)
        return self.log.read().decode()


@contextmanager
def running(command: str, *arguments: str, **changes: str) -> Iterator[Running]:
    """`onefold serve` or `onefold work`, ready; killed at the end if it still runs."""
    read, write = os.pipe()
    with tempfile.TemporaryFile() as log:
        # No preexec_fn: a process in which grpc has threads must not fork in the old way.
        process = subprocess.Popen(
            [sys.executable, "-m", "onefold", command, *arguments, "--ready-fd", str(write)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[write],
            env=environment(**changes),
        )
        os.close(write)
        try:
            with os.fdopen(read) as pipe:
                ready = pipe.readline().strip()
            started = Running(process, ready, log)
            assert ready.startswith("ready"), started.said()
            yield started
        finally:
            process.kill()
            process.wait()
