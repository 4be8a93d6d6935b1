"""ActivationService: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

from typing import Any

import grpc

from onefold.activation import consents, store
from onefold.activation.messages import read_tree, to_criteria_json, to_criterion, to_reports
from onefold.activation.replaying import replay
from onefold.activation.rules import Event, evaluate
from onefold.activation.unknown import make_unknown
from onefold.activation.visitors import (
    read_decision,
    read_fields,
    read_holder,
    read_item,
    read_session,
    read_told,
    to_consent,
)
from onefold.callers import Project, caller
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, exhausted, failed_precondition, not_found
from onefold.events.messages import to_result
from onefold.events.rules import Arrival
from onefold.events.service import within
from onefold.events.store import note_visitors
from onefold.identity.links import subject_id
from onefold.identity.messages import read_anonymous_id, read_data_format, read_identifiers, to_profile_write
from onefold.identity.people import Written
from onefold.identity.rules import Call, SignupSource
from onefold.intents import store as intents
from onefold.intents.doorbell import Doorbell
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent
from onefold.limits import (
    CRITERIA_PER_PROJECT,
    NAME_BYTES,
    REPLAY_ITEMS,
)
from onefold.projects.store import get_project
from onefold.rpc.checks import Checker
from onefold.rpc.replay import write_once
from onefold.rpc.status import to_item_error
from onefold.v1 import activation_service_pb2, activation_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class ActivationService(activation_service_pb2_grpc.ActivationServiceServicer):
    """Keeps criteria, and makes profiles for visitors who match them."""

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        self._database = database
        self._doorbell = doorbell

    async def CreateCriterion(
        self, request: activation_service_pb2.CreateCriterionRequest, context: Context
    ) -> activation_service_pb2.CreateCriterionResponse:
        """Makes a criterion."""
        project = caller().project
        project_id = project.project_id
        checker = Checker()
        name = checker.text("name", request.name, required=True, max_bytes=NAME_BYTES)
        if not request.HasField("root"):
            checker.refuse("root", "is required")
        request_id = checker.request_id(request.request_id)
        root = read_tree(checker, "root", request.root) if request.HasField("root") else ""
        checker.raise_if_wrong()
        reviews: list[Intent] = []

        async def work(connection: Connection) -> activation_service_pb2.CreateCriterionResponse:
            # Held, so that two that are made at the same time are counted.
            await get_project(connection, project_id, lock=True)
            if await store.count_criteria(connection, project_id) >= CRITERIA_PER_PROJECT:
                raise exhausted(
                    Reason.CRITERIA_LIMIT,
                    f"The project has {CRITERIA_PER_PROJECT} criteria already.",
                    limit=str(CRITERIA_PER_PROJECT),
                )
            row = await store.insert_criterion(connection, project_id, name, root)
            reviews[:] = await _review(connection, project, request)
            return activation_service_pb2.CreateCriterionResponse(criterion=to_criterion(row))

        answer, replayed = await write_once(
            self._database,
            project_id,
            request,
            request_id,
            activation_service_pb2.CreateCriterionResponse,
            work,
        )
        self._ring(reviews, replayed=replayed)
        return answer

    async def UpdateCriterion(
        self, request: activation_service_pb2.UpdateCriterionRequest, context: Context
    ) -> activation_service_pb2.UpdateCriterionResponse:
        """Changes a criterion."""
        project = caller().project
        project_id = project.project_id
        checker = Checker()
        criterion_id = checker.uuid("criterion_id", request.criterion_id)
        name = None
        if request.HasField("name"):
            name = checker.text("name", request.name, required=True, max_bytes=NAME_BYTES)
        if request.version < 0:
            checker.refuse("version", "must not be negative")
        request_id = checker.request_id(request.request_id)
        root = read_tree(checker, "root", request.root) if request.HasField("root") else None
        checker.raise_if_wrong()
        reviews: list[Intent] = []

        async def work(connection: Connection) -> activation_service_pb2.UpdateCriterionResponse:
            row = await store.lock_criterion(connection, project_id, criterion_id)
            if row is None:
                raise _criterion_not_found()
            if request.version not in (0, row.version):
                raise failed_precondition(Reason.CRITERIA_STALE, "The criterion has another version by now.")
            wanted = (row.name if name is None else name, row.root if root is None else root)
            if wanted != (row.name, row.root):
                row = await store.update_criterion(connection, project_id, criterion_id, *wanted)
            reviews[:] = await _review(connection, project, request)
            return activation_service_pb2.UpdateCriterionResponse(criterion=to_criterion(row))

        answer, replayed = await write_once(
            self._database,
            project_id,
            request,
            request_id,
            activation_service_pb2.UpdateCriterionResponse,
            work,
        )
        self._ring(reviews, replayed=replayed)
        return answer

    async def DeleteCriterion(
        self, request: activation_service_pb2.DeleteCriterionRequest, context: Context
    ) -> activation_service_pb2.DeleteCriterionResponse:
        """Deletes a criterion."""
        project_id = caller().project.project_id
        checker = Checker()
        criterion_id = checker.uuid("criterion_id", request.criterion_id)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> activation_service_pb2.DeleteCriterionResponse:
            if not await store.delete_criterion(connection, project_id, criterion_id):
                raise _criterion_not_found()
            return activation_service_pb2.DeleteCriterionResponse(criterion_id=str(criterion_id))

        answer, _ = await write_once(
            self._database,
            project_id,
            request,
            request_id,
            activation_service_pb2.DeleteCriterionResponse,
            work,
        )
        return answer

    async def ListCriteria(
        self, request: activation_service_pb2.ListCriteriaRequest, context: Context
    ) -> activation_service_pb2.ListCriteriaResponse:
        """Lists the criteria."""
        project_id = caller().project.project_id
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        checker.raise_if_wrong()
        rows = await self._database.read(lambda connection: store.list_criteria(connection, project_id))
        return activation_service_pb2.ListCriteriaResponse(
            criteria=map(to_criterion, rows), criteria_json=to_criteria_json(rows) if as_json else ""
        )

    async def EvaluateCriteria(
        self, request: activation_service_pb2.EvaluateCriteriaRequest, context: Context
    ) -> activation_service_pb2.EvaluateCriteriaResponse:
        """Says which criterion a visitor matches, and why."""
        project = caller().project
        checker = Checker()
        told = read_told(checker, project, request)
        fields = read_fields(checker, request)
        if request.anonymous_id:
            read_anonymous_id(checker, project, "anonymous_id", request.anonymous_id)
        checker.raise_if_wrong()

        async def look(connection: Connection) -> tuple[list[store.CriterionRow], list[Event]]:
            rows = await store.list_criteria(connection, project.project_id)
            if not request.anonymous_id:
                return rows, []
            return rows, await store.stored_events(connection, project.project_id, request.anonymous_id)

        rows, stored = await self._database.read(look, snapshot=True)
        evaluation = evaluate([row.compiled() for row in rows], [*stored, *told], fields.value)
        return activation_service_pb2.EvaluateCriteriaResponse(
            criterion_id=evaluation.matched_id or "", reports=to_reports(rows, evaluation)
        )

    async def CreateUnknownProfile(
        self, request: activation_service_pb2.CreateUnknownProfileRequest, context: Context
    ) -> activation_service_pb2.CreateUnknownProfileResponse:
        """Makes a visitor's profile."""
        project = caller().project
        checker = Checker()
        session = read_session(checker, project, request)
        fields = read_fields(checker, request)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> activation_service_pb2.CreateUnknownProfileResponse:
            made = await make_unknown(connection, project, session, fields.value)
            return activation_service_pb2.CreateUnknownProfileResponse(
                profile=to_profile_write(made.written), is_unknown=made.is_unknown, event_id=made.event_id
            )

        answer, _ = await write_once(
            self._database,
            project.project_id,
            request,
            request_id,
            activation_service_pb2.CreateUnknownProfileResponse,
            work,
        )
        return answer

    async def Replay(
        self, request: activation_service_pb2.ReplayRequest, context: Context
    ) -> activation_service_pb2.ReplayResponse:
        """Takes everything that a client kept of a visitor."""
        project = caller().project
        checker = Checker()
        named = read_identifiers(checker, project, request.identifiers, long_user_id=True)
        if len(request.items) > REPLAY_ITEMS:
            checker.refuse("items", f"must have at most {REPLAY_ITEMS} items")
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()
        call = Call(
            SignupSource.PROFILE_UPDATE,
            prefer_user_id=request.prefer_user_id,
            update_existing_only=request.update_existing_only,
        )
        read = [read_item(project, named, item) for item in request.items]
        items = [item for item in read if not isinstance(item, OnefoldError)]
        anonymous_ids = {item.anonymous_id for item in items if isinstance(item, Arrival) and item.anonymous_id}

        async def work(connection: Connection) -> activation_service_pb2.ReplayResponse:
            written, results = await replay(connection, project, named, call, items)
            told = iter(results)
            answer = activation_service_pb2.ReplayResponse(profile=to_profile_write(written))
            for item in read:
                result = item if isinstance(item, OnefoldError) else next(told)
                if isinstance(result, OnefoldError):
                    answer.results.add(
                        error=to_item_error(within(result, "event.") if isinstance(item, Arrival) else result)
                    )
                elif isinstance(result, Written):
                    answer.results.add(profile=to_profile_write(result))
                else:
                    answer.results.add(event=to_result(result))
            return answer

        answer, _ = await write_once(
            self._database,
            project.project_id,
            request,
            request_id,
            activation_service_pb2.ReplayResponse,
            work,
            subjects={subject_id(project.project_id, anonymous_id) for anonymous_id in anonymous_ids},
        )
        return answer

    async def RecordConsent(
        self, request: activation_service_pb2.RecordConsentRequest, context: Context
    ) -> activation_service_pb2.RecordConsentResponse:
        """Records consent, or that it was taken back."""
        project = caller().project
        checker = Checker()
        holder = read_holder(checker, project, request)
        decision = read_decision(checker, request)
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> activation_service_pb2.RecordConsentResponse:
            consent, profile_id = await consents.record(connection, project, holder, decision)
            if consent.is_given and isinstance(holder, str) and project.settings.watches_visitors:
                # Consent may be all that was missing.
                await note_visitors(connection, project.project_id, [holder])
            return activation_service_pb2.RecordConsentResponse(
                consent=to_consent(consent), profile_id=str(profile_id) if profile_id else ""
            )

        answer, _ = await write_once(
            self._database,
            project.project_id,
            request,
            request_id,
            activation_service_pb2.RecordConsentResponse,
            work,
            subjects=[consents.visitor_id(project, holder)],
        )
        return answer

    def _ring(self, left: list[Intent], *, replayed: bool) -> None:
        if not replayed:
            for intent in left:
                self._doorbell.ring(intent)


async def _review(
    connection: Connection,
    project: Project,
    request: activation_service_pb2.CreateCriterionRequest | activation_service_pb2.UpdateCriterionRequest,
) -> list[Intent]:
    """Leaves it to the workers to look at all visitors who are there, if that was asked for."""
    if not request.apply_to_stored_events or not project.settings.watches_visitors:
        return []
    intent = Intent(project.project_id, await store.add_review(connection, project.project_id), IntentKind.REVIEW)
    await intents.add(connection, intent)
    return [intent]


def _criterion_not_found() -> OnefoldError:
    return not_found(Reason.CRITERION_NOT_FOUND, "The project has no criterion of this id.")
