"""The same streams for threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
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
    from onefold.client.connecting import SyncClient


def send_events_sync(
    client: SyncClient,
    batches: Iterable[Sequence[NewEvent]],
    *,
    first_sequence: int = 1,
    give_up_seconds: float = GIVE_UP_SECONDS,
) -> Iterator[TrackStreamResponse]:
    """The same as `send_events`, with a client of `connect_sync`. The batches are taken in a thread of gRPC's."""
    window = Window(first_sequence)
    source = iter(batches)
    changed = threading.Condition()
    # Apart from the other: a source may take its time, and answers are not to wait for it.
    taking = threading.Lock()
    faults: list[Exception] = []

    def take(sent: int, over: threading.Event) -> None:
        # A thread that a lost stream has left behind may be waiting in here; what it takes, the next one sends.
        with taking:
            if over.is_set() or window.ended or window.after(sent) is not None:
                return
            events: Sequence[NewEvent] | None = None
            try:
                events = next(source, None)
            except Exception as fault:
                faults.append(fault)
            with changed:
                if events is None:
                    window.ended = True
                else:
                    window.add(events)
                changed.notify_all()

    def requests(over: threading.Event) -> Iterator[TrackStreamRequest]:
        sent = 0
        while not over.is_set():
            with changed:
                while not (over.is_set() or window.after(sent)) and window.is_full:
                    changed.wait()
                batch = window.after(sent)
            if batch is not None:
                sent = batch.sequence
                yield batch
            elif window.ended:
                return
            else:
                take(sent, over)

    retry = Retry(give_up_seconds)
    while True:
        over = threading.Event()
        call = client.events.TrackStream(requests(over))
        try:
            for answer in call:
                with changed:
                    window.acknowledge(answer)
                    changed.notify_all()
                retry.got_on()
                yield answer
            failure: CallError = lost_stream()
        except CallError as error:
            failure = error
        finally:
            call.cancel()
            over.set()
            with changed:
                changed.notify_all()
        if faults:
            raise faults[0]
        if window.is_done:
            return
        time.sleep(retry.after(failure))


def watch_triggers_sync(
    client: SyncClient, request: WatchTriggersRequest, *, give_up_seconds: float = GIVE_UP_SECONDS
) -> Iterator[WatchTriggersResponse]:
    """The same as `watch_triggers`, with a client of `connect_sync`."""
    wanted = WatchTriggersRequest()
    wanted.CopyFrom(request)
    retry = Retry(give_up_seconds)
    while True:
        call = client.events.WatchTriggers(wanted)
        try:
            for message in call:
                retry.got_on()
                wanted.cursor = message.cursor
                yield message
            failure: CallError = lost_stream()
        except CallError as error:
            failure = error
        finally:
            # Whoever has read enough leaves no stream open.
            call.cancel()
        time.sleep(retry.after(failure))
