"""What a merge makes of two profiles, and what undoing it leaves. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import orjson

from onefold.errors import OnefoldError, Reason, failed_precondition
from onefold.identity.rules import same_json

UNDO_PERIOD: Final = timedelta(days=30)
# How long the identifiers of a known source lead to the target; those of an unknown one do so for ever (I17).
KNOWN_REDIRECT: Final = timedelta(minutes=5)
MAX_ARRAY_MERGES: Final = 100


@dataclass(frozen=True, slots=True)
class ArrayMerge:
    """An array to concatenate. With dedupe_by its elements are objects, and equal under that key means the same."""

    field: str
    dedupe_by: str | None


@dataclass(frozen=True, slots=True)
class MergedFields:
    """The target's fields after the merge, and which of them came from whom, sorted by name."""

    fields: dict[str, Any]
    source_fields: list[str]
    target_fields: list[str]
    merged_arrays: list[str]


def merge_profiles(
    source: Mapping[str, Any], target: Mapping[str, Any], array_merges: Sequence[ArrayMerge]
) -> MergedFields:
    """The fields of source and target together (I16): the target's value wins, the source fills gaps.

    Objects are not combined. Named arrays are concatenated, the target's elements first, without repeats. Raises
    ARRAY_NOT_MERGEABLE if an array with dedupe_by holds something that is no object with that key.
    """
    fields = {**source, **target}
    named = {merge.field: merge for merge in array_merges}
    merged_arrays = sorted(name for name in named if name in source or name in target)
    for name in merged_arrays:
        fields[name] = _concatenate(target.get(name, []), source.get(name, []), named[name])
    return MergedFields(
        fields,
        sorted(name for name in source if name not in target and name not in named),
        sorted(name for name in source if name in target and name not in named),
        merged_arrays,
    )


def undo_fields(before: Mapping[str, Any], after: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The target's fields when a merge is undone (I19): as before it, but what changed since keeps its newer value."""
    fields = dict(now)
    for name in before.keys() | after.keys():
        changed_since = not _same(now, after, name)
        if changed_since:
            continue
        if name in before:
            fields[name] = before[name]
        else:
            fields.pop(name, None)
    return fields


def undo_identifier(before: str | None, after: str | None, now: str | None) -> str | None:
    """The same for an identifier: one that the merge gave and nobody changed goes back."""
    return before if now == after else now


def undo_devices(
    before: Sequence[Mapping[str, Any]], source_numbers: Mapping[str, int], later: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """What a later merge would restore of the target's devices, once an earlier one is undone.

    `before` and `later` are the copies that the two merges found with the target; `source_numbers` are the operation
    numbers of the earlier source's copies, by token. A copy that the target had from the earlier source alone is not
    its own any more, unless it has registered it itself; one that it had before is again what it was, unless it was
    registered or disabled in between.
    """
    own = {device["token"]: device for device in before}
    kept: list[Mapping[str, Any]] = []
    for device in later:
        token, number = device["token"], device["operation_number"]
        if token in own and number <= own[token]["merged_operation_number"]:
            kept.append({**own[token], "merged_operation_number": device["merged_operation_number"]})
        elif token in own or device.get("is_own") or number > source_numbers.get(token, -1):
            kept.append(device)
    return kept


def is_undoable(create_time: datetime, now: datetime) -> bool:
    """Whether a merge is young enough to be undone."""
    return now < create_time + UNDO_PERIOD


def _concatenate(target: Any, source: Any, merge: ArrayMerge) -> list[Any]:
    result, seen = [], set()
    for element in [*_as_list(target), *_as_list(source)]:
        key = _identity(element, merge)
        if key not in seen:
            seen.add(key)
            result.append(element)
    return result


def _as_list(value: Any) -> list[Any]:
    # A scalar named as an array becomes an array of one.
    return value if isinstance(value, list) else [value]


def _identity(element: Any, merge: ArrayMerge) -> bytes:
    if merge.dedupe_by is not None:
        if not isinstance(element, dict) or merge.dedupe_by not in element:
            raise _not_mergeable(merge.field)
        element = element[merge.dedupe_by]
    return _text(element)


def _not_mergeable(field: str) -> OnefoldError:
    return failed_precondition(
        Reason.ARRAY_NOT_MERGEABLE, "An array to merge holds an element without the key to compare by.", field=field
    )


def _same(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    if name not in one or name not in other:
        return (name in one) == (name in other)
    return same_json(one[name], other[name])


def _text(value: Any) -> bytes:
    # As text: it can be looked up, and to Python true would be the same as 1.
    return orjson.dumps(_plain(value), option=orjson.OPT_SORT_KEYS)


def _plain(value: Any) -> Any:
    """The value with every whole number written as one: 1.0 is 1."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value
