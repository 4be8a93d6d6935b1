"""EventsService: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
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
from onefold.events.ingest import Result, ingest
from onefold.events.messages import (
    BatchResults,
    check_recipient,
    fill_batch_results,
    read_batch,
    read_event,
    to_result,
)
from onefold.events.rules import Arrival, EventKind, is_backfilled
from onefold.identity.links import subject_id
from onefold.identity.messages import read_anonymous_id, read_data_format, read_identifiers
from onefold.identity.people import find_profile_id
from onefold.limits import BATCH_EVENTS, FILTER_NAMES, NAME_BYTES, STREAM_BATCHES
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import build_page, make_token, moment_part, page_size, read_token, text_part
from onefold.rpc.payload import write_struct
from onefold.rpc.replay import write_once
from onefold.rpc.streams import read_ahead
from onefold.v1 import event_pb2, events_service_pb2, events_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

# Later than any event can be: the first page begins before it.
_AFTER_ALL: Final = LATEST + timedelta(days=3)


class EventsService(events_service_pb2_grpc.EventsServiceServicer):
    """Takes and shows events."""

    def __init__(self, database: Database, batcher: Batcher, *, stream_batches: int = 1) -> None:
        """`stream_batches`: how many batches of streams are stored at a time. Other calls need connections, too."""
        self._database = database
        self._batcher = batcher
        self._stream_turns = asyncio.Semaphore(stream_batches)

    async def Track(
        self, request: events_service_pb2.TrackRequest, context: Context
    ) -> events_service_pb2.TrackResponse:
        """Stores one event."""
        project = caller().project
        checker = Checker()
        arrival = read_event(checker.within("event."), project, request.event)
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
        _check_count(checker, request.events)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        read = read_batch(project, request.events)

        async def work(connection: Connection) -> events_service_pb2.BatchTrackResponse:
            answer = events_service_pb2.BatchTrackResponse()
            await _store(connection, project, read, answer.results)
            return answer

        answer, _ = await write_once(
            self._database,
            project.project_id,
            request,
            request_id,
            events_service_pb2.BatchTrackResponse,
            work,
            subjects=_subjects(project, _arrivals(read)),
        )
        return answer

    async def TrackStream(
        self, request_iterator: AsyncIterator[events_service_pb2.TrackStreamRequest], context: Context
    ) -> AsyncIterator[events_service_pb2.TrackStreamResponse]:
        """Stores batch after batch, and acknowledges each when it is committed."""
        async with contextlib.aclosing(read_ahead(_read_stream(request_iterator), STREAM_BATCHES)) as batches:
            async for sequence, read in batches:
                yield await self._store_next(sequence, read)

    async def _store_next(
        self, sequence: int, read: Sequence[Arrival | OnefoldError]
    ) -> events_service_pb2.TrackStreamResponse:
        # Asked anew for every batch: a stream may outlive the settings that it began with.
        project = caller().project

        async def work(connection: Connection) -> events_service_pb2.TrackStreamResponse:
            answer = events_service_pb2.TrackStreamResponse(sequence=sequence)
            await _store(connection, project, read, answer.results)
            return answer

        async with self._stream_turns:
            return await self._database.transact(work)

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
        recipient = ""
        if subject == "anonymous_id":
            read_anonymous_id(checker, project, "anonymous_id", request.anonymous_id)
        elif subject == "recipient":
            recipient = check_recipient(checker, "recipient", request.recipient)
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
            if subject == "recipient":
                return None, await store.list_invite_events(connection, project.project_id, recipient, wanted)
            profile_id = await find_profile_id(
                connection, project, named, UUID(request.profile_id) if subject == "profile_id" else None
            )
            return profile_id, await store.list_events(connection, project.project_id, profile_id, wanted)

        # Who it is and what they did are of one moment: no merge can come between the two.
        profile_id, rows = await self._database.read(list_page, snapshot=True)
        return _to_page(request, profile_id, recipient, rows, count, as_json=as_json)


async def _read_stream(
    requests: AsyncIterator[events_service_pb2.TrackStreamRequest],
) -> AsyncGenerator[tuple[int, list[Arrival | OnefoldError]]]:
    """Checks the batches of a stream: the number of each, and its events or what is wrong with them."""
    last = 0
    async for request in requests:
        checker = Checker()
        if request.sequence <= last:
            checker.refuse("sequence", f"must be larger than {last}")
        _check_count(checker, request.events)
        checker.raise_if_wrong()
        last = request.sequence
        yield last, read_batch(caller().project, request.events)


def _check_count(checker: Checker, events: Sequence[event_pb2.NewEvent]) -> None:
    if len(events) > BATCH_EVENTS:
        checker.refuse("events", f"must have at most {BATCH_EVENTS} items")


async def _store(
    connection: Connection, project: Project, read: Sequence[Arrival | OnefoldError], results: BatchResults
) -> None:
    """Stores the events of a batch that could be read; adds the results of all of it, in order."""
    fill_batch_results(results, read, await ingest(connection, project, _arrivals(read)))


def _arrivals(read: Sequence[Arrival | OnefoldError]) -> list[Arrival]:
    return [item for item in read if isinstance(item, Arrival)]


def _subjects(project: Project, arrivals: Sequence[Arrival]) -> set[UUID]:
    """Whom a stored answer tells about beside profiles: it goes when one of them is forgotten."""
    subjects = {subject_id(project.project_id, each.anonymous_id) for each in arrivals if each.anonymous_id}
    return subjects.union(store.recipient_id(project.project_id, each.recipient) for each in arrivals if each.recipient)


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
        raise within(result, "event.")
    return events_service_pb2.TrackResponse(result=to_result(result))


def within(error: OnefoldError, prefix: str) -> OnefoldError:
    """The error of an item as that of a call: fields are named from the request on."""
    if not error.violations:
        return error
    return invalid(
        [Violation(prefix + violation.field, violation.description) for violation in error.violations], error.reason
    )


def _to_page(
    request: events_service_pb2.ListEventsRequest,
    profile_id: UUID | None,
    recipient: str,
    rows: Sequence[store.StoredEvent],
    count: int,
    *,
    as_json: bool,
) -> events_service_pb2.ListEventsResponse:
    page = build_page(rows, count, lambda row: to_event(row, profile_id, recipient, as_json=as_json))
    answer = events_service_pb2.ListEventsResponse(events=page)
    if len(page) < len(rows):
        last = rows[len(page) - 1]
        answer.next_page_token = make_token(request, [to_microseconds(last.event_time), last.event_id])
    return answer


def to_event(row: store.StoredEvent, profile_id: UUID | None, recipient: str = "", *, as_json: bool) -> event_pb2.Event:
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
        recipient=recipient,
    )
    if as_json:
        event.data_json = row.data
    else:
        write_struct(event.data, orjson.loads(row.data))
        event.data.SetInParent()
    return event
