"""What a hostile client costs the others."""

from __future__ import annotations

import asyncio
import time
from statistics import quantiles
from typing import Final

from onefold.v1.events_service_pb2 import ListEventsRequest
from support.floods import FLOODS

from .client import Stage
from .figure import Figure

_SECONDS: Final = 8.0
# One flood of each kind takes this long, the pauses between them included: a client, not a botnet.
_FLOOD_SECONDS: Final = 0.5


async def floods(stage: Stage) -> list[Figure]:
    """p99 of ListEvents while one client without a key sends one flood after the other, over p99 before.

    The floods are those of the tests: 10,000 half-open calls, calls taken back, pings, settings, endless headers, and
    connections that say nothing.
    """
    await _times(stage, 2.0)
    quiet = await _times(stage, _SECONDS)
    flooding = asyncio.create_task(_flood(stage.processes.address))
    flooded = await _times(stage, _SECONDS)
    count = await flooding
    note = f"p99 of {len(flooded):,} ListEvents during {count} floods of one client, floor: of {len(quiet):,} before"
    return [Figure("floods", _p99(flooded), "ms", _p99(quiet), note)]


async def _times(stage: Stage, seconds: float) -> list[float]:
    end = time.monotonic() + seconds
    times = []
    while time.monotonic() < end:
        times.append(await stage.milliseconds(stage.events.ListEvents, ListEventsRequest(anonymous_id="nobody")))
        await asyncio.sleep(0.005)
    return times


async def _flood(address: str) -> int:
    end, count = time.monotonic() + _SECONDS, 0
    while time.monotonic() < end:
        for flood in FLOODS.values():
            pause = asyncio.create_task(asyncio.sleep(_FLOOD_SECONDS))
            for connection in await asyncio.to_thread(flood, address, None):
                connection.close()
            count += 1
            await pause
    return count


def _p99(times: list[float]) -> float:
    return quantiles(times, n=100)[98]
