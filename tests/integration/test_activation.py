"""server_side_activation: visitors who become unknown profiles by what they do, the worker stepped by hand."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from conftest import MakeProject
from onefold.activation.store import Note, Snapshot
from onefold.db.queries import Connection
from onefold.intents.rules import IntentKind
from onefold.v1.activation_service_pb2 import UpdateCriterionRequest
from onefold.v1.event_pb2 import (
    EVENT_KIND_CART_UPDATE,
    EVENT_KIND_IN_APP_OPEN,
    EVENT_KIND_PAGE,
    EVENT_KIND_PURCHASE,
    EVENT_KIND_PUSH_OPEN,
    EVENT_KIND_SCREEN,
    NewEvent,
)
from onefold.v1.identity_service_pb2 import ForgetProfileRequest, GetProfileRequest, ListMergesRequest
from onefold.v1.merge_pb2 import MERGE_KIND_ASSOCIATION
from onefold.v1.profile_pb2 import SIGNUP_SOURCE_ACTIVATION
from onefold.v1.trigger_pb2 import TRIGGER_MARK_LIVE, TRIGGER_MARK_MERGED
from onefold.workflows import activating
from onefold.workflows.retention import purge
from support import watching
from support.client import Client, email, timestamp, user
from support.criteria import condition, delete_criterion, group, leaf, make_criterion, named, tree
from support.merging import identify, undo
from support.placeholders import short_placeholder
from support.probes import rows_of
from support.relocation import stages
from support.visitors import activate, consent, sessions, switch, unknown_profiles, view, watched
from support.world import World

TYPES = ["EMAIL", "USER_ID", "HYBRID"]


async def by_id(client: Client, profile_id: str) -> Any:
    """A profile."""
    return (await client.identity.GetProfile(GetProfileRequest(profile_id=profile_id))).profile


async def count(world: World, client: Client, table: str) -> int:
    """How many rows a project has in a table."""
    rows: int = await world.value(f"SELECT count(*) FROM {table} WHERE project_id = $1", client.project_id)
    return rows


# --- the first match -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
async def test_a_visitor_who_matches_gets_a_profile_with_the_history(
    make_project: MakeProject, world: World, kind: str
) -> None:
    """U2, U3, A3, A7, A8: the profile is unknown, has everything the visitor did, and tells its criterion."""
    client = await make_project(kind)
    criterion_id = await watched(client, world)
    await view(client, "x")
    await world.work_off(client.project_id)
    assert await unknown_profiles(world, client) == []
    await view(client, "x", name="Other")
    await view(client, "x")
    await view(client, "bystander")
    assert await unknown_profiles(world, client) == []
    await world.work_off(client.project_id)

    [profile_id] = await unknown_profiles(world, client)
    profile = await by_id(client, profile_id)
    user_id = profile.identifiers.user_id
    assert str(UUID(user_id)) == user_id
    assert profile.identifiers.email == (short_placeholder(user_id) if kind == "EMAIL" else "")
    assert profile.signup_source == SIGNUP_SOURCE_ACTIVATION
    async for stage in stages(world, client.project_id):
        timeline = await client.timeline(profile_id=profile_id)
        assert [each.name for each in timeline] == ["unknownSession", "Viewed", "Other", "Viewed"], stage
        assert [each.was_anonymous for each in timeline] == [False, True, True, True]
        assert await client.names(anonymous_id="x") == []
    assert await sessions(client, profile_id=profile_id) == [{"criterionId": criterion_id}]
    assert await client.names(anonymous_id="bystander") == ["Viewed"]
    [entry] = (await client.identity.ListMerges(ListMergesRequest(profile_id=profile_id))).merges
    assert (entry.kind, entry.anonymous_id, entry.event_count, entry.key_id) == (MERGE_KIND_ASSOCIATION, "x", 3, "")
    await world.settle(client.project_id)
    assert await world.open_intents(client.project_id) == 0
    assert await count(world, client, "activation_notes") == 0


@pytest.mark.parametrize("off", ["server_side_activation", "event_merging_enabled"])
async def test_where_it_is_off_nothing_is_noted(email_project: Client, world: World, off: str) -> None:
    """U2, A1, P5: a visitor's events leave neither note nor work in a project that makes no profiles of them."""
    await watched(email_project, world)
    await switch(email_project, **{off: False})
    await view(email_project, "x", 3)
    for table in ("activation_notes", "intents", "activation_visitors", "profiles"):
        assert await count(world, email_project, table) == 0


async def test_notes_left_before_it_was_switched_off_make_nobody(email_project: Client, world: World) -> None:
    """U2: what was noted is dropped once the project wants no more profiles."""
    await watched(email_project, world)
    await view(email_project, "x", 2)
    await switch(email_project, server_side_activation=False)
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    assert await count(world, email_project, "activation_notes") == 0
    assert await world.open_intents(email_project.project_id) == 0


async def test_events_told_in_bulk_count_one_by_one(email_project: Client, world: World) -> None:
    """U2: a batch for many visitors makes a profile for each of those who match, once, with the right criterion."""
    await watched(email_project, world)
    await email_project.batch(
        [NewEvent(anonymous_id=f"v{number % 150}", name="Viewed") for number in range(225)]
        + [NewEvent(anonymous_id="v0", name="")]
    )
    await world.work_off(email_project.project_id)
    linked = await world.fetch(
        "SELECT value FROM identifiers WHERE project_id = $1 AND kind = 3", email_project.project_id
    )
    assert {row["value"] for row in linked} == {f"v{number}" for number in range(75)}
    assert len(await unknown_profiles(world, email_project)) == len(linked)


async def test_what_comes_after_goes_to_the_profile(email_project: Client, world: World) -> None:
    """U2, A3: from then on the visitor's events are the profile's, however much later they come."""
    await watched(email_project, world)
    profile_id = await activate(world, email_project, "x")
    await world.settle(email_project.project_id)
    for later in (timedelta(minutes=4), timedelta(minutes=2), timedelta(days=40)):
        await world.pass_time(email_project.project_id, later)
        result = await email_project.track(anonymous_id="x", name="Later")
        assert result.profile_id == profile_id
    assert len(await email_project.timeline(profile_id=profile_id, names=["Later"])) == 3
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == [profile_id]


async def test_a_visitors_profile_triggers_as_a_persons_does(email_project: Client, world: World) -> None:
    """E10, A1, A9, U2: nothing of a visitor triggers; then the session does, 72 hours of history, and what follows."""
    await watched(email_project, world)
    await watching.enable(email_project)
    old = timestamp(await world.now() - timedelta(hours=73))
    await email_project.track(anonymous_id="x", name="Old", event_time=old)
    await view(email_project, "x", 2)
    assert await watching.told(email_project) == []
    await world.work_off(email_project.project_id)
    session = ("unknownSession", TRIGGER_MARK_LIVE)
    assert [(each.event.name, each.mark) for each in await watching.told(email_project)] == [session]
    await world.settle(email_project.project_id)
    await view(email_project, "x", name="Later")
    assert [(each.event.name, each.mark) for each in await watching.told(email_project)] == [
        session,
        ("Viewed", TRIGGER_MARK_MERGED),
        ("Viewed", TRIGGER_MARK_MERGED),
        ("Later", TRIGGER_MARK_LIVE),
    ]


@pytest.mark.parametrize(
    ("root", "told"),
    [
        (leaf("PURCHASE", condition("shoppingCartItems.name", "EQUALS", "pizza")), EVENT_KIND_PURCHASE),
        (
            leaf("CART_UPDATE", condition("updateCart.updatedShoppingCartItems.name", "EQUALS", "pizza")),
            EVENT_KIND_CART_UPDATE,
        ),
        (named("told"), EVENT_KIND_PAGE),
        (named("told"), EVENT_KIND_SCREEN),
    ],
)
async def test_every_sort_of_event_counts_for_its_leaf(
    email_project: Client, world: World, root: dict[str, Any], told: Any
) -> None:
    """U1, U2: purchases, carts, pages and screens of visitors are looked at; opens of messages count for nothing."""
    await watched(email_project, world, root)
    data = '{"shoppingCartItems":[{"name":"pizza"}],"updateCart":{"updatedShoppingCartItems":[{"name":"pizza"}]}}'
    for kind in (EVENT_KIND_PUSH_OPEN, EVENT_KIND_IN_APP_OPEN):
        await email_project.track(anonymous_id="x", name="told", kind=kind, data_json=data)
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    await email_project.track(anonymous_id="x", name="told", kind=told, data_json=data)
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_first_match_counts_however_late_the_worker(
    email_project: Client, world: World, at_once: bool
) -> None:
    """U1, U2: a visitor who matched for one event matched, whether the worker looks before the next one or after it."""
    await watched(email_project, world, named("Viewed", maxMatch=1))
    for _ in range(2):
        await view(email_project, "x")
        if not at_once:
            await world.work_off(email_project.project_id)
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


async def test_the_oldest_criterion_that_matches_marks_the_profile(email_project: Client, world: World) -> None:
    """U1, U2: criteria are or-ed, and of two that match at the same event the older one is told."""
    await watched(email_project, world, named("Bought"))
    second = await make_criterion(email_project, named("Viewed"))
    await make_criterion(email_project, named("Viewed"))
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    [profile_id] = await unknown_profiles(world, email_project)
    assert await sessions(email_project, profile_id=profile_id) == [{"criterionId": second.criterion_id}]


async def test_without_criteria_nobody_matches(email_project: Client, world: World) -> None:
    """U2: a project that has no criterion makes nobody; what was stored counts once it has one."""
    await switch(email_project, server_side_activation=True)
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    await make_criterion(email_project, named("Viewed", minMatch=2))
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


# --- counted once, and only what counts ------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 500])
async def test_each_event_counts_once(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """U2: however the events are cut into chunks, and whatever is counted anew meanwhile, the fifth is the fifth."""
    monkeypatch.setattr(activating, "CHUNK_EVENTS", chunk)
    criterion_id = await watched(email_project, world, named("Viewed", minMatch=5))
    await view(email_project, "x", 2)
    await world.work_off(email_project.project_id)
    await view(email_project, "x", 2)
    # From here on everything is counted anew, by the first note of the two that wait.
    await email_project.activation.UpdateCriterion(UpdateCriterionRequest(criterion_id=criterion_id, name="renamed"))
    await world.work_off(email_project.project_id)
    await view(email_project, "x", name="Other")
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


@pytest.mark.parametrize("pause", [timedelta(seconds=5), timedelta(hours=1)])
async def test_what_arrived_while_it_was_off_counts(email_project: Client, world: World, pause: timedelta) -> None:
    """U2: events that left no note, because it was off or a server had not heard of it, count with the next one."""
    await watched(email_project, world, named("Viewed", minMatch=4))
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    await switch(email_project, server_side_activation=False)
    await view(email_project, "x")
    await switch(email_project, server_side_activation=True)
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    # A server that does not know yet: its event is there, and its note is not.
    await view(email_project, "x", name="Other")
    await world.fetch(
        "UPDATE anonymous_events SET name = 'Viewed' WHERE project_id = $1 AND name = 'Other' RETURNING 1",
        email_project.project_id,
    )
    await world.fetch("DELETE FROM activation_notes WHERE project_id = $1 RETURNING 1", email_project.project_id)
    await world.pass_time(email_project.project_id, pause)
    await view(email_project, "x", name="Other")
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


async def test_a_visitor_with_a_long_history(email_project: Client, world: World) -> None:
    """U2: of what a visitor did before a worker first looked the newest 1,000 events count, however many there are."""
    await switch(email_project, server_side_activation=False)
    for number, many in enumerate((999, 1_001)):
        events = [NewEvent(anonymous_id=f"v{number}", name="Viewed") for _ in range(many - 1)]
        await email_project.batch(events[:1_000])
        await email_project.batch(events[1_000:])
    await watched(email_project, world, named("Viewed", minMatch=1_000))
    for number in range(2):
        await view(email_project, f"v{number}")
    await world.work_off(email_project.project_id)
    linked = await world.value(
        "SELECT value FROM identifiers WHERE project_id = $1 AND kind = 3", email_project.project_id
    )
    assert linked == "v1"
    assert len(await unknown_profiles(world, email_project)) == 1


async def test_a_crash_counts_nothing(email_project: Client, world: World) -> None:
    """U2, F4: a chunk that is rolled back leaves its notes, and the next one counts them once."""
    await watched(email_project, world, named("Viewed", minMatch=3))
    await view(email_project, "x", 2)

    class CrashError(Exception):
        pass

    [intent_id] = await world.due(email_project.project_id)
    lease = await world.take(email_project.project_id, intent_id)
    assert lease is not None

    async def crashing(connection: Connection) -> None:
        assert await activating.activate_chunk(connection, lease, None)
        raise CrashError

    for _ in range(2):
        with pytest.raises(CrashError):
            await world.database.transact(crashing)
    while await world.chunk(lease) is not None:
        pass
    assert await unknown_profiles(world, email_project) == []
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


async def test_expired_events_count_for_nothing(email_project: Client, world: World) -> None:
    """U2, A2, F34: an event that was counted and has had its 30 days since does not help a newer one to a match."""
    await watched(email_project, world)
    now = await world.now()
    await email_project.track(anonymous_id="x", name="Viewed", event_time=timestamp(now - timedelta(days=29)))
    await email_project.track(anonymous_id="y", name="Viewed", event_time=timestamp(now - timedelta(days=27)))
    await world.work_off(email_project.project_id)
    await world.pass_time(email_project.project_id, timedelta(days=1))
    for visitor in ("x", "y"):
        await view(email_project, visitor)
    await world.work_off(email_project.project_id)
    linked = await world.value(
        "SELECT value FROM identifiers WHERE project_id = $1 AND kind = 3", email_project.project_id
    )
    assert linked == "y"
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 2


async def test_an_event_that_expires_before_it_is_looked_at(email_project: Client, world: World) -> None:
    """U2, A2: the worker that comes too late finds nothing to count."""
    await watched(email_project, world, named("Viewed"))
    await view(email_project, "x")
    await world.pass_time(email_project.project_id, timedelta(days=30))
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    assert await world.open_intents(email_project.project_id) == 0


async def test_an_id_that_is_somebodys_makes_nobody(email_project: Client, world: World) -> None:
    """U2, A4, A5: what arrives under a used-up id after the grace stays anonymous and makes no second profile."""
    await watched(email_project, world)
    await view(email_project, "x")
    await identify(email_project, email("a@example.com"), "x")
    await world.settle(email_project.project_id)
    await world.pass_time(email_project.project_id, timedelta(minutes=6))
    await view(email_project, "x", 3)
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    assert len(await email_project.names(anonymous_id="x")) == 3
    assert await world.open_intents(email_project.project_id) == 0


@pytest.mark.parametrize("settled", [False, True])
async def test_events_given_back_count_again(email_project: Client, world: World, settled: bool) -> None:
    """U2, I19: when the link of an id is undone, everything the visitor did counts with the next event."""
    await watched(email_project, world, named("Viewed", minMatch=3))
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    link = await identify(email_project, email("a@example.com"), "x")
    await view(email_project, "x")
    await world.settle(email_project.project_id)
    await undo(email_project, link.merge_id)
    if settled:
        await world.settle(email_project.project_id)
    else:
        await view(email_project, "x", name="Other")
        await world.work_off(email_project.project_id)
        await world.settle(email_project.project_id)
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    [profile_id] = await unknown_profiles(world, email_project)
    assert len(await email_project.timeline(profile_id=profile_id, names=["Viewed"])) == 3


async def test_a_forgotten_visitor_begins_anew(user_id_project: Client, world: World) -> None:
    """U2, I20, F43: what is being erased of a forgotten visitor counts for nothing when the id is used again."""
    await watched(user_id_project, world)
    profile_id = await activate(world, user_id_project, "canary-x")
    await view(user_id_project, "canary-x")
    who = (await by_id(user_id_project, profile_id)).identifiers
    await user_id_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=user(who.user_id)))
    await view(user_id_project, "canary-x")
    await world.work_off(user_id_project.project_id)
    assert await unknown_profiles(world, user_id_project) == []
    await world.settle(user_id_project.project_id)
    await view(user_id_project, "canary-x")
    await world.work_off(user_id_project.project_id)
    [again] = await unknown_profiles(world, user_id_project)
    assert again != profile_id
    assert await user_id_project.names(profile_id=again) == ["unknownSession", "Viewed", "Viewed"]


async def test_a_forgotten_persons_visit_leaves_no_trace(email_project: Client, world: World) -> None:
    """I20, F43: how near to a profile a person was as a visitor is gone with the person."""
    await watched(email_project, world, named("Viewed", minMatch=9))
    await view(email_project, "canary-x", 2)
    await world.work_off(email_project.project_id)
    assert await count(world, email_project, "activation_visitors") == 1
    await identify(email_project, email("a@example.com"), "canary-x")
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=email("a@example.com")))
    await world.settle(email_project.project_id)
    assert await count(world, email_project, "activation_visitors") == 0
    assert "canary-x" not in str(await rows_of(world, email_project.project_id))


async def test_what_is_known_of_a_visitor_goes_with_the_events(email_project: Client, world: World) -> None:
    """U2, A2: how near to a profile visitors are is kept as long as one of their events can be."""
    await watched(email_project, world, named("Viewed", minMatch=9))
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    await world.pass_time(email_project.project_id, timedelta(days=30))
    await purge(world.database)
    assert await count(world, email_project, "activation_visitors") == 1
    await world.pass_time(email_project.project_id, timedelta(days=1))
    await purge(world.database)
    assert await count(world, email_project, "activation_visitors") == 0


async def test_an_undone_activation_comes_again(email_project: Client, world: World) -> None:
    """U2, I19: the link that a worker made can be undone; the visitor's next event makes it anew."""
    await watched(email_project, world)
    first = await activate(world, email_project, "x")
    [entry] = (await email_project.identity.ListMerges(ListMergesRequest(profile_id=first))).merges
    await undo(email_project, entry.merge_id)
    assert await email_project.names(anonymous_id="x") == ["Viewed", "Viewed"]
    await world.settle(email_project.project_id)
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    [_, second] = await unknown_profiles(world, email_project)
    assert len(await email_project.timeline(profile_id=second, names=["Viewed"])) == 3
    assert await email_project.names(profile_id=first) == ["unknownSession"]


# --- criteria that change --------------------------------------------------------------------------------------------


async def test_a_changed_criterion_applies_to_what_arrives_next(email_project: Client, world: World) -> None:
    """U1, U2: with the next event everything that is stored of the visitor is looked at under the new tree."""
    criterion_id = await watched(email_project, world, named("Bought"))
    for visitor in ("x", "y"):
        await view(email_project, visitor, 2)
    await world.work_off(email_project.project_id)
    request = UpdateCriterionRequest(criterion_id=criterion_id, root=tree(named("Viewed", minMatch=2)))
    await email_project.activation.UpdateCriterion(request)
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    await view(email_project, "x", name="Other")
    await world.work_off(email_project.project_id)
    [profile_id] = await unknown_profiles(world, email_project)
    assert await email_project.names(profile_id=profile_id) == ["unknownSession", "Other", "Viewed", "Viewed"]


@pytest.mark.parametrize("how", ["create", "update"])
async def test_a_criterion_can_be_applied_to_what_is_stored(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """U1, U2: on request workers look at all visitors there are, part by part, and a second one goes on."""
    monkeypatch.setattr(activating, "REVIEW_VISITORS", 2)
    await switch(email_project, server_side_activation=True)
    for number in range(7):
        await view(email_project, f"v{number}", 1 + number % 2)
    await view(email_project, "used", 2)
    await identify(email_project, email("a@example.com"), "used")
    await world.settle(email_project.project_id)
    root = named("Viewed", minMatch=2)
    if how == "create":
        await make_criterion(email_project, root, apply_to_stored_events=True)
    else:
        made = await make_criterion(email_project, named("Bought"))
        request = UpdateCriterionRequest(criterion_id=made.criterion_id, root=tree(root), apply_to_stored_events=True)
        await email_project.activation.UpdateCriterion(request)
    [review_id] = await world.due(email_project.project_id)
    lease = await world.take(email_project.project_id, review_id)
    assert lease is not None
    assert lease.intent.kind is IntentKind.REVIEW
    await world.chunk(lease)
    # That worker is gone; whoever comes next knows nothing of its position.
    await world.pass_time(email_project.project_id, timedelta(seconds=31))
    for _ in range(2):
        await world.work_off(email_project.project_id)
    linked = await world.fetch(
        "SELECT value FROM identifiers WHERE project_id = $1 AND kind = 3", email_project.project_id
    )
    assert {row["value"] for row in linked} == {"v1", "v3", "v5", "used"}
    await world.settle(email_project.project_id)
    assert await world.open_intents(email_project.project_id) == 0
    assert await count(world, email_project, "activation_reviews") == 0


async def test_a_review_does_not_count_twice(email_project: Client, world: World) -> None:
    """U2: a visitor who is looked at because somebody asked, and has notes waiting, is counted once."""
    await watched(email_project, world, named("Viewed", minMatch=3))
    await view(email_project, "x", 2)
    await make_criterion(email_project, named("Bought"), apply_to_stored_events=True)
    # The review first, then the notes of the events, then its own.
    for intent_id in reversed(await world.due(email_project.project_id)):
        lease = await world.take(email_project.project_id, intent_id)
        while lease is not None and await world.chunk(lease) is not None:
            pass
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    await view(email_project, "x")
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


async def test_a_review_of_a_project_that_watches_nobody(email_project: Client, world: World) -> None:
    """U2: asking for a review where workers make no profiles leaves them nothing to do."""
    await view(email_project, "x")
    await make_criterion(email_project, named("Viewed"), apply_to_stored_events=True)
    assert await world.open_intents(email_project.project_id) == 0


async def test_a_deleted_criterion_makes_nobody(email_project: Client, world: World) -> None:
    """U1, U2: events that are looked at after the criterion was deleted match it no more."""
    criterion_id = await watched(email_project, world, named("Viewed"))
    await view(email_project, "x")
    await delete_criterion(email_project, criterion_id)
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []


# --- consent ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["consent", "match"])
async def test_a_visitor_needs_consent_where_it_is_required(email_project: Client, world: World, first: str) -> None:
    """U8, U2: no profile without consent or after it was taken back; with it at once, whichever comes first."""
    await watched(email_project, world)
    await switch(email_project, require_consent=True)
    await consent(email_project, anonymous_id="x")
    await consent(email_project, anonymous_id="x", is_withdrawn=True)
    if first == "consent":
        await consent(email_project, anonymous_id="x")
    await view(email_project, "x", 2)
    await view(email_project, "other", 2)
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == (first == "consent")
    await consent(email_project, anonymous_id="x")
    await world.work_off(email_project.project_id)
    [profile_id] = await unknown_profiles(world, email_project)
    assert len(await email_project.timeline(profile_id=profile_id, names=["Viewed"])) == 2
    await consent(email_project, anonymous_id="other", is_withdrawn=True)
    await view(email_project, "other")
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == [profile_id]


async def test_consent_of_a_visitor_who_did_nothing(email_project: Client, world: World) -> None:
    """U8, U2: consent alone makes nobody, also under a criterion that wants something not to have happened."""
    await watched(email_project, world, group("not", named("Viewed")))
    await switch(email_project, require_consent=True)
    await consent(email_project, anonymous_id="x")
    await world.work_off(email_project.project_id)
    assert await unknown_profiles(world, email_project) == []
    await view(email_project, "x", name="Other")
    await world.work_off(email_project.project_id)
    assert len(await unknown_profiles(world, email_project)) == 1


# --- what a statement saw --------------------------------------------------------------------------------------------


async def test_a_snapshot_is_read_as_postgresql_reads_it(world: World) -> None:
    """U2: whether a transaction was seen is what PostgreSQL itself says of the same snapshot."""
    now = await world.now()
    for text in ("10:10:", "10:20:10,14,19", "5:6:5", "7:9:7"):
        snapshot = Snapshot.of(now, text)
        for number in range(3, 24):
            note = Note("x", now, str(uuid4()), now, number)
            seen = await world.value(
                "SELECT pg_visible_in_snapshot($1::text::xid8, $2::text::pg_snapshot)", str(number), text
            )
            assert snapshot.saw(note) == seen, (text, number)
        later = Note("x", now, "e", now + timedelta(microseconds=1), 3)
        assert not snapshot.saw(later)
