"""Which days have a partition of their own, and when one may be dropped."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from onefold.db.partitions import drop_partition, expired_partitions, partition_name, wanted_days
from onefold.limits import ANONYMOUS_LIFETIME

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
INSTANT = timedelta(microseconds=1)


@pytest.mark.parametrize("now", [NOW, datetime(2026, 11, 22, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC) - INSTANT])
def test_every_day_that_may_be_written_is_wanted(now: datetime) -> None:
    """A2, E1: from the oldest event accepted now to the latest accepted a week from now, each day once, in order."""
    days = wanted_days(now)
    oldest = (now - timedelta(days=30)).date()
    latest = (now + timedelta(hours=24) + timedelta(days=7)).date()
    assert days == [oldest + DAY * offset for offset in range((latest - oldest).days + 1)]


def test_days_are_those_of_utc() -> None:
    """A2: the day of a moment does not depend on the zone it is told in."""
    elsewhere = NOW.astimezone(timezone(timedelta(hours=13)))
    assert wanted_days(elsewhere) == wanted_days(NOW)


def test_a_partitions_name_is_its_day() -> None:
    """A2: names sort as their days do."""
    assert partition_name(date(2026, 1, 9)) == "anonymous_events_20260109"


def over(day: date) -> datetime:
    """The moment when the last event of a day has had its 30 days, and an hour more for what is being committed."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + 31 * DAY + timedelta(hours=1)


NAMES = [partition_name(date(2026, 10, day)) for day in range(1, 32)]
FIRST = over(date(2026, 10, 1))


@pytest.mark.parametrize(
    ("now", "oldest_open_link", "dropped"),
    [
        (FIRST - INSTANT, None, 0),
        (FIRST, None, 1),
        (FIRST + DAY, None, 2),
        (FIRST + 400 * DAY, None, 31),
        # What was alive when an open merge was made waits for its worker, however long that takes.
        (FIRST + 400 * DAY, FIRST - INSTANT, 0),
        (FIRST + 400 * DAY, FIRST, 1),
        # A merge that was made since does not free anything earlier.
        (FIRST, FIRST + DAY, 1),
    ],
)
def test_a_partition_goes_when_no_row_of_it_can_be_needed(
    now: datetime, oldest_open_link: datetime | None, dropped: int
) -> None:
    """A2, A3, F44: a day goes once its youngest event is 30 days old, for every read and for every open merge."""
    oldest_wanted = oldest_open_link - ANONYMOUS_LIFETIME if oldest_open_link else None
    assert expired_partitions(list(reversed(NAMES)), now, oldest_wanted) == NAMES[:dropped]


def test_a_live_event_never_stands_in_an_expired_partition() -> None:
    """A2: no day that is still wanted is ever among those to drop, at any hour."""
    for hours in range(49):
        now = NOW + timedelta(hours=hours)
        assert expired_partitions([partition_name(day) for day in wanted_days(now)], now, None) == []


@pytest.mark.parametrize(
    "name", ["anonymous_events_default", "anonymous_events_2001", "xanonymous_events_20010101", "profiles"]
)
def test_other_tables_are_left_alone(name: str) -> None:
    """A2: only a table named after a day is a partition that retention may drop."""
    assert expired_partitions([name], NOW, None) == []


async def test_a_name_that_is_no_partitions_is_not_sent() -> None:
    """A2: dropping checks the name before any SQL; without that check the missing connection would be used."""
    nothing: object = None
    with pytest.raises(ValueError, match="profiles"):
        await drop_partition(nothing, "profiles")  # type: ignore[arg-type]  # it must not be reached
