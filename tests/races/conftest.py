"""A server of the races' own, whose calls wait for locks as long as a test wants them to, and a schedule."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import asyncpg
import grpc
import pytest
import pytest_asyncio

from onefold.callers import IdentifierType
from onefold.config import Settings
from onefold.db.pool import SERVER_SETTINGS
from onefold.projects.bootstrap import ensure_project
from races.schedule import Schedule, led_by
from races.stage import Stage
from support.serving import served
from support.world import World

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="session")
async def patient_channel(settings: Settings) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a server whose statements may wait longer than 1 s for a lock: a slow machine changes no outcome."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SERVER_SETTINGS, "lock_timeout", "8s")
        patch.setitem(SERVER_SETTINGS, "statement_timeout", "9s")
        async with served(settings) as channel:
            yield channel


@pytest_asyncio.fixture
async def stage(
    settings: Settings, patient_channel: grpc.aio.Channel, world: World, request: pytest.FixtureRequest
) -> AsyncIterator[Stage]:
    """A project of its own on that server, of the type that the test asks for by its parameter, and a schedule."""
    project_type = IdentifierType(getattr(request, "param", "EMAIL"))
    project_id = f"race-{next(_numbers)}"
    key = await ensure_project(settings.database_url, project_id=project_id, identifier_type=project_type, api_key=None)
    watcher = await asyncpg.connect(settings.database_url)
    schedule = Schedule(watcher)
    try:
        with led_by(schedule):
            yield Stage(patient_channel, project_id, key, world, schedule)
            await schedule.close()
    finally:
        await watcher.close()
