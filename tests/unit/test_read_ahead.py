"""Reading ahead: bounded, in order, and tidy at its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from onefold.rpc.streams import read_ahead


class Source:
    """Yields numbers, counts how many were asked for, and knows whether it was closed."""

    def __init__(self, count: int, fault: Exception | None = None) -> None:
        self.count = count
        self.fault = fault
        self.given = 0
        self.closed = False

    async def numbers(self) -> AsyncGenerator[int]:
        """0, 1, 2, ..."""
        try:
            for number in range(self.count):
                self.given += 1
                yield number
            if self.fault is not None:
                raise self.fault
        finally:
            self.closed = True


async def run_dry() -> None:
    """Lets every other task go on until it can go no further by itself."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", [1, 4])
async def test_no_more_than_so_many_wait(count: int) -> None:
    """E4, F22: however fast messages come, so many wait beside the one that is worked on; all come in order."""
    source = Source(20)
    seen = []
    async with aclosing(read_ahead(source.numbers(), count)) as ahead:
        async for number in ahead:
            seen.append(number)
            await run_dry()
            assert source.given == min(len(seen) + count, 20)
    assert seen == list(range(20))
    assert source.closed


async def test_a_fault_comes_in_its_turn() -> None:
    """E4: what was read before a fault is worked on first."""
    source = Source(3, ValueError("in its turn"))
    seen = []
    with pytest.raises(ValueError, match="in its turn"):
        async for number in read_ahead(source.numbers(), 10):
            await run_dry()
            seen.append(number)
    assert seen == [0, 1, 2]
    assert source.closed


@pytest.mark.parametrize("how", ["left", "cancelled"])
async def test_whoever_stops_reading_stops_the_source(how: str) -> None:
    """F22: when the reader goes away, with messages waiting, the source is closed and nothing runs on."""
    source = Source(100)
    before = asyncio.all_tasks()

    async def read() -> None:
        async with aclosing(read_ahead(source.numbers(), 4)) as ahead:
            async for _ in ahead:
                await run_dry()
                if how == "left":
                    return
                await asyncio.Event().wait()

    reading = asyncio.create_task(read())
    await run_dry()
    await run_dry()
    if how == "cancelled":
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    else:
        await reading
    assert source.closed
    assert source.given == 5
    assert asyncio.all_tasks() == before
