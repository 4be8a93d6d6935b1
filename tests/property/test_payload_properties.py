"""What holds for all free-form data."""

from __future__ import annotations

import json
from typing import Any

import orjson
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.limits import EVENT_DATA_BYTES
from onefold.rpc.checks import Checker
from onefold.rpc.payload import EMPTY, read_json, read_struct, write_struct

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    # Adding zero turns -0.0 into 0.0: JSON does not promise to keep that sign.
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
    | texts
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=20
)
objects = st.dictionaries(texts, values, max_size=6)


def exactly(value: Any) -> str:
    """A text that differs where JSON does; to Python alone 1, 1.0 and true are equal."""
    return json.dumps(value, sort_keys=True)


def as_doubles(value: Any) -> Any:
    """The value as a Struct can hold it: every number a double."""
    match value:
        case bool() | None | str():
            return value
        case dict():
            return {key: as_doubles(item) for key, item in value.items()}
        case list():
            return [as_doubles(item) for item in value]
        case _:
            return float(value)


@settings(deadline=None, max_examples=100)
@given(objects)
def test_a_struct_comes_back_as_it_went(value: dict[str, Any]) -> None:
    """E1, F67: what is told as a Struct is read again as the same object, whatever it holds within the limits."""
    struct = Struct()
    write_struct(struct, value)
    checker = Checker()
    payload = read_struct(checker, "data", struct, max_bytes=EVENT_DATA_BYTES)
    assert checker.violations == []
    assert exactly(as_doubles(payload.value)) == exactly(as_doubles(value))
    answer = Struct()
    write_struct(answer, orjson.loads(payload.text))
    assert answer == struct


@settings(deadline=None, max_examples=100)
@given(objects, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_json_text_is_kept_as_it_is(value: dict[str, Any], indent: int | str | None, ascii_only: bool) -> None:
    """E1: whatever way the text is written, it is stored letter by letter and means the same object."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    checker = Checker()
    payload = read_json(checker, "data_json", text, max_bytes=EVENT_DATA_BYTES)
    assert checker.violations == []
    assert payload.text == text
    assert exactly(payload.value) == exactly(value)


@settings(deadline=None, max_examples=100)
@given(objects, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter_to_dedupe(value: dict[str, Any], random: Any) -> None:
    """E3, F60: the canonical form is the same for every order of the keys, and for both forms of telling."""
    shuffled = list(value.items())
    random.shuffle(shuffled)
    first = read_json(Checker(), "data", json.dumps(value), max_bytes=EVENT_DATA_BYTES)
    second = read_json(Checker(), "data", json.dumps(dict(shuffled), indent=2), max_bytes=EVENT_DATA_BYTES)
    assert first.canonical() == second.canonical()


@settings(deadline=None, max_examples=100)
@given(objects, objects)
def test_different_objects_have_different_canonical_forms(first: dict[str, Any], second: dict[str, Any]) -> None:
    """E3, F61: two bodies are the same to dedupe exactly when they are the same JSON."""
    one, other = (
        read_json(Checker(), "data", json.dumps(value), max_bytes=EVENT_DATA_BYTES) for value in (first, second)
    )
    assert (one.canonical() == other.canonical()) == (exactly(one.value) == exactly(other.value))


def as_orjson(digits: str) -> float:
    """An integer as the server's parser has it: a double beyond 64 bits. The text that is stored keeps its digits."""
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else float(number)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60) | st.text(alphabet='{}[]":,\\u0d8e1N-.aI ', max_size=30))
def test_any_text_is_judged_and_none_breaks_the_server(text: str) -> None:
    """F64, F65, F66: every text is either an object that the standard parser reads too, or one violation."""
    checker = Checker()
    payload = read_json(checker, "data_json", text, max_bytes=EVENT_DATA_BYTES)
    if checker.violations:
        assert payload == EMPTY
        assert len(checker.violations) == 1
    else:
        assert payload.value == json.loads(text, parse_int=as_orjson)
        assert "\0" not in json.dumps(payload.value, ensure_ascii=False)
