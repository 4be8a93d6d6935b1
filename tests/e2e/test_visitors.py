"""Activation by real processes: two servers, two workers, one of them killed, and no Valkey."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from onefold.db.migrate import migrate
from onefold.projects.bootstrap import ensure_project
from support.client import Client
from support.keeper import kept
from support.probes import eventually, world_of
from support.processes import running
from support.visitors import sessions, unknown_profiles, view, watched

PROJECT = "shop"
VISITORS = 40


async def test_each_visitor_gets_one_profile_whatever_dies(folder: Path) -> None:
    """U2, F4, F9, X4: with two servers, a worker that is killed and no Valkey each visitor gets one whole profile."""
    home = folder / "activation"
    async with AsyncExitStack() as stack:
        postgres, valkey = stack.enter_context(kept("postgres", home)), stack.enter_context(kept("valkey", home))
        await migrate(postgres.url)
        key = await ensure_project(postgres.url, project_id=PROJECT, identifier_type="HYBRID", api_key=None)
        on_servers = {"ONEFOLD_DATABASE_URL": postgres.url, "ONEFOLD_REDIS_URL": valkey.url}
        servers = [stack.enter_context(running("serve", "--port", "0", **on_servers)) for _ in range(2)]
        workers = [stack.enter_context(running("work", **on_servers)) for _ in range(2)]
        world = await stack.enter_async_context(world_of(postgres.url))
        one, other = [
            Client(await stack.enter_async_context(grpc.aio.insecure_channel(server.address)), PROJECT, key)
            for server in servers
        ]
        await watched(one, world)
        valkey.stop()
        await asyncio.gather(*(view(other, f"v{number}") for number in range(VISITORS)))
        await asyncio.gather(*(view(one, f"v{number}") for number in range(VISITORS // 2)))
        workers[0].kill()
        await asyncio.gather(*(view(one, f"v{number}") for number in range(VISITORS // 2, VISITORS)))

        async def all_there() -> bool:
            return len(await unknown_profiles(world, one)) == VISITORS

        # What the killed worker held is free when its lease ends, and done within a minute of the kill (F4).
        await eventually(all_there, 60.0)
        for profile_id in await unknown_profiles(world, one):
            assert sorted(await one.names(profile_id=profile_id)) == ["Viewed", "Viewed", "unknownSession"]
            assert len(await sessions(one, profile_id=profile_id)) == 1
        await asyncio.gather(*(view(one, f"v{number}") for number in range(VISITORS)))
        assert await all_there()
