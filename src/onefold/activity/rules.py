"""The order of the activity log, and how a page of it is put together from several places. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class ActivityKind(enum.IntEnum):
    """The sorts of entry; the numbers are those in the protos and in the table."""

    EVENT = 1
    ANONYMOUS_DATA_MERGED = 2
    PROFILE_CREATED = 3
    PROFILE_MERGED = 4
    PROFILE_FORGOTTEN = 5
    DEVICE_REGISTERED = 6
    DEVICE_DISABLED = 7


class Place(enum.IntEnum):
    """Where entries are read from. Of entries of one moment, one from a later place is the newer: what an event made
    comes before the event."""

    CREATED = 0
    LEDGER = 1
    NOTES = 2
    EVENTS = 3


class Key(NamedTuple):
    """Where an entry stands in the log: greater is newer. The id is unique within the place."""

    activity_time: datetime
    place: Place
    id: str


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """An entry that was looked at; one that the reader is not to see is only passed over."""

    key: Key
    row: T
    visible: bool = True


@dataclass(frozen=True, slots=True)
class Looked(Generic[T]):
    """What was found at one place, newest first; `more` says whether there may be older entries behind the last."""

    entries: Sequence[Entry[T]]
    more: bool


def bound(place: Place, before: Key) -> tuple[datetime, str]:
    """The time and id before which the entries of a place lie that come before a key, as pages of them compare: "" is
    less than every id."""
    if place < before.place:
        return before.activity_time + timedelta(microseconds=1), ""
    return before.activity_time, before.id if place == before.place else ""


def cut(places: Sequence[Looked[T]], count: int) -> tuple[list[Entry[T]], Key | None]:
    """The newest entries to be seen, at most `count`, and the key to go on before; None when there is nothing behind.

    What is older than the last entry of a place that has more is left to the next page, because something newer may lie
    there. So a page may be shorter than asked for, or empty, where much was passed over.
    """
    horizon = max((looked.entries[-1].key for looked in places if looked.more and looked.entries), default=None)
    reached = sorted(
        (entry for looked in places for entry in looked.entries if horizon is None or entry.key >= horizon),
        key=lambda entry: entry.key,
        reverse=True,
    )
    page = [entry for entry in reached if entry.visible]
    if len(page) > count:
        return page[:count], page[count - 1].key
    return page, horizon
