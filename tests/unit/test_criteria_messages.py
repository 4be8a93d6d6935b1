"""Criteria as messages and as the JSON that client code evaluates."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.json_format import MessageToDict

from onefold.activation.criteria import (
    CRITERION_DEPTH,
    CRITERION_NODES,
    FIELD_BYTES,
    PATTERNS_PER_CONDITION,
    VALUE_BYTES,
    VALUES_PER_CONDITION,
)
from onefold.activation.messages import read_tree, to_criteria_json, to_criterion
from onefold.activation.store import CriterionRow
from onefold.rpc.checks import Checker
from onefold.v1 import criterion_pb2
from support.criteria import condition, group, leaf, named, tree

ROOT = Path(__file__).resolve().parents[2]
ID = UUID("0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11")
MADE = datetime(2026, 1, 1, tzinfo=UTC)
CHANGED = datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
CART = condition("updateCart.updatedShoppingCartItems.price", "GREATER_THAN", "10", field_type="DOUBLE")
TREES: list[dict[str, Any]] = [
    named("Viewed"),
    group("and", named("Viewed", minMatch=2, maxMatch=3), named("Left", maxMatch=0)),
    group(
        "or",
        group("not", leaf("USER", condition("country", "IS_SET"))),
        group(
            "and",
            leaf("PURCHASE", group("and", CART, group("not", condition("shoppingCartItems.name", "EQUALS", "a", "b")))),
            leaf("CART_UPDATE", group("or", CART, condition("x", "MATCHES_REGEX", "^a+$", field_type="STRING"))),
        ),
    ),
]


def row(root: dict[str, Any]) -> CriterionRow:
    """A criterion with this tree, as stored."""
    checker = Checker()
    text = read_tree(checker, "root", tree(root))
    checker.raise_if_wrong()
    return CriterionRow(ID, "first", 3, text, MADE, CHANGED)


@pytest.mark.parametrize("root", TREES)
def test_a_tree_comes_back_as_it_was_told(root: dict[str, Any]) -> None:
    """U1: what is stored of a tree and answered is the tree that was saved, node by node."""
    assert MessageToDict(to_criterion(row(root)).root) == MessageToDict(tree(root))


@pytest.mark.parametrize(
    ("enum", "prefix"),
    [
        (criterion_pb2.CriterionDataType, "CRITERION_DATA_TYPE_"),
        (criterion_pb2.Comparator, "COMPARATOR_"),
        (criterion_pb2.FieldType, "FIELD_TYPE_"),
    ],
)
def test_every_value_of_the_enums_can_be_saved(enum: Any, prefix: str) -> None:
    """U1: each data type, comparator and field type that the protos publish is taken and answered."""
    for name in enum.keys()[1:]:
        value = name.removeprefix(prefix)
        root = leaf(
            value if enum is criterion_pb2.CriterionDataType else "USER",
            condition(
                "field",
                value if enum is criterion_pb2.Comparator else "EQUALS",
                "1",
                field_type=value if enum is criterion_pb2.FieldType else "",
            ),
        )
        assert MessageToDict(to_criterion(row(root)).root) == root


SEARCH = {
    "dataType": "customEvent",
    "minMatch": 1,
    "searchCombo": {
        "combinator": "And",
        "searchQueries": [
            {"dataType": "customEvent", "field": "eventName", "comparatorType": "Equals", "value": "Viewed"}
        ],
    },
}


def search_query(root: dict[str, Any]) -> dict[str, Any]:
    """A criterion's searchQuery in the JSON form."""
    document = json.loads(to_criteria_json([row(root)]))
    [criterion] = document.pop("criteriaSets")
    query: dict[str, Any] = criterion.pop("searchQuery")
    assert document == {"count": 1}
    assert criterion == {
        "criteriaId": str(ID),
        "name": "first",
        "createdAt": 1767225600000,
        "updatedAt": 1767225601500,
    }
    return query


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (named("Viewed"), {"combinator": "Or", "searchQueries": [{"combinator": "And", "searchQueries": [SEARCH]}]}),
        (
            group("and", named("Viewed"), named("Viewed", minMatch=2, maxMatch=5)),
            {
                "combinator": "Or",
                "searchQueries": [
                    {"combinator": "And", "searchQueries": [SEARCH, SEARCH | {"minMatch": 2, "maxMatch": 5}]}
                ],
            },
        ),
        (
            group("or", group("not", named("Viewed")), named("Viewed")),
            {
                "combinator": "Or",
                "searchQueries": [
                    {"combinator": "Not", "searchQueries": [SEARCH]},
                    {"combinator": "And", "searchQueries": [SEARCH]},
                ],
            },
        ),
    ],
)
def test_client_code_gets_groups_of_groups_of_leaves(root: dict[str, Any], expected: dict[str, Any]) -> None:
    """U1: the JSON of criteria has the shape that client code expects, whatever the shape of the tree."""
    assert search_query(root) == expected


def test_a_query_keeps_its_groups_values_and_types() -> None:
    """U1: several values, a field type and nested groups of a leaf's query stand in the JSON of criteria."""
    query = group("or", condition("a", "EQUALS", "1", "2", field_type="LONG"), group("not", condition("b", "IS_SET")))
    [[found]] = [part["searchQueries"] for part in search_query(leaf("PURCHASE", query))["searchQueries"]]
    assert found["searchCombo"] == {
        "combinator": "Or",
        "searchQueries": [
            {
                "dataType": "purchase",
                "field": "a",
                "comparatorType": "Equals",
                "values": ["1", "2"],
                "fieldType": "long",
            },
            {
                "combinator": "Not",
                "searchQueries": [{"dataType": "purchase", "field": "b", "comparatorType": "IsSet"}],
            },
        ],
    }


def test_the_proto_states_the_limits_of_a_tree() -> None:
    """X5: a caller reads in the proto the limits that the tree is checked against."""
    lines = (ROOT / "protos" / "onefold" / "v1" / "criterion.proto").read_text().splitlines()
    comments = " ".join(line.strip().removeprefix("//").strip() for line in lines if line.strip().startswith("//"))
    for stated in (
        f"at most {CRITERION_NODES} nodes",
        f"{CRITERION_DEPTH} levels",
        f"at most {FIELD_BYTES:,} bytes",
        f"at most {VALUES_PER_CONDITION:,} of at most {VALUE_BYTES:,} bytes",
        f"At most {PATTERNS_PER_CONDITION} values",
    ):
        assert stated in comments
