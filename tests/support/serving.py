"""A server of a test's own, with settings of its own, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from onefold.config import Settings
from onefold.server import serve


@asynccontextmanager
async def served(
    settings: Settings,
    stop: asyncio.Event | None = None,
    options: Sequence[tuple[str, Any]] = (),
    on_http: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[grpc.aio.Channel]:
    """A real server in this process, and a channel to it. It ends with the block, or when `stop` is set."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = stop or asyncio.Event()
    serving = asyncio.create_task(serve(settings, on_ready=ready.set_result, on_http=on_http, stop=stop))

    def ended(task: asyncio.Task[None]) -> None:
        # A server that cannot start fails the test at once, instead of being waited for.
        if not ready.done():
            ready.set_exception(task.exception() or AssertionError("the server ended"))

    serving.add_done_callback(ended)
    try:
        async with grpc.aio.insecure_channel(await ready, options=options) as channel:
            yield channel
    finally:
        stop.set()
        await serving
