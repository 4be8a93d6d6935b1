"""Free-form data: what of it is accepted, as Struct and as JSON text, and what is said about the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from onefold.limits import DATA_DEPTH, DATA_KEYS_PER_OBJECT, EVENT_DATA_BYTES
from onefold.rpc.checks import Checker
from onefold.rpc.payload import EMPTY, Payload, read_json, read_struct, write_struct

Read = Callable[[Checker, Any], Payload]


def read_as_text(checker: Checker, value: Any) -> Payload:
    """Reads a value told as JSON text."""
    return read_json(checker, "data", orjson.dumps(value).decode(), max_bytes=EVENT_DATA_BYTES)


def read_as_struct(checker: Checker, value: Any) -> Payload:
    """Reads a value told as a Struct."""
    struct = Struct()
    write_struct(struct, value)
    return read_struct(checker, "data", struct, max_bytes=EVENT_DATA_BYTES)


either_form = pytest.mark.parametrize("read", [read_as_text, read_as_struct])


def nested(levels: int, *, lists: bool = False) -> dict[str, Any]:
    """An object of so many levels."""
    inner: Any = [] if lists else {}
    for _ in range(levels - 2):
        inner = [inner] if lists else {"a": inner}
    return {"a": inner}


def of_size(size: int) -> dict[str, str]:
    """An object whose JSON text has so many bytes."""
    return {"a": "x" * (size - len('{"a":""}'))}


def keys(count: int) -> dict[str, int]:
    """An object of so many keys."""
    return {f"k{number}": number for number in range(count)}


@either_form
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": None, "b": True, "c": -1.5, "d": "é\n\u2028", "e": [], "f": {}, "": 0, "g": [[{}]]},
        nested(DATA_DEPTH),
        nested(DATA_DEPTH, lists=True),
        keys(DATA_KEYS_PER_OBJECT),
        {"a": keys(DATA_KEYS_PER_OBJECT), "b": keys(DATA_KEYS_PER_OBJECT)},
        of_size(EVENT_DATA_BYTES),
        {"a": "é" * 49_996},
        {"a": 2**53, "b": -(2**53), "c": 1e308, "d": 5e-324},
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_within_the_limits_is_kept(read: Read, value: dict[str, Any]) -> None:
    """X5, F66, F67: 16 levels, 512 keys in each object, 100 kB and every finite double are accepted as they are."""
    checker = Checker()
    payload = read(checker, value)
    assert checker.violations == []
    assert payload.value == value
    assert orjson.loads(payload.text) == value


@either_form
@pytest.mark.parametrize(
    ("value", "field", "says"),
    [
        (nested(DATA_DEPTH + 1), "data" + ".a" * DATA_DEPTH, "16 levels"),
        (nested(DATA_DEPTH + 1, lists=True), "data.a" + "[0]" * (DATA_DEPTH - 1), "16 levels"),
        (keys(DATA_KEYS_PER_OBJECT + 1), "data", "512 keys"),
        ({"a": [{}, keys(DATA_KEYS_PER_OBJECT + 1)]}, "data.a[1]", "512 keys"),
        (of_size(EVENT_DATA_BYTES + 1), "data", "100000 bytes"),
        ({"a": "é" * 49_997}, "data", "100000 bytes"),
        ({"a": "x\0y"}, "data.a", "NUL"),
        ({"a": [1, {"b": "\0"}]}, "data.a[1].b", "NUL"),
        ({"a": {"x\0": 1}}, "data.a", "NUL"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_beyond_the_limits_is_named(read: Read, value: dict[str, Any], field: str, says: str) -> None:
    """X5, F64, F67: one more level, key or byte, or a NUL anywhere, is refused by the path where it stands."""
    checker = Checker()
    assert read(checker, value) == EMPTY
    [violation] = checker.violations
    assert violation.field == field
    assert says in violation.description


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "JSON text"),
        ("{", "JSON text"),
        ("{'a':1}", "JSON text"),
        ('{"a":1}x', "JSON text"),
        ('{"a":NaN}', "JSON text"),
        ('{"a":-Infinity}', "JSON text"),
        ('{"a":1e309}', "JSON text"),
        ('{"a":-1e400}', "JSON text"),
        ('{"a":"\\ud800"}', "JSON text"),
        ('{"a":"\\udc00\\ud800"}', "JSON text"),
        ("[]", "object"),
        ("null", "object"),
        ('"text"', "object"),
        ("1", "object"),
        ("[" * 100_000, "JSON text"),
        ('{"a":' + "[" * 50_000 + "]" * 49_990 + "}", ""),
    ],
    ids=lambda text: str(text)[:20],
)
def test_text_that_is_no_json_object_is_refused(text: str, says: str) -> None:
    """F65, F66: broken text, NaN, infinities, exponents over 308, lone surrogates, and anything but an object."""
    checker = Checker()
    assert read_json(checker, "data_json", text, max_bytes=EVENT_DATA_BYTES) == EMPTY
    [violation] = checker.violations
    assert violation.field.startswith("data_json")
    assert says in violation.description


def test_text_is_refused_by_its_bytes_before_it_is_parsed() -> None:
    """X5: spaces count too, because the text is stored as it is."""
    checker = Checker()
    read_json(checker, "data_json", "{" + " " * (EVENT_DATA_BYTES - 1) + "}", max_bytes=EVENT_DATA_BYTES)
    assert [violation.field for violation in checker.violations] == ["data_json"]


@pytest.mark.parametrize(
    ("value", "field", "says"),
    [
        (Value(), "data.a", "without a kind"),
        (Value(list_value=ListValue(values=[Value(bool_value=True), Value()])), "data.a[1]", "without a kind"),
        (Value(number_value=float("nan")), "data.a", "finite"),
        (Value(number_value=float("inf")), "data.a", "finite"),
        (Value(struct_value=Struct(fields={"b": Value(number_value=float("-inf"))})), "data.a.b", "finite"),
    ],
)
def test_a_struct_may_hold_what_json_cannot(value: Value, field: str, says: str) -> None:
    """F66, F67: a Value without a kind, NaN and infinities are refused by their path."""
    checker = Checker()
    assert read_struct(checker, "data", Struct(fields={"a": value}), max_bytes=EVENT_DATA_BYTES) == EMPTY
    [violation] = checker.violations
    assert (violation.field, says in violation.description) == (field, True)


def test_whole_numbers_of_a_struct_are_integers_again() -> None:
    """F67: a Struct's 3.0 is the 3 that the caller meant, up to 2^53."""
    read = [read_as_struct(Checker(), {"a": number}).text for number in (3, -0.5, 2**53)]
    assert read == ['{"a":3}', '{"a":-0.5}', '{"a":9007199254740992}']


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64 + 1, 10**30 + 1])
def test_json_text_keeps_every_digit_and_a_struct_rounds(number: int) -> None:
    """F67: an integer over 2^53 is rounded to a double in a Struct, while JSON text is stored as it was told."""
    text = f'{{"a": {number}}}'
    payload = read_json(Checker(), "data", text, max_bytes=EVENT_DATA_BYTES)
    assert payload.text == text
    struct = Struct()
    write_struct(struct, orjson.loads(payload.text))
    assert struct.fields["a"].number_value == float(number)


def test_a_long_key_does_not_blow_up_the_error() -> None:
    """X2: the path in an error is bounded even if the caller's keys are not."""
    checker = Checker()
    read_as_text(checker, {"k" * 50_000: "\0"})
    [violation] = checker.violations
    assert len(violation.field) < 100
