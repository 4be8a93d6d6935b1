"""What a condition's comparator says of one value. Pure.

Values are JSON as Python has it. No comparator holds for a value that is missing or null. An array matches if one of
its elements does; only DoesNotEqual wants a value and none that is equal. Numbers compare as numbers, also with text
that is one; text that is no number never compares as one.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import re2

Test = Callable[[Any], bool]

# RE2 is linear in the text, but at its slowest it also takes every instruction of the pattern for every byte: this
# keeps the slowest pattern on the largest text within seconds, and all ordinary ones within a millisecond. A class of
# all of Unicode's letters (\pL) takes 1,200.
PATTERN_INSTRUCTIONS: Final = 1_300
_PATTERN_MEMORY_BYTES: Final = 8 * 1024 * 1024
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
# Longer integers than any long are compared as doubles, because reading them exactly is not linear.
_EXACT_DIGITS: Final = 40
_TEXT_ONLY: Final = frozenset({"string", "boolean", "object", "array"})


def test_of(comparator: str, values: Sequence[str], field_type: str) -> Test:
    """The test of a condition that `criteria.check` has passed. Patterns are compiled here, once."""
    match comparator:
        case "Equals":
            return _equals(values, field_type)
        case "DoesNotEqual":
            equals = _equals(values, field_type)
            return lambda value: _is_there(value) and not equals(value)
        case "IsSet":
            return _is_set
        case "GreaterThan":
            return _ordered(operator.gt, values)
        case "GreaterThanOrEqualTo":
            return _ordered(operator.ge, values)
        case "LessThan":
            return _ordered(operator.lt, values)
        case "LessThanOrEqualTo":
            return _ordered(operator.le, values)
        case "Contains":
            return _text(lambda text: any(value in text for value in values))
        case "StartsWith":
            prefixes = tuple(values)
            return _text(lambda text: text.startswith(prefixes))
        case "MatchesRegex":
            patterns = [re2.compile(value, _options()) for value in values]
            return _text(lambda text: any(pattern.search(text) for pattern in patterns))
        case _:
            raise ValueError("an unknown comparator: the criterion was not checked")


def pattern_problem(pattern: str) -> str | None:
    """Why RE2 refuses a regular expression, such as one with look-around or back-references; None if it takes it."""
    try:
        instructions = re2.compile(pattern, _options()).programsize
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return f"is not a regular expression of RE2: {text[:100]}"
    if instructions > PATTERN_INSTRUCTIONS:
        return f"is too large: {instructions} instructions of RE2, where {PATTERN_INSTRUCTIONS} are allowed"
    return None


def number_of(text: str) -> float | None:
    """The number that a text is, written as JSON would (a plus sign, .5 and 5. pass too); None if it is none."""
    # The first character rules out most texts, and is cheaper to look at.
    if not text or text[0] not in "0123456789.+-" or not _NUMBER.fullmatch(text):
        return None
    if len(text) <= _EXACT_DIGITS and text.lstrip("+-").isdigit():
        return int(text)
    number = float(text)
    return number if math.isfinite(number) else None


def _options() -> Any:
    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY_BYTES
    # Whether it matches is all that is asked; and RE2 would print what it refuses on standard error.
    options.never_capture = True
    options.log_errors = False
    return options


def _equals(values: Sequence[str], field_type: str) -> Test:
    texts = frozenset(values)
    numbers = frozenset(number for value in values if (number := number_of(value)) is not None)
    booleans = frozenset(value == "true" for value in values if value in ("true", "false"))
    # "2.0" equals "2" where both are meant as numbers; a field of type string tells them apart.
    reads_numbers = bool(numbers) and field_type not in _TEXT_ONLY

    def holds(value: Any) -> bool:
        kind = value.__class__
        if kind is str:
            return value in texts or (reads_numbers and number_of(value) in numbers)
        if kind is int or kind is float:
            return value in numbers
        if kind is bool:
            return value in booleans
        return kind is list and any(map(holds, value))

    return holds


def _ordered(compare: Callable[[float, float], bool], values: Sequence[str]) -> Test:
    bounds = [bound for value in values if (bound := number_of(value)) is not None]

    def holds(value: Any) -> bool:
        kind = value.__class__
        if kind is list:
            return any(map(holds, value))
        number = number_of(value) if kind is str else value if kind is int or kind is float else None
        return number is not None and any(compare(number, bound) for bound in bounds)

    return holds


def _text(test: Callable[[str], bool]) -> Test:
    def holds(value: Any) -> bool:
        if value.__class__ is str:
            return test(value)
        return value.__class__ is list and any(map(holds, value))

    return holds


def _is_set(value: Any) -> bool:
    if value.__class__ is list:
        return any(map(_is_set, value))
    return value is not None and value != "" and value != {}


def _is_there(value: Any) -> bool:
    if value.__class__ is list:
        return any(map(_is_there, value))
    return value is not None
