"""The bell: tells the workers, by arq, that an intent is there. PostgreSQL remembers; the bell only saves waiting.

Ringing never delays a call and never fails one. What cannot be rung now is found by the workers' sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
import structlog
from arq.connections import ArqRedis, RedisSettings, create_pool
from redis.exceptions import RedisError

from onefold.intents.store import Intent
from onefold.telemetry import metrics

_log = structlog.get_logger()

QUEUE_NAME: Final = "onefold:intents"
JOB_NAME: Final = "run_intent"
# What the health service calls the doorbell: NOT_SERVING there means degraded, and harms no call.
DOORBELL_SERVICE: Final = "onefold.doorbell"
_WAITING_BELLS: Final = 1_000
_RING_SECONDS: Final = 0.05
_FAILURES_TO_OPEN: Final = 3
_OPEN_SECONDS: Final = 5.0
# arq notes when a job is due by the clock of whoever enqueues it, and compares that with the clock of whoever looks. A
# bell from a server an hour ahead would be heard an hour late, and could not be rung again before. So every bell has
# been due for long.
_DUE_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)
# arq's own default, which it would otherwise reckon from when the job is due.
_JOB_LIFETIME: Final = timedelta(days=1)


def redis_settings(url: str) -> RedisSettings:
    """arq's settings for a URL such as redis://host:6379/0, rediss://... (certificate and host name checked), or unix://."""
    settings = RedisSettings.from_dsn(url)
    settings.conn_timeout = 1
    settings.conn_retries = 0
    settings.retry_on_timeout = False
    settings.ssl_check_hostname = True
    return settings


def serialize_job(job: dict[str, Any]) -> bytes:
    """arq's jobs as JSON. Its default is pickle, under which whoever may write to Redis may run code here."""
    return orjson.dumps(job)


def deserialize_job(data: bytes) -> dict[str, Any]:
    """The inverse of serialize_job."""
    job: dict[str, Any] = orjson.loads(data)
    return job


def job_id(intent: Intent) -> str:
    """The same bell rung twice is one job; a later attempt is another (arq refuses an id it still remembers)."""
    return f"{intent.kind}:{intent.intent_id}:{intent.attempt_count}"


class Doorbell:
    """Rings in the background, one bell at a time, each within 50 ms. After 3 failures it is silent for 5 s."""

    def __init__(self, redis_url: str) -> None:
        self._settings = redis_settings(redis_url)
        self._bells: asyncio.Queue[Intent] = asyncio.Queue(_WAITING_BELLS)
        self._redis: ArqRedis | None = None
        self._ringer: asyncio.Task[None] | None = None
        self._failures = 0
        self._silent_until = 0.0

    @property
    def degraded(self) -> bool:
        """Whether the last bells failed; the workers' sweep does the work meanwhile."""
        return self._failures >= _FAILURES_TO_OPEN

    async def start(self) -> None:
        """Starts ringing. Redis need not be there."""
        self._ringer = asyncio.create_task(self._ring_all(), name="doorbell")

    async def stop(self) -> None:
        """Stops ringing; bells not yet rung are left to the sweep."""
        if self._ringer is not None:
            self._ringer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ringer
        if self._redis is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._redis.aclose()

    def ring(self, intent: Intent) -> None:
        """Says that an intent was committed. Returns at once; a full queue drops the bell (the sweep finds it)."""
        try:
            self._bells.put_nowait(intent)
        except asyncio.QueueFull:
            metrics.BELLS.labels("silent").inc()

    async def _ring_all(self) -> None:
        while True:
            intent = await self._bells.get()
            if time.monotonic() < self._silent_until:
                metrics.BELLS.labels("silent").inc()
                continue
            try:
                # Connecting may take a little longer than ringing; both are bounded.
                if self._redis is None:
                    self._redis = await asyncio.wait_for(
                        create_pool(self._settings, job_serializer=serialize_job, default_queue_name=QUEUE_NAME), 1.0
                    )
                await asyncio.wait_for(ring_once(self._redis, intent), _RING_SECONDS)
                self._failures = 0
                metrics.BELLS.labels("rung").inc()
            except (RedisError, OSError, TimeoutError) as error:
                self._failures += 1
                metrics.BELLS.labels("failed").inc()
                if self._failures >= _FAILURES_TO_OPEN:
                    self._silent_until = time.monotonic() + _OPEN_SECONDS
                if self._failures == _FAILURES_TO_OPEN:
                    _log.warning("doorbell silent; the workers' sweep finds the intents", error=type(error).__name__)


async def ring_once(redis: ArqRedis, intent: Intent) -> None:
    """Enqueues the job of an intent unless the same bell is waiting already. Raises redis' errors."""
    await enqueue(redis, intent.project_id, str(intent.intent_id), job_id(intent))


async def enqueue(redis: ArqRedis, project_id: str, intent_id: str, job: str) -> None:
    """Enqueues a job under an id unless one of that id is waiting. It is due at once, by whosever clock."""
    await redis.enqueue_job(
        JOB_NAME,
        project_id,
        intent_id,
        _job_id=job,
        _queue_name=QUEUE_NAME,
        _defer_until=_DUE_TIME,
        _expires=_JOB_LIFETIME,
    )
