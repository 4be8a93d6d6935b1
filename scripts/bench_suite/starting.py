"""How long `onefold dev` takes until a call can come."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from statistics import median
from typing import Final

from onefold.embedded import EmbeddedPostgres, EmbeddedValkey, process

from .figure import Figure
from .stage import NotMeasuredError, private_folder

_STARTS: Final = 3
_READY_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 30.0


def starting() -> list[Figure]:
    """Seconds from calling `onefold dev` to its line "ready": in a new folder (cold), and again in the same (warm).

    The floor is the same for its PostgreSQL and Valkey alone, started one after the other by the same launcher.
    """
    seconds: dict[str, list[float]] = {"cold": [], "warm": [], "cold servers": [], "warm servers": []}
    for _ in range(_STARTS):
        with private_folder() as folder:
            for temperature in ("cold", "warm"):
                seconds[temperature].append(_dev_seconds(folder))
        with private_folder() as folder:
            for temperature in ("cold", "warm"):
                seconds[f"{temperature} servers"].append(_servers_seconds(folder))
    return [
        Figure(
            f"start_{temperature}",
            median(seconds[temperature]),
            "s",
            median(seconds[f"{temperature} servers"]),
            f"median of {_STARTS} starts ({min(seconds[temperature]):.2f} to {max(seconds[temperature]):.2f}), "
            "floor: PostgreSQL and Valkey alone",
        )
        for temperature in ("cold", "warm")
    ]


def _dev_seconds(folder: Path) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEFOLD_")}
    reader, writer = os.pipe2(os.O_CLOEXEC)
    begin = time.perf_counter()
    try:
        child = process.spawn(
            [sys.executable, "-m", "onefold", "dev", "--json", "--port", "0", "--data-dir", folder],
            death_signal=signal.SIGTERM,
            output=writer,
            environment=environment,
        )
    finally:
        os.close(writer)
    try:
        with os.fdopen(reader) as output:
            readable, _, _ = select.select([output], [], [], _READY_SECONDS)
            line = output.readline() if readable else "it said nothing"
            taken = time.perf_counter() - begin
        if not line.startswith("{") or not json.loads(line)["ready"]:
            raise NotMeasuredError(f"onefold dev did not start: {line.strip()}")
        return taken
    finally:
        process.stop(child, (signal.SIGTERM, _STOP_SECONDS))


def _servers_seconds(folder: Path) -> float:
    begin = time.perf_counter()
    postgres = EmbeddedPostgres.start(folder)
    try:
        valkey = EmbeddedValkey.start(folder)
        taken = time.perf_counter() - begin
        valkey.stop()
        return taken
    finally:
        postgres.stop()
