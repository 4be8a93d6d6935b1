"""Running one intent: take its lease, go on chunk by chunk, give it back.

A chunk is one transaction that first renews the lease, so a worker that was frozen past its lease writes nothing more.
A worker that is killed loses the chunk it was at; the next one goes on when the lease ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import time
import traceback
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any, Final, Protocol
from uuid import UUID

import structlog

from onefold import logs
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError
from onefold.intents import store as intents
from onefold.intents.rules import IntentKind
from onefold.intents.store import Lease, LeaseLostError
from onefold.telemetry import metrics, tracing
from onefold.workflows.activating import activate_chunk, review_chunk
from onefold.workflows.disabling import disable_chunk
from onefold.workflows.moving import move_chunk

_log = structlog.get_logger()

# Work on one intent for at most this long at a stretch, so that one with millions of rows lets others in.
STRETCH_SECONDS: Final = 15.0


class Chunk(Protocol):
    """One transaction's worth of work; returns where to go on, or None when the intent is finished or postponed."""

    def __call__(self, connection: Connection, lease: Lease, position: Any) -> Awaitable[Any]: ...


CHUNKS: Final[Mapping[IntentKind, Chunk]] = {
    IntentKind.MOVE: move_chunk,
    IntentKind.ERASE_INVITES: move_chunk,
    IntentKind.DISABLE: disable_chunk,
    IntentKind.ACTIVATE: activate_chunk,
    IntentKind.REVIEW: review_chunk,
}


class Ran(enum.Enum):
    """How a stretch of work ended."""

    NOTHING = "nothing to do, or another worker does it"
    PAUSED = "there is more to do, and anybody may go on"
    ENDED = "finished or postponed"
    FAILED = "to be tried again later"


async def run_intent(
    database: Database, project_id: str, intent_id: UUID, *, stretch_seconds: float = STRETCH_SECONDS
) -> Ran:
    """Works on an intent until it is done or postponed, or the stretch is over. Raises only CancelledError."""
    try:
        lease = await database.transact(lambda connection: intents.take(connection, project_id, intent_id))
    except OnefoldError as error:
        _log.warning("no lease could be taken", reason=str(error.reason))
        return Ran.FAILED
    if lease is None:
        return Ran.NOTHING
    began = time.monotonic()
    intent = lease.intent
    result = "stopped"
    try:
        with tracing.work_span(f"work {intent.kind}", intent.trace_parent, **{"onefold.intent_id": str(intent_id)}):
            ran = await _run_leased(database, lease, began + stretch_seconds)
        result = ran.name.lower()
        return ran
    finally:
        metrics.RUNS.labels(intent.kind, result).inc()
        # An intent to look at visitors ends several times a second while events come.
        level = logging.DEBUG if intent.kind is IntentKind.ACTIVATE else logging.INFO
        fields: dict[str, object] = {"kind": intent.kind, "intent_id": str(intent_id), "project_id": project_id}
        fields |= {"result": result, "attempt": intent.attempt_count, "rows": lease.progress.rows}
        fields["milliseconds"] = round((time.monotonic() - began) * 1e3, 3)
        logs.emit(level, "intent", fields)


async def _run_leased(database: Database, lease: Lease, until: float) -> Ran:
    try:
        return await _run(database, lease, until)
    except LeaseLostError:
        _log.warning("lease lost", intent_id=str(lease.intent.intent_id), kind=lease.intent.kind)
        return Ran.NOTHING
    except asyncio.CancelledError:
        # The worker is asked to stop: the chunk is rolled back, and the next worker need not wait for the lease's end.
        with contextlib.suppress(OnefoldError, TimeoutError):
            async with asyncio.timeout(2.0):
                await database.transact(lambda connection: intents.release(connection, lease))
        raise
    except Exception as error:
        await _note_failure(database, lease, error)
        return Ran.FAILED


async def _run(database: Database, lease: Lease, until: float) -> Ran:
    kind = lease.intent.kind
    chunk = CHUNKS[kind]
    seconds, rows = metrics.CHUNKS.labels(kind), metrics.ROWS.labels(kind)
    position: Any = None
    while True:
        before = lease.progress.rows
        with tracing.span(f"chunk {kind}"), seconds.time():
            position = await database.transact(partial(chunk, lease=lease, position=position))
        rows.inc(lease.progress.rows - before)
        if position is None:
            return Ran.ENDED
        if time.monotonic() >= until:
            await database.transact(lambda connection: intents.release(connection, lease))
            return Ran.PAUSED


async def _note_failure(database: Database, lease: Lease, error: Exception) -> None:
    # The reason or the type's name: an exception's own text may quote a row.
    name = str(error.reason) if isinstance(error, OnefoldError) else type(error).__name__
    _log.error(
        "intent failed",
        intent_id=str(lease.intent.intent_id),
        kind=lease.intent.kind,
        attempt=lease.intent.attempt_count,
        fault=name,
        where=traceback.format_tb(error.__traceback__),
    )
    # If PostgreSQL is away the note cannot be written either; the lease ends by itself and the attempt was counted.
    with contextlib.suppress(OnefoldError):
        await database.transact(lambda connection: intents.fail(connection, lease, name))
