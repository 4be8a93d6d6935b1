"""Purchases and cart updates: how their items are stored, and the shopping cart that a profile keeps."""

from __future__ import annotations

import asyncio
import itertools
import random
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
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.error_reason_pb2 import (
    ERROR_REASON_DATA_FIELDS_LIMIT,
    ERROR_REASON_EVENT_ID_REUSED,
    ERROR_REASON_IDENTIFIERS_CONFLICT,
)
from onefold.v1.event_pb2 import (
    EVENT_KIND_CART_UPDATE,
    EVENT_KIND_CUSTOM,
    EVENT_KIND_PURCHASE,
    CommerceItem,
    NewEvent,
)
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import (
    GetProfileRequest,
    IdentifyRequest,
    MergeProfilesRequest,
    UndoMergeRequest,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import (
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_SKIPPED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
)
from support.client import Client, email, failure, timestamp, user
from support.holding import held, until_waiting
from support.traces import rows_of
from support.world import World

A, B = email("a@example.com"), email("b@example.com")
HOUR = timedelta(hours=1)


def struct(value: dict[str, Any]) -> Struct:
    """An object as a Struct."""
    made = Struct()
    write_struct(made, value)
    return made


PIZZA = CommerceItem(
    id="p-1", name="Pizza  Margherita\u00a0(large)", price=9.5, quantity=2, data=struct({"size": "large"})
)
COLA = CommerceItem(id="c-1", name="Cola", price=3)
PIZZA_READ = {
    "id": "p-1",
    "name": "Pizza  Margherita\u00a0(large)",
    "price": 9.5,
    "quantity": 2,
    "dataFields": {"size": "large"},
}
COLA_READ = {"id": "c-1", "name": "Cola", "price": 3, "quantity": 1}


def cart(*names: str, who: Identifiers = A, **fields: Any) -> NewEvent:
    """A cart update whose items are told by their names alone."""
    items = [CommerceItem(id=name, name=name, price=1) for name in names]
    return NewEvent(**{"identifiers": who, "name": "Cart", "kind": EVENT_KIND_CART_UPDATE, "items": items, **fields})


def purchase(*names: str, who: Identifiers = A, **fields: Any) -> NewEvent:
    """A purchase of items told by their names alone."""
    items = [CommerceItem(id=name, name=name, price=1) for name in names]
    return NewEvent(**{"identifiers": who, "name": "Bought", "kind": EVENT_KIND_PURCHASE, "items": items, **fields})


async def put(c: Client, who: Identifiers = A, fields: str = "{}") -> None:
    """Makes a profile, or writes its fields."""
    await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=who, data_fields_json=fields))


async def fields_of(c: Client, who: Identifiers = A) -> dict[str, Any]:
    """A person's data fields."""
    request = GetProfileRequest(identifiers=who, data_format=DATA_FORMAT_JSON)
    fields: dict[str, Any] = orjson.loads((await c.identity.GetProfile(request)).profile.data_fields_json)
    return fields


async def cart_of(c: Client, who: Identifiers = A) -> list[str] | None:
    """The names of what is in a person's cart; None without one."""
    items = (await fields_of(c, who)).get("shoppingCartItems")
    return None if items is None else [item["name"] for item in items]


async def outcomes(c: Client, *events: NewEvent) -> list[int]:
    """What each event of a batch did to its profile, or the code of its error."""
    return [result.error.code or result.result.profile_outcome for result in await c.batch(events)]


# --- E7: how they are stored ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (
            {"kind": EVENT_KIND_PURCHASE, "items": [PIZZA, COLA], "total": 22.0},
            {"total": 22, "shoppingCartItems": [PIZZA_READ, COLA_READ]},
        ),
        ({"kind": EVENT_KIND_CART_UPDATE, "items": [COLA]}, {"updatedShoppingCartItems": [COLA_READ]}),
        ({"kind": EVENT_KIND_PURCHASE, "total": -0.5}, {"total": -0.5}),
        ({"kind": EVENT_KIND_PURCHASE, "total": 0.0}, {"total": 0}),
        (
            {"kind": EVENT_KIND_PURCHASE, "items": [COLA], "total": 1e300, "data": struct({"note": "now"})},
            {"total": 1e300, "shoppingCartItems": [COLA_READ], "note": "now"},
        ),
        (
            {"kind": EVENT_KIND_CART_UPDATE, "items": [COLA], "data": struct({})},
            {"updatedShoppingCartItems": [COLA_READ]},
        ),
    ],
    ids=["purchase", "cart", "total alone", "total of nothing", "with own data", "with empty own data"],
)
@pytest.mark.parametrize("subject", [{"identifiers": A}, {"anonymous_id": "x"}], ids=["person", "visitor"])
async def test_typed_fields_are_read_as_data(
    email_project: Client, subject: dict[str, Any], told: dict[str, Any], text: dict[str, Any]
) -> None:
    """E7: items and total are in the event's data where clients look for them, before its own data, as Struct and as
    JSON text; a total is compared with nothing."""
    await email_project.track(**subject, name="Shopped", **told)
    [event] = await email_project.timeline(**subject, data_format=DATA_FORMAT_JSON)
    assert event.data_json == orjson.dumps(text).decode()
    [event] = await email_project.timeline(**subject)
    assert event.data == struct(text)


async def test_own_json_text_keeps_every_digit(email_project: Client) -> None:
    """E7, F67: beside typed items, the event's own JSON text is stored letter by letter."""
    own = ' \n{ "b":9007199254740993, "a" : 1.0 }'
    await email_project.batch([cart("tea", who=None, anonymous_id="x", data_json=own), cart("tea", data_json=" { } ")])  # type: ignore[arg-type]  # nobody
    [event] = await email_project.timeline(anonymous_id="x", data_format=DATA_FORMAT_JSON)
    items = '"updatedShoppingCartItems":[{"id":"tea","name":"tea","price":1,"quantity":1}]'
    assert event.data_json == f'{{{items}, "b":9007199254740993, "a" : 1.0 }}'
    [event] = await email_project.timeline(identifiers=A, data_format=DATA_FORMAT_JSON)
    assert event.data_json == f"{{{items}}}"


async def test_items_are_part_of_the_body(email_project: Client, world: World) -> None:
    """E3, E7, F60, F61: the same items again are a duplicate, typed or as data; others are ALREADY_EXISTS."""
    await email_project.batch([cart("tea", event_id="e1")])
    before = await rows_of(world, email_project.project_id)
    as_data = orjson.dumps({"updatedShoppingCartItems": [{"quantity": 1, "price": 1, "name": "tea", "id": "tea"}]})
    told = await email_project.batch(
        [
            cart("tea", event_id="e1"),
            cart(event_id="e1", data_json=as_data.decode()),
            cart("milk", event_id="e1"),
            cart("tea", "tea", event_id="e1"),
        ]
    )
    assert [each.result.duplicate for each in told] == [True, True, False, False]
    assert [each.error.reason for each in told[2:]] == [ERROR_REASON_EVENT_ID_REUSED] * 2
    assert await rows_of(world, email_project.project_id) == before


async def test_the_very_limits_of_items(email_project: Client) -> None:
    """E7, X5: 200 items, with ids and names as long as they may be, in data of exactly 100 kB and 16 levels."""
    deep: dict[str, Any] = {}
    for _ in range(12):
        deep = {"a": deep}
    items = [CommerceItem(id="i" * 256, name="é" * 128, price=n) for n in range(99)]
    items += [CommerceItem(id=f"{n}", name=" ", price=n) for n in range(100)]
    items.append(CommerceItem(id="x", name="x", quantity=2**31 - 1, data=struct(deep)))
    bare = NewEvent(identifiers=A, name="Bought", kind=EVENT_KIND_PURCHASE, items=items)
    await email_project.batch([bare])
    [event] = await email_project.timeline(identifiers=A, data_format=DATA_FORMAT_JSON)
    room = 100_000 - len(event.data_json.encode()) - len(',"a":""')
    for length, code in ((room, 0), (room + 1, Code.INVALID_ARGUMENT)):
        bare.data_json = orjson.dumps({"a": "x" * length}).decode()
        [result] = await email_project.batch([bare])
        assert result.error.code == code
    assert [each.field for each in result.error.field_violations] == ["data"]


# --- E7, I5: the cart that a profile keeps ----------------------------------------------------------------------------


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
@pytest.mark.parametrize("how", ["Track", "Track with request_id", "BatchTrack"])
async def test_a_cart_is_kept_until_it_is_bought(make_project: MakeProject, project_type: str, how: str) -> None:
    """E7, I5: a cart update puts its items on the profile as shoppingCartItems and a purchase empties it; the outcome
    says whether the profile was made or changed, and other fields survive."""
    c = await make_project(project_type)
    who = user("u1") if project_type == "USER_ID" else A
    steps: list[tuple[NewEvent, int, list[str]]] = [
        (cart("tea", "milk", who=who), WRITE_OUTCOME_CREATED, ["tea", "milk"]),
        (cart("tea", who=who), WRITE_OUTCOME_UPDATED, ["tea"]),
        (cart("tea", who=who), WRITE_OUTCOME_UNCHANGED, ["tea"]),
        (purchase("tea", who=who), WRITE_OUTCOME_UPDATED, []),
        (purchase("milk", who=who), WRITE_OUTCOME_UNCHANGED, []),
        (cart("milk", who=who), WRITE_OUTCOME_UPDATED, ["milk"]),
        (cart(who=who), WRITE_OUTCOME_UPDATED, []),
    ]
    for number, (event, outcome, expected) in enumerate(steps):
        if how == "BatchTrack":
            [result] = await c.batch([event])
            assert result.result.profile_outcome == outcome
        else:
            request = TrackRequest(event=event, request_id=f"r{number}" if how == "Track with request_id" else "")
            assert (await c.events.Track(request)).result.profile_outcome == outcome
        assert await cart_of(c, who) == expected
        if number == 0:
            await put(c, who, '{"plan":"gold"}')
    assert await fields_of(c, who) == {"shoppingCartItems": [], "plan": "gold"}


async def test_a_whole_history_in_one_batch(email_project: Client) -> None:
    """E7, E4: a batch does to the cart what its events would have done one by one, in their order."""
    told = await outcomes(
        email_project,
        NewEvent(identifiers=A, name="nobody yet"),
        cart("tea"),
        NewEvent(identifiers=A, name="known now"),
        cart("tea"),
        purchase("tea"),
        cart("milk", who=B),
        cart("bread"),
    )
    assert told == [
        Code.NOT_FOUND,
        WRITE_OUTCOME_CREATED,
        WRITE_OUTCOME_UNCHANGED,
        WRITE_OUTCOME_UNCHANGED,
        WRITE_OUTCOME_UPDATED,
        WRITE_OUTCOME_CREATED,
        WRITE_OUTCOME_UPDATED,
    ]
    assert [await cart_of(email_project, who) for who in (A, B)] == [["bread"], ["milk"]]


async def test_the_items_on_the_profile(email_project: Client) -> None:
    """E7: the cart on the profile is the list of the items as the event has them."""
    event = NewEvent(identifiers=A, name="Cart", kind=EVENT_KIND_CART_UPDATE, items=[PIZZA, COLA])
    await email_project.batch([event])
    assert await fields_of(email_project) == {"shoppingCartItems": [PIZZA_READ, COLA_READ]}


async def test_a_placeholder_gets_a_cart(email_project: Client) -> None:
    """E7, I7: a profile that a cart update made for a user_id alone has the cart."""
    await email_project.batch([cart("tea", who=user("u1"), prefer_user_id=True)])
    assert await cart_of(email_project, user("u1")) == ["tea"]


async def test_there_is_nothing_to_empty(email_project: Client, world: World) -> None:
    """E7: a purchase, or an empty cart update, of somebody without a cart leaves the profile as it is, and still counts
    as the newest event."""
    now = await world.now()
    for number, event in enumerate((purchase("tea"), cart())):
        who = email(f"p{number}@example.com")
        event.identifiers.CopyFrom(who)
        event.event_time.CopyFrom(timestamp(now - HOUR))
        older = cart("old", who=who, event_time=timestamp(now - 2 * HOUR))
        await put(email_project, who, '{"plan":"gold"}')
        assert await outcomes(email_project, event, older) == [WRITE_OUTCOME_UNCHANGED] * 2
        assert await fields_of(email_project, who) == {"plan": "gold"}


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (EVENT_KIND_CART_UPDATE, '{"updatedShoppingCartItems":[1,{"x":[]}]}', [1, {"x": []}]),
        (EVENT_KIND_CART_UPDATE, '{"updatedShoppingCartItems":[]}', []),
        (EVENT_KIND_CART_UPDATE, '{"updatedShoppingCartItems":"tea"}', []),
        (EVENT_KIND_CART_UPDATE, '{"shoppingCartItems":["tea"]}', []),
        (EVENT_KIND_CART_UPDATE, "{}", []),
        (EVENT_KIND_PURCHASE, '{"shoppingCartItems":["tea"]}', []),
        (EVENT_KIND_PURCHASE, "{}", []),
        (EVENT_KIND_CUSTOM, '{"updatedShoppingCartItems":["tea"],"shoppingCartItems":["tea"]}', ["old"]),
    ],
)
async def test_free_form_data(email_project: Client, kind: Any, data: str, expected: list[Any]) -> None:
    """E7: without typed items a cart update's own array is the cart, one without an array empties it, a purchase always
    does, and no other kind touches it."""
    await put(email_project, fields='{"shoppingCartItems":["old"]}')
    await email_project.track(identifiers=A, name="Shopped", kind=kind, data_json=data)
    assert await fields_of(email_project) == {"shoppingCartItems": expected}


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "one by one"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
async def test_the_newest_event_decides(email_project: Client, world: World, order: Any, together: bool) -> None:
    """E7, E5: in whatever order a past is filled in, the cart is that of the event that happened last."""
    now = await world.now()
    for last in ("cart", "purchase"):
        who = email(f"{last}@example.com")
        events = [cart("tea", who=who), purchase("tea", who=who), cart("milk", who=who)]
        if last == "purchase":
            events.reverse()
            events[2], events[1] = events[1], events[2]
        for number, event in enumerate(events):
            event.event_time.CopyFrom(timestamp(now - HOUR * (30 - number)))
        expected = ["milk"] if last == "cart" else []
        told = [events[number] for number in order]
        for batch in [told] if together else [[event] for event in told]:
            await email_project.batch(batch)
        # Whoever bought before anything else was told has no cart that could be empty.
        assert (await cart_of(email_project, who) or []) == expected


async def test_an_older_event_changes_nothing(email_project: Client, world: World) -> None:
    """E7, E5: what happened before the last cart change is stored, and leaves the profile as it is; the same cart again
    is a cart change too."""
    now = await world.now()
    await put(email_project)
    assert await outcomes(email_project, cart("tea", event_time=timestamp(now - 5 * HOUR))) == [WRITE_OUTCOME_UPDATED]
    profile = "SELECT profile_update_time FROM profiles WHERE project_id = $1"
    updated = await world.value(profile, email_project.project_id)
    same_again = cart("tea", event_time=timestamp(now - HOUR))
    between = [cart("milk", event_time=timestamp(now - 2 * HOUR)), purchase(event_time=timestamp(now - 6 * HOUR))]
    assert await outcomes(email_project, same_again, *between) == [WRITE_OUTCOME_UNCHANGED] * 3
    assert await cart_of(email_project) == ["tea"]
    assert await world.value(profile, email_project.project_id) == updated
    assert len(await email_project.names(identifiers=A)) == 4


async def test_of_one_moment_the_later_telling_counts(email_project: Client, world: World) -> None:
    """E7: two events of the very same event_time, given or by default, count in the order in which they are told."""
    moment = timestamp(await world.now() - HOUR)
    await email_project.batch([cart("tea", event_time=moment), cart("milk", event_time=moment)])
    assert await cart_of(email_project) == ["milk"]
    await email_project.batch([cart("bread", event_time=moment)])
    assert await cart_of(email_project) == ["bread"]
    await email_project.batch([cart("tea"), purchase("tea"), cart("jam")])
    assert await cart_of(email_project) == ["jam"]


async def test_a_duplicate_does_not_bring_a_cart_back(email_project: Client, world: World) -> None:
    """E3, E7: an event told again changes nothing, alone or in one batch with its first telling."""
    event = cart("tea", event_id="e1")
    assert await outcomes(email_project, event, event) == [WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UNCHANGED]
    await put(email_project, fields='{"shoppingCartItems":[{"name":"by hand"}]}')
    before = await rows_of(world, email_project.project_id)
    assert (await email_project.events.Track(TrackRequest(event=event))).result.duplicate
    assert await rows_of(world, email_project.project_id) == before
    assert await outcomes(email_project, cart("milk"), event) == [WRITE_OUTCOME_UPDATED, WRITE_OUTCOME_UNCHANGED]
    assert await cart_of(email_project) == ["milk"]


async def test_a_refused_event_changes_no_cart(hybrid_project: Client, world: World) -> None:
    """E7, E4, I14: nobody is made for a skipped event, and one that is refused for another reason changes no cart."""
    c = hybrid_project
    await put(c, A, '{"shoppingCartItems":["old"]}')
    await put(c, user("u2"))
    before = await rows_of(world, c.project_id)
    both = Identifiers(email="a@example.com", user_id="u2")
    far = timestamp(await world.now() + 25 * HOUR)
    results = await c.batch(
        [
            cart("tea", who=user("new"), update_existing_only=True, event_id="e1"),
            cart("tea", who=both, event_id="e2"),
            cart("tea", event_time=far, event_id="e3"),
        ]
    )
    assert results[0].result.profile_outcome == WRITE_OUTCOME_SKIPPED
    assert results[1].error.reason == ERROR_REASON_IDENTIFIERS_CONFLICT
    assert results[2].error.code == Code.INVALID_ARGUMENT
    assert await rows_of(world, c.project_id) == before


async def test_a_cart_that_does_not_fit(email_project: Client, world: World) -> None:
    """E7, X5, E4: a cart that would take the profile's fields over 1 MB is the error of its event alone, which leaves
    no trace: not of the identifiers it gave either, nor of its event_id."""
    c = email_project
    await put(c, A, orjson.dumps({"a": "x" * 999_900}).decode())
    before = await rows_of(world, c.project_id)
    large = cart(
        *(f"thing {n}" for n in range(20)), who=Identifiers(email="a@example.com", user_id="new"), event_id="e"
    )
    refused = await failure(c.events.Track(TrackRequest(event=large, request_id="r1")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DATA_FIELDS_LIMIT")
    assert refused.metadata == {"limit_bytes": "1000000"}
    assert await rows_of(world, c.project_id) == before
    results = await c.batch([large, NewEvent(identifiers=A, name="fits"), purchase("tea"), large])
    assert [each.error.reason for each in results] == [
        ERROR_REASON_DATA_FIELDS_LIMIT, 0, 0, ERROR_REASON_DATA_FIELDS_LIMIT
    ]  # fmt: skip
    assert await c.names(identifiers=A) == ["Bought", "fits"]
    assert await cart_of(c) is None


@pytest.mark.parametrize("project_type", ["EMAIL", "HYBRID"])
async def test_a_person_by_a_name_from_the_same_batch(make_project: MakeProject, project_type: str) -> None:
    """E4, E7, I3: a cart update finds its person by an identifier that an earlier event of the batch gave them."""
    c = await make_project(project_type)
    await put(c, A, '{"plan":"gold"}')
    told = await outcomes(
        c,
        NewEvent(identifiers=Identifiers(email="a@example.com", user_id="u9"), name="named"),
        cart("tea", who=user("u9")),
        cart("milk", who=B),
        cart("bread", who=Identifiers(email="b@example.com", user_id="u8")),
        purchase("milk", who=user("u8")),
    )
    assert told == [
        WRITE_OUTCOME_UPDATED, WRITE_OUTCOME_UPDATED, WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UPDATED,
        WRITE_OUTCOME_UPDATED,
    ]  # fmt: skip
    assert await fields_of(c, A) == {
        "plan": "gold",
        "shoppingCartItems": [COLA_READ | {"id": "tea", "name": "tea", "price": 1}],
    }
    assert await cart_of(c, B) == []


async def test_a_visitors_cart_stays_a_visitors(email_project: Client, world: World) -> None:
    """E7, A1, A3: an event told without a person changes nobody's cart: not when it is associated, nor in the grace."""
    c = email_project
    await put(c, A, '{"shoppingCartItems":["own"]}')
    nobody: Any = None
    await c.batch([cart("tea", who=nobody, anonymous_id="x")])
    await c.identity.Identify(IdentifyRequest(identifiers=A, anonymous_id="x"))
    await c.batch([purchase("tea", who=nobody, anonymous_id="x")])
    await world.settle(c.project_id)
    assert await c.names(identifiers=A) == ["Bought", "Cart"]
    assert (await fields_of(c))["shoppingCartItems"] == ["own"]


async def test_a_plain_event_does_not_touch_the_profile(
    email_project: Client, settings: Settings, world: World
) -> None:
    """E7: an event that is no purchase or cart update neither waits for the profile's row nor holds it."""
    await put(email_project)
    lock = "SELECT FROM profiles WHERE project_id = $1 FOR UPDATE"
    async with held(settings, lock, email_project.project_id):
        results = await email_project.batch([NewEvent(identifiers=A, name="plain", event_id="e1")])
        assert not results[0].error.code
        waiting = asyncio.create_task(email_project.batch([cart("tea")]))
        await until_waiting(world, 1)
    assert not (await waiting)[0].error.code
    assert await cart_of(email_project) == ["tea"]


async def test_carts_of_the_same_people_together(email_project: Client, world: World) -> None:
    """E7, F35: batches at once over the same people, one after the other's cart and each giving the other's person a
    new user_id: none deadlocks, and nothing of any is lost."""
    c = email_project
    await asyncio.gather(put(c, A), put(c, B))
    for number in range(12):
        events = [
            [
                cart(f"{number}", who=who),
                NewEvent(identifiers=Identifiers(email=other.email, user_id=f"u{number}"), name="n"),
            ]
            for who, other in ((A, B), (B, A))
        ]
        told = await asyncio.gather(*(c.batch(batch) for batch in events))
        assert not [result for results in told for result in results if result.HasField("error")]
        assert [await cart_of(c, who) for who in (A, B)] == [[f"{number}"]] * 2


async def test_carts_of_one_person_together(email_project: Client, world: World) -> None:
    """E7: of cart updates at once for one person, told alone and in batches, the newest decides and all are stored."""
    now = await world.now()
    events = [cart(f"{n}", event_time=timestamp(now - timedelta(minutes=n)), event_id=f"e{n}") for n in range(24)]
    await put(email_project)
    random.Random(7).shuffle(events)
    calls: list[Any] = [email_project.events.Track(TrackRequest(event=event)) for event in events[:12]]
    calls += [email_project.batch(events[n : n + 3]) for n in range(12, 24, 3)]
    await asyncio.gather(*calls)
    assert await cart_of(email_project) == ["0"]
    assert len(await email_project.names(identifiers=A)) == 24


# --- I16, I19: merging ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target_has_one", [True, False])
async def test_a_cart_in_a_merge_and_its_undo(email_project: Client, world: World, target_has_one: bool) -> None:
    """I16, I19, E7: a merge treats the cart like any field, and the cart goes on to stand as of its event; so it does
    for both when the merge is undone."""
    c = email_project
    now = await world.now()
    await put(c, A)
    await c.batch([cart("source's", who=B, event_time=timestamp(now - 4 * HOUR))])
    if target_has_one:
        await c.batch([cart("target's", event_time=timestamp(now - 2 * HOUR))])
    expected = ["target's"] if target_has_one else ["source's"]

    request = MergeProfilesRequest(source=B, target=A, allow_known_source=True)
    merge = (await c.identity.MergeProfiles(request)).merge
    assert await cart_of(c) == expected
    await c.batch([cart("older", event_time=timestamp(now - 5 * HOUR))])
    assert await cart_of(c) == expected

    await c.identity.UndoMerge(UndoMergeRequest(merge_id=merge.merge_id))
    assert await cart_of(c, B) == ["source's"]
    assert await cart_of(c) == (["target's"] if target_has_one else None)
    await c.batch([cart("older", who=who, event_time=timestamp(now - 5 * HOUR)) for who in (A, B)])
    assert await cart_of(c, B) == ["source's"]
    # The target had no cart of its own: any event is the newest.
    assert await cart_of(c) == (["target's"] if target_has_one else ["older"])


async def test_a_cart_changed_after_the_merge_stays(email_project: Client, world: World) -> None:
    """I19, E7: what changed the cart since the merge stays on the target when it is undone, with its moment."""
    c = email_project
    now = await world.now()
    await put(c, A)
    await c.batch([cart("source's", who=B, event_time=timestamp(now - 4 * HOUR))])
    request = MergeProfilesRequest(source=B, target=A, allow_known_source=True)
    merge = (await c.identity.MergeProfiles(request)).merge
    await c.batch([cart("since", event_time=timestamp(now - 2 * HOUR))])
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=merge.merge_id))
    await c.batch([cart("older", event_time=timestamp(now - 3 * HOUR))])
    assert await cart_of(c) == ["since"]
    assert await cart_of(c, B) == ["source's"]
