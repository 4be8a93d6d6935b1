"""Floods of one hostile client, beside others who go on being served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import grpc
import psutil
import pytest
import pytest_asyncio

from onefold.config import Settings
from onefold.v1.projects_service_pb2 import GetProjectRequest
from support.client import Client
from support.floods import FLOODS, Connection
from support.probes import eventually
from support.processes import Running, running

GROWTH_BYTES = 100_000_000
# What no client does by mistake ends the connection. Of the others each call is refused, or waited for in vain.
HUNG_UP_ON = {"pings"}


@pytest_asyncio.fixture(scope="module")
async def server(settings: Settings) -> AsyncIterator[Running]:
    """A server process of its own, so that its memory is its own."""
    urls = {"ONEFOLD_DATABASE_URL": settings.database_url, "ONEFOLD_REDIS_URL": settings.redis_url}
    with running("serve", "--port", "0", **urls) as process:
        yield process


async def read(channel: grpc.aio.Channel, project: Client) -> None:
    """One call of somebody else, which must be answered."""
    other = Client(channel, project.project_id, project.key)
    assert (await other.projects.GetProject(GetProjectRequest(), timeout=30)).project.project_id == project.project_id


async def is_hung_up(connection: Connection) -> bool:
    """Whether the server has ended the connection."""
    await asyncio.to_thread(connection.read, 0.1)
    return not connection.open


@pytest.mark.parametrize("with_key", [False, True], ids=["stranger", "caller"])
@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_borne(server: Running, hybrid_project: Client, name: str, with_key: bool) -> None:
    """F75: while one client floods the server, and while it leaves what it has begun open, every call of another is
    answered, and the server's memory grows by less than 100 MB."""
    process = psutil.Process(server.process.pid)
    # A connection of its own each time: gRPC shares those of one process.
    own = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(server.address, options=own) as channel:
        await read(channel, hybrid_project)
        before = highest = process.memory_info().rss
        flood = asyncio.create_task(
            asyncio.to_thread(FLOODS[name], server.address, hybrid_project.key if with_key else None)
        )
        calls = 0
        while not flood.done() or calls < 20:
            await read(channel, hybrid_project)
            calls += 1
            highest = max(highest, process.memory_info().rss)
        connections = await flood
        try:
            async with grpc.aio.insecure_channel(server.address, options=own) as new:
                await read(new, hybrid_project)
            if name in HUNG_UP_ON:
                for connection in connections:
                    await eventually(partial(is_hung_up, connection))
        finally:
            for connection in connections:
                connection.close()
    highest = max(highest, process.memory_info().rss)
    assert highest - before < GROWTH_BYTES
    assert server.process.poll() is None
