"""WatchTriggers as a stream: its order, its cursors, its bounds, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
import pytest

from conftest import MakeProject
from onefold.callers import IdentifierType, Project, ProjectSettings, Region
from onefold.config import Settings
from onefold.db.pool import SERVER_SETTINGS
from onefold.events.ingest import ingest
from onefold.events.rules import Arrival, EventKind
from onefold.identity.naming import Named
from onefold.rpc.payload import EMPTY
from onefold.triggers import service, store
from onefold.triggers.horizon import Horizon
from onefold.triggers.rules import advance, make_cursor
from onefold.v1.event_pb2 import EVENT_KIND_PAGE, EVENT_KIND_SCREEN, NewEvent
from onefold.v1.events_service_pb2 import TRIGGER_START_NOW, TRIGGER_START_OLDEST, WatchTriggersRequest
from onefold.v1.projects_service_pb2 import UpdateProjectRequest
from onefold.workflows.retention import purge
from support.client import Client, Failure, email, failure, read_failure
from support.serving import served
from support.watching import enable, told, told_names, watching
from support.world import World

A = email("a@example.com")
DAYS = timedelta(days=1)


async def fails(client: Client, **request: Any) -> Failure:
    """How a stream that must not begin fails."""
    async with watching(client, **request) as watch:
        return await failure(watch.next())


async def track(client: Client, *names: str) -> None:
    """Events of A, one call each."""
    for name in names:
        await client.track(identifiers=A, name=name)


class Writer:
    """A call's transaction that a test holds open."""

    def __init__(self, connection: asyncpg.Connection[Any], project: Project) -> None:
        self._connection = connection
        self._project = project
        self.transaction = connection.transaction()

    async def write(self, *names: str) -> None:
        """Takes events of A in."""
        arrivals = [
            Arrival(Named("a@example.com", None), None, name, EventKind.CUSTOM, EMPTY, None, None) for name in names
        ]
        await ingest(self._connection, self._project, arrivals)


@asynccontextmanager
async def writer(settings: Settings, world: World, client: Client) -> AsyncIterator[Writer]:
    """A transaction that has begun."""
    now = await world.now()
    project = Project(
        client.project_id,
        IdentifierType.EMAIL,
        Region.US,
        ProjectSettings(triggers_enabled=True),
        now,
        now,
        forget_key=b"key",
    )
    connection = await asyncpg.connect(settings.database_url, server_settings=SERVER_SETTINGS)
    try:
        held = Writer(connection, project)
        await held.transaction.start()
        yield held
    finally:
        await connection.close()


# --- order, and no gaps ----------------------------------------------------------------------------------------------


async def test_one_that_commits_late_is_not_skipped(settings: Settings, email_project: Client, world: World) -> None:
    """E10: while a transaction that took an earlier number is open, what committed after it waits; then both are told,
    in the order that every reader sees. One that is rolled back leaves no gap that anybody waits for."""
    await enable(email_project, A)
    async with (
        watching(email_project) as watch,
        writer(settings, world, email_project) as late,
        writer(settings, world, email_project) as never,
    ):
        await watch.next()
        await late.write("late 1")
        await never.write("never")
        await track(email_project, "early")
        await late.write("late 2")

        # A reader that looks as often as it likes finds nothing decided beyond the late one's first number.
        fence = None
        numbers = await world.fetch(
            "SELECT trigger_number FROM triggers WHERE project_id = $1", email_project.project_id
        )
        for _ in range(5):
            newest, writers = await world.database.read(
                lambda connection: store.look(connection, [email_project.project_id])
            )
            fence = advance(fence, newest[email_project.project_id], writers)
            assert fence.decided is None
        assert [newest[email_project.project_id]] == [row["trigger_number"] for row in numbers]

        await never.transaction.rollback()
        await late.transaction.commit()
        assert [trigger.event.name for trigger in await watch.take(3)] == ["late 1", "early", "late 2"]
    assert await told_names(email_project) == ["late 1", "early", "late 2"]


async def test_interleaved_transactions_reach_every_reader_whole(
    settings: Settings, email_project: Client, world: World
) -> None:
    """E10: readers that watch while six transactions overlap in every order see each event once and the same order."""
    await enable(email_project, A)
    async with (
        watching(email_project) as one,
        watching(email_project) as other,
        writer(settings, world, email_project) as a,
        writer(settings, world, email_project) as b,
        writer(settings, world, email_project) as c,
    ):
        await one.next()
        await other.next()
        await a.write("a1")
        await b.write("b1")
        await c.write("c1")
        await c.transaction.commit()
        await track(email_project, "d")
        await a.write("a2")
        await b.transaction.commit()
        await track(email_project, "e")
        await a.transaction.commit()
        names = [trigger.event.name for trigger in await one.take(6)]
        assert sorted(names) == ["a1", "a2", "b1", "c1", "d", "e"]
        # Whoever was acknowledged before the other began comes first.
        assert names.index("c1") < names.index("d") < names.index("e")
        assert [trigger.event.name for trigger in await other.take(6)] == names
    assert await told_names(email_project) == names


async def test_nobody_elses_transaction_holds_a_stream_up(settings: Settings, email_project: Client) -> None:
    """F24: a session that holds a snapshot and one that has written to other tables delay nothing."""
    await enable(email_project, A)
    snapshot, foreign = [await asyncpg.connect(settings.database_url) for _ in range(2)]
    try:
        await snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await snapshot.fetch("SELECT count(*) FROM triggers")
        await foreign.execute("BEGIN")
        await foreign.execute("CREATE TABLE foreign_work (n integer)")
        async with watching(email_project) as watch:
            await watch.next()
            await track(email_project, "told")
            assert [trigger.event.name for trigger in await watch.take(1)] == ["told"]
    finally:
        await snapshot.close()
        await foreign.close()


# --- cursors ---------------------------------------------------------------------------------------------------------


async def test_a_stream_goes_on_from_each_cursor_on_any_server(settings: Settings, email_project: Client) -> None:
    """E10, F18: a server that is stopped ends its streams with UNAVAILABLE; from every cursor that it gave another one
    goes on right behind, with nothing missed and nothing told again."""
    await enable(email_project, A)
    names = [f"e{number}" for number in range(5)]
    cursors: list[str] = []
    stop = asyncio.Event()
    async with served(settings, stop) as channel:
        there = Client(channel, email_project.project_id, email_project.key)
        async with watching(there) as watch:
            cursors.append((await watch.next()).cursor)
            for name in names:
                await track(email_project, name)
                message = await watch.next()
                assert [trigger.event.name for trigger in message.triggers] == [name]
                cursors.append(message.cursor)
            stop.set()
            ended = await failure(watch.next())
            assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
    await track(email_project, "after")
    for position, cursor in enumerate(cursors):
        assert await told_names(email_project, cursor=cursor) == [*names[position:], "after"]


async def test_now_begins_behind_what_was_told_before(email_project: Client) -> None:
    """E10: from now on comes what is committed after the first message; the other end is the oldest that is kept."""
    await enable(email_project, A)
    await track(email_project, "before")
    await told(email_project)
    for start in ({}, {"at": TRIGGER_START_NOW}):
        async with watching(email_project, **start) as watch:
            first = await watch.next()
            assert not first.triggers
            await track(email_project, "after")
            names = [trigger.event.name for trigger in (await watch.next()).triggers]
            assert "before" not in names
            assert names[-1] == "after"
    async with watching(email_project, at=TRIGGER_START_OLDEST) as watch:
        assert [trigger.event.name for trigger in (await watch.take(4))] == ["before", "last", "after", "after"]


@pytest.mark.parametrize("cursor", ["!", "AAAA", "a" * 5_000, "\u00ff"])
async def test_a_cursor_that_is_none_is_refused(email_project: Client, cursor: str) -> None:
    """E10, X2: INVALID_ARGUMENT / CURSOR_INVALID."""
    await enable(email_project)
    refused = await fails(email_project, cursor=cursor)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "CURSOR_INVALID")


async def test_a_cursor_of_another_project_is_refused(make_project: MakeProject) -> None:
    """F73: another project's cursor is refused with the same words as garbage."""
    one, other = await enable(await make_project(), A), await enable(await make_project())
    await track(one, "secret")
    async with watching(one) as watch:
        cursor = (await watch.next()).cursor
    assert await fails(other, cursor=cursor) == await fails(other, cursor="garbage")


async def test_a_cursor_from_the_future_is_refused(email_project: Client, world: World) -> None:
    """E10: one beyond every number handed out is of a database that this one was restored in place of; going on there
    would skip what comes next."""
    await enable(email_project, A)
    ahead = await world.value("SELECT last_value + 1 FROM trigger_numbers")
    refused = await fails(email_project, cursor=make_cursor(email_project.project_id, ahead))
    assert refused.reason == "CURSOR_INVALID"


async def test_triggers_are_kept_for_7_days(email_project: Client, world: World) -> None:
    """E10: until then each is told; after, they are removed, a cursor that has missed one is refused as expired, and
    the oldest is the first that is left."""
    await enable(email_project, A)
    async with watching(email_project) as watch:
        cursors = [(await watch.next()).cursor]
        for name in ("old", "older than 7 days", "younger"):
            await track(email_project, name)
            cursors.append((await watch.next()).cursor)
            if name != "younger":
                await world.pass_time(email_project.project_id, timedelta(hours=1))
    await world.pass_time(email_project.project_id, 7 * DAYS - timedelta(hours=2, minutes=1))
    await purge(world.database)
    assert await told_names(email_project, cursor=cursors[0]) == ["old", "older than 7 days", "younger"]

    await world.pass_time(email_project.project_id, timedelta(hours=1, minutes=30))
    await purge(world.database)
    for cursor in cursors[:2]:
        expired = await fails(email_project, cursor=cursor)
        assert (expired.code, expired.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CURSOR_EXPIRED")
    assert await told_names(email_project, cursor=cursors[2]) == ["younger"]
    assert await told_names(email_project) == ["younger"]

    await world.pass_time(email_project.project_id, 30 * DAYS)
    await purge(world.database)
    assert await told_names(email_project) == []


async def test_a_quiet_project_expires_no_cursor(email_project: Client, world: World) -> None:
    """E10: a cursor is good for ever as long as nothing behind it was removed."""
    await enable(email_project, A)
    async with watching(email_project) as watch:
        await watch.next()
        await track(email_project, "old")
        cursor = (await watch.next()).cursor
    await world.pass_time(email_project.project_id, 60 * DAYS)
    await purge(world.database)
    assert await told_names(email_project, cursor=cursor) == []


# --- filters, idling, bounds -----------------------------------------------------------------------------------------


async def test_only_what_was_asked_for_is_told(email_project: Client) -> None:
    """E10: names and kinds filter, together or apart."""
    await enable(email_project, A)
    for name in ("a", "b"):
        for kind in (EVENT_KIND_PAGE, EVENT_KIND_SCREEN):
            await email_project.track(identifiers=A, name=name, kind=kind)
    await track(email_project, "end")

    async def names(**wanted: Any) -> list[tuple[str, int]]:
        async with watching(email_project, at=TRIGGER_START_OLDEST, **wanted) as watch:
            found: list[tuple[str, int]] = []
            while not found or found[-1][0] != "end":
                found += [(trigger.event.name, trigger.event.kind) for trigger in (await watch.next()).triggers]
            return found[:-1]

    assert await names(names=["a", "end"]) == [("a", EVENT_KIND_PAGE), ("a", EVENT_KIND_SCREEN)]
    assert await names(kinds=[EVENT_KIND_SCREEN, 1]) == [("a", EVENT_KIND_SCREEN), ("b", EVENT_KIND_SCREEN)]
    assert await names(names=["b", "end"], kinds=[EVENT_KIND_PAGE, 1]) == [("b", EVENT_KIND_PAGE)]


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"names": ["a"] * 101}, "names"),
        ({"names": ["a", ""]}, "names[1]"),
        ({"names": ["a\n"]}, "names[0]"),
        ({"kinds": [0]}, "kinds[0]"),
        ({"kinds": [1, 99]}, "kinds[1]"),
        ({"at": 3}, "at"),
        ({"data_format": 9}, "data_format"),
    ],
)
async def test_a_wrong_field_is_named(email_project: Client, wanted: dict[str, Any], field: str) -> None:
    """X2: a stream is refused before it begins, with the field that is wrong."""
    await enable(email_project)
    call = email_project.events.WatchTriggers(WatchTriggersRequest(**wanted))
    try:
        await call.read()
    except grpc.aio.AioRpcError as error:
        refused = read_failure(error)
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_an_idle_stream_tells_its_cursor(email_project: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """E10: also where the filter lets nothing through, a message comes now and then, and its cursor is beyond all that
    was passed over."""
    monkeypatch.setattr(service, "TRIGGER_IDLE_SECONDS", 0.5)
    await enable(email_project, A)
    async with watching(email_project, names=["nothing"], at=TRIGGER_START_OLDEST) as watch:
        cursor = (await watch.next()).cursor
        await track(email_project, "passed over")
        for _ in range(10):
            message = await watch.next()
            assert not message.triggers
            if message.cursor != cursor:
                break
    assert message.cursor != cursor
    assert await told_names(email_project, cursor=message.cursor) == []
    assert await told_names(email_project, cursor=cursor) == ["passed over"]


async def test_triggers_that_are_off_cannot_be_watched(email_project: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """E10: FAILED_PRECONDITION / TRIGGERS_DISABLED at the start, and in a running stream once it is idle."""
    monkeypatch.setattr(service, "TRIGGER_IDLE_SECONDS", 0.2)
    for start in ({}, {"at": TRIGGER_START_OLDEST}, {"cursor": make_cursor(email_project.project_id, 0)}):
        refused = await fails(email_project, **start)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TRIGGERS_DISABLED")
    await enable(email_project)
    async with watching(email_project) as watch:
        await watch.next()
        await email_project.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=False))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            while True:
                await watch.next()
        assert read_failure(error.value).reason == "TRIGGERS_DISABLED"


async def test_a_reader_that_stands_still_holds_nothing_up(
    settings: Settings, email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F22: for a caller that reads nothing only what fits into the pipe is read of 15 MB of triggers; meanwhile no
    transaction is open and other streams go on; then it is ended as stalled."""
    await enable(email_project, A)
    text = '{"x":"' + "x" * 30_000 + '"}'
    for _ in range(5):
        await email_project.batch(NewEvent(identifiers=A, name="e", data_json=text) for _ in range(100))
    pages: list[int] = []
    ended = asyncio.Event()
    read, watched = store.next_triggers, Horizon.watched

    async def counted(*arguments: Any) -> list[store.TriggerRow]:
        rows = await read(*arguments)
        pages.append(len(rows))
        return rows

    @asynccontextmanager
    async def noted(self: Horizon, project_id: str) -> AsyncIterator[None]:
        try:
            async with watched(self, project_id):
                yield
        finally:
            ended.set()

    impatient = settings.model_copy(update={"stream_write_seconds": 1.0})
    async with served(impatient) as channel:
        monkeypatch.setattr(store, "next_triggers", counted)
        monkeypatch.setattr(Horizon, "watched", noted)
        there = Client(channel, email_project.project_id, email_project.key)
        async with watching(there, at=TRIGGER_START_OLDEST) as watch:
            async with asyncio.timeout(20):
                await ended.wait()
            assert 1 <= sum(pages) < 400
            with pytest.raises(grpc.aio.AioRpcError) as error:
                while True:
                    await watch.next()
            assert read_failure(error.value).reason == "STREAM_STALLED"
    open_transactions = await world.value(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'onefold server' AND xact_start IS NOT NULL"
    )
    assert open_transactions == 0
    assert len(await told_names(email_project)) == 500
