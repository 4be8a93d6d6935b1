"""PostgreSQL and Valkey that a test may stop and start while grpc runs in this process.

A process in which grpc has threads must not fork, so the servers are children of a helper: this file, run as a program.
It is told what to do line by line, and ends with its servers when its stdin does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

SOURCE = Path(__file__).resolve().parents[2] / "src"
Name = Literal["postgres", "valkey"]


@dataclass
class Kept:
    """A server of the helper. Its address stays the same over stops and starts."""

    keeper: Keeper
    name: Name
    folder: Path
    url: str = ""

    def start(self) -> None:
        """Starts the server on its data, and returns when it answers."""
        self.url = self.keeper.ask("start", self.name, str(self.folder))

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops the server, and returns when it has ended."""
        self.keeper.ask("stop", self.name, str(self.folder), mode)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Both, while this process's event loop stands still and notices nothing."""
        self.stop(mode)
        self.start()


class Keeper:
    """The helper, seen from the test."""

    def __init__(self) -> None:
        # No preexec_fn: Python then starts it without running what grpc does around a fork.
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )

    def ask(self, *words: str) -> str:
        """Has the helper do something; returns what it answers. RuntimeError if it could not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        done, answer = json.loads(self._process.stdout.readline() or '[false, "the helper has ended"]')
        if not done:
            raise RuntimeError(answer)
        return str(answer)

    def close(self) -> None:
        """Stops the helper and its servers."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


@contextmanager
def kept(name: Name, folder: Path) -> Iterator[Kept]:
    """A running server; stopped at the end."""
    keeper = Keeper()
    try:
        server = Kept(keeper, name, folder)
        server.start()
        yield server
    finally:
        keeper.close()


def _main() -> None:
    from onefold.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedValkey

    running: dict[tuple[str, str], Any] = {}
    for line in sys.stdin:
        action, name, folder, *mode = json.loads(line)
        try:
            if action == "stop":
                server = running.pop((name, folder))
                server.stop(mode=mode[0]) if name == "postgres" else server.stop()
                answer = [True, ""]
            elif name == "postgres":
                postgres = running[name, folder] = EmbeddedPostgres.start(Path(folder), durable=False)
                answer = [True, postgres.url()]
            else:
                valkey = running[name, folder] = EmbeddedValkey.start(Path(folder))
                answer = [True, valkey.url]
        except EmbeddedError as error:
            answer = [False, str(error)]
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for server in running.values():
        server.stop()


if __name__ == "__main__":
    _main()
