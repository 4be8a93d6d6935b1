"""Pages: sizes as AIP-158 has them, and opaque tokens that hold the last row's key and what was asked for."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import orjson
from google.protobuf.message import Message

from onefold.clock import EARLIEST, LATEST, from_microseconds
from onefold.errors import Kind, OnefoldError, Reason
from onefold.limits import EVENT_AHEAD, PAGE_BYTES, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from onefold.rpc.checks import Checker

T = TypeVar("T")
M = TypeVar("M", bound=Message)


def page_size(checker: Checker, asked: int) -> int:
    """How many rows a page may have: 50 if not said, 500 at most; a negative number is refused."""
    if asked < 0:
        checker.refuse("page_size", "must not be negative")
    return min(asked or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)


def build_page(rows: Sequence[T], count: int, build: Callable[[T], M]) -> list[M]:
    """The messages of a page: of the first `count` rows as many as fit into 3 MiB, but at least one."""
    page: list[M] = []
    page_bytes = 0
    for row in rows[:count]:
        message = build(row)
        page_bytes += message.ByteSize()
        if page and page_bytes > PAGE_BYTES:
            break
        page.append(message)
    return page


def make_token(request: Message, key: list[object]) -> str:
    """The token of the page after the row with this key, good for the same request only."""
    return base64.urlsafe_b64encode(orjson.dumps([_asked(request), *key])).decode().rstrip("=")


def read_token(request: Message, token: str, *read: Callable[[Any], Any]) -> list[Any] | None:
    """The key in a token, each part as its reader makes it; None for "". PAGE_TOKEN_INVALID for anything else.

    A token is not signed: it says where to go on in what the caller may read anyway. So every part is checked.
    """
    if not token:
        return None
    try:
        asked, *key = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if asked == _asked(request):
            return [reader(part) for reader, part in zip(read, key, strict=True)]
    except (binascii.Error, ValueError, TypeError, AttributeError, OverflowError):
        pass
    raise OnefoldError(
        Kind.INVALID_ARGUMENT,
        Reason.PAGE_TOKEN_INVALID,
        "The page token is not one that this method gave for the same request.",
    )


def text_part(part: Any) -> str:
    """A text of a token. ValueError if PostgreSQL could not hold it."""
    if not isinstance(part, str) or "\x00" in part:
        raise ValueError
    return part


def moment_part(part: Any) -> datetime:
    """A moment of a token, in microseconds since 1970. ValueError or OverflowError if it is out of range."""
    if type(part) is not int:
        raise ValueError
    moment = from_microseconds(part)
    if not EARLIEST <= moment < LATEST + EVENT_AHEAD:
        raise ValueError
    return moment


def _asked(request: Message) -> str:
    """A digest of everything in the request but the page's own fields."""
    same = type(request)()
    same.CopyFrom(request)
    for field in ("page_token", "page_size"):
        same.ClearField(field)
    text = request.DESCRIPTOR.full_name.encode() + same.SerializeToString(deterministic=True)
    return hashlib.blake2b(text, digest_size=8).hexdigest()
