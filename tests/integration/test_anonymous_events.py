"""Events of visitors: whose they are before, at and after Identify, and when they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from conftest import MakeProject
from onefold.callers import IdentifierType, Project, ProjectSettings, Region
from onefold.config import Settings
from onefold.db.pool import SERVER_SETTINGS
from onefold.db.queries import Connection
from onefold.events.ingest import Accepted, ingest
from onefold.events.rules import Arrival, EventKind
from onefold.intents.store import LeaseLostError
from onefold.rpc.payload import EMPTY
from onefold.v1.error_reason_pb2 import ErrorReason
from onefold.v1.event_pb2 import Event, NewEvent
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_ALREADY_LINKED,
    LINK_OUTCOME_LINKED,
    LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE,
    LINK_OUTCOME_SKIPPED,
    GetProfileRequest,
    IdentifyRequest,
    IdentifyResponse,
)
from onefold.v1.profile_pb2 import WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UNSPECIFIED, Identifiers
from onefold.workflows import moving
from support.client import Client, email, timestamp, user
from support.relocation import stages
from support.world import World

A = email("a@example.com")
B = email("b@example.com")


def identify(client: Client, who: Identifiers, anonymous_id: str, **fields: Any) -> Awaitable[IdentifyResponse]:
    """Identify, in short."""
    return client.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id=anonymous_id, **fields))


async def ledger(world: World, client: Client) -> list[dict[str, Any]]:
    """A project's ledger rows, as dictionaries, oldest first."""
    rows = await world.fetch("SELECT * FROM merges WHERE project_id = $1 ORDER BY merge_id", client.project_id)
    return [dict(row) for row in rows]


async def stored(world: World, client: Client, table: str) -> int:
    """How many rows a project has in a table."""
    count: int = await world.value(f"SELECT count(*) FROM {table} WHERE project_id = $1", client.project_id)
    return count


async def whole_picture(client: Client, *people: Identifiers, anonymous_id: str = "x") -> list[list[str]]:
    """The names in the timelines of some people, then those of the visitor; a person who is not there has none."""
    return [await client.names(identifiers=who) for who in people] + [await client.names(anonymous_id=anonymous_id)]


async def age_link(world: World, client: Client, age: timedelta) -> None:
    """Lets pass what is missing until a project's only link is so old by the database's clock."""
    missing = await world.value(
        "SELECT $2::interval - (now() - link_time) FROM identifiers WHERE project_id = $1 AND kind = 3",
        client.project_id,
        age,
    )
    await world.pass_time(client.project_id, missing)


# --- A1, A2: stored, inert, and over after 30 days -------------------------------------------------------------------


async def test_a_visitors_event_is_nobodys(email_project: Client, world: World) -> None:
    """A1: stored under its anonymous_id only; no profile, no identifier and no work come of it."""
    result = await email_project.track(anonymous_id="x", name="Viewed", data_json='{"page":1}')
    assert result.profile_outcome == WRITE_OUTCOME_UNSPECIFIED
    assert result.profile_id == ""
    [event] = await email_project.timeline(anonymous_id="x")
    assert (event.event_id, event.name, event.anonymous_id) == (result.event_id, "Viewed", "x")
    assert (event.profile_id, event.was_anonymous) == ("", False)
    assert await email_project.names(anonymous_id="X") == []
    for table in ("profiles", "identifiers", "events", "merges", "intents"):
        assert await stored(world, email_project, table) == 0


async def test_a_visitors_event_is_hidden_at_30_days(email_project: Client, world: World) -> None:
    """A2, F34: shown until its event_time is 30 days past and hidden from then on, though its row is still there."""
    now = await world.now()
    for name, age in (("old", timedelta(days=29)), ("new", timedelta(days=28)), ("ahead", -timedelta(hours=23))):
        await email_project.track(anonymous_id="x", name=name, event_time=timestamp(now - age))
    await world.pass_time(email_project.project_id, timedelta(hours=23, minutes=59))
    assert await email_project.names(anonymous_id="x") == ["ahead", "new", "old"]
    await world.pass_time(email_project.project_id, timedelta(minutes=1))
    assert await email_project.names(anonymous_id="x") == ["ahead", "new"]
    await world.pass_time(email_project.project_id, timedelta(days=1))
    assert await email_project.names(anonymous_id="x") == ["ahead"]
    await world.pass_time(email_project.project_id, timedelta(days=29))
    assert await email_project.names(anonymous_id="x") == []
    assert await stored(world, email_project, "anonymous_events") == 3


async def test_what_was_over_before_the_link_is_nobodys_for_good(email_project: Client, world: World) -> None:
    """A2, F34, F44: exactly 30 days before the link is over, a microsecond less is not, for reads and worker."""
    for name in ("over", "alive"):
        await email_project.track(anonymous_id="x", name=name)
    await identify(email_project, A, "x")

    async def age(connection: Connection) -> None:
        await connection.execute(
            "UPDATE anonymous_events SET event_time = (SELECT create_time - interval '30 days' FROM merges "
            "WHERE project_id = $1) + CASE name WHEN 'alive' THEN interval '1 microsecond' ELSE interval '0' END "
            "WHERE project_id = $1",
            email_project.project_id,
        )

    await world.database.transact(age)
    async for _ in stages(world, email_project.project_id):
        assert await whole_picture(email_project, A) == [["alive"], []]
    assert [entry["moved_event_count"] for entry in await ledger(world, email_project)] == [1]
    assert await stored(world, email_project, "anonymous_events") == 1


async def test_a_late_worker_takes_nothing_away(email_project: Client, world: World) -> None:
    """A3, F44: an event that was alive when its id was linked stays the person's, also when the worker is days late."""
    now = await world.now()
    await email_project.track(anonymous_id="x", name="old", event_time=timestamp(now - timedelta(days=29)))
    await email_project.track(anonymous_id="x", name="new")
    await identify(email_project, A, "x")
    for _ in range(3):
        await world.pass_time(email_project.project_id, timedelta(days=15))
        assert await whole_picture(email_project, A) == [["new", "old"], []]
    async for _ in stages(world, email_project.project_id):
        assert await whole_picture(email_project, A) == [["new", "old"], []]
    assert await stored(world, email_project, "anonymous_events") == 0


async def test_an_expired_event_is_not_revived_by_identify(email_project: Client, world: World) -> None:
    """A2, F44: Identify after the 30 days brings nothing back."""
    await email_project.track(anonymous_id="x", name="old")
    await world.pass_time(email_project.project_id, timedelta(days=30))
    await identify(email_project, A, "x")
    async for _ in stages(world, email_project.project_id):
        assert await whole_picture(email_project, A) == [[], []]
    assert [entry["moved_event_count"] for entry in await ledger(world, email_project)] == [0]


@pytest.mark.parametrize("linked", [False, True])
async def test_an_event_that_is_over_on_arrival_is_refused(email_project: Client, world: World, linked: bool) -> None:
    """A2: an anonymous event of 30 days or more is refused, also within a link's grace; a younger one is taken."""
    if linked:
        await identify(email_project, A, "x")
    limit = await world.now() - timedelta(days=30)
    over = NewEvent(anonymous_id="x", name="over", event_time=timestamp(limit))
    alive = NewEvent(anonymous_id="x", name="alive", event_time=timestamp(limit + timedelta(minutes=1)))
    refused, taken = await email_project.batch([over, alive])
    assert refused.error.reason == ErrorReason.ERROR_REASON_EVENT_EXPIRED
    assert taken.result.event_id
    subject: dict[str, Any] = {"identifiers": A} if linked else {"anonymous_id": "x"}
    assert await email_project.names(**subject) == ["alive"]


# --- A3, A4, A5, A6, A8: whose an event is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier_type", "who"),
    [("EMAIL", A), ("USER_ID", user("u1")), ("HYBRID", A), ("HYBRID", user("u1"))],
    ids=["EMAIL", "USER_ID", "HYBRID by email", "HYBRID by user_id"],
)
async def test_a_link_holds_at_every_stage(
    make_project: MakeProject,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    identifier_type: str,
    who: Identifiers,
) -> None:
    """A3, A8: what came before the call and within the grace is the person's after every chunk, marked and complete."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    client = await make_project(identifier_type)
    now = await world.now()
    for number in range(5):
        event_time = timestamp(now - timedelta(days=number))
        await client.track(
            anonymous_id="x", name=f"before {number}", event_time=event_time, data_json=f'{{"n":{number}}}'
        )
    await client.track(anonymous_id="y", name="another visitor's")
    answer = await identify(client, who, "x")
    assert answer.link.outcome == LINK_OUTCOME_LINKED
    grace = answer.link.grace_end_time.ToDatetime() - answer.link.link_time.ToDatetime()
    assert grace == timedelta(minutes=5)
    late = await client.track(anonymous_id="x", name="late", event_time=timestamp(now - timedelta(days=1, hours=12)))
    assert late.profile_id == answer.profile.profile_id

    first: list[Event] = []
    count = 0
    async for _ in stages(world, client.project_id):
        events = await client.timeline(identifiers=who)
        assert [event.name for event in events] == ["before 0", "before 1", "late", "before 2", "before 3", "before 4"]
        assert {event.profile_id for event in events} == {answer.profile.profile_id}
        assert all(event.was_anonymous and event.anonymous_id == "x" for event in events)
        assert events == (first := first or events)
        assert await client.timeline(profile_id=answer.profile.profile_id) == events
        assert await client.names(anonymous_id="x") == []
        assert await client.names(anonymous_id="y") == ["another visitor's"]
        count += 1
    assert count > 4
    assert await stored(world, client, "anonymous_events") == 1
    assert await stored(world, client, "events") == 6


@pytest.mark.parametrize("worked_off", [False, True])
async def test_the_edges_of_the_grace(email_project: Client, world: World, worked_off: bool) -> None:
    """A3, A5, F33: received 4:59 after the link it is the person's, 5:01 after it stays anonymous until it expires."""
    project_id = email_project.project_id
    await identify(email_project, A, "x")
    if worked_off:
        await world.settle(project_id)
    await age_link(world, email_project, timedelta(minutes=4, seconds=59))
    within = await email_project.track(anonymous_id="x", name="4:59")
    assert within.profile_id
    assert await whole_picture(email_project, A) == [["4:59"], []]
    await age_link(world, email_project, timedelta(minutes=5, seconds=1))
    after = await email_project.track(anonymous_id="x", name="5:01")
    assert after.profile_id == ""
    assert after.profile_outcome == WRITE_OUTCOME_UNSPECIFIED
    async for _ in stages(world, project_id):
        assert await whole_picture(email_project, A) == [["4:59"], ["5:01"]]
    await world.pass_time(project_id, timedelta(days=30))
    assert await whole_picture(email_project, A) == [["4:59"], []]


async def test_an_old_time_does_not_bring_an_event_into_the_grace(email_project: Client, world: World) -> None:
    """A5: the receive time decides, by the database's clock; an event_time before the link does not help."""
    before = timestamp(await world.now())
    await identify(email_project, A, "x")
    await world.pass_time(email_project.project_id, timedelta(minutes=6))
    await email_project.track(anonymous_id="x", name="told late", event_time=before)
    await world.settle(email_project.project_id)
    assert await whole_picture(email_project, A) == [[], ["told late"]]


async def test_linking_again_changes_nothing(email_project: Client, world: World) -> None:
    """A4: the same person again is ALREADY_LINKED; the grace keeps its end, and what came after it stays anonymous."""
    first = await identify(email_project, A, "x")
    await world.pass_time(email_project.project_id, timedelta(minutes=6))
    await email_project.track(anonymous_id="x", name="after the grace")
    again = await identify(email_project, A, "x")
    assert again.link.outcome == LINK_OUTCOME_ALREADY_LINKED
    assert again.link.merge_id == first.link.merge_id
    passed = first.link.grace_end_time.ToDatetime() - again.link.grace_end_time.ToDatetime()
    assert passed == timedelta(minutes=6)
    await email_project.track(anonymous_id="x", name="later still")
    async for _ in stages(world, email_project.project_id):
        assert await whole_picture(email_project, A) == [[], ["later still", "after the grace"]]
    assert len(await ledger(world, email_project)) == 1


@pytest.mark.parametrize("minutes", [0, 6])
@pytest.mark.parametrize("worked_off", [False, True])
async def test_an_id_of_another_person_is_refused(
    email_project: Client, world: World, minutes: int, worked_off: bool
) -> None:
    """A4: Identify(B) writes B's profile, says REFUSED without naming A, and moves nothing, whenever it comes."""
    await email_project.track(anonymous_id="x", name="A's")
    first = await identify(email_project, A, "x")
    if worked_off:
        await world.settle(email_project.project_id)
    await world.pass_time(email_project.project_id, timedelta(minutes=minutes))
    refused = await identify(email_project, B, "x", data_fields_json='{"plan":"gold"}')
    assert refused.link.outcome == LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE
    assert refused.profile.outcome == WRITE_OUTCOME_CREATED
    profile = await email_project.identity.GetProfile(GetProfileRequest(identifiers=B))
    assert profile.profile.data_fields["plan"] == "gold"
    told = str(refused)
    assert not [word for word in ("a@example.com", first.profile.profile_id, first.link.merge_id) if word in told]
    assert not refused.link.HasField("link_time")
    assert not refused.link.HasField("grace_end_time")
    await world.settle(email_project.project_id)
    assert await whole_picture(email_project, A, B) == [["A's"], [], []]


async def test_a_person_may_collect_many_ids(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A4, A7: each id of a person brings its own events and its own ledger entry."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 1)
    ids = ["x1", "x2", "x3"]
    for anonymous_id in ids:
        for number in range(2):
            await email_project.track(anonymous_id=anonymous_id, name=f"{anonymous_id} {number}")
    for anonymous_id in ids:
        assert (await identify(email_project, A, anonymous_id)).link.outcome == LINK_OUTCOME_LINKED
    expected = [f"{anonymous_id} {number}" for anonymous_id in reversed(ids) for number in (1, 0)]
    async for _ in stages(world, email_project.project_id):
        assert await email_project.names(identifiers=A) == expected
    assert [(entry["anonymous_id"], entry["moved_event_count"]) for entry in await ledger(world, email_project)] == [
        (anonymous_id, 2) for anonymous_id in ids
    ]


@pytest.mark.parametrize("order", ["event first", "link first"])
async def test_an_event_with_a_person_is_the_persons(email_project: Client, world: World, order: str) -> None:
    """A6: with a known person and an anonymous_id it is the person's, whoever the id is or becomes linked to."""
    await identify(email_project, B, "y")
    if order == "link first":
        await identify(email_project, A, "x")
    result = await email_project.track(identifiers=B, anonymous_id="x", name="B's")
    if order == "event first":
        await identify(email_project, A, "x")
    async for _ in stages(world, email_project.project_id):
        assert await whole_picture(email_project, A, B) == [[], ["B's"], []]
    [event] = await email_project.timeline(identifiers=B)
    assert (event.event_id, event.anonymous_id, event.was_anonymous) == (result.event_id, "x", False)


async def test_what_is_skipped_is_not_linked(email_project: Client, world: World) -> None:
    """A3, I14: Identify that must not create leaves the id free, and the next one links it with all its events."""
    await email_project.track(anonymous_id="x", name="Viewed")
    skipped = await identify(email_project, A, "x", update_existing_only=True)
    assert skipped.link.outcome == LINK_OUTCOME_SKIPPED
    assert await email_project.names(anonymous_id="x") == ["Viewed"]
    assert await stored(world, email_project, "intents") == 0
    assert (await identify(email_project, B, "x")).link.outcome == LINK_OUTCOME_LINKED
    assert await email_project.names(identifiers=B) == ["Viewed"]


async def test_ids_of_two_projects_do_not_meet(email_project: Client, user_id_project: Client, world: World) -> None:
    """A3, P6: the same anonymous_id in another project is another visitor."""
    await email_project.track(anonymous_id="x", name="here")
    await user_id_project.track(anonymous_id="x", name="there")
    await identify(email_project, A, "x")
    await world.settle(email_project.project_id)
    assert await email_project.names(identifiers=A) == ["here"]
    assert await user_id_project.names(anonymous_id="x") == ["there"]
    assert (await identify(user_id_project, user("u1"), "x")).link.outcome == LINK_OUTCOME_LINKED
    assert await user_id_project.names(identifiers=user("u1")) == ["there"]


# --- A7: the ledger --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("oldest_is_late", [False, True])
@pytest.mark.parametrize("late_before_work", [False, True])
async def test_the_ledger_counts_moved_and_late_events(
    email_project: Client,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    oldest_is_late: bool,
    late_before_work: bool,
) -> None:
    """A7: one entry, with the id, the number of events with those of the grace, and the time of the oldest of both."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    now = await world.now()
    ages = {"moved": timedelta(days=2), "late": timedelta(days=3 if oldest_is_late else 1)}
    for age in (ages["moved"], timedelta(hours=1), timedelta(0)):
        await email_project.track(anonymous_id="x", name="moved", event_time=timestamp(now - age))
    await email_project.track(
        identifiers=email("c@example.com"), name="Bought", kind=EventKind.PURCHASE, anonymous_id="x"
    )
    await identify(email_project, A, "x")

    async def tell_late() -> None:
        late = [
            NewEvent(anonymous_id="x", name="late", event_id=f"l{number}", event_time=timestamp(now - age))
            for number, age in enumerate((ages["late"], timedelta(minutes=1)))
        ]
        await email_project.batch(late)
        # Told again they are duplicates, and a person's own event is no late one: neither counts.
        await email_project.batch([*late, NewEvent(identifiers=A, anonymous_id="x", name="own")])

    if late_before_work:
        await tell_late()
    async for _ in stages(world, email_project.project_id):
        pass
    if not late_before_work:
        await tell_late()
    [entry] = await ledger(world, email_project)
    assert (entry["kind"], entry["anonymous_id"]) == ("ASSOCIATION", "x")
    assert entry["moved_event_count"] + entry["late_event_count"] == 5
    assert entry["late_event_count"] == 2
    oldest = min(entry["moved_oldest_event_time"], entry["late_oldest_event_time"])
    assert oldest == now - max(ages.values())
    assert entry["settle_time"] is not None


async def test_the_ledger_does_not_count_what_is_not_associated(email_project: Client, world: World) -> None:
    """A5, A7: an association of nothing has an entry too, and events after the grace are not counted in it."""
    await identify(email_project, A, "x")
    await world.settle(email_project.project_id)
    await world.pass_time(email_project.project_id, timedelta(minutes=6))
    await email_project.track(anonymous_id="x", name="after the grace")
    [entry] = await ledger(world, email_project)
    assert (entry["moved_event_count"], entry["late_event_count"]) == (0, 0)
    assert (entry["moved_oldest_event_time"], entry["late_oldest_event_time"]) == (None, None)


# --- races -----------------------------------------------------------------------------------------------------------

ROUNDS = 12


async def test_two_people_and_one_id(email_project: Client, world: World) -> None:
    """F30, A4: of two calls together one links, the other is refused with its profile written; never two owners."""
    for round_number in range(ROUNDS):
        x = f"x{round_number}"
        people = [email(f"{name}{round_number}@example.com") for name in "ab"]
        await email_project.batch([NewEvent(anonymous_id=x, name=f"{x} {number}") for number in range(3)])
        answers = await asyncio.gather(
            *(identify(email_project, who, x, data_fields_json='{"told":true}') for who in people)
        )
        outcomes = [answer.link.outcome for answer in answers]
        assert sorted(outcomes) == [LINK_OUTCOME_LINKED, LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE]
        for who in people:
            profile = await email_project.identity.GetProfile(GetProfileRequest(identifiers=who))
            assert profile.profile.data_fields["told"] is True
        expected = [[f"{x} 2", f"{x} 1", f"{x} 0"] if outcome == LINK_OUTCOME_LINKED else [] for outcome in outcomes]
        for _ in range(2):
            assert await whole_picture(email_project, *people, anonymous_id=x) == [*expected, []]
            await world.settle(email_project.project_id)
    assert len(await ledger(world, email_project)) == ROUNDS


@pytest.mark.parametrize("request_id", ["", "r"])
async def test_the_same_call_twice_together(email_project: Client, world: World, request_id: str) -> None:
    """F31, A7, X1: twice together or as a retry there is one link and one ledger entry; a retry is told so."""
    for round_number in range(ROUNDS):
        x = f"x{round_number}"
        await email_project.track(anonymous_id=x, name="Viewed")
        fields = {"request_id": f"{request_id}{round_number}"} if request_id else {}
        answers = await asyncio.gather(*(identify(email_project, A, x, **fields) for _ in range(3)))
        answers.append(await identify(email_project, A, x, **fields))
        outcomes = sorted(answer.link.outcome for answer in answers)
        if request_id:
            assert outcomes == [LINK_OUTCOME_LINKED] * 4
            assert sorted(answer.replayed for answer in answers) == [False, True, True, True]
        else:
            assert outcomes == [LINK_OUTCOME_LINKED] + [LINK_OUTCOME_ALREADY_LINKED] * 3
        assert len({answer.link.SerializeToString() for answer in answers}) == (1 if request_id else 2)
        assert len({answer.link.merge_id for answer in answers}) == 1
        assert len(await email_project.names(identifiers=A)) == round_number + 1
    assert len(await ledger(world, email_project)) == ROUNDS
    assert await stored(world, email_project, "intents") == ROUNDS


async def test_events_in_flight_across_a_link(email_project: Client, world: World) -> None:
    """F32: told together with Identify, alone or in bulk, an event is the person's once both returned, just once."""
    for round_number in range(ROUNDS):
        x, who = f"x{round_number}", email(f"p{round_number}@example.com")
        tracks = [email_project.track(anonymous_id=x, name=f"single {number}") for number in range(4)]
        batch = email_project.batch([NewEvent(anonymous_id=x, name=f"bulk {number}") for number in range(4)])
        await asyncio.gather(*tracks[:2], identify(email_project, who, x), batch, *tracks[2:])
        for _ in range(2):
            person, visitor = await whole_picture(email_project, who, anonymous_id=x)
            assert sorted(person) == [f"bulk {number}" for number in range(4)] + [
                f"single {number}" for number in range(4)
            ]
            assert visitor == []
            await world.settle(email_project.project_id)
        entry = (await ledger(world, email_project))[-1]
        assert entry["moved_event_count"] + entry["late_event_count"] == 8
    assert await stored(world, email_project, "anonymous_events") == 0
    assert await stored(world, email_project, "events") == 8 * ROUNDS


async def test_a_straggler_committed_behind_the_first_pass(
    email_project: Client, world: World, settings: Settings
) -> None:
    """F32: an event whose transaction began before the link and ended after a pass had looked is the person's too."""
    now = await world.now()
    project = Project(email_project.project_id, IdentifierType.EMAIL, Region.US, ProjectSettings(), now, now)
    arrival = Arrival(None, "x", "in flight", EventKind.CUSTOM, EMPTY, None, None)
    straggler = await asyncpg.connect(settings.database_url, server_settings=SERVER_SETTINGS)
    try:
        transaction = straggler.transaction()
        await transaction.start()
        [accepted] = await ingest(straggler, project, [arrival])
        assert isinstance(accepted, Accepted)
        await identify(email_project, A, "x")
        await world.work_off(email_project.project_id)
        assert await whole_picture(email_project, A) == [[], []]
        await transaction.commit()
    finally:
        await straggler.close()
    assert accepted.profile_id is None
    assert await world.open_intents(email_project.project_id) == 1
    async for _ in stages(world, email_project.project_id):
        assert await whole_picture(email_project, A) == [["in flight"], []]
    assert await stored(world, email_project, "anonymous_events") == 0
    [entry] = await ledger(world, email_project)
    assert entry["moved_event_count"] == 1


async def test_a_lost_lease_moves_nothing_twice(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A3, F5: a chunk under a lease that another worker took since is rolled back whole; that one moves each once."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    await email_project.batch([NewEvent(anonymous_id="x", name=f"{number}") for number in range(5)])
    await identify(email_project, A, "x")
    expected = [["4", "3", "2", "1", "0"], []]
    [intent_id] = await world.due(email_project.project_id)
    frozen = await world.take(email_project.project_id, intent_id)
    assert frozen is not None
    position = await world.chunk(frozen)
    await world.pass_time(email_project.project_id, timedelta(seconds=31))
    other = await world.take(email_project.project_id, intent_id)
    assert other is not None
    with pytest.raises(LeaseLostError):
        await world.chunk(frozen, position)
    assert await whole_picture(email_project, A) == expected
    position = await world.chunk(other)
    assert await whole_picture(email_project, A) == expected
    while position is not None:
        position = await world.chunk(other, position)
    await world.settle(email_project.project_id)
    assert await whole_picture(email_project, A) == expected
    [entry] = await ledger(world, email_project)
    assert entry["moved_event_count"] == 5
