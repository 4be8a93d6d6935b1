"""Invites: events sent to an address that need not be anybody's. Where they are kept, how long, and who sees them."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta
from typing import Any

import grpc
import orjson
import pytest
from google.protobuf.struct_pb2 import Struct
from google.rpc.code_pb2 import Code

from conftest import MakeProject
from onefold.config import Settings
from onefold.rpc.payload import write_struct
from onefold.v1.error_reason_pb2 import ERROR_REASON_EVENT_ID_REUSED, ERROR_REASON_FORGOTTEN
from onefold.v1.event_pb2 import EVENT_KIND_PAGE, EVENT_KIND_PURCHASE, NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, ListEventsRequest, TrackRequest
from onefold.v1.identity_service_pb2 import (
    DeleteProfileRequest,
    ForgetProfileRequest,
    IdentifyRequest,
    MergeProfilesRequest,
    UndoMergeRequest,
    UnforgetProfileRequest,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import WRITE_OUTCOME_UNSPECIFIED, Identifiers
from support.client import Client, Failure, email, failure, read_failure, timestamp, user
from support.holding import held, until_waiting
from support.traces import rows_of, tables_with
from support.world import World

TYPES = ["EMAIL", "USER_ID", "HYBRID"]
# Where an email identifies, so that it can be forgotten.
BY_EMAIL = ["EMAIL", "HYBRID"]
GUEST = "guest-1@example.com"
FORGOTTEN = (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")


@pytest.fixture
def canary() -> str:
    """A word that stands nowhere else in the database."""
    return f"canary{secrets.token_hex(8)}"


def invite(
    recipient: str = GUEST, name: str = "Invited", *, data: dict[str, Any] | None = None, **fields: Any
) -> NewEvent:
    """An event that nobody did, sent to an address."""
    text = orjson.dumps({"recipient": recipient, **(data or {})}).decode()
    return NewEvent(name=name, data_json=text, **fields)


async def put(c: Client, **names: str) -> None:
    """Makes a profile."""
    await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=Identifiers(**names)))


async def count(world: World, c: Client, table: str) -> int:
    """How many rows a project has in a table."""
    rows: int = await world.value(f"SELECT count(*) FROM {table} WHERE project_id = $1", c.project_id)
    return rows


async def told(call: Any) -> Any:
    """The answer of a call, or its failure."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return read_failure(error)


# --- E6: what an invite is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("project_type", TYPES)
@pytest.mark.parametrize("how", ["Track", "Track with request_id", "BatchTrack"])
async def test_an_invite_is_stored_and_creates_nobody(
    make_project: MakeProject, world: World, project_type: str, how: str
) -> None:
    """E6: an event of nobody with an email in data.recipient is kept under that address, in any project, and creates
    no profile, also when it is of a kind that would."""
    c = await make_project(project_type)
    events = [invite("Guest-1@Example.COM", "1"), invite(name="2", kind=EVENT_KIND_PURCHASE, data={"a": 1})]
    if how == "BatchTrack":
        results = [each.result for each in await c.batch(events)]
    else:
        request_ids = ["r1", "r2"] if how == "Track with request_id" else ["", ""]
        requests = [TrackRequest(event=event, request_id=each) for event, each in zip(events, request_ids, strict=True)]
        results = [(await c.events.Track(request)).result for request in requests]
    for result in results:
        assert (result.profile_outcome, result.profile_id, result.duplicate) == (WRITE_OUTCOME_UNSPECIFIED, "", False)
    listed = await c.timeline(recipient="guest-1@EXAMPLE.com")
    assert [(event.name, event.recipient, event.event_id) for event in listed] == [
        ("2", GUEST, results[1].event_id),
        ("1", GUEST, results[0].event_id),
    ]
    # The data is as it was told, and the event belongs to nobody.
    assert [event.data["recipient"] for event in listed] == [GUEST, "Guest-1@Example.COM"]
    assert not [event for event in listed if event.profile_id or event.anonymous_id or event.was_anonymous]
    tables = ("profiles", "identifiers", "events", "anonymous_events", "invite_events")
    assert [await count(world, c, table) for table in tables] == [0, 0, 0, 0, 2]


async def test_the_address_in_a_struct(email_project: Client) -> None:
    """E6: the recipient is found in data told as a Struct, too."""
    data = Struct()
    write_struct(data, {"recipient": GUEST})
    await email_project.track(name="Invited", data=data)
    assert await email_project.names(recipient=GUEST) == ["Invited"]


async def test_whoever_has_the_address_gets_nothing_of_it(email_project: Client) -> None:
    """E6: an invite belongs to nobody, also where its recipient has a profile; and a person's or a visitor's event
    with a recipient in its data is no invite."""
    await put(email_project, email=GUEST)
    await email_project.batch(
        [
            invite(name="invite"),
            invite(name="person's", identifiers=email(GUEST)),
            invite(name="visitor's", anonymous_id="x"),
            invite(name="both's", identifiers=email(GUEST), anonymous_id="x"),
        ]
    )
    assert await email_project.names(identifiers=email(GUEST)) == ["both's", "person's"]
    assert await email_project.names(anonymous_id="x") == ["visitor's"]
    [event] = await email_project.timeline(recipient=GUEST)
    assert (event.name, event.profile_id) == ("invite", "")


async def test_an_old_invite_is_a_backfill(email_project: Client, world: World) -> None:
    """E6, E5, A2: an invite is nobody's but no visitor's: the 30 days do not apply to it, on arrival or later."""
    moment = timestamp(await world.now() - timedelta(days=60))
    await email_project.batch([invite(event_time=moment)])
    [event] = await email_project.timeline(recipient=GUEST)
    assert event.backfilled
    assert event.event_time == moment


@pytest.mark.parametrize("page_size", [2, 500])
async def test_reading_invites(email_project: Client, world: World, page_size: int) -> None:
    """E6, E8: invites of one address are listed newest first, each once over the pages, with all filters."""
    now = await world.now()
    events = [
        invite(name="ab"[n % 2], event_id=f"e{n}", kind=EVENT_KIND_PAGE if n < 3 else 0, event_time=moment)
        for n, moment in enumerate(timestamp(now - timedelta(hours=10 - n // 2)) for n in range(7))
    ]
    await email_project.batch([*reversed(events), invite("other@example.com")])
    wanted: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [6, 5, 4, 3, 2, 1, 0]),
        ({"names": ["a"]}, [6, 4, 2, 0]),
        ({"kinds": [EVENT_KIND_PAGE]}, [2, 1, 0]),
        ({"start_time": events[2].event_time, "end_time": events[6].event_time}, [5, 4, 3, 2]),
    ]
    for filters, expected in wanted:
        listed = await email_project.timeline(page_size, recipient=GUEST, **filters)
        assert [event.event_id for event in listed] == [f"e{n}" for n in expected], filters
    for bad in ("", "guest", "guest\0@example.com"):
        refused = await failure(email_project.events.ListEvents(ListEventsRequest(recipient=bad)))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["recipient"])


async def test_an_invite_told_again(email_project: Client, user_id_project: Client, world: World) -> None:
    """E3, E6, F60 to F62, F61: an invite's event_id dedupes like any other, within its project."""
    first = (await email_project.events.Track(TrackRequest(event=invite(event_id="e1")))).result
    before = await rows_of(world, email_project.project_id)
    again = await email_project.batch([invite(event_id="e1"), invite("other@example.com", event_id="e1")])
    assert again[0].result.duplicate
    assert again[0].result.receive_time == first.receive_time
    assert again[1].error.reason == ERROR_REASON_EVENT_ID_REUSED
    # Case in the address makes another body, as it does in any data.
    [refused] = await email_project.batch([invite(GUEST.upper(), event_id="e1")])
    assert refused.error.code == Code.ALREADY_EXISTS
    assert await rows_of(world, email_project.project_id) == before
    [elsewhere] = await user_id_project.batch([invite(event_id="e1")])
    assert not elsewhere.result.duplicate


async def test_an_id_used_again_after_its_35_days(email_project: Client, world: World) -> None:
    """E3, E6, X3: an id that is forgotten by now may name another invite, but none of the same address and moment."""
    moment = await world.now() - timedelta(days=1)
    await email_project.batch([invite(name="first", event_id="e1", event_time=timestamp(moment))])
    await world.pass_time(email_project.project_id, timedelta(days=36))
    same = timestamp(moment - timedelta(days=36))
    [refused] = await email_project.batch([invite(name="lost?", event_id="e1", event_time=same)])
    assert refused.error.reason == ERROR_REASON_EVENT_ID_REUSED
    await email_project.batch([invite(name="third", event_id="e2", event_time=same)])
    assert sorted(await email_project.names(recipient=GUEST)) == ["first", "third"]


# --- I20: forgetting --------------------------------------------------------------------------------------------------


async def forget(c: Client, identifiers: Identifiers) -> None:
    await c.identity.ForgetProfile(ForgetProfileRequest(identifiers=identifiers))


@pytest.mark.parametrize("existed", [True, False], ids=["somebody", "nobody"])
@pytest.mark.parametrize("project_type", BY_EMAIL)
async def test_a_forgotten_recipient(
    make_project: MakeProject, world: World, capfd: pytest.CaptureFixture[str], project_type: str, existed: bool
) -> None:
    """E6, I20, F42: an invite to a forgotten address is refused FORGOTTEN, alone and per item; nothing is stored, and
    nothing logged; the others of its batch are stored."""
    c = await make_project(project_type)
    if existed:
        await put(c, email=GUEST)
    await forget(c, email(GUEST))
    for _ in range(2):
        before = await rows_of(world, c.project_id)
        for request_id in ("", "r1"):
            event = invite(GUEST.upper(), event_id="e1")
            refused = await failure(c.events.Track(TrackRequest(event=event, request_id=request_id)))
            assert (refused.code, refused.reason) == FORGOTTEN
            assert "example.com" not in refused.message
        [item] = await c.batch([invite(event_id="e1")])
        assert item.error.reason == ERROR_REASON_FORGOTTEN
        assert await rows_of(world, c.project_id) == before
        await world.settle(c.project_id)
    results = await c.batch([invite(), invite("other@example.com")])
    assert [result.HasField("error") for result in results] == [True, False]
    assert GUEST not in "".join(capfd.readouterr()).lower()


async def test_where_email_names_nobody_it_is_not_blocked(user_id_project: Client) -> None:
    """E6, P3: in a USER_ID project people are forgotten by user_id; their address may be invited again."""
    await put(user_id_project, user_id="u1", email=GUEST)
    await forget(user_id_project, user("u1"))
    await user_id_project.batch([invite()])
    assert await user_id_project.names(recipient=GUEST) == ["Invited"]


@pytest.mark.parametrize("by", ["somebody", "nobody", "a merge's name"])
@pytest.mark.parametrize("project_type", BY_EMAIL)
async def test_invites_of_the_forgotten_go(
    make_project: MakeProject, world: World, canary: str, project_type: str, by: str
) -> None:
    """I20, E6, F43: forgetting takes the invites sent to the address out of every read at once, and after two passes no
    table holds a byte of them; those to others stay."""
    c = await make_project(project_type)
    address, other = f"{canary}@example.com", f"{canary}-2@example.com"
    forgotten = [address]
    if by != "nobody":
        await put(c, email=address)
    if by == "a merge's name":
        await put(c, email=other)
        await c.identity.MergeProfiles(
            MergeProfilesRequest(source=email(other), target=email(address), allow_known_source=True)
        )
        forgotten.append(other)
    for each in forgotten:
        events = [invite(each, canary, event_id=f"{each}-{n}", data={canary: canary}) for n in range(3)]
        await c.events.BatchTrack(BatchTrackRequest(events=events, request_id=f"{each}-r"))
    await c.batch([invite(name="stays", event_id="stays")])
    assert await tables_with(world, canary) >= {"invite_events", "event_ids", "requests"}
    await forget(c, email(address))
    for work in (None, world.work_off, world.settle):
        if work is not None:
            await work(c.project_id)
        for each in forgotten:
            assert await c.names(recipient=each) == []
        assert await c.names(recipient=GUEST) == ["stays"]
    assert await world.open_intents(c.project_id) == 0
    assert await tables_with(world, canary) == set()
    assert await world.value("SELECT count(*) FROM moves WHERE project_id = $1", c.project_id) == 0


@pytest.mark.parametrize("stage", ["before it is written", "after it is written"])
async def test_an_invite_in_flight_across_the_forget(
    email_project: Client, settings: Settings, world: World, canary: str, stage: str
) -> None:
    """F43, F42: an invite that began before its address was forgotten and ends after is refused, or is in no read and
    goes with the second pass."""
    c = email_project
    address = f"{canary}@example.com"
    blocker = {
        "before it is written": "INSERT INTO event_ids (project_id, event_id, body_hash, receive_time) "
        "VALUES ($1, $2, '', now())",
        "after it is written": "INSERT INTO requests (project_id, request_id, body_hash, answer) "
        "VALUES ($1, $2, '', '')",
    }
    async with held(settings, blocker[stage], c.project_id, canary):
        event = invite(address, canary, event_id=canary, data={canary: 1})
        tracking = asyncio.create_task(told(c.events.Track(TrackRequest(event=event, request_id=canary))))
        await until_waiting(world, 1)
        await forget(c, email(address))
    answer = await tracking
    if stage == "before it is written":
        assert isinstance(answer, Failure)
        assert (answer.code, answer.reason) == FORGOTTEN
    else:
        assert not answer.replayed
    for work in (world.work_off, world.settle):
        assert await c.names(recipient=address) == []
        await work(c.project_id)
    assert await tables_with(world, canary) == set()


@pytest.mark.parametrize("worked", [False, True], ids=["before any pass", "after the first pass"])
async def test_unforget_lets_new_invites_stay(email_project: Client, world: World, worked: bool) -> None:
    """I20, E6: an address that was let go gets invites again, though the old ones are still being erased."""
    c = email_project
    await c.batch([invite(name="old")])
    await forget(c, email(GUEST))
    if worked:
        await world.work_off(c.project_id)
    await c.identity.UnforgetProfile(UnforgetProfileRequest(identifiers=email(GUEST)))
    await c.batch([invite(name="new")])
    for work in (world.work_off, world.settle):
        assert await c.names(recipient=GUEST) == ["new"]
        await work(c.project_id)
    assert await c.names(recipient=GUEST) == ["new"]
    assert await world.value("SELECT array_agg(name) FROM invite_events WHERE project_id = $1", c.project_id) == ["new"]


@pytest.mark.parametrize("project_type", TYPES)
async def test_deleting_erases_what_was_sent_until_then(
    make_project: MakeProject, world: World, project_type: str
) -> None:
    """I20, E6: DeleteProfile takes the invites along that were sent until then, and does not keep later ones away."""
    c = await make_project(project_type)
    names = {"email": GUEST} if project_type == "EMAIL" else {"email": GUEST, "user_id": "u1"}
    await put(c, **names)
    await c.batch([invite(name="old")])
    await c.identity.DeleteProfile(DeleteProfileRequest(identifiers=Identifiers(**names)))
    await c.batch([invite(name="new")])
    for work in (world.work_off, world.settle):
        assert await c.names(recipient=GUEST) == ["new"]
        await work(c.project_id)
    assert await world.value("SELECT array_agg(name) FROM invite_events WHERE project_id = $1", c.project_id) == ["new"]


async def test_a_shared_address_keeps_its_invites(user_id_project: Client, world: World) -> None:
    """I20, P2: where several people share an email, forgetting one of them leaves what was sent to the others."""
    c = user_id_project
    for user_id in ("u1", "u2"):
        await put(c, user_id=user_id, email=GUEST)
    await c.batch([invite()])
    await forget(c, user("u1"))
    await world.settle(c.project_id)
    assert await c.names(recipient=GUEST) == ["Invited"]
    await forget(c, user("u2"))
    assert await c.names(recipient=GUEST) == []
    await world.settle(c.project_id)
    assert await count(world, c, "invite_events") == 0


async def test_a_request_of_a_forgotten_recipient_is_not_replayed(email_project: Client) -> None:
    """F42, X1: the answer that was stored for an invite goes with its address; sent again, it is refused."""
    request = TrackRequest(event=invite(), request_id="r1")
    await email_project.events.Track(request)
    assert (await email_project.events.Track(request)).replayed
    await forget(email_project, email(GUEST))
    refused = await failure(email_project.events.Track(request))
    assert (refused.code, refused.reason) == FORGOTTEN


# --- E5: what is kept of suppress_triggers ----------------------------------------------------------------------------


async def test_suppress_triggers_is_kept_wherever_the_event_goes(email_project: Client, world: World) -> None:
    """E5: the wish not to trigger is kept with the event of a person, a visitor and an address, through a link, a merge
    and the undoing of both."""
    c = email_project
    a, b = email("a@example.com"), email("b@example.com")

    async def kept() -> dict[str, tuple[str, bool]]:
        rows = await world.fetch(
            """
            SELECT tableoid::regclass::text AS place, name, suppress_triggers FROM events WHERE project_id = $1
            UNION ALL
            SELECT 'anonymous_events', name, suppress_triggers FROM anonymous_events WHERE project_id = $1
            UNION ALL
            SELECT 'invite_events', name, suppress_triggers FROM invite_events WHERE project_id = $1
            """,
            c.project_id,
        )
        return {row["name"]: (row["place"], row["suppress_triggers"]) for row in rows}

    await put(c, email="a@example.com")
    events: list[NewEvent] = []
    for quiet in (True, False):
        said: dict[str, Any] = {"suppress_triggers": quiet}
        events += [
            NewEvent(identifiers=a, name=f"person {quiet}", **said),
            NewEvent(anonymous_id="x", name=f"visitor {quiet}", **said),
            invite(name=f"invite {quiet}", **said),
        ]
    await c.batch(events)
    place = {"person": "events", "visitor": "anonymous_events", "invite": "invite_events"}
    expected = {f"{who} {quiet}": (place[who], quiet) for who in place for quiet in (True, False)}
    assert await kept() == expected

    linked = {**expected, "visitor True": ("events", True), "visitor False": ("events", False)}
    link = (await c.identity.Identify(IdentifyRequest(identifiers=a, anonymous_id="x"))).link
    await world.settle(c.project_id)
    assert await kept() == linked

    await put(c, email="b@example.com")
    request = MergeProfilesRequest(source=a, target=b, allow_known_source=True)
    merge = (await c.identity.MergeProfiles(request)).merge
    await world.settle(c.project_id)
    assert await kept() == linked
    assert await world.value("SELECT count(DISTINCT profile_id) FROM events WHERE project_id = $1", c.project_id) == 1

    await c.identity.UndoMerge(UndoMergeRequest(merge_id=merge.merge_id))
    await world.settle(c.project_id)
    assert await kept() == linked
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=link.merge_id))
    await world.settle(c.project_id)
    assert await kept() == expected


async def test_suppress_triggers_is_not_part_of_the_body(email_project: Client, world: World) -> None:
    """E3, E5: the same event told again without the wish is a duplicate, and the first telling's wish stays."""
    event = {"anonymous_id": "x", "name": "Viewed", "event_id": "e1"}
    await email_project.track(**event, suppress_triggers=True)
    assert (await email_project.track(**event)).duplicate
    sql = "SELECT array_agg(suppress_triggers) FROM anonymous_events WHERE project_id = $1"
    assert await world.value(sql, email_project.project_id) == [True]
