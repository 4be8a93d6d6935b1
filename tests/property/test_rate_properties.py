"""The rule by which calls and events of a project are counted, as properties of the pure rule."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.rpc.rates import Bucket, take

RATES = st.integers(1, 1_000_000)
# Gaps between requests in seconds, and how much each asks for.
REQUESTS = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 2_000)), max_size=60)
# Levels are floats: after a hundred steps they are off by less than this.
SLIP = 1e-6


def taken(rate: int, requests: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """The moments and counts of the requests that are let in."""
    bucket: Bucket | None = None
    now, found = 0.0, []
    for gap, count in requests:
        now += gap
        bucket, seconds = take(bucket, rate, count, now)
        if not seconds:
            found.append((now, count))
    return found


@settings(deadline=None, max_examples=200)
@given(RATES, REQUESTS)
def test_no_stretch_of_time_brings_more_than_the_rate(rate: int, requests: list[tuple[float, int]]) -> None:
    """X5: between any two moments no more is let in than the rate brings, one second's burst, and what a last request
    that is larger than that may owe."""
    found = taken(rate, requests)
    for first, (begin, _) in enumerate(found):
        total = 0
        for end, count in found[first:]:
            total += count
            allowed = rate * (end - begin) + rate + max(count - rate, 0)
            assert total <= allowed * (1 + SLIP) + SLIP


@settings(deadline=None, max_examples=200)
@given(RATES, REQUESTS)
def test_waiting_as_told_is_enough(rate: int, requests: list[tuple[float, int]]) -> None:
    """X2, X5: a refused request changes nothing, is let in when it comes again after the time it was told, and was
    told no more than what it is short of takes."""
    bucket: Bucket | None = None
    now = 0.0
    for gap, count in requests:
        now += gap
        bucket, seconds = take(bucket, rate, count, now)
        if seconds:
            assert take(bucket, rate, count, now)[1] == seconds
            now += seconds + SLIP
            bucket, again = take(bucket, rate, count, now)
            assert again == 0
        assert bucket.level <= rate


@settings(deadline=None, max_examples=200)
@given(RATES, st.lists(st.integers(1, 2_000), max_size=60))
def test_who_keeps_to_the_rate_is_never_refused(rate: int, counts: list[int]) -> None:
    """X5: requests that each come when the one before is made up for are all let in."""
    bucket: Bucket | None = None
    now = 0.0
    for count in counts:
        bucket, seconds = take(bucket, rate, count, now)
        assert seconds == 0
        now += count / rate * (1 + SLIP)


@settings(deadline=None, max_examples=100)
@given(RATES, RATES, st.integers(1, 2_000), st.floats(-10, 10))
def test_a_changed_rate_and_a_clock_that_goes_back(rate: int, other: int, count: int, step: float) -> None:
    """X5: a bucket never holds more than a second of the rate as it is now, and time that runs backwards gives
    nothing."""
    bucket, _ = take(None, rate, count, 100.0)
    changed, _ = take(bucket, other, 1, 100.0 + step)
    assert changed.level <= other
    if step < 0:
        assert changed.level <= bucket.level
