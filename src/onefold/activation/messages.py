"""Criteria and their reports as messages, and as the JSON that client code evaluates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import orjson

from onefold.activation.criteria import (
    CRITERION_NODES,
    And,
    AnyNode,
    Comparator,
    Condition,
    DataType,
    FieldType,
    Leaf,
    Node,
    Not,
    Or,
    Query,
    check,
)
from onefold.activation.rules import Evaluation
from onefold.activation.store import CriterionRow, decode_tree, encode_tree
from onefold.clock import to_microseconds
from onefold.limits import CRITERION_BYTES, REPORTED_EVENTS
from onefold.rpc.checks import Checker, to_timestamp
from onefold.v1 import criterion_pb2

E = TypeVar("E", DataType, Comparator, FieldType)

# An error must fit into the trailers of an answer.
_MAX_VIOLATIONS: Final = 30


def _numbered(kind: type[E], prefix: str, enum: Any) -> dict[int, E]:
    """The values of an enum of the rules by the numbers that the protos give them; a test meets every one of them."""
    return {enum.Value(f"{prefix}_{each.name}"): each for each in kind}


_DATA_TYPES: Final = _numbered(DataType, "CRITERION_DATA_TYPE", criterion_pb2.CriterionDataType)
_COMPARATORS: Final = _numbered(Comparator, "COMPARATOR", criterion_pb2.Comparator)
_FIELD_TYPES: Final = _numbered(FieldType, "FIELD_TYPE", criterion_pb2.FieldType)
_GROUPS: Final[Mapping[str, type[And[Any]] | type[Or[Any]] | type[Not[Any]]]] = {"and": And, "or": Or, "not": Not}
_COMBINATORS: Final[Mapping[type[Any], str]] = {And: "And", Or: "Or", Not: "Not"}


class _TreeReader:
    """Reads a tree from its message. Nodes that say nothing are noted; all else is for `criteria.check` to judge."""

    def __init__(self) -> None:
        self.empty: list[str] = []

    def node(self, message: criterion_pb2.CriterionNode, prefix: str) -> Node:
        name = message.WhichOneof("node")
        if name == "leaf":
            return self._leaf(message.leaf, f"{prefix}leaf")
        group: Node = self._group(message, name, prefix, self.node)
        return group

    def _leaf(self, message: criterion_pb2.CriterionLeaf, path: str) -> Leaf:
        return Leaf(
            _DATA_TYPES.get(message.data_type, ""),
            self._query(message.query, f"{path}.query.") if message.HasField("query") else None,
            message.min_match if message.HasField("min_match") else None,
            message.max_match if message.HasField("max_match") else None,
        )

    def _query(self, message: criterion_pb2.CriterionQuery, prefix: str) -> Query:
        name = message.WhichOneof("query")
        if name == "condition":
            condition = message.condition
            return Condition(
                condition.field,
                _COMPARATORS.get(condition.comparator, ""),
                tuple(condition.values),
                # An unknown number is no type, and not none.
                _FIELD_TYPES.get(condition.field_type, str(condition.field_type) if condition.field_type else ""),
            )
        group: Query = self._group(message, name, prefix, self._query)
        return group

    def _group(self, message: Any, name: str | None, prefix: str, read: Any) -> Any:
        if name is None:
            self.empty.append(prefix.rstrip("."))
            return And(())
        path = f"{prefix}{name}"
        # "and", "or" and "not" are no names of attributes to Python.
        nodes = enumerate(getattr(message, name).nodes)
        return _GROUPS[name](tuple(read(node, f"{path}.nodes[{index}].") for index, node in nodes))


def read_tree(checker: Checker, field: str, message: criterion_pb2.CriterionNode) -> str:
    """Checks a criterion's tree; returns it as it is stored, "" after noting violations."""
    reader = _TreeReader()
    root = reader.node(message, f"{field}.")
    for path in reader.empty[:CRITERION_NODES]:
        checker.refuse(path, "is required")
    if not reader.empty:
        checker.violations += check(root, f"{field}.")
    cap_violations(checker)
    if checker.violations:
        return ""
    text = encode_tree(root)
    if len(text.encode()) > CRITERION_BYTES:
        checker.refuse(field, f"must have at most {CRITERION_BYTES} bytes as JSON text")
    return text


def cap_violations(checker: Checker) -> None:
    """Keeps the first of many violations."""
    del checker.violations[_MAX_VIOLATIONS:]


def to_criterion(row: CriterionRow) -> criterion_pb2.Criterion:
    """A criterion as an answer has it."""
    answer = criterion_pb2.Criterion(
        criterion_id=str(row.criterion_id),
        name=row.name,
        version=row.version,
        create_time=to_timestamp(row.create_time),
        update_time=to_timestamp(row.update_time),
    )
    _write_node(answer.root, decode_tree(row.root))
    return answer


def _write_node(message: Any, node: AnyNode) -> None:
    if isinstance(node, Condition):
        message.condition.field = node.field
        message.condition.comparator = criterion_pb2.Comparator.Value(f"COMPARATOR_{Comparator(node.comparator).name}")
        message.condition.values.extend(node.values)
        if node.field_type:
            message.condition.field_type = criterion_pb2.FieldType.Value(
                f"FIELD_TYPE_{FieldType(node.field_type).name}"
            )
    elif isinstance(node, Leaf):
        message.leaf.data_type = _data_type_number(DataType(node.data_type))
        if node.query is not None:
            _write_node(message.leaf.query, node.query)
        if node.min_match is not None:
            message.leaf.min_match = node.min_match
        if node.max_match is not None:
            message.leaf.max_match = node.max_match
    else:
        group = getattr(message, _COMBINATORS[type(node)].lower())
        for child in node.nodes:
            _write_node(group.nodes.add(), child)


def _data_type_number(data_type: DataType) -> criterion_pb2.CriterionDataType.ValueType:
    return criterion_pb2.CriterionDataType.Value(f"CRITERION_DATA_TYPE_{data_type.name}")


def to_criteria_json(rows: Sequence[CriterionRow]) -> str:
    """The criteria as client code evaluates them."""
    sets = [
        {
            "criteriaId": str(row.criterion_id),
            "name": row.name,
            "createdAt": _milliseconds(row.create_time),
            "updatedAt": _milliseconds(row.update_time),
            "searchQuery": _search_query(decode_tree(row.root)),
        }
        for row in rows
    ]
    return orjson.dumps({"count": len(sets), "criteriaSets": sets}).decode()


def _search_query(root: Node) -> dict[str, Any]:
    """Such code expects groups of groups of leaves, so a tree that is less gets groups of one around it."""
    outer = root if isinstance(root, And | Or | Not) and not _is_of_leaves(root) else Or((root,))
    inner = [And((node,)) if isinstance(node, Leaf) else node for node in outer.nodes]
    return {"combinator": _COMBINATORS[type(outer)], "searchQueries": [_search_node(node) for node in inner]}


def _is_of_leaves(node: And[Node] | Or[Node] | Not[Node]) -> bool:
    return all(isinstance(child, Leaf) for child in node.nodes)


def _search_node(node: Node) -> dict[str, Any]:
    if isinstance(node, Leaf):
        query = node.query if isinstance(node.query, And | Or | Not) else And((node.query,))
        leaf = {
            "dataType": node.data_type,
            "minMatch": node.needed,
            "maxMatch": node.max_match,
            "searchCombo": _search_combo(query, node.data_type),
        }
        return {name: value for name, value in leaf.items() if value is not None}
    return {"combinator": _COMBINATORS[type(node)], "searchQueries": [_search_node(child) for child in node.nodes]}


def _search_combo(query: Any, data_type: str) -> dict[str, Any]:
    if not isinstance(query, Condition):
        nodes = [_search_combo(child, data_type) for child in query.nodes]
        return {"combinator": _COMBINATORS[type(query)], "searchQueries": nodes}
    condition: dict[str, Any] = {
        "dataType": data_type,
        "field": query.field,
        "comparatorType": query.comparator,
    }
    if len(query.values) == 1:
        [condition["value"]] = query.values
    elif query.values:
        condition["values"] = list(query.values)
    if query.field_type:
        condition["fieldType"] = query.field_type
    return condition


def _milliseconds(moment: datetime) -> int:
    return to_microseconds(moment) // 1_000


def to_reports(rows: Iterable[CriterionRow], evaluation: Evaluation) -> Iterable[criterion_pb2.CriterionReport]:
    """Why criteria matched or did not, as an answer has it."""
    criteria = {row.criterion_id: row for row in rows}
    for report in evaluation.reports:
        row = criteria[UUID(report.criterion_id)]
        answer = criterion_pb2.CriterionReport(
            criterion_id=report.criterion_id, name=row.name, version=row.version, is_match=report.is_match
        )
        for leaf in report.leaves:
            answer.leaves.add(
                path=leaf.path,
                data_type=_data_type_number(leaf.data_type),
                is_match=leaf.is_match,
                match_count=leaf.match_count,
                needed=leaf.needed,
                max_match=leaf.max_match,
                event_ids=leaf.event_ids[:REPORTED_EVENTS],
                unmet=[
                    criterion_pb2.CriterionUnmetCondition(path=unmet.path, field=unmet.field) for unmet in leaf.unmet
                ],
            )
        yield answer
