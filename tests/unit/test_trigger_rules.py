"""Which events trigger, and what a cursor is good for."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from onefold.errors import Kind, OnefoldError, Reason
from onefold.triggers.rules import Fence, Mark, advance, make_cursor, mark_of, read_cursor

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOURS = timedelta(hours=1)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("age", "mark"),
    [(72 * HOURS - SECOND, Mark.MERGED), (72 * HOURS, None), (72 * HOURS + SECOND, None), (-24 * HOURS, Mark.MERGED)],
)
def test_what_a_link_brings_triggers_within_72_hours(age: timedelta, mark: Mark | None) -> None:
    """A9: an associated event triggers if it happened less than 72 hours before the link, backfilled or not."""
    for backfilled in (False, True):
        assert mark_of(NOW - age, NOW, backfilled=backfilled) is mark


def test_a_persons_event_triggers_however_old_it_is() -> None:
    """E5, E10: an event of a person triggers; an old one is marked as backfilled."""
    assert mark_of(NOW, None, backfilled=False) is Mark.LIVE
    assert mark_of(datetime(1970, 1, 1, tzinfo=UTC), None, backfilled=True) is Mark.BACKFILLED


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1])
def test_a_cursor_leads_back_to_its_number(number: int) -> None:
    """E10: what make_cursor says read_cursor reads, in 256 bytes at most."""
    cursor = make_cursor("shop", number)
    assert read_cursor("shop", cursor) == number
    assert len(cursor) <= 256


def told(value: object) -> str:
    """A cursor that holds a value."""
    return base64.urlsafe_b64encode(orjson.dumps(value)).decode().rstrip("=")


GOOD = orjson.loads(base64.urlsafe_b64decode(make_cursor("shop", 7) + "=="))


@pytest.mark.parametrize(
    "cursor",
    [
        make_cursor("other", 7),
        "!",
        "AAAA",
        "ÿ",
        "a" * 10_000,
        told([GOOD[0]]),
        told([*GOOD, 1]),
        told([GOOD[0], "7"]),
        told([GOOD[0], 7.0]),
        told([GOOD[0], True]),
        told([GOOD[0], -1]),
        told([GOOD[0], 2**63]),
        told([None, 7]),
        told({"a": 1, "b": 2}),
        told(7),
        told(None),
    ],
)
def test_any_other_cursor_is_refused(cursor: str) -> None:
    """E10, X2, F73: a cursor of another project, and any text that is none, is INVALID_ARGUMENT / CURSOR_INVALID."""
    with pytest.raises(OnefoldError) as error:
        read_cursor("shop", cursor)
    assert (error.value.kind, error.value.reason) == (Kind.INVALID_ARGUMENT, Reason.CURSOR_INVALID)


def test_nothing_is_decided_before_the_writers_of_the_first_look_have_ended() -> None:
    """E10: who writes already may have a number below any that is seen."""
    fence = advance(None, 5, frozenset({"a", "b"}))
    assert fence.decided is None
    fence = advance(fence, 6, frozenset({"b", "c"}))
    assert fence.decided is None
    # c began after the first look: nothing of it is below what was seen then.
    assert advance(fence, 7, frozenset({"c"})) == Fence(5, 7, frozenset({"c"}))


def test_all_is_decided_when_nobody_writes() -> None:
    """E10: a reader is not kept waiting without need."""
    assert advance(None, 5, frozenset()).decided == 5
    assert advance(Fence(3, 4, frozenset({"a"})), 9, frozenset()).decided == 9


def test_what_was_decided_stays_so() -> None:
    """F43: erasing the newest triggers does not take a reader back."""
    assert advance(Fence(5, 5, frozenset()), 2, frozenset()).decided == 5
    assert advance(advance(Fence(5, 5, frozenset()), 2, frozenset({"a"})), 2, frozenset({"b"})).decided == 5
