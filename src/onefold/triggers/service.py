"""WatchTriggers of EventsService: reads the request, reads page after page, writes the messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from onefold.callers import Project, caller
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.events.rules import EventKind
from onefold.events.service import to_event
from onefold.events.store import StoredEvent
from onefold.identity.messages import read_data_format
from onefold.limits import FILTER_NAMES, NAME_BYTES, TRIGGER_IDLE_SECONDS, TRIGGER_PAGE_EVENTS
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import build_page
from onefold.triggers import store
from onefold.triggers.horizon import Horizon
from onefold.triggers.rules import cursor_expired, cursor_invalid, make_cursor, read_cursor, triggers_disabled
from onefold.v1 import events_service_pb2, events_service_pb2_grpc, trigger_pb2

Context = grpc.aio.ServicerContext[Any, Any]

# Before any number.
_ALL: Final = -1


@dataclass(frozen=True, slots=True)
class _Filter:
    """Which triggers to send, and how: None for any."""

    names: Sequence[str] | None
    kinds: Sequence[int] | None
    as_json: bool


class TriggerCalls(events_service_pb2_grpc.EventsServiceServicer):
    """WatchTriggers."""

    def __init__(self, database: Database) -> None:
        self._trigger_database = database
        self._horizon = Horizon(database)

    async def WatchTriggers(
        self, request: events_service_pb2.WatchTriggersRequest, context: Context
    ) -> AsyncIterator[events_service_pb2.WatchTriggersResponse]:
        """Sends triggers as they are committed."""
        project = caller().project
        checker = Checker()
        wanted = _read_filter(checker, request)
        checker.one_of("at", request.at, events_service_pb2.TriggerStart.values())
        checker.raise_if_wrong()
        async with self._horizon.watched(project.project_id):
            position = await self._start(project, request)
            page: list[trigger_pb2.Trigger] = []
            clock = asyncio.get_running_loop().time
            while True:
                # Nothing is held while the stream waits, here for its reader and below for something to read.
                yield _to_message(project, page, position)
                page, idle_time = [], clock() + TRIGGER_IDLE_SECONDS
                while not page and clock() < idle_time:
                    horizon = await self._horizon.beyond(project.project_id, position, idle_time - clock())
                    if horizon is None:
                        await self._require_triggers(project)
                    else:
                        page, position = await self._next_page(project, position, horizon, wanted)

    async def _start(self, project: Project, request: events_service_pb2.WatchTriggersRequest) -> int:
        """The number behind which the stream begins."""
        state = await self._require_triggers(project)
        if request.WhichOneof("start") == "cursor":
            number = read_cursor(project.project_id, request.cursor)
            if number > await self._trigger_database.read(store.last_number):
                # Of a database that this one was restored in place of: going on there would skip what comes next.
                raise cursor_invalid()
            if number < state.purged_number:
                raise cursor_expired()
            return number
        if request.at == events_service_pb2.TRIGGER_START_OLDEST:
            return state.purged_number
        decided = await self._horizon.beyond(project.project_id, _ALL)
        return max(decided or 0, state.purged_number)

    async def _require_triggers(self, project: Project) -> store.State:
        state = await self._trigger_database.read(lambda connection: store.find_state(connection, project.project_id))
        if not state.triggers_enabled:
            raise triggers_disabled()
        return state

    async def _next_page(
        self, project: Project, position: int, horizon: int, wanted: _Filter
    ) -> tuple[list[trigger_pb2.Trigger], int]:
        """The messages of the next triggers, and the number behind which to go on."""

        async def read(connection: Connection) -> tuple[list[store.TriggerRow], dict[int, store.TriggeredEvent], int]:
            rows = await store.next_triggers(connection, project.project_id, position, horizon, TRIGGER_PAGE_EVENTS)
            events = await store.triggered_events(connection, project.project_id, rows, wanted.names, wanted.kinds)
            # Last: what was removed before the rows above were read is known here.
            state = await store.find_state(connection, project.project_id)
            return rows, events, state.purged_number

        rows, events, purged_number = await self._trigger_database.read(read)
        if position < purged_number:
            raise cursor_expired()
        found = [row for row in rows if row.trigger_number in events]
        page = build_page(
            found,
            TRIGGER_PAGE_EVENTS,
            lambda row: _to_trigger(row, events[row.trigger_number], as_json=wanted.as_json),
        )
        if len(page) < len(found):
            return page, found[len(page) - 1].trigger_number
        return page, rows[-1].trigger_number if len(rows) == TRIGGER_PAGE_EVENTS else horizon


def _read_filter(checker: Checker, request: events_service_pb2.WatchTriggersRequest) -> _Filter:
    if len(request.names) > FILTER_NAMES:
        checker.refuse("names", f"must have at most {FILTER_NAMES} items")
    for index, name in enumerate(request.names):
        checker.text(f"names[{index}]", name, required=True, max_bytes=NAME_BYTES)
    for index, kind in enumerate(request.kinds):
        checker.one_of(f"kinds[{index}]", kind, list(EventKind))
    return _Filter(
        list(request.names) or None, list(request.kinds) or None, read_data_format(checker, request.data_format)
    )


def _to_message(
    project: Project, triggers: Sequence[trigger_pb2.Trigger], position: int
) -> events_service_pb2.WatchTriggersResponse:
    return events_service_pb2.WatchTriggersResponse(triggers=triggers, cursor=make_cursor(project.project_id, position))


def _to_trigger(row: store.TriggerRow, event: store.TriggeredEvent, *, as_json: bool) -> trigger_pb2.Trigger:
    stored = StoredEvent(
        event.event_time,
        event.event_id,
        event.receive_time,
        EventKind(event.kind),
        event.was_anonymous,
        event.name,
        event.anonymous_id,
        event.data,
    )
    return trigger_pb2.Trigger(
        event=to_event(stored, event.profile_id, event.recipient or "", as_json=as_json),
        mark=trigger_pb2.TriggerMark.ValueType(row.mark),
        create_time=to_timestamp(row.create_time),
    )
