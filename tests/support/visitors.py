"""Short ways to make unknown profiles, replay what a client kept, and record consent."""

from __future__ import annotations

import json
from datetime import timedelta
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
from support.criteria import make_criterion, named
from support.world import World


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


async def watched(client: Client, world: World, root: dict[str, Any] | None = None) -> str:
    """Lets workers look at a project's visitors, for a criterion; returns its id. Default: two events named Viewed.

    It was switched on a while ago, so that all servers know.
    """
    await switch(client, server_side_activation=True)
    await world.pass_time(client.project_id, timedelta(minutes=1))
    return (await make_criterion(client, root or named("Viewed", minMatch=2))).criterion_id


async def view(client: Client, anonymous_id: str, count: int = 1, name: str = "Viewed") -> None:
    """A visitor's events, told one by one."""
    for _ in range(count):
        await client.track(anonymous_id=anonymous_id, name=name)


async def unknown_profiles(world: World, client: Client) -> list[str]:
    """The ids of a project's unknown profiles, oldest first."""
    rows = await world.fetch(
        "SELECT profile_id FROM profiles WHERE project_id = $1 AND is_unknown ORDER BY profile_id", client.project_id
    )
    return [str(row["profile_id"]) for row in rows]


async def activate(world: World, client: Client, anonymous_id: str) -> str:
    """Makes a visitor's unknown profile by the visitor's own events; returns its id."""
    await view(client, anonymous_id, 2)
    await world.work_off(client.project_id)
    profile_id = await world.value(
        "SELECT profile_id FROM identifiers WHERE project_id = $1 AND kind = 3 AND value = $2",
        client.project_id,
        anonymous_id,
    )
    assert profile_id is not None
    return str(profile_id)
