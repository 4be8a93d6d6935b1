"""Streams that survive the loss of a server: events sent until they are acknowledged, triggers without a gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING

from onefold.client.errors import CallError, lost_stream
from onefold.client.resending import GIVE_UP_SECONDS, Retry, Window
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import (
    TrackStreamRequest,
    TrackStreamResponse,
    WatchTriggersRequest,
    WatchTriggersResponse,
)

if TYPE_CHECKING:
    from onefold.client.connecting import Client


async def send_events(
    client: Client,
    batches: AsyncIterable[Sequence[NewEvent]] | Iterable[Sequence[NewEvent]],
    *,
    first_sequence: int = 1,
    give_up_seconds: float = GIVE_UP_SECONDS,
) -> AsyncIterator[TrackStreamResponse]:
    """Sends batches of at most 1,000 events; yields an answer for each once it is committed.

    The answer's `sequence` is the batch's number, from `first_sequence` on: what has been answered need not be kept any
    more. When the server is lost, what was not answered is sent again with the same event_ids, so every event is stored
    once. Raises CallError when that is refused, or when nothing gets on for `give_up_seconds`.
    """
    window = Window(first_sequence)
    changed = asyncio.Condition()

    async def take() -> None:
        try:
            async for events in _each(batches):
                async with changed:
                    await changed.wait_for(lambda: not window.is_full)
                    window.add(events)
                    changed.notify_all()
        finally:
            async with changed:
                window.ended = True
                changed.notify_all()

    async def requests(over: asyncio.Event) -> AsyncIterator[TrackStreamRequest]:
        sent = 0
        while True:
            async with changed:
                while not (over.is_set() or window.is_done or window.after(sent)):
                    await changed.wait()
                batch = window.after(sent)
            if over.is_set() or batch is None:
                return
            sent = batch.sequence
            yield batch

    taking = asyncio.create_task(take())
    retry = Retry(give_up_seconds)
    try:
        while True:
            over = asyncio.Event()
            call = client.events.TrackStream(requests(over))
            try:
                async for answer in call:
                    async with changed:
                        window.acknowledge(answer)
                        changed.notify_all()
                    retry.got_on()
                    yield answer
                if window.is_done:
                    # The source's own error, if that is why it ended.
                    await taking
                    return
                failure: CallError = lost_stream()
            except CallError as error:
                failure = error
            finally:
                call.cancel()
                # gRPC leaves what feeds a stream that has ended waiting for ever.
                over.set()
                async with changed:
                    changed.notify_all()
            await asyncio.sleep(retry.after(failure))
    finally:
        taking.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await taking


async def watch_triggers(
    client: Client, request: WatchTriggersRequest, *, give_up_seconds: float = GIVE_UP_SECONDS
) -> AsyncIterator[WatchTriggersResponse]:
    """Yields the messages of WatchTriggers for ever; begins again behind the last one when the server is lost.

    Each message has its triggers, which may be none, and a `cursor`. Whoever stores the cursor together with the work
    that the triggers led to, and begins there next time (`WatchTriggersRequest(cursor=...)`), misses nothing and works
    off hardly anything twice. Raises CallError when that is refused, or when no server answers for `give_up_seconds`.
    """
    wanted = WatchTriggersRequest()
    wanted.CopyFrom(request)
    retry = Retry(give_up_seconds)
    while True:
        call = client.events.WatchTriggers(wanted)
        try:
            async for message in call:
                retry.got_on()
                wanted.cursor = message.cursor
                yield message
            failure: CallError = lost_stream()
        except CallError as error:
            failure = error
        finally:
            # Whoever has read enough leaves no stream open.
            call.cancel()
        await asyncio.sleep(retry.after(failure))


async def _each(
    batches: AsyncIterable[Sequence[NewEvent]] | Iterable[Sequence[NewEvent]],
) -> AsyncIterator[Sequence[NewEvent]]:
    if isinstance(batches, AsyncIterable):
        async for events in batches:
            yield events
    else:
        for events in batches:
            yield events
