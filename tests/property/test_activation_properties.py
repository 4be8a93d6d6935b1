"""Counting a visitor's events bit by bit, against looking at all of them at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.activation.criteria import And, Condition, DataType, Leaf, Node, Not, Or
from onefold.activation.rules import Event, evaluate
from onefold.activation.store import Counted, CriterionRow, Snapshot, TimedEvent, Visit, encode_tree
from onefold.activation.watching import Criteria, count_all, count_new

START = datetime(2026, 1, 1, tzinfo=UTC)
SEEN = Snapshot.of(START, "1:1:")

leaves = st.builds(
    lambda name, low, extra: Leaf(
        "customEvent", Condition("eventName", "Equals", (name,)), low, None if extra is None else low + extra
    ),
    st.sampled_from("abc"),
    st.integers(0, 3),
    st.none() | st.integers(0, 2),
)
trees: st.SearchStrategy[Node] = st.recursive(
    leaves,
    lambda nodes: st.builds(
        lambda kind, children: kind(tuple(children)),
        st.sampled_from([And, Or, Not]),
        st.lists(nodes, min_size=1, max_size=3),
    ),
    max_leaves=4,
)


def criteria(roots: list[Node]) -> Criteria:
    """Criteria with these trees, oldest first."""
    return Criteria.of(
        [
            CriterionRow(UUID(int=number + 1), "name", 1, encode_tree(root), START, START)
            for number, root in enumerate(roots)
        ]
    )


def first_match(wanted: Criteria, events: list[TimedEvent]) -> tuple[int, str] | None:
    """After how many events a visitor matches, and what: the definition."""
    for count in range(1, len(events) + 1):
        matched = evaluate(wanted.compiled, [each.event for each in events[:count]], {}).matched_id
        if matched is not None:
            return count, matched
    return None


@settings(max_examples=150, deadline=None)
@given(
    st.lists(trees, min_size=1, max_size=3),
    st.text("abcx", max_size=12),
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=12),
)
def test_bit_by_bit_is_the_same_as_all_at_once(roots: list[Node], names: str, steps: list[tuple[int, bool]]) -> None:
    """U1, U2: in whatever portions a visitor's events arrive, and whenever all of them are counted anew, the visitor
    matches the first criterion that holds, at the first event for which one does, or not at all."""
    wanted = criteria(roots)
    events = [
        TimedEvent(START + timedelta(seconds=number), Event(str(number), DataType.CUSTOM_EVENT, name, {}))
        for number, name in enumerate(names)
    ]
    found: tuple[int, str] | None = None
    state: Counted | None = None
    done = 0
    portions = iter([*steps, *[(1, False)] * len(events)])
    while done < len(events) and found is None:
        size, anew = next(portions)
        new = events[done : done + size]
        if state is None or anew:
            matched, state = count_all(wanted, Visit(events[: done + size], SEEN), new)
        else:
            matched, state = count_new(wanted, state, new, always=False)
        done += len(new)
        if matched is not None:
            found = done, str(matched)
    expected = first_match(wanted, events)
    if expected is None or found is None:
        assert found == expected
    else:
        assert found[1] == expected[1]
        assert found[0] >= expected[0] > found[0] - max((size for size, _ in steps), default=1)


@settings(max_examples=100, deadline=None)
@given(st.lists(trees, min_size=1, max_size=3), st.text("abcx", max_size=12), st.integers(0, 12))
def test_what_is_kept_does_not_depend_on_the_portions(roots: list[Node], names: str, cut: int) -> None:
    """U2: the state after two portions is that after one, and its oldest event is the oldest that counts."""
    wanted = criteria(roots)
    events = [
        TimedEvent(START + timedelta(seconds=number), Event(str(number), DataType.CUSTOM_EVENT, name, {}))
        for number, name in enumerate(names)
    ]
    _, at_once = count_all(wanted, Visit(events, SEEN), [])
    _, first = count_all(wanted, Visit(events[:cut], SEEN), [])
    _, bit_by_bit = count_new(wanted, first, events[cut:], always=False)
    assert bit_by_bit == at_once
    told = {value for root in roots for value in _values(root)}
    counting = [each.event_time for each in events if each.event.name in told]
    assert at_once.oldest_event_time == min(counting, default=None)


def _values(node: Node) -> set[str]:
    if isinstance(node, Leaf):
        assert isinstance(node.query, Condition)
        return set(node.query.values)
    return {value for child in node.nodes for value in _values(child)}
