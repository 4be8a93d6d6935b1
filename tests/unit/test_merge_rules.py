"""What a merge makes of two profiles' fields, and what its undoing leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onefold.errors import Kind, OnefoldError, Reason
from onefold.merges.rules import ArrayMerge, is_undoable, merge_profiles, undo_fields, undo_identifier

Fields = dict[str, Any]


@pytest.mark.parametrize(
    ("source", "target", "merged"),
    [
        ({"plan": "gold"}, {"plan": "free"}, {"plan": "free"}),
        ({"plan": "gold"}, {}, {"plan": "gold"}),
        ({}, {"plan": "free"}, {"plan": "free"}),
        ({"plan": "gold"}, {"plan": None}, {"plan": None}),
        ({"plan": "gold"}, {"plan": False}, {"plan": False}),
        ({"plan": "gold"}, {"plan": ""}, {"plan": ""}),
        ({"address": {"city": "Turin", "zip": "1"}}, {"address": {"city": "Rome"}}, {"address": {"city": "Rome"}}),
        ({"tags": ["a"]}, {"tags": ["b"]}, {"tags": ["b"]}),
    ],
)
def test_the_targets_value_wins_and_the_source_fills_gaps(source: Fields, target: Fields, merged: Fields) -> None:
    """I16: any value of the target wins, null, false and "" included; objects and unnamed arrays are not combined."""
    assert merge_profiles(source, target, []).fields == merged


def test_the_ledger_names_every_field_once() -> None:
    """I18: a field is from the source, won by the target, concatenated, or only the target's; the lists are sorted."""
    merged = merge_profiles(
        {"b": 1, "a": 1, "tags": [1], "only_theirs": [1], "z": 1, "y": 1},
        {"z": 2, "y": 2, "tags": [2], "own": 2},
        [ArrayMerge("tags", None), ArrayMerge("only_theirs", None), ArrayMerge("nowhere", None)],
    )
    assert merged.source_fields == ["a", "b"]
    assert merged.target_fields == ["y", "z"]
    assert merged.merged_arrays == ["only_theirs", "tags"]


@pytest.mark.parametrize(
    ("source", "target", "merged"),
    [
        (["a", "b"], ["b", "c"], ["b", "c", "a"]),
        (["a", "a"], ["b", "b"], ["b", "a"]),
        ("a", ["b"], ["b", "a"]),
        (["a"], "b", ["b", "a"]),
        ("a", "b", ["b", "a"]),
        ("a", "a", ["a"]),
        ([], [], []),
        ([{"k": 1, "j": 2}], [{"j": 2, "k": 1}], [{"j": 2, "k": 1}]),
        ([True], [1], [1, True]),
        ([False], [0], [0, False]),
        (["1"], [1], [1, "1"]),
        ([1.0], [1], [1]),
        ([[1, 2]], [[2, 1]], [[2, 1], [1, 2]]),
        ([{"k": 1}], ["k"], ["k", {"k": 1}]),
    ],
)
def test_named_arrays_are_concatenated_without_repeats(source: Any, target: Any, merged: list[Any]) -> None:
    """I16: the target's elements come first, equal ones stay once (numbers by value), a scalar is an array of one."""
    result = merge_profiles({"tags": source}, {"tags": target}, [ArrayMerge("tags", None)]).fields["tags"]
    assert repr(result) == repr(merged)


@pytest.mark.parametrize("where", ["source", "target"])
def test_a_named_field_that_one_side_has_becomes_an_array(where: str) -> None:
    """I16: a scalar named as an array becomes an array also where the other side has nothing to add."""
    one, none = {"tags": "a"}, dict[str, Any]()
    source, target = (one, none) if where == "source" else (none, one)
    assert merge_profiles(source, target, [ArrayMerge("tags", None)]).fields == {"tags": ["a"]}


def test_a_named_array_that_nobody_has_does_not_appear() -> None:
    """I16: naming an array does not make one."""
    assert merge_profiles({"a": 1}, {"b": 2}, [ArrayMerge("tags", None)]).fields == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("source", "target", "merged"),
    [
        (
            [{"id": 1, "n": "s"}, {"id": 3}],
            [{"id": 1, "n": "t"}, {"id": 2}],
            [{"id": 1, "n": "t"}, {"id": 2}, {"id": 3}],
        ),
        ({"id": 1}, {"id": 2}, [{"id": 2}, {"id": 1}]),
        ([{"id": 1}], [{"id": "1"}], [{"id": "1"}, {"id": 1}]),
        ([{"id": True}], [{"id": 1}], [{"id": 1}, {"id": True}]),
        ([{"id": {"a": 1}}], [{"id": {"a": 1}, "n": 1}], [{"id": {"a": 1}, "n": 1}]),
    ],
)
def test_objects_are_the_same_under_the_key(source: Any, target: Any, merged: list[Any]) -> None:
    """I16: with dedupe_by, of two objects with the same value under the key the target's stays."""
    result = merge_profiles({"cards": source}, {"cards": target}, [ArrayMerge("cards", "id")]).fields["cards"]
    assert repr(result) == repr(merged)


@pytest.mark.parametrize("element", ["a", 1, None, True, ["id"]])
@pytest.mark.parametrize("side", ["source", "target"])
def test_only_objects_can_be_compared_by_a_key(element: Any, side: str) -> None:
    """I16: dedupe_by on anything but objects, on either side, fails the merge and says which field it was."""
    wrong, right = {"cards": [{"id": 1}, element]}, {"cards": [{"id": 2}]}
    source, target = (wrong, right) if side == "source" else (right, wrong)
    with pytest.raises(OnefoldError) as failed:
        merge_profiles(source, target, [ArrayMerge("cards", "id")])
    assert (failed.value.kind, failed.value.reason) == (Kind.FAILED_PRECONDITION, Reason.ARRAY_NOT_MERGEABLE)
    assert failed.value.metadata == {"field": "cards"}


@pytest.mark.parametrize(
    ("before", "after", "now", "left"),
    [
        # A field that came from the source goes again.
        ({}, {"plan": "gold"}, {"plan": "gold"}, {}),
        # One that was changed since, or set since, or removed since, stays as it is.
        ({}, {"plan": "gold"}, {"plan": "new"}, {"plan": "new"}),
        ({"a": 1}, {"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 1}, {}, {}),
        # An array that was concatenated is what it was; one that grew since keeps what it has.
        ({"tags": ["t"]}, {"tags": ["t", "s"]}, {"tags": ["t", "s"]}, {"tags": ["t"]}),
        ({"tags": ["t"]}, {"tags": ["t", "s"]}, {"tags": ["t", "s", "new"]}, {"tags": ["t", "s", "new"]}),
        # A scalar that became an array is a scalar again.
        ({"tags": "t"}, {"tags": ["t"]}, {"tags": ["t"]}, {"tags": "t"}),
        # true is not 1, and 1 is 1.0.
        ({}, {"on": True}, {"on": 1}, {"on": 1}),
        ({}, {"n": 1}, {"n": 1.0}, {}),
        # Deep down counts as changed.
        ({}, {"o": {"a": {"b": 1}}}, {"o": {"a": {"b": 2}}}, {"o": {"a": {"b": 2}}}),
    ],
)
def test_undoing_keeps_what_changed_since(before: Fields, after: Fields, now: Fields, left: Fields) -> None:
    """I19: the target's fields are as before the merge, but what changed since keeps its newer value."""
    assert repr(undo_fields(before, after, now)) == repr(left)


@pytest.mark.parametrize(
    ("before", "after", "now", "left"),
    [
        (None, "filled", "filled", None),
        (None, "filled", "newer", "newer"),
        ("own", "own", "own", "own"),
        ("own", "own", "newer", "newer"),
        ("temporary", None, None, "temporary"),
        ("temporary", None, "newer", "newer"),
    ],
)
def test_undoing_keeps_an_identifier_that_changed_since(
    before: str | None, after: str | None, now: str | None, left: str | None
) -> None:
    """I19: an identifier that the merge gave or took goes back; one that was changed since stays."""
    assert undo_identifier(before, after, now) == left


@pytest.mark.parametrize(
    ("age", "undoable"),
    [
        (timedelta(0), True),
        (timedelta(days=30) - timedelta(microseconds=1), True),
        (timedelta(days=30), False),
        (timedelta(days=31), False),
    ],
)
def test_a_merge_can_be_undone_for_30_days(age: timedelta, undoable: bool) -> None:
    """I19: to the microsecond."""
    then = datetime(2026, 3, 1, tzinfo=UTC)
    assert is_undoable(then, then + age) is undoable
