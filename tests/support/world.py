"""What a test does behind the API's back: step the workers' work, let time pass, count rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.intents import store as intents
from onefold.intents.store import Lease
from onefold.workflows.run import CHUNKS, Ran, run_intent

# Every column that holds a moment, by table. Time passes by moving all of them back: to the service that is the same as
# the database's clock moving on, and no production code needs a switch for it.
_MOMENTS = {
    "projects": ["create_time", "update_time"],
    "profiles": ["signup_time", "profile_update_time", "create_time", "update_time", "cart_event_time"],
    "identifiers": ["link_time", "grace_end_time", "redirect_end_time"],
    "events": ["event_time", "receive_time"],
    "anonymous_events": ["event_time", "receive_time"],
    "invite_events": ["event_time", "receive_time"],
    "event_ids": ["receive_time"],
    "merges": [
        "create_time",
        "settle_time",
        "undo_time",
        "source_create_time",
        "moved_oldest_event_time",
        "late_oldest_event_time",
    ],
    "moves": ["window_start_time", "window_end_time", "alive_after", "create_time", "first_pass_time"],
    "forgotten": ["forget_time"],
    "devices": ["create_time", "update_time"],
    "token_disables": ["create_time", "finish_time"],
    "intents": ["create_time", "due_time", "lease_end_time", "stuck_time"],
    "requests": ["create_time"],
    "triggers": ["event_time", "create_time"],
    "criteria": ["create_time", "update_time"],
    "consents": ["consent_time", "withdraw_time", "record_time"],
    "activation_visitors": ["oldest_event_time", "counted_time", "active_day"],
    "activation_notes": ["create_time"],
    "activities": ["activity_time"],
}

# Notes of visitors' events hold the keys of those.
_NOTED = """
UPDATE activation_notes
SET event_times = ARRAY(
    SELECT each.event_time - $2::interval
    FROM unnest(event_times) WITH ORDINALITY AS each (event_time, position)
    ORDER BY each.position
)
WHERE project_id = $1
"""
# An undo restores the moment of the source's signup, by which its unknownSession event is found.
_SIGNUPS_TO_RESTORE = """
UPDATE merges
SET snapshot = replace(
    snapshot::text,
    snapshot #>> '{source,signup_time}',
    to_char((snapshot #>> '{source,signup_time}')::timestamptz - $2::interval, 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
)::json
WHERE project_id = $1 AND snapshot IS NOT NULL
"""


@dataclass(frozen=True)
class World:
    """The world behind the API, of all projects of the test database."""

    database: Database

    async def fetch(self, sql: str, *arguments: object) -> list[Any]:
        """The rows of a statement."""

        async def work(connection: Connection) -> list[Any]:
            return await connection.fetch(sql, *arguments)

        return await self.database.read(work)

    async def value(self, sql: str, *arguments: object) -> Any:
        """The first column of the first row of a statement."""
        rows = await self.fetch(sql, *arguments)
        return rows[0][0] if rows else None

    async def now(self) -> datetime:
        """The database's clock."""
        moment: datetime = await self.value("SELECT now()")
        return moment

    async def pass_time(self, project_id: str, by: timedelta) -> None:
        """Lets time pass for one project."""

        async def work(connection: Connection) -> None:
            for table, columns in _MOMENTS.items():
                changes = ", ".join(f"{column} = {column} - $2::interval" for column in columns)
                await connection.execute(f"UPDATE {table} SET {changes} WHERE project_id = $1", project_id, by)
            await connection.execute(_NOTED, project_id, by)
            await connection.execute(_SIGNUPS_TO_RESTORE, project_id, by)

        await self.database.transact(work)

    async def due(self, project_id: str) -> list[UUID]:
        """The intents of a project that a worker would take now, the longest due first."""
        found = await self.database.read(partial(intents.due, count=10_000))
        return [intent.intent_id for intent in found if intent.project_id == project_id]

    async def open_intents(self, project_id: str) -> int:
        """How many intents of a project are not done."""
        count: int = await self.value("SELECT count(*) FROM intents WHERE project_id = $1", project_id)
        return count

    async def work_off(self, project_id: str) -> list[Ran]:
        """Does all work of a project that is due now, as the worker does it."""
        return [await run_intent(self.database, project_id, intent_id) for intent_id in await self.due(project_id)]

    async def take(self, project_id: str, intent_id: UUID) -> Lease | None:
        """Takes an intent's lease, to step its chunks."""
        return await self.database.transact(partial(intents.take, project_id=project_id, intent_id=intent_id))

    async def chunk(self, lease: Lease, position: Any = None) -> Any:
        """Works off one chunk; returns where to go on, or None when the intent is finished or postponed."""
        work = partial(CHUNKS[lease.intent.kind], lease=lease, position=position)
        return await self.database.transact(work)

    async def settle(self, project_id: str) -> None:
        """Works a project's intents off to their end, letting the time pass that associations wait for."""
        await self.work_off(project_id)
        if await self.open_intents(project_id):
            await self.pass_time(project_id, timedelta(seconds=17))
            await self.work_off(project_id)
