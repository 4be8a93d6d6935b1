"""The client that callers get with the base install."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
import pytest_asyncio

from onefold import client as onefold_client
from onefold.client import Client, SyncClient, connect, connect_sync, dump_data, load_data, pages, pages_sync
from onefold.client.connecting import made_repeatable
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.devices_service_pb2 import ListTokenHoldersRequest
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import (
    TRIGGER_START_OLDEST,
    BatchTrackRequest,
    ListEventsRequest,
    TrackRequest,
    TrackStreamRequest,
    WatchTriggersRequest,
)
from onefold.v1.identity_service_pb2 import GetProfileRequest, IdentifyRequest, UpdateProfileRequest
from onefold.v1.projects_service_pb2 import UpdateProjectRequest
from support.client import Client as Stubs
from support.client import email

A = email("a@example.com")


@pytest_asyncio.fixture
async def client(address: str, hybrid_project: Stubs) -> AsyncIterator[Client]:
    """A client of a fresh project."""
    async with connect(address, hybrid_project.key) as connected:
        yield connected


@pytest.fixture
def sync_client(address: str, hybrid_project: Stubs) -> Iterator[SyncClient]:
    """The same for threads."""
    with connect_sync(address, hybrid_project.key) as connected:
        yield connected


async def test_a_story(client: Client) -> None:
    """A3, E8: a visitor's events are tracked, found page by page, and their data comes back as it was told."""
    told = {"big": 2**60, "nested": {"list": [1, "x", None, True]}}
    for number in range(5):
        event = NewEvent(anonymous_id="x", name=f"n{number}", data_json=dump_data(told))
        await client.events.Track(TrackRequest(event=event))
    await client.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="x"))
    request = ListEventsRequest(identifiers=A, page_size=2, data_format=DATA_FORMAT_JSON)
    events = [event async for event in pages(client.events.ListEvents, request)]
    assert [event.name for event in events] == ["n4", "n3", "n2", "n1", "n0"]
    assert [load_data(event) for event in events] == [told] * 5
    assert request.page_token == ""


async def test_streams(client: Client) -> None:
    """E4, E10, X2: batches are streamed in, what they set off is streamed out, and a stream's end says why."""
    await client.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=True))
    await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))

    async def batches() -> AsyncIterator[TrackStreamRequest]:
        for sequence in (1, 2):
            yield TrackStreamRequest(
                sequence=sequence, events=[NewEvent(identifiers=A, name=f"n{sequence}", event_id=str(sequence))]
            )

    acknowledged = [answer.sequence async for answer in client.events.TrackStream(batches())]
    assert acknowledged == [1, 2]
    names: list[str] = []
    async for message in client.events.WatchTriggers(WatchTriggersRequest(at=TRIGGER_START_OLDEST)):
        names += [trigger.event.name for trigger in message.triggers]
        if len(names) == 2:
            break
    assert names == ["n1", "n2"]
    with pytest.raises(onefold_client.InvalidArgumentError) as caught:
        async for _ in client.events.WatchTriggers(WatchTriggersRequest(cursor="no cursor")):
            pass
    assert caught.value.reason == "CURSOR_INVALID"


async def test_the_same_for_threads(sync_client: SyncClient) -> None:
    """E8: a client without asyncio does the same."""

    def story() -> list[str]:
        for number in range(5):
            sync_client.events.Track(TrackRequest(event=NewEvent(anonymous_id="x", name=f"n{number}")))
        sync_client.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="x"))
        request = ListEventsRequest(identifiers=A, page_size=2)
        return [event.name for event in pages_sync(sync_client.events.ListEvents, request)]

    # The server runs in this process's loop, so threads call from beside it.
    assert await asyncio.to_thread(story) == ["n4", "n3", "n2", "n1", "n0"]


async def test_errors_say_what_is_wrong(client: Client, sync_client: SyncClient) -> None:
    """X2: a refused call raises an exception of its kind, with the reason and every wrong field."""
    with pytest.raises(onefold_client.InvalidArgumentError) as caught:
        await client.events.Track(TrackRequest(event=NewEvent(identifiers=email("no address"), data_json="[")))
    assert caught.value.reason == "FIELDS_INVALID"
    assert {violation.field for violation in caught.value.violations} == {
        "event.identifiers.email",
        "event.name",
        "event.data_json",
    }
    with pytest.raises(onefold_client.NotFoundError) as missing:
        await asyncio.to_thread(sync_client.identity.GetProfile, GetProfileRequest(identifiers=A))
    assert (missing.value.reason, missing.value.code()) == ("PROFILE_NOT_FOUND", grpc.StatusCode.NOT_FOUND)
    assert isinstance(missing.value, onefold_client.RefusedError)
    assert isinstance(missing.value, grpc.RpcError)


async def test_a_key_that_is_none(address: str) -> None:
    """X2: a wrong key is UNAUTHENTICATED, and nothing happened."""
    async with connect(address, "no-key") as stranger:
        with pytest.raises(onefold_client.UnauthenticatedError):
            await stranger.identity.GetProfile(GetProfileRequest(identifiers=A))


async def test_nobody_answers() -> None:
    """X2: where no server is, or none in time, the outcome is unknown."""
    # Bound but not listening: nobody else can be there, and nobody answers.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with connect(f"127.0.0.1:{taken.getsockname()[1]}", "key", call_seconds=1.0) as lonely:
            with pytest.raises(onefold_client.UnknownOutcomeError) as caught:
                await lonely.identity.GetProfile(GetProfileRequest(identifiers=A))
    assert caught.value.status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert caught.value.reason == ""


def test_every_write_can_be_sent_again() -> None:
    """X1: a write leaves with a request_id, events with ids of their own, and what the caller gave stays."""
    bare = IdentifyRequest(identifiers=A)
    assert made_repeatable(bare).request_id
    assert not bare.request_id
    assert made_repeatable(IdentifyRequest(request_id="mine")).request_id == "mine"
    tracked = made_repeatable(TrackRequest(event=NewEvent(name="n")))
    assert tracked.event.event_id
    assert not tracked.request_id
    batch = made_repeatable(BatchTrackRequest(events=[NewEvent(event_id="mine"), NewEvent(), NewEvent()]))
    ids = [event.event_id for event in batch.events]
    assert ids[0] == "mine"
    assert len(set(ids)) == 3
    read = GetProfileRequest(identifiers=A)
    assert made_repeatable(read) is read


async def test_an_empty_list(client: Client) -> None:
    """D6: a list without an item is an iterator that ends at once."""
    request = ListTokenHoldersRequest(token="nobody-holds-this")
    assert [holder async for holder in pages(client.devices.ListTokenHolders, request)] == []


def test_the_base_install_is_enough() -> None:
    """X2: importing the client imports nothing of the server, its database driver or its queue."""
    code = "import sys, onefold.client; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"asyncpg", "arq", "redis", "pydantic", "uvloop", "orjson", "structlog"} & set(eval(done.stdout))
