"""What all tests share: one real PostgreSQL and one real Valkey for the run, one real server in this process.

Tests keep out of each other's way by projects, not by databases: each asks for a project of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import hypothesis
import pytest
import pytest_asyncio

from onefold.callers import IdentifierType
from onefold.config import Settings
from onefold.db.migrate import migrate
from onefold.db.pool import WORKER_SETTINGS, Database
from onefold.embedded import EmbeddedPostgres, EmbeddedValkey
from onefold.projects.bootstrap import ensure_project
from onefold.server import serve
from support.client import Client
from support.folders import reachable_folder
from support.world import World

# Whoever has the tests run in the background, or by nohup, has them ignore these, and with them every process that is
# started here.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# A run of CI judges the change, with the same examples every time; whoever runs the tests by hand looks for new ones.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

MakeProject = Callable[..., Awaitable[Client]]


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder that the embedded servers can reach whoever runs the tests; removed at the end."""
    with reachable_folder() as path:
        yield path


@pytest.fixture(scope="session")
def postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    """A real PostgreSQL. It need not survive a power cut, so it does not wait for the disk."""
    server = EmbeddedPostgres.start(folder / "postgres", durable=False)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(folder: Path) -> Iterator[EmbeddedValkey]:
    """A real Valkey."""
    server = EmbeddedValkey.start(folder / "valkey")
    yield server
    server.stop()


@pytest_asyncio.fixture(scope="session")
async def settings(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> Settings:
    """Settings of a server and a worker on the embedded servers, with the schema in place."""
    await migrate(postgres.url())
    # A machine that is busy with other tests must not look like a busy pool.
    return Settings(database_url=postgres.url(), redis_url=valkey.url, port=0, acquire_seconds=20)


@pytest_asyncio.fixture(scope="session")
async def address(settings: Settings) -> AsyncIterator[str]:
    """HOST:PORT of a real server in this process. No worker runs: tests step the work by hand."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(settings, on_ready=ready.set_result, stop=stop))
    yield await ready
    stop.set()
    await serving


@pytest_asyncio.fixture(scope="session")
async def database(settings: Settings) -> AsyncIterator[Database]:
    """A pool of a worker's connections, to step work and to look at tables."""
    pool = await Database.connect(settings.database_url, settings=WORKER_SETTINGS, connections=10)
    yield pool
    await pool.close()


@pytest_asyncio.fixture(scope="session")
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the server."""
    async with grpc.aio.insecure_channel(address) as open_channel:
        yield open_channel


_numbers = itertools.count(1)


@pytest.fixture
def make_project(settings: Settings, channel: grpc.aio.Channel) -> MakeProject:
    """Makes a project of its own for a test; gives stubs that hold its key, which has every scope."""

    async def make(identifier_type: IdentifierType | str = IdentifierType.EMAIL) -> Client:
        project_id = f"test-{next(_numbers)}"
        key = await ensure_project(
            settings.database_url, project_id=project_id, identifier_type=str(identifier_type), api_key=None
        )
        return Client(channel, project_id, key)

    return make


@pytest.fixture
def world(database: Database) -> World:
    """The hands of a test on the world behind the API: steps the workers' work, lets time pass, counts rows."""
    return World(database)


@pytest_asyncio.fixture
async def email_project(make_project: MakeProject) -> Client:
    """A fresh EMAIL project."""
    return await make_project(IdentifierType.EMAIL)


@pytest_asyncio.fixture
async def user_id_project(make_project: MakeProject) -> Client:
    """A fresh USER_ID project."""
    return await make_project(IdentifierType.USER_ID)


@pytest_asyncio.fixture
async def hybrid_project(make_project: MakeProject) -> Client:
    """A fresh HYBRID project."""
    return await make_project(IdentifierType.HYBRID)
