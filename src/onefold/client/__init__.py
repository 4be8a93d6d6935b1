"""A client of onefold: typed stubs with a key, deadlines, retries that are safe, and errors worth catching.

    async with onefold.client.connect("127.0.0.1:50051", api_key="...") as onefold:
        await onefold.events.Track(TrackRequest(event=new_event("Viewed", anonymous_id="abc123", data={"page": 1})))
        async for event in pages(onefold.events.ListEvents, ListEventsRequest(anonymous_id="abc123")):
            ...

It needs the base install only: nothing of the server is imported.
"""

from onefold.client.connecting import Client, SyncClient, Tls, connect, connect_sync
from onefold.client.data import dump_data, load_data, new_event
from onefold.client.errors import (
    AlreadyExistsError,
    CallError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    RefusedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnknownOutcomeError,
    Violation,
)
from onefold.client.paging import pages, pages_sync
from onefold.client.streaming import send_events, watch_triggers
from onefold.client.streaming_sync import send_events_sync, watch_triggers_sync

__all__ = [
    "AlreadyExistsError",
    "CallError",
    "Client",
    "FailedPreconditionError",
    "InvalidArgumentError",
    "NotFoundError",
    "PermissionDeniedError",
    "RefusedError",
    "ResourceExhaustedError",
    "SyncClient",
    "Tls",
    "UnauthenticatedError",
    "UnknownOutcomeError",
    "Violation",
    "connect",
    "connect_sync",
    "dump_data",
    "load_data",
    "new_event",
    "pages",
    "pages_sync",
    "send_events",
    "send_events_sync",
    "watch_triggers",
    "watch_triggers_sync",
]
