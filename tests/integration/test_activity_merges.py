"""The activity log beside merges, undos and forgetting: right at every moment of them, and gone when it must be."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from onefold.config import Settings
from onefold.db.pool import SERVER_SETTINGS
from onefold.devices.store import lock_token
from onefold.limits import ACTIVITY_COUNT_EVENTS
from onefold.v1.activity_pb2 import (
    ACTIVITY_FILTER_ANONYMOUS,
    ACTIVITY_KIND_ANONYMOUS_DATA_MERGED,
    ACTIVITY_KIND_EVENT,
    ACTIVITY_KIND_PROFILE_MERGED,
)
from onefold.v1.identity_service_pb2 import DeleteProfileRequest, ForgetProfileRequest
from onefold.workflows import moving
from support.client import Client, email, timestamp
from support.logs import log, shorts
from support.merging import disable, identify, merge, put, register, undo
from support.probes import waits_for_lock
from support.relocation import stages
from support.traces import tables_with
from support.world import World

A = email("a@example.com")
B = email("b@example.com")
C = email("c@example.com")
CANARY = "kanarie"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every move takes several chunks."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)


async def lives(client: Client, *names: str) -> None:
    """Two people with three events each, a device, and a visitor of their own that is linked."""
    for name in names:
        who = email(f"{name}@example.com")
        await put(client, who)
        for number in range(3):
            await client.track(identifiers=who, name=f"{name}{number}")
        await register(client, who, f"phone-{name}")
        await client.track(anonymous_id=f"visitor-{name}", name=f"{name} as a visitor")
        await identify(client, who, f"visitor-{name}")


def life(name: str) -> list[str]:
    """What the log of one of them says."""
    return [
        f"linked visitor-{name} 1",
        f"{name} as a visitor",
        f"registered phone-{name}",
        *(f"{name}{number}" for number in (2, 1, 0)),
        "created",
    ]


async def test_a_merge_shows_both_lives_at_every_moment_and_its_undo_parts_them(
    email_project: Client, world: World
) -> None:
    """E9, F40, I19: chunk by chunk the target's log holds both lives from the merge on; from the undo on each has its
    own again, and both say that it was undone; the project's log is the same all the while."""
    await lives(email_project, "a", "b")
    assert await shorts(email_project, identifiers=A) == life("a")
    merged = await merge(email_project, A, B)
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project, identifiers=B) == ["merged", *life("b"), *life("a")]
        assert await shorts(email_project) == ["merged", *life("b"), *life("a")]
        assert await shorts(email_project, filter=ACTIVITY_FILTER_ANONYMOUS) == []
    await email_project.track(identifiers=B, name="since")
    await disable(email_project, "phone-a", B)
    await undo(email_project, merged.merge.merge_id)
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project, identifiers=A) == ["merged undone", *life("a")]
        assert await shorts(email_project, identifiers=B) == [
            "disabled phone-a", "since", "merged undone", *life("b")
        ]  # fmt: skip
        assert len(await shorts(email_project)) == 2 * len(life("a")) + 3


async def test_chains_of_merges_are_undone_one_by_one(email_project: Client, world: World) -> None:
    """E9, F36: what came along with a part of a person stays with that part, when it is taken out again."""
    await lives(email_project, "a", "b", "c")
    await merge(email_project, A, B)
    second = await merge(email_project, B, C)
    whole = sorted([*life("a"), *life("b"), *life("c"), "merged", "merged"])
    async for _ in stages(world, email_project.project_id):
        assert sorted(await shorts(email_project, identifiers=C)) == whole
        assert sorted(await shorts(email_project, identifiers=C, page_size=3)) == whole
    await undo(email_project, second.merge.merge_id)
    async for _ in stages(world, email_project.project_id):
        assert sorted(await shorts(email_project, identifiers=C)) == sorted([*life("c"), "merged undone"])
        assert sorted(await shorts(email_project, identifiers=B)) == sorted(
            [*life("a"), *life("b"), "merged", "merged undone"]
        )


async def test_an_association_that_is_undone_is_told_as_undone(email_project: Client, world: World) -> None:
    """A7, E9: its events are the visitor's again in every list, at every moment; another person's link has an entry of
    its own, with its own count."""
    for who in (A, B):
        await put(email_project, who)
    now = await world.now()
    for number in range(5):
        await email_project.track(
            anonymous_id="x", name=f"e{number}", event_time=timestamp(now - timedelta(seconds=60 - number))
        )
    events = [f"e{number}" for number in reversed(range(5))]
    link = await identify(email_project, A, "x")
    await world.settle(email_project.project_id)
    await undo(email_project, link.merge_id)
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project, identifiers=A) == ["linked x 5 undone", "created"]
        assert await shorts(email_project, filter=ACTIVITY_FILTER_ANONYMOUS) == events
        assert await shorts(email_project, anonymous_id="x") == events
        assert await shorts(email_project, kinds=[ACTIVITY_KIND_EVENT]) == events
        for activity in await log(email_project, filter=ACTIVITY_FILTER_ANONYMOUS):
            assert (activity.profile_id, activity.event.profile_id, activity.event.was_anonymous) == ("", "", False)
    again = await identify(email_project, B, "x")
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project, identifiers=A) == ["linked x 5 undone", "created"]
        assert await shorts(email_project, identifiers=B) == ["linked x 5", "created", *events]
        assert await shorts(email_project, filter=ACTIVITY_FILTER_ANONYMOUS) == []
    newest, undone = await log(email_project, kinds=[ACTIVITY_KIND_ANONYMOUS_DATA_MERGED])
    assert newest.anonymous_data_merged.merge_id == again.merge_id
    assert undone.anonymous_data_merged.HasField("undo_time")


async def test_linked_again_before_anything_moved_counts_right_at_every_moment(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7: undone and made again for the same person while the worker has not moved a thing."""
    # What an entry counts by itself is less than a chunk.
    monkeypatch.setattr(moving, "CHUNK_EVENTS", ACTIVITY_COUNT_EVENTS)
    await put(email_project, A)
    for number in range(3):
        await email_project.track(anonymous_id="x", name=f"e{number}")
    first = await identify(email_project, A, "x")
    await world.settle(email_project.project_id)
    await undo(email_project, first.merge_id)
    await identify(email_project, A, "x")
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project, identifiers=A, kinds=[ACTIVITY_KIND_ANONYMOUS_DATA_MERGED]) == [
            "linked x 3", "linked x 3 undone"
        ]  # fmt: skip


# --- forgetting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delete", [False, True], ids=["forget", "delete"])
async def test_a_forgotten_persons_notes_are_erased(email_project: Client, world: World, delete: bool) -> None:
    """F43, I20: all notes about the person and about what had been merged into the person, chunk by chunk; those about
    others stay, also about one whose merge into the person was undone."""
    for who in (A, B, C):
        await put(email_project, who)
    for number in range(3):
        await register(email_project, A, f"{CANARY}-a{number}")
        await register(email_project, B, f"{CANARY}-b{number}")
    await register(email_project, C, "phone")
    await register(email_project, C, f"{CANARY}-b0")
    await disable(email_project, f"{CANARY}-a1")
    undone = await merge(email_project, C, B)
    await undo(email_project, undone.merge.merge_id)
    await merge(email_project, A, B)
    await world.settle(email_project.project_id)
    of_c = await log(email_project, identifiers=C)
    if delete:
        await email_project.identity.DeleteProfile(DeleteProfileRequest(identifiers=B))
    else:
        await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=B))
    shown = ["deleted" if delete else "forgotten", f"registered {CANARY}-b0", "registered phone", "created"]
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project) == shown
        assert await log(email_project, identifiers=C) == of_c
    await disable(email_project, f"{CANARY}-b0")
    # The one token that somebody else holds, and what was said about it.
    await email_project.identity.DeleteProfile(DeleteProfileRequest(identifiers=C))
    await world.settle(email_project.project_id)
    assert await tables_with(world, CANARY) == set()
    assert await world.value("SELECT count(*) FROM activities WHERE project_id = $1", email_project.project_id) == 2


async def test_forgetting_the_source_of_an_undone_merge_keeps_the_targets_notes(
    email_project: Client, world: World
) -> None:
    """F43, I19: while the source's events still lie with the target, only they are erased there."""
    await lives(email_project, "a", "b")
    merged = await merge(email_project, A, B)
    await world.settle(email_project.project_id)
    await undo(email_project, merged.merge.merge_id)
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=A))
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project, identifiers=B) == ["merged undone", *life("b")]
    notes = await world.value(
        "SELECT count(*) FROM activities WHERE project_id = $1 AND kind = 6", email_project.project_id
    )
    assert notes == 1


async def test_a_visitors_id_is_forgotten_in_undone_associations_too(email_project: Client, world: World) -> None:
    """F43: the ledger and the log of one to whom an id was linked by mistake do not keep it when its person goes."""
    for who in (A, B):
        await put(email_project, who)
    link = await identify(email_project, A, f"{CANARY}-visitor")
    await undo(email_project, link.merge_id)
    await identify(email_project, B, f"{CANARY}-visitor")
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=B))
    assert await shorts(email_project, identifiers=A) == ["linked  0 undone", "created"]
    await world.settle(email_project.project_id)
    assert await tables_with(world, CANARY) == set()


async def test_a_disable_in_flight_is_forgotten_with_the_last_holder(
    settings: Settings, email_project: Client, world: World
) -> None:
    """F43: a disable for everybody that commits while its only holder is being forgotten leaves no trace."""
    await put(email_project, A)
    token = f"{CANARY}-phone"
    await register(email_project, A, token)
    connection = await asyncpg.connect(settings.database_url, server_settings=SERVER_SETTINGS)
    try:
        transaction = connection.transaction()
        await transaction.start()
        await lock_token(connection, email_project.project_id, token, shared=False)
        await connection.execute(
            "INSERT INTO activities (project_id, activity_time, kind, token) VALUES ($1, clock_timestamp(), 7, $2)",
            email_project.project_id,
            token,
        )
        forgetting = asyncio.ensure_future(email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=A)))
        await waits_for_lock(world)
        await transaction.commit()
        await forgetting
    finally:
        await connection.close()
    await world.settle(email_project.project_id)
    assert await tables_with(world, CANARY) == set()


async def test_merges_of_forgotten_people_are_not_told(email_project: Client, world: World) -> None:
    """E9, I20: neither what was merged into them nor what they were renamed from."""
    await lives(email_project, "a", "b")
    await merge(email_project, A, B)
    await merge(email_project, B, C)
    await world.settle(email_project.project_id)
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=C))
    assert await shorts(email_project) == ["forgotten"]
    assert await shorts(email_project, kinds=[ACTIVITY_KIND_PROFILE_MERGED]) == []
