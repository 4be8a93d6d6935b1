"""What a merge's move of a million events does to the calls that come meanwhile (F40)."""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Awaitable, Callable
from statistics import quantiles
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import ListEventsRequest, TrackRequest
from onefold.v1.identity_service_pb2 import MergeProfilesRequest, UpdateProfileRequest
from onefold.v1.profile_pb2 import Identifiers

from .client import Stage
from .figure import Figure
from .seed import EVENTS, person_events
from .stage import LOCK_WAIT_MILLISECONDS, PROJECT

_IDLE_SECONDS: Final = 8.0
_MOVE_SECONDS: Final = 120.0
_SOURCE, _TARGET = (Identifiers(email=f"alongside-{name}@example.com") for name in ("source", "target"))
_CHUNKS: Final = "onefold_intent_chunk_seconds"
_STILL_WAITING: Final = re.compile(rb"onefold server .* still waiting for ")


async def alongside(stage: Stage) -> list[Figure]:
    """While the worker moves 1,000,000 events of one person to another, somebody reads and writes the other.

    The 99th percentile of a first page of 50 over that without a move; the 99th percentile of a chunk's time; and how
    many calls waited for a lock for more than 50 ms, as PostgreSQL's log tells.
    """
    for who, events in ((_SOURCE, EVENTS), (_TARGET, 50_000)):
        answer = await stage.identity.UpdateProfile(UpdateProfileRequest(identifiers=who), metadata=stage.metadata)
        await person_events(stage, answer.profile.profile_id, events)
    await stage.fresh("events", "profiles")
    idle_until = time.monotonic() + _IDLE_SECONDS

    async def is_over() -> bool:
        return time.monotonic() > idle_until

    idle = await _reads(stage, is_over)
    with stage.working():
        await stage.settle()
        chunks = _chunks(stage)
    log = stage.processes.folder / "postgres.log"
    written = log.stat().st_size
    merged = await stage.identity.MergeProfiles(
        MergeProfilesRequest(source=_SOURCE, target=_TARGET, allow_known_source=True), metadata=stage.metadata
    )

    async def is_moved() -> bool:
        count: int = await stage.database.fetchval(
            "SELECT moved_event_count FROM merges WHERE project_id = $1 AND merge_id = $2",
            PROJECT,
            merged.merge.merge_id,
        )
        return count >= EVENTS

    with stage.working():
        async with asyncio.timeout(_MOVE_SECONDS):
            moving = await _reads(stage, is_moved)
        await stage.settle()
        taken = {bound: count - chunks.get(bound, 0) for bound, count in _chunks(stage).items()}
    waits = len(_STILL_WAITING.findall(log.read_bytes()[written:]))
    bound = min(bound for bound, count in taken.items() if count >= 0.99 * max(taken.values()))
    note = f"p99 of {len(moving):,} first pages of 50 of the target, read and written meanwhile; floor: without a move"
    return [
        Figure("move_reads_p99", _p99(moving), "ms", _p99(idle), note),
        Figure(
            "move_chunk_p99",
            bound * 1_000,
            "ms",
            bound * 1_000,
            f"99 of 100 chunks took at most this (a bound of the histogram), of {max(taken.values()):,.0f}",
        ),
        Figure(
            "move_lock_waits", waits, "calls", waits, f"calls that waited for a lock over {LOCK_WAIT_MILLISECONDS} ms"
        ),
    ]


async def _reads(stage: Stage, is_over: Callable[[], Awaitable[bool]]) -> list[float]:
    """How long first pages take, in ms, one after the other, between writes to the same person."""
    times: list[float] = []
    request = ListEventsRequest(identifiers=_TARGET, page_size=50, data_format=DATA_FORMAT_JSON)
    while not await is_over():
        times += [await stage.milliseconds(stage.events.ListEvents, request) for _ in range(10)]
        event = NewEvent(identifiers=_TARGET, name="looked", data_json="{}")
        await stage.milliseconds(stage.events.Track, TrackRequest(event=event))
        fields = UpdateProfileRequest(identifiers=_TARGET, data_fields_json=f'{{"looked":{len(times)}}}')
        await stage.milliseconds(stage.identity.UpdateProfile, fields)
    return times


def _chunks(stage: Stage) -> dict[float, float]:
    """How many chunks of moves took at most so many seconds, by the bounds of the worker's histogram."""
    with urllib.request.urlopen(f"{stage.processes.worker_http}/metrics", timeout=10) as page:
        text = page.read().decode()
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{_CHUNKS}_bucket" and sample.labels["kind"] == "MOVE"
    }


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]
