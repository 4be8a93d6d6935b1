"""When an intent is tried again, and how its bell is written."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefold.intents.doorbell import Doorbell, deserialize_job, job_id, redis_settings, serialize_job
from onefold.intents.rules import LEASE, IntentKind, gives_up, retry_delay
from onefold.intents.store import Intent

AN_ID = UUID("0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11")


def test_backoff() -> None:
    """F26: after a failure the next try comes in 1 s, then 2, 4, ..., 512 s, and never later than 10 minutes."""
    assert [retry_delay(attempt).total_seconds() for attempt in range(1, 13)] == [
        *(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        *(600, 600),
    ]


@given(st.integers(-(10**9), 10**9))
def test_backoff_is_bounded_whatever_the_count(attempt: int) -> None:
    """F26: no attempt count, however odd, gives a wait outside of 1 s to 10 min."""
    assert timedelta(seconds=1) <= retry_delay(attempt) <= timedelta(minutes=10)


def test_twelve_attempts() -> None:
    """F26: the twelfth attempt is the last."""
    assert [attempt for attempt in range(1, 30) if gives_up(attempt)] == list(range(12, 30))


def test_a_lease_is_thirty_seconds() -> None:
    """F4: a worker that was killed holds its intent up for 30 s at most."""
    assert timedelta(seconds=30) == LEASE


def test_a_bell_rung_twice_is_one_job() -> None:
    """F6, F7: the same attempt of an intent has one job id; another attempt, kind or intent has another."""
    intents = [
        Intent("shop", AN_ID, IntentKind.DISABLE),
        Intent("shop", AN_ID, IntentKind.DISABLE, 1),
        Intent("shop", AN_ID, IntentKind.MOVE),
        Intent("shop", UUID(int=1), IntentKind.DISABLE),
    ]
    assert len({job_id(intent) for intent in intents}) == len(intents)
    assert job_id(intents[0]) == job_id(Intent("shop", AN_ID, IntentKind.DISABLE))


def test_jobs_are_json() -> None:
    """X4: what lies in Redis is JSON and nothing that runs when it is read."""
    job = {"t": 1, "f": "run_intent", "a": ["shop", str(AN_ID)], "k": {}, "et": 1_700_000_000_000}
    assert json.loads(serialize_job(job)) == job
    assert deserialize_job(json.dumps(job).encode()) == job


@pytest.mark.parametrize(
    ("url", "host", "ssl", "path"),
    [
        ("redis://cache:6380/2", "cache", False, None),
        ("rediss://cache:6380/2", "cache", True, None),
        ("unix:///run/valkey.sock", "localhost", False, "/run/valkey.sock"),
    ],
)
def test_redis_addresses(url: str, host: str, ssl: bool, path: str | None) -> None:
    """F8: every form of address is tried once, for at most a second, and over TLS the host's name is checked."""
    settings = redis_settings(url)
    assert (settings.host, settings.ssl, settings.unix_socket_path) == (host, ssl, path)
    assert (settings.conn_timeout, settings.conn_retries, settings.retry_on_timeout) == (1, 0, False)
    assert settings.ssl_check_hostname


def test_ringing_never_waits() -> None:
    """F8: with nobody to take the bells, any number of them is rung without waiting, raising or growing for ever."""
    doorbell = Doorbell("unix:///nowhere/valkey.sock")
    for number in range(3_000):
        doorbell.ring(Intent("shop", UUID(int=number), IntentKind.MOVE))
    assert not doorbell.degraded
