"""Concurrent Track calls share a look-up, an insert and a commit; each is answered when its own batch has committed.

One batch is in flight at a time: while it commits, the next one gathers. Alone, a call does not wait for company. A
commit costs the same for one event as for a hundred, so the more calls there are, the less each of them costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onefold.callers import Project
from onefold.db.errors import pool_busy
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason
from onefold.events.ingest import Result, ingest
from onefold.events.rules import Arrival
from onefold.rpc.gathering import come_together
from onefold.telemetry import metrics, tracing

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

_BATCH_EVENTS: Final = 500
_WAITING_EVENTS: Final = 4_000
# How long a batch may wait for more events.
_GATHER_SECONDS: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Waiting:
    project: Project
    arrival: Arrival
    answer: asyncio.Future[Result]
    span: SpanContext | None = None


class Batcher:
    """Stores single events in batches."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to store."""
        self._runner = asyncio.create_task(self._run(), name="batcher")

    async def stop(self) -> None:
        """Ends; whoever still waits is told that the server is busy. To be called when no more calls come."""
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        while self._waiting:
            self._answer([self._waiting.popleft()], pool_busy())

    @property
    def waiting(self) -> int:
        """How many events wait for their batch."""
        return len(self._waiting)

    async def track(self, project: Project, arrival: Arrival) -> Result:
        """Stores one event; its result, once committed.

        Raises RESOURCE_EXHAUSTED / POOL_BUSY when too many wait already, and what a transaction raises. An event whose
        caller is gone before its batch begins is not stored.
        """
        if len(self._waiting) >= _WAITING_EVENTS:
            raise pool_busy()
        waiting = _Waiting(project, arrival, asyncio.get_running_loop().create_future(), tracing.current())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    async def _run(self) -> None:
        gather_seconds = 0.0
        while True:
            await self._arrived.wait()
            if gather_seconds and len(self._waiting) < _BATCH_EVENTS:
                await asyncio.sleep(gather_seconds)
                await come_together(self._waiting, _BATCH_EVENTS)
            batch: list[_Waiting] = []
            while self._waiting and len(batch) < _BATCH_EVENTS:
                waiting = self._waiting.popleft()
                if not waiting.answer.done():
                    batch.append(waiting)
            if not self._waiting:
                self._arrived.clear()
            began = time.monotonic()
            if batch:
                metrics.BATCH_EVENTS.observe(len(batch))
                with tracing.shared_span("batch", (waiting.span for waiting in batch)):
                    await self._store(batch)
            # After company the next batch gathers for as long as this one took to store, and until the calls that are
            # being read are in it: the busier the server, the longer that takes, and the more it saves. Alone, a call
            # never waits.
            gather_seconds = min(time.monotonic() - began, _GATHER_SECONDS) if len(batch) > 1 else 0.0

    async def _store(self, batch: list[_Waiting]) -> None:
        try:
            results = await self._database.transact(lambda connection: _ingest(connection, batch))
        except OnefoldError as error:
            self._answer(batch, error)
            if error.reason is Reason.POOL_BUSY:
                # Whoever waits behind would wait as long once more, for the same answer.
                self._answer(self._waiting, error)
                self._waiting.clear()
        except Exception as error:
            if len(batch) == 1:
                self._answer(batch, error)
                return
            # A fault that one of them brought must not hit the others.
            for waiting in batch:
                await self._store([waiting])
        else:
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(result)

    @staticmethod
    def _answer(batch: Iterable[_Waiting], error: Exception) -> None:
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)


async def _ingest(connection: Connection, batch: Sequence[_Waiting]) -> list[Result]:
    """Stores a batch, project by project, in one transaction; the results in the order of the batch."""
    by_project: dict[str, list[int]] = {}
    for position, waiting in enumerate(batch):
        by_project.setdefault(waiting.project.project_id, []).append(position)
    results: dict[int, Result] = {}
    # In order, so that two servers with the same projects in hand do not deadlock.
    for _, positions in sorted(by_project.items()):
        stored = await ingest(
            connection, batch[positions[0]].project, [batch[position].arrival for position in positions]
        )
        results.update(zip(positions, stored, strict=True))
    return [results[position] for position in range(len(batch))]
