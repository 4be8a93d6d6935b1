"""A worker that makes a visitor's profile, and everybody who comes in between. The order is pinned by locks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from conftest import MakeProject
from onefold.callers import IdentifierType, Project, ProjectSettings, Region
from onefold.config import Settings
from onefold.db.pool import SERVER_SETTINGS, Database
from onefold.db.queries import Connection
from onefold.events.ingest import ingest
from onefold.events.rules import Arrival, EventKind
from onefold.intents.store import Lease
from onefold.rpc.payload import EMPTY
from onefold.v1.activation_service_pb2 import DeleteCriterionRequest
from onefold.v1.identity_service_pb2 import LINK_OUTCOME_ALREADY_LINKED, LINK_OUTCOME_LINKED
from onefold.workflows.activating import activate_chunk
from onefold.workflows.run import Ran, run_intent
from support.client import Client, email
from support.holding import held, until_waiting
from support.merging import identify
from support.visitors import consent, switch, unknown_profiles, view, watched
from support.world import World

ADA = email("ada@example.com")


@asynccontextmanager
async def in_flight(world: World, client: Client) -> AsyncIterator[None]:
    """A worker's chunk that has made what it makes, and is committed at the end of the block."""
    [intent_id] = await world.due(client.project_id)
    lease = await world.take(client.project_id, intent_id)
    assert lease is not None
    done, go_on = asyncio.Event(), asyncio.Event()

    async def chunk(connection: Connection) -> None:
        await activate_chunk(connection, lease, None)
        done.set()
        await go_on.wait()

    running = asyncio.create_task(world.database.transact(chunk))
    await done.wait()
    try:
        yield
    finally:
        go_on.set()
        await running
    await finish(world, lease)


async def finish(world: World, lease: Lease) -> None:
    """The rest of a worker's work on an intent."""
    while await world.chunk(lease) is not None:
        pass


async def history(client: Client) -> list[str]:
    """The names of Ada's events."""
    return sorted(await client.names(identifiers=ADA))


@pytest.mark.parametrize("there", [True, False])
async def test_identified_while_the_profile_is_made(email_project: Client, world: World, there: bool) -> None:
    """U2, U5, F30: an Identify that meets an activation waits for it and takes its profile over."""
    await watched(email_project, world)
    if there:
        await identify(email_project, ADA, "elsewhere")
        await world.settle(email_project.project_id)
    await view(email_project, "x", 2)
    async with in_flight(world, email_project):
        signing_in = asyncio.create_task(identify(email_project, ADA, "x"))
        await until_waiting(world, 1)
    assert (await signing_in).outcome == LINK_OUTCOME_LINKED
    assert await unknown_profiles(world, email_project) == []
    assert await history(email_project) == ["Viewed", "Viewed", "unknownSession"]
    people = await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", email_project.project_id)
    assert people == 1
    await world.settle(email_project.project_id)
    assert await history(email_project) == ["Viewed", "Viewed", "unknownSession"]


async def test_identified_just_before_the_profile_is_made(
    email_project: Client, settings: Settings, world: World
) -> None:
    """U2, F30: a worker that is about to make the profile of somebody who has just signed in makes nobody."""
    await watched(email_project, world)
    await view(email_project, "x", 2)
    # The worker has found the visitor to match, and stands before the criterion.
    async with held(settings, "SELECT FROM criteria WHERE project_id = $1 FOR UPDATE", email_project.project_id):
        working = asyncio.create_task(world.work_off(email_project.project_id))
        await until_waiting(world, 1)
        assert (await identify(email_project, ADA, "x")).outcome == LINK_OUTCOME_LINKED
    assert set(await working) == {Ran.ENDED}
    assert await unknown_profiles(world, email_project) == []
    assert (await identify(email_project, ADA, "x")).outcome == LINK_OUTCOME_ALREADY_LINKED
    assert await history(email_project) == ["Viewed", "Viewed"]
    assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", email_project.project_id) == 1


@pytest.mark.parametrize("workers", [2, 4])
async def test_many_workers_make_one_profile_each(
    email_project: Client, settings: Settings, world: World, workers: int
) -> None:
    """U2: however many workers look at the same visitors at once, each anonymous_id gets one profile and one event."""
    await watched(email_project, world)
    for _ in range(workers):
        # Each round leaves notes, and an intent of its own because the earlier ones seem to be ending.
        hold = "SELECT FROM intents WHERE project_id = $1 FOR UPDATE"
        async with held(settings, hold, email_project.project_id):
            for visitor in ("x", "y", "z"):
                await view(email_project, visitor)
    due = await world.due(email_project.project_id)
    assert len(due) >= workers
    for _ in range(3):
        ran = await asyncio.gather(
            *(run_intent(world.database, email_project.project_id, intent_id) for intent_id in due)
        )
        assert Ran.FAILED not in ran
    assert len(await unknown_profiles(world, email_project)) == 3
    sessions = await world.value(
        "SELECT count(*) FROM events WHERE project_id = $1 AND name = 'unknownSession'", email_project.project_id
    )
    assert sessions == 3


async def test_an_event_never_waits_for_a_worker(email_project: Client, world: World) -> None:
    """U2: while a worker's chunk is under way events are taken as ever, and what they note is looked at afterwards."""
    await watched(email_project, world)
    await view(email_project, "x", 2)
    async with in_flight(world, email_project):
        await view(email_project, "y", 2)
    assert len(await unknown_profiles(world, email_project)) == 2
    assert (
        await world.value(
            "SELECT count(*) FROM intents WHERE project_id = $1 AND kind = 'ACTIVATE'", email_project.project_id
        )
        == 0
    )


async def test_an_event_that_comes_while_the_intent_ends(
    email_project: Client, settings: Settings, world: World
) -> None:
    """U2: an event that arrives while the worker ends its intent neither waits for it nor is left without one."""
    await watched(email_project, world)
    await view(email_project, "x")
    [intent_id] = await world.due(email_project.project_id)
    lease = await world.take(email_project.project_id, intent_id)
    assert lease is not None
    assert await world.chunk(lease)
    done, go_on = asyncio.Event(), asyncio.Event()

    async def ending(connection: Connection) -> None:
        assert await activate_chunk(connection, lease, None) is None
        done.set()
        await go_on.wait()

    running = asyncio.create_task(world.database.transact(ending))
    await done.wait()
    await view(email_project, "x")
    go_on.set()
    await running
    [another] = await world.due(email_project.project_id)
    assert another != intent_id, "the note relied on an intent that is gone"
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


async def test_a_straggler_keeps_the_intent(email_project: Client, settings: Settings, world: World) -> None:
    """U2, X4: an event whose transaction began before the worker looked and ends after is looked at all the same."""
    await watched(email_project, world)
    await view(email_project, "x")
    server = await Database.connect(settings.database_url, settings=SERVER_SETTINGS, connections=2)
    now = await world.now()
    project = Project(
        email_project.project_id,
        IdentifierType.EMAIL,
        Region.US,
        ProjectSettings(server_side_activation=True),
        now,
        now,
    )
    stored, go_on = asyncio.Event(), asyncio.Event()

    async def straggle(connection: Connection) -> None:
        await ingest(connection, project, [Arrival(None, "x", "Viewed", EventKind.CUSTOM, EMPTY, None, None)])
        stored.set()
        await go_on.wait()

    straggling = asyncio.create_task(server.transact(straggle))
    await stored.wait()
    for _ in range(2):
        # Everything that can be seen is done, again and again, and the intent stays. Nobody waits for the straggler.
        assert set(await world.work_off(email_project.project_id)) == {Ran.ENDED}
        await _let_it_be_due(world, email_project)
    assert await unknown_profiles(world, email_project) == []
    assert await world.open_intents(email_project.project_id) == 1
    go_on.set()
    await straggling
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1
    await server.close()


async def _let_it_be_due(world: World, client: Client) -> None:
    await world.fetch(
        "UPDATE intents SET due_time = now() WHERE project_id = $1 AND kind = 'ACTIVATE' RETURNING 1",
        client.project_id,
    )


async def test_a_criterion_deleted_in_mid_evaluation(email_project: Client, settings: Settings, world: World) -> None:
    """U1, U2: a profile whose criterion is deleted while it is made is not made; one that came first stays."""
    criterion_id = await watched(email_project, world)
    await view(email_project, "x", 2)
    async with held(settings, "SELECT FROM criteria WHERE project_id = $1 FOR UPDATE", email_project.project_id):
        deleting = asyncio.create_task(_delete(email_project, criterion_id))
        await until_waiting(world, 1)
        working = asyncio.create_task(world.work_off(email_project.project_id))
        await until_waiting(world, 2)
    await deleting
    assert set(await working) == {Ran.ENDED}
    assert await unknown_profiles(world, email_project) == []

    second = await watched(email_project, world)
    await view(email_project, "x")
    async with in_flight(world, email_project):
        deleting = asyncio.create_task(_delete(email_project, second))
        await until_waiting(world, 1)
    await deleting
    assert len(await unknown_profiles(world, email_project)) == 1


async def _delete(client: Client, criterion_id: str) -> None:
    await client.activation.DeleteCriterion(DeleteCriterionRequest(criterion_id=criterion_id))


async def test_consent_taken_back_while_the_profile_is_made(
    email_project: Client, settings: Settings, world: World
) -> None:
    """U8, U2: a withdrawal that is acknowledged first keeps the worker from making the profile."""
    await watched(email_project, world)
    await switch(email_project, require_consent=True)
    await consent(email_project, anonymous_id="x")
    await view(email_project, "x", 2)
    async with held(settings, "SELECT FROM consents WHERE project_id = $1 FOR UPDATE", email_project.project_id):
        taking = asyncio.create_task(consent(email_project, anonymous_id="x", is_withdrawn=True))
        await until_waiting(world, 1)
        working = asyncio.create_task(world.work_off(email_project.project_id))
        await until_waiting(world, 2)
    await taking
    await working
    assert await unknown_profiles(world, email_project) == []

    await consent(email_project, anonymous_id="x")
    async with in_flight(world, email_project):
        taking = asyncio.create_task(consent(email_project, anonymous_id="x", is_withdrawn=True))
        await until_waiting(world, 1)
    assert not (await taking).consent.is_given
    assert len(await unknown_profiles(world, email_project)) == 1


async def test_projects_do_not_see_each_others_notes(make_project: MakeProject, world: World) -> None:
    """P6, F73: the same anonymous_id in two projects is two visitors, each with its own work."""
    one, other = await make_project("EMAIL"), await make_project("EMAIL")
    await watched(one, world)
    await watched(other, world)
    await view(one, "x")
    await view(other, "x")
    for client in (one, other):
        await world.work_off(client.project_id)
        assert await unknown_profiles(world, client) == []
    await view(one, "x")
    await world.work_off(other.project_id)
    await world.work_off(one.project_id)
    assert (len(await unknown_profiles(world, one)), await unknown_profiles(world, other)) == (1, [])
