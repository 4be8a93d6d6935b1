"""Which criterion a visitor matches, and why (U1, U2). Pure.

    criterion = CompiledCriterion("id", root)     # once; `criteria.check(root)` has found nothing
    evaluate([criterion, ...], events, profile_fields).matched_id

and event by event, where a visitor's earlier events need not be read again:

    counts = criterion.start()                    # a list of ints, to be kept as JSON
    criterion.update(counts, event)               # once for each event, in any order
    criterion.is_match(counts, profile_fields)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from onefold.activation.criteria import And, Comparator, Condition, DataType, Leaf, Node, Or, walk
from onefold.activation.evaluating import EVENT_NAME, Matcher, Predicate, Scope, conditions_of, scope_of
from onefold.events.rules import EventKind

UPDATE_CART: Final = "updateCart"

# The kinds of event that a criterion can look at. Pushes and in-app messages go to people only.
DATA_TYPES: Final[Mapping[EventKind, DataType]] = {
    EventKind.CUSTOM: DataType.CUSTOM_EVENT,
    EventKind.PAGE: DataType.CUSTOM_EVENT,
    EventKind.SCREEN: DataType.CUSTOM_EVENT,
    EventKind.PURCHASE: DataType.PURCHASE,
    EventKind.CART_UPDATE: DataType.CART_UPDATE,
}


@dataclass(frozen=True, slots=True)
class Event:
    """What a criterion sees of an event. A cart update's name is "updateCart", whatever it was told as."""

    event_id: str
    data_type: DataType
    name: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class UnmetCondition:
    """A condition that no event met, each looked at alone: where it stands, and the field that it is about."""

    path: str
    field: str


class LeafReport(NamedTuple):
    """How a leaf came out. `match_count` counts the profile as one event; it holds if within needed and max_match.

    `event_ids` are the matching events, in their order. `unmet` says what is missing where too few matched; it may be
    empty even so, when every condition was met, but never all by one event or one item.
    """

    path: str
    data_type: DataType
    is_match: bool
    match_count: int
    needed: int
    max_match: int | None
    event_ids: tuple[str, ...]
    unmet: tuple[UnmetCondition, ...]


@dataclass(frozen=True, slots=True)
class CriterionReport:
    """How a criterion came out, leaf by leaf in the order of the text."""

    criterion_id: str
    is_match: bool
    leaves: tuple[LeafReport, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The first criterion that matches, if any, and a report on it and on each before it."""

    matched_id: str | None
    reports: tuple[CriterionReport, ...]


class CompiledCriterion:
    """A criterion that `criteria.check` has passed, ready to be evaluated. It never changes."""

    def __init__(self, criterion_id: str, root: Node) -> None:
        self.criterion_id = criterion_id
        self._leaves = [_CompiledLeaf(path, node) for path, node, _ in walk(root) if isinstance(node, Leaf)]
        self._slots = max(leaf.slots for leaf in self._leaves)
        self._holds = _tree(root, iter(range(len(self._leaves))).__next__)
        self._by_type = {
            data_type: [(index, leaf.matches) for index, leaf in enumerate(self._leaves) if data_type in leaf.looks_at]
            for data_type in DataType
        }

    def start(self) -> list[int]:
        """The state of a visitor without events: for each leaf how many events match."""
        return [0] * len(self._leaves)

    def update(self, counts: list[int], event: Event) -> bool:
        """Counts one more event; tells whether any leaf matched it, so that the state changed."""
        matching = self._matching(event.data_type, self._scope(event))
        for index in matching:
            counts[index] += 1
        return bool(matching)

    def is_match(self, counts: Sequence[int], profile_fields: dict[str, Any]) -> bool:
        """Whether a visitor in that state and with those fields matches."""
        return self._holds(self._outcomes(self._with_profile(counts, self._profile_scope(profile_fields))))

    def report(self, events: Sequence[Event], profile_fields: dict[str, Any]) -> CriterionReport:
        """Whether these events and fields match, and why."""
        counts = self.start()
        event_ids: list[list[str]] = [[] for _ in self._leaves]
        scopes = [(event.data_type, self._scope(event)) for event in events]
        for event, (data_type, scope) in zip(events, scopes, strict=True):
            for index in self._matching(data_type, scope):
                counts[index] += 1
                event_ids[index].append(event.event_id)
        scopes.append((DataType.USER, self._profile_scope(profile_fields)))
        counts = self._with_profile(counts, scopes[-1][1])
        outcomes = self._outcomes(counts)
        is_match = self._holds(outcomes)
        wanting = [not is_match and count < leaf.needed for leaf, count in zip(self._leaves, counts, strict=True)]
        unmet = self._reasons.unmet(wanting, scopes) if any(wanting) else {}
        leaves = tuple(
            LeafReport(
                leaf.path,
                leaf.data_type,
                outcomes[index],
                counts[index],
                leaf.needed,
                leaf.max_match,
                tuple(event_ids[index]),
                unmet.get(index, ()),
            )
            for index, leaf in enumerate(self._leaves)
        )
        return CriterionReport(self.criterion_id, is_match, leaves)

    def _scope(self, event: Event) -> Scope:
        name = UPDATE_CART if event.data_type is DataType.CART_UPDATE else event.name
        return scope_of(event.data, name, self._slots)

    def _profile_scope(self, profile_fields: dict[str, Any]) -> Scope:
        return scope_of(profile_fields, None, self._slots)

    def _matching(self, data_type: DataType, scope: Scope) -> list[int]:
        return [index for index, matches in self._by_type[data_type] if matches(scope)]

    def _with_profile(self, counts: Sequence[int], profile: Scope) -> list[int]:
        result = list(counts)
        for index, matches in self._by_type[DataType.USER]:
            result[index] = int(matches(profile))
        return result

    def _outcomes(self, counts: Iterable[int]) -> list[bool]:
        return [leaf.holds(count) for leaf, count in zip(self._leaves, counts, strict=True)]

    @cached_property
    def _reasons(self) -> _Reasons:
        # Made when somebody first asks why there is no match.
        return _Reasons(self._leaves)


def evaluate(
    criteria: Iterable[CompiledCriterion], events: Sequence[Event], profile_fields: dict[str, Any]
) -> Evaluation:
    """Looks for the first criterion that these events and fields match; the order of the events says nothing."""
    reports = []
    for criterion in criteria:
        report = criterion.report(events, profile_fields)
        reports.append(report)
        if report.is_match:
            return Evaluation(report.criterion_id, tuple(reports))
    return Evaluation(None, tuple(reports))


class _CompiledLeaf:
    def __init__(self, path: str, leaf: Leaf) -> None:
        if leaf.query is None:
            raise ValueError("a leaf without a query: the criterion was not checked")
        self.path = path
        self.data_type = DataType(leaf.data_type)
        self.needed = leaf.needed
        self.max_match = leaf.max_match
        matcher = Matcher(leaf.query)
        self.matches = matcher.matches
        self.slots = matcher.slots
        self.conditions = [
            (where, node) for where, node, _ in walk(leaf.query, f"{path}.query.") if isinstance(node, Condition)
        ]
        self.looks_at = frozenset({self.data_type})
        if self.data_type is DataType.CUSTOM_EVENT and any(map(_names_cart, conditions_of(leaf.query))):
            # To callers that know carts as custom events, this is one; other leaves must not count carts by chance.
            self.looks_at |= {DataType.CART_UPDATE}

    def holds(self, count: int) -> bool:
        """Whether so many matching events are as many as the leaf wants."""
        return count >= self.needed and (self.max_match is None or count <= self.max_match)


class _Reasons:
    """Finds the conditions that nothing meets. Each is looked at alone, and once for all leaves that ask the same."""

    def __init__(self, leaves: Sequence[_CompiledLeaf]) -> None:
        self._asked: dict[DataType, list[tuple[int, Predicate]]] = {data_type: [] for data_type in DataType}
        self._of_leaf: list[list[tuple[int, UnmetCondition]]] = []
        numbers: dict[tuple[frozenset[DataType], Condition], int] = {}
        for leaf in leaves:
            mine = []
            for path, condition in leaf.conditions:
                number = numbers.setdefault((leaf.looks_at, condition), len(numbers))
                mine.append((number, UnmetCondition(path, condition.field)))
            self._of_leaf.append(mine)
        for (looks_at, condition), number in numbers.items():
            matches = Matcher(condition).matches
            for data_type in looks_at:
                self._asked[data_type].append((number, matches))

    def unmet(
        self, wanting: Sequence[bool], scopes: Iterable[tuple[DataType, Scope]]
    ) -> dict[int, tuple[UnmetCondition, ...]]:
        """For each leaf that wants events, its conditions that nothing meets."""
        met = self._met(scopes)
        return {
            index: tuple([condition for number, condition in mine if number not in met])
            for index, mine in enumerate(self._of_leaf)
            if wanting[index]
        }

    def _met(self, scopes: Iterable[tuple[DataType, Scope]]) -> set[int]:
        pending = dict(self._asked)
        met: set[int] = set()
        for data_type, scope in scopes:
            hits = [number for number, matches in pending[data_type] if matches(scope)]
            if hits:
                met.update(hits)
                pending[data_type] = [each for each in pending[data_type] if each[0] not in met]
        return met


def _names_cart(condition: Condition) -> bool:
    if condition.field == EVENT_NAME:
        return condition.comparator == Comparator.EQUALS and UPDATE_CART in condition.values
    return condition.field == UPDATE_CART or condition.field.startswith(f"{UPDATE_CART}.")


def _tree(node: Node, next_index: Callable[[], int]) -> Callable[[Sequence[bool]], bool]:
    """The tree over the outcomes of its leaves, which stand in the order of the text."""
    if isinstance(node, Leaf):
        index = next_index()
        return lambda outcomes: outcomes[index]
    nodes = [_tree(child, next_index) for child in node.nodes]
    if isinstance(node, And):
        return lambda outcomes: all(holds(outcomes) for holds in nodes)
    if isinstance(node, Or):
        return lambda outcomes: any(holds(outcomes) for holds in nodes)
    return lambda outcomes: not any(holds(outcomes) for holds in nodes)
