"""The worker, from its first line to its last.

arq brings the bells that servers ring. Beside it a loop, the sweep, looks in PostgreSQL for intents whose bell was
lost and rings it again, or, while Redis is away, works on them itself: Redis may be flushed, stopped or replaced at any
moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from datetime import UTC
from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog
from arq.connections import ArqRedis, create_pool
from arq.worker import Worker, func
from redis.exceptions import RedisError

from onefold.config import Settings
from onefold.db.health import HEALTH_SECONDS, problem
from onefold.db.migrate import require_schema
from onefold.db.pool import WORKER_SETTINGS, Database
from onefold.errors import OnefoldError, Reason, failed_precondition
from onefold.intents import store as intents
from onefold.intents.doorbell import (
    JOB_NAME,
    QUEUE_NAME,
    deserialize_job,
    enqueue,
    redis_settings,
    ring_once,
    serialize_job,
)
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent
from onefold.stopping import stop_on_signals
from onefold.telemetry import metrics
from onefold.telemetry.http import Readiness, SidePort
from onefold.telemetry.state import StateMetrics
from onefold.workflows.retention import keep_partitions, purge
from onefold.workflows.run import STRETCH_SECONDS, Ran, run_intent

_log = structlog.get_logger()

_JOB_SECONDS: Final = 2 * STRETCH_SECONDS
_POLL_SECONDS: Final = 0.1
_SWEEP_INTENTS: Final = 500
_ACTIVATION_SECONDS: Final = 0.2
# A project with much to do lets the others in after this.
_ACTIVATION_STRETCH_SECONDS: Final = 2.0
_LONGEST_BACKOFF_SECONDS: Final = 10.0


async def work(
    settings: Settings,
    *,
    on_ready: Callable[[], None],
    on_http: Callable[[str], None] = lambda _: None,
    stop: asyncio.Event | None = None,
) -> None:
    """Works until SIGTERM or SIGINT, or until `stop` is set. Calls `on_ready` when it looks for work, and before that
    `on_http` with "HOST:PORT" of the side port, if there is one.

    Raises OnefoldError when it cannot start: PostgreSQL is away, its schema is too old, Redis evicts keys.
    """
    stop = stop or stop_on_signals()
    database = await Database.connect(
        settings.database_url, settings=WORKER_SETTINGS, connections=settings.worker_connections, acquire_seconds=10.0
    )
    readiness = Readiness()
    side_port = SidePort(readiness, StateMetrics(database, readiness, role="worker").page)
    try:
        await require_schema(database)
        await refuse_evicting_redis(settings.redis_url)
        if settings.http_port is not None:
            metrics.prepare_kinds(IntentKind)
            on_http(await side_port.start(settings.http_host, settings.http_port))
        tasks = [
            asyncio.create_task(_watch_health(database, readiness), name="health"),
            asyncio.create_task(supervise_arq(settings, database), name="arq"),
            asyncio.create_task(_sweep_forever(settings, database), name="sweep"),
            asyncio.create_task(_activate_forever(settings, database), name="activation"),
            asyncio.create_task(_retain_forever(settings, database), name="retention"),
        ]
        on_ready()
        stopping = asyncio.create_task(stop.wait())
        # The loops end only by a fault of ours: better to be restarted than to run with one of them missing.
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in [*tasks, stopping]:
            task.cancel()
        readiness.problem = "stopping"
        await asyncio.wait([*tasks, stopping], timeout=8.0)
        for task in done - {stopping}:
            task.result()
    finally:
        await side_port.stop()
        await database.close()


async def _watch_health(database: Database, readiness: Readiness) -> None:
    while True:
        readiness.problem = await problem(database)
        await asyncio.sleep(HEALTH_SECONDS)


async def refuse_evicting_redis(url: str) -> None:
    """Refuses a Redis that may evict keys: it would lose bells in silence. One that is away now is looked at later."""
    try:
        redis = await asyncio.wait_for(create_pool(redis_settings(url)), 2.0)
    except (RedisError, OSError, TimeoutError):
        return
    try:
        policy = (await redis.config_get("maxmemory-policy")).get("maxmemory-policy", "noeviction")
    except RedisError:
        # A managed Redis may forbid CONFIG; then its operator answers for the policy.
        return
    finally:
        await redis.aclose()
    if policy != "noeviction":
        raise failed_precondition(
            Reason.INTERNAL, f"Redis has maxmemory-policy {policy}; onefold needs noeviction, or bells would be lost."
        )


async def supervise_arq(settings: Settings, database: Database) -> None:
    """Keeps an arq worker running: it ends at the first lost connection to Redis, and is started again with backoff."""
    backoff = 0.5
    while True:
        started = time.monotonic()
        worker = _arq_worker(settings, database)
        try:
            await worker.async_run()
        except (RedisError, OSError, TimeoutError) as error:
            _log.warning("arq ended; the sweep does the work meanwhile", error=type(error).__name__)
        finally:
            await _close(worker)
        backoff = 0.5 if time.monotonic() - started > 30 else min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
        await asyncio.sleep(backoff)


async def _close(worker: Worker) -> None:
    """Ends an arq worker and the jobs it runs, within 5 s. Only this task's own cancellation comes out of it."""
    closing = asyncio.ensure_future(worker.close())
    await asyncio.wait([closing], timeout=5.0)
    if not closing.done():
        closing.cancel()
    elif not closing.cancelled() and closing.exception() is not None:
        _log.info("arq did not close in order", error=type(closing.exception()).__name__)


def _arq_worker(settings: Settings, database: Database) -> Worker:
    async def run(ctx: dict[Any, Any], project_id: str, intent_id: str) -> None:
        ran = await run_intent(database, project_id, UUID(intent_id))
        if ran is Ran.PAUSED:
            # The id must be new: arq refuses the one that is just running.
            await enqueue(ctx["redis"], project_id, intent_id, f"{ctx['job_id']}+")

    return Worker(
        functions=[func(run, name=JOB_NAME, keep_result=0, timeout=_JOB_SECONDS, max_tries=1)],
        queue_name=QUEUE_NAME,
        redis_settings=redis_settings(settings.redis_url),
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        max_jobs=settings.worker_jobs,
        # Bells read at a time; fewer than twice the jobs would starve new ones.
        queue_read_limit=max(4 * settings.worker_jobs, 16),
        job_timeout=_JOB_SECONDS,
        keep_result=0,
        poll_delay=_POLL_SECONDS,
        handle_signals=False,
        timezone=UTC,
        log_results=False,
    )


async def _sweep_forever(settings: Settings, database: Database) -> None:
    redis: ArqRedis | None = None
    try:
        while True:
            redis = await _sweep(settings, database, redis)
            await asyncio.sleep(settings.sweep_seconds)
    finally:
        if redis is not None:
            await redis.aclose()


async def _sweep(settings: Settings, database: Database, redis: ArqRedis | None) -> ArqRedis | None:
    """Looks once for intents that nobody works on, and rings for them; returns the connection to go on with."""
    try:
        due = await database.read(lambda connection: intents.due(connection, _SWEEP_INTENTS))
    except OnefoldError as error:
        _log.warning("sweep could not look", reason=str(error.reason))
        due = []
    try:
        if due and redis is None:
            redis = await asyncio.wait_for(
                create_pool(redis_settings(settings.redis_url), job_serializer=serialize_job), 2.0
            )
        for intent in due:
            if redis is not None:
                await asyncio.wait_for(ring_once(redis, intent), 1.0)
    except (RedisError, OSError, TimeoutError):
        if redis is not None:
            with contextlib.suppress(RedisError, OSError):
                await redis.aclose()
        await _work_without_redis(settings, database, due)
        return None
    return redis


async def _work_without_redis(settings: Settings, database: Database, due: list[Intent]) -> None:
    places = asyncio.Semaphore(settings.worker_jobs)

    async def one(intent: Intent) -> None:
        async with places:
            await run_intent(database, intent.project_id, intent.intent_id)

    # A group waits for all of them also when it is cancelled, so each can give its lease back.
    async with asyncio.TaskGroup() as group:
        for intent in due:
            group.create_task(one(intent))


async def _activate_forever(settings: Settings, database: Database) -> None:
    """Looks several times a second for visitors to be looked at: events that leave notes come all the time, and to
    ring for each would cost the servers more than this costs here."""
    running: set[asyncio.Task[Ran]] = set()
    # A group waits for all of them also when it is cancelled, so each can give its lease back.
    async with asyncio.TaskGroup() as group:
        while True:
            free = settings.worker_jobs - len(running)
            try:
                due = await database.read(partial(intents.due_activations, count=free)) if free else []
            except OnefoldError as error:
                _log.warning("activation could not look", reason=str(error.reason))
                due = []
            for intent in due:
                stretch = run_intent(
                    database, intent.project_id, intent.intent_id, stretch_seconds=_ACTIVATION_STRETCH_SECONDS
                )
                task = group.create_task(stretch)
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(_ACTIVATION_SECONDS)


async def _retain_forever(settings: Settings, database: Database) -> None:
    while True:
        try:
            dropped = await keep_partitions(database)
            removed = await purge(database)
            if dropped or removed:
                _log.info("retention", partitions=dropped, rows=removed)
        except OnefoldError as error:
            _log.warning("retention could not run", reason=str(error.reason))
        await asyncio.sleep(settings.retention_seconds)
