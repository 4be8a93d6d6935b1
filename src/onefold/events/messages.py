"""The events' messages: reading what a caller tells, and telling what became of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, TypeAlias

import orjson
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from onefold.callers import Project
from onefold.errors import OnefoldError, invalid
from onefold.events.ingest import Accepted, Result
from onefold.events.rules import ITEMS_FIELDS, TOTAL_FIELD, Arrival, EventKind
from onefold.identity.messages import read_anonymous_id, read_identifiers, to_outcome
from onefold.identity.naming import Named, email_problem, fold_ascii
from onefold.limits import (
    EVENT_DATA_BYTES,
    EVENT_ID_CHARACTERS,
    EVENT_ITEMS,
    ITEM_ID_BYTES,
    ITEM_NAME_BYTES,
    NAME_BYTES,
)
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.payload import EMPTY, Payload, plain_number, read_json, read_struct
from onefold.rpc.status import to_item_error
from onefold.v1 import event_pb2, events_service_pb2

# Asked for once an event: the enums' own ways take a microsecond each.
_KNOWN_KINDS: Final = frozenset(event_pb2.EventKind.values())
_KINDS: Final = {int(kind): kind for kind in EventKind}
# The events of a batch share theirs. A message takes a copy of it.
_receive_time: Final = lru_cache(maxsize=16)(to_timestamp)

BatchResults: TypeAlias = RepeatedCompositeFieldContainer[events_service_pb2.BatchTrackResult]

# Identifiers as they were told, with prefer_user_id, and whom they name.
_Names: TypeAlias = dict[tuple[str, str, bool], Named]


def read_batch(project: Project, events: Iterable[event_pb2.NewEvent]) -> list[Arrival | OnefoldError]:
    """Checks the events of a batch, each for itself: the event, or what is wrong with it."""
    names: _Names = {}
    checker = Checker()
    read: list[Arrival | OnefoldError] = []
    for event in events:
        arrival = read_event(checker, project, event, names)
        if checker.violations:
            read.append(invalid(checker.violations))
            checker = Checker()
        else:
            read.append(arrival)
    return read


def read_event(checker: Checker, project: Project, event: event_pb2.NewEvent, names: _Names | None = None) -> Arrival:
    """Checks an event. `names` remembers those of a batch that were good: it tells many events of few people."""
    named = anonymous_id = None
    if event.HasField("identifiers"):
        named = _read_named(checker, project, event, {} if names is None else names)
    if event.anonymous_id:
        anonymous_id = read_anonymous_id(checker, project, "anonymous_id", event.anonymous_id)
    payload = _read_data(checker, event)
    recipient = _read_recipient(checker, event, payload) if named is None and anonymous_id is None else None
    kind = _KINDS.get(event.kind)
    if kind is None:
        checker.one_of("kind", event.kind, _KNOWN_KINDS)
        kind = EventKind.CUSTOM
    if event.items or event.HasField("total"):
        payload = _with_items(checker, event, kind, payload)
    name = checker.text("name", event.name, required=True, max_bytes=NAME_BYTES)
    event_id = checker.text("event_id", event.event_id, max_characters=EVENT_ID_CHARACTERS)
    event_time = checker.timestamp("event_time", event.event_time) if event.HasField("event_time") else None
    return Arrival(
        named,
        anonymous_id,
        name,
        kind,
        payload,
        event_id or None,
        event_time,
        event.prefer_user_id,
        event.update_existing_only,
        recipient,
        event.suppress_triggers,
    )


def check_recipient(checker: Checker, field: str, value: object) -> str:
    """Checks the address of an invite; returns it with its ASCII letters lower-cased."""
    recipient = fold_ascii(value) if isinstance(value, str) else ""
    problem = email_problem(recipient) if recipient else "must be an email address"
    if problem:
        checker.refuse(field, problem)
    return recipient


def to_result(accepted: Accepted) -> event_pb2.TrackResult:
    """What became of an event, as an answer has it."""
    result = event_pb2.TrackResult()
    _tell(result, accepted)
    return result


def _tell(result: event_pb2.TrackResult, accepted: Accepted) -> None:
    # Field by field, and where it is to stand: that spares a batch a copy of each.
    result.event_id = accepted.event_id
    result.receive_time.MergeFrom(_receive_time(accepted.receive_time))
    result.duplicate = accepted.duplicate
    if accepted.profile_outcome is not None:
        result.profile_outcome = to_outcome(accepted.profile_outcome)
    if accepted.profile_id is not None:
        result.profile_id = str(accepted.profile_id)


def fill_batch_results(results: BatchResults, read: Sequence[Arrival | OnefoldError], stored: Iterable[Result]) -> None:
    """Adds the results of a batch in its order: `stored` has one for each of its events that could be read."""
    remaining = iter(stored)
    add = results.add
    for item in read:
        result: Result = next(remaining) if isinstance(item, Arrival) else item
        if isinstance(result, OnefoldError):
            add().error.CopyFrom(to_item_error(result))
        else:
            _tell(add().result, result)


def _read_named(checker: Checker, project: Project, event: event_pb2.NewEvent, names: _Names) -> Named:
    identifiers, long_user_id = event.identifiers, event.prefer_user_id
    key = (identifiers.email, identifiers.user_id, long_user_id)
    known = names.get(key)
    if known is None:
        known = read_identifiers(checker, project, identifiers, long_user_id=long_user_id)
        if known.email or known.user_id:
            names[key] = known
    return known


def _read_data(checker: Checker, event: event_pb2.NewEvent) -> Payload:
    match event.WhichOneof("payload"):
        case "data":
            return read_struct(checker, "data", event.data, max_bytes=EVENT_DATA_BYTES)
        case "data_json":
            return read_json(checker, "data_json", event.data_json, max_bytes=EVENT_DATA_BYTES)
        case _:
            return EMPTY


def _read_recipient(checker: Checker, event: event_pb2.NewEvent, payload: Payload) -> str | None:
    """The address that an event of nobody was sent to, which is in its data (E6)."""
    form = event.WhichOneof("payload")
    if payload is EMPTY and form is not None:
        # The data was refused; what it would have said is not known.
        return None
    recipient = payload.value.get("recipient")
    if recipient is None or recipient == "":
        checker.refuse("identifiers", "is required unless anonymous_id or data.recipient is given")
        return None
    return check_recipient(checker, f"{form}.recipient", recipient)


def _with_items(checker: Checker, event: event_pb2.NewEvent, kind: EventKind, own: Payload) -> Payload:
    """The event's own data together with its typed items and total, where clients look for them (E7)."""
    form = event.WhichOneof("payload")
    refused_before = len(checker.violations)
    if event.items and kind not in ITEMS_FIELDS:
        checker.refuse("items", "belongs to purchases and cart updates only")
    if event.HasField("total") and kind is not EventKind.PURCHASE:
        checker.refuse("total", "belongs to purchases only")
    if len(event.items) > EVENT_ITEMS:
        checker.refuse("items", f"must have at most {EVENT_ITEMS} items")
    total = _read_number(checker, "total", event.total)
    items = [_read_commerce(checker, item, f"items[{index}]") for index, item in enumerate(event.items[:EVENT_ITEMS])]
    fields = {ITEMS_FIELDS[kind]} if kind in ITEMS_FIELDS else set()
    if kind is EventKind.PURCHASE:
        fields.add(TOTAL_FIELD)
    for field in sorted(fields & own.value.keys()):
        checker.refuse(f"{form}.{field}", "is told by items and total already")
    if len(checker.violations) > refused_before or (own is EMPTY and form is not None):
        return own
    told: dict[str, Any] = {TOTAL_FIELD: total} if event.HasField("total") else {}
    if items:
        told[ITEMS_FIELDS[kind]] = items
    text = orjson.dumps(told).decode()
    if own.value:
        # As text, so that the event's own data stays as it was told, with every digit.
        text = f"{text[:-1]},{own.text.lstrip()[1:]}"
    # All limits hold for the whole.
    return read_json(checker, "data", text, max_bytes=EVENT_DATA_BYTES)


def _read_commerce(checker: Checker, item: event_pb2.CommerceItem, path: str) -> dict[str, Any]:
    price = _read_number(checker, f"{path}.price", item.price)
    if price < 0:
        checker.refuse(f"{path}.price", "must not be negative")
    if item.quantity < 0:
        checker.refuse(f"{path}.quantity", "must not be negative")
    read = {
        "id": checker.text(f"{path}.id", item.id, required=True, max_bytes=ITEM_ID_BYTES),
        "name": item.name,
        "price": price,
        "quantity": item.quantity or 1,
    }
    # The shop's own text, printed as it is: more may stand in it than in a name that is compared.
    if not item.name:
        checker.refuse(f"{path}.name", "is required")
    elif "\0" in item.name:
        checker.refuse(f"{path}.name", "must not contain NUL")
    elif len(item.name.encode()) > ITEM_NAME_BYTES:
        checker.refuse(f"{path}.name", f"must have at most {ITEM_NAME_BYTES} bytes")
    if item.HasField("data"):
        read["dataFields"] = read_struct(checker, f"{path}.data", item.data, max_bytes=EVENT_DATA_BYTES).value
    return read


def _read_number(checker: Checker, field: str, number: float) -> float:
    if math.isfinite(number):
        return plain_number(number)
    checker.refuse(field, "must be a finite number")
    return 0
