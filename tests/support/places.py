"""A server on a database of its own, for what goes from one database to another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from pydantic import SecretStr

from onefold.config import Settings
from onefold.db.migrate import migrate
from support.client import Client
from support.databases import empty_database
from support.probes import world_of
from support.serving import served
from support.world import World

SECRET = SecretStr("the same for every server here")


@dataclass(frozen=True)
class Place:
    """A server on a database, and hands behind it."""

    settings: Settings
    channel: grpc.aio.Channel
    world: World

    def client(self, project_id: str, key: str) -> Client:
        """Stubs with a key."""
        return Client(self.channel, project_id, key)


@asynccontextmanager
async def place(settings: Settings, name: str) -> AsyncIterator[Place]:
    """A database of its own on the tests' PostgreSQL, with the schema, and a server on it."""
    async with empty_database(settings.database_url, name) as url:
        own = settings.model_copy(update={"database_url": url, "forget_secret": SECRET, "drain_seconds": 0.0})
        await migrate(url)
        async with served(own) as channel, world_of(url) as world:
            yield Place(own, channel, world)
