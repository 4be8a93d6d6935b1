"""Free-form data as Python has it. As JSON text it keeps every integer; a Struct knows doubles only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from onefold.v1.event_pb2 import EVENT_KIND_CUSTOM, EventKind, NewEvent
from onefold.v1.profile_pb2 import Identifiers


def dump_data(data: Mapping[str, Any]) -> str:
    """The JSON text for a field such as `data_json`. ValueError for NaN and infinities, TypeError for other types."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def new_event(
    name: str,
    *,
    email: str = "",
    user_id: str = "",
    anonymous_id: str = "",
    data: Mapping[str, Any] | None = None,
    kind: EventKind.ValueType = EVENT_KIND_CUSTOM,
    event_id: str = "",
    event_time: datetime | None = None,
) -> NewEvent:
    """An event as Python has it: of a person by email or user_id, or of a visitor. The time must have a time zone."""
    event = NewEvent(name=name, anonymous_id=anonymous_id, kind=kind, event_id=event_id)
    if email or user_id:
        event.identifiers.CopyFrom(Identifiers(email=email, user_id=user_id))
    if data is not None:
        event.data_json = dump_data(data)
    if event_time is not None:
        if event_time.tzinfo is None:
            raise ValueError("event_time has no time zone")
        event.event_time.FromDatetime(event_time)
    return event


def load_data(message: Message) -> dict[str, Any]:
    """The data of an event, a profile or a device, in whichever form it came; empty if there is none."""
    for name in ("data_json", "data_fields_json"):
        if name in message.DESCRIPTOR.fields_by_name and message.HasField(name):
            loaded: dict[str, Any] = json.loads(getattr(message, name))
            return loaded
    for name in ("data", "data_fields"):
        if name in message.DESCRIPTOR.fields_by_name and message.HasField(name):
            return MessageToDict(getattr(message, name))
    return {}
