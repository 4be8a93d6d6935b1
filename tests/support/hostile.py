"""Requests that nobody should send, as Hypothesis strategies built from the descriptors."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from support.methods import METHODS, REQUESTS, Names, build

Draw = st.DrawFn

TEXTS: Final = [
    *["", " ", "\0", "a\0b", "\t", "a\nb", " padded ", "'", '"', "\\", "';--", "' OR 1=1 --", "$1", ":name", "%s%n"],
    *["null", "undefined", "NaN", "0", "-1", "[object Object]", "1e400", "../../etc/passwd", "\ufeff", "\u202e"],
    *["e\u0301", "\u0130@example.com", "\u212a@example.com", "\uff41@example.com", "\U0010ffff", "\ud7ff", "\x7f"],
    *["A@EXAMPLE.COM", "a@example.com", "@", "a@b", "a@placeholder.email", "a@example.com\0", "a" * 64 + "@a.com"],
    *["x" * 52, "x" * 53, "x" * 128, "x" * 129, "x" * 256, "x" * 257, "x" * 1_025, "é" * 3_000, "x" * 100_001],
    *["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff", "{0}", "urn:uuid:0"],
    *["(a+)+$", "(?=a)", r"\1", "[", "a{1000}{1000}", "(?P<n>", r"\pN*", ".*" * 500],
    *["{}", "[]", '""', "1", '{"a":1}', '{"a":NaN}', '{"a":1e999}', '{"a":-1e-999}', '{"a":1,"a":2}'],
    *[
        r'{"\u0000":1}',
        r'{"a":"\u0000"}',
        r'{"a":"\ud800"}',
        "[" * 5_000,
        '{"a":' * 2_000,
        '{"a":' * 17 + "1" + "}" * 17,
    ],
    *['{"a":123456789012345678901234567890}', '{"shoppingCartItems":1}', '{"recipient":1}', '{"recipient":"a@a.com"}'],
    *[base64.urlsafe_b64encode(text).decode().rstrip("=") for text in (b"[]", b"{}", b"null", b'["",1]', b"[1e999]")],
]
NUMBERS: Final = [0, 1, -1, 2, 500, 501, 1_001, 2**31 - 1, -(2**31), 2**53, 2**62, 2**63 - 1, -(2**63)]
DOUBLES: Final = [0.0, -0.0, 1.5, -1.0, 5e-324, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 2.0**63]
SECONDS: Final = [0, -1, 1_700_000_000, 4_102_444_799, 4_102_444_800, 253_402_300_799, 253_402_300_800, 2**62, -(2**62)]
NANOS: Final = [0, 1, 999_999_999, 1_000_000_000, -1, 2**31 - 1, -(2**31)]

_INT32: Final = (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_ENUM)


@st.composite
def requests(draw: Draw, path: str, names: Names, others: Sequence[str]) -> bytes:
    """The bytes of a request of a method: a sensible one or an empty one, changed here and there, and sometimes broken.

    `others` are texts that stand for something of somebody else.
    """
    if draw(st.integers(0, 9)) == 0:
        request = GetMessageClass(METHODS[path].input_type)()
    else:
        request = build(path, draw(st.integers(0, len(REQUESTS[path]) - 1)), names)
    known = [value for value in vars(names).values() if isinstance(value, str)]
    for _ in range(draw(st.integers(0, 4))):
        _change(draw, request, [*known, *others])
    data = request.SerializeToString()
    return draw(_broken(data)) if draw(st.integers(0, 7)) == 0 else data


def _change(draw: Draw, message: Message, known: Sequence[str]) -> None:
    """Changes one field, here or below."""
    match message:
        case Timestamp():
            message.seconds, message.nanos = draw(st.sampled_from(SECONDS)), draw(st.sampled_from(NANOS))
            return
        case Struct():
            _fill(draw, message)
            return
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = draw(st.sampled_from(fields))
    if draw(st.integers(0, 5)) == 0:
        message.ClearField(field.name)
        return
    if field.message_type is not None:
        _change_below(draw, message, field, known)
        return
    value = draw(_scalars(field, known))
    if field.is_repeated:
        del getattr(message, field.name)[draw(st.integers(0, 2)) :]
        getattr(message, field.name).extend([value] * draw(st.sampled_from([1, 1, 1, 2, 101, 1_001])))
    else:
        setattr(message, field.name, value)


def _change_below(draw: Draw, message: Message, field: FieldDescriptor, known: Sequence[str]) -> None:
    below: Any = getattr(message, field.name)
    if not field.is_repeated:
        below.SetInParent()
        _change(draw, below, known)
        return
    how = draw(st.integers(0, 7))
    if how == 0 and len(below):
        # More of one than there may be.
        below.extend([below[0]] * draw(st.sampled_from([1, 201, 1_001])))
    elif how <= 3 or not len(below):
        _change(draw, below.add(), known)
    else:
        _change(draw, below[draw(st.integers(0, len(below) - 1))], known)


def _scalars(field: FieldDescriptor, known: Sequence[str]) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return st.one_of(st.sampled_from(TEXTS), st.sampled_from(known), st.text(max_size=20))
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return st.sampled_from(DOUBLES)
        case kind if kind in _INT32:
            return st.sampled_from([number for number in [*NUMBERS, *range(3, 14)] if -(2**31) <= number < 2**31])
        case _:
            return st.sampled_from(NUMBERS)


def _fill(draw: Draw, message: Struct) -> None:
    """Puts something into a Struct that JSON could not say, or not so."""
    value = message.fields[draw(st.sampled_from(["a", "", "\0", "recipient", "shoppingCartItems", "x" * 1_000, "é.b"]))]
    match draw(st.integers(0, 6)):
        case 0:
            value.number_value = draw(st.sampled_from(DOUBLES))
        case 1:
            value.string_value = draw(st.sampled_from(TEXTS))
        case 2:
            pass  # a Value without kind
        case 3:
            for _ in range(draw(st.sampled_from([1, 15, 16, 40]))):
                value = value.struct_value.fields["a"]
            value.bool_value = True
        case 4:
            for _ in range(draw(st.sampled_from([1, 15, 16, 40]))):
                value = value.list_value.values.add()
            value.null_value = 0  # type: ignore[assignment]  # the only one there is
        case 5:
            for number in range(513):
                value.struct_value.fields[str(number)].number_value = number
        case _:
            value.list_value.values.add()


def _broken(data: bytes) -> st.SearchStrategy[bytes]:
    """Bytes that come of a message when something goes wrong on the way, or that never were one."""
    places = st.integers(0, max(len(data) - 1, 0))
    return st.one_of(
        st.binary(max_size=60),
        places.map(lambda place: data[:place]),
        st.tuples(places, st.binary(min_size=1, max_size=4)).map(
            lambda both: data[: both[0]] + both[1] + data[both[0] + len(both[1]) :]
        ),
        # A text field with a lone surrogate, groups that are never closed, an endless length.
        st.sampled_from([b"\x0a\x03\xed\xa0\x80", b"\x0b" * 200, b"\x0a\xff\xff\xff\xff\x0f"]).map(
            lambda tail: data + tail
        ),
    )
