"""Long work, and what happens in the midst of it: readers turn pages, the source is forgotten, a worker is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from onefold.config import Settings
from onefold.embedded import EmbeddedValkey
from onefold.errors import OnefoldError
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import ListEventsRequest
from onefold.v1.identity_service_pb2 import ForgetProfileRequest, ForgetProfileResponse, UpdateProfileRequest
from onefold.v1.profile_pb2 import Identifiers
from onefold.workflows import moving
from support.client import Client, email, failure
from support.holding import held, until_waiting
from support.merging import chunks, get_merge, identify, merge, put
from support.relocation import stages
from support.traces import keys_with, rows_of, tables_with
from support.world import World

B = email("b@example.com")
# The promise is about 1,000,000: the end-to-end test moves 200,000, and here the worker is stepped between the pages.
SOURCE_EVENTS, TARGET_EVENTS = 18_000, 2_000


@pytest.fixture
def canary() -> str:
    """A word that stands nowhere else in the database."""
    return f"canary{uuid4().hex}"


async def store_events(world: World, project_id: str, profile_id: str, count: int) -> None:
    """Puts a person's events in place as the service stores them: over three days, several of a moment."""
    await world.fetch(
        """
        INSERT INTO events (project_id, profile_id, event_time, event_id, receive_time, kind, name, data)
        SELECT
            $1, $2::uuid, date_trunc('second', now()) - (number / 4) * ('3 days'::interval / ($3::integer / 4)),
            $2::uuid::text || number, now(), 1, 'Viewed', '{"page": "/shoes"}'
        FROM generate_series(0, $3::integer - 1) AS number
        """,
        project_id,
        UUID(profile_id),
        count,
    )


async def turning_pages(client: Client) -> AsyncIterator[list[str]]:
    """The ids of the target's events, a page at a time."""
    token = ""
    while True:
        page = await client.events.ListEvents(
            ListEventsRequest(identifiers=B, page_size=500, data_format=DATA_FORMAT_JSON, page_token=token)
        )
        yield [event.event_id for event in page.events]
        token = page.next_page_token
        if not token:
            return


async def test_readers_turn_pages_while_a_large_merge_is_worked_off(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F40 E8 I16: each page sequence over 20,000 events, begun at any stage of a merge, yields each once, in order."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 1_000)
    c = email_project
    source, target = await put(c, email("a@example.com")), await put(c, B)
    await store_events(world, c.project_id, source, SOURCE_EVENTS)
    await store_events(world, c.project_id, target, TARGET_EVENTS)
    in_order = "SELECT event_id FROM events WHERE project_id = $1 ORDER BY event_time DESC, event_id DESC"
    expected = [row["event_id"] for row in await world.fetch(in_order, c.project_id)]
    answer = await merge(c, email("a@example.com"), B)
    readers: list[tuple[AsyncIterator[list[str]], list[str]]] = []
    async for stage in stages(world, c.project_id):
        if stage % 6 == 0:
            readers.append((turning_pages(c), []))
        for pages, seen in readers:
            seen += await anext(pages, [])
    for pages, seen in readers:
        async for page in pages:
            seen += page
        assert seen == expected
    assert len(readers) > 3
    assert (await get_merge(c, answer.merge.merge_id)).event_count == SOURCE_EVENTS
    assert await world.value("SELECT count(*) FROM events WHERE profile_id = $1", UUID(source)) == 0


async def forget(client: Client, who: Identifiers) -> ForgetProfileResponse:
    """Forgets a person."""
    return await client.identity.ForgetProfile(ForgetProfileRequest(identifiers=who))


@pytest.mark.parametrize("chunks_before", range(6))
@pytest.mark.parametrize("is_freed", [False, True], ids=["its name leads on", "its name is free"])
async def test_a_source_forgotten_in_mid_merge(
    email_project: Client,
    world: World,
    valkey: EmbeddedValkey,
    monkeypatch: pytest.MonkeyPatch,
    canary: str,
    is_freed: bool,
    chunks_before: int,
) -> None:
    """F41 F43 I17: by a name that leads to the target both are gone, to the last byte; by one that is free again only
    the name is blocked, and the target keeps all that the source brought, however far the worker is."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 1)
    c, a = email_project, email(f"{canary}@example.com")
    await put(c, a)
    await put(c, B, f'{{"canary": "{canary}"}}')
    for who, count in ((a, 4), (B, 2)):
        await c.batch(NewEvent(identifiers=who, name=canary, event_id=f"{canary}{who.email}{n}") for n in range(count))
    await merge(c, a, B)
    work = chunks(world, c.project_id)
    for _ in range(chunks_before):
        await anext(work, None)
    if is_freed:
        await world.pass_time(c.project_id, timedelta(minutes=5, seconds=1))
    assert (await forget(c, a)).profile_existed is not is_freed

    async def check() -> None:
        refused = await failure(c.identity.UpdateProfile(UpdateProfileRequest(identifiers=a)))
        assert refused.reason == "FORGOTTEN"
        if is_freed:
            assert await c.names(identifiers=B) == [canary] * 6
        else:
            assert (await failure(c.names(identifiers=B))).reason == "PROFILE_NOT_FOUND"

    await check()
    async for _ in work:
        # The worker that was at it goes on under its lease.
        await check()
    await world.pass_time(c.project_id, timedelta(seconds=40))
    await world.settle(c.project_id)
    await check()
    assert await world.open_intents(c.project_id) == 0
    if not is_freed:
        assert await tables_with(world, canary) == set()
        assert await keys_with(valkey.url, canary) == []


@pytest.mark.parametrize("container", ["events", "anonymous_events"])
@pytest.mark.parametrize("chunks_before", [0, 1, 2])
async def test_a_worker_killed_in_mid_erasure(
    email_project: Client,
    world: World,
    settings: Settings,
    valkey: EmbeddedValkey,
    monkeypatch: pytest.MonkeyPatch,
    canary: str,
    chunks_before: int,
    container: str,
) -> None:
    """F4 F43: its last chunk is rolled back whole and no read returns a thing; from 30 s on another worker goes on, and
    not a byte remains."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    c, a = email_project, email(f"{canary}@example.com")
    who = {"identifiers": a} if container == "events" else {"anonymous_id": canary}
    await c.track(anonymous_id=canary, name=canary)
    await put(c, a)
    await c.batch(NewEvent(**who, name=canary, event_id=f"{canary}{n}") for n in range(7))
    await identify(c, a, canary)
    await forget(c, a)
    erasure = await world.value(
        "SELECT move_id FROM moves WHERE project_id = $1 AND (container_profile_id IS NOT NULL) = $2",
        c.project_id,
        container == "events",
    )
    lease = await world.take(c.project_id, erasure)
    assert lease is not None
    position = None
    for _ in range(chunks_before):
        position = await world.chunk(lease, position)
    before = await rows_of(world, c.project_id)
    assert len(before[container]) == 7 + (container == "anonymous_events") - 2 * chunks_before

    async with held(settings, f"SELECT FROM {container} WHERE project_id = $1 FOR UPDATE", c.project_id):
        chunk = asyncio.create_task(world.chunk(lease, position))
        await until_waiting(world, 1)
        # What PostgreSQL sees of a worker that is killed: its session ends, wherever it was.
        await world.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND application_name LIKE 'onefold %'"
        )
        with pytest.raises(OnefoldError):
            await chunk
    assert await rows_of(world, c.project_id) == before
    assert (await failure(c.names(identifiers=a))).reason == "PROFILE_NOT_FOUND"
    assert await c.names(anonymous_id=canary) == []

    assert await world.take(c.project_id, lease.intent.intent_id) is None
    await world.pass_time(c.project_id, timedelta(seconds=31))
    assert lease.intent.intent_id in await world.due(c.project_id)
    await world.settle(c.project_id)
    assert await world.open_intents(c.project_id) == 0
    assert await tables_with(world, canary) == set()
    assert await keys_with(valkey.url, canary) == []
