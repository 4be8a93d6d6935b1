"""Short ways to make unknown profiles, replay what a client kept, and record consent."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

from onefold.v1.activation_service_pb2 import (
    CreateUnknownProfileRequest,
    CreateUnknownProfileResponse,
    RecordConsentRequest,
    RecordConsentResponse,
    ReplayItem,
    ReplayRequest,
    ReplayResponse,
    ReplayUpdate,
)
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.event_pb2 import Event, NewEvent
from onefold.v1.profile_pb2 import Identifiers
from onefold.v1.projects_service_pb2 import UpdateProjectRequest
from support.client import Client


async def switch(client: Client, **settings: Any) -> None:
    """Switches settings of the project."""
    await client.projects.UpdateProject(UpdateProjectRequest(**settings))


async def make_unknown(client: Client, user_id: str = "", **request: Any) -> CreateUnknownProfileResponse:
    """Makes the unknown profile of a visitor, under a fresh UUID unless one is given."""
    return await client.activation.CreateUnknownProfile(
        CreateUnknownProfileRequest(user_id=user_id or str(uuid4()), **request)
    )


async def sessions(client: Client, **subject: Any) -> list[dict[str, Any]]:
    """What the unknownSession events of a timeline say, newest first."""
    events: list[Event] = await client.timeline(names=["unknownSession"], data_format=DATA_FORMAT_JSON, **subject)
    return [json.loads(event.data_json) for event in events]


def event(**told: Any) -> ReplayItem:
    """An event to replay."""
    return ReplayItem(event=NewEvent(**told))


def change(fields: str, **told: Any) -> ReplayItem:
    """An update to replay."""
    return ReplayItem(update=ReplayUpdate(data_fields_json=fields, **told))


async def replay(client: Client, who: Identifiers, *items: ReplayItem, **request: Any) -> ReplayResponse:
    """Replays what a client kept."""
    return await client.activation.Replay(ReplayRequest(identifiers=who, items=items, **request))


async def consent(client: Client, **request: Any) -> RecordConsentResponse:
    """Records a decision."""
    return await client.activation.RecordConsent(RecordConsentRequest(**request))
