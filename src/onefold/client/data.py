"""Free-form data as Python has it. As JSON text it keeps every integer; a Struct knows doubles only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def dump_data(data: Mapping[str, Any]) -> str:
    """The JSON text for a field such as `data_json`. ValueError for NaN and infinities, TypeError for other types."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


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
