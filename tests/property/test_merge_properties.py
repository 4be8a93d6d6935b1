"""What holds for the fields of any two profiles that are merged, and for any changes before the merge is undone."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.identity.rules import same_json
from onefold.merges.rules import ArrayMerge, merge_profiles, undo_fields

_KEYS = st.sampled_from(["a", "b", "c", "d", "e"])
_SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, 1.5]) | st.sampled_from("xy")
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3))
_FIELDS = st.dictionaries(_KEYS, _VALUES, max_size=5)
_ARRAYS = st.lists(_KEYS, max_size=3, unique=True).map(lambda keys: [ArrayMerge(key, None) for key in keys])
# Few elements, so that both sides often have the same one.
_ELEMENTS = st.lists(_SCALARS, max_size=5) | _VALUES
# Objects with an id and something else: what dedupe_by is for.
_CARDS = st.lists(st.fixed_dictionaries({"id": st.integers(0, 4), "n": st.integers(0, 9)}), max_size=5)

_quick = settings(deadline=None, max_examples=200)


def _holds(elements: list[Any], element: Any) -> bool:
    return any(same_json(each, element) for each in elements)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@_quick
@given(_FIELDS, _FIELDS, _ARRAYS)
def test_every_field_comes_from_somewhere_and_none_is_lost(
    source: dict[str, Any], target: dict[str, Any], arrays: list[ArrayMerge]
) -> None:
    """I16 I18: the merged profile has the fields of both; a field that no array merge names has one side's value."""
    merged = merge_profiles(source, target, arrays)
    assert merged.fields.keys() == source.keys() | target.keys()
    for name, value in merged.fields.items():
        if name not in merged.merged_arrays:
            assert same_json(value, target[name] if name in target else source[name])
    told = [*merged.source_fields, *merged.target_fields, *merged.merged_arrays]
    assert len(told) == len(set(told))
    assert source.keys() <= set(told) <= source.keys() | target.keys()


@_quick
@given(_ELEMENTS, _ELEMENTS)
def test_a_concatenated_array_holds_each_element_of_both_once(source: Any, target: Any) -> None:
    """I16: nothing is lost, nothing stands twice, and the target's elements keep their order in front."""
    merged = merge_profiles({"tags": source}, {"tags": target}, [ArrayMerge("tags", None)]).fields["tags"]
    for element in [*_as_list(source), *_as_list(target)]:
        assert _holds(merged, element)
    for index, element in enumerate(merged):
        assert not _holds(merged[:index], element)
    front: list[Any] = []
    for element in _as_list(target):
        if not _holds(front, element):
            front.append(element)
    assert same_json(merged[: len(front)], front)


@_quick
@given(_CARDS, _CARDS)
def test_objects_are_kept_once_by_their_key(source: list[dict[str, int]], target: list[dict[str, int]]) -> None:
    """I16: with dedupe_by each key stands once, and as the target has it if the target has it."""
    merged = merge_profiles({"cards": source}, {"cards": target}, [ArrayMerge("cards", "id")]).fields["cards"]
    ids = [card["id"] for card in merged]
    assert len(ids) == len(set(ids))
    assert set(ids) == {card["id"] for card in [*source, *target]}
    for card in merged:
        assert card in (target if any(other["id"] == card["id"] for other in target) else source)


@_quick
@given(_FIELDS, _FIELDS, _ARRAYS)
def test_undoing_at_once_leaves_nothing_of_the_merge(
    source: dict[str, Any], target: dict[str, Any], arrays: list[ArrayMerge]
) -> None:
    """I19: when nothing was changed since, the target is what it was before the merge."""
    merged = merge_profiles(source, target, arrays).fields
    assert same_json(undo_fields(target, merged, merged), target)


@_quick
@given(_FIELDS, _FIELDS, _ARRAYS, _FIELDS, st.sets(_KEYS))
def test_undoing_decides_field_by_field(
    source: dict[str, Any],
    target: dict[str, Any],
    arrays: list[ArrayMerge],
    given_since: dict[str, Any],
    removed_since: set[str],
) -> None:
    """I19: each field that is still as the merge left it goes back to before, and each other one stays as it is now."""
    merged = merge_profiles(source, target, arrays).fields
    now = {name: value for name, value in {**merged, **given_since}.items() if name not in removed_since}
    left = undo_fields(target, merged, now)
    for name in merged.keys() | now.keys():
        untouched = name in merged and name in now and same_json(merged[name], now[name])
        expected = target if untouched else now
        assert (name in left) == (name in expected)
        if name in expected:
            assert same_json(left[name], expected[name])
