"""Stepping the relocation of an anonymous_id's events from one stage to the next."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

from onefold.db.queries import Connection
from support.world import World

# A little more than a pass waits for transactions that began before it.
STRAGGLERS_ARE_OVER = timedelta(seconds=17)


async def age_work(world: World, project_id: str, by: timedelta = STRAGGLERS_ARE_OVER) -> None:
    """Lets time pass for the work on merges only. Events keep their times, so that page tokens stay right."""

    async def work(connection: Connection) -> None:
        await connection.execute(
            "UPDATE moves SET first_pass_time = first_pass_time - $2::interval WHERE project_id = $1", project_id, by
        )
        await connection.execute(
            "UPDATE intents SET due_time = due_time - $2::interval WHERE project_id = $1", project_id, by
        )

    await world.database.transact(work)


async def stages(world: World, project_id: str) -> AsyncIterator[int]:
    """Yields before the first chunk of a project's open work, and again after every chunk, to the end of all work."""
    stage = 0
    yield stage
    while await world.open_intents(project_id):
        due = await world.due(project_id)
        if not due:
            await age_work(world, project_id)
            continue
        lease = await world.take(project_id, due[0])
        assert lease is not None
        position = None
        while True:
            position = await world.chunk(lease, position)
            stage += 1
            yield stage
            if position is None:
                break
