"""A criterion's tree, what makes one fit to be saved, and how it is kept as JSON. Pure.

A tree is built of And, Or and Not over leaves, and a leaf's query of And, Or and Not over conditions:

    And((Leaf("user", Condition("country", "Equals", ("IT",))),
         Leaf("purchase", And((Condition("shoppingCartItems.name", "Equals", ("pizza",)),
                               Condition("shoppingCartItems.price", "GreaterThan", ("10",)))), min_match=2)))

Every node has a path, which is where it stands in the JSON form (and in a message of the same shape): a group is
`and.nodes[i]`, `or.nodes[i]` or `not.nodes[i]`, a leaf `leaf`, its query `leaf.query`, a condition `condition`. So the
price above is `and.nodes[1].leaf.query.and.nodes[1].condition.values[0]`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from onefold.activation.comparing import pattern_problem
from onefold.errors import Violation
from onefold.limits import DATA_DEPTH

# Groups, leaves, the groups of queries, and conditions: all of them count.
CRITERION_NODES: Final = 50
CRITERION_DEPTH: Final = 8
VALUE_BYTES: Final = 4 * 1024
VALUES_PER_CONDITION: Final = 1_000
PATTERNS_PER_CONDITION: Final = 10
FIELD_BYTES: Final = 1_024
# As deep as data may be, and room for an event's name that has dots itself.
FIELD_NAMES: Final = 2 * DATA_DEPTH


class DataType(enum.StrEnum):
    """What a leaf looks at: the profile's fields, or the events of one sort."""

    USER = "user"
    CUSTOM_EVENT = "customEvent"
    PURCHASE = "purchase"
    CART_UPDATE = "cartUpdate"


class Comparator(enum.StrEnum):
    """How a condition compares a field with its values."""

    EQUALS = "Equals"
    DOES_NOT_EQUAL = "DoesNotEqual"
    IS_SET = "IsSet"
    GREATER_THAN = "GreaterThan"
    GREATER_THAN_OR_EQUAL_TO = "GreaterThanOrEqualTo"
    LESS_THAN = "LessThan"
    LESS_THAN_OR_EQUAL_TO = "LessThanOrEqualTo"
    CONTAINS = "Contains"
    STARTS_WITH = "StartsWith"
    MATCHES_REGEX = "MatchesRegex"


class FieldType(enum.StrEnum):
    """What a condition takes its field to be."""

    LONG = "long"
    DOUBLE = "double"
    BOOLEAN = "boolean"
    STRING = "string"
    OBJECT = "object"
    ARRAY = "array"


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class And(Generic[T_co]):
    """Holds if every node does."""

    nodes: tuple[T_co, ...]


@dataclass(frozen=True, slots=True)
class Or(Generic[T_co]):
    """Holds if any node does."""

    nodes: tuple[T_co, ...]


@dataclass(frozen=True, slots=True)
class Not(Generic[T_co]):
    """Holds if no node does."""

    nodes: tuple[T_co, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """A field compared with values, any of which will do. Comparator and type are as told: `check` knows them.

    `field` is a path of names with dots between; `field_type` may be "", then text that looks like a number is one.
    """

    field: str
    comparator: str
    values: tuple[str, ...] = ()
    field_type: str = ""


Query: TypeAlias = "Condition | And[Query] | Or[Query] | Not[Query]"


@dataclass(frozen=True, slots=True)
class Leaf:
    """Holds if the number of events that meet the query lies between min_match and max_match.

    Without min_match one is enough, or none if max_match is 0; without max_match there is no upper limit. The profile
    counts as one event.
    """

    data_type: str
    query: Query | None
    min_match: int | None = None
    max_match: int | None = None

    @property
    def needed(self) -> int:
        """How many events must match at least."""
        if self.min_match is not None:
            return self.min_match
        return 0 if self.max_match == 0 else 1


Node: TypeAlias = "Leaf | And[Node] | Or[Node] | Not[Node]"

# What each kind of group is called in a path.
_GROUPS: Final[dict[str, type[And[Any]] | type[Or[Any]] | type[Not[Any]]]] = {"and": And, "or": Or, "not": Not}
_NAMES: Final = {kind: name for name, kind in _GROUPS.items()}
_DATA_TYPES: Final = frozenset(DataType)
_COMPARATORS: Final = frozenset(Comparator)
_FIELD_TYPES: Final = frozenset(FieldType) | {""}


def check(root: Node, prefix: str = "") -> list[Violation]:
    """Everything that keeps a criterion from being saved; nothing if it may be.

    `prefix` is put before every path, such as "criterion.root.". Nodes beyond the limits are not looked into.
    """
    found: list[Violation] = []
    for number, (path, node, depth) in enumerate(walk(root, prefix, CRITERION_DEPTH + 1), start=1):
        if number > CRITERION_NODES:
            found.append(Violation(path, f"is one node too many: a criterion has at most {CRITERION_NODES}"))
            break
        if depth > CRITERION_DEPTH:
            found.append(Violation(path, f"lies deeper than {CRITERION_DEPTH} levels"))
        elif isinstance(node, Condition):
            found += _check_condition(path, node)
        elif isinstance(node, Leaf):
            found += _check_leaf(path, node)
        elif not node.nodes:
            found.append(Violation(f"{path}.nodes", "needs at least one node"))
    return found


AnyNode: TypeAlias = "Node | Query"


def walk(root: AnyNode, prefix: str = "", levels: int = CRITERION_DEPTH) -> Iterator[tuple[str, AnyNode, int]]:
    """Every node with its path and its level, in the order of the text, down to so many levels."""
    yield from _walk(root, prefix, 1, levels)


def _walk(node: AnyNode, prefix: str, depth: int, levels: int) -> Iterator[tuple[str, AnyNode, int]]:
    if depth > levels:
        return
    if isinstance(node, Condition):
        yield f"{prefix}condition", node, depth
    elif isinstance(node, Leaf):
        yield f"{prefix}leaf", node, depth
        if node.query is not None:
            yield from _walk(node.query, f"{prefix}leaf.query.", depth + 1, levels)
    else:
        path = prefix + _NAMES[type(node)]
        yield path, node, depth
        for index, child in enumerate(node.nodes):
            yield from _walk(child, f"{path}.nodes[{index}].", depth + 1, levels)


def _check_leaf(path: str, leaf: Leaf) -> Iterator[Violation]:
    if leaf.data_type not in _DATA_TYPES:
        yield Violation(f"{path}.data_type", f"must be one of {', '.join(DataType)}")
    if leaf.query is None:
        yield Violation(f"{path}.query", "is required")
    for name, limit in (("min_match", leaf.min_match), ("max_match", leaf.max_match)):
        if limit is not None and limit < 0:
            yield Violation(f"{path}.{name}", "must not be negative")
    if leaf.max_match is not None and 0 <= leaf.max_match < leaf.needed:
        yield Violation(f"{path}.max_match", "must not be less than min_match")
    if leaf.data_type == DataType.USER and leaf.needed > 1:
        yield Violation(f"{path}.min_match", "must be at most 1: there is one profile")


def _check_condition(path: str, condition: Condition) -> Iterator[Violation]:
    yield from _check_field(f"{path}.field", condition.field)
    if condition.comparator not in _COMPARATORS:
        yield Violation(f"{path}.comparator", f"must be one of {', '.join(Comparator)}")
    if condition.field_type not in _FIELD_TYPES:
        yield Violation(f"{path}.field_type", f"must be one of {', '.join(FieldType)}, or nothing")
    is_pattern = condition.comparator == Comparator.MATCHES_REGEX
    most = PATTERNS_PER_CONDITION if is_pattern else VALUES_PER_CONDITION
    if not condition.values and condition.comparator != Comparator.IS_SET:
        yield Violation(f"{path}.values", "is required")
    elif len(condition.values) > most:
        yield Violation(f"{path}.values", f"must have at most {most} values")
    else:
        for index, value in enumerate(condition.values):
            problem = _value_problem(value, is_pattern)
            if problem:
                yield Violation(f"{path}.values[{index}]", problem)


def _check_field(path: str, field: str) -> Iterator[Violation]:
    if not field:
        yield Violation(path, "is required")
    elif len(field.encode()) > FIELD_BYTES:
        yield Violation(path, f"must have at most {FIELD_BYTES} bytes")
    elif "\x00" in field:
        yield Violation(path, "must not contain NUL")
    elif not all(names := field.split(".")):
        yield Violation(path, "must have a name before and after every dot")
    elif len(names) > FIELD_NAMES:
        yield Violation(path, f"must have at most {FIELD_NAMES} names")


def _value_problem(value: str, is_pattern: bool) -> str | None:
    if len(value.encode()) > VALUE_BYTES:
        return f"must have at most {VALUE_BYTES} bytes"
    if "\x00" in value:
        return "must not contain NUL"
    return pattern_problem(value) if is_pattern else None


def to_document(node: AnyNode) -> dict[str, Any]:
    """The tree as JSON, in the shape that the paths describe; what says nothing is left out."""
    if isinstance(node, Condition):
        condition = {"field": node.field, "comparator": str(node.comparator), "values": list(node.values)}
        return {"condition": condition | ({"field_type": str(node.field_type)} if node.field_type else {})}
    if isinstance(node, Leaf):
        leaf = {
            "data_type": str(node.data_type),
            "query": node.query and to_document(node.query),
            "min_match": node.min_match,
            "max_match": node.max_match,
        }
        return {"leaf": {name: value for name, value in leaf.items() if value is not None}}
    return {_NAMES[type(node)]: {"nodes": [to_document(child) for child in node.nodes]}}


def from_document(document: dict[str, Any]) -> Any:
    """The tree that `to_document` wrote."""
    [(name, content)] = document.items()
    if name == "condition":
        return Condition(**(content | {"values": tuple(content["values"])}))
    if name == "leaf":
        return Leaf(**(content | {"query": from_document(content["query"])}))
    return _GROUPS[name](tuple(map(from_document, content["nodes"])))
