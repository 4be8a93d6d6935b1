"""Which events trigger, with which mark, for whom; and what merges, undos and forgetting do to that."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from conftest import MakeProject
from onefold.callers import IdentifierType, Project, ProjectSettings, Region
from onefold.config import Settings
from onefold.db.pool import SERVER_SETTINGS
from onefold.events.ingest import ingest
from onefold.events.rules import Arrival, EventKind
from onefold.identity.naming import Named
from onefold.rpc.payload import EMPTY
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.event_pb2 import EVENT_KIND_PAGE, NewEvent
from onefold.v1.identity_service_pb2 import DeleteProfileRequest, ForgetProfileRequest, UnforgetProfileRequest
from onefold.v1.profile_pb2 import Identifiers
from onefold.v1.projects_service_pb2 import UpdateProjectRequest
from onefold.v1.trigger_pb2 import (
    TRIGGER_MARK_BACKFILLED,
    TRIGGER_MARK_LIVE,
    TRIGGER_MARK_MERGED,
    Trigger,
)
from onefold.workflows import moving
from support.client import Client, email, timestamp
from support.merging import identify, merge, person, put, undo
from support.relocation import stages
from support.traces import tables_with
from support.watching import enable, told, told_names
from support.world import World

A = email("a@example.com")
B = email("b@example.com")
C = email("c@example.com")
SECOND = timedelta(seconds=1)
HOURS = timedelta(hours=1)
INVITED = '{"recipient": "b@example.com"}'


async def stored(world: World, client: Client) -> int:
    """How many rows the project has in the outbox."""
    count: int = await world.value("SELECT count(*) FROM triggers WHERE project_id = $1", client.project_id)
    return count


def seen(triggers: Sequence[Trigger]) -> list[tuple[str, int, str]]:
    """Name, mark and owner of each."""
    return [(trigger.event.name, trigger.mark, trigger.event.profile_id) for trigger in triggers]


# --- what triggers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(IdentifierType))
async def test_a_persons_event_triggers(make_project: MakeProject, world: World, kind: str) -> None:
    """E10: in every type of project, told as ListEvents tells the event, with its owner and when it was recorded."""
    client = await make_project(kind)
    who, last = person(kind, "a"), person(kind, "last")
    await enable(client, who, last=last)
    before = await world.now()
    await client.track(
        identifiers=who, anonymous_id="x", name="Viewed", kind=EVENT_KIND_PAGE, data_json='{"n":12345678901234567890}'
    )
    [trigger] = await told(client, last=last)
    assert [trigger.event] == await client.timeline(identifiers=who, data_format=DATA_FORMAT_JSON)
    assert trigger.event.data_json == '{"n":12345678901234567890}'
    assert trigger.event.profile_id
    assert trigger.mark == TRIGGER_MARK_LIVE
    assert before <= trigger.create_time.ToDatetime(before.tzinfo) <= await world.now()


async def test_an_old_event_triggers_as_backfilled(email_project: Client, world: World) -> None:
    """E5, E10: one that was more than 5 minutes old when it arrived is marked; however old it is, it triggers."""
    await enable(email_project, A)
    now = await world.now()
    ages = {"years": 9_000 * 24 * HOURS, "old": timedelta(minutes=5, seconds=2), "young": timedelta(minutes=4)}
    for name, age in ages.items():
        await email_project.track(identifiers=A, name=name, event_time=timestamp(now - age))
    assert [(trigger.event.name, trigger.mark) for trigger in await told(email_project)] == [
        ("years", TRIGGER_MARK_BACKFILLED),
        ("old", TRIGGER_MARK_BACKFILLED),
        ("young", TRIGGER_MARK_LIVE),
    ]


async def test_a_batch_triggers_in_its_order(email_project: Client) -> None:
    """E10, E4: what one batch stores is told in the order of the batch, without the items that were refused."""
    await enable(email_project, A, B)
    batch = [NewEvent(identifiers=(A, B)[number % 2], name=f"e{number}") for number in range(20)]
    batch[7] = NewEvent(identifiers=C, name="nobody")
    batch[9] = NewEvent(anonymous_id="x", name="visitor")
    await email_project.batch(batch)
    expected = [event.name for event in batch if event.name.startswith("e")]
    assert await told_names(email_project) == expected


async def test_a_duplicate_triggers_once(email_project: Client, world: World) -> None:
    """E3, E10: an event told again, in one batch or later, triggers once; one with another body not at all."""
    await enable(email_project, A)
    event = NewEvent(identifiers=A, name="once", event_id="id-1")
    await email_project.batch([event, event])
    await email_project.batch([event, NewEvent(identifiers=A, name="other", event_id="id-1")])
    assert await told_names(email_project) == ["once"]


async def test_a_visitors_event_triggers_nothing(email_project: Client, world: World) -> None:
    """A1, A5: neither before any link nor when it comes after the grace of one."""
    await enable(email_project, A)
    await identify(email_project, A, "x")
    await world.pass_time(email_project.project_id, timedelta(minutes=5, seconds=1))
    for anonymous_id in ("x", "y"):
        await email_project.track(anonymous_id=anonymous_id, name="anonymous")
    await world.settle(email_project.project_id)
    assert await told_names(email_project) == []
    # The event that ends the reading.
    assert await stored(world, email_project) == 1


async def test_nothing_is_kept_unless_the_project_asks(email_project: Client, world: World) -> None:
    """E10: with triggers_enabled off, as it is by default, no row is written by a person's event, a late one, or a
    link; and what came while it was off does not trigger when it is switched on."""
    await put(email_project, A)
    await email_project.track(identifiers=A, name="known")
    await email_project.track(anonymous_id="x", name="visitor")
    await identify(email_project, A, "x")
    await email_project.track(anonymous_id="x", name="late")
    await world.settle(email_project.project_id)
    assert await email_project.names(identifiers=A) == ["late", "visitor", "known"]
    assert await stored(world, email_project) == 0
    await enable(email_project)
    assert await told_names(email_project) == []
    await email_project.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=False))
    await email_project.track(identifiers=A, name="off again")
    assert await stored(world, email_project) == 1


async def test_a_project_without_triggers_pays_nothing(settings: Settings, email_project: Client, world: World) -> None:
    """E10: taking events in costs one statement more with triggers, and without them none has to do with them."""
    await put(email_project, A)
    moment = await world.now()
    connection = await asyncpg.connect(settings.database_url, server_settings=SERVER_SETTINGS)

    async def statements(number: int, *, on: bool) -> list[str]:
        project = Project(
            email_project.project_id,
            IdentifierType.EMAIL,
            Region.US,
            ProjectSettings(triggers_enabled=on),
            moment,
            moment,
            forget_key=b"key",
        )
        arrivals = [
            Arrival(Named("a@example.com", None), None, "known", EventKind.CUSTOM, EMPTY, f"id-{number}", None),
            Arrival(None, "x", "visitor", EventKind.CUSTOM, EMPTY, None, None),
        ]
        found: list[str] = []
        async with connection.transaction():
            with connection.query_logger(lambda query: found.append(query.query)):
                await ingest(connection, project, arrivals)
        return found

    try:
        # The first run of each also asks for the types of its parameters.
        off, on = [[await statements(2 * number + on, on=on) for number in range(2)][1] for on in (False, True)]
    finally:
        await connection.close()
    assert not any("INTO triggers " in statement for statement in off)
    assert [statement for statement in on if "INTO triggers " not in statement] == off
    assert len(on) == len(off) + 1


async def test_an_invite_triggers(email_project: Client, world: World) -> None:
    """E6, E10, E5: an invite triggers, for its recipient and no profile, unless triggers are suppressed."""
    await enable(email_project)
    for name, suppressed in (("invited", False), ("quietly", True)):
        await email_project.track(name=name, data_json=INVITED, suppress_triggers=suppressed)
    [trigger] = await told(email_project)
    assert (trigger.event.name, trigger.event.recipient, trigger.event.profile_id) == ("invited", "b@example.com", "")
    assert trigger.mark == TRIGGER_MARK_LIVE


async def test_an_invite_to_somebody_forgotten_triggers_nothing(email_project: Client, world: World) -> None:
    """E6, I20, F43: once an address is forgotten its invites are not told, and then no trigger of them is left."""
    await enable(email_project)
    await email_project.track(name="invited", data_json=INVITED)
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=email("b@example.com")))
    assert await told_names(email_project) == []
    await world.settle(email_project.project_id)
    left = "SELECT count(*) FROM triggers WHERE project_id = $1 AND recipient IS NOT NULL"
    assert await world.value(left, email_project.project_id) == 0


async def test_what_was_told_to_be_quiet_triggers_nothing(email_project: Client, world: World) -> None:
    """E5, E10: suppress_triggers holds for a person's event, a late event of a link, and for a visitor's event when it
    is linked, undone and linked again."""
    await enable(email_project, A)
    quiet: dict[str, Any] = {"suppress_triggers": True}
    await email_project.track(identifiers=A, name="quiet", **quiet)
    await email_project.batch([NewEvent(identifiers=A, name="quiet", **quiet), NewEvent(identifiers=A, name="loud")])
    await email_project.track(anonymous_id="x", name="quiet", **quiet)
    await email_project.track(anonymous_id="x", name="loud visitor")
    # Linked again in place, and after the worker has brought everything back.
    for brought_back in (False, True):
        link = await identify(email_project, A, "x")
        await email_project.track(anonymous_id="x", name="quiet", **quiet)
        await world.settle(email_project.project_id)
        assert await told_names(email_project) == ["loud", "loud visitor"]
        await undo(email_project, link.merge_id)
        if brought_back:
            await world.settle(email_project.project_id)
    await identify(email_project, A, "x")
    await world.settle(email_project.project_id)
    assert await told_names(email_project) == ["loud", "loud visitor"]


async def test_invites_to_a_forgotten_address_are_not_told(email_project: Client, world: World) -> None:
    """F43, E6: from the commit on, and afterwards no table holds a word of them; one sent to the address after it may
    be used again is told."""
    await enable(email_project, A, B)
    await email_project.track(name="Kanarienvogel", event_id="kanarie-1", data_json='{"recipient":"a@example.com"}')
    await email_project.track(name="bystander", data_json='{"recipient":"b@example.com"}')
    assert await told_names(email_project) == ["Kanarienvogel", "bystander"]
    await _erase(email_project, A, "forget")
    async for _ in stages(world, email_project.project_id):
        assert await told_names(email_project) == ["bystander"]
    assert await tables_with(world, "kanarie") == set()
    await email_project.identity.UnforgetProfile(UnforgetProfileRequest(identifiers=A))
    await email_project.track(name="again", data_json='{"recipient":"a@example.com"}')
    assert await told_names(email_project) == ["bystander", "again"]


# --- what a link brings ----------------------------------------------------------------------------------------------


async def test_what_a_link_brings_triggers_within_72_hours(email_project: Client, world: World) -> None:
    """A9, A8: a visitor's events that happened less than 72 hours before the link trigger as merged, sharp to the
    second; older ones are the person's and trigger nothing."""
    await enable(email_project, A)
    now = await world.now()
    for name in ("73 h", "72 h + 1 s", "72 h - 1 s", "now", "ahead"):
        await email_project.track(anonymous_id="x", name=name, event_time=timestamp(now - HOURS))
    await identify(email_project, A, "x")
    # Sharp from the link's own moment, which no caller can know beforehand.
    await world.fetch(
        "UPDATE anonymous_events SET event_time = (SELECT create_time FROM merges WHERE project_id = $1) - CASE name"
        " WHEN '73 h' THEN interval '73 h' WHEN '72 h + 1 s' THEN interval '72 h 1 s'"
        " WHEN '72 h - 1 s' THEN interval '71 h 59 min 59 s' WHEN 'ahead' THEN interval '-23 h'"
        " ELSE interval '0' END WHERE project_id = $1 RETURNING 1",
        email_project.project_id,
    )
    await world.settle(email_project.project_id)
    [*_, profile_id] = {event.profile_id for event in await email_project.timeline(identifiers=A)}
    found = await told(email_project)
    assert seen(found) == [(name, TRIGGER_MARK_MERGED, profile_id) for name in ("72 h - 1 s", "now", "ahead")]
    assert all(trigger.event.was_anonymous and trigger.event.anonymous_id == "x" for trigger in found)
    assert len(await email_project.names(identifiers=A)) == 5


async def test_late_events_of_a_link_trigger_by_the_same_rule(email_project: Client, world: World) -> None:
    """A9, A3: what arrives in the grace is merged too, and triggers if it happened within 72 hours before the link."""
    await enable(email_project, A)
    await identify(email_project, A, "x")
    linked = await world.value("SELECT create_time FROM merges WHERE project_id = $1", email_project.project_id)
    for name, age in (("old", 72 * HOURS + SECOND), ("recent", 72 * HOURS - SECOND), ("new", -SECOND)):
        await email_project.track(anonymous_id="x", name=name, event_time=timestamp(linked - age))
    assert [(trigger.event.name, trigger.mark) for trigger in await told(email_project)] == [
        ("recent", TRIGGER_MARK_MERGED),
        ("new", TRIGGER_MARK_MERGED),
    ]


async def test_every_chunk_triggers_what_it_moves_once(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A9, E10: whatever the chunks, and however often a worker passes, each event triggers once, oldest first."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    await enable(email_project, A)
    now = await world.now()
    names = [f"e{number}" for number in range(7)]
    for number, name in enumerate(names):
        await email_project.track(anonymous_id="x", name=name, event_time=timestamp(now - (60 - number) * SECOND))
    await identify(email_project, A, "x")
    counts = [len(await told(email_project)) async for _ in stages(world, email_project.project_id)]
    assert counts == sorted(counts)
    assert await told_names(email_project) == names


async def test_a_chunk_that_is_rolled_back_triggers_nothing(email_project: Client, world: World) -> None:
    """E10, F4: triggers are committed with the move of their events, or not at all."""
    await enable(email_project, A)
    await email_project.track(anonymous_id="x", name="once")
    await identify(email_project, A, "x")
    [intent_id] = await world.due(email_project.project_id)
    lease = await world.take(email_project.project_id, intent_id)
    assert lease is not None

    async def cut_off(connection: Any) -> None:
        await moving.move_chunk(connection, lease, None)
        raise LookupError

    with pytest.raises(LookupError):
        await world.database.transact(cut_off)
    assert await told_names(email_project) == []
    await world.pass_time(email_project.project_id, timedelta(seconds=31))
    await world.settle(email_project.project_id)
    assert await told_names(email_project) == ["once"]


# --- merges and undos ------------------------------------------------------------------------------------------------


async def test_a_merge_of_profiles_triggers_nothing_and_names_the_survivor(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E10, I16: at every moment of a merge each trigger is told once with the survivor's id, and after its undoing with
    the id of whose the event is again."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 1)
    await enable(email_project, A, B)
    ids = {who.email: await put(email_project, who) for who in (A, B)}
    for who, name in ((A, "a1"), (B, "b1"), (A, "a2")):
        await email_project.track(identifiers=who, name=name)
    merged = await merge(email_project, A, B)
    names = ["a1", "b1", "a2"]
    async for _ in stages(world, email_project.project_id):
        assert seen(await told(email_project)) == [(name, TRIGGER_MARK_LIVE, ids[B.email]) for name in names]
    await undo(email_project, merged.merge.merge_id)
    back = [("a1", 1, ids[A.email]), ("b1", 1, ids[B.email]), ("a2", 1, ids[A.email])]
    async for _ in stages(world, email_project.project_id):
        assert seen(await told(email_project)) == back


async def test_chains_of_merges_lead_to_the_last_survivor(email_project: Client, world: World) -> None:
    """E10, F36: also for what a link brings to somebody who is merged before a worker gets to it, and undone after."""
    await enable(email_project, A, B, C)
    ids = {who.email: await put(email_project, who) for who in (A, B, C)}
    await email_project.track(identifiers=A, name="known")
    await email_project.track(anonymous_id="x", name="visitor")
    await identify(email_project, A, "x")
    await merge(email_project, A, B)
    second = await merge(email_project, B, C)
    await world.settle(email_project.project_id)
    assert sorted(seen(await told(email_project))) == [("known", 1, ids[C.email]), ("visitor", 3, ids[C.email])]
    await undo(email_project, second.merge.merge_id)
    for _ in range(2):
        assert sorted(seen(await told(email_project))) == [("known", 1, ids[B.email]), ("visitor", 3, ids[B.email])]
        await world.settle(email_project.project_id)


@pytest.mark.parametrize("moved", [False, True], ids=["before the worker", "after the worker"])
@pytest.mark.parametrize("again", [A, B], ids=["to the same person", "to another"])
async def test_an_association_that_is_undone_tells_nothing_until_it_is_made_again(
    email_project: Client, world: World, moved: bool, again: Identifiers
) -> None:
    """A1, A9, E10: an undone association's events are nobody's and not told; made again, it triggers again, behind all
    that was told, so that nobody who read meanwhile misses it."""
    await enable(email_project, A, B)
    ids = {who.email: await put(email_project, who) for who in (A, B)}
    await email_project.track(anonymous_id="x", name="visitor")
    link = await identify(email_project, A, "x")
    await world.settle(email_project.project_id)
    await email_project.track(identifiers=B, name="between")
    assert seen(await told(email_project)) == [("visitor", 3, ids[A.email]), ("between", 1, ids[B.email])]
    await undo(email_project, link.merge_id)
    assert await told_names(email_project) == ["between"]
    if moved:
        await world.settle(email_project.project_id)
        assert await told_names(email_project) == ["between"]
    await identify(email_project, again, "x")
    await world.settle(email_project.project_id)
    assert seen(await told(email_project)) == [("between", 1, ids[B.email]), ("visitor", 3, ids[again.email])]


# --- forgetting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["forget", "delete"])
async def test_a_forgotten_persons_triggers_are_gone(email_project: Client, world: World, way: str) -> None:
    """F43, I20: from the commit on nothing of the person is told, also what came by a link or a merge; afterwards no
    table holds an event_id or a word of it."""
    await enable(email_project, A, B, C)
    await email_project.track(identifiers=B, name="Kanarienvogel1", event_id="kanarie-1")
    await email_project.track(identifiers=A, name="Kanarienvogel2", event_id="kanarie-2")
    await email_project.track(anonymous_id="x", name="Kanarienvogel3", event_id="kanarie-3")
    await identify(email_project, A, "x")
    await world.settle(email_project.project_id)
    await merge(email_project, A, B)
    await email_project.track(identifiers=C, name="bystander")
    assert len(await told(email_project)) == 4
    await _erase(email_project, B, way)
    async for _ in stages(world, email_project.project_id):
        assert await told_names(email_project) == ["bystander"]
    assert await tables_with(world, "kanarie") == set()


async def test_what_was_undone_is_forgotten_with_its_new_owner(email_project: Client, world: World) -> None:
    """F43: an event that triggered for one person, was taken back and linked to another, goes with the other."""
    await enable(email_project, A, B)
    await email_project.track(anonymous_id="x", name="Kanarienvogel", event_id="kanarie-1")
    link = await identify(email_project, A, "x")
    await world.settle(email_project.project_id)
    await undo(email_project, link.merge_id)
    # Older by now than what a link may trigger with: the first trigger is the only one.
    await world.pass_time(email_project.project_id, 73 * HOURS)
    await identify(email_project, B, "x")
    await _erase(email_project, B, "forget")
    async for _ in stages(world, email_project.project_id):
        assert await told_names(email_project) == []
    assert await tables_with(world, "kanarie") == set()


async def test_an_event_in_flight_is_forgotten_too(settings: Settings, email_project: Client, world: World) -> None:
    """F43: an event whose transaction ends after the forgetting is not told, and is erased with its trigger."""
    await enable(email_project, A)
    profile_id = await put(email_project, A)
    connection = await asyncpg.connect(settings.database_url, server_settings=SERVER_SETTINGS)
    try:
        transaction = connection.transaction()
        await transaction.start()
        for table, columns, values in (
            (
                "events",
                "event_time, event_id, receive_time, kind, name, data",
                "now(), 'kanarie-1', now(), 1, 'n', '{}'",
            ),
            ("triggers", "event_time, event_id, mark", "now(), 'kanarie-1', 1"),
        ):
            await connection.execute(
                f"INSERT INTO {table} (project_id, profile_id, {columns}) VALUES ($1, $2, {values})",
                email_project.project_id,
                profile_id,
            )
        await _erase(email_project, A, "forget")
        await world.work_off(email_project.project_id)
        await transaction.commit()
    finally:
        await connection.close()
    assert await told_names(email_project) == []
    await world.settle(email_project.project_id)
    assert await tables_with(world, "kanarie") == set()


async def _erase(client: Client, who: Identifiers, way: str) -> None:
    if way == "forget":
        await client.identity.ForgetProfile(ForgetProfileRequest(identifiers=who))
    else:
        await client.identity.DeleteProfile(DeleteProfileRequest(identifiers=who))
