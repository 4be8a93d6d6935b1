"""Reading a stream of triggers, and reading everything that it would tell by now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.events_service_pb2 import TRIGGER_START_OLDEST, WatchTriggersRequest, WatchTriggersResponse
from onefold.v1.profile_pb2 import Identifiers
from onefold.v1.projects_service_pb2 import UpdateProjectRequest
from onefold.v1.trigger_pb2 import Trigger
from support.client import Client, email
from support.merging import put

PATIENCE_SECONDS = 10.0
# The person whose event comes after everything that `told` is to read.
LAST = email("the.last@example.com")


async def enable(client: Client, *people: Identifiers, last: Identifiers = LAST) -> Client:
    """Switches a project's triggers on, and makes some people, and the one whose event ends a reading."""
    await client.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=True))
    for who in (*people, last):
        await put(client, who)
    return client


@dataclass
class Watch:
    """An open stream."""

    call: Any

    async def next(self) -> WatchTriggersResponse:
        """The next message. Fails with what the stream ended with."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            message = await self.call.read()
        assert isinstance(message, WatchTriggersResponse), "the stream ended without an error"
        return message

    async def take(self, count: int) -> list[Trigger]:
        """The next so many triggers."""
        found: list[Trigger] = []
        while len(found) < count:
            found += (await self.next()).triggers
        assert len(found) == count
        return found


@asynccontextmanager
async def watching(client: Client, **request: Any) -> AsyncIterator[Watch]:
    """A stream that has told where it begins; ended at the end of the block."""
    watch = Watch(client.events.WatchTriggers(WatchTriggersRequest(data_format=DATA_FORMAT_JSON, **request)))
    try:
        yield watch
    finally:
        watch.call.cancel()


async def told(client: Client, *, cursor: str = "", last: Identifiers = LAST) -> list[Trigger]:
    """Everything that a stream tells by now, from the oldest trigger or from a cursor on."""
    start: dict[str, Any] = {"cursor": cursor} if cursor else {"at": TRIGGER_START_OLDEST}
    end = await client.track(identifiers=last, name="last")
    found: list[Trigger] = []
    async with watching(client, **start) as watch:
        while not found or found[-1].event.event_id != end.event_id:
            found += (await watch.next()).triggers
    return [trigger for trigger in found if trigger.event.name != "last"]


async def told_names(client: Client, *, cursor: str = "") -> list[str]:
    """The names of the events among them, in order."""
    return [trigger.event.name for trigger in await told(client, cursor=cursor)]
