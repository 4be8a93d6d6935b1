"""A leaf's query, made ready once and asked of thousands of events. Pure.

Conditions on one array of objects hold on one element of it: the innermost node that holds all of them asks each
element in turn. An element that is not there would meet no condition. If that already answers yes (it does where Not
leads), then every element must answer yes; otherwise one element has to. So Not is exactly "does not match", and
And(a, Not(b)) is an element that meets a and not b.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final, TypeAlias

from onefold.activation.comparing import Test, test_of
from onefold.activation.criteria import And, Comparator, Condition, Not, Query

JsonObject: TypeAlias = dict[str, Any]
Path: TypeAlias = tuple[str, ...]
# What a query is evaluated in: the data, the event's name, whether the elements of an array are being asked, how many
# more of arrays within that may be, and the objects that are bound.
Scope: TypeAlias = list[Any]
Predicate: TypeAlias = Callable[[Scope], bool]

_ROOT: Final = 0
_NAME: Final = 1
_LOOPING: Final = 2
_BUDGET: Final = 3
_SLOTS: Final = 4
# Conditions that weave several arrays into one another multiply their elements. Whatever would ask more than this of
# one event is answered by the elements seen until then: no criterion may keep a server busy for long.
_INNER_ELEMENTS: Final = 20_000
_NOTHING: Final[JsonObject] = {}

EVENT_NAME: Final = "eventName"


def scope_of(data: JsonObject, name: str | None, slots: int) -> Scope:
    """What queries with so many slots at most are asked of: an event's data and name, or a profile, which has none."""
    return [data, name, False, 0, *[_NOTHING] * slots]


class Matcher:
    """Answers whether an event's data, or a profile's fields, meet a query.

    The field eventName is the event's name. A field may begin with that name, which is left out then, unless the data
    holds an object or an array of that name. A field that is the name is set.
    """

    def __init__(self, query: Query) -> None:
        self._query = query
        conditions = list(conditions_of(query))
        # No plan needs more: each dot is the end of a path that conditions may share.
        self.slots = sum(each.field.count(".") for each in conditions)
        self._tests = {each: test_of(each.comparator, each.values, each.field_type) for each in conditions}
        self._names = {name for each in conditions for name in _possible_names(each)}
        self._plain = self._plan("", is_cut=False)
        self._plans: dict[tuple[str, bool], Predicate] = {}
        # Whether the query is met. One scope may be asked of several queries, one after the other. Most have no dots,
        # so that the event's name changes nothing and there is nothing to bind.
        self.matches: Predicate = self._by_name if self._names else self._plain

    def _by_name(self, scope: Scope) -> bool:
        scope[_BUDGET] = _INNER_ELEMENTS
        if scope[_NAME] in self._names:
            return self._named(scope[_ROOT], scope[_NAME])(scope)
        return self._plain(scope)

    def _named(self, data: JsonObject, name: str) -> Predicate:
        is_cut = data.get(name.partition(".")[0]).__class__ not in (dict, list)
        plan = self._plans.get((name, is_cut))
        if plan is None:
            plan = self._plans[name, is_cut] = self._plan(name, is_cut=is_cut)
        return plan

    def _plan(self, name: str, *, is_cut: bool) -> Predicate:
        return _Planner(self._query, self._tests, name, is_cut).plan()


def conditions_of(query: Query) -> Iterator[Condition]:
    """The conditions of a query, in the order of the text."""
    if isinstance(query, Condition):
        yield query
    else:
        for node in query.nodes:
            yield from conditions_of(node)


def _possible_names(condition: Condition) -> Iterator[str]:
    """The names of events to which the field means something else than the path it is."""
    names = condition.field.split(".")
    for count in range(1, len(names)):
        yield ".".join(names[:count])
    if condition.comparator == Comparator.IS_SET:
        yield condition.field


@dataclass
class _Part:
    """A node on its way to become a predicate, and the paths that its conditions share with others, unbound yet."""

    holds: Predicate
    open: Counter[Path] = field(default_factory=Counter)


class _Planner:
    """Turns a query into one predicate, for the events of one name."""

    def __init__(self, query: Query, tests: dict[Condition, Test], name: str, is_cut: bool) -> None:
        self._query = query
        self._tests = tests
        self._name = name
        self._is_cut = is_cut
        prefixes = Counter(prefix for each in conditions_of(query) for prefix in self._prefixes(each))
        # Whoever shares a path shares its beginnings too, so these form a tree.
        self._shared = {prefix: count for prefix, count in prefixes.items() if count > 1}
        self._slots = {prefix: slot for slot, prefix in enumerate(sorted(self._shared), start=_SLOTS)}
        self._slots[()] = _ROOT

    def plan(self) -> Predicate:
        """The predicate."""
        return self._part(self._query).holds

    def _path(self, condition: Condition) -> Path:
        text = condition.field
        if self._is_cut and text.startswith(f"{self._name}."):
            text = text[len(self._name) + 1 :]
        return tuple(text.split("."))

    def _is_name(self, condition: Condition) -> bool:
        return condition.comparator == Comparator.IS_SET and condition.field == self._name

    def _prefixes(self, condition: Condition) -> list[Path]:
        path = self._path(condition)
        return [] if self._is_name(condition) else [path[:count] for count in range(1, len(path))]

    def _part(self, query: Query) -> _Part:
        if isinstance(query, Condition):
            return self._condition(query)
        parts = [self._part(node) for node in query.nodes]
        if isinstance(query, And):
            return self._group(parts, _every)
        part = self._group(parts, _some)
        return _Part(_negated(part.holds), part.open) if isinstance(query, Not) else part

    def _condition(self, condition: Condition) -> _Part:
        if self._is_name(condition):
            return _Part(lambda _: True)
        path = self._path(condition)
        if path == (EVENT_NAME,):
            return _Part(_naming(self._tests[condition]))
        shared = [prefix for prefix in self._prefixes(condition) if prefix in self._shared]
        start = shared[-1] if shared else ()
        holds = _reaching(self._slots[start], path[len(start) :], self._tests[condition])
        return _Part(holds, Counter(shared))

    def _group(self, parts: list[_Part], join: Callable[[Sequence[Predicate]], Predicate]) -> _Part:
        # Those that share no array are asked apart: cheaper, and one array's elements say nothing of the other's.
        groups = [self._bound(self._joined(group, join)) for group in _connected(parts)]
        return self._joined(groups, join)

    @staticmethod
    def _joined(parts: list[_Part], join: Callable[[Sequence[Predicate]], Predicate]) -> _Part:
        if len(parts) == 1:
            return parts[0]
        return _Part(join([part.holds for part in parts]), sum((part.open for part in parts), Counter()))

    def _bound(self, part: _Part) -> _Part:
        """Binds the paths all of whose conditions are in here, the shortest outermost."""
        complete = [prefix for prefix, count in part.open.items() if count == self._shared[prefix]]
        for prefix in sorted(complete, key=len, reverse=True):
            part.holds = _binding(part.holds, self._slots[prefix], self._slots[prefix[:-1]], prefix[-1])
            del part.open[prefix]
        return part


def _connected(parts: Iterable[_Part]) -> list[list[_Part]]:
    """The parts in groups, such that parts of different groups share no path."""
    groups: list[tuple[set[Path], list[_Part]]] = []
    for part in parts:
        paths, members = set(part.open), [part]
        apart = []
        for group in groups:
            if group[0].isdisjoint(paths):
                apart.append(group)
            else:
                paths, members = group[0] | paths, [*group[1], *members]
        groups = [*apart, (paths, members)]
    return [members for _, members in groups]


def _every(predicates: Sequence[Predicate]) -> Predicate:
    def holds(scope: Scope) -> bool:
        for predicate in predicates:  # noqa: SIM110 - a loop is twice as fast as all()
            if not predicate(scope):
                return False
        return True

    return holds


def _some(predicates: Sequence[Predicate]) -> Predicate:
    def holds(scope: Scope) -> bool:
        for predicate in predicates:  # noqa: SIM110 - a loop is twice as fast as any()
            if predicate(scope):
                return True
        return False

    return holds


def _negated(predicate: Predicate) -> Predicate:
    return lambda scope: not predicate(scope)


def _binding(predicate: Predicate, slot: int, parent: int, key: str) -> Predicate:
    """Asks the predicate of the object at a key, or of the array's elements there."""

    def holds(scope: Scope) -> bool:
        value = scope[parent].get(key)
        scope[slot] = value if value.__class__ is dict else _NOTHING
        answer = predicate(scope)
        if value.__class__ is list:
            is_inner = scope[_LOOPING]
            scope[_LOOPING] = True
            for element in _objects(value):
                if is_inner:
                    scope[_BUDGET] -= 1
                    if scope[_BUDGET] < 0:
                        break
                scope[slot] = element
                if predicate(scope) != answer:
                    answer = not answer
                    break
            scope[_LOOPING] = is_inner
        return answer

    return holds


def _objects(array: list[Any]) -> Iterator[JsonObject]:
    for element in array:
        if element.__class__ is dict:
            yield element
        elif element.__class__ is list:
            yield from _objects(element)


def _naming(test: Test) -> Predicate:
    """Tests an event's name; a profile has none, so there it is a field like any other."""
    return lambda scope: test(scope[_ROOT].get(EVENT_NAME) if scope[_NAME] is None else scope[_NAME])


def _reaching(slot: int, path: Path, test: Test) -> Predicate:
    """Tests what lies at a path; where an array is on the way, any of its elements will do."""
    if len(path) == 1:
        [key] = path
        return lambda scope: test(scope[slot].get(key))
    search = reduce(_step, reversed(path), test)
    return lambda scope: search(scope[slot])


def _step(test: Test, key: str) -> Test:
    def holds(value: Any) -> bool:
        if value.__class__ is dict:
            return test(value.get(key))
        return value.__class__ is list and any(map(holds, value))

    return holds
