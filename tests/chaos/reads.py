"""Reads while everything is going on: what was acknowledged before a read began must be in it, and nothing twice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg

from chaos.calls import Journal, insist, pages
from chaos.log import body_of
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.devices_service_pb2 import ListDevicesRequest
from onefold.v1.events_service_pb2 import ListEventsRequest
from onefold.v1.identity_service_pb2 import GetProfileRequest
from onefold.v1.profile_pb2 import Identifiers

STORED_TWICE = """
SELECT event_id
FROM (
    SELECT event_id FROM events WHERE project_id = $1
    UNION ALL
    SELECT event_id FROM anonymous_events WHERE project_id = $1
) AS stored
GROUP BY event_id
HAVING count(*) > 1
LIMIT 100
"""


class Reader:
    """Reads and compares with the model; what is wrong goes to the log."""

    def __init__(self, journal: Journal, project_id: str) -> None:
        self.journal, self.model, self.callers = journal, journal.model, journal.callers
        self.project_id = project_id
        self.count = 0

    def wrong(self, what: str) -> None:
        """Notes a read that cannot be true."""
        self.model.feed(self.journal.log.write(do="wrong", what=what))

    async def events(self, **subject: Any) -> list[Any] | None:
        """All events of somebody, newest first; None if they could not be read."""
        request = ListEventsRequest(data_format=DATA_FORMAT_JSON, **subject)
        found = await pages(self.callers, "ListEvents", request)
        return None if found is None else [event for page in found for event in page.events]

    async def person(self, name: str, page_size: int) -> None:
        """A person's timeline."""
        self.count += 1
        required = self.model.required(name)
        if not required:
            # A shared person may not be there yet.
            return
        events = await self.events(identifiers=names(name), page_size=page_size)
        if events is not None:
            self._compare(name, events, required, self.model.allowed(name))

    async def visitor(self, name: str) -> None:
        """A visitor's own timeline: everything until it is linked, and then nothing."""
        self.count += 1
        visitor = self.model.visitors[name]
        if visitor.winner is None and visitor.candidates:
            return
        told = list(self.model.events_of[f"x:{name}"])
        acked = {each for each in told if self.model.events[each].acked != float("inf")}
        late = {each for each in acked if self.model.events[each].receive_time > visitor.grace_end}
        events = await self.events(anonymous_id=name, page_size=500)
        if events is not None:
            required = late if visitor.winner is not None else acked
            allowed = required | (set(told) - acked if visitor.winner is None else set())
            self._compare(name, events, required, allowed)

    def _compare(self, name: str, events: list[Any], required: set[str], allowed: set[str]) -> None:
        seen = [event.event_id for event in events]
        if len(seen) != len(set(seen)):
            twice = sorted(each for each in set(seen) if seen.count(each) > 1)
            self.wrong(f"{name} has {len(twice)} events twice in one sequence of pages, {twice[0]} for one")
        if missing := required - set(seen):
            self.wrong(f"{name} lacks {len(missing)} of {len(required)} events, {min(missing)} for one")
        if extra := set(seen) - allowed:
            self.wrong(f"{name} has {len(extra)} events that are not theirs, {min(extra)} for one")
        for event in events:
            known = self.model.events.get(event.event_id)
            if known is not None and json.loads(event.data_json) != body_of(event.event_id, known.home):
                self.wrong(f"{event.event_id} has another body")

    async def devices(self, name: str) -> None:
        """A person's devices, on or off."""
        self.count += 1
        if self.model.is_tangled(name):
            return
        begun = asyncio.get_running_loop().time()
        found = await pages(self.callers, "ListDevices", ListDevicesRequest(identifiers=names(name), page_size=500))
        if found is None:
            return
        ended = asyncio.get_running_loop().time()
        shown = {device.token: device.endpoint_enabled for page in found for device in page.devices}
        for token in self.model.device_operations(name).keys() | shown.keys():
            possible = self.model.device_states(name, token, begun, ended)
            if shown.get(token) not in possible:
                self.wrong(f"{name} has {token} {shown.get(token)}, not one of {possible}")

    async def profile(self, name: str) -> None:
        """A person's data fields."""
        self.count += 1
        expected = dict(self.model.person(name).fields)
        request = GetProfileRequest(identifiers=names(name), data_format=DATA_FORMAT_JSON)
        answer = await insist(self.callers, "GetProfile", request)
        if answer.message is None:
            if answer.reason:
                self.wrong(f"{name} could not be read: {answer.reason}")
            return
        fields = json.loads(answer.message.profile.data_fields_json)
        fields.pop("canary", None)
        if fields != expected:
            self.wrong(f"{name} has fields {fields}, not {expected}")

    async def watch_tables(self, database_url: str) -> None:
        """Looks at the tables themselves, again and again: no event may be stored twice, not even for a moment."""
        while self.journal.running:
            await asyncio.sleep(2.0)
            try:
                connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url, timeout=5.0)
                try:
                    rows = await connection.fetch(STORED_TWICE, self.project_id, timeout=10.0)
                finally:
                    await connection.close(timeout=5.0)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                # PostgreSQL is away just now.
                continue
            if rows:
                events = [row["event_id"] for row in rows]
                self.model.feed(self.journal.log.write(do="doubled", events=events))


def names(name: str) -> Identifiers:
    """How a person is named."""
    return Identifiers(email=name) if "@" in name else Identifiers(user_id=name)
