"""How fast the worker relocates events, and what memory that takes."""

from __future__ import annotations

import time
from statistics import median
from typing import Final

from onefold.identity.links import subject_id

from .client import Stage
from .figure import Figure
from .identify import identify_request
from .seed import crowd, visitor
from .stage import PROJECT, eventually

_PAIRS: Final = 4
_EVENTS: Final = 300_000
_MOVE_SECONDS: Final = 120.0

# What somebody would write who had no readers, no crashes and no second worker to think of.
_BY_HAND = """
WITH moved AS (
    DELETE FROM anonymous_events
    WHERE project_id = $1 AND subject_id = $2
    RETURNING event_time, event_id, receive_time, kind, name, anonymous_id, data
)

INSERT INTO events (
    project_id, profile_id, event_time, event_id, receive_time, kind, was_anonymous, origin_id, name, anonymous_id, data
)
SELECT $1, $3, event_time, event_id, receive_time, kind, true, $2, name, anonymous_id, data
FROM moved
"""


async def relocation(stage: Stage) -> list[Figure]:
    """Events/s that the worker relocates, over the same rows moved by one hand-written SQL statement; and its memory.

    The worker's time runs from the answer of Identify until its last chunk is committed, so it contains the bell and
    the wait for it. Worker and statement take turns, each on a visitor of 300,000 events of its own. The memory is
    the most that the worker ever had, over what it had before its first relocation.
    """
    by_worker, by_hand = [], []
    await crowd(stage)
    with stage.working():
        await stage.settle()
    idle_megabytes = stage.worker_megabytes("VmRSS")
    visitors = await _visitors(stage, 0)
    for pair in range(_PAIRS):
        await stage.fresh("anonymous_events", "events")
        for turn, anonymous_id in enumerate(visitors):
            await stage.database.execute("CHECKPOINT")
            if turn == pair % 2:
                by_worker.append(_EVENTS / await _worker_seconds(stage, anonymous_id))
            else:
                by_hand.append(_EVENTS / await _by_hand_seconds(stage, anonymous_id))
        with stage.working():
            # The worker's last look comes 16 s after its first; the next visitors are made meanwhile.
            if pair < _PAIRS - 1:
                visitors = await _visitors(stage, pair + 1)
                await stage.settle()
    peak_megabytes = stage.worker_megabytes("VmHWM")
    note = (
        f"medians of {_PAIRS} moves of {_EVENTS:,} events each, floor: one SQL statement; "
        f"worker {_spread(by_worker)}, statement {_spread(by_hand)}"
    )
    return [
        Figure("relocation_ratio", median(by_worker), "events/s", median(by_hand), note),
        Figure("relocation_memory", peak_megabytes, "MB", idle_megabytes, "the worker's peak, floor: before the moves"),
    ]


async def _visitors(stage: Stage, pair: int) -> list[str]:
    names = [f"moved-{pair}-{turn}" for turn in range(2)]
    for name in names:
        await visitor(stage, name, _EVENTS)
    return names


async def _worker_seconds(stage: Stage, anonymous_id: str) -> float:
    with stage.working():
        await stage.settle()
        answer = await stage.identity.Identify(identify_request(anonymous_id), metadata=stage.metadata)
        begin = time.perf_counter()

        async def moved() -> bool:
            count: int = await stage.database.fetchval(
                "SELECT moved_event_count FROM merges WHERE project_id = $1 AND merge_id = $2",
                PROJECT,
                answer.link.merge_id,
            )
            return count == _EVENTS

        await eventually(moved, "the events were not moved", seconds=_MOVE_SECONDS, every=0.05)
        taken = time.perf_counter() - begin

        async def idle() -> bool:
            # It must not be frozen with a lease in its hand.
            return not await stage.database.fetchval(
                "SELECT EXISTS (SELECT FROM intents WHERE lease_token IS NOT NULL)"
            )

        await eventually(idle, "the worker did not end its pass", seconds=_MOVE_SECONDS, every=0.05)
    return taken


async def _by_hand_seconds(stage: Stage, anonymous_id: str) -> float:
    profile_id = await stage.database.fetchval("SELECT uuidv7()")
    begin = time.perf_counter()
    await stage.database.execute(
        _BY_HAND, PROJECT, subject_id(PROJECT, anonymous_id), profile_id, timeout=_MOVE_SECONDS
    )
    return time.perf_counter() - begin


def _spread(rates: list[float]) -> str:
    return f"{min(rates):,.0f} to {max(rates):,.0f}"
