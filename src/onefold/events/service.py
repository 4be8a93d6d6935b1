"""EventsService: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import grpc
import orjson

from onefold.callers import Project, caller
from onefold.clock import EARLIEST, LATEST, to_microseconds
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Violation, invalid
from onefold.events import store
from onefold.events.batcher import Batcher
from onefold.events.ingest import Accepted, Result, ingest
from onefold.events.rules import Arrival, EventKind, is_backfilled
from onefold.identity.messages import read_anonymous_id, read_data_format, read_identifiers, to_outcome
from onefold.identity.people import find_profile_id
from onefold.identity.store import subject_id
from onefold.limits import (
    BATCH_EVENTS,
    EVENT_DATA_BYTES,
    EVENT_ID_CHARACTERS,
    FILTER_NAMES,
    NAME_BYTES,
)
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import build_page, make_token, moment_part, page_size, read_token, text_part
from onefold.rpc.payload import EMPTY, Payload, read_json, read_struct, write_struct
from onefold.rpc.replay import write_once
from onefold.rpc.status import to_item_error
from onefold.v1 import event_pb2, events_service_pb2, events_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

# Later than any event can be: the first page begins before it.
_AFTER_ALL: Final = LATEST + timedelta(days=3)


class EventsService(events_service_pb2_grpc.EventsServiceServicer):
    """Takes and shows events."""

    def __init__(self, database: Database, batcher: Batcher) -> None:
        self._database = database
        self._batcher = batcher

    async def Track(
        self, request: events_service_pb2.TrackRequest, context: Context
    ) -> events_service_pb2.TrackResponse:
        """Stores one event."""
        project = caller().project
        checker = Checker()
        arrival = read_event(checker, project, request.event, "event.")
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        if not request_id:
            return _to_track_response(await self._batcher.track(project, arrival))

        async def work(connection: Connection) -> events_service_pb2.TrackResponse:
            # The stored answer belongs to this call's transaction, so it has one of its own.
            [result] = await ingest(connection, project, [arrival])
            return _to_track_response(result)

        answer, _ = await write_once(
            self._database,
            project.project_id,
            request,
            request_id,
            events_service_pb2.TrackResponse,
            work,
            subjects=_subjects(project, [arrival]),
        )
        return answer

    async def BatchTrack(
        self, request: events_service_pb2.BatchTrackRequest, context: Context
    ) -> events_service_pb2.BatchTrackResponse:
        """Stores up to 1,000 events, each for itself."""
        project = caller().project
        checker = Checker()
        if len(request.events) > BATCH_EVENTS:
            checker.refuse("events", f"must have at most {BATCH_EVENTS} items")
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        read = [_read_item(project, event) for event in request.events]
        arrivals = [item for item in read if isinstance(item, Arrival)]

        async def work(connection: Connection) -> events_service_pb2.BatchTrackResponse:
            stored = iter(await ingest(connection, project, arrivals))
            answer = events_service_pb2.BatchTrackResponse()
            for item in read:
                result: Result = next(stored) if isinstance(item, Arrival) else item
                if isinstance(result, OnefoldError):
                    answer.results.add(error=to_item_error(result))
                else:
                    answer.results.add(result=to_result(result))
            return answer

        answer, _ = await write_once(
            self._database,
            project.project_id,
            request,
            request_id,
            events_service_pb2.BatchTrackResponse,
            work,
            subjects=_subjects(project, arrivals),
        )
        return answer

    async def ListEvents(
        self, request: events_service_pb2.ListEventsRequest, context: Context
    ) -> events_service_pb2.ListEventsResponse:
        """Lists a page of a timeline."""
        project = caller().project
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        count = page_size(checker, request.page_size)
        wanted = _read_filter(checker, request, count)
        subject = request.WhichOneof("subject")
        if subject == "anonymous_id":
            read_anonymous_id(checker, project, "anonymous_id", request.anonymous_id)
        elif subject == "profile_id":
            checker.uuid("profile_id", request.profile_id)
        named = (
            read_identifiers(checker, project, request.identifiers, long_user_id=True)
            if subject in ("identifiers", None)
            else None
        )
        checker.raise_if_wrong()

        async def list_page(connection: Connection) -> tuple[UUID | None, list[store.StoredEvent]]:
            if subject == "anonymous_id":
                rows = await store.list_anonymous_events(connection, project.project_id, request.anonymous_id, wanted)
                return None, rows
            profile_id = await find_profile_id(
                connection, project, named, UUID(request.profile_id) if subject == "profile_id" else None
            )
            return profile_id, await store.list_events(connection, project.project_id, profile_id, wanted)

        # Who it is and what they did are of one moment: no merge can come between the two.
        profile_id, rows = await self._database.read(list_page, snapshot=True)
        return _to_page(request, profile_id, rows, count, as_json=as_json)


def _subjects(project: Project, arrivals: Sequence[Arrival]) -> set[UUID]:
    return {subject_id(project.project_id, each.anonymous_id) for each in arrivals if each.anonymous_id}


def _read_item(project: Project, event: event_pb2.NewEvent) -> Arrival | OnefoldError:
    checker = Checker()
    arrival = read_event(checker, project, event, "")
    return invalid(checker.violations) if checker.violations else arrival


def read_event(checker: Checker, project: Project, event: event_pb2.NewEvent, prefix: str) -> Arrival:
    """Checks an event. Returns one that must not be stored after noting violations."""
    named = anonymous_id = None
    if event.HasField("identifiers"):
        named = read_identifiers(
            checker, project, event.identifiers, prefix=f"{prefix}identifiers", long_user_id=event.prefer_user_id
        )
    if event.anonymous_id:
        anonymous_id = read_anonymous_id(checker, project, f"{prefix}anonymous_id", event.anonymous_id)
    if named is None and anonymous_id is None:
        checker.refuse(f"{prefix}identifiers", "is required unless anonymous_id is given")
    name = checker.text(f"{prefix}name", event.name, required=True, max_bytes=NAME_BYTES)
    kind = checker.one_of(f"{prefix}kind", event.kind, event_pb2.EventKind.values())
    event_id = checker.text(f"{prefix}event_id", event.event_id, max_characters=EVENT_ID_CHARACTERS)
    event_time = checker.timestamp(f"{prefix}event_time", event.event_time) if event.HasField("event_time") else None
    return Arrival(
        named,
        anonymous_id,
        name,
        EventKind(kind) if kind in list(EventKind) else EventKind.CUSTOM,
        _read_data(checker, event, prefix),
        event_id or None,
        event_time,
        event.prefer_user_id,
        event.update_existing_only,
    )


def _read_data(checker: Checker, event: event_pb2.NewEvent, prefix: str) -> Payload:
    match event.WhichOneof("payload"):
        case "data":
            return read_struct(checker, f"{prefix}data", event.data, max_bytes=EVENT_DATA_BYTES)
        case "data_json":
            return read_json(checker, f"{prefix}data_json", event.data_json, max_bytes=EVENT_DATA_BYTES)
        case _:
            return EMPTY


def _read_filter(checker: Checker, request: events_service_pb2.ListEventsRequest, count: int) -> store.Filter:
    if len(request.names) > FILTER_NAMES:
        checker.refuse("names", f"must have at most {FILTER_NAMES} items")
    for index, name in enumerate(request.names):
        checker.text(f"names[{index}]", name, required=True, max_bytes=NAME_BYTES)
    for index, kind in enumerate(request.kinds):
        checker.one_of(f"kinds[{index}]", kind, list(EventKind))
    start = checker.timestamp("start_time", request.start_time) if request.HasField("start_time") else EARLIEST
    end = checker.timestamp("end_time", request.end_time) if request.HasField("end_time") else _AFTER_ALL
    before_time, before_id = end, ""
    key = read_token(request, request.page_token, moment_part, text_part)
    if key is not None:
        before_time, before_id = key
    return store.Filter(
        before_time,
        before_id,
        start,
        list(request.names) or None,
        list(request.kinds) or None,
        # One more than the page has says whether there is another.
        count + 1,
    )


def _to_track_response(result: Result) -> events_service_pb2.TrackResponse:
    if isinstance(result, OnefoldError):
        raise _within(result, "event.")
    return events_service_pb2.TrackResponse(result=to_result(result))


def _within(error: OnefoldError, prefix: str) -> OnefoldError:
    """The error of an item as that of a call: fields are named from the request on."""
    if not error.violations:
        return error
    return invalid(
        [Violation(prefix + violation.field, violation.description) for violation in error.violations], error.reason
    )


def to_result(accepted: Accepted) -> event_pb2.TrackResult:
    """What became of an event, as an answer has it."""
    return event_pb2.TrackResult(
        event_id=accepted.event_id,
        receive_time=to_timestamp(accepted.receive_time),
        duplicate=accepted.duplicate,
        profile_outcome=to_outcome(accepted.profile_outcome) if accepted.profile_outcome else None,  # type: ignore[arg-type]  # None is "unset" to protobuf
        profile_id=str(accepted.profile_id) if accepted.profile_id else "",
    )


def _to_page(
    request: events_service_pb2.ListEventsRequest,
    profile_id: UUID | None,
    rows: Sequence[store.StoredEvent],
    count: int,
    *,
    as_json: bool,
) -> events_service_pb2.ListEventsResponse:
    page = build_page(rows, count, lambda row: _to_event(row, profile_id, as_json=as_json))
    answer = events_service_pb2.ListEventsResponse(events=page)
    if len(page) < len(rows):
        last = rows[len(page) - 1]
        answer.next_page_token = make_token(request, [to_microseconds(last.event_time), last.event_id])
    return answer


def _to_event(row: store.StoredEvent, profile_id: UUID | None, *, as_json: bool) -> event_pb2.Event:
    event = event_pb2.Event(
        event_id=row.event_id,
        name=row.name,
        kind=event_pb2.EventKind.ValueType(row.kind),
        event_time=to_timestamp(row.event_time),
        receive_time=to_timestamp(row.receive_time),
        profile_id=str(profile_id) if profile_id else "",
        anonymous_id=row.anonymous_id or "",
        was_anonymous=row.was_anonymous,
        backfilled=is_backfilled(row.event_time, row.receive_time),
    )
    if as_json:
        event.data_json = row.data
    else:
        write_struct(event.data, orjson.loads(row.data))
        event.data.SetInParent()
    return event
