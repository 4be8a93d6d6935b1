"""Reading ahead: what comes next is made ready while what came before is being worked on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Final, TypeVar

T = TypeVar("T")

_END: Final = object()


async def read_ahead(source: AsyncGenerator[T], count: int) -> AsyncGenerator[T]:
    """Yields what `source` yields, of which up to `count` wait here; more are not asked for.

    What the source raises is raised in its turn, after everything that came before it.
    """
    waiting: asyncio.Queue[T | object] = asyncio.Queue()
    room = asyncio.Semaphore(count)

    async def read() -> None:
        try:
            async with contextlib.aclosing(source):
                await room.acquire()
                async for item in source:
                    waiting.put_nowait(item)
                    await room.acquire()
        finally:
            waiting.put_nowait(_END)

    reader = asyncio.create_task(read())
    try:
        while (item := await waiting.get()) is not _END:
            room.release()
            yield item  # type: ignore[misc]  # whatever is not the end is the source's
        await reader
    finally:
        reader.cancel()
        await asyncio.wait({reader})


async def all_ended(tasks: set[asyncio.Task[Any]]) -> None:
    """Waits for tasks that were cancelled, also when the one that waits is cancelled meanwhile, once or more often."""
    again: asyncio.CancelledError | None = None
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as cancelled:
            again = cancelled
    if again is not None:
        raise again
