"""A real server and a real worker in this process, with side ports, so that what they tell can be looked at."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from onefold.config import Settings
from onefold.db.migrate import migrate
from onefold.projects.bootstrap import ensure_project
from onefold.worker import work
from support.client import Client
from support.databases import empty_database
from support.probes import eventually
from support.scraping import Page, scrape
from support.serving import served


@dataclass
class Watched:
    """A server and a worker with their side ports."""

    channel: grpc.aio.Channel
    server: str
    worker: str
    settings: Settings

    async def pages(self) -> Page:
        """What both tell, as Prometheus has it. Of this process both count alike; only what each is differs."""
        server, worker = await scrape(self.server), await scrape(self.worker)
        return Page(worker.series | server.series)

    async def until(self, holds: Callable[[Page], bool]) -> Page:
        """The first page of which the condition holds."""
        found: list[Page] = []

        async def look() -> bool:
            found.append(await self.pages())
            return holds(found[-1])

        await eventually(look)
        return found[-1]

    async def client(self, name: str) -> Client:
        """A project of its own."""
        key = await ensure_project(
            self.settings.database_url, project_id=f"telemetry-{name}", identifier_type="EMAIL", api_key=None
        )
        return Client(self.channel, f"telemetry-{name}", key)


@asynccontextmanager
async def watching(settings: Settings) -> AsyncIterator[Watched]:
    """Both, while the block runs, on databases of their own: what other tests have left undone is not their work."""
    http: list[str] = []
    ready, stop = asyncio.Event(), asyncio.Event()
    async with empty_database(settings.database_url, "watched") as url:
        await migrate(url)
        own = {"database_url": url, "redis_url": f"{settings.redis_url}?db=1"}
        both = settings.model_copy(update={**own, "http_port": 0, "sweep_seconds": 0.2})
        async with served(both, on_http=http.append) as channel:
            working = asyncio.create_task(work(both, on_ready=ready.set, on_http=http.append, stop=stop))
            await ready.wait()
            yield Watched(channel, http[0], http[1], both)
            stop.set()
            await working
    gc.collect()
