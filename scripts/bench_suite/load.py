"""Load on a server from processes of their own, and how busy they and the server were.

h2load, where it is installed, takes next to nothing from the cores that it shares with the server. A gRPC call is an
HTTP/2 POST, so it can make any that always says the same; each request that differs from the others gets an h2load of
its own. It does not look at gRPC's status, so whoever uses it counts the rows. Requests that may come only once, and
all where h2load is missing, are sent by bench_suite.loader.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

from .loader import framed
from .stage import NotMeasuredError

_H2LOAD: Final = shutil.which("h2load")
_LOAD_SECONDS: Final = 120.0
_SUCCEEDED: Final = re.compile(r"^requests: .* (\d+) succeeded,", re.MULTILINE)
_CONNECTIONS: Final = 8
TRACK: Final = "/onefold.v1.EventsService/Track"
BATCH_TRACK: Final = "/onefold.v1.EventsService/BatchTrack"
TRACK_STREAM: Final = "/onefold.v1.EventsService/TrackStream"


@dataclass(frozen=True)
class Server:
    """Where to call: HOST:PORT, a key, and the process that serves."""

    address: str
    key: str
    pid: int

    def cpu_seconds(self) -> float:
        """What the process, and those it started, have computed so far."""
        process = psutil.Process(self.pid)
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return sum(each.user + each.system for each in times)


@dataclass(frozen=True)
class Loaded:
    """What a load came to. Shares are of one core."""

    calls: int
    seconds: float
    load_share: float
    server_share: float
    # What each call took; only where it was asked for.
    milliseconds: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds

    @property
    def server_microseconds(self) -> float:
        """What a call cost the server's processor."""
        return self.server_share * self.seconds / self.calls * 1e6


def call(
    server: Server,
    method: str,
    requests: Sequence[bytes],
    *,
    calls: int,
    in_flight: int,
    rate: float = 0.0,
    once: bool = False,
) -> Loaded:
    """Makes calls with the requests in turn, so many at a time; with a `rate`, so many a second.

    `once`: no request may be sent twice, so there must be one for each call. Of a stream each message counts as a call.
    Raises NotMeasuredError if a call failed, as far as can be seen.
    """
    send = _by_loader if once or _H2LOAD is None else _by_h2load
    with tempfile.TemporaryDirectory(prefix="onefold-load-") as folder:
        before = server.cpu_seconds()
        seconds, load_seconds, milliseconds = send(Path(folder), server, method, requests, calls, in_flight, rate)
        busy = server.cpu_seconds() - before
    return Loaded(calls, seconds, load_seconds / seconds, busy / seconds, milliseconds)


def _by_h2load(
    folder: Path, server: Server, method: str, requests: Sequence[bytes], calls: int, in_flight: int, rate: float
) -> tuple[float, float, list[float]]:
    # Each has its share of the calls, and at least one connection.
    count = len(requests)
    clients = max(1, min(in_flight, _CONNECTIONS) // count)
    commands = []
    for number, request in enumerate(requests):
        body, log = folder / f"request-{number}", folder / f"log-{number}"
        body.write_bytes(framed(request))
        commands.append(
            [
                *(str(_H2LOAD), "-n", str(calls // count)),
                *("-c", str(clients), "-m", str(in_flight // count // clients)),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                *("-H", f"authorization: Bearer {server.key}", "-d", str(body)),
                *(("--rps", f"{rate / count / clients:.3f}", f"--log-file={log}") if rate else ()),
                f"http://{server.address}{method}",
            ]
        )
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    said = _run(commands)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    succeeded = sum(int(_SUCCEEDED.findall(text)[0]) for text in said)
    if succeeded != calls:
        raise NotMeasuredError(f"{succeeded} of {calls} calls succeeded")
    rows = [row.split() for log in folder.glob("log-*") for row in log.read_text().splitlines()]
    load_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, load_seconds, [int(microseconds) / 1_000 for _, _, microseconds, *_ in rows]


def _by_loader(
    folder: Path, server: Server, method: str, requests: Sequence[bytes], calls: int, in_flight: int, rate: float
) -> tuple[float, float, list[float]]:
    body = folder / "requests"
    body.write_bytes(b"".join(framed(request) for request in requests))
    command = [sys.executable, "-m", "bench_suite.loader", server.address, method, str(body), "--key", server.key]
    command += ["--calls", str(calls), "--in-flight", str(in_flight), "--rate", str(rate)]
    [text] = _run([[*command, *(["--streams"] if method == TRACK_STREAM else [])]])
    said = json.loads(text)
    if said["failures"]:
        raise NotMeasuredError(f"calls failed: {said['failures']}")
    return said["seconds"], said["cpu_seconds"], said["milliseconds"]


def _run(commands: Sequence[Sequence[str]]) -> list[str]:
    """Runs commands at the same time; what they said."""
    deadline = time.monotonic() + _LOAD_SECONDS
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        said = [each.communicate(timeout=deadline - time.monotonic())[0] for each in running]
    except subprocess.TimeoutExpired:
        raise NotMeasuredError(f"a load took longer than {_LOAD_SECONDS:.0f} s") from None
    finally:
        for each in running:
            each.kill()
            each.wait()
    if any(each.returncode for each in running):
        raise NotMeasuredError(f"{commands[0][0]} failed: {said[0][-500:]}")
    return said
