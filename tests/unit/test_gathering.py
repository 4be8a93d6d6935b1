"""Calls that come together."""

from __future__ import annotations

import asyncio

import pytest

from onefold.rpc import gathering
from onefold.rpc.gathering import come_together


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is over because the machine was busy."""
    monkeypatch.setattr(gathering, "_LONGEST_SECONDS", 60.0)


async def arrive(waiting: list[int], count: int, turns: int) -> None:
    """So many calls, one after so many turns of the loop."""
    for number in range(count):
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.append(number)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(("turns", "enough", "expected"), [(5, 100, 20), (1, 7, 7), (30, 100, 0)])
async def test_who_is_being_read_is_waited_for(turns: int, enough: int, expected: int) -> None:
    """F16: calls that follow each other closely are together, up to as many as are wanted; who alone comes later is not
    waited for."""
    waiting: list[int] = []
    arriving = asyncio.create_task(arrive(waiting, 20, turns))
    await come_together(waiting, enough)
    assert len(waiting) == expected
    await arriving


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """F16: a group that never stops growing goes when its time is over."""
    monkeypatch.setattr(gathering, "_LONGEST_SECONDS", 0.0)
    waiting: list[int] = []
    arriving = asyncio.create_task(arrive(waiting, 1_000, 1))
    await come_together(waiting, 1_000_000)
    assert len(waiting) < 1_000
    await arriving
