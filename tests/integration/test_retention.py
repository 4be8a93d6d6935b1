"""What goes by itself: day partitions, answers by request_id, event ids. On a database of its own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import date, timedelta
from uuid import UUID

import asyncpg
import grpc
import pytest
import pytest_asyncio

from onefold.config import Settings
from onefold.db.migrate import migrate
from onefold.db.partitions import partition_name, partitions, wanted_days
from onefold.db.queries import Connection
from onefold.embedded import EmbeddedPostgres
from onefold.projects.bootstrap import ensure_project
from onefold.server import serve
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import IdentifyRequest
from onefold.workflows import retention
from onefold.workflows.retention import keep_partitions, purge
from support.client import Client, email, failure, timestamp
from support.merging import devices, get_merge, merge, profile, put, register, undo
from support.probes import held, world_of
from support.relocation import stages
from support.world import World

DAY = timedelta(days=1)
A = email("a@example.com")
DEFAULT = "anonymous_events_default"


@dataclass
class Place:
    """A database that only these tests use, with a server on it: whatever lies in it is theirs."""

    url: str
    world: World
    make_client: Callable[[], Awaitable[Client]]

    async def partitions(self) -> list[str]:
        """The names of the partitions there are."""
        return await self.world.database.read(partitions)

    async def run(self, *statements: str) -> None:
        """Runs statements that no API has."""

        async def work(connection: Connection) -> None:
            for statement in statements:
                await connection.execute(statement)

        await self.world.database.transact(work)

    async def make_partition(self, day: date) -> str:
        """Makes the partition of a day."""
        name = partition_name(day)
        await self.run(
            f"CREATE TABLE {name} PARTITION OF anonymous_events "
            f"FOR VALUES FROM ('{day} 00:00Z') TO ('{day + DAY} 00:00Z')"
        )
        return name

    async def table_of(self, client: Client, name: str) -> list[str]:
        """The tables in which a project's anonymous events of a name lie."""
        rows = await self.world.fetch(
            "SELECT tableoid::regclass::text FROM anonymous_events WHERE project_id = $1 AND name = $2",
            client.project_id,
            name,
        )
        return [row[0] for row in rows]


_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module")
async def place(postgres: EmbeddedPostgres, settings: Settings) -> AsyncIterator[Place]:
    """The database, migrated, and a real server on it."""
    connection = await asyncpg.connect(postgres.url())
    await connection.execute("CREATE DATABASE retention")
    await connection.close()
    url = postgres.url("retention")
    await migrate(url)
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    own = settings.model_copy(update={"database_url": url})
    serving = asyncio.create_task(serve(own, on_ready=ready.set_result, stop=stop))
    async with grpc.aio.insecure_channel(await ready) as channel, world_of(url) as world:

        async def make_client() -> Client:
            project_id = f"retention-{next(_numbers)}"
            key = await ensure_project(url, project_id=project_id, identifier_type="EMAIL", api_key=None)
            return Client(channel, project_id, key)

        yield Place(url, world, make_client)
    stop.set()
    await serving


@pytest_asyncio.fixture
async def clean(place: Place) -> AsyncIterator[Place]:
    """The place with no rows of earlier tests and with exactly the partitions that a new database has."""
    wanted = {partition_name(day) for day in wanted_days(await place.world.now())} | {DEFAULT}
    made = [name for name in await place.partitions() if name not in wanted]
    tables = ["profiles", "identifiers", "events", "event_ids", "merges", "intents", "requests", "anonymous_events"]
    tables += ["devices", "moves", "token_disables"]
    await place.run(f"TRUNCATE {', '.join(tables)}", *(f"DROP TABLE {name}" for name in made))
    await keep_partitions(place.world.database)
    yield place


# --- partitions ------------------------------------------------------------------------------------------------------


async def test_a_new_database_has_its_partitions(place: Place) -> None:
    """A2: after migrating, every day that an event may be told for has its partition, a week ahead too."""
    wanted = {partition_name(day) for day in wanted_days(await place.world.now())}
    assert set(await place.partitions()) == wanted | {DEFAULT}
    assert len(wanted) > 37


async def test_partitions_are_made_ahead_and_once(clean: Place) -> None:
    """A2: what is missing is made, what is there is left, and nothing that is still wanted is dropped."""
    before = await clean.partitions()
    now = await clean.world.now()
    ahead, today = partition_name((now + 3 * DAY).date()), partition_name(now.date())
    await clean.run(f"DROP TABLE {ahead}")
    client = await clean.make_client()
    await client.track(anonymous_id="x", name="Viewed")
    assert await keep_partitions(clean.world.database) == []
    assert await keep_partitions(clean.world.database) == []
    assert await clean.partitions() == before
    assert await clean.table_of(client, "Viewed") == [today]


async def test_events_lie_in_the_partition_of_their_day(clean: Place) -> None:
    """A2: the day of event_time decides, from just under 30 days ago to 24 hours ahead."""
    client = await clean.make_client()
    now = await clean.world.now()
    for offset in (-timedelta(days=29, hours=23), -15 * DAY, timedelta(hours=23)):
        await client.track(anonymous_id="x", name=f"{offset}", event_time=timestamp(now + offset))
        assert await clean.table_of(client, f"{offset}") == [partition_name((now + offset).date())]


async def test_a_day_without_a_partition(clean: Place) -> None:
    """A2, A3: its events are taken all the same, read, and associated, beside those of other days."""
    client = await clean.make_client()
    now = await clean.world.now()
    missing = now - 3 * DAY
    await clean.run(f"DROP TABLE {partition_name(missing.date())}")
    for name, moment in (("older", now - 5 * DAY), ("unplaced", missing), ("newer", now)):
        await client.track(anonymous_id="x", name=name, event_time=timestamp(moment))
    assert await clean.table_of(client, "unplaced") == [DEFAULT]
    # The missing partition is made, and takes over the rows of its day from the default one.
    assert await keep_partitions(clean.world.database) == []
    assert partition_name(missing.date()) in await clean.partitions()
    assert await clean.table_of(client, "unplaced") == [partition_name(missing.date())]
    assert await client.names(anonymous_id="x") == ["newer", "unplaced", "older"]
    await client.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="x"))
    async for _ in stages(clean.world, client.project_id):
        assert await client.names(identifiers=A) == ["newer", "unplaced", "older"]


async def test_reads_are_sharp_and_the_drop_follows(clean: Place) -> None:
    """A2, F34: hidden at 30 days while the partition is still there; the drop takes the day whole and nothing else."""
    client = await clean.make_client()
    now = await clean.world.now()
    over_day = (now - 35 * DAY).date()
    name = await clean.make_partition(over_day)
    await client.track(anonymous_id="x", name="old", event_time=timestamp(now - 25 * DAY))
    await client.track(anonymous_id="x", name="new")
    await clean.world.pass_time(client.project_id, 10 * DAY)
    assert await clean.table_of(client, "old") == [name]
    assert await client.names(anonymous_id="x") == ["new"]
    assert await clean.table_of(client, "old") == [name]
    assert await keep_partitions(clean.world.database) == [name]
    assert name not in await clean.partitions()
    assert await clean.table_of(client, "old") == []
    assert await client.names(anonymous_id="x") == ["new"]


@pytest.mark.parametrize(("age", "dropped"), [(30 * DAY, False), (32 * DAY, True), (400 * DAY, True)], ids=str)
async def test_when_a_day_is_dropped(clean: Place, age: timedelta, dropped: bool) -> None:
    """A2: a day is dropped only when the youngest event that it may hold is over, and soon after."""
    now = await clean.world.now()
    day = (now - age).date()
    if partition_name(day) not in await clean.partitions():
        await clean.make_partition(day)
    assert await keep_partitions(clean.world.database) == ([partition_name(day)] if dropped else [])


async def test_an_open_merge_keeps_what_it_needs(clean: Place) -> None:
    """A3, F44: a day that an unfinished association still needs is kept and read, and dropped once it has settled."""
    client = await clean.make_client()
    now = await clean.world.now()
    name = await clean.make_partition((now - 49 * DAY).date())
    unneeded = await clean.make_partition((now - 60 * DAY).date())
    await client.track(anonymous_id="x", name="old", event_time=timestamp(now - 29 * DAY))
    await client.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="x"))
    await clean.world.pass_time(client.project_id, 20 * DAY)
    assert await clean.table_of(client, "old") == [name]
    async for _ in stages(clean.world, client.project_id):
        assert await client.names(identifiers=A) == ["old"]
        if await clean.world.open_intents(client.project_id):
            # A day that was over before the link is not kept for it.
            assert await keep_partitions(clean.world.database) in ([], [unneeded])
            assert name in await clean.partitions()
    assert unneeded not in await clean.partitions()
    assert await keep_partitions(clean.world.database) == [name]
    assert await client.names(identifiers=A) == ["old"]


async def test_what_is_over_in_the_default_partition_goes_too(clean: Place) -> None:
    """A2: an event that had to lie in the default partition is physically gone soon after its 30 days as well."""
    client = await clean.make_client()
    now = await clean.world.now()
    await clean.run(f"DROP TABLE {partition_name((now - 29 * DAY).date())}")
    await client.track(anonymous_id="x", name="unplaced", event_time=timestamp(now - 29 * DAY))
    assert await clean.table_of(client, "unplaced") == [DEFAULT]
    await clean.world.pass_time(client.project_id, 3 * DAY)
    assert await client.names(anonymous_id="x") == []
    for _ in range(2):
        await keep_partitions(clean.world.database)
        await purge(clean.world.database)
    assert await clean.table_of(client, "unplaced") == []


async def test_a_reader_in_the_way_only_delays_the_drop(clean: Place) -> None:
    """A2, F25: behind a long reader the drop gives up quickly, others read meanwhile, and the next run drops."""
    client = await clean.make_client()
    now = await clean.world.now()
    day = (now - 40 * DAY).date()
    name = await clean.make_partition(day)
    await client.track(anonymous_id="x", name="new")
    async with held(clean.url, (f"SELECT count(*) FROM {name}", ())):
        assert await keep_partitions(clean.world.database) == []
        assert name in await clean.partitions()
        assert await client.names(anonymous_id="x") == ["new"]
    assert await keep_partitions(clean.world.database) == [name]


# --- answers and event ids -------------------------------------------------------------------------------------------


async def remembered(place: Place, client: Client, table: str, key: str) -> list[str]:
    """What a project has in a table, by key."""
    rows = await place.world.fetch(f"SELECT {key} FROM {table} WHERE project_id = $1 ORDER BY 1", client.project_id)
    return [row[0] for row in rows]


@pytest.mark.parametrize(
    ("table", "key", "lifetime"),
    [("requests", "request_id", timedelta(hours=24)), ("event_ids", "event_id", timedelta(days=35))],
)
async def test_purge_removes_what_is_over_and_nothing_else(
    clean: Place, table: str, key: str, lifetime: timedelta
) -> None:
    """X1, E3: answers go after 24 hours and event ids after 35 days, not a minute earlier, and events never."""
    client = await clean.make_client()

    async def tell(name: str) -> None:
        event = NewEvent(anonymous_id="x", name=name, event_id=name)
        await client.events.Track(TrackRequest(event=event, request_id=name))

    await tell("old")
    await clean.world.pass_time(client.project_id, timedelta(minutes=2))
    await tell("young")
    await clean.world.pass_time(client.project_id, lifetime - timedelta(minutes=1))
    removed = await purge(clean.world.database)
    assert await remembered(clean, client, table, key) == ["young"]
    assert removed >= 1
    assert await purge(clean.world.database) == 0
    # The events themselves have 30 days.
    kept = 2 if lifetime < timedelta(days=30) else 0
    assert len(await remembered(clean, client, "anonymous_events", "event_id")) == kept


async def test_what_is_over_does_not_wait_for_the_purge(clean: Place) -> None:
    """X1, E3: at 24 hours and 35 days an id is free at once, with its row still there; the new use is then kept."""
    client = await clean.make_client()
    first = TrackRequest(event=NewEvent(anonymous_id="x", name="first", event_id="e1"), request_id="r1")
    second = TrackRequest(event=NewEvent(anonymous_id="x", name="second", event_id="e2"), request_id="r1")
    await client.events.Track(first)
    await clean.world.pass_time(client.project_id, timedelta(hours=24) - timedelta(minutes=1))
    assert (await client.events.Track(first)).replayed
    refused = await failure(client.events.Track(second))
    assert refused.reason == "REQUEST_ID_REUSED"
    await clean.world.pass_time(client.project_id, timedelta(minutes=1))
    answer = await client.events.Track(second)
    assert not answer.replayed
    assert await purge(clean.world.database) == 0
    assert (await client.events.Track(second)).replayed


async def test_purge_works_in_small_steps(clean: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """X1: however many rows are over, each transaction removes a few, and one run removes all."""
    monkeypatch.setattr(retention, "_PURGE_ROWS", 3)
    client = await clean.make_client()
    await client.batch([NewEvent(anonymous_id="x", name="Viewed", event_id=f"e{n}") for n in range(10)])
    await clean.world.pass_time(client.project_id, timedelta(days=35))
    # Ten ids, and the ten events, which have no partition of their own any more.
    assert await purge(clean.world.database) == 20
    assert await remembered(clean, client, "event_ids", "event_id") == []


async def test_what_an_undo_needs_goes_with_its_30_days(clean: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """I19, D5: until a merge's last minute the source and its devices come back; after that what was kept for it goes,
    in small steps, while the target keeps what it was given and a source that came back keeps what is its own."""
    monkeypatch.setattr(retention, "_PURGE_ROWS", 2)
    client = await clean.make_client()
    undone, merged, target = (email(f"{name}@example.com") for name in ("undone", "merged", "target"))
    for who in (undone, merged, target):
        await put(client, who)
    for token in ("t1", "t2", "t3"):
        await register(client, merged, token)
    await register(client, undone, "own")
    source_id = (await profile(client, merged)).profile_id
    kept, taken_back = [(await merge(client, who, target)).merge.merge_id for who in (merged, undone)]
    await clean.world.settle(client.project_id)

    async def left() -> tuple[int, int]:
        """How many of the source's devices are kept, and how many merges."""
        count = "SELECT count(*) FROM devices WHERE project_id = $1 AND profile_id = $2"
        snapshots = "SELECT count(*) FROM merges WHERE project_id = $1 AND snapshot IS NOT NULL"
        return (
            await clean.world.value(count, client.project_id, UUID(source_id)),
            await clean.world.value(snapshots, client.project_id),
        )

    await clean.world.pass_time(client.project_id, 30 * DAY - timedelta(minutes=1))
    await purge(clean.world.database)
    assert await left() == (3, 2)
    await undo(client, taken_back)
    await clean.world.settle(client.project_id)
    assert await devices(client, undone) == {"own": True}
    await clean.world.pass_time(client.project_id, timedelta(minutes=3))
    assert (await failure(undo(client, kept))).reason == "MERGE_NOT_UNDOABLE"
    await purge(clean.world.database)
    assert await left() == (0, 0)
    assert await devices(client, undone) == {"own": True}
    assert await devices(client, target) == {"t1": True, "t2": True, "t3": True}
    assert (await get_merge(client, kept)).source_profile_id == source_id


async def test_an_old_merge_that_was_undone_takes_nothing_from_a_young_one(clean: Place) -> None:
    """I19, D5: who was merged, came back, and was merged again has its devices back from the second merge, too, though
    the first one's 30 days are over in between."""
    client = await clean.make_client()
    source, first, second = (email(f"{name}@example.com") for name in ("source", "first", "second"))
    for who in (source, first, second):
        await put(client, who)
    await register(client, source, "own")
    await undo(client, (await merge(client, source, first)).merge.merge_id)
    await clean.world.settle(client.project_id)
    await clean.world.pass_time(client.project_id, 30 * DAY - timedelta(minutes=5))
    young = (await merge(client, source, second)).merge.merge_id
    await clean.world.settle(client.project_id)
    await clean.world.pass_time(client.project_id, timedelta(minutes=10))
    await purge(clean.world.database)
    await undo(client, young)
    assert await devices(client, source) == {"own": True}
    assert await devices(client, second) == {}


async def test_purge_spares_what_is_used_anew_meanwhile(clean: Place) -> None:
    """E3: an id whose time is over and that a call takes over just then is kept with its new time."""
    client = await clean.make_client()
    await client.track(anonymous_id="x", name="first", event_id="e1")
    await clean.world.pass_time(client.project_id, timedelta(days=35))
    again = await client.track(anonymous_id="x", name="second", event_id="e1")
    assert not again.duplicate
    # The first event is over; its id is not.
    assert await purge(clean.world.database) == 1
    assert await remembered(clean, client, "event_ids", "event_id") == ["e1"]
