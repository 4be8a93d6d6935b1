"""floor_server without metrics, log lines and traces: the floor of what it costs to watch calls.

The product cannot be told to watch nothing, so what watches is replaced here, in a process of its own.
"""

from __future__ import annotations

from typing import Any

from onefold.cli import main
from onefold.events.service import EventsService
from onefold.rpc import boundary
from onefold.telemetry.metrics import MethodCounts

from .floor_server import track


class _Nothing:
    """Stands in for what watches a method, and for what watches one of its calls."""

    def __init__(self, method: str, **_: Any) -> None:
        self.method = method
        self.counts = MethodCounts()
        self.project_id = ""

    def begin(self, context: Any) -> _Nothing:
        return self

    def succeeded(self) -> None: ...

    def failed(self, error: Any) -> None: ...

    def cancelled(self, seconds_left: Any) -> None: ...


if __name__ == "__main__":
    boundary.MethodWatch = _Nothing  # type: ignore[misc, assignment]
    EventsService.Track = track  # type: ignore[method-assign]
    main()
