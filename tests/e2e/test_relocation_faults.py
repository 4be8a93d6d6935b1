"""A large relocation by real processes, with readers paging through it, a killed worker and an emptied Valkey."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from uuid import UUID

import grpc
import pytest
from arq.connections import create_pool

from onefold.db.migrate import migrate
from onefold.identity.links import subject_id
from onefold.intents.doorbell import redis_settings
from onefold.projects.bootstrap import ensure_project
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.events_service_pb2 import ListEventsRequest
from onefold.v1.identity_service_pb2 import LINK_OUTCOME_LINKED, IdentifyRequest
from support.client import Client, email
from support.keeper import kept
from support.probes import eventually, world_of
from support.processes import running
from support.world import World

# The promise is about 1,000,000; a run with so many takes minutes, so every run has a fifth of them.
EVENTS = int(os.environ.get("ONEFOLD_TEST_RELOCATION_EVENTS", "200000"))
PATIENCE_SECONDS = 60 + EVENTS / 2_000
PROJECT, VISITOR = "shop", "visitor"
PERSON = email("a@example.com")


async def store_events(world: World) -> None:
    """Puts the visitor's events in place as the service stores them: over three days, several of a moment."""
    step = 50_000
    for first in range(0, EVENTS, step):
        await world.fetch(
            """
            INSERT INTO anonymous_events (
                project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, data
            )
            SELECT
                $1, $2, date_trunc('second', now()) - (number / 4) * ('3 days'::interval / ($5::integer / 4)),
                'e' || number, now(), 1, 'Viewed', $6, '{"page": "/shoes"}'
            FROM generate_series($3::integer, $4::integer - 1) AS number
            """,
            PROJECT,
            subject_id(PROJECT, VISITOR),
            first,
            min(first + step, EVENTS),
            EVENTS,
            VISITOR,
        )
    # As autovacuum does within a minute.
    await world.fetch("ANALYZE anonymous_events")


async def read_all(client: Client) -> None:
    """One sequence of pages from the newest event to the oldest: each event once, in order, and every page OK."""
    seen: set[str] = set()
    count = 0
    last: tuple[int, int, str] | None = None
    token = ""
    while True:
        page = await client.events.ListEvents(
            ListEventsRequest(identifiers=PERSON, page_size=500, data_format=DATA_FORMAT_JSON, page_token=token),
            timeout=10.0,
        )
        for event in page.events:
            key = (event.event_time.seconds, event.event_time.nanos, event.event_id)
            assert last is None or key < last
            assert event.was_anonymous
            last = key
            seen.add(event.event_id)
        count += len(page.events)
        token = page.next_page_token
        if not token:
            break
    assert count == len(seen) == EVENTS


async def moved(world: World, merge_id: UUID) -> int:
    count: int = await world.value("SELECT moved_event_count FROM merges WHERE merge_id = $1", merge_id)
    return count


@pytest.mark.timeout(PATIENCE_SECONDS * 2)
async def test_readers_page_through_a_relocation_whose_worker_is_killed(folder: Path) -> None:
    """F4, F7, F40, X4, A3: each sequence of pages, whenever it begins, yields each event of the visitor exactly once.

    Meanwhile the worker that moves them is killed, Valkey is emptied, and another worker goes on. No call fails, no row
    is moved twice or left behind, and the work comes to its end.
    """
    home = folder / "relocation"
    with kept("postgres", home) as postgres, kept("valkey", home) as valkey:
        await migrate(postgres.url)
        key = await ensure_project(postgres.url, project_id=PROJECT, identifier_type="EMAIL", api_key=None)
        on_servers = {"ONEFOLD_DATABASE_URL": postgres.url, "ONEFOLD_REDIS_URL": valkey.url}
        async with world_of(postgres.url) as world:
            await store_events(world)
            with running("serve", "--port", "0", **on_servers) as server, running("work", **on_servers) as worker:
                async with grpc.aio.insecure_channel(server.address) as channel:
                    client = Client(channel, PROJECT, key)
                    answer = await client.identity.Identify(IdentifyRequest(identifiers=PERSON, anonymous_id=VISITOR))
                    assert answer.link.outcome == LINK_OUTCOME_LINKED
                    merge_id = UUID(answer.link.merge_id)

                    async with asyncio.TaskGroup() as readers:
                        readers.create_task(read_all(client))

                        async def some_chunks() -> bool:
                            return await moved(world, merge_id) >= EVENTS // 20

                        await eventually(some_chunks)
                        worker.kill()
                        at_kill = await moved(world, merge_id)
                        assert 0 < at_kill < EVENTS
                        readers.create_task(read_all(client))

                        redis = await create_pool(redis_settings(valkey.url))
                        await redis.flushall()
                        await redis.aclose()
                        # The killed worker's lease ends 30 s after its last chunk. These 30 s pass now.
                        await world.fetch("UPDATE intents SET lease_end_time = lease_end_time - '30 s'::interval")
                        with running("work", **on_servers):
                            readers.create_task(read_all(client))
                            await eventually(lambda: settled(world, merge_id), PATIENCE_SECONDS)

                    assert await client.names(anonymous_id=VISITOR) == []
                assert "Traceback" not in server.said()
            assert await moved(world, merge_id) == EVENTS
            assert await world.value("SELECT count(*) FROM intents") == 0
            assert await world.value("SELECT count(*) FROM anonymous_events") == 0
            assert await world.value("SELECT count(DISTINCT event_id) FROM events") == EVENTS


async def settled(world: World, merge_id: UUID) -> bool:
    """Whether all is moved and reads no longer look through to the visitor's rows.

    A link stays open for stragglers until 16 s after it was first worked on. When nothing else is left to do, these
    seconds pass now.
    """
    resting = await world.value("SELECT lease_token IS NULL AND due_time > now() FROM intents")
    if resting and await moved(world, merge_id) == EVENTS:
        await world.fetch("UPDATE moves SET first_pass_time = first_pass_time - '17 s'::interval")
        await world.fetch("UPDATE intents SET due_time = due_time - '17 s'::interval")
    return bool(await world.value("SELECT settle_time IS NOT NULL FROM merges WHERE merge_id = $1", merge_id))
