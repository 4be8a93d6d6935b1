"""Lists as iterators: page after page, for as long as somebody reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from google.protobuf.message import Message

Request = TypeVar("Request", bound=Message)


async def pages(call: Callable[[Request], Awaitable[Message]], request: Request) -> AsyncIterator[Any]:
    """Every item of any list method, such as `pages(onefold.events.ListEvents, ListEventsRequest(...))`.

    A page is asked for when the one before it is used up. Begins at the request's page_token.
    """
    wanted = _copy(request)
    while True:
        answer = await call(wanted)
        for item in _items(answer):
            yield item
        if not _go_on(wanted, answer):
            return


def pages_sync(call: Callable[[Request], Message], request: Request) -> Iterator[Any]:
    """The same for a client of `connect_sync`."""
    wanted = _copy(request)
    while True:
        answer = call(wanted)
        yield from _items(answer)
        if not _go_on(wanted, answer):
            return


def _copy(request: Request) -> Request:
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


def _items(answer: Message) -> Any:
    """The one repeated field of an answer."""
    [field] = [field for field in answer.DESCRIPTOR.fields if field.is_repeated]
    return getattr(answer, field.name)


def _go_on(wanted: Any, answer: Any) -> bool:
    if "next_page_token" not in answer.DESCRIPTOR.fields_by_name:
        # A list that is short enough to come at once.
        return False
    wanted.page_token = answer.next_page_token
    return bool(answer.next_page_token)
