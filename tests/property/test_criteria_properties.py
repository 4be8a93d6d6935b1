"""What holds for any criterion, whatever the visitor did."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.activation.criteria import (
    And,
    AnyNode,
    Comparator,
    Condition,
    DataType,
    Leaf,
    Node,
    Not,
    Or,
    Query,
    check,
    from_document,
    to_document,
    walk,
)
from onefold.activation.rules import CompiledCriterion, Event, evaluate

Object = dict[str, Any]

_FIELDS = ["a", "b", "o.a", "o.p.b", "items.a", "items.b", "items.tags", "items.more.a", "items.more.b", "go.a", "tags"]
_ITEM_FIELDS = [field for field in _FIELDS if field.startswith("items.")]
_TEXTS = st.sampled_from(["", "0", "1", "1.0", "2", "x", "xy", "true", "false"])
_FALLING = [Comparator.LESS_THAN, Comparator.LESS_THAN_OR_EQUAL_TO, Comparator.DOES_NOT_EQUAL]
_COMPARATORS = st.sampled_from(list(Comparator))
_RISING = st.sampled_from([each for each in Comparator if each not in _FALLING])


def _conditions(comparators: st.SearchStrategy[Comparator], fields: list[str]) -> st.SearchStrategy[Condition]:
    return st.builds(
        Condition,
        st.sampled_from(fields),
        comparators,
        st.lists(_TEXTS, min_size=1, max_size=2).map(tuple),
        st.sampled_from(["", "long", "double", "boolean", "string", "object", "array"]),
    )


def _groups(inner: st.SearchStrategy[Any], *kinds: Any) -> st.SearchStrategy[Any]:
    children = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of([st.builds(kind, children) for kind in kinds])


def _queries(
    comparators: st.SearchStrategy[Comparator], *kinds: Any, fields: list[str] = _FIELDS
) -> st.SearchStrategy[Query]:
    return st.recursive(_conditions(comparators, fields), lambda inner: _groups(inner, *kinds), max_leaves=4)


def _trees(
    comparators: st.SearchStrategy[Comparator], *kinds: Any, limits: st.SearchStrategy[int | None]
) -> st.SearchStrategy[Node]:
    def leaf(data_type: DataType, query: Query, least: int | None, most: int | None) -> Leaf:
        # A range that can hold, and one that a single profile can meet.
        if least is not None and most is not None and most < least:
            least, most = most, least
        if data_type is DataType.USER or (least is None and most is not None):
            least = None if most else least
        return Leaf(data_type, query, min(least, 1) if least and data_type is DataType.USER else least, most)

    leaves = st.builds(leaf, st.sampled_from(DataType), _queries(comparators, *kinds), st.none() | limits, limits)
    return st.recursive(leaves, lambda inner: _groups(inner, *kinds), max_leaves=3)


_QUERIES = _queries(_COMPARATORS, And, Or, Not)
_TREES = _trees(_COMPARATORS, And, Or, Not, limits=st.none() | st.integers(0, 3))
_RISING_TREES = _trees(_RISING, And, Or, limits=st.none())

_SCALARS = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, 1.5, "", "1", "2", "x", "xy"])
_VALUES = _SCALARS | st.lists(_SCALARS, max_size=2)
_MORE = st.dictionaries(st.sampled_from(["a", "b"]), _VALUES, max_size=2)
_ITEMS = st.fixed_dictionaries(
    {}, optional={"a": _VALUES, "b": _VALUES, "tags": _VALUES, "more": _MORE | st.lists(_MORE, max_size=2) | _SCALARS}
)
_DATA = st.fixed_dictionaries(
    {},
    optional={
        "a": _VALUES,
        "b": _VALUES,
        "tags": _VALUES,
        "o": _SCALARS | st.fixed_dictionaries({}, optional={"a": _VALUES, "p": _MORE | st.lists(_MORE, max_size=2)}),
        "items": _SCALARS | _ITEMS | st.lists(_ITEMS, max_size=3),
        "go": _SCALARS | _MORE,
    },
)
_EVENTS = st.lists(
    st.builds(
        Event,
        st.uuids().map(str),
        st.sampled_from([DataType.CUSTOM_EVENT, DataType.PURCHASE, DataType.CART_UPDATE]),
        st.sampled_from(["go", "a", "items"]),
        _DATA,
    ),
    max_size=4,
)

_quick = settings(deadline=None, max_examples=75)


def _matches(root: Node, events: list[Event], fields: Object) -> bool:
    return evaluate([CompiledCriterion("c", root)], events, fields).matched_id is not None


def _meets(query: Query, data: Object, name: str = "go") -> bool:
    return _matches(Leaf("customEvent", query), [Event("e", DataType.CUSTOM_EVENT, name, data)], {})


def _dual(node: Any) -> Any:
    """The negation of a tree by De Morgan: And and Or change places, and each leaf or condition is negated."""
    if isinstance(node, And):
        return Or(tuple(map(_dual, node.nodes)))
    if isinstance(node, Or):
        return And(tuple(map(_dual, node.nodes)))
    if isinstance(node, Not):
        return Or(node.nodes)
    return Not((node,))


@_quick
@given(_QUERIES, _DATA)
def test_de_morgan_holds_within_a_query(query: Query, data: Object) -> None:
    """U1: in a query Not(And(a, b)) is Or(Not(a), Not(b)) and the reverse, also where arrays are asked."""
    assert _meets(Not((query,)), data) == (not _meets(query, data))
    assert _meets(_dual(query), data) == (not _meets(query, data))


@_quick
@given(_TREES, _EVENTS, _DATA)
def test_de_morgan_holds_over_leaves(root: Node, events: list[Event], fields: Object) -> None:
    """U1: over leaves Not(And(a, b)) is Or(Not(a), Not(b)) and the reverse, whatever the limits."""
    assert _matches(Not((root,)), events, fields) == (not _matches(root, events, fields))
    assert _matches(_dual(root), events, fields) == (not _matches(root, events, fields))


@_quick
@given(_QUERIES, _DATA, st.randoms(use_true_random=False))
def test_the_order_of_nodes_and_elements_says_nothing(query: Query, data: Object, random: Any) -> None:
    """U1: a query's children and an array's elements are sets."""

    def shuffled(value: Any) -> Any:
        if isinstance(value, And | Or | Not):
            nodes = [shuffled(node) for node in value.nodes]
            random.shuffle(nodes)
            return type(value)(tuple(nodes))
        if isinstance(value, dict):
            return {key: shuffled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return random.sample([shuffled(inner) for inner in value], len(value))
        return value

    assert _meets(shuffled(query), shuffled(data)) == _meets(query, data)


@_quick
@given(_queries(_COMPARATORS, And, Or, fields=_ITEM_FIELDS), st.lists(_ITEMS, max_size=4))
def test_without_not_one_element_decides(query: Query, items: list[Object]) -> None:
    """U1: what a list of items meets, one of its items meets alone, and the reverse."""
    assert _meets(query, {"items": items}) == any(_meets(query, {"items": [item]}) for item in items)


@_quick
@given(st.lists(_TREES, max_size=3), _EVENTS, _DATA, st.randoms(use_true_random=False))
def test_the_order_of_events_says_nothing(roots: list[Node], events: list[Event], fields: Object, random: Any) -> None:
    """U1: the same events in any order match the same criterion with the same counts."""
    criteria = [CompiledCriterion(str(index), root) for index, root in enumerate(roots)]
    one = evaluate(criteria, events, fields)
    other = evaluate(criteria, random.sample(events, len(events)), fields)
    assert one.matched_id == other.matched_id
    for mine, theirs in zip(one.reports, other.reports, strict=True):
        for leaf, same in zip(mine.leaves, theirs.leaves, strict=True):
            assert (leaf.match_count, leaf.unmet) == (same.match_count, same.unmet)
            assert sorted(leaf.event_ids) == sorted(same.event_ids)


@_quick
@given(_RISING_TREES, _EVENTS, _EVENTS, _DATA)
def test_more_events_never_unmatch_a_rising_tree(
    root: Node, events: list[Event], more: list[Event], fields: Object
) -> None:
    """U1: a tree without Not, DoesNotEqual, LessThan or max_match that matched goes on matching."""
    assert _matches(root, [*events, *more], fields) >= _matches(root, events, fields)


@_quick
@given(_TREES, _EVENTS, _DATA)
def test_event_by_event_comes_to_the_same(root: Node, events: list[Event], fields: Object) -> None:
    """U2: counts kept as JSON between any two events say what evaluating all events at once says."""
    criterion = CompiledCriterion("c", root)
    counts = criterion.start()
    for event in events:
        before = list(counts)
        assert criterion.update(counts, event) == (counts != before)
        counts = json.loads(json.dumps(counts))
    report = evaluate([criterion], events, fields).reports[0]
    assert criterion.is_match(counts, fields) == report.is_match
    for leaf, count in zip(report.leaves, counts, strict=True):
        if leaf.data_type is not DataType.USER:
            assert leaf.match_count == count == len(leaf.event_ids)


@_quick
@given(_TREES, _EVENTS, _DATA)
def test_a_near_miss_names_conditions_that_are_not_met(root: Node, events: list[Event], fields: Object) -> None:
    """U2: a condition that a report calls unmet is met by no event, and is where the report says."""
    [report] = evaluate([CompiledCriterion("c", root)], events, fields).reports
    nodes: dict[str, AnyNode] = {path: node for path, node, _ in walk(root)}
    for leaf in report.leaves:
        for unmet in leaf.unmet:
            condition = nodes[unmet.path]
            assert isinstance(condition, Condition)
            assert condition.field == unmet.field
            assert not leaf.is_match
            assert not report.is_match
            assert not _matches(Leaf(leaf.data_type, condition), events, fields)


@_quick
@given(_TREES)
def test_a_tree_survives_being_kept(root: Node) -> None:
    """U1: a tree within the limits is found fit, and its JSON gives the same tree back."""
    found = check(root)
    if len(list(walk(root))) <= 50 and all(depth <= 8 for _, _, depth in walk(root, levels=99)):
        assert found == []
    assert from_document(json.loads(json.dumps(to_document(root)))) == root


class _Counted(dict[str, Any]):
    """An event's data that counts how often it is read."""

    reads = 0

    def get(self, key: str, default: Any = None) -> Any:
        _Counted.reads += 1
        return super().get(key, default)


@_quick
@given(_TREES, _EVENTS, st.integers(2, 8))
def test_work_grows_with_the_events_and_no_faster(root: Node, events: list[Event], times: int) -> None:
    """U1: evaluating n times as many events reads at most n times as much."""
    criterion = CompiledCriterion("c", root)
    counted = [Event(event.event_id, event.data_type, event.name, _Counted(event.data)) for event in events]

    def reads(seen: list[Event]) -> int:
        _Counted.reads = 0
        counts = criterion.start()
        for event in seen:
            criterion.update(counts, event)
        counting = _Counted.reads
        evaluate([criterion], seen, {})
        # Reporting looks for unmet conditions too: once more for each event and condition at most.
        assert _Counted.reads - counting <= counting + len(seen) * 60
        return counting

    assert reads(counted * times) == times * reads(counted)
