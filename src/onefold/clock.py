"""Times as onefold keeps them: aware datetimes in UTC, microseconds, from 1970 to 2100.

Decisions (expiry, the grace, leases) use the database's clock, which arrives as a value; nothing here reads a clock.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(2100, 1, 1, tzinfo=UTC)

_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(moment: datetime) -> int:
    """Whole microseconds since 1970, exactly (a float of seconds would round them)."""
    return (moment - EARLIEST) // _MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """The moment so many microseconds after 1970. OverflowError outside the years that datetime knows."""
    return EARLIEST + timedelta(microseconds=microseconds)
