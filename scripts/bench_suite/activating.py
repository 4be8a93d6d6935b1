"""Visitors who become unknown profiles: how soon, and what it costs those who send events."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Final
from uuid import uuid4

from onefold.activation.criteria import Condition, Leaf
from onefold.activation.store import encode_tree
from onefold.projects.bootstrap import ensure_project
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest

from .client import Stage
from .figure import Figure
from .stage import NotMeasuredError

Metadata = tuple[tuple[str, str]]

_RATE: Final = 500
_LAG_SECONDS: Final = 12.0
_WARM_UP_SECONDS: Final = 2.0
# The last event of each visitor is the one that matches.
_EVENTS_PER_VISITOR: Final = 10
_PATIENCE_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.02

_CALLERS: Final = 64
# Short rounds that take turns: what else the machine does meets both alike.
_ROUND_SECONDS: Final = 0.4
_ROUNDS: Final = 40

_numbers = itertools.count(1)


async def activation_lag(stage: Stage) -> list[Figure]:
    """p95 of the time from an event's commit to its visitor's unknown profile, at 500 events/s of visitors.

    Each visitor has ten events, spread over the run, and matches with the last one. The commit is taken to be when the
    caller has the answer; the profile is there when another connection sees it.
    """
    metadata = await _project(stage, watched=True)
    committed: dict[str, float] = {}
    seen: dict[str, float] = {}
    calls: set[asyncio.Task[None]] = set()
    visitors = int(_RATE * _LAG_SECONDS / _EVENTS_PER_VISITOR)

    async def tell(visitor: str, *, is_last: bool) -> None:
        await _track(stage, metadata, visitor)
        if is_last:
            committed[visitor] = time.perf_counter()

    async def look() -> None:
        while len(seen) < visitors:
            now = time.perf_counter()
            rows = await stage.database.fetch(
                "SELECT link.value FROM identifiers AS link JOIN profiles AS profile USING (project_id, profile_id) "
                "WHERE link.project_id = $1 AND link.kind = 3 AND profile.is_unknown",
                _project_of(metadata),
            )
            for row in rows:
                seen.setdefault(row["value"], now)
            await asyncio.sleep(_LOOK_SECONDS)

    with stage.working():
        begin = time.perf_counter()
        looking = asyncio.create_task(look())
        for number in range(visitors * _EVENTS_PER_VISITOR):
            await asyncio.sleep(max(0.0, begin + number / _RATE - time.perf_counter()))
            # A hundred visitors take turns; when they are done the next hundred comes.
            group, within = divmod(number, 100 * _EVENTS_PER_VISITOR)
            turn, place = divmod(within, 100)
            visitor = f"v{group * 100 + place}"
            call = asyncio.create_task(tell(visitor, is_last=turn == _EVENTS_PER_VISITOR - 1))
            calls.add(call)
            call.add_done_callback(calls.discard)
        took = time.perf_counter() - begin
        await asyncio.gather(*calls)
        try:
            await asyncio.wait_for(looking, _PATIENCE_SECONDS)
        except TimeoutError:
            raise NotMeasuredError(f"only {len(seen)} of {visitors} profiles were made") from None
        await stage.settle()
    if took > _LAG_SECONDS * 1.1:
        raise NotMeasuredError(f"the events took {took:.1f} s to send instead of {_LAG_SECONDS:.0f} s")
    warm = begin + _WARM_UP_SECONDS
    lags = sorted(seen[visitor] - moment for visitor, moment in committed.items() if moment > warm)
    p95 = lags[int(len(lags) * 0.95)]
    note = (
        f"p95 of {len(lags)} visitors at {_RATE} events/s (p50 {lags[len(lags) // 2]:.2f} s), floor: a worker's pause"
    )
    return [Figure("activation_lag", p95, "s", 0.2, note)]


async def activation_track_ratio(stage: Stage) -> list[Figure]:
    """Track calls/s of visitors' events in a project that watches its visitors over one that does not.

    64 callers; the two take turns. The worker looks at the visitors afterwards: what it does costs processor time that
    in operation is not the server's.
    """
    watching, other = await _project(stage, watched=True), await _project(stage, watched=False)
    counts = {watching: 0, other: 0}
    await _for_a_round(stage, other)
    for number in range(_ROUNDS):
        for metadata in (watching, other) if number % 2 else (other, watching):
            counts[metadata] += await _for_a_round(stage, metadata)
    with stage.working():
        await stage.settle()
    seconds = _ROUNDS * _ROUND_SECONDS
    note = f"Track calls/s by {_CALLERS} callers with activation on, floor: with it off; {_ROUNDS} rounds of each"
    return [Figure("activation_track_ratio", counts[watching] / seconds, "calls/s", counts[other] / seconds, note)]


async def _for_a_round(stage: Stage, metadata: Metadata) -> int:
    until = time.perf_counter() + _ROUND_SECONDS
    count = 0

    async def call() -> None:
        nonlocal count
        while time.perf_counter() < until:
            await _track(stage, metadata, f"v{next(_numbers) % 5_000}", name="Other")
            count += 1

    await asyncio.gather(*(call() for _ in range(_CALLERS)))
    return count


async def _track(stage: Stage, metadata: Metadata, visitor: str, name: str = "Viewed") -> None:
    event = NewEvent(anonymous_id=visitor, name=name, data_json='{"path":"/products/1","seconds":12}')
    await stage.events.Track(TrackRequest(event=event), metadata=metadata, timeout=20)


async def _project(stage: Stage, *, watched: bool) -> Metadata:
    """A project of its own, switched on a while ago; the key to it."""
    project_id = f"visitors-{uuid4().hex[:8]}"
    key = await ensure_project(
        stage.processes.database_url, project_id=project_id, identifier_type="HYBRID", api_key=None
    )
    await stage.database.execute(
        "UPDATE projects SET server_side_activation = $2, update_time = now() - interval '1 hour' "
        "WHERE project_id = $1",
        project_id,
        watched,
    )
    root = Leaf("customEvent", Condition("eventName", "Equals", ("Viewed",)), min_match=_EVENTS_PER_VISITOR)
    await stage.database.execute(
        "INSERT INTO criteria (project_id, criterion_id, name, root) VALUES ($1, uuidv7(), 'ten views', $2)",
        project_id,
        encode_tree(root),
    )
    return (("authorization", f"Bearer {key}"),)


def _project_of(metadata: Metadata) -> str:
    """The project whose key this is; its id stands in it."""
    return metadata[0][1].split("_")[1]
