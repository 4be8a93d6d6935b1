"""Bad input to events and Identify: the right code, the right reason, every wrong field at once, and nothing stored."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from onefold.config import Settings
from onefold.limits import DATA_FIELDS_BYTES, MESSAGE_BYTES
from onefold.projects.bootstrap import ensure_project
from onefold.rpc.paging import make_token
from onefold.rpc.payload import write_struct
from onefold.v1.devices_service_pb2 import ListDevicesRequest
from onefold.v1.error_reason_pb2 import ErrorReason
from onefold.v1.event_pb2 import (
    EVENT_KIND_CART_UPDATE,
    EVENT_KIND_CUSTOM,
    EVENT_KIND_PAGE,
    EVENT_KIND_PURCHASE,
    CommerceItem,
    NewEvent,
)
from onefold.v1.events_service_pb2 import BatchTrackRequest, ListEventsRequest, TrackRequest
from onefold.v1.identity_service_pb2 import IdentifyRequest
from onefold.v1.profile_pb2 import Identifiers
from support.client import Client, email, failure, read_failure, timestamp, user
from support.probes import rows_of
from support.world import World

INVALID = grpc.StatusCode.INVALID_ARGUMENT
REFUSED_IDS = ["null", "undefined", "none", "nil", "nan", "0", "anonymous", "guest", "[object Object]"]
# What a driver, a statement or a stack would say, and a caller must never read.
DRIVER_WORDS = ("asyncpg", "postgres", "sqlstate", "select ", "insert ", "traceback", "constraint", "relation", ".py")
Projects = dict[str, Client]


@pytest_asyncio.fixture(scope="module")
async def shared(settings: Settings, channel: grpc.aio.Channel) -> Projects:
    """A project of each type. The tests share them, because none of them may store anything there."""
    made = {}
    for identifier_type in ("EMAIL", "USER_ID", "HYBRID"):
        project_id = f"bad-input-{identifier_type.lower().replace('_', '-')}"
        key = await ensure_project(
            settings.database_url, project_id=project_id, identifier_type=identifier_type, api_key=None
        )
        made[identifier_type] = Client(channel, project_id, key)
    return made


@pytest_asyncio.fixture
async def projects(shared: Projects, world: World) -> AsyncIterator[Projects]:
    """The shared projects; afterwards no table may hold a row of theirs that was not there before."""
    before = {name: await rows_of(world, client.project_id) for name, client in shared.items()}
    yield shared
    assert {name: await rows_of(world, client.project_id) for name, client in shared.items()} == before


def struct(value: dict[str, Any]) -> Struct:
    """An object as a Struct."""
    made = Struct()
    write_struct(made, value)
    return made


def nested(levels: int) -> dict[str, Any]:
    """An object of so many levels."""
    return {"a": nested(levels - 1)} if levels > 1 else {}


def visitor(**fields: Any) -> NewEvent:
    """A visitor's event that is fine but for what is given."""
    return NewEvent(**{"anonymous_id": "x1", "name": "Viewed", **fields})


def person(**fields: Any) -> NewEvent:
    """A person's event that is fine but for what is given."""
    return NewEvent(**{"name": "Viewed", **fields})


def ahead(hours: int) -> Timestamp:
    """A moment so many hours from now."""
    return timestamp(datetime.now(UTC) + timedelta(hours=hours))


# --- one event, told alone and among others --------------------------------------------------------------------------

ANY = ("EMAIL", "USER_ID", "HYBRID")
BY_EMAIL = ("EMAIL", "HYBRID")
ONE = ("HYBRID",)
BadEvent = tuple[str, tuple[str, ...], NewEvent, list[str]]
BAD_EVENTS: list[BadEvent] = [
    ("no name", ANY, visitor(name=""), ["name"]),
    ("name of 101 bytes", ONE, visitor(name="x" * 101), ["name"]),
    ("name of 51 letters, 102 bytes", ONE, visitor(name="é" * 51), ["name"]),
    ("name with NUL", ONE, visitor(name="a\0b"), ["name"]),
    ("name with a line break", ONE, visitor(name="a\nb"), ["name"]),
    ("blank name", ONE, visitor(name="  "), ["name"]),
    ("neither person nor visitor", ANY, person(), ["identifiers"]),
    ("empty identifiers", ANY, person(identifiers=Identifiers()), ["identifiers"]),
    *(
        (f"nobody, recipient {bad!r}", ANY, person(data=struct({"recipient": bad})), [field])
        for bad, field in [
            ("", "identifiers"),
            (None, "identifiers"),
            ("person", "data.recipient"),
            ("a@example.com ", "data.recipient"),
            ("é@example.com", "data.recipient"),
            ("ａ@example.com", "data.recipient"),
            ("a\0@example.com", "data.recipient"),
            ("a" * 243 + "@example.com", "data.recipient"),
            (5, "data.recipient"),
            (["a@example.com"], "data.recipient"),
        ]
    ),
    ("nobody, recipient in JSON", ANY, person(data_json='{"recipient":"a@"}'), ["data_json.recipient"]),
    ("an invite with bad data", ANY, person(data=struct({"recipient": "a@example.com", "b": "\0"})), ["data.b"]),
    (
        "an invite too far ahead",
        ONE,
        person(data=struct({"recipient": "a@b.org"}), event_time=ahead(25)),
        ["event_time"],
    ),
    *(
        (f"email {bad!r}", BY_EMAIL, person(identifiers=email(bad)), ["identifiers.email"])
        for bad in [
            "person",
            "@example.com",
            "a@",
            "a b@example.com",
            "é@example.com",
            "a@@example.com",
            "a\0@example.com",
        ]
    ),
    ("email of 255 bytes", BY_EMAIL, person(identifiers=email("a" * 243 + "@example.com")), ["identifiers.email"]),
    (
        "bad email, good user_id",
        BY_EMAIL,
        person(identifiers=Identifiers(email="person", user_id="u1")),
        ["identifiers.email"],
    ),
    ("named by email", ("USER_ID",), person(identifiers=email("a@example.com")), ["identifiers.email"]),
    *(
        (f"user_id {bad[:20]!r}", ANY, person(identifiers=user(bad)), ["identifiers.user_id"])
        for bad in ["x" * 53, "x" * 3_000, " ", "   ", " u1", "u1 ", "u\0", "u\n1", "NULL", *REFUSED_IDS]
    ),
    *(
        (f"anonymous_id {bad[:20]!r}", ONE, visitor(anonymous_id=bad), ["anonymous_id"])
        for bad in ["x" * 257, "é" * 129, " ", " x", "x ", "x\0", "x\t", *REFUSED_IDS]
    ),
    ("unknown kind", ONE, visitor(kind=99), ["kind"]),
    ("negative kind", ONE, visitor(kind=-1), ["kind"]),
    ("event_id of 129 characters", ONE, visitor(event_id="e" * 129), ["event_id"]),
    ("event_id with NUL", ONE, visitor(event_id="e\0"), ["event_id"]),
    ("event_id with a line break", ONE, visitor(event_id="e\n1"), ["event_id"]),
    ("NUL in data", ONE, visitor(data=struct({"a": "\0"})), ["data.a"]),
    ("NUL in a key", ONE, visitor(data=struct({"a": {"\0": 1}})), ["data.a"]),
    ("escaped NUL in JSON", ONE, visitor(data_json='{"a":"\\u0000"}'), ["data_json.a"]),
    ("NUL in JSON", ONE, visitor(data_json='{"a":"\0"}'), ["data_json"]),
    ("NaN", ONE, visitor(data=struct({"a": float("nan")})), ["data.a"]),
    ("infinity", ONE, visitor(data=struct({"a": [float("inf")]})), ["data.a[0]"]),
    ("NaN in JSON", ONE, visitor(data_json='{"a":NaN}'), ["data_json"]),
    ("exponent of 309", ONE, visitor(data_json='{"a":1e309}'), ["data_json"]),
    ("lone surrogate in JSON", ONE, visitor(data_json='{"a":"\\udfff"}'), ["data_json"]),
    ("depth 17", ONE, visitor(data=struct(nested(17))), ["data" + ".a" * 16]),
    ("depth 17 in JSON", ONE, visitor(data_json='{"a":' * 17 + "1" + "}" * 17), ["data_json" + ".a" * 16]),
    ("513 keys", ONE, visitor(data=struct({f"k{n}": n for n in range(513)})), ["data"]),
    ("100 kB + 1", ONE, visitor(data=struct({"a": "x" * (100_001 - 8)})), ["data"]),
    ("100 kB + 1 in JSON", ONE, visitor(data_json='{"a":"' + "x" * (100_001 - 8) + '"}'), ["data_json"]),
    ("Value without a kind", ONE, visitor(data=Struct(fields={"a": Value()})), ["data.a"]),
    ("JSON that is no object", ONE, visitor(data_json="[]"), ["data_json"]),
    ("empty JSON text", ONE, visitor(data_json=""), ["data_json"]),
    *(
        (
            f"time {seconds} s {nanos} ns",
            ONE,
            visitor(event_time=Timestamp(seconds=seconds, nanos=nanos)),
            ["event_time"],
        )
        for seconds, nanos in [
            (253_402_300_800, 0),
            (253_402_300_799, 999_999_000),
            (2**62, 0),
            (-(2**62), 0),
            (2**63 - 1, 2**31 - 1),
            (4_102_444_800, 0),
            (-1, 0),
            (1, -1),
            (1, 1_000_000_000),
            (0, -(2**31)),
        ]
    ),
    ("25 hours ahead", ANY, visitor(event_time=ahead(25)), ["event_time"]),
    (
        "25 hours ahead, a person's",
        ("USER_ID", "HYBRID"),
        person(identifiers=user("u1"), event_time=ahead(25)),
        ["event_time"],
    ),
    (
        "everything at once",
        ANY,
        NewEvent(
            identifiers=Identifiers(email="person", user_id="null"),
            anonymous_id="x" * 257,
            kind=99,  # type: ignore[arg-type]  # an enum's unknown number is the point
            event_id="e" * 129,
            event_time=Timestamp(seconds=-1),
            data=Struct(fields={"a": Value()}),
        ),
        [
            "anonymous_id",
            "data.a",
            "event_id",
            "event_time",
            "identifiers.email",
            "identifiers.user_id",
            "kind",
            "name",
        ],
    ),
]


ITEM = {"id": "i1", "name": "Tea"}


def bought(kind: Any = EVENT_KIND_PURCHASE, items: list[dict[str, Any]] | None = None, **fields: Any) -> NewEvent:
    """A visitor's purchase that is fine but for what is given."""
    told = [CommerceItem(**{**ITEM, **item}) for item in ([{}] if items is None else items)]
    return visitor(kind=kind, items=told, **fields)


def large(kilobytes: int) -> Struct:
    """An object of so many kB."""
    return struct({"a": "x" * 1_000 * kilobytes})


BAD_EVENTS += [
    ("items of another kind", ONE, bought(EVENT_KIND_CUSTOM), ["items"]),
    ("items of no kind", ONE, bought(0), ["items"]),
    ("items and total of another kind", ONE, bought(EVENT_KIND_PAGE, total=0), ["items", "total"]),
    ("total of a cart update", ONE, bought(EVENT_KIND_CART_UPDATE, total=1), ["total"]),
    ("total of a cart update without items", ONE, bought(EVENT_KIND_CART_UPDATE, [], total=1), ["total"]),
    ("201 items", ONE, bought(items=[{}] * 201), ["items"]),
    *(
        (f"{what} {bad!r:.20}", ONE, bought(items=[{}, {what: bad}]), [f"items[1].{what}"])
        for what, bad in [
            ("id", ""),
            ("id", " "),
            ("id", "a\0"),
            ("id", "x" * 257),
            ("name", ""),
            ("name", "a\0"),
            ("name", "é" * 129),
            ("price", float("nan")),
            ("price", float("inf")),
            ("price", -0.01),
            ("quantity", -1),
        ]
    ),
    *((f"total {bad}", ONE, bought(total=bad), ["total"]) for bad in (float("nan"), float("-inf"))),
    ("NUL in an item's data", ONE, bought(items=[{"data": struct({"a": ["\0"]})}]), ["items[0].data.a[0]"]),
    ("NaN in an item's data", ONE, bought(items=[{"data": struct({"a": float("nan")})}]), ["items[0].data.a"]),
    (
        "an item's Value without a kind",
        ONE,
        bought(items=[{"data": Struct(fields={"a": Value()})}]),
        ["items[0].data.a"],
    ),
    ("items told twice", ONE, bought(data=struct({"shoppingCartItems": []})), ["data.shoppingCartItems"]),
    ("total told twice", ONE, bought(items=[], total=1, data_json='{"total":1}'), ["data_json.total"]),
    ("items typed, total as data", ONE, bought(data=struct({"total": 1})), ["data.total"]),
    (
        "cart told twice",
        ONE,
        bought(EVENT_KIND_CART_UPDATE, data=struct({"updatedShoppingCartItems": 1})),
        ["data.updatedShoppingCartItems"],
    ),
    ("100 kB together", ONE, bought(items=[{"data": large(40)}, {"data": large(30)}], data=large(30)), ["data"]),
    ("513 keys together", ONE, bought(data=struct({f"k{n}": n for n in range(512)})), ["data"]),
    (
        "depth 17 together",
        ONE,
        bought(items=[{"data": struct(nested(14))}]),
        ["data.shoppingCartItems[0].dataFields" + ".a" * 13],
    ),
    ("depth 17 in an item", ONE, bought(items=[{"data": struct(nested(17))}]), ["items[0].data" + ".a" * 16]),
    (
        "an item's everything",
        ONE,
        bought(items=[{"id": "", "name": "", "price": -1, "quantity": -1}], total=float("nan")),
        ["items[0].id", "items[0].name", "items[0].price", "items[0].quantity", "total"],
    ),
    ("bad data beside items", ONE, bought(data=struct({"a": "\0"})), ["data.a"]),
]


@pytest.mark.parametrize(
    ("project", "event", "fields"),
    [
        pytest.param(project, event, fields, id=f"{name}-{project}")
        for name, types, event, fields in BAD_EVENTS
        for project in types
    ],
)
async def test_a_bad_event_is_refused_whole(
    projects: Projects, project: str, event: NewEvent, fields: list[str]
) -> None:
    """X2, X5, I1, I2, P3, E1, E6, E7, F64, F66, F67, F68, F69: INVALID_ARGUMENT names every field; nothing stored."""
    client = projects[project]
    alone = await failure(client.events.Track(TrackRequest(event=event, request_id="r1")))
    assert (alone.code, alone.reason) == (INVALID, "FIELDS_INVALID")
    assert sorted(alone.fields) == [f"event.{field}" for field in fields]
    [result] = await client.batch([event])
    assert (result.error.code, result.error.reason) == (Code.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_FIELDS_INVALID)
    assert sorted(violation.field for violation in result.error.field_violations) == fields
    assert all(violation.description for violation in result.error.field_violations)


@pytest.mark.parametrize("project", ANY)
async def test_an_event_that_is_over_on_arrival(projects: Projects, project: str) -> None:
    """A2: an anonymous event of 30 days or more is INVALID_ARGUMENT / EVENT_EXPIRED, by its event_time."""
    event = visitor(event_time=timestamp(datetime.now(UTC) - timedelta(days=30)), event_id="e1")
    alone = await failure(projects[project].events.Track(TrackRequest(event=event)))
    assert (alone.code, alone.reason, alone.fields) == (INVALID, "EVENT_EXPIRED", ["event.event_time"])
    [result] = await projects[project].batch([event])
    assert result.error.reason == ErrorReason.ERROR_REASON_EVENT_EXPIRED
    assert [violation.field for violation in result.error.field_violations] == ["event_time"]


@pytest.mark.parametrize("named", [Identifiers(email="a@example.com"), Identifiers(user_id="u1")])
async def test_an_event_of_nobody_in_an_email_project(projects: Projects, named: Identifiers) -> None:
    """E2: NOT_FOUND alone and per item in bulk, and the event_id is not used up."""
    client = projects["EMAIL"]
    event = person(identifiers=named, event_id="e1")
    alone = await failure(client.events.Track(TrackRequest(event=event)))
    assert (alone.code, alone.reason, alone.fields) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND", [])
    results = await client.batch([event, event])
    assert [result.error.code for result in results] == [Code.NOT_FOUND, Code.NOT_FOUND]
    assert [result.error.reason for result in results] == [ErrorReason.ERROR_REASON_PROFILE_NOT_FOUND] * 2


async def test_a_batch_of_1001(projects: Projects) -> None:
    """E4, X5: one event too many refuses the call as a whole, by its field."""
    told = await failure(projects["HYBRID"].events.BatchTrack(BatchTrackRequest(events=[visitor()] * 1_001)))
    assert (told.code, told.reason, told.fields) == (INVALID, "FIELDS_INVALID", ["events"])


@pytest.mark.parametrize("bad", ["r" * 129, " ", "r\0", "r\n"])
async def test_a_bad_request_id(projects: Projects, bad: str) -> None:
    """X1, X2: a request_id that cannot be one is named beside the other wrong fields."""
    client = projects["HYBRID"]
    alone = await failure(client.events.Track(TrackRequest(event=visitor(name=""), request_id=bad)))
    assert (alone.code, alone.reason, sorted(alone.fields)) == (INVALID, "FIELDS_INVALID", ["event.name", "request_id"])
    batch = await failure(client.events.BatchTrack(BatchTrackRequest(events=[visitor()], request_id=bad)))
    assert batch.fields == ["request_id"]
    identify = await failure(
        client.identity.Identify(IdentifyRequest(identifiers=user("u1"), anonymous_id="x", request_id=bad))
    )
    assert identify.fields == ["request_id"]


# --- both identifiers of two people ----------------------------------------------------------------------------------


async def test_both_identifiers_of_two_people(hybrid_project: Client, world: World) -> None:
    """I3, F72, X2: every call that names two people is refused, names the two kinds and nobody, and merges nothing."""
    await hybrid_project.track(identifiers=email("a@example.com"), name="A")
    await hybrid_project.track(identifiers=user("u2"), name="B")
    both = Identifiers(email="a@example.com", user_id="u2")
    before = await rows_of(world, hybrid_project.project_id)
    calls: list[Awaitable[Any]] = [
        hybrid_project.events.Track(TrackRequest(event=person(identifiers=both), request_id="r1")),
        hybrid_project.identity.Identify(IdentifyRequest(identifiers=both, anonymous_id="x", request_id="r2")),
        hybrid_project.events.ListEvents(ListEventsRequest(identifiers=both)),
    ]
    for call in calls:
        told = await failure(call)
        assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IDENTIFIERS_CONFLICT")
        assert told.metadata == {"kinds": "email,user_id"}
        assert "a@example.com" not in told.message
        assert "u2" not in told.message
    [result] = await hybrid_project.batch([person(identifiers=both)])
    assert result.error.code == Code.FAILED_PRECONDITION
    assert result.error.reason == ErrorReason.ERROR_REASON_IDENTIFIERS_CONFLICT
    assert await rows_of(world, hybrid_project.project_id) == before


# --- Identify --------------------------------------------------------------------------------------------------------

BAD_IDENTIFIES: list[tuple[str, tuple[str, ...], dict[str, Any], list[str]]] = [
    ("nobody", ANY, {"identifiers": None}, ["identifiers"]),
    ("no anonymous_id", ANY, {"anonymous_id": ""}, ["anonymous_id"]),
    ("anonymous_id null", ONE, {"anonymous_id": "null"}, ["anonymous_id"]),
    ("anonymous_id of 257 bytes", ONE, {"anonymous_id": "x" * 257}, ["anonymous_id"]),
    ("anonymous_id with NUL", ONE, {"anonymous_id": "x\0"}, ["anonymous_id"]),
    ("bad email", BY_EMAIL, {"identifiers": email("person")}, ["identifiers.email"]),
    ("bad email, good user_id", ONE, {"identifiers": Identifiers(email="a@", user_id="u1")}, ["identifiers.email"]),
    ("user_id of 53 characters", ANY, {"identifiers": user("x" * 53)}, ["identifiers.user_id"]),
    ("user_id null", ANY, {"identifiers": user("null")}, ["identifiers.user_id"]),
    ("blank user_id", ANY, {"identifiers": user(" ")}, ["identifiers.user_id"]),
    ("depth 17", ONE, {"data_fields": struct(nested(17))}, ["data_fields" + ".a" * 16]),
    ("513 keys", ONE, {"data_fields": struct({f"k{n}": n for n in range(513)})}, ["data_fields"]),
    ("1 MB + 1", ONE, {"data_fields_json": '{"a":"' + "x" * (DATA_FIELDS_BYTES - 7) + '"}'}, ["data_fields_json"]),
    ("NaN", ONE, {"data_fields": struct({"a": float("nan")})}, ["data_fields.a"]),
    ("Value without a kind", ONE, {"data_fields": Struct(fields={"a": Value()})}, ["data_fields.a"]),
    (
        "everything at once",
        ANY,
        {"identifiers": user("null"), "anonymous_id": "", "data_fields_json": "[]", "request_id": "r" * 129},
        ["anonymous_id", "data_fields_json", "identifiers.user_id", "request_id"],
    ),
]


@pytest.mark.parametrize(
    ("project", "request_fields", "fields"),
    [
        pytest.param(project, request_fields, fields, id=f"{name}-{project}")
        for name, types, request_fields, fields in BAD_IDENTIFIES
        for project in types
    ],
)
async def test_a_bad_identify_is_refused_whole(
    projects: Projects, project: str, request_fields: dict[str, Any], fields: list[str]
) -> None:
    """X2, X5, I1, I2, I15, F64, F66, F67, F69: INVALID_ARGUMENT names every wrong field; no profile, no link."""
    good = {"identifiers": user("u1"), "anonymous_id": "x1"}
    told = await failure(projects[project].identity.Identify(IdentifyRequest(**{**good, **request_fields})))
    assert (told.code, told.reason, sorted(told.fields)) == (INVALID, "FIELDS_INVALID", fields)


# --- ListEvents ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_fields", "fields"),
    [
        ({}, ["identifiers"]),
        ({"identifiers": Identifiers()}, ["identifiers"]),
        ({"identifiers": email("person")}, ["identifiers.email"]),
        ({"identifiers": user("null")}, ["identifiers.user_id"]),
        ({"profile_id": "17"}, ["profile_id"]),
        ({"profile_id": ""}, ["profile_id"]),
        ({"anonymous_id": ""}, ["anonymous_id"]),
        ({"anonymous_id": "x\0"}, ["anonymous_id"]),
        ({"anonymous_id": "x", "names": ["a"] * 101}, ["names"]),
        ({"anonymous_id": "x", "names": ["a", "", "b\0", "é" * 51]}, ["names[1]", "names[2]", "names[3]"]),
        ({"anonymous_id": "x", "kinds": [1, 0, 99]}, ["kinds[1]", "kinds[2]"]),
        ({"anonymous_id": "x", "start_time": Timestamp(seconds=-1)}, ["start_time"]),
        ({"anonymous_id": "x", "end_time": Timestamp(seconds=2**62)}, ["end_time"]),
        ({"anonymous_id": "x", "page_size": -1}, ["page_size"]),
        ({"anonymous_id": "x", "data_format": 9}, ["data_format"]),
        (
            {"anonymous_id": "null", "names": [" "], "kinds": [-1], "start_time": Timestamp(nanos=-1), "page_size": -5},
            ["anonymous_id", "kinds[0]", "names[0]", "page_size", "start_time"],
        ),
    ],
    ids=str,
)
async def test_a_bad_list_is_refused(projects: Projects, request_fields: dict[str, Any], fields: list[str]) -> None:
    """X2, E8: a list that asks for something impossible names every wrong field."""
    told = await failure(projects["HYBRID"].events.ListEvents(ListEventsRequest(**request_fields)))
    assert (told.code, told.reason, sorted(told.fields)) == (INVALID, "FIELDS_INVALID", fields)


@pytest.mark.parametrize(
    "request_of_nobody",
    [ListEventsRequest(identifiers=user("u1")), ListEventsRequest(profile_id=str(UUID(int=7)))],
    ids=["identifiers", "profile_id"],
)
async def test_a_list_of_nobody(projects: Projects, request_of_nobody: ListEventsRequest) -> None:
    """E8, X2: the events of a person who is not there are NOT_FOUND; those of an unknown visitor are an empty page."""
    told = await failure(projects["HYBRID"].events.ListEvents(request_of_nobody))
    assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    assert await projects["HYBRID"].timeline(anonymous_id="nobody-knows") == []


ASKED = ListEventsRequest(anonymous_id="x")


@pytest.mark.parametrize(
    "token",
    [
        "garbage",
        "é",
        "\0",
        "=",
        "AAAA",
        "bnVsbA",  # null
        "W10",  # []
        "e30",  # {}
        "x" * 10_000,
        make_token(ListEventsRequest(anonymous_id="y"), [1, "e"]),
        make_token(ListEventsRequest(anonymous_id="x", names=["a"]), [1, "e"]),
        make_token(ListDevicesRequest(), [1, "e"]),
        make_token(ASKED, []),
        make_token(ASKED, [1]),
        make_token(ASKED, ["1", "e"]),
        make_token(ASKED, [1, 2]),
        make_token(ASKED, [True, "e"]),
        make_token(ASKED, [1.5, "e"]),
        make_token(ASKED, [1, "e", 3]),
        # The right form with values that no event has.
        make_token(ASKED, [2**62, "e"]),
        make_token(ASKED, [-(2**62), "e"]),
        make_token(ASKED, [1, "e\0"]),
    ],
    ids=lambda token: ascii(token)[:40],
)
async def test_a_page_token_that_was_never_given(projects: Projects, token: str) -> None:
    """E8, X2: garbage and the tokens of another request are INVALID_ARGUMENT / PAGE_TOKEN_INVALID."""
    request = ListEventsRequest(anonymous_id="x", page_token=token)
    told = await failure(projects["HYBRID"].events.ListEvents(request))
    assert (told.code, told.reason) == (INVALID, "PAGE_TOKEN_INVALID")


# --- below the stubs -------------------------------------------------------------------------------------------------


class _Raw:
    """Sends bytes as they are to one method, with a key."""

    def __init__(self, client: Client, method: str) -> None:
        self._call: Any = client.channel.unary_unary(method, request_serializer=None, response_deserializer=None)
        self._metadata = (("authorization", f"Bearer {client.key}"),)

    def __call__(self, data: bytes) -> Awaitable[Any]:
        call: Awaitable[Any] = self._call(data, metadata=self._metadata)
        return call


METHODS = [
    "/onefold.v1.EventsService/Track",
    "/onefold.v1.EventsService/BatchTrack",
    "/onefold.v1.EventsService/ListEvents",
    "/onefold.v1.IdentityService/Identify",
]


def text_field(number: int, data: bytes) -> bytes:
    """A length-delimited field of the wire format, under 128 bytes."""
    return bytes([number << 3 | 2, len(data)]) + data


def deep_struct(levels: int) -> bytes:
    """A Struct of so many levels, in the wire format; protobuf's own writer refuses to make it."""
    data = b""
    for _ in range(levels):
        value = _long_field(5, data)
        data = _long_field(1, text_field(1, b"a") + _long_field(2, value))
    return data


def _long_field(number: int, data: bytes) -> bytes:
    length, size = b"", len(data)
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


MALFORMED = {
    "garbage": b"\xff" * 16,
    "cut short": b"\x0a\x05ab",
    "wrong group": b"\x0b\x0a",
    "field 0": b"\x02\x00",
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_bytes_that_are_no_message(projects: Projects, method: str, data: bytes) -> None:
    """F65: bytes that are not a message of the method are INVALID_ARGUMENT / REQUEST_MALFORMED, not UNKNOWN."""
    told = await failure(_Raw(projects["HYBRID"], method)(data))
    assert (told.code, told.reason) == (INVALID, "REQUEST_MALFORMED")


@pytest.mark.parametrize(
    "event",
    [
        text_field(3, b"a\xed\xa0\x80b"),
        text_field(3, b"\xed\xb0\x80"),
        text_field(3, b"\xff"),
        text_field(3, b"\xc0\x80"),
        text_field(1, text_field(2, b"u\xed\xa0\x80")),
        text_field(5, text_field(1, text_field(1, b"\xed\xa0\x80") + text_field(2, b"\x20\x01"))),
        _long_field(5, deep_struct(60)),
    ],
    ids=["surrogate", "low surrogate", "FF", "overlong NUL", "in user_id", "in a key of data", "deep data"],
)
async def test_text_that_is_not_unicode(projects: Projects, event: bytes) -> None:
    """F65, F67: lone surrogates, other text that is not UTF-8 and endless nesting are refused before any work."""
    whole = text_field(2, b"x1") + text_field(3, b"Viewed")
    told = await failure(_Raw(projects["HYBRID"], METHODS[0])(_long_field(1, whole + event)))
    assert (told.code, told.reason) == (INVALID, "REQUEST_MALFORMED")


async def test_any_bytes_get_a_proper_answer(projects: Projects) -> None:
    """F65, X2: whatever bytes arrive, the answer is INVALID_ARGUMENT with a published reason, never UNKNOWN."""
    generator = random.Random(20261122)
    good = TrackRequest(event=visitor(data_json='{"a":1}', event_id="e1")).SerializeToString()
    raw = _Raw(projects["HYBRID"], METHODS[0])
    messages = [generator.randbytes(generator.randrange(1, 60)) for _ in range(100)]
    # Broken copies of a good message: too short for the length that its first bytes promise.
    messages += [good[: generator.randrange(len(good) - 2)] + generator.randbytes(2) for _ in range(100)]
    for told in await asyncio.gather(*(failure(raw(message)) for message in messages)):
        assert told.code == INVALID
        assert told.reason in ("REQUEST_MALFORMED", "FIELDS_INVALID")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("size", "reason"),
    [(MESSAGE_BYTES + 1, "MESSAGE_TOO_LARGE"), (2 * MESSAGE_BYTES, "MESSAGE_TOO_LARGE"), (2 * MESSAGE_BYTES + 1, "")],
    ids=["over 4 MiB", "8 MiB", "over 8 MiB"],
)
async def test_a_message_over_4_mib(projects: Projects, method: str, size: int, reason: str) -> None:
    """F75, X5, X2: a request over 4 MiB is RESOURCE_EXHAUSTED with the reason published for it, one over 8 MiB without;
    the same connection serves the next call."""
    client = projects["HYBRID"]
    told = await failure(_Raw(client, method)(b"\0" * size))
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, reason)
    assert await client.names(anonymous_id="nobody") == []


@pytest.mark.parametrize("size", [16_384, 18_000, 1_000_000])
async def test_headers_over_16_kb(projects: Projects, size: int) -> None:
    """F75: headers over 16 kB are refused, each time; the same connection serves the next call."""
    client = projects["HYBRID"]
    for _ in range(4):
        large: Any = client.events.ListEvents(
            ListEventsRequest(anonymous_id="nobody"), metadata=(("note", "x" * size),)
        )
        assert (await failure(large)).code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await client.names(anonymous_id="nobody") == []


# --- what an error tells ---------------------------------------------------------------------------------------------

FAILING: dict[str, Callable[[Client], Awaitable[Message]]] = {
    "fields": lambda client: client.events.Track(
        TrackRequest(event=visitor(name="", data_json='{"secret-word":"\\u0000"}'))
    ),
    "time": lambda client: client.events.Track(TrackRequest(event=visitor(event_time=Timestamp(seconds=2**62)))),
    "nobody": lambda client: client.events.Track(
        TrackRequest(event=person(identifiers=email("secret-word@example.com")))
    ),
    "page token": lambda client: client.events.ListEvents(
        ListEventsRequest(anonymous_id="secret-word", page_token="secret-word")
    ),
    "identify": lambda client: client.identity.Identify(
        IdentifyRequest(identifiers=user("secret-word"), anonymous_id="secret-word")
    ),
}


@pytest.mark.parametrize("name", FAILING)
async def test_an_error_tells_what_is_published_and_no_more(projects: Projects, name: str) -> None:
    """X2: one ErrorInfo of domain onefold with a published reason; no driver's text, no stack, no caller's value."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await FAILING[name](projects["EMAIL"])
    status = rpc_status.from_call(raised.value)  # type: ignore[arg-type]  # it has what it takes
    assert status is not None
    infos = []
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    [info] = infos
    assert info.domain == "onefold"
    assert f"ERROR_REASON_{info.reason}" in ErrorReason.DESCRIPTOR.values_by_name
    told = read_failure(raised.value)
    everything = str(status).lower()
    assert told.message
    assert [word for word in DRIVER_WORDS if word in everything] == []
    if name != "fields":
        # A key of the data is part of a violation's path; nothing else that was sent is told back.
        assert "secret-word" not in everything
