"""What it costs to count, log and (with tracing off) not trace every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Final

from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest

from .figure import Figure
from .load import TRACK, Server, call
from .stage import Processes, part, processes

_ROUNDS: Final = 7
_CALLS: Final = 10_000
_IN_FLIGHT: Final = 64
_REQUEST: Final = TrackRequest(event=NewEvent(anonymous_id="bench", name="Viewed")).SerializeToString()


def observability_cost() -> list[Figure]:
    """CPU of a server for a call that does nothing, with a metrics port and a line for each call, over neither."""
    with processes() as running:
        with _server(running, "floor_server", "--http-port", "0") as watched, _server(running, "bare_server") as bare:
            costs: dict[str, list[float]] = {"watched": [], "bare": []}
            for number in range(_ROUNDS + 1):
                # In turn, so that what else the machine does falls on both.
                for name, server in (("watched", watched), ("bare", bare)):
                    loaded = call(server, TRACK, [_REQUEST], calls=_CALLS, in_flight=_IN_FLIGHT)
                    if number:  # the first one warms up
                        costs[name].append(loaded.server_microseconds)
    ratios = ", ".join(f"{watched / bare:.2f}" for watched, bare in zip(*costs.values(), strict=True))
    note = (
        f"CPU of a Track that answers a constant, {_IN_FLIGHT} in flight, medians of {_ROUNDS} rounds of {_CALLS}; "
        f"floor: the same server with nothing counted and nothing logged (round by round: {ratios})"
    )
    return [Figure("observability_cost", median(costs["watched"]), "µs/call", median(costs["bare"]), note)]


@contextmanager
def _server(running: Processes, module: str, *arguments: str) -> Iterator[Server]:
    log = running.folder / f"{module}.log"
    command = ["serve", "--port", "0", *arguments]
    with part(log, command, running.environment, module=f"bench_suite.{module}") as (child, said):
        server = Server(said.removeprefix("ready ").partition(" http ")[0], running.api_key, child.pid)
        call(server, TRACK, [_REQUEST], calls=1, in_flight=1, once=True)
        yield server
