"""What each comparator says of each kind of value, wherever the value lies."""

from __future__ import annotations

from typing import Any

import pytest

from onefold.activation.criteria import Condition, DataType, Leaf, check
from onefold.activation.rules import CompiledCriterion, Event, evaluate

MISSING = object()
LONG_MAX = 2**63 - 1

# comparator, value(s) of the condition, field type, what the field holds, whether it matches
VALUES: list[tuple[str, str | tuple[str, ...], str, Any, bool]] = [
    # Text equals text of the same letters.
    ("Equals", "pizza", "string", "pizza", True),
    ("Equals", "pizza", "string", "Pizza", False),
    ("Equals", "pizza", "string", "pizza ", False),
    ("Equals", "", "string", "", True),
    ("Equals", "", "string", "x", False),
    ("Equals", "", "string", MISSING, False),
    ("Equals", "null", "string", None, False),
    ("Equals", "pizza", "", "pizza", True),
    ("Equals", "caffè", "string", "caffè", True),
    # Any of several values.
    ("Equals", ("pizza", "pasta"), "string", "pasta", True),
    ("Equals", ("pizza", "pasta"), "string", "salad", False),
    ("Equals", ("1", "2"), "long", 2, True),
    ("Equals", ("1", "2"), "long", 3, False),
    ("Equals", ("true", "2"), "", True, True),
    # Numbers compare as numbers, also where one side is text.
    ("Equals", "2", "long", 2, True),
    ("Equals", "2", "long", "2", True),
    ("Equals", "2", "long", 2.0, True),
    ("Equals", "2", "long", "2.0", True),
    ("Equals", "2.0", "double", 2, True),
    ("Equals", "2.50", "double", 2.5, True),
    ("Equals", "2.5", "double", "2.50", True),
    ("Equals", "2.5", "long", 2.5, True),
    ("Equals", "2", "string", 2, True),
    ("Equals", "2", "", "2.0", True),
    ("Equals", "2", "string", "2.0", False),
    ("Equals", "-1", "long", -1, True),
    ("Equals", "1e3", "double", 1000, True),
    ("Equals", "0", "long", 0, True),
    ("Equals", "0", "long", -0.0, True),
    ("Equals", "0", "long", "", False),
    ("Equals", "0", "long", None, False),
    ("Equals", "0", "long", False, False),
    ("Equals", "1", "long", True, False),
    ("Equals", "9223372036854775807", "long", LONG_MAX, True),
    ("Equals", "9223372036854775807", "long", LONG_MAX - 1, False),
    ("Equals", "9223372036854775806", "long", str(LONG_MAX), False),
    # Text that is no number never compares as one.
    ("Equals", "2", "long", "two", False),
    ("Equals", "2", "long", "2x", False),
    ("Equals", "2", "long", " 2", False),
    ("Equals", "2x", "long", 2, False),
    ("Equals", "10", "long", "1_0", False),
    ("Equals", "nan", "double", "NaN", False),
    ("Equals", "1e400", "double", "1e401", False),
    ("Equals", "16", "long", "0x10", False),
    ("Equals", "1", "long", "١", False),
    # Booleans equal "true" and "false".
    ("Equals", "true", "boolean", True, True),
    ("Equals", "false", "boolean", False, True),
    ("Equals", "true", "boolean", False, False),
    ("Equals", "false", "boolean", 0, False),
    ("Equals", "true", "boolean", 1, False),
    ("Equals", "true", "boolean", "true", True),
    ("Equals", "true", "string", True, True),
    ("Equals", "True", "boolean", True, False),
    ("Equals", "false", "boolean", MISSING, False),
    # An array matches if an element does.
    ("Equals", "b", "array", ["a", "b"], True),
    ("Equals", "c", "array", ["a", "b"], False),
    ("Equals", "1997", "string", [1996, 1997], True),
    ("Equals", "2", "long", ["1", "2.0"], True),
    ("Equals", "b", "array", [["a"], ["b"]], True),
    ("Equals", "a", "array", [], False),
    ("Equals", "true", "boolean", [False, True], True),
    ("Equals", "", "string", [None], False),
    ("Equals", "x", "object", {"x": "x"}, False),
    # DoesNotEqual wants a value that equals none of those given.
    ("DoesNotEqual", "pizza", "string", "pasta", True),
    ("DoesNotEqual", "pizza", "string", "pizza", False),
    ("DoesNotEqual", "pizza", "string", "", True),
    ("DoesNotEqual", "pizza", "string", MISSING, False),
    ("DoesNotEqual", "pizza", "string", None, False),
    ("DoesNotEqual", "2", "long", "2", False),
    ("DoesNotEqual", "2", "long", "2.0", False),
    ("DoesNotEqual", "2", "long", 3, True),
    ("DoesNotEqual", "2", "long", 0, True),
    ("DoesNotEqual", "2.5", "double", "two", True),
    ("DoesNotEqual", "true", "boolean", False, True),
    ("DoesNotEqual", "true", "boolean", True, False),
    ("DoesNotEqual", ("a", "b"), "string", "c", True),
    ("DoesNotEqual", ("a", "b"), "string", "b", False),
    ("DoesNotEqual", "a", "array", ["b", "c"], True),
    ("DoesNotEqual", "a", "array", ["a", "b"], False),
    ("DoesNotEqual", "a", "array", [], False),
    ("DoesNotEqual", "a", "array", [None], False),
    # 0, false and "" are values, null is not set, and neither is what is empty.
    ("IsSet", (), "string", "x", True),
    ("IsSet", (), "string", "", False),
    ("IsSet", (), "string", " ", True),
    ("IsSet", (), "string", None, False),
    ("IsSet", (), "string", MISSING, False),
    ("IsSet", (), "long", 0, True),
    ("IsSet", (), "double", 0.0, True),
    ("IsSet", (), "boolean", False, True),
    ("IsSet", (), "object", {}, False),
    ("IsSet", (), "object", {"x": 1}, True),
    ("IsSet", (), "object", {"x": None}, True),
    ("IsSet", (), "array", [], False),
    ("IsSet", (), "array", [0], True),
    ("IsSet", (), "array", [None], False),
    ("IsSet", (), "array", [None, "x"], True),
    ("IsSet", (), "array", [{}], False),
    ("IsSet", (), "array", [{"x": 1}], True),
    ("IsSet", "", "string", "x", True),
    # Order is that of numbers.
    ("GreaterThan", "9", "long", 10, True),
    ("GreaterThan", "9", "long", "10", True),
    ("GreaterThan", "9", "string", "10", True),
    ("GreaterThan", "10", "long", 10, False),
    ("GreaterThan", "10", "long", 9, False),
    ("GreaterThan", "2.5", "double", 2.51, True),
    ("GreaterThan", "-2", "long", -1, True),
    ("GreaterThan", "9", "long", "ten", False),
    ("GreaterThan", "nine", "long", 10, False),
    ("GreaterThan", "0", "long", True, False),
    ("GreaterThan", "0", "long", "inf", False),
    ("GreaterThan", "0", "long", MISSING, False),
    ("GreaterThan", "-1", "long", None, False),
    ("GreaterThan", "5", "array", [1, 6], True),
    ("GreaterThan", "5", "array", [1, 5], False),
    ("GreaterThan", "9223372036854775806", "long", LONG_MAX, True),
    ("GreaterThanOrEqualTo", "10", "long", 10, True),
    ("GreaterThanOrEqualTo", "10", "long", "10.0", True),
    ("GreaterThanOrEqualTo", "10", "double", 9.99, False),
    ("GreaterThanOrEqualTo", "10", "long", 11, True),
    ("GreaterThanOrEqualTo", "10", "array", ["x", 10], True),
    ("GreaterThanOrEqualTo", "0", "long", "", False),
    ("LessThan", "10", "long", 9, True),
    ("LessThan", "10", "long", "9", True),
    ("LessThan", "10", "long", 10, False),
    ("LessThan", "10", "long", 0, True),
    ("LessThan", "10", "long", "", False),
    ("LessThan", "10", "long", None, False),
    ("LessThan", "10", "long", MISSING, False),
    ("LessThan", "10", "long", False, False),
    ("LessThan", "10", "double", -1e300, True),
    ("LessThan", "10", "array", [11, 9], True),
    ("LessThan", "10", "array", [], False),
    ("LessThanOrEqualTo", "10", "long", 10, True),
    ("LessThanOrEqualTo", "10", "double", "10.5", False),
    ("LessThanOrEqualTo", "10", "double", 10.0, True),
    ("LessThanOrEqualTo", "17", "array", [18, "17"], True),
    ("LessThanOrEqualTo", "17", "long", {"x": 1}, False),
    # Texts: letter by letter, and only texts.
    ("Contains", "izz", "string", "pizza", True),
    ("Contains", "IZZ", "string", "pizza", False),
    ("Contains", "pizza", "string", "pizz", False),
    ("Contains", ("x", "zz"), "string", "pizza", True),
    ("Contains", "2", "long", 123, False),
    ("Contains", "tru", "boolean", True, False),
    ("Contains", "zz", "array", ["pasta", "pizza"], True),
    ("Contains", "zz", "array", ["pasta"], False),
    ("Contains", "x", "object", {"x": "x"}, False),
    ("Contains", "a", "string", MISSING, False),
    ("Contains", "null", "string", None, False),
    ("StartsWith", "piz", "string", "pizza", True),
    ("StartsWith", "Piz", "string", "pizza", False),
    ("StartsWith", "izza", "string", "pizza", False),
    ("StartsWith", ("x", "p"), "string", "pizza", True),
    ("StartsWith", "pizza!", "string", "pizza", False),
    ("StartsWith", "1", "long", 12, False),
    ("StartsWith", "p", "array", ["x", "pizza"], True),
    ("StartsWith", "p", "string", "", False),
    ("StartsWith", "p", "string", MISSING, False),
    # A regular expression may match anywhere in the text, unless it is anchored.
    ("MatchesRegex", "z+a$", "string", "pizza", True),
    ("MatchesRegex", "^z", "string", "pizza", False),
    ("MatchesRegex", "^pizza$", "string", "pizza", True),
    ("MatchesRegex", "PIZZA", "string", "pizza", False),
    ("MatchesRegex", "(?i)PIZZA", "string", "pizza", True),
    ("MatchesRegex", ("^x", "^p"), "string", "pizza", True),
    ("MatchesRegex", r"^\d+$", "string", "94110", True),
    ("MatchesRegex", r"^caff\pL$", "string", "caffè", True),
    ("MatchesRegex", "^p", "array", ["x", "pizza"], True),
    ("MatchesRegex", "^p", "array", [], False),
    ("MatchesRegex", ".*", "string", "", True),
    ("MatchesRegex", ".*", "string", MISSING, False),
    ("MatchesRegex", ".*", "string", None, False),
    ("MatchesRegex", "1", "long", 1, False),
]


def _object(value: Any) -> dict[str, Any]:
    return {} if value is MISSING else {"f": value}


# where the value lies: what the leaf looks at, the field, and the data around the object that holds it
PLACES: dict[str, tuple[DataType, str, Any]] = {
    "profile": (DataType.USER, "f", lambda held: held),
    "profile's object": (DataType.USER, "o.p.f", lambda held: {"o": {"p": held}}),
    "profile's array": (DataType.USER, "o.f", lambda held: {"o": [{}, held, {"x": 1}]}),
    "event": (DataType.CUSTOM_EVENT, "f", lambda held: held),
    "event's name": (DataType.CUSTOM_EVENT, "button-clicked.f", lambda held: held),
    "object in arrays": (DataType.CUSTOM_EVENT, "a.b.c.f", lambda held: {"a": [{"b": [[{"c": held}]]}, None, "a"]}),
    "bought item": (DataType.PURCHASE, "shoppingCartItems.f", lambda held: {"shoppingCartItems": [held]}),
    "cart's item": (
        DataType.CART_UPDATE,
        "updateCart.updatedShoppingCartItems.dataFields.f",
        lambda held: {"updatedShoppingCartItems": [{"id": "1"}, {"dataFields": held}]},
    ),
}


@pytest.mark.parametrize(("comparator", "values", "field_type", "value", "expected"), VALUES)
def test_a_condition_holds_for_the_values_it_names(
    comparator: str, values: str | tuple[str, ...], field_type: str, value: Any, expected: bool
) -> None:
    """U1: each comparator says the same of a value in a profile, in an event, in nested objects, arrays and items."""
    matches = {}
    for place, (data_type, field, surround) in PLACES.items():
        texts = (values,) if isinstance(values, str) else values
        root = Leaf(data_type, Condition(field, comparator, texts, field_type))
        assert check(root) == []
        data = surround(_object(value))
        events = [] if data_type is DataType.USER else [Event("e", data_type, "button-clicked", data)]
        evaluation = evaluate([CompiledCriterion("c", root)], events, {} if events else data)
        matches[place] = evaluation.matched_id == "c"
    assert matches == dict.fromkeys(PLACES, expected)
