"""What keeps a criterion from being saved, and where it says so."""

from __future__ import annotations

from typing import Any

import pytest

from onefold.activation.criteria import (
    And,
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
    from_document,
    to_document,
)
from onefold.activation.rules import CompiledCriterion, Event, evaluate

GOOD = Condition("f", "Equals", ("x",))


def paths(root: Node, prefix: str = "") -> list[str]:
    return [violation.field for violation in check(root, prefix)]


def regex(pattern: str) -> Condition:
    return Condition("f", "MatchesRegex", (pattern,))


@pytest.mark.parametrize(
    ("condition", "wrong"),
    [
        (Condition("f", "equals", ("x",)), ["comparator"]),
        (Condition("f", "", ("x",)), ["comparator"]),
        (Condition("f", "NotEquals", ("x",)), ["comparator"]),
        (Condition("f", "Equals", ("x",), "String"), ["field_type"]),
        (Condition("f", "Equals", ("x",), "date"), ["field_type"]),
        (Condition("f", "Equals"), ["values"]),
        (Condition("f", "MatchesRegex"), ["values"]),
        (Condition("f", "LessThan"), ["values"]),
        (Condition("f", "IsSet"), []),
        (Condition("f", "IsSet", ("x",)), []),
        (Condition("", "Equals", ("x",)), ["field"]),
        (Condition(".f", "Equals", ("x",)), ["field"]),
        (Condition("f.", "Equals", ("x",)), ["field"]),
        (Condition("f..g", "Equals", ("x",)), ["field"]),
        (Condition("f\x00", "Equals", ("x",)), ["field"]),
        (Condition("f" * 1024, "Equals", ("x",)), []),
        (Condition("f" * 1025, "Equals", ("x",)), ["field"]),
        (Condition(".".join("f" * 32), "Equals", ("x",)), []),
        (Condition(".".join("f" * 33), "Equals", ("x",)), ["field"]),
        (Condition("f", "Equals", ("",)), []),
        (Condition("f", "Equals", ("x" * 4096,)), []),
        (Condition("f", "Equals", ("x", "x" * 4097, "x", "è" * 2049)), ["values[1]", "values[3]"]),
        (Condition("f", "Equals", ("x\x00",)), ["values[0]"]),
        (Condition("f", "Equals", ("x",) * 1000), []),
        (Condition("f", "Equals", ("x",) * 1001), ["values"]),
        (Condition("f", "MatchesRegex", ("x",) * 10), []),
        (Condition("f", "MatchesRegex", ("x",) * 11), ["values"]),
        (Condition("", "x", (), "y"), ["field", "comparator", "field_type", "values"]),
        (regex("^[a-z]+$"), []),
        (regex(r"(?i)\bcaff\pL\b"), []),
        (regex("(a+)+$"), []),
        (regex("("), ["values[0]"]),
        (regex("[a-"), ["values[0]"]),
        (regex("*"), ["values[0]"]),
        (regex("a{2,1}"), ["values[0]"]),
        (regex(r"\q"), ["values[0]"]),
        (regex(r"\p{Nowhere}"), ["values[0]"]),
        (regex("(?=a)b"), ["values[0]"]),
        (regex("(?!a)b"), ["values[0]"]),
        (regex("(?<=a)b"), ["values[0]"]),
        (regex("(?<!a)b"), ["values[0]"]),
        (regex(r"(a)\1"), ["values[0]"]),
        (regex("(?>a)b"), ["values[0]"]),
        (regex("((a{100}){100}){100}"), ["values[0]"]),
        (regex(r"(\pL{500}\pN{500})"), ["values[0]"]),
        (regex("(a?){500}a{500}b"), ["values[0]"]),
        (regex("x" * 1200), []),
        (Condition("f", "MatchesRegex", ("a", "(", "b", "[")), ["values[1]", "values[3]"]),
        (Condition("f", "Contains", ("(",)), []),
    ],
)
def test_conditions_that_are_refused(condition: Condition, wrong: list[str]) -> None:
    """U1 X5 F71: an unknown comparator or type, no values, too much text, and what RE2 does not take are named."""
    assert paths(Leaf("user", condition)) == [f"leaf.query.condition.{path}" for path in wrong]


def test_refused_patterns_say_why_and_write_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """F71: what RE2 says of a pattern is in the violation, and nothing is written to standard error."""
    [violation] = check(Leaf("user", regex("(?=a)b")))
    assert "(?=" in violation.description
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("comparator", Comparator)
@pytest.mark.parametrize("field_type", ["", *FieldType])
def test_every_comparator_goes_with_every_type(comparator: str, field_type: str) -> None:
    """U1: the ten comparators and six types are known, in every combination."""
    assert paths(Leaf("user", Condition("f", comparator, ("1",), field_type))) == []


@pytest.mark.parametrize(
    ("leaf", "wrong"),
    [
        (Leaf("user", GOOD), []),
        (Leaf("customEvent", GOOD), []),
        (Leaf("purchase", GOOD), []),
        (Leaf("cartUpdate", GOOD), []),
        (Leaf("event", GOOD), ["data_type"]),
        (Leaf("", GOOD), ["data_type"]),
        (Leaf("purchase", None), ["query"]),
        (Leaf("purchase", GOOD, 0), []),
        (Leaf("purchase", GOOD, -1), ["min_match"]),
        (Leaf("purchase", GOOD, None, -1), ["max_match"]),
        (Leaf("purchase", GOOD, -1, -1), ["min_match", "max_match"]),
        (Leaf("purchase", GOOD, 3, 2), ["max_match"]),
        (Leaf("purchase", GOOD, 1, 0), ["max_match"]),
        (Leaf("purchase", GOOD, 2, 2), []),
        (Leaf("purchase", GOOD, 0, 0), []),
        (Leaf("purchase", GOOD, None, 0), []),
        (Leaf("user", GOOD, 1, 1), []),
        (Leaf("user", GOOD, 2), ["min_match"]),
    ],
)
def test_leaves_that_are_refused(leaf: Leaf, wrong: list[str]) -> None:
    """U1: an unknown data type, a missing query, negative limits, and limits that can never hold are named."""
    assert paths(leaf) == [f"leaf.{path}" for path in wrong]


def test_everything_wrong_is_found_at_once_by_its_path() -> None:
    """U1 X2: all violations of a tree are told together, in the order of the text, behind the caller's prefix."""
    root: Node = And(
        (
            Leaf("user", GOOD),
            Leaf("purchase", Or((regex("("), Not((Condition("", "Equals", ("x",)),)))), min_match=-1),
            Or(()),
            Not((Leaf("nobody", And(())),)),
        )
    )
    assert paths(root, "criterion.root.") == [
        "criterion.root.and.nodes[1].leaf.min_match",
        "criterion.root.and.nodes[1].leaf.query.or.nodes[0].condition.values[0]",
        "criterion.root.and.nodes[1].leaf.query.or.nodes[1].not.nodes[0].condition.field",
        "criterion.root.and.nodes[2].or.nodes",
        "criterion.root.and.nodes[3].not.nodes[0].leaf.data_type",
        "criterion.root.and.nodes[3].not.nodes[0].leaf.query.and.nodes",
    ]


def _deep_query(levels: int) -> Query:
    return GOOD if levels == 1 else Not((_deep_query(levels - 1),))


def _deep_tree(levels: int) -> Node:
    return Leaf("user", GOOD) if levels == 2 else Not((_deep_tree(levels - 1),))


@pytest.mark.parametrize(
    ("root", "wrong"),
    [
        (_deep_tree(8), []),
        (_deep_tree(9), ["not.nodes[0]." * 7 + "leaf.query.condition"]),
        (_deep_tree(500), ["not.nodes[0]." * 8 + "not"]),
        (Leaf("user", _deep_query(7)), []),
        (Leaf("user", _deep_query(8)), ["leaf.query." + "not.nodes[0]." * 7 + "condition"]),
        (Leaf("user", _deep_query(500)), ["leaf.query." + "not.nodes[0]." * 7 + "not"]),
    ],
    ids=["8 levels", "9 levels", "500 levels", "a query of 7", "a query of 8", "a query of 500"],
)
def test_trees_are_at_most_eight_levels_deep(root: Node, wrong: list[str]) -> None:
    """U1 X5: groups, leaves and conditions each are a level; the first node below the eighth is named."""
    assert paths(root) == wrong


def test_trees_have_at_most_fifty_nodes() -> None:
    """U1 X5: every group, leaf and condition counts; the first node too many is named, and none after it."""
    assert paths(Leaf("user", And((GOOD,) * 48))) == []
    assert paths(Leaf("user", And((GOOD,) * 49))) == ["leaf.query.and.nodes[48].condition"]
    leaves = (Leaf("user", GOOD),)
    assert paths(And((*leaves * 24, Leaf("user", None)))) == ["and.nodes[24].leaf.query"]
    assert paths(And(leaves * 25)) == ["and.nodes[24].leaf.query.condition"]
    assert paths(And(leaves * 100_000)) == ["and.nodes[24].leaf.query.condition"]


def test_a_tree_is_kept_as_json() -> None:
    """U1: the JSON form has the shape that the paths describe, and gives the same tree back."""
    root: Node = Or(
        (
            Leaf("purchase", And((GOOD, Condition("g", "IsSet", (), "array"))), 2, 0),
            Not((Leaf("user", GOOD, 0),)),
        )
    )
    condition: dict[str, Any] = {"condition": {"field": "f", "comparator": "Equals", "values": ["x"]}}
    is_set = {"condition": {"field": "g", "comparator": "IsSet", "values": [], "field_type": "array"}}
    query = {"and": {"nodes": [condition, is_set]}}
    purchase = {"leaf": {"data_type": "purchase", "query": query, "min_match": 2, "max_match": 0}}
    user = {"leaf": {"data_type": "user", "query": condition, "min_match": 0}}
    document = {"or": {"nodes": [purchase, {"not": {"nodes": [user]}}]}}
    assert to_document(root) == document
    assert from_document(document) == root


def test_what_was_not_checked_is_not_compiled() -> None:
    """U1: a tree that check refuses for its comparator, data type or query never becomes a criterion by mistake."""
    for leaf in (Leaf("user", Condition("f", "equals", ("x",))), Leaf("nobody", GOOD), Leaf("user", None)):
        with pytest.raises(ValueError, match=r"not checked|not a valid DataType"):
            CompiledCriterion("c", leaf)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+$", "a" * 99_999 + "b"),
        ("^(a|a)*$", "a" * 99_999 + "b"),
        ("(.*)*x$", "y" * 100_000),
        ("(a?){300}a{300}b", "a" * 100_000),
        (r"^(([a-z])+.)+[A-Z]([a-z])+$", "a" * 100_000),
    ],
)
def test_no_pattern_takes_longer_than_its_text(pattern: str, text: str) -> None:
    """F71: patterns that keep a backtracking matcher busy for longer than the universe lasts answer at once."""
    root = Leaf("customEvent", regex(pattern))
    assert check(root) == []
    event = Event("e", DataType.CUSTOM_EVENT, "clicked", {"f": text})
    assert evaluate([CompiledCriterion("c", root)], [event], {}).matched_id is None
