"""DisableDevice for everybody, and the work that it leaves behind."""

from __future__ import annotations

import time
from statistics import median
from typing import Final

from onefold.v1.devices_service_pb2 import DisableDeviceRequest

from .client import Stage
from .figure import Figure
from .seed import HOLDERS, phone_owners, shared_phone
from .stage import PROJECT, eventually

_CALLS: Final = 150
_WARM_UP_CALLS: Final = 10
_PAIRS: Final = 4
_FAN_OUT_SECONDS: Final = 60.0

_BY_HAND = """
UPDATE devices
SET endpoint_enabled = false, update_time = now()
WHERE project_id = $1 AND token = $2 AND endpoint_enabled
"""


async def disable_flatness(stage: Stage) -> list[Figure]:
    """p50 of DisableDevice for a token with 100,000 holders over p50 for one with 1.

    The two take turns. The worker is frozen, so each call finds every holder as it was; the disables that pile up are
    deleted after each pair of calls.
    """
    await phone_owners(stage)
    many, one = "flat-many", await stage.database.fetchval("SELECT min(token) FROM devices WHERE token LIKE 'own-%'")
    await shared_phone(stage, many)
    await stage.fresh("devices")
    times: dict[str, list[float]] = {many: [], one: []}
    for number in range(_WARM_UP_CALLS + _CALLS):
        for token in (many, one) if number % 2 else (one, many):
            taken = await stage.milliseconds(stage.devices.DisableDevice, DisableDeviceRequest(token=token))
            if number >= _WARM_UP_CALLS:
                times[token].append(taken)
        await stage.database.execute("DELETE FROM intents WHERE project_id = $1", PROJECT)
        await stage.database.execute("DELETE FROM token_disables WHERE project_id = $1", PROJECT)
    note = f"p50 of {_CALLS} calls for a token with {HOLDERS:,} holders, floor: as many for a token with 1"
    return [Figure("disable_flatness", median(times[many]), "ms", median(times[one]), note)]


async def fanout_ratio(stage: Stage) -> list[Figure]:
    """Copies/s that the worker switches off for a token with 100,000 holders, over one hand-written UPDATE of as many.

    The worker's time runs from the answer of DisableDevice until the disable is DONE, so it contains the bell and the
    wait for it. Worker and statement take turns, each on a token of its own.
    """
    by_worker, by_hand = [], []
    for pair in range(_PAIRS):
        tokens = [f"fan-out-{pair}-{turn}" for turn in range(2)]
        for token in tokens:
            await shared_phone(stage, token)
        await stage.fresh("devices")
        for turn, token in enumerate(tokens):
            await stage.database.execute("CHECKPOINT")
            if turn == pair % 2:
                by_worker.append(HOLDERS / await _worker_seconds(stage, token))
            else:
                by_hand.append(HOLDERS / await _by_hand_seconds(stage, token))
        on = await stage.database.fetchval(
            "SELECT count(*) FROM devices WHERE token = ANY($1) AND endpoint_enabled", tokens
        )
        assert on == 0, on
    note = (
        f"medians of {_PAIRS} tokens with {HOLDERS:,} holders each, floor: one UPDATE; "
        f"worker {min(by_worker):,.0f} to {max(by_worker):,.0f}, UPDATE {min(by_hand):,.0f} to {max(by_hand):,.0f}"
    )
    return [Figure("fanout_ratio", median(by_worker), "copies/s", median(by_hand), note)]


async def _worker_seconds(stage: Stage, token: str) -> float:
    with stage.working():
        await stage.settle()
        answer = await stage.devices.DisableDevice(DisableDeviceRequest(token=token), metadata=stage.metadata)
        begin = time.perf_counter()

        async def done() -> bool:
            finished: bool = await stage.database.fetchval(
                "SELECT finish_time IS NOT NULL FROM token_disables WHERE project_id = $1 AND disable_id = $2",
                PROJECT,
                answer.disable.disable_id,
            )
            return finished

        await eventually(done, "the copies were not switched off", seconds=_FAN_OUT_SECONDS, every=0.01)
        return time.perf_counter() - begin


async def _by_hand_seconds(stage: Stage, token: str) -> float:
    begin = time.perf_counter()
    await stage.database.execute(_BY_HAND, PROJECT, token, timeout=_FAN_OUT_SECONDS)
    return time.perf_counter() - begin
