"""Free-form data on its way in and out: google.protobuf.Struct, or the text of a JSON object.

Both are checked against the same limits. A Struct becomes JSON text; JSON text is checked and passed on as it is. The
walkers below do what json_format does, three times as fast, and say where a value is wrong.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import orjson
from google.protobuf.struct_pb2 import ListValue, Struct, Value

from onefold.limits import DATA_DEPTH, DATA_KEYS_PER_OBJECT
from onefold.rpc.checks import Checker

# Up to here every integer is a double, so a Struct's 3.0 is taken for the 3 that the caller meant.
_EXACT: Final = 2.0**53


_CONTAINERS: Final = frozenset({dict, list})
_LONG_NUMBER: Final = re.compile(r"[0-9.]{16}")


class Payload(NamedTuple):
    """An accepted JSON object: as Python values and as the text to store."""

    value: dict[str, Any]
    text: str

    def canonical(self) -> bytes:
        """The same bytes for the same object, whatever the order of its keys or the spaces in its text."""
        if _LONG_NUMBER.search(self.text):
            # More digits than a double tells apart: read once more, keeping all of them.
            exact = json.loads(self.text, parse_float=str)
            return json.dumps(exact, sort_keys=True, ensure_ascii=False).encode()
        return orjson.dumps(self.value, option=orjson.OPT_SORT_KEYS)


EMPTY: Final = Payload({}, "{}")


class _WrongValueError(Exception):
    """Carries the path inside the object, and what is wrong there."""

    def __init__(self, path: str, description: str) -> None:
        super().__init__(description)
        self.path = path
        self.description = description


def read_struct(checker: Checker, field: str, struct: Struct, *, max_bytes: int) -> Payload:
    """Checks a Struct and turns it into JSON. Returns an empty object after noting a violation."""
    try:
        value = _from_struct(struct, "", 1)
        text = orjson.dumps(value).decode()
        if _may_hold_nul(text):
            _check_nul(value, "")
    except _WrongValueError as wrong:
        checker.refuse(field + wrong.path, wrong.description)
        return EMPTY
    except orjson.JSONEncodeError:
        checker.refuse(field, "is not valid Unicode")
        return EMPTY
    return _sized(checker, field, Payload(value, text), max_bytes)


def read_json(checker: Checker, field: str, text: str, *, max_bytes: int) -> Payload:
    """Checks the text of a JSON object (RFC 8259). Returns an empty object after noting a violation."""
    if len(text) > max_bytes:
        checker.refuse(field, f"must have at most {max_bytes} bytes")
        return EMPTY
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        checker.refuse(field, "is not JSON text")
        return EMPTY
    if not isinstance(value, dict):
        checker.refuse(field, "must be a JSON object")
        return EMPTY
    try:
        if _may_be_too_deep_or_wide(text):
            _check(value, "", 1)
        if _may_hold_nul(text):
            _check_nul(value, "")
    except _WrongValueError as wrong:
        checker.refuse(field + wrong.path, wrong.description)
        return EMPTY
    return _sized(checker, field, Payload(value, text), max_bytes)


def write_struct(target: Struct, value: dict[str, Any]) -> None:
    """Fills a Struct from a JSON object. Integers over 2^53 are rounded to doubles."""
    fields = target.fields
    for key, item in value.items():
        _write_value(fields[key], item)


def plain_number(number: float) -> float:
    """A finite double as JSON should have it: 3.0 as 3, as long as that says the same."""
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


def _sized(checker: Checker, field: str, payload: Payload, max_bytes: int) -> Payload:
    text = payload.text
    # A character has at most four bytes, so most texts need not be looked at.
    if 4 * len(text) > max_bytes and (len(text) if text.isascii() else len(text.encode())) > max_bytes:
        checker.refuse(field, f"must have at most {max_bytes} bytes as JSON text")
        return EMPTY
    return payload


def _from_struct(struct: Struct, path: str, depth: int) -> dict[str, Any]:
    fields = struct.fields
    _check_object(fields, path, depth)
    # By key: a protobuf map takes twice as long to hand out its items.
    return {key: _from_value(fields[key], path, key, depth) for key in fields}


def _from_value(value: Value, path: str, key: str | int, depth: int) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            text = value.string_value
            if "\x00" in text:
                raise _WrongValueError(_join(path, key), "must not contain NUL")
            return text
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise _WrongValueError(_join(path, key), "must be a finite number")
            return plain_number(number)
        case "bool_value":
            return value.bool_value
        case "null_value":
            return None
        case "struct_value":
            return _from_struct(value.struct_value, _join(path, key), depth + 1)
        case "list_value":
            return _from_list(value.list_value, _join(path, key), depth + 1)
        case _:
            raise _WrongValueError(_join(path, key), "is a Value without a kind")


def _from_list(values: ListValue, path: str, depth: int) -> list[Any]:
    _check_depth(path, depth)
    return [_from_value(item, path, index, depth) for index, item in enumerate(values.values)]


def _may_be_too_deep_or_wide(text: str) -> bool:
    """Whether a JSON text must be walked through for that. Nearly none: a level takes a bracket, and a key a colon."""
    return text.count("{") + text.count("[") > DATA_DEPTH or text.count(":") > DATA_KEYS_PER_OBJECT


def _may_hold_nul(text: str) -> bool:
    """The same for NUL. In JSON text it can only stand as an escape, which few texts have."""
    return "\\u0000" in text


def _check(container: dict[str, Any] | list[Any], path: str, depth: int) -> None:
    """Checks what orjson parsed; it has refused NaN, infinities and lone surrogates already."""
    items: Iterable[tuple[str | int, Any]]
    if isinstance(container, dict):
        _check_object(container, path, depth)
        items = container.items()
    else:
        _check_depth(path, depth)
        items = enumerate(container)
    for key, item in items:
        # What orjson makes is of these very types.
        if type(item) in _CONTAINERS:
            _check(item, _join(path, key), depth + 1)


def _check_nul(value: Any, path: str) -> None:
    """Checks that no string of a value holds NUL."""
    if isinstance(value, str) and "\x00" in value:
        raise _WrongValueError(path, "must not contain NUL")
    if isinstance(value, dict) and any("\x00" in key for key in value):
        raise _WrongValueError(path, "must not contain NUL in a key")
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        _check_nul(item, _join(path, key))


def _check_object(value: Any, path: str, depth: int) -> None:
    _check_depth(path, depth)
    if len(value) > DATA_KEYS_PER_OBJECT:
        raise _WrongValueError(path, f"must have at most {DATA_KEYS_PER_OBJECT} keys in one object")


def _check_depth(path: str, depth: int) -> None:
    if depth > DATA_DEPTH:
        raise _WrongValueError(path, f"must not nest deeper than {DATA_DEPTH} levels")


def _join(path: str, key: str | int) -> str:
    # The path goes into an error's text; a key is the caller's own, but may be long.
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key[:64]}"


def _write_value(target: Value, value: Any) -> None:
    if isinstance(value, str):
        target.string_value = value
    elif isinstance(value, bool):
        target.bool_value = value
    elif value is None:
        target.null_value = 0  # type: ignore[assignment]  # NULL_VALUE; the stub wants the enum's own type
    elif isinstance(value, dict):
        target.struct_value.SetInParent()
        write_struct(target.struct_value, value)
    elif isinstance(value, list):
        target.list_value.SetInParent()
        add = target.list_value.values.add
        for item in value:
            _write_value(add(), item)
    else:
        target.number_value = value
