"""Intents: who may work on them, what a lost worker leaves, and what happens to one that always fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from onefold.config import Settings
from onefold.db.queries import Connection
from onefold.intents import store as intents
from onefold.intents.rules import IntentKind
from onefold.intents.store import Lease, LeaseLostError
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import (
    DisableDeviceRequest,
    GetDisableRequest,
    ListTokenHoldersRequest,
    RegisterDeviceRequest,
)
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.identity_service_pb2 import ForgetProfileRequest, IdentifyRequest
from onefold.workflows import disabling, moving
from onefold.workflows.run import CHUNKS, Ran, run_intent
from support.client import Client, email, timestamp
from support.probes import eventually, held, rows_of
from support.world import World

A = email("a@example.com")
LEASE = timedelta(seconds=30)
ROWS = 7


@dataclass
class Job:
    """Work of one kind, left by a call: its intent, what reads must show throughout, and how far it is."""

    client: Client
    world: World
    kind: IntentKind
    intent_id: UUID
    name: str

    async def check_reads(self) -> None:
        """What the caller was promised holds, whatever the workers have done."""
        if self.kind is IntentKind.MOVE:
            names = await self.client.names(identifiers=A, page_size=3)
            assert names == [f"{self.name}{number}" for number in range(ROWS)]
            assert await self.client.names(anonymous_id=self.name) == []
        elif self.kind is IntentKind.ERASE_INVITES:
            assert await self.client.names(recipient=f"{self.name}@example.com") == []
        else:
            answer = await self.client.devices.ListTokenHolders(ListTokenHoldersRequest(token=self.name))
            assert [holder.device.endpoint_enabled for holder in answer.holders] == [False] * ROWS

    async def done(self) -> int:
        """How many rows the work has written."""
        sql = {
            IntentKind.MOVE: "SELECT count(*) FROM events WHERE project_id = $1 AND anonymous_id = $2",
            IntentKind.DISABLE: "SELECT count(*) FROM devices "
            "WHERE project_id = $1 AND token = $2 AND NOT endpoint_enabled",
            IntentKind.ERASE_INVITES: f"SELECT {ROWS} - count(*) FROM invite_events "
            "WHERE project_id = $1 AND name = $2",
        }
        count: int = await self.world.value(sql[self.kind], self.client.project_id, self.name)
        return count

    async def counted(self) -> int:
        """How many rows the ledger says were written."""
        if self.kind is IntentKind.MOVE:
            sql = "SELECT moved_event_count FROM merges WHERE project_id = $1 AND merge_id = $2"
            count: int = await self.world.value(sql, self.client.project_id, self.intent_id)
            return count
        if self.kind is IntentKind.ERASE_INVITES:
            # Nothing counts what was erased.
            return await self.done()
        answer = await self.client.devices.GetDisable(GetDisableRequest(disable_id=str(self.intent_id)))
        return int(answer.disable.disabled_count)

    async def take(self) -> Lease | None:
        """The lease, if it can be had now."""
        return await self.world.take(self.client.project_id, self.intent_id)

    async def run(self, **options: Any) -> Ran:
        """A worker's stretch of work."""
        return await run_intent(self.world.database, self.client.project_id, self.intent_id, **options)

    async def finish(self) -> None:
        """Works this intent off, to the end; every row must have been written and counted just once."""
        for _ in range(2):
            await self.run()
            await self.world.pass_time(self.client.project_id, timedelta(seconds=17))
        assert await self.row() is None
        assert (await self.done(), await self.counted()) == (ROWS, ROWS)
        await self.check_reads()

    async def row(self) -> Any:
        """The intent's row; None when it is gone."""
        sql = (
            "SELECT kind, attempt_count, lease_token, stuck_time, last_error, due_time - now() AS wait "
            "FROM intents WHERE project_id = $1 AND intent_id = $2"
        )
        rows = await self.world.fetch(sql, self.client.project_id, self.intent_id)
        return rows[0] if rows else None


async def associate(client: Client, world: World, name: str) -> Job:
    """An Identify whose visitor has events to be moved."""
    now = await world.now()
    await client.batch(
        NewEvent(anonymous_id=name, name=f"{name}{number}", event_time=timestamp(now - timedelta(hours=number)))
        for number in range(ROWS)
    )
    answer = await client.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id=name))
    return Job(client, world, IntentKind.MOVE, UUID(answer.link.merge_id), name)


async def disable(client: Client, world: World, name: str) -> Job:
    """A DisableDevice whose token has holders to be switched off."""
    for number in range(ROWS):
        await client.devices.RegisterDevice(
            RegisterDeviceRequest(
                identifiers=email(f"p{number}@example.com"),
                device=NewDevice(token=name, platform=PLATFORM_FCM, application_name="shop"),
            )
        )
    answer = await client.devices.DisableDevice(DisableDeviceRequest(token=name))
    return Job(client, world, IntentKind.DISABLE, UUID(answer.disable.disable_id), name)


async def forget_address(client: Client, world: World, name: str) -> Job:
    """A ForgetProfile of an address that got invites and that nobody has."""
    data = f'{{"recipient":"{name}@example.com"}}'
    await client.batch(NewEvent(name=name, event_id=f"{name}{number}", data_json=data) for number in range(ROWS))
    await client.identity.ForgetProfile(ForgetProfileRequest(identifiers=email(f"{name}@example.com")))
    sql = "SELECT intent_id FROM intents WHERE project_id = $1 ORDER BY create_time DESC LIMIT 1"
    return Job(client, world, IntentKind.ERASE_INVITES, await world.value(sql, client.project_id), name)


MAKERS: dict[IntentKind, Callable[..., Any]] = {
    IntentKind.MOVE: associate,
    IntentKind.DISABLE: disable,
    IntentKind.ERASE_INVITES: forget_address,
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two rows, so that seven of them take several."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    monkeypatch.setattr(disabling, "CHUNK_COPIES", 2)


@pytest.fixture(params=MAKERS)
async def job(request: pytest.FixtureRequest, email_project: Client, world: World) -> Job:
    """Work of each kind."""
    made: Job = await MAKERS[request.param](email_project, world, "x")
    return made


def test_every_kind_is_tried_here() -> None:
    """F4 to F6: a new kind of intent must be put through these tests, too."""
    # What the workers do for visitors moves no rows; test_activation.py and test_activation_races.py try it.
    assert set(MAKERS) == set(IntentKind) - {IntentKind.ACTIVATE, IntentKind.REVIEW}
    assert set(CHUNKS) == set(IntentKind)


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_two_workers_one_lease(job: Job) -> None:
    """F6: of several workers that take one intent at once one has the lease; the others find and write nothing."""
    leases = await asyncio.gather(*(job.take() for _ in range(6)))
    [lease] = [lease for lease in leases if lease is not None]
    before = await rows_of(job.world, job.client.project_id)
    assert await job.run() is Ran.NOTHING
    assert job.intent_id not in await job.world.due(job.client.project_id)
    assert await rows_of(job.world, job.client.project_id) == before
    assert await job.world.chunk(lease) is not None
    await job.world.database.transact(partial(intents.release, lease=lease))
    await job.finish()


async def test_two_workers_run_one_intent(job: Job) -> None:
    """F6, F7: two copies of a job that run at once move and count each row once."""
    ran = await asyncio.gather(job.run(), job.run(), job.run())
    assert sorted(ran, key=str) == [Ran.ENDED, Ran.NOTHING, Ran.NOTHING]
    await job.check_reads()
    await job.finish()


@pytest.mark.parametrize("chunks_before", [0, 1, 2])
async def test_a_frozen_worker_is_fenced(job: Job, chunks_before: int) -> None:
    """F5: a worker that wakes up past its lease, which another has now, writes nothing at all."""
    frozen = await job.take()
    assert frozen is not None
    position: Any = None
    for _ in range(chunks_before):
        position = await job.world.chunk(frozen, position)
    await job.world.pass_time(job.client.project_id, LEASE)
    other = await job.take()
    assert other is not None

    before = await rows_of(job.world, job.client.project_id)
    for _ in range(2):
        with pytest.raises(LeaseLostError):
            await job.world.chunk(frozen, position)
    await job.world.database.transact(partial(intents.release, lease=frozen))
    await job.world.database.transact(partial(intents.fail, lease=frozen, error="RuntimeError"))
    for too_late in (
        partial(intents.finish, lease=frozen),
        partial(intents.postpone, lease=frozen, due_time=await job.world.now()),
    ):
        with pytest.raises(LeaseLostError):
            await job.world.database.transact(too_late)
    assert await rows_of(job.world, job.client.project_id) == before

    # The one that has the lease goes on from the start and skips what is done.
    position = await job.world.chunk(other, None)
    with pytest.raises(LeaseLostError):
        await job.world.chunk(frozen, position)
    await job.check_reads()
    await job.world.database.transact(partial(intents.release, lease=other))
    await job.finish()


async def test_a_worker_that_is_late_but_not_replaced_goes_on(job: Job) -> None:
    """F5: past its lease, with nobody else at it, the worker may write; its chunk renews the lease."""
    lease = await job.take()
    assert lease is not None
    await job.world.pass_time(job.client.project_id, 2 * LEASE)
    assert await job.world.chunk(lease) is not None
    assert await job.take() is None
    await job.world.database.transact(partial(intents.release, lease=lease))
    await job.finish()


async def test_a_chunk_under_way_keeps_the_lease(job: Job) -> None:
    """F5, F6: while a chunk is being written nobody can take its intent, however long it takes, nor right after it."""
    lease = await job.take()
    assert lease is not None
    await job.world.pass_time(job.client.project_id, LEASE)
    written, may_commit = asyncio.Event(), asyncio.Event()

    async def slow_chunk(connection: Connection) -> None:
        await CHUNKS[job.kind](connection, lease=lease, position=None)
        written.set()
        await may_commit.wait()

    chunk = asyncio.create_task(job.world.database.transact(slow_chunk))
    await written.wait()
    assert await job.done() == 0
    await job.check_reads()
    taking = asyncio.create_task(job.take())

    async def waits() -> bool:
        return bool(
            await job.world.value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'UPDATE intents%'"
            )
        )

    await eventually(waits)
    may_commit.set()
    await chunk
    assert await taking is None
    assert await job.done() == 2
    await job.world.database.transact(partial(intents.release, lease=lease))
    await job.finish()


@pytest.mark.parametrize("chunks_before", [0, 1, 3])
async def test_a_killed_worker_holds_up_for_30_seconds(job: Job, chunks_before: int) -> None:
    """F4: a killed worker's last chunk is gone, its earlier ones stay, and from 30 s on another finishes the work."""
    killed = await job.take()
    assert killed is not None
    position: Any = None
    for _ in range(chunks_before):
        position = await job.world.chunk(killed, position)
    done_before = await job.done()
    assert done_before == 2 * chunks_before

    async def chunk_that_dies(connection: Connection) -> None:
        await CHUNKS[job.kind](connection, lease=killed, position=position)
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await job.world.database.transact(chunk_that_dies)
    assert (await job.done(), await job.counted()) == (done_before, done_before)
    await job.check_reads()

    await job.world.pass_time(job.client.project_id, LEASE - timedelta(seconds=5))
    assert await job.take() is None
    assert job.intent_id not in await job.world.due(job.client.project_id)
    await job.world.pass_time(job.client.project_id, timedelta(seconds=5))
    assert job.intent_id in await job.world.due(job.client.project_id)
    await job.finish()


async def test_a_stopped_worker_gives_the_lease_back(job: Job, settings: Settings) -> None:
    """F19: a worker asked to stop in mid-chunk rolls it back; the next one may start at once, with no attempt lost."""
    blocker = {
        IntentKind.MOVE: "LOCK TABLE events IN SHARE MODE",
        IntentKind.DISABLE: "SELECT FROM devices ORDER BY profile_id FOR UPDATE",
        IntentKind.ERASE_INVITES: "LOCK TABLE invite_events IN SHARE MODE",
    }
    async with held(settings.database_url, (blocker[job.kind], ())):
        running = asyncio.create_task(job.run())

        async def waits() -> bool:
            return bool(
                await job.world.value(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND application_name = 'onefold worker'"
                )
            )

        await eventually(waits)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    row = await job.row()
    assert (row["lease_token"], row["attempt_count"]) == (None, 0)
    assert await job.done() == 0
    assert await job.run() is Ran.ENDED
    await job.finish()


async def test_long_work_is_done_in_stretches(job: Job) -> None:
    """F4: work that is paused after every stretch lets others in between, and comes to its end with each row once."""
    if job.kind is IntentKind.DISABLE:
        # Its stretches start from the first holder: one that is shorter than the walk over all would never end.
        assert await job.run(stretch_seconds=0) is Ran.PAUSED
    else:
        while await job.run(stretch_seconds=0) is Ran.PAUSED:
            assert job.intent_id in await job.world.due(job.client.project_id)
            await job.check_reads()
    await job.finish()


async def test_work_that_is_done_is_done(job: Job) -> None:
    """F10: a bell for work that is done, or not due yet, writes nothing."""
    await job.run()
    before = await rows_of(job.world, job.client.project_id)
    assert await job.run() is Ran.NOTHING
    assert await rows_of(job.world, job.client.project_id) == before
    await job.finish()
    before = await rows_of(job.world, job.client.project_id)
    assert await job.run() is Ran.NOTHING
    unknown = await run_intent(job.world.database, job.client.project_id, uuid4())
    elsewhere = await run_intent(job.world.database, "another-project", job.intent_id)
    assert unknown is elsewhere is Ran.NOTHING
    assert await rows_of(job.world, job.client.project_id) == before


async def test_a_foreign_snapshot_holds_nothing_up(job: Job, settings: Settings) -> None:
    """F24: work goes on to its end while some other session keeps an old snapshot of everything."""
    async with held(
        settings.database_url,
        ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", ()),
        ("SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM devices), (SELECT count(*) FROM intents)", ()),
    ):
        await job.finish()


# --- failures ---------------------------------------------------------------------------------------------------------


def always_fails(monkeypatch: pytest.MonkeyPatch, job: Job, *, from_chunk: int = 0) -> None:
    """Makes the chunks of one intent fail, from the chunk of a number on in every attempt."""
    right = CHUNKS[job.kind]

    async def chunk(connection: Connection, lease: Lease, position: Any) -> Any:
        number = 0 if position is None else 1
        result = await right(connection, lease=lease, position=position)
        if lease.intent.intent_id == job.intent_id and number >= from_chunk:
            raise RuntimeError("the text of a row that nobody may see")
        return result

    monkeypatch.setitem(CHUNKS, job.kind, chunk)


async def test_an_intent_that_always_fails(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """F26: tried again after 1, 2, 4, ... s up to 10 min, and after the 12th try left to an operator with its reason.

    Nothing that a failing chunk wrote stays, reads are right throughout, and another intent of the kind is done.
    """
    always_fails(monkeypatch, job)
    other = await MAKERS[job.kind](job.client, job.world, "other") if job.kind is IntentKind.DISABLE else None
    waits = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]
    for attempt, seconds in enumerate(waits, start=1):
        assert await job.run() is Ran.FAILED
        row = await job.row()
        assert (row["attempt_count"], row["stuck_time"], row["last_error"]) == (attempt, None, "RuntimeError")
        # The wait is told by the database's clock, which has gone on a little since.
        assert timedelta(0) < timedelta(seconds=seconds) - row["wait"] < timedelta(seconds=1)
        assert await job.run() is Ran.NOTHING
        assert job.intent_id not in await job.world.due(job.client.project_id)
        assert (await job.done(), await job.counted()) == (0, 0)
        await job.check_reads()
        await job.world.pass_time(job.client.project_id, timedelta(seconds=seconds))
        assert job.intent_id in await job.world.due(job.client.project_id)
    assert await job.run() is Ran.FAILED
    row = await job.row()
    assert (row["attempt_count"], row["last_error"]) == (12, "RuntimeError")
    assert row["stuck_time"] is not None

    await job.world.pass_time(job.client.project_id, timedelta(days=1))
    assert job.intent_id not in await job.world.due(job.client.project_id)
    assert await job.take() is None
    if other is not None:
        await other.finish()
        await job.check_reads()


async def test_an_intent_that_always_fails_after_its_first_chunk(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """F26: a try that gets over its first chunk and fails at the next counts as one of the 12, unless it moved rows.

    An association moves some rows for good with every try, an erasure erases some, and so both come to their end; a
    disable starts from its first holder again and gets nowhere, so it must be given up.
    """
    always_fails(monkeypatch, job, from_chunk=1)
    row = await job.row()
    # One more than 12, for the try that did switch its first holders off.
    for _ in range(13):
        await job.run()
        await job.check_reads()
        row = await job.row()
        if row is None or row["stuck_time"] is not None:
            break
        await job.world.pass_time(job.client.project_id, timedelta(minutes=11))
    if job.kind is not IntentKind.DISABLE:
        assert row is None
    else:
        assert row["stuck_time"] is not None


async def test_a_failure_that_passes(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """F26: when the fault is gone the next attempt does the work, and the attempts are counted anew."""
    with monkeypatch.context() as broken:
        always_fails(broken, job)
        for _ in range(5):
            assert await job.run() is Ran.FAILED
            await job.world.pass_time(job.client.project_id, timedelta(minutes=1))
    lease = await job.take()
    assert lease is not None
    assert await job.world.chunk(lease) is not None
    await job.world.database.transact(partial(intents.release, lease=lease))
    assert (await job.row())["attempt_count"] <= 1
    await job.finish()


async def test_a_killing_intent_is_given_up(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """F26: an attempt counts from when the lease is taken, so work that kills its workers is not tried for ever."""
    for _ in range(11):
        assert await job.take() is not None
        await job.world.pass_time(job.client.project_id, LEASE)
    always_fails(monkeypatch, job)
    assert await job.run() is Ran.FAILED
    assert (await job.row())["stuck_time"] is not None


async def test_an_unknown_kind_is_left_alone(job: Job) -> None:
    """F27: what a newer version left is neither taken nor touched, and holds up nothing else."""
    unknown = uuid4()
    await job.world.fetch(
        """
        INSERT INTO intents (project_id, intent_id, kind, due_time)
        VALUES ($1, $2, 'OF_TOMORROW', now() - '1 day'::interval)
        """,
        job.client.project_id,
        unknown,
    )
    sql = "SELECT intents::text FROM intents WHERE intent_id = $1"
    before = await job.world.value(sql, unknown)
    assert await job.world.due(job.client.project_id) == [job.intent_id]
    assert await job.world.take(job.client.project_id, unknown) is None
    assert await run_intent(job.world.database, job.client.project_id, unknown) is Ran.NOTHING
    assert await job.run() is Ran.ENDED
    assert await job.world.value(sql, unknown) == before
    await job.world.fetch("DELETE FROM intents WHERE intent_id = $1", unknown)


async def test_the_longest_due_comes_first(email_project: Client, world: World) -> None:
    """F26: a flood of new work cannot hold back the old."""
    ids = [(await associate(email_project, world, name)).intent_id for name in ("x", "y", "z")]
    assert await world.due(email_project.project_id) == ids
    found = await world.database.read(partial(intents.due, count=1))
    assert len(found) == 1
