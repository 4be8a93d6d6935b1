"""ListActivity of EventsService: reads the request, writes the answer."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import grpc

from onefold.activity import pages
from onefold.activity.pages import NEWEST, CountedLedger, OwnedCreated, OwnedEvent, OwnedNote, Page, Row, Wanted
from onefold.activity.rules import ActivityKind, Key, Place
from onefold.activity.store import EventKeyRow
from onefold.callers import caller
from onefold.clock import EARLIEST, to_microseconds
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.events.service import to_event
from onefold.identity.messages import read_anonymous_id, read_data_format, read_identifiers
from onefold.identity.people import find_profile_id
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import build_page, make_token, moment_part, page_size, read_token, text_part
from onefold.v1 import activity_pb2, device_pb2, events_service_pb2, events_service_pb2_grpc, merge_pb2, profile_pb2

Context = grpc.aio.ServicerContext[Any, Any]


class ActivityCalls(events_service_pb2_grpc.EventsServiceServicer):
    """ListActivity."""

    def __init__(self, database: Database) -> None:
        self._activity_database = database

    async def ListActivity(
        self, request: events_service_pb2.ListActivityRequest, context: Context
    ) -> events_service_pb2.ListActivityResponse:
        """Lists a page of the activity log."""
        project = caller().project
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        wanted = _read_wanted(checker, request, page_size(checker, request.page_size))
        subject = request.WhichOneof("subject")
        named = (
            read_identifiers(checker, project, request.identifiers, long_user_id=True)
            if (subject == "identifiers")
            else None
        )
        asked_id = checker.uuid("profile_id", request.profile_id) if subject == "profile_id" else None
        if subject == "anonymous_id":
            read_anonymous_id(checker, project, "anonymous_id", request.anonymous_id)
        checker.raise_if_wrong()

        async def read(connection: Connection) -> Page:
            match subject:
                case None:
                    return await pages.of_project(connection, project.project_id, wanted)
                case "anonymous_id":
                    return await pages.of_visitor(connection, project.project_id, request.anonymous_id, wanted)
                case _:
                    profile_id = await find_profile_id(connection, project, named, asked_id)
                    return await pages.of_person(connection, project.project_id, profile_id, wanted)

        # Who it is and what happened are of one moment, in all places that are read.
        page = await self._activity_database.read(read, snapshot=True)
        answer = events_service_pb2.ListActivityResponse(
            activities=build_page(page.entries, wanted.count, lambda entry: _to_activity(entry.row, as_json=as_json))
        )
        next_key = page.next_key
        if len(answer.activities) < len(page.entries):
            next_key = page.entries[len(answer.activities) - 1].key
        if next_key is not None:
            key = [to_microseconds(next_key.activity_time), int(next_key.place), next_key.id]
            answer.next_page_token = make_token(request, [key])
        return answer


def _read_wanted(checker: Checker, request: events_service_pb2.ListActivityRequest, count: int) -> Wanted:
    for index, kind in enumerate(request.kinds):
        checker.one_of(f"kinds[{index}]", kind, list(ActivityKind))
    checker.one_of("filter", request.filter, activity_pb2.ActivityFilter.values())
    start = checker.timestamp("start_time", request.start_time) if request.HasField("start_time") else EARLIEST
    before = NEWEST
    if request.HasField("end_time"):
        before = Key(checker.timestamp("end_time", request.end_time), Place.CREATED, "")
    key = read_token(request, request.page_token, _key_part)
    if key is not None:
        [before] = key
    known: list[int] = list(ActivityKind)
    kinds = [ActivityKind(kind) for kind in request.kinds if kind in known]
    return Wanted(
        frozenset(kinds or ActivityKind),
        request.filter != activity_pb2.ACTIVITY_FILTER_ANONYMOUS,
        request.filter != activity_pb2.ACTIVITY_FILTER_IDENTIFIED,
        before,
        start,
        count,
    )


def _key_part(part: Any) -> Key:
    """The key of an entry in a token. Raises what readers of tokens raise."""
    time, place, text = part
    key = Key(moment_part(time), Place(place), text_part(text))
    if key.place is not Place.EVENTS:
        UUID(key.id)
    return key


def _to_activity(row: Row, *, as_json: bool) -> activity_pb2.Activity:
    match row:
        case OwnedEvent():
            return _activity(
                row.event.event_time,
                row.owner_profile_id,
                event=to_event(row.event, row.owner_profile_id, row.recipient, as_json=as_json),
            )
        case OwnedCreated():
            created = activity_pb2.ProfileCreated(
                profile_id=str(row.row.profile_id),
                signup_source=profile_pb2.SignupSource.ValueType(row.row.signup_source),
            )
            return _activity(row.row.create_time, row.owner_profile_id, profile_created=created)
        case CountedLedger():
            return _to_merged(row)
        case OwnedNote():
            return _to_noted(row)
        case EventKeyRow():
            raise TypeError("an event that was not filled in")


def _to_merged(ledger: CountedLedger) -> activity_pb2.Activity:
    row = ledger.row
    undo_time = to_timestamp(row.undo_time) if row.undo_time else None
    if row.kind == "ASSOCIATION":
        associated = activity_pb2.AnonymousDataMerged(
            anonymous_id=row.anonymous_id or "",
            event_count=row.event_count,
            oldest_event_time=to_timestamp(row.oldest_event_time) if row.oldest_event_time else None,
            merge_id=str(row.merge_id),
            counting=ledger.counting,
            undo_time=undo_time,
        )
        return _activity(row.create_time, ledger.owner_profile_id, anonymous_data_merged=associated)
    merged = activity_pb2.ProfileMerged(
        merge_id=str(row.merge_id),
        kind=merge_pb2.MergeKind.Value(f"MERGE_KIND_{row.kind}"),
        source_profile_id=str(row.source_profile_id),
        target_profile_id=str(row.target_profile_id),
        undo_time=undo_time,
    )
    return _activity(row.create_time, ledger.owner_profile_id, profile_merged=merged)


def _to_noted(note: OwnedNote) -> activity_pb2.Activity:
    row = note.row
    token, platform = row.token or "", device_pb2.Platform.ValueType(row.platform or 0)
    match row.kind:
        case ActivityKind.DEVICE_REGISTERED:
            registered = activity_pb2.DeviceRegistered(token=token, platform=platform)
            return _activity(row.activity_time, note.owner_profile_id, device_registered=registered)
        case ActivityKind.DEVICE_DISABLED:
            disabled = activity_pb2.DeviceDisabled(
                token=token, platform=platform, for_all_holders=row.profile_id is None
            )
            return _activity(row.activity_time, note.owner_profile_id, device_disabled=disabled)
        case _:
            forgotten = activity_pb2.ProfileForgotten(
                profile_id=str(row.profile_id), identifiers_blocked=row.identifiers_blocked
            )
            return _activity(row.activity_time, None, profile_forgotten=forgotten)


def _activity(time: datetime, owner: UUID | None, **activity: Any) -> activity_pb2.Activity:
    return activity_pb2.Activity(activity_time=to_timestamp(time), profile_id=str(owner) if owner else "", **activity)
