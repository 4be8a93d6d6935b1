"""Streams of the client that begin again: on another server, and not after a refusal that stays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from onefold.client import (
    Client,
    InvalidArgumentError,
    UnknownOutcomeError,
    connect,
    connect_sync,
    load_data,
    new_event,
    pages,
    send_events,
    send_events_sync,
    watch_triggers,
    watch_triggers_sync,
)
from onefold.config import Settings
from onefold.server import FILES, serve
from onefold.v1.activation_service_pb2 import ListCriteriaRequest
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TRIGGER_START_OLDEST, WatchTriggersRequest
from onefold.v1.identity_service_pb2 import UpdateProfileRequest
from onefold.v1.projects_service_pb2 import UpdateProjectRequest
from support.client import Client as Stubs
from support.client import email

A = email("a@example.com")
BATCHES = 12


class Servers:
    """A server on a port of its own that is ended and replaced by another one, again and again."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model_copy(update={"drain_seconds": 0.0})
        self._stop = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self.address = ""

    async def start(self) -> None:
        """Starts one, on the port of the one before."""
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        self._serving = asyncio.create_task(serve(self._settings, on_ready=ready.set_result, stop=self._stop))
        self.address = await ready
        self._settings = self._settings.model_copy(update={"port": int(self.address.rpartition(":")[2])})

    async def stop(self) -> None:
        """Ends it; streams are cut off."""
        assert self._serving is not None
        self._stop.set()
        await self._serving

    async def replace(self) -> None:
        """Both."""
        await self.stop()
        await self.start()


@pytest.fixture
async def servers(settings: Settings) -> AsyncIterator[Servers]:
    """A first one."""
    made = Servers(settings)
    await made.start()
    yield made
    await made.stop()


def batch(number: int) -> list[NewEvent]:
    return [new_event(f"n{number}", email="a@example.com")]


async def names(client: Stubs) -> list[str]:
    return sorted(await client.names(identifiers=A), key=lambda name: int(name[1:]))


async def test_sending_goes_on_on_another_server(servers: Servers, hybrid_project: Stubs) -> None:
    """E4, E3: batches that were not acknowledged when the server was lost are sent to the next one, and each event is
    stored once; the positions that are told rise by one."""
    acknowledged = []
    async with connect(servers.address, hybrid_project.key) as client:
        async for answer in send_events(client, (batch(number) for number in range(BATCHES)), first_sequence=5):
            acknowledged.append(answer.sequence)
            if len(acknowledged) in (2, 7):
                await servers.replace()
    # One that was committed, but whose answer was lost with its server, is answered when it is sent again.
    assert acknowledged == list(range(5, 5 + BATCHES))
    assert await names(hybrid_project) == [f"n{number}" for number in range(BATCHES)]


async def test_sending_from_threads(servers: Servers, hybrid_project: Stubs) -> None:
    """E4, E3: the same with a client for threads."""
    loop = asyncio.get_running_loop()

    def story() -> list[int]:
        acknowledged = []
        with connect_sync(servers.address, hybrid_project.key) as client:
            for answer in send_events_sync(client, (batch(number) for number in range(BATCHES))):
                acknowledged.append(answer.sequence)
                if len(acknowledged) == 3:
                    asyncio.run_coroutine_threadsafe(servers.replace(), loop).result()
        return acknowledged

    assert await asyncio.to_thread(story) == list(range(1, 1 + BATCHES))
    assert await names(hybrid_project) == [f"n{number}" for number in range(BATCHES)]


async def enabled(client: Client) -> None:
    await client.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=True))
    await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=A))


async def test_watching_goes_on_on_another_server(servers: Servers, hybrid_project: Stubs) -> None:
    """E10: a watch that loses its server goes on behind the last message with the next one: nothing missing, nothing
    twice; and one that begins at a cursor that was kept goes on there."""
    seen: list[str] = []
    cursor = ""
    async with connect(servers.address, hybrid_project.key) as client:
        await enabled(client)
        await hybrid_project.track(identifiers=A, name="n0")
        async for message in watch_triggers(client, WatchTriggersRequest(at=TRIGGER_START_OLDEST)):
            cursor = message.cursor
            seen += [trigger.event.name for trigger in message.triggers]
            if message.triggers and len(seen) == 3:
                break
            if message.triggers:
                await servers.replace()
                await hybrid_project.track(identifiers=A, name=f"n{len(seen)}")
        await hybrid_project.track(identifiers=A, name="n3")
        async for message in watch_triggers(client, WatchTriggersRequest(cursor=cursor)):
            seen += [trigger.event.name for trigger in message.triggers]
            if len(seen) == 4:
                break
    assert seen == ["n0", "n1", "n2", "n3"]


async def test_watching_from_threads(servers: Servers, hybrid_project: Stubs) -> None:
    """E10: the same with a client for threads."""
    async with connect(servers.address, hybrid_project.key) as client:
        await enabled(client)
    await hybrid_project.track(identifiers=A, name="n0")
    loop = asyncio.get_running_loop()

    async def next_one() -> None:
        await servers.replace()
        await hybrid_project.track(identifiers=A, name="n1")

    def story() -> list[str]:
        seen: list[str] = []
        with connect_sync(servers.address, hybrid_project.key) as client:
            for message in watch_triggers_sync(client, WatchTriggersRequest(at=TRIGGER_START_OLDEST)):
                seen += [trigger.event.name for trigger in message.triggers]
                if len(seen) == 2:
                    return seen
                if message.triggers:
                    asyncio.run_coroutine_threadsafe(next_one(), loop).result()
        return seen

    assert await asyncio.to_thread(story) == ["n0", "n1"]


async def test_what_does_not_pass_is_raised(servers: Servers, hybrid_project: Stubs) -> None:
    """X2: what sending again would not help is raised at once; a server that stays away, after the time that is given;
    and what the caller's own source raises comes out as it is, when what it gave before is stored."""

    class OwnError(Exception):
        pass

    def failing() -> Iterator[list[NewEvent]]:
        yield batch(0)
        raise OwnError

    async with connect(servers.address, hybrid_project.key) as client:
        with pytest.raises(InvalidArgumentError):
            async for _ in send_events(client, [[new_event("n")] * 1_001]):
                pass
        await enabled(client)
        with pytest.raises(InvalidArgumentError) as caught:
            async for _ in watch_triggers(client, WatchTriggersRequest(cursor="none")):
                pass
        assert caught.value.reason == "CURSOR_INVALID"
        with pytest.raises(OwnError):
            async for _ in send_events(client, failing()):
                pass
        assert await names(hybrid_project) == ["n0"]
        await servers.stop()
        with pytest.raises(UnknownOutcomeError):
            async for _ in send_events(client, [batch(1)], give_up_seconds=0.2):
                pass
        await servers.start()


async def test_sources_may_take_their_time(servers: Servers, hybrid_project: Stubs) -> None:
    """E4: an answer does not wait for the next batch of a source, neither with asyncio nor in threads."""
    more = asyncio.Event()

    async def slow() -> AsyncIterator[list[NewEvent]]:
        yield batch(0)
        await more.wait()

    async with connect(servers.address, hybrid_project.key) as client:
        async for answer in send_events(client, slow()):
            assert answer.sequence == 1
            more.set()

    go_on = threading.Event()

    def slow_too() -> Iterator[list[NewEvent]]:
        yield batch(1)
        go_on.wait()

    def story() -> list[int]:
        answered = []
        with connect_sync(servers.address, hybrid_project.key) as client:
            for answer in send_events_sync(client, slow_too()):
                answered.append(answer.sequence)
                go_on.set()
        return answered

    assert await asyncio.to_thread(story) == [1]


def lists() -> Iterator[Any]:
    """Every method of the services that lists something."""
    for file in FILES:
        for service in file.services_by_name.values():
            yield from (method for method in service.methods if method.name.startswith(("List", "Lookup")))


@pytest.mark.parametrize("method", list(lists()), ids=lambda method: str(method.name))
def test_every_list_can_be_paged(method: Any) -> None:
    """E8, E9, D6: an answer has one repeated field, which is its items, and both or neither have a page token."""
    repeated = [field for field in method.output_type.fields if field.is_repeated]
    assert [field.type for field in repeated] == [FieldDescriptor.TYPE_MESSAGE]
    asked = "page_token" in method.input_type.fields_by_name
    assert asked == ("next_page_token" in method.output_type.fields_by_name)


async def test_a_list_without_pages(servers: Servers, hybrid_project: Stubs) -> None:
    """U1: a list that comes at once is an iterator, too."""
    async with connect(servers.address, hybrid_project.key) as client:
        assert [each async for each in pages(client.activation.ListCriteria, ListCriteriaRequest())] == []


@pytest.mark.parametrize("data", [{}, {"a": None, "b": [1, {"c": 2**62}], "d": "é\n"}], ids=["empty", "nested"])
def test_an_event_as_python_has_it(data: dict[str, Any]) -> None:
    """E1: what a dict told comes back as it was, with the person and the time."""
    moment = datetime(2026, 1, 2, 3, 4, 5, 600, UTC)
    event = new_event("n", user_id="u", data=data, event_time=moment)
    assert load_data(event) == data
    assert (event.identifiers.user_id, event.event_time.ToDatetime(UTC)) == ("u", moment)
    assert not new_event("n", anonymous_id="x").HasField("identifiers")
    with pytest.raises(ValueError, match="time zone"):
        new_event("n", anonymous_id="x", event_time=moment.replace(tzinfo=None))
