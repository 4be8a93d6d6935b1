"""The calls of IdentityService that merge: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

import grpc

from onefold.callers import Caller, Project, Scope, caller
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import Kind, OnefoldError, Reason
from onefold.identity.messages import (
    read_data_format,
    read_identifiers,
    to_identifiers,
    to_profile,
    to_profile_write,
)
from onefold.identity.people import Written, find_profile_id
from onefold.identity.rules import Outcome as WriteOutcome
from onefold.identity.rules import Person
from onefold.intents.doorbell import Doorbell
from onefold.intents.store import Intent
from onefold.limits import NAME_BYTES
from onefold.merges import store, undoing
from onefold.merges.merging import Merged, Outcome, Wanted, merge, plan
from onefold.merges.rules import MAX_ARRAY_MERGES, UNDO_PERIOD, ArrayMerge
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import make_token, page_size, read_token
from onefold.rpc.replay import write_once
from onefold.v1 import identity_service_pb2, identity_service_pb2_grpc, merge_pb2

Context = grpc.aio.ServicerContext[Any, Any]

_LATEST_ID: Final = UUID(int=(1 << 128) - 1)


class MergeCalls(identity_service_pb2_grpc.IdentityServiceServicer):
    """MergeProfiles, PreviewMerge, GetMerge, ListMerges, UndoMerge."""

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        self._merge_database = database
        self._merge_doorbell = doorbell

    async def MergeProfiles(
        self, request: identity_service_pb2.MergeProfilesRequest, context: Context
    ) -> identity_service_pb2.MergeProfilesResponse:
        """Merges one person into another."""
        who = caller()
        project = who.project
        checker = Checker()
        wanted = _read_merge(checker, project, request)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        _require_admin(who, wanted)
        intents: list[Intent] = []

        async def work(connection: Connection) -> identity_service_pb2.MergeProfilesResponse:
            merged = await merge(connection, project, wanted, who.key_id)
            intents[:] = [merged.intent] if merged.intent else []
            row = await store.get_merge(connection, project.project_id, merged.merge_id) if merged.merge_id else None
            return identity_service_pb2.MergeProfilesResponse(
                outcome=identity_service_pb2.MergeOutcome.ValueType(merged.outcome),
                survivor=to_profile_write(_survivor(merged)),
                merge=_to_merge(row) if row else None,
            )

        answer, replayed = await write_once(
            self._merge_database,
            project.project_id,
            request,
            request_id,
            identity_service_pb2.MergeProfilesResponse,
            work,
        )
        if not replayed:
            for intent in intents:
                self._merge_doorbell.ring(intent)
        return answer

    async def PreviewMerge(
        self, request: identity_service_pb2.PreviewMergeRequest, context: Context
    ) -> identity_service_pb2.PreviewMergeResponse:
        """Answers what a merge would do."""
        project = caller().project
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        wanted = _read_merge(checker, project, request)
        checker.raise_if_wrong()

        async def look(connection: Connection) -> identity_service_pb2.PreviewMergeResponse:
            planned = await plan(connection, project, wanted, lock=False)
            devices = await store.count_devices(connection, project.project_id, planned.source.profile_id)
            return identity_service_pb2.PreviewMergeResponse(
                outcome=identity_service_pb2.MergeOutcome.ValueType(planned.outcome),
                survivor=to_profile(planned.survivor, as_json=as_json),
                source_fields=planned.merged.source_fields,
                target_fields=planned.merged.target_fields,
                merged_arrays=planned.merged.merged_arrays,
                device_count=devices if planned.outcome is Outcome.MERGED else 0,
            )

        return await self._merge_database.read(look, snapshot=True)

    async def GetMerge(
        self, request: identity_service_pb2.GetMergeRequest, context: Context
    ) -> identity_service_pb2.GetMergeResponse:
        """Reads an entry of the ledger."""
        project_id = caller().project.project_id
        checker = Checker()
        merge_id = checker.uuid("merge_id", request.merge_id)
        checker.raise_if_wrong()
        row = await self._merge_database.read(lambda connection: store.get_merge(connection, project_id, merge_id))
        if row is None:
            raise undoing.merge_not_found()
        return identity_service_pb2.GetMergeResponse(merge=_to_merge(row))

    async def ListMerges(
        self, request: identity_service_pb2.ListMergesRequest, context: Context
    ) -> identity_service_pb2.ListMergesResponse:
        """Lists the merges that a profile took part in."""
        project = caller().project
        checker = Checker()
        count = page_size(checker, request.page_size)
        by_id = request.WhichOneof("person") == "profile_id"
        asked_id = checker.uuid("profile_id", request.profile_id) if by_id else None
        named = None if by_id else read_identifiers(checker, project, request.identifiers, long_user_id=True)
        checker.raise_if_wrong()
        [before] = read_token(request, request.page_token, UUID) or [_LATEST_ID]

        async def list_page(connection: Connection) -> list[store.MergeRow]:
            # A profile that was merged away has a ledger too, and only its id still names it.
            profile_id = asked_id or await find_profile_id(connection, project, named)
            return await store.list_merges(connection, project.project_id, profile_id, before, count + 1)

        rows = await self._merge_database.read(list_page, snapshot=True)
        answer = identity_service_pb2.ListMergesResponse(merges=[_to_merge(row) for row in rows[:count]])
        if len(rows) > count:
            answer.next_page_token = make_token(request, [str(rows[count - 1].merge_id)])
        return answer

    async def UndoMerge(
        self, request: identity_service_pb2.UndoMergeRequest, context: Context
    ) -> identity_service_pb2.UndoMergeResponse:
        """Takes a merge back."""
        project = caller().project
        checker = Checker()
        merge_id = checker.uuid("merge_id", request.merge_id)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        intents: list[Intent] = []

        async def work(connection: Connection) -> identity_service_pb2.UndoMergeResponse:
            undone = await undoing.undo(connection, project, merge_id)
            intents[:] = undone.intents
            row = await store.get_merge(connection, project.project_id, merge_id)
            return identity_service_pb2.UndoMergeResponse(
                outcome=identity_service_pb2.UndoOutcome.ValueType(undone.outcome),
                merge=_to_merge(row) if row else None,
            )

        answer, replayed = await write_once(
            self._merge_database,
            project.project_id,
            request,
            request_id,
            identity_service_pb2.UndoMergeResponse,
            work,
        )
        if not replayed:
            for intent in intents:
                self._merge_doorbell.ring(intent)
        return answer


def _read_merge(
    checker: Checker,
    project: Project,
    request: identity_service_pb2.MergeProfilesRequest | identity_service_pb2.PreviewMergeRequest,
) -> Wanted:
    if len(request.array_merges) > MAX_ARRAY_MERGES:
        checker.refuse("array_merges", f"must have at most {MAX_ARRAY_MERGES} items")
    for index, each in enumerate(request.array_merges):
        checker.text(f"array_merges[{index}].field", each.field, required=True, max_bytes=NAME_BYTES)
        checker.text(f"array_merges[{index}].dedupe_by", each.dedupe_by, max_bytes=NAME_BYTES)
    return Wanted(
        read_identifiers(checker, project, request.source, prefix="source", long_user_id=True),
        read_identifiers(checker, project, request.target, prefix="target"),
        [ArrayMerge(each.field, each.dedupe_by or None) for each in request.array_merges],
        request.allow_known_source,
    )


def _require_admin(who: Caller, wanted: Wanted) -> None:
    if wanted.allow_known_source and Scope.ADMIN not in who.scopes:
        raise OnefoldError(
            Kind.PERMISSION_DENIED,
            Reason.SCOPE_MISSING,
            "Merging known people needs a key with the scope ADMIN.",
            {"required_scope": Scope.ADMIN},
        )


def _survivor(merged: Merged) -> Written:
    survivor = merged.survivor
    outcome = WriteOutcome.UNCHANGED if merged.outcome is Outcome.SAME_PROFILE else WriteOutcome.UPDATED
    return Written.of(Person(survivor.profile_id, survivor.email, survivor.user_id), outcome)


def _to_merge(row: store.MergeRow) -> merge_pb2.Merge:
    state = merge_pb2.MERGE_STATE_RUNNING
    if row.undo_time is not None:
        state = merge_pb2.MERGE_STATE_UNDONE
    elif row.settle_time is not None:
        state = merge_pb2.MERGE_STATE_DONE
    return merge_pb2.Merge(
        merge_id=str(row.merge_id),
        kind=merge_pb2.MergeKind.Value(f"MERGE_KIND_{row.kind}"),
        state=state,
        source_profile_id=str(row.source_profile_id) if row.source_profile_id else "",
        source_identifiers=to_identifiers(row.source_email, row.source_user_id),
        anonymous_id=row.anonymous_id or "",
        target_profile_id=str(row.target_profile_id),
        create_time=to_timestamp(row.create_time),
        key_id=row.key_id,
        source_fields=row.source_fields,
        target_fields=row.target_fields,
        merged_arrays=row.merged_arrays,
        event_count=row.event_count,
        oldest_event_time=to_timestamp(row.oldest_event_time) if row.oldest_event_time else None,
        device_count=row.device_count,
        undo_end_time=to_timestamp(row.create_time + UNDO_PERIOD),
        undo_time=to_timestamp(row.undo_time) if row.undo_time else None,
    )
