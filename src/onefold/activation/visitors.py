"""The messages about visitors: their sessions, what they did, what they allowed."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import orjson

from onefold.activation.consents import Consent, Decision
from onefold.activation.messages import cap_violations
from onefold.activation.replaying import Change, Item
from onefold.activation.rules import DATA_TYPES, Event
from onefold.activation.unknown import Session
from onefold.callers import Project
from onefold.errors import OnefoldError, invalid
from onefold.events.messages import read_event
from onefold.identity.messages import read_anonymous_id, read_identifiers
from onefold.identity.naming import Named
from onefold.limits import DATA_FIELDS_BYTES, DEVICE_ID_BYTES, EVALUATED_EVENTS, NAME_BYTES
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.payload import EMPTY, Payload, read_json, read_struct
from onefold.v1 import activation_service_pb2, consent_pb2, event_pb2, profile_pb2

# Ids that stand for nobody; one of them would gather every visitor whose client has no id.
_NOBODY: Final = ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff")


def read_fields(
    checker: Checker,
    request: activation_service_pb2.CreateUnknownProfileRequest
    | activation_service_pb2.EvaluateCriteriaRequest
    | activation_service_pb2.ReplayUpdate,
    prefix: str = "",
) -> Payload:
    """Checks data fields; none are an empty object."""
    match request.WhichOneof("fields"):
        case "data_fields":
            return read_struct(checker, f"{prefix}data_fields", request.data_fields, max_bytes=DATA_FIELDS_BYTES)
        case "data_fields_json":
            return read_json(
                checker, f"{prefix}data_fields_json", request.data_fields_json, max_bytes=DATA_FIELDS_BYTES
            )
        case _:
            return EMPTY


def read_session(
    checker: Checker, project: Project, request: activation_service_pb2.CreateUnknownProfileRequest
) -> Session:
    """Checks a visitor's session."""
    checker.uuid("user_id", request.user_id)
    if request.user_id.lower() in (*_NOBODY, *project.refused_ids):
        checker.refuse("user_id", "is an id that stands for nobody")
    criterion_id = checker.uuid("criterion_id", request.criterion_id) if request.criterion_id else None
    if request.session_count < 0:
        checker.refuse("session_count", "must not be negative")
    first = last = None
    if request.HasField("first_session_time"):
        first = checker.timestamp("first_session_time", request.first_session_time)
    if request.HasField("last_session_time"):
        last = checker.timestamp("last_session_time", request.last_session_time)
    if first is not None and last is not None and last < first:
        checker.refuse("last_session_time", "must not lie before first_session_time")
    data = session_data(
        str(criterion_id) if criterion_id else None,
        session_count=request.session_count,
        first_time=first,
        last_time=last,
        device=_read_device(checker, request.device),
    )
    return Session(request.user_id, criterion_id, data)


def session_data(
    criterion_id: str | None,
    *,
    session_count: int = 0,
    first_time: datetime | None = None,
    last_time: datetime | None = None,
    device: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What an unknownSession event says; what is not known is left out."""
    data = {
        "criterionId": criterion_id,
        "sessionCount": session_count,
        "firstSessionTime": first_time and _iso(first_time),
        "lastSessionTime": last_time and _iso(last_time),
        "deviceInfo": device,
    }
    return {name: value for name, value in data.items() if value}


def read_item(project: Project, named: Named, item: activation_service_pb2.ReplayItem) -> Item | OnefoldError:
    """Checks an item of a replay; returns what is wrong with it, if anything is."""
    checker = Checker()
    read: Item | None = None
    match item.WhichOneof("item"):
        case "event":
            if item.event.HasField("identifiers"):
                checker.refuse("event.identifiers", "must be empty: the request says whose it is")
            event = event_pb2.NewEvent()
            event.CopyFrom(item.event)
            event.identifiers.CopyFrom(_identifiers(named))
            event.ClearField("update_existing_only")
            # The person is there by then; this admits what may name one.
            event.prefer_user_id = True
            read = read_event(checker.within("event."), project, event)
        case "update":
            fields = read_fields(checker, item.update, "update.")
            read = Change(fields.value, item.update.merge_nested_objects)
        case _:
            checker.refuse("item", "needs an event or an update")
    return invalid(checker.violations, checker.reason) if checker.violations or read is None else read


def _identifiers(named: Named) -> profile_pb2.Identifiers:
    return profile_pb2.Identifiers(email=named.email or "", user_id=named.user_id or "")


def read_told(
    checker: Checker, project: Project, request: activation_service_pb2.EvaluateCriteriaRequest
) -> list[Event]:
    """Checks events that are only to be evaluated. One that was told without event_id is called events[i]."""
    if len(request.events) > EVALUATED_EVENTS:
        checker.refuse("events", f"must have at most {EVALUATED_EVENTS} items")
        return []
    read = []
    for index, told in enumerate(request.events):
        event = event_pb2.NewEvent()
        event.CopyFrom(told)
        event.ClearField("identifiers")
        event.anonymous_id = "somebody"
        arrival = read_event(checker.within(f"events[{index}]."), project, event)
        data_type = DATA_TYPES.get(arrival.kind)
        if data_type is not None:
            event_id = arrival.event_id or f"events[{index}]"
            read.append(Event(event_id, data_type, arrival.name, arrival.payload.value))
    cap_violations(checker)
    return read


def read_holder(
    checker: Checker, project: Project, request: activation_service_pb2.RecordConsentRequest
) -> Named | str:
    """Checks whose consent it is: a person's, or an anonymous_id's."""
    if request.WhichOneof("holder") == "anonymous_id":
        return read_anonymous_id(checker, project, "anonymous_id", request.anonymous_id)
    return read_identifiers(checker, project, request.identifiers, long_user_id=True)


def read_decision(checker: Checker, request: activation_service_pb2.RecordConsentRequest) -> Decision:
    """Checks what was decided."""
    return Decision(
        checker.timestamp("decision_time", request.decision_time) if request.HasField("decision_time") else None,
        request.is_withdrawn,
        request.is_known,
        orjson.dumps(_read_device(checker, request.device)).decode(),
    )


def to_consent(consent: Consent) -> consent_pb2.Consent:
    """Consent as an answer has it."""
    device = orjson.loads(consent.device)
    return consent_pb2.Consent(
        is_given=consent.is_given,
        consent_time=to_timestamp(consent.consent_time) if consent.consent_time else None,
        withdraw_time=to_timestamp(consent.withdraw_time) if consent.withdraw_time else None,
        is_known=consent.is_known,
        device=consent_pb2.DeviceInfo(
            device_id=device.get("deviceId", ""),
            platform=device.get("platform", ""),
            application_name=device.get("applicationName", ""),
        )
        if device
        else None,
        record_time=to_timestamp(consent.record_time),
    )


def _read_device(checker: Checker, device: consent_pb2.DeviceInfo) -> dict[str, str]:
    read = {
        "deviceId": checker.text("device.device_id", device.device_id, max_bytes=DEVICE_ID_BYTES),
        "platform": checker.text("device.platform", device.platform, max_bytes=NAME_BYTES),
        "applicationName": checker.text("device.application_name", device.application_name, max_bytes=NAME_BYTES),
    }
    return {name: value for name, value in read.items() if value}


def _iso(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
