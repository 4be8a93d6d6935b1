"""What holds for all purchases and cart updates."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.callers import IdentifierType, Project, ProjectSettings, Region
from onefold.events.messages import read_event
from onefold.events.rules import cart_after
from onefold.rpc.checks import Checker
from onefold.rpc.payload import write_struct
from onefold.v1.event_pb2 import EVENT_KIND_CART_UPDATE, EVENT_KIND_PURCHASE, CommerceItem, EventKind, NewEvent

NOW = datetime(2026, 11, 22, tzinfo=UTC)
PROJECT = Project("shop", IdentifierType.HYBRID, Region.US, ProjectSettings(), NOW, NOW)
RESERVED = {"total", "shoppingCartItems", "updatedShoppingCartItems"}

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts.filter(lambda key: key not in RESERVED), values, max_size=4)
prices = st.floats(0, allow_nan=False, allow_infinity=False)
items = st.fixed_dictionaries(
    {
        "id": st.text("abc-", min_size=1, max_size=8),
        "name": texts.filter(bool),
        "price": prices,
        "quantity": st.integers(0, 2**31 - 1),
    },
    optional={"data": objects},
)


def to_message(item: dict[str, Any]) -> CommerceItem:
    """An item as a caller tells it."""
    message = CommerceItem(**{name: value for name, value in item.items() if name != "data"})
    if "data" in item:
        write_struct(message.data, item["data"])
        message.data.SetInParent()
    return message


def expected(item: dict[str, Any]) -> dict[str, Any]:
    """The same as a client reads it."""
    read = {"id": item["id"], "name": item["name"], "price": item["price"], "quantity": item["quantity"] or 1}
    return read | ({"dataFields": item["data"]} if "data" in item else {})


def spread(value: Any, space: str) -> str:
    """JSON text with white space wherever it may stand."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    return f"{space}{text}{space}"


@pytest.mark.parametrize("kind", [EVENT_KIND_PURCHASE, EVENT_KIND_CART_UPDATE])
@settings(deadline=None, max_examples=100)
@given(
    told=st.lists(items, min_size=1, max_size=3),
    own=st.none() | objects,
    total=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    as_text=st.booleans(),
    space=st.text(" \n\t\r", max_size=3),
)
def test_items_and_own_data_stand_side_by_side(
    kind: EventKind.ValueType,
    told: list[dict[str, Any]],
    own: dict[str, Any] | None,
    total: float | None,
    as_text: bool,
    space: str,
) -> None:
    """E7: whatever the items, the total and the event's own data, the event's data has all of them and nothing else, as
    one JSON object with no key twice; a cart update's cart is its items, a purchase's is empty."""
    purchase = kind == EVENT_KIND_PURCHASE
    event = NewEvent(anonymous_id="x", name="Shopped", kind=kind, items=[to_message(item) for item in told])
    if total is not None and purchase:
        event.total = total
    if own is not None and as_text:
        event.data_json = spread(own, space)
    elif own is not None:
        data = Struct()
        write_struct(data, own)
        event.data.CopyFrom(data)
    checker = Checker()
    arrival = read_event(checker, PROJECT, event)
    assert checker.violations == []
    whole = {**(own or {}), "shoppingCartItems" if purchase else "updatedShoppingCartItems": [*map(expected, told)]}
    if total is not None and purchase:
        whole["total"] = total
    assert arrival.payload.value == orjson.loads(arrival.payload.text) == whole
    pairs = json.loads(arrival.payload.text, object_pairs_hook=list)
    assert len(pairs) == len(whole)
    assert cart_after(arrival) == ([] if purchase else [*map(expected, told)])
