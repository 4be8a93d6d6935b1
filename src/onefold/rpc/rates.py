"""How many calls and events a second a project may send to one process of a server.

Each project has two buckets that fill at its rates and hold what a second brings. A call takes one from the first, and
its events from the second; if there is not enough it is refused, and told when there will be. What is larger than a
bucket is let in by a full one, which then owes the rest: a batch may be large however low the rate is.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from onefold.callers import Caller, Scope
from onefold.errors import OnefoldError, Reason, exhausted

_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Bucket:
    """How full a bucket is, and when it was looked at. Below 0 it owes."""

    level: float
    time: float


def take(bucket: Bucket | None, per_second: int, count: int, now: float) -> tuple[Bucket, float]:
    """Takes `count` out of a bucket that fills at a rate; None stands for one that nobody has taken from.

    Returns the bucket afterwards, and 0, or the seconds after which the same can be taken; then nothing was.
    """
    level = float(per_second)
    if bucket is not None:
        # Never less than it was: clocks of other processes may be behind.
        level = min(level, bucket.level + max(now - bucket.time, 0.0) * per_second)
    needed = min(count, per_second)
    if level < needed:
        return Bucket(level, now), (needed - level) / per_second
    return Bucket(level - count, now), 0.0


class Rates:
    """The buckets of this process. Calls that need the scope ADMIN are not counted: with them a limit is lifted."""

    def __init__(
        self,
        event_counts: Mapping[str, Callable[[Any], int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # By method, how many events a request of it brings; 0 where nothing is said.
        self._event_counts = event_counts or {}
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()

    def admit(self, caller: Caller, scope: Scope, method: str, request: Any = None) -> None:
        """Counts a call, with the events of its request if there is one. Raises RATE_LIMITED."""
        settings = caller.project.settings
        if scope is Scope.ADMIN or not (settings.max_calls_per_second or settings.max_events_per_second):
            return
        # The events first: a call that is refused for them is not counted.
        self._take(caller, "events", settings.max_events_per_second, self._events(method, request))
        self._take(caller, "calls", settings.max_calls_per_second, 1)

    def seconds_until(self, caller: Caller, method: str, request: Any) -> float:
        """Counts the events of one message of a stream; or tells when it may come, and counts nothing."""
        rate = caller.project.settings.max_events_per_second
        return self._seconds(caller, "events", rate, self._events(method, request))

    def _events(self, method: str, request: Any) -> int:
        count = self._event_counts.get(method)
        return count(request) if count and request is not None else 0

    def _take(self, caller: Caller, of: str, per_second: int, count: int) -> None:
        seconds = self._seconds(caller, of, per_second, count)
        if seconds:
            raise _limited(of, per_second, seconds)

    def _seconds(self, caller: Caller, of: str, per_second: int, count: int) -> float:
        if not per_second or not count:
            return 0.0
        name = (caller.project.project_id, of)
        self._buckets[name], seconds = take(self._buckets.get(name), per_second, count, self._clock())
        self._buckets.move_to_end(name)
        if len(self._buckets) > _REMEMBERED:
            # The one that nobody has taken from for longest is full by now, or nearly.
            self._buckets.popitem(last=False)
        return seconds


def _limited(of: str, per_second: int, seconds: float) -> OnefoldError:
    error = exhausted(
        Reason.RATE_LIMITED,
        f"The project has sent more {of} than its limit of {per_second} a second allows. Send this call again later.",
        limit=of,
        per_second=str(per_second),
    )
    error.retry_after_seconds = seconds
    return error
