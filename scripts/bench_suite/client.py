"""The hands of the figures on a running stage: the generated stubs, and a connection to its database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import grpc
from redis.asyncio import Redis

from onefold.intents.doorbell import QUEUE_NAME
from onefold.v1.devices_service_pb2_grpc import DevicesServiceStub
from onefold.v1.events_service_pb2_grpc import EventsServiceStub
from onefold.v1.identity_service_pb2_grpc import IdentityServiceStub

from .stage import Processes, eventually

if TYPE_CHECKING:
    from onefold.v1.devices_service_pb2_grpc import DevicesServiceAsyncStub
    from onefold.v1.events_service_pb2_grpc import EventsServiceAsyncStub
    from onefold.v1.identity_service_pb2_grpc import IdentityServiceAsyncStub

_SETTLE_SECONDS: Final = 60.0


@dataclass
class Stage:
    """The stage while it is measured on."""

    processes: Processes
    database: asyncpg.Connection[Any]
    queue: Redis
    identity: IdentityServiceAsyncStub
    events: EventsServiceAsyncStub
    devices: DevicesServiceAsyncStub
    metadata: tuple[tuple[str, str]]
    # Visitors with a million events each who are still nobody: dear to make, so figures share them.
    visitors: list[str]

    async def milliseconds(self, call: Callable[..., Awaitable[Any]], request: object) -> float:
        """How long a call took, as its caller sees it."""
        begin = time.perf_counter()
        await call(request, metadata=self.metadata, timeout=20)
        return (time.perf_counter() - begin) * 1_000

    @contextmanager
    def working(self) -> Iterator[None]:
        """Lets the worker work while the block runs."""
        with self.processes.working():
            yield

    async def settle(self) -> None:
        """Waits until the (running) worker has nothing left to do, so that no old work falls into a measurement."""

        async def settled() -> bool:
            # Bells of calls that were made while it was frozen count, too.
            bells = await self.queue.zcard(QUEUE_NAME)
            return not bells and not await self.database.fetchval("SELECT EXISTS (SELECT FROM intents)")

        await eventually(settled, "the worker was not done", seconds=_SETTLE_SECONDS, every=0.1)

    async def fresh(self, *tables: str) -> None:
        """Puts what follows on an equal footing: no dead rows, statistics known, no write-back of earlier work left."""
        await self.database.execute(f"VACUUM ANALYZE {', '.join(tables)}")
        await self.database.execute("CHECKPOINT")

    def worker_megabytes(self, line: str) -> float:
        """The worker's memory by the kernel's account: `VmHWM` is the most it ever had, `VmRSS` what it has now."""
        text = Path(f"/proc/{self.processes.worker_pid}/status").read_text()
        [kilobytes] = [row.split()[1] for row in text.splitlines() if row.startswith(f"{line}:")]
        return int(kilobytes) / 1_024


@asynccontextmanager
async def open_stage(processes: Processes) -> AsyncIterator[Stage]:
    """Connects to a stage."""
    database: asyncpg.Connection[Any] = await asyncpg.connect(
        processes.database_url, server_settings={"application_name": "bench"}
    )
    queue = Redis.from_url(processes.redis_url)
    try:
        async with grpc.aio.insecure_channel(processes.address) as channel:
            # At run time one class serves both kinds of channel.
            untyped: Any = channel
            yield Stage(
                processes,
                database,
                queue,
                IdentityServiceStub(untyped),
                EventsServiceStub(untyped),
                DevicesServiceStub(untyped),
                metadata=(("authorization", f"Bearer {processes.api_key}"),),
                visitors=[],
            )
    finally:
        await queue.aclose()
        await database.close()
