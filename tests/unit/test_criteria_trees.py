"""What a criterion's tree, its leaves and their queries say of a visitor's events and fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from onefold.activation.criteria import And, Condition, DataType, Leaf, Node, Not, Or, Query, check
from onefold.activation.rules import DATA_TYPES, CompiledCriterion, Evaluation, Event, UnmetCondition, evaluate
from onefold.events.rules import EventKind

CUSTOM, PURCHASE, CART, USER = DataType.CUSTOM_EVENT, DataType.PURCHASE, DataType.CART_UPDATE, DataType.USER
Object = dict[str, Any]


def eq(field: str, *values: str) -> Condition:
    return Condition(field, "Equals", values)


def is_set(field: str) -> Condition:
    return Condition(field, "IsSet")


def event(data: Object, name: str = "clicked", data_type: DataType = CUSTOM, event_id: str = "e") -> Event:
    return Event(event_id, data_type, name, data)


def run(root: Node, events: list[Event], profile_fields: Object | None = None) -> Evaluation:
    assert check(root) == []
    return evaluate([CompiledCriterion("c", root)], events, profile_fields or {})


def matches(root: Node, events: list[Event], profile_fields: Object | None = None) -> bool:
    return run(root, events, profile_fields).matched_id == "c"


A, B, C, D = eq("a", "1"), eq("b", "1"), eq("c", "1"), eq("d", "1")

# A query, the names of the fields that are 1, and whether they meet it.
LOGIC: list[tuple[Query, str, bool]] = [
    (And((A, B)), "ab", True),
    (And((A, B)), "a", False),
    (And((A, B)), "", False),
    (And((A,)), "a", True),
    (Or((A, B)), "b", True),
    (Or((A, B)), "ab", True),
    (Or((A, B)), "c", False),
    (Not((A,)), "a", False),
    (Not((A,)), "", True),
    (Not((A, B)), "b", False),
    (Not((A, B)), "c", True),
    (Not((And((A, B)),)), "a", True),
    (Not((And((A, B)),)), "ab", False),
    (Not((Not((A,)),)), "a", True),
    (Not((Not((A,)),)), "", False),
    (And((Or((A, B)), Or((C, D)))), "ad", True),
    (And((Or((A, B)), Or((C, D)))), "ab", False),
    (Or((And((A, B)), And((C, D)))), "cd", True),
    (Or((And((A, B)), And((C, D)))), "ac", False),
    (And((A, Not((B,)))), "a", True),
    (And((A, Not((B,)))), "ab", False),
    (Or((A, Not((B, C)))), "c", False),
    (Or((A, Not((B, C)))), "d", True),
    (And((A, Or((B, And((C, Not((D,)))))))), "ac", True),
    (And((A, Or((B, And((C, Not((D,)))))))), "acd", False),
    (And((A, Or((B, And((C, Not((D,)))))))), "abcd", True),
]


def _tree(query: Query) -> Node:
    """The same tree with a leaf in the place of each condition."""
    if isinstance(query, Condition):
        return Leaf(CUSTOM, query)
    nodes = tuple(map(_tree, query.nodes))
    return And(nodes) if isinstance(query, And) else Or(nodes) if isinstance(query, Or) else Not(nodes)


@pytest.mark.parametrize(("query", "ones", "expected"), LOGIC)
def test_and_or_and_not_mean_what_they_say(query: Query, ones: str, expected: bool) -> None:
    """U1: And is all, Or is any, Not is none, at every level: in a leaf's query, and over leaves."""
    one_event = event(dict.fromkeys(ones, 1))
    assert matches(Leaf(CUSTOM, query), [one_event]) == expected
    assert matches(Leaf(USER, query), [], one_event.data) == expected
    assert matches(_tree(query), [event({name: 1}) for name in ones]) == expected


def test_a_leaf_wants_one_event_that_meets_all_of_its_query() -> None:
    """U1: two events that meet one condition each are not one that meets both, and two leaves may be met by two."""
    events = [event({"a": 1}), event({"b": 1})]
    assert not matches(Leaf(CUSTOM, And((A, B))), events)
    assert matches(And((Leaf(CUSTOM, A), Leaf(CUSTOM, B))), events)


# min_match, max_match, the number of matching events, and whether the leaf holds
COUNTS: list[tuple[int | None, int | None, int, bool]] = [
    (None, None, 0, False),
    (None, None, 1, True),
    (None, None, 9, True),
    (3, None, 2, False),
    (3, None, 3, True),
    (3, None, 4, True),
    (0, None, 0, True),
    (0, None, 5, True),
    (None, 2, 0, False),
    (None, 2, 2, True),
    (None, 2, 3, False),
    (0, 2, 0, True),
    (2, 4, 1, False),
    (2, 4, 2, True),
    (2, 4, 4, True),
    (2, 4, 5, False),
    (2, 2, 2, True),
    (None, 0, 0, True),
    (None, 0, 1, False),
    (0, 0, 0, True),
    (0, 0, 1, False),
]


@pytest.mark.parametrize(("least", "most", "count", "expected"), COUNTS)
def test_limits_count_matching_events(least: int | None, most: int | None, count: int, expected: bool) -> None:
    """U1: min_match and max_match count the events that match; without them one is enough, and none if max is 0."""
    events = [event({"a": 1})] * count + [event({"a": 2}), event({"a": 1}, data_type=PURCHASE)] * 3
    assert matches(Leaf(CUSTOM, A, least, most), events) == expected


@pytest.mark.parametrize(("most", "fields", "expected"), [(None, {"a": 1}, True), (0, {"a": 1}, False), (0, {}, True)])
def test_a_profile_counts_as_one_event(most: int | None, fields: Object, expected: bool) -> None:
    """U1: the limits of a leaf over the user's fields count the profile."""
    assert matches(Leaf(USER, A, max_match=most), [], fields) == expected


@pytest.mark.parametrize("leaf_type", DataType)
@pytest.mark.parametrize("event_type", [CUSTOM, PURCHASE, CART])
def test_a_leaf_looks_at_its_own_sort_of_data(leaf_type: DataType, event_type: DataType) -> None:
    """U1: a leaf over one data type is met by no other."""
    assert matches(Leaf(leaf_type, A), [event({"a": 1}, data_type=event_type)]) == (leaf_type == event_type)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (eq("updateCart.updatedShoppingCartItems.name", "pizza"), True),
        (eq("updateCart.updatedShoppingCartItems.name", "pasta"), False),
        (eq("eventName", "updateCart"), True),
        (is_set("updateCart"), True),
        (eq("updatedShoppingCartItems.name", "pizza"), False),
        (is_set("eventName"), False),
        (eq("total", "10"), False),
    ],
)
def test_a_custom_event_named_update_cart_is_a_cart_update(query: Query, expected: bool) -> None:
    """U1: a leaf over custom events counts cart updates only where it names updateCart."""
    cart = event({"updatedShoppingCartItems": [{"name": "pizza"}], "total": 10}, "cart", CART)
    assert matches(Leaf(CUSTOM, query), [cart]) == expected


# the event's name, its data, a condition, whether it holds
NAMES: list[tuple[str, Object, Condition, bool]] = [
    ("clicked", {}, eq("eventName", "clicked"), True),
    ("clicked", {}, eq("eventName", "other"), False),
    ("clicked", {"eventName": "other"}, eq("eventName", "clicked"), True),
    ("clicked", {}, Condition("eventName", "StartsWith", ("cli",)), True),
    ("clicked", {}, Condition("eventName", "DoesNotEqual", ("clicked",)), False),
    ("clicked", {}, is_set("eventName"), True),
    ("clicked", {}, is_set("clicked"), True),
    ("other", {}, is_set("clicked"), False),
    ("other", {"clicked": 0}, is_set("clicked"), True),
    ("clicked", {}, eq("clicked", "clicked"), False),
    ("clicked", {"clicked": 5}, eq("clicked", "5"), True),
    ("clicked", {"animal": "cat"}, eq("clicked.animal", "cat"), True),
    ("clicked", {"animal": "cat"}, eq("animal", "cat"), True),
    ("other", {"animal": "cat"}, eq("clicked.animal", "cat"), False),
    ("clicked", {}, eq("clicked.eventName", "clicked"), True),
    ("page.view", {"url": "/"}, eq("page.view.url", "/"), True),
    ("page.view", {}, is_set("page.view"), True),
    ("page", {"view": {"url": "/"}}, eq("page.view.url", "/"), True),
    ("click", {"ed": {"animal": "cat"}}, eq("clicked.animal", "cat"), False),
    # A name that is also a field with something in it is that field.
    ("order", {"order": {"id": 1}}, eq("order.id", "1"), True),
    ("order", {"order": {"id": 1}, "id": 2}, eq("order.id", "1"), True),
    ("order", {"order": [{"id": 1}]}, eq("order.id", "1"), True),
    ("order", {"order": 7, "id": 2}, eq("order.id", "2"), True),
    ("order", {"order": {}}, is_set("order"), True),
]


@pytest.mark.parametrize(("name", "data", "condition", "expected"), NAMES)
def test_a_field_may_name_the_event(name: str, data: Object, condition: Condition, expected: bool) -> None:
    """U1: eventName is the name, a path may begin with it, and an IsSet of the name holds."""
    assert matches(Leaf(CUSTOM, condition), [event(data, name)]) == expected


def test_a_profile_has_no_event_name() -> None:
    """U1: a profile's field eventName is a field like any other."""
    assert matches(Leaf(USER, eq("eventName", "x")), [], {"eventName": "x"})
    assert not matches(Leaf(USER, is_set("eventName")), [], {})


PIZZA, LARGE = eq("items.name", "pizza"), eq("items.size", "large")
SAUCE, HOT = eq("items.extras.name", "sauce"), eq("items.extras.hot", "true")
GIFT = eq("coupons.kind", "gift")

# A query, the data, and whether they match: conditions on one array of objects hold on one element.
ELEMENTS: list[tuple[Query, Object, bool]] = [
    (And((PIZZA, LARGE)), {"items": [{"name": "pizza", "size": "large"}]}, True),
    (And((PIZZA, LARGE)), {"items": [{"name": "cola"}, {"name": "pizza", "size": "large"}]}, True),
    (And((PIZZA, LARGE)), {"items": [{"name": "pizza"}, {"size": "large"}]}, False),
    (And((PIZZA, LARGE)), {"items": {"name": "pizza", "size": "large"}}, True),
    (And((PIZZA, LARGE)), {"items": [[{"name": "pizza"}, {"name": "pizza", "size": "large"}]]}, True),
    (And((PIZZA, LARGE)), {"items": []}, False),
    (And((PIZZA, LARGE)), {}, False),
    (And((PIZZA, LARGE)), {"items": "pizza"}, False),
    (Or((PIZZA, LARGE)), {"items": [{"name": "cola"}, {"size": "large"}]}, True),
    (Or((PIZZA, LARGE)), {"items": [{"name": "cola"}]}, False),
    (And((PIZZA, Or((LARGE, eq("items.price", "1"))))), {"items": [{"name": "pizza"}, {"price": 1}]}, False),
    (And((PIZZA, Or((LARGE, eq("items.price", "1"))))), {"items": [{"name": "pizza", "price": 1}]}, True),
    # Not is "does not match", also of an array.
    (Not((PIZZA,)), {"items": [{"name": "pizza"}, {"name": "cola"}]}, False),
    (Not((PIZZA,)), {"items": [{"name": "cola"}]}, True),
    (Not((PIZZA,)), {"items": []}, True),
    (Not((PIZZA,)), {}, True),
    (Not((And((PIZZA, LARGE)),)), {"items": [{"name": "pizza"}, {"size": "large"}]}, True),
    (Not((And((PIZZA, LARGE)),)), {"items": [{"name": "pizza", "size": "large"}, {"name": "cola"}]}, False),
    (And((Not((PIZZA,)), Not((LARGE,)))), {"items": [{"name": "pizza"}, {"name": "cola"}]}, False),
    (And((Not((PIZZA,)), Not((LARGE,)))), {"items": [{"name": "cola"}]}, True),
    (Not((PIZZA, LARGE)), {"items": [{"name": "pizza"}, {"name": "cola"}]}, False),
    (And((PIZZA, Not((LARGE,)))), {"items": [{"name": "pizza"}, {"name": "cola", "size": "large"}]}, True),
    (And((PIZZA, Not((LARGE,)))), {"items": [{"name": "pizza", "size": "large"}, {"name": "cola"}]}, False),
    (And((PIZZA, Not((LARGE,)))), {"items": []}, False),
    # Conditions on something else say nothing of which element.
    (And((PIZZA, LARGE, eq("total", "5"))), {"total": 5, "items": [{"name": "pizza", "size": "large"}]}, True),
    (And((PIZZA, LARGE, eq("total", "5"))), {"total": 4, "items": [{"name": "pizza", "size": "large"}]}, False),
    (Or((And((PIZZA, LARGE)), eq("total", "5"))), {"total": 5, "items": []}, True),
    (And((PIZZA, GIFT)), {"items": [{"name": "cola"}, {"name": "pizza"}], "coupons": [{}, {"kind": "gift"}]}, True),
    (And((PIZZA, GIFT)), {"items": [{"name": "pizza"}], "coupons": []}, False),
    (And((PIZZA, Not((GIFT,)))), {"items": [{"name": "pizza"}], "coupons": [{"kind": "gift"}, {}]}, False),
    (And((PIZZA, Not((GIFT,)))), {"items": [{"name": "pizza"}], "coupons": [{"kind": "sale"}]}, True),
    (And((PIZZA, LARGE, GIFT)), {"items": [{"name": "pizza"}, {"size": "large"}], "coupons": {"kind": "gift"}}, False),
    # Arrays in arrays: one element of the inner one, which is one of the outer one's.
    (And((SAUCE, HOT)), {"items": [{"extras": [{"name": "sauce", "hot": True}]}]}, True),
    (And((SAUCE, HOT)), {"items": [{"extras": [{"name": "sauce"}, {"hot": True}]}]}, False),
    (And((SAUCE, HOT)), {"items": [{"extras": [{"name": "sauce"}]}, {"extras": [{"hot": True}]}]}, False),
    (And((PIZZA, SAUCE)), {"items": [{"name": "pizza", "extras": [{"name": "sauce"}]}, {"name": "cola"}]}, True),
    (And((PIZZA, SAUCE)), {"items": [{"name": "pizza"}, {"extras": [{"name": "sauce"}]}]}, False),
    (And((PIZZA, Not((SAUCE,)))), {"items": [{"name": "pizza", "extras": [{"name": "sauce"}, {}]}]}, False),
    (And((PIZZA, Not((SAUCE,)))), {"items": [{"name": "pizza"}, {"extras": [{"name": "sauce"}]}]}, True),
    (
        And((PIZZA, SAUCE, HOT)),
        {"items": [{"name": "pizza", "extras": [{"name": "oil", "hot": True}, {"name": "sauce", "hot": True}]}]},
        True,
    ),
    # The array itself, beside its elements.
    (And((is_set("items"), PIZZA)), {"items": [{"name": "pizza"}]}, True),
    (And((is_set("items"), Not((PIZZA, LARGE)))), {"items": []}, False),
    (And((is_set("items"), Not((PIZZA, LARGE)))), {"items": [{"name": "cola"}]}, True),
    # Two arrays woven into each other: a gift of 5 with a pizza, or a sale of 5 with a large one.
    (
        Or((And((PIZZA, GIFT)), And((LARGE, eq("coupons.kind", "sale"))))),
        {"items": [{"name": "pizza"}], "coupons": [{"kind": "sale"}]},
        False,
    ),
    (
        Or((And((PIZZA, GIFT)), And((LARGE, eq("coupons.kind", "sale"))))),
        {"items": [{"name": "pizza"}, {"size": "large"}], "coupons": [{"kind": "other"}, {"kind": "sale"}]},
        True,
    ),
]


@pytest.mark.parametrize(("query", "data", "expected"), ELEMENTS)
def test_conditions_on_one_array_hold_on_one_element(query: Query, data: Object, expected: bool) -> None:
    """U1: dotted paths reach into arrays of objects, and what is asked of one array is asked of one element."""
    assert matches(Leaf(CUSTOM, query), [event(data)]) == expected
    assert matches(Leaf(USER, query), [], data) == expected


@pytest.mark.parametrize(
    ("data_type", "items", "field"),
    [
        (PURCHASE, "shoppingCartItems", "shoppingCartItems"),
        (CART, "updatedShoppingCartItems", "updateCart.updatedShoppingCartItems"),
        (CUSTOM, "updatedShoppingCartItems", "updateCart.updatedShoppingCartItems"),
    ],
)
def test_a_leaf_over_items_matches_within_one_item(data_type: DataType, items: str, field: str) -> None:
    """U1: all of a leaf's conditions on purchased or cart items hold on the same item."""
    query = And((eq(f"{field}.name", "pizza"), Condition(f"{field}.price", "GreaterThan", ("10",), "double")))
    name = "updateCart" if data_type is not PURCHASE else "purchase"
    one = event({items: [{"name": "cola", "price": 2}, {"name": "pizza", "price": 12.5}]}, name, data_type)
    other = event({items: [{"name": "cola", "price": 20}, {"name": "pizza", "price": "9.5"}]}, name, data_type)
    assert matches(Leaf(data_type, query), [other, one])
    assert not matches(Leaf(data_type, query), [other])


def test_a_path_with_the_events_name_reaches_the_same_array() -> None:
    """U1: with the event's name in front or without, a path leads to the same elements."""
    query = And((eq("order.items.name", "pizza"), eq("items.size", "large")))
    leaf = Leaf(CUSTOM, query)
    assert matches(leaf, [event({"items": [{"name": "pizza", "size": "large"}]}, "order")])
    assert not matches(leaf, [event({"items": [{"name": "pizza"}, {"size": "large"}]}, "order")])


def test_arrays_woven_into_each_other_end() -> None:
    """U1: however many elements a query multiplies with each other, one event's answer comes."""
    pairs = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "a")]
    weave = Or(tuple(And((eq(f"{one}.x", "1"), eq(f"{other}.x", "1"))) for one, other in pairs))
    assert not matches(Leaf(CUSTOM, weave), [event({letter: [{"x": 2}] * 200 for letter in "abcd"})])


def test_every_element_of_long_arrays_is_asked() -> None:
    """U1: an array is asked to its end, and arrays with conditions of their own do not multiply."""
    both = And((eq("a.x", "1"), eq("a.y", "1"), eq("b.x", "1"), eq("b.y", "1")))
    long = [{"x": 1}, {"y": 1}] * 15_000 + [{"x": 1, "y": 1}]
    assert matches(Leaf(CUSTOM, both), [event({"a": long, "b": long})])
    assert not matches(Leaf(CUSTOM, both), [event({"a": long, "b": long[:-1]})])


def _criterion(criterion_id: str, root: Node) -> CompiledCriterion:
    assert check(root) == []
    return CompiledCriterion(criterion_id, root)


def test_the_first_criterion_that_matches_wins() -> None:
    """U1 U2: criteria are tried in their order, and those behind the first match are not reported."""
    criteria = [_criterion(name, Leaf(CUSTOM, query)) for name, query in (("x", A), ("y", B), ("z", Or((A, B))))]
    evaluation = evaluate(criteria, [event({"b": 1})], {})
    assert evaluation.matched_id == "y"
    assert [(report.criterion_id, report.is_match) for report in evaluation.reports] == [("x", False), ("y", True)]
    assert evaluate([], [event({})], {}) == Evaluation(None, ())


def test_a_match_says_which_leaf_by_which_events() -> None:
    """U2: the report names for each leaf its path, its count, what it needs, and the events that matched."""
    root: Node = And((Leaf(CUSTOM, A, min_match=2), Or((Leaf(USER, B), Leaf(PURCHASE, C)))))
    events = [event({"a": number % 2}, event_id=f"e{number}") for number in range(5)]
    evaluation = run(root, events, {"b": 1})
    assert evaluation.matched_id == "c"
    [report] = evaluation.reports
    assert [(leaf.path, leaf.data_type, leaf.is_match, leaf.match_count, leaf.needed) for leaf in report.leaves] == [
        ("and.nodes[0].leaf", CUSTOM, True, 2, 2),
        ("and.nodes[1].or.nodes[0].leaf", USER, True, 1, 1),
        ("and.nodes[1].or.nodes[1].leaf", PURCHASE, False, 0, 1),
    ]
    assert [leaf.event_ids for leaf in report.leaves] == [("e1", "e3"), (), ()]
    assert [leaf.unmet for leaf in report.leaves] == [(), (), ()]


def test_a_near_miss_says_what_is_missing() -> None:
    """U2: without a match each leaf tells how many events it still wants and which conditions no event met."""
    query: Query = And((A, Or((B, C)), Not((D,))))
    root: Node = And((Leaf(CUSTOM, query, 3), Leaf(USER, And((A, B))), Leaf(PURCHASE, D, max_match=1)))
    events = [
        event({"a": 1, "b": 1, "d": 2}, event_id="1"),
        event({"a": 1}, event_id="2"),
        *[event({"d": 1}, data_type=PURCHASE, event_id=name) for name in "34"],
    ]
    evaluation = run(root, events, {"a": 1, "b": 2})
    assert evaluation.matched_id is None
    custom, user, purchase = evaluation.reports[0].leaves
    assert (custom.is_match, custom.match_count, custom.needed, custom.event_ids) == (False, 1, 3, ("1",))
    assert [condition.field for condition in custom.unmet] == ["c", "d"]
    assert custom.unmet[0].path == "and.nodes[0].leaf.query.and.nodes[1].or.nodes[1].condition"
    assert (user.match_count, user.event_ids) == (0, ())
    assert user.unmet == (UnmetCondition("and.nodes[1].leaf.query.and.nodes[1].condition", "b"),)
    assert (purchase.is_match, purchase.match_count, purchase.max_match) == (False, 2, 1)
    assert (purchase.event_ids, purchase.unmet) == (("3", "4"), ())


def test_counts_are_kept_as_json_and_updated_event_by_event() -> None:
    """U2: the state is a list of counts; events may come one by one, with the state stored in between."""
    criterion = _criterion("c", And((Leaf(CUSTOM, A, min_match=2), Leaf(PURCHASE, B, max_match=0), Leaf(USER, C))))
    counts = criterion.start()
    assert criterion.update(counts, event({"a": 1}))
    assert not criterion.update(counts, event({"a": 2}))
    assert not criterion.is_match(counts, {"c": 1})
    counts = json.loads(json.dumps(counts))
    assert criterion.update(counts, event({"a": 1}))
    assert criterion.is_match(counts, {"c": 1})
    assert not criterion.is_match(counts, {})
    assert criterion.update(counts, event({"b": 1}, data_type=PURCHASE))
    assert not criterion.is_match(counts, {"c": 1})


def test_kinds_of_events_that_criteria_look_at() -> None:
    """U1: purchases and cart updates are data types of their own; pushes and in-app messages are none."""
    assert DATA_TYPES[EventKind.PURCHASE] is PURCHASE
    assert DATA_TYPES[EventKind.CART_UPDATE] is CART
    assert {kind for kind, data_type in DATA_TYPES.items() if data_type is CUSTOM} == {
        EventKind.CUSTOM,
        EventKind.PAGE,
        EventKind.SCREEN,
    }
    assert len(DATA_TYPES) == 5
