"""ListActivity: every kind of entry, every filter, its pages, and what is told of whom."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
import pytest

from conftest import MakeProject
from onefold.activity import pages, store
from onefold.callers import IdentifierType
from onefold.db import migrate as migrate_module
from onefold.db.migrate import migrate, migrations
from onefold.embedded import EmbeddedPostgres
from onefold.rpc.paging import make_token
from onefold.v1.activity_pb2 import (
    ACTIVITY_FILTER_ANONYMOUS,
    ACTIVITY_FILTER_IDENTIFIED,
    ACTIVITY_KIND_ANONYMOUS_DATA_MERGED,
    ACTIVITY_KIND_DEVICE_DISABLED,
    ACTIVITY_KIND_DEVICE_REGISTERED,
    ACTIVITY_KIND_EVENT,
    ACTIVITY_KIND_PROFILE_CREATED,
    ACTIVITY_KIND_PROFILE_FORGOTTEN,
    ACTIVITY_KIND_PROFILE_MERGED,
    Activity,
)
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.device_pb2 import PLATFORM_APNS, PLATFORM_FCM, PLATFORM_UNSPECIFIED, NewDevice
from onefold.v1.devices_service_pb2 import RegisterDeviceRequest
from onefold.v1.events_service_pb2 import ListActivityRequest
from onefold.v1.identity_service_pb2 import DeleteProfileRequest, ForgetProfileRequest
from onefold.v1.merge_pb2 import MERGE_KIND_CONVERSION, MERGE_KIND_PROFILE
from onefold.v1.profile_pb2 import SIGNUP_SOURCE_DEVICE, SIGNUP_SOURCE_PROFILE_UPDATE, Identifiers
from support.client import Client, email, failure, timestamp
from support.logs import log, short, shorts
from support.merging import disable, get_merge, identify, merge, person, profile, put, register
from support.relocation import stages
from support.world import World

A = email("a@example.com")
B = email("b@example.com")
C = email("c@example.com")
SECOND = timedelta(seconds=1)
NOTES = [ACTIVITY_KIND_DEVICE_REGISTERED, ACTIVITY_KIND_DEVICE_DISABLED]
# One person's log, and the project's.
BOTH: list[dict[str, Any]] = [{"identifiers": A}, {}]


async def one(client: Client, kind: int, **request: Any) -> Activity:
    """The only entry of a kind."""
    [activity] = await log(client, kinds=[kind], **request)
    return activity


# --- every kind of entry ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(IdentifierType))
async def test_a_persons_log_has_everything_newest_first(make_project: MakeProject, world: World, kind: str) -> None:
    """E9, A7, I16: in every type of project; a whole project's log has the same, and what became of nobody."""
    client = await make_project(kind)
    a, b = person(kind, "a"), person(kind, "b")
    await put(client, a)
    await client.track(identifiers=a, name="Viewed")
    await client.track(anonymous_id="x", name="Anonymous")
    await client.track(anonymous_id="y", name="Nobody's")
    await register(client, a, "phone")
    await identify(client, a, "x")
    await put(client, b)
    await register(client, b, "tablet")
    await merge(client, b, a)
    await disable(client, "phone", a)
    expected = [
        "disabled phone", "merged", "registered tablet", "created", "linked x 1", "registered phone", "Nobody's",
        "Anonymous", "Viewed", "created",
    ]  # fmt: skip
    for _ in range(3):
        assert await shorts(client) == expected
        expected_of_person = [each for each in expected if each != "Nobody's"]
        assert await shorts(client, identifiers=a) == expected_of_person
        assert await shorts(client, profile_id=(await profile(client, a)).profile_id) == expected_of_person
        await world.settle(client.project_id)


async def test_an_event_is_told_as_list_events_tells_it(email_project: Client, world: World) -> None:
    """E9, A8: the whole event, also one that a worker has still to move, with whose it is."""
    await put(email_project, A)
    await email_project.track(identifiers=A, name="known", data_json='{"n":12345678901234567890}')
    await email_project.track(anonymous_id="x", name="visitor")
    await email_project.track(anonymous_id="y", name="nobody")
    await identify(email_project, A, "x")
    for _ in range(2):
        listed = await email_project.timeline(identifiers=A, data_format=DATA_FORMAT_JSON)
        nobody = await email_project.timeline(anonymous_id="y", data_format=DATA_FORMAT_JSON)
        of_people: list[dict[str, Any]] = [{"identifiers": A}, {"filter": ACTIVITY_FILTER_IDENTIFIED}]
        for request in of_people:
            found = await log(email_project, kinds=[ACTIVITY_KIND_EVENT], **request)
            assert [activity.event for activity in found] == listed
            assert {activity.profile_id for activity in found} == {listed[0].profile_id}
            assert [activity.activity_time for activity in found] == [event.event_time for event in listed]
        of_nobody: list[dict[str, Any]] = [{"anonymous_id": "y"}, {"filter": ACTIVITY_FILTER_ANONYMOUS}]
        for request in of_nobody:
            [activity] = await log(email_project, **request)
            assert ([activity.event], activity.profile_id) == (nobody, "")
        await world.settle(email_project.project_id)


async def test_anonymous_data_merged_tells_id_number_and_oldest(email_project: Client, world: World) -> None:
    """A7, A3: the same at every moment of the relocation; late events of the grace are counted in it."""
    await put(email_project, A)
    now = await world.now()
    for days in (3, 1, 2):
        await email_project.track(anonymous_id="x", name="e", event_time=timestamp(now - timedelta(days=days)))
    link = await identify(email_project, A, "x")

    async def check(count: int, oldest: timedelta) -> None:
        activity = await one(email_project, ACTIVITY_KIND_ANONYMOUS_DATA_MERGED, identifiers=A)
        merged = activity.anonymous_data_merged
        assert (merged.anonymous_id, merged.event_count, merged.merge_id) == ("x", count, link.merge_id)
        assert merged.oldest_event_time.ToDatetime(now.tzinfo) == now - oldest
        assert (merged.counting, activity.activity_time) == (False, link.link_time)
        assert await one(email_project, ACTIVITY_KIND_ANONYMOUS_DATA_MERGED) == activity

    async for stage in stages(world, email_project.project_id):
        await check(3 + (stage > 0), timedelta(days=3 + (stage > 0)))
        if stage == 0:
            await email_project.track(anonymous_id="x", name="late", event_time=timestamp(now - timedelta(days=4)))


async def test_a_count_that_would_take_long_says_so(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A7: beyond a number of events that a worker has still to bring, the entry says that it is still counting."""
    for module in (pages, store):
        monkeypatch.setattr(module, "ACTIVITY_COUNT_EVENTS", 3)
    await put(email_project, A)
    for _ in range(3):
        await email_project.track(anonymous_id="x", name="e")
    await identify(email_project, A, "x")
    [oldest] = (await email_project.timeline(identifiers=A))[-1:]
    for count, counting in ((0, True), (3, False)):
        activity = await one(email_project, ACTIVITY_KIND_ANONYMOUS_DATA_MERGED, identifiers=A)
        merged = activity.anonymous_data_merged
        assert (merged.event_count, merged.counting) == (count, counting)
        assert merged.oldest_event_time == oldest.event_time
        await world.work_off(email_project.project_id)


async def test_a_profile_that_was_made_tells_by_what(email_project: Client, world: World) -> None:
    """E9, I11: when and by which call, also of one that was merged since and of one whose merge cannot be undone any
    more."""
    await put(email_project, A)
    await register(email_project, B, "phone")
    made = {who.email: await profile(email_project, who) for who in (A, B)}
    await merge(email_project, B, A)
    sources = {A.email: SIGNUP_SOURCE_PROFILE_UPDATE, B.email: SIGNUP_SOURCE_DEVICE}
    for request in BOTH:
        found = await log(email_project, kinds=[ACTIVITY_KIND_PROFILE_CREATED], **request)
        assert [each.activity_time for each in found] == [made[who].create_time for who in (B.email, A.email)]
        assert {each.profile_id for each in found} == {made[A.email].profile_id}
        assert [(each.profile_created.profile_id, each.profile_created.signup_source) for each in found] == [
            (made[who].profile_id, sources[who]) for who in (B.email, A.email)
        ]
    await world.fetch("UPDATE merges SET snapshot = NULL WHERE project_id = $1 RETURNING 1", email_project.project_id)
    assert await shorts(email_project, identifiers=A, kinds=[ACTIVITY_KIND_PROFILE_CREATED]) == ["created", "created"]


async def test_a_merge_tells_who_went_where(email_project: Client, world: World) -> None:
    """E9, I16, I18: a merge of profiles and a conversion, with their entries in the ledger."""
    ids = [await put(email_project, who) for who in (A, B)]
    merged = await merge(email_project, A, B)
    converted = await merge(email_project, B, C)
    newer, older = await log(email_project, identifiers=C, kinds=[ACTIVITY_KIND_PROFILE_MERGED])
    for activity, kind, merge_id, source in (
        (newer, MERGE_KIND_CONVERSION, converted.merge.merge_id, ids[1]),
        (older, MERGE_KIND_PROFILE, merged.merge.merge_id, ids[0]),
    ):
        told = activity.profile_merged
        assert (told.kind, told.merge_id, told.source_profile_id) == (kind, merge_id, source)
        assert (told.target_profile_id, activity.profile_id) == (ids[1], ids[1])
        assert activity.activity_time == (await get_merge(email_project, merge_id)).create_time
        assert not told.HasField("undo_time")
    assert await log(email_project, kinds=[ACTIVITY_KIND_PROFILE_MERGED]) == [newer, older]


async def test_a_registration_that_changed_something_is_told(email_project: Client) -> None:
    """E9, D1, X1: a new device, a changed one, and one switched on again; not what changed nothing, nor a replay."""

    async def again(request_id: str = "", platform: int = PLATFORM_APNS, fields: str = "{}") -> None:
        device = NewDevice(token="phone", platform=platform, application_name="app", data_fields_json=fields)  # type: ignore[arg-type]
        await email_project.devices.RegisterDevice(
            RegisterDeviceRequest(identifiers=A, device=device, request_id=request_id)
        )

    await again("r1")
    await again("r1")
    await again()
    await again(fields='{"n":1}')
    await again(platform=PLATFORM_FCM, fields='{"n":1}')
    await disable(email_project, "phone", A)
    await disable(email_project, "phone", A)
    await again(platform=PLATFORM_FCM, fields='{"n":1}')
    profile_id = (await profile(email_project, A)).profile_id
    for request in BOTH:
        found = await log(email_project, kinds=NOTES, **request)
        assert [short(each) for each in found] == [
            "registered phone", "disabled phone", *["registered phone"] * 3
        ]  # fmt: skip
        assert [each.device_registered.platform or each.device_disabled.platform for each in found] == [
            *[PLATFORM_FCM] * 3, *[PLATFORM_APNS] * 2
        ]  # fmt: skip
        assert {each.profile_id for each in found} == {profile_id}


async def test_a_token_disabled_for_all_is_told_to_each_who_held_it(email_project: Client, world: World) -> None:
    """E9, D3: one entry, in the log of everybody who held the token then; not of one who registered it since, nor of
    one who never did."""
    for who in (A, B):
        await register(email_project, who, "shared")
    await disable(email_project, "shared", A)
    await disable(email_project, "shared")
    await register(email_project, C, "shared")
    await register(email_project, C, "own")
    notes = {who.email: await shorts(email_project, identifiers=who, kinds=NOTES) for who in (A, B, C)}
    assert notes == {
        A.email: ["disabled shared for all", "disabled shared", "registered shared"],
        B.email: ["disabled shared for all", "registered shared"],
        C.email: ["registered own", "registered shared"],
    }
    [of_person] = await log(email_project, kinds=[ACTIVITY_KIND_DEVICE_DISABLED], identifiers=B)
    assert (of_person.profile_id, of_person.device_disabled.platform) == (
        (await profile(email_project, B)).profile_id,
        PLATFORM_APNS,
    )
    [of_project, _] = await log(email_project, kinds=[ACTIVITY_KIND_DEVICE_DISABLED])
    assert (of_project.profile_id, of_project.device_disabled.platform) == ("", PLATFORM_UNSPECIFIED)
    assert await world.value("SELECT count(*) FROM activities WHERE project_id = $1", email_project.project_id) == 6


async def test_an_exclusive_registration_tells_the_others_only(email_project: Client) -> None:
    """E9, D5: they were switched off; whoever registered stayed on, newly or again, and so tells nothing of it."""

    async def alone(who: Identifiers) -> None:
        device = NewDevice(token="shared", platform=PLATFORM_APNS, application_name="app")
        await email_project.devices.RegisterDevice(
            RegisterDeviceRequest(identifiers=who, device=device, exclusive=True)
        )

    await register(email_project, A, "shared")
    await alone(B)
    await register(email_project, A, "shared")
    await alone(B)
    assert await shorts(email_project, identifiers=B, kinds=NOTES) == ["registered shared"]
    both = ["disabled shared for all", "registered shared"]
    assert await shorts(email_project, identifiers=A, kinds=NOTES) == both * 2
    await merge(email_project, B, C)
    assert await shorts(email_project, identifiers=C, kinds=NOTES) == ["registered shared"]


@pytest.mark.parametrize("way", ["forgotten", "deleted"])
async def test_of_a_forgotten_person_only_that_is_told(email_project: Client, world: World, way: str) -> None:
    """E9, I20: for the whole project, that somebody was, when, and whether the identifiers are blocked; nothing else,
    from the commit on. A forgetting of nobody is no entry."""
    await put(email_project, B)
    profile_id = await put(email_project, A)
    await email_project.track(identifiers=A, name="Viewed")
    await email_project.track(anonymous_id="x", name="Anonymous")
    await identify(email_project, A, "x")
    await register(email_project, A, "phone")
    await disable(email_project, "phone")
    start = await world.now()
    if way == "forgotten":
        await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=A))
        await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=C))
    else:
        await email_project.identity.DeleteProfile(DeleteProfileRequest(identifiers=A))
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project) == [way, "created"]
        assert await shorts(email_project, filter=ACTIVITY_FILTER_ANONYMOUS) == []
    activity = await one(email_project, ACTIVITY_KIND_PROFILE_FORGOTTEN)
    assert (activity.profile_forgotten.profile_id, activity.profile_id) == (profile_id, "")
    assert start <= activity.activity_time.ToDatetime(start.tzinfo) <= await world.now()
    for request in (ListActivityRequest(identifiers=A), ListActivityRequest(profile_id=profile_id)):
        gone = await failure(email_project.events.ListActivity(request))
        assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    assert await shorts(email_project, identifiers=B) == ["created"]


async def test_invites_are_in_the_projects_log(email_project: Client, world: World) -> None:
    """E6, E9: as nobody's, with the address, told as ListEvents tells them; until the address is forgotten."""
    await put(email_project, A)
    for number in range(3):
        await email_project.track(name=f"invite {number}", data_json='{"recipient":"a@example.com"}')
    names = [f"invite {number}" for number in (2, 1, 0)]
    assert await shorts(email_project, page_size=2) == [*names, "created"]
    assert await shorts(email_project, filter=ACTIVITY_FILTER_IDENTIFIED) == ["created"]
    found = await log(email_project, filter=ACTIVITY_FILTER_ANONYMOUS)
    assert [activity.event for activity in found] == await email_project.timeline(
        recipient="a@example.com", data_format=DATA_FORMAT_JSON
    )
    assert {(activity.event.recipient, activity.profile_id) for activity in found} == {("a@example.com", "")}
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=A))
    async for _ in stages(world, email_project.project_id):
        assert await shorts(email_project) == ["forgotten"]


# --- filters ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def busy(email_project: Client, world: World) -> Client:
    """A project with an entry of every kind, and a link that no worker has got to."""
    await put(email_project, B)
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=B))
    await world.settle(email_project.project_id)
    for who in (A, C):
        await put(email_project, who)
    await email_project.track(identifiers=A, name="known")
    await email_project.track(anonymous_id="x", name="associated")
    await email_project.track(anonymous_id="y", name="nobody's")
    await register(email_project, A, "phone")
    await disable(email_project, "phone")
    await merge(email_project, C, A)
    await identify(email_project, A, "x")
    return email_project


PEOPLE = [
    "linked x 1", "merged", "disabled phone for all", "registered phone", "associated", "known", "created", "created",
]  # fmt: skip
EVERYTHING = [*PEOPLE[:4], "nobody's", *PEOPLE[4:], "forgotten"]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, EVERYTHING),
        ({"filter": ACTIVITY_FILTER_IDENTIFIED}, [*PEOPLE, "forgotten"]),
        ({"filter": ACTIVITY_FILTER_ANONYMOUS}, ["nobody's"]),
        ({"identifiers": A}, PEOPLE),
        ({"identifiers": A, "filter": ACTIVITY_FILTER_IDENTIFIED}, PEOPLE),
        ({"identifiers": A, "filter": ACTIVITY_FILTER_ANONYMOUS}, []),
        ({"anonymous_id": "y"}, ["nobody's"]),
        ({"anonymous_id": "y", "filter": ACTIVITY_FILTER_ANONYMOUS}, ["nobody's"]),
        ({"anonymous_id": "y", "filter": ACTIVITY_FILTER_IDENTIFIED}, []),
        ({"anonymous_id": "y", "kinds": [ACTIVITY_KIND_PROFILE_CREATED]}, []),
        ({"anonymous_id": "x"}, []),
        ({"anonymous_id": "unheard of"}, []),
        ({"kinds": [ACTIVITY_KIND_EVENT]}, ["nobody's", "associated", "known"]),
        ({"kinds": [ACTIVITY_KIND_EVENT], "filter": ACTIVITY_FILTER_IDENTIFIED}, ["associated", "known"]),
        ({"kinds": [ACTIVITY_KIND_ANONYMOUS_DATA_MERGED]}, ["linked x 1"]),
        ({"kinds": [ACTIVITY_KIND_PROFILE_MERGED]}, ["merged"]),
        ({"kinds": [ACTIVITY_KIND_PROFILE_CREATED]}, ["created", "created"]),
        ({"kinds": [ACTIVITY_KIND_PROFILE_FORGOTTEN]}, ["forgotten"]),
        ({"kinds": [ACTIVITY_KIND_PROFILE_FORGOTTEN], "filter": ACTIVITY_FILTER_ANONYMOUS}, []),
        ({"kinds": [ACTIVITY_KIND_PROFILE_FORGOTTEN], "identifiers": A}, []),
        ({"kinds": [ACTIVITY_KIND_DEVICE_REGISTERED]}, ["registered phone"]),
        ({"kinds": [ACTIVITY_KIND_DEVICE_DISABLED], "identifiers": A}, ["disabled phone for all"]),
        ({"kinds": NOTES, "identifiers": A}, ["disabled phone for all", "registered phone"]),
    ],
    ids=str,
)
async def test_every_filter(busy: Client, world: World, request_: dict[str, Any], expected: list[str]) -> None:
    """E9: identified, anonymous or both; of a person, a visitor or the project; and kinds: before a worker gets to the
    link, and after, in one page and in pages of one."""
    assert await shorts(busy, **request_) == expected
    assert await shorts(busy, page_size=1, **request_) == expected
    await world.settle(busy.project_id)
    assert await shorts(busy, page_size=2, **request_) == expected


async def test_a_range_of_time_begins_with_its_start_and_ends_before_its_end(busy: Client) -> None:
    """E9: from any entry's time to any other's, of a person and of the project."""
    for request in BOTH:
        entries = await log(busy, **request)
        times = [entry.activity_time.ToDatetime() for entry in entries]
        for start in entries[::3]:
            for end in entries[::2]:
                first, last = start.activity_time.ToDatetime(), end.activity_time.ToDatetime()
                found = await log(busy, start_time=start.activity_time, end_time=end.activity_time, **request)
                assert found == [entry for entry, time in zip(entries, times, strict=True) if first <= time < last]


# --- pages -----------------------------------------------------------------------------------------------------------


async def test_pages_show_each_entry_once(email_project: Client, world: World) -> None:
    """E8, E9: with many entries of one moment, people's and visitors', and a worker that moves between the pages."""
    now = timestamp(await world.now())
    await put(email_project, A)
    for number in range(6):
        await email_project.track(identifiers=A, name=f"known {number}", event_time=now)
        await email_project.track(anonymous_id="x", name=f"visitor {number}", event_time=now)
        await email_project.track(anonymous_id="y", name=f"nobody {number}", event_time=now)
    await identify(email_project, A, "x")
    whole = await log(email_project)
    assert len(whole) == 20
    for size in (1, 2, 3, 7, 20):
        assert await log(email_project, page_size=size) == whole
        assert await log(email_project, page_size=size, identifiers=A) == [
            entry for entry in whole if not entry.event.name.startswith("nobody")
        ]
    found: list[Activity] = []
    token = ""
    async for _ in stages(world, email_project.project_id):
        page = await email_project.events.ListActivity(
            ListActivityRequest(page_size=3, page_token=token, data_format=DATA_FORMAT_JSON)
        )
        found += page.activities
        token = page.next_page_token
    assert found == whole[: len(found)]
    assert len(found) >= 6


async def test_a_page_looks_at_a_bounded_number_of_rows(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E9: rows that are not to be seen cost a page no more than its bound, also if nothing else is there; the pages
    after it show the rest, each once."""
    monkeypatch.setattr(pages, "ACTIVITY_LOOK_ROWS", 4)
    await put(email_project, A)
    await put(email_project, B)
    await email_project.track(identifiers=B, name="oldest")
    for number in range(12):
        await email_project.track(identifiers=A, name=f"erased {number}")
        await email_project.track(anonymous_id="x", name=f"nobody {number}")
    await email_project.track(identifiers=B, name="newest")
    await email_project.identity.ForgetProfile(ForgetProfileRequest(identifiers=A))

    found: list[str] = []
    looked: list[int] = []
    read = store.event_keys

    async def counted(*arguments: Any, **options: Any) -> list[store.EventKeyRow]:
        rows = await read(*arguments, **options)
        looked.append(len(rows))
        return rows

    monkeypatch.setattr(store, "event_keys", counted)
    empty, token = 0, ""
    while True:
        page = await email_project.events.ListActivity(
            ListActivityRequest(page_size=2, page_token=token, filter=ACTIVITY_FILTER_IDENTIFIED)
        )
        found += [short(activity) for activity in page.activities]
        empty += not page.activities
        token = page.next_page_token
        if not token:
            break
    assert found == ["forgotten", "newest", "oldest", "created"]
    assert empty >= 2
    assert set(looked) <= {1, 2, 3, 4}
    await world.settle(email_project.project_id)
    assert await shorts(email_project, page_size=3, filter=ACTIVITY_FILTER_IDENTIFIED) == found


@pytest.mark.parametrize(
    "key",
    [
        [0, 3, "x", 1],
        ["0", 3, "x"],
        [-1, 3, "x"],
        [2**62, 3, "x"],
        [0, 9, "x"],
        [0, "EVENTS", "x"],
        [0, 3, None],
        [0, 3, "\u0000"],
        [0, 1, "not an id"],
        [0, 0, ""],
        None,
        7,
    ],
    ids=str,
)
async def test_a_made_up_page_token_is_refused(email_project: Client, key: object) -> None:
    """X2: INVALID_ARGUMENT / PAGE_TOKEN_INVALID, whatever stands in it."""
    token = make_token(ListActivityRequest(), [key])
    refused = await failure(email_project.events.ListActivity(ListActivityRequest(page_token=token)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_a_page_token_is_good_for_its_request_only(busy: Client) -> None:
    """E9, X2: another filter is another list."""
    page = await busy.events.ListActivity(ListActivityRequest(page_size=1))
    for other in ({"filter": ACTIVITY_FILTER_IDENTIFIED}, {"identifiers": A}, {"kinds": [ACTIVITY_KIND_EVENT]}):
        request = ListActivityRequest(page_token=page.next_page_token, **other)
        refused = await failure(busy.events.ListActivity(request))
        assert refused.reason == "PAGE_TOKEN_INVALID"


async def test_a_page_ends_at_its_size_in_bytes(email_project: Client) -> None:
    """E9, X5: large events make short pages, and the pages still show each once."""
    await put(email_project, A)
    text = json.dumps({"x": "x" * 90_000})
    for number in range(40):
        await email_project.track(identifiers=A, name=f"e{number}", data_json=text)
    page = await email_project.events.ListActivity(
        ListActivityRequest(page_size=500, data_format=DATA_FORMAT_JSON, kinds=[ACTIVITY_KIND_EVENT])
    )
    assert 0 < len(page.activities) < 40
    assert page.next_page_token
    assert await shorts(email_project, kinds=[ACTIVITY_KIND_EVENT]) == [f"e{number}" for number in reversed(range(40))]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"kinds": [0]}, "kinds[0]"),
        ({"kinds": [1, 8]}, "kinds[1]"),
        ({"filter": 3}, "filter"),
        ({"page_size": -1}, "page_size"),
        ({"profile_id": "none"}, "profile_id"),
        ({"anonymous_id": "null"}, "anonymous_id"),
        ({"identifiers": Identifiers()}, "identifiers"),
        ({"data_format": 9}, "data_format"),
        ({"start_time": {"seconds": -1}}, "start_time"),
        ({"end_time": {"seconds": 2**40}}, "end_time"),
    ],
    ids=str,
)
async def test_a_wrong_field_is_named(email_project: Client, request_: dict[str, Any], field: str) -> None:
    """X2: INVALID_ARGUMENT with the path of the field."""
    refused = await failure(email_project.events.ListActivity(ListActivityRequest(**request_)))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_another_projects_log_is_out_of_reach(make_project: MakeProject) -> None:
    """F73, P6: its people are not found, in the same words as nobody; its entries are in no list, and no token of it is
    of any use."""
    one_project, other = await make_project(), await make_project()
    profile_id = await put(one_project, A)
    await one_project.track(anonymous_id="x", name="secret")
    missing = "00000000-0000-7000-8000-000000000000"
    assert await failure(other.events.ListActivity(ListActivityRequest(profile_id=profile_id))) == await failure(
        other.events.ListActivity(ListActivityRequest(profile_id=missing))
    )
    assert await log(other) == []
    assert await log(other, anonymous_id="x") == []
    token = (await one_project.events.ListActivity(ListActivityRequest(page_size=1))).next_page_token
    assert not (await other.events.ListActivity(ListActivityRequest(page_token=token))).activities


async def test_a_visitors_event_is_hidden_at_30_days(email_project: Client, world: World) -> None:
    """A2, F34: sharp, in the project's log as in the visitor's; what became a person's stays."""
    now = await world.now()
    for anonymous_id in ("x", "y"):
        await email_project.track(
            anonymous_id=anonymous_id, name=anonymous_id, event_time=timestamp(now - timedelta(days=29))
        )
    await put(email_project, A)
    await identify(email_project, A, "x")
    await world.pass_time(email_project.project_id, timedelta(hours=23, minutes=59))
    assert sorted(await shorts(email_project, kinds=[ACTIVITY_KIND_EVENT])) == ["x", "y"]
    await world.pass_time(email_project.project_id, timedelta(minutes=1))
    for _ in range(2):
        assert await shorts(email_project, kinds=[ACTIVITY_KIND_EVENT]) == ["x"]
        assert await shorts(email_project, anonymous_id="y") == []
        await world.settle(email_project.project_id)


async def test_readers_at_the_same_time_see_the_same(busy: Client) -> None:
    """X3: a read of many places is of one moment."""
    found = await asyncio.gather(*(shorts(busy) for _ in range(8)))
    assert found == [EVERYTHING] * 8


async def test_merges_from_before_the_log_tell_when_their_source_was_made(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E9, F27: the migration takes it from what is kept for an undo, where that is still there."""
    connection = await asyncpg.connect(postgres.url())
    try:
        await connection.execute("CREATE DATABASE test_before_the_log")
        known = migrations()
        with monkeypatch.context() as older:
            older.setattr(migrate_module, "migrations", lambda: [each for each in known if each.version < 4])
            await migrate(postgres.url("test_before_the_log"))
        old = await asyncpg.connect(postgres.url("test_before_the_log"))
        try:
            for kind, snapshot in (
                ("PROFILE", '{"source": {"create_time": "2026-01-02T03:04:05+00:00", "signup_source": 3}}'),
                ("PROFILE", None),
                ("CONVERSION", '{"source": {"create_time": "2026-01-02T03:04:05+00:00", "signup_source": 3}}'),
            ):
                await old.execute(
                    "INSERT INTO merges (project_id, merge_id, kind, target_profile_id, source_profile_id, origin_ids,"
                    " create_time, snapshot) VALUES ('p', uuidv7(), $1, uuidv7(), uuidv7(), '{}', now(), $2::json)",
                    kind,
                    snapshot,
                )
            assert await migrate(postgres.url("test_before_the_log"))
            rows = await old.fetch("SELECT source_create_time, source_signup_source FROM merges ORDER BY merge_id")
        finally:
            await old.close()
    finally:
        await connection.execute("DROP DATABASE IF EXISTS test_before_the_log WITH (FORCE)")
        await connection.close()
    assert [tuple(row) for row in rows] == [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), 3),
        (None, None),
        (None, None),
    ]
