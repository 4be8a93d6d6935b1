"""Short ways to merge, link, undo and look, and a worker whose chunks a test steps through."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.device_pb2 import PLATFORM_APNS, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, ListDevicesRequest, RegisterDeviceRequest
from onefold.v1.identity_service_pb2 import (
    GetMergeRequest,
    GetProfileRequest,
    IdentifyRequest,
    Link,
    MergeProfilesRequest,
    MergeProfilesResponse,
    UndoMergeRequest,
    UndoMergeResponse,
    UpdateProfileRequest,
)
from onefold.v1.merge_pb2 import Merge
from onefold.v1.profile_pb2 import Identifiers, Profile
from support.client import Client
from support.world import World


def person(kind: str, name: str) -> Identifiers:
    """A person under the identifiers that a project of this type wants: email, user_id, or both."""
    return Identifiers(
        email=f"{name}@example.com" if kind != "USER_ID" else "", user_id=f"id-{name}" if kind != "EMAIL" else ""
    )


async def put(client: Client, who: Identifiers, fields: str = "{}") -> str:
    """Writes a profile; returns its id."""
    answer = await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=who, data_fields_json=fields))
    return answer.profile.profile_id


async def put_unknown(client: Client, world: World, who: Identifiers, fields: str = "{}") -> str:
    """Writes a visitor's profile; returns its id. No call of the API makes one yet, so the mark is set by hand."""
    profile_id = await put(client, who, fields)
    await world.fetch(
        "UPDATE profiles SET is_unknown = true WHERE project_id = $1 AND profile_id = $2 RETURNING 1",
        client.project_id,
        UUID(profile_id),
    )
    return profile_id


async def profile(client: Client, who: Identifiers) -> Profile:
    """A profile as it is now, its data fields as JSON text."""
    request = GetProfileRequest(identifiers=who, data_format=DATA_FORMAT_JSON)
    return (await client.identity.GetProfile(request)).profile


async def fields(client: Client, who: Identifiers) -> dict[str, Any]:
    """A profile's data fields."""
    value: dict[str, Any] = json.loads((await profile(client, who)).data_fields_json)
    return value


async def merge(
    client: Client, source: Identifiers, target: Identifiers, *, allow_known_source: bool = True, **request: Any
) -> MergeProfilesResponse:
    """Merges one person into another."""
    return await client.identity.MergeProfiles(
        MergeProfilesRequest(source=source, target=target, allow_known_source=allow_known_source, **request)
    )


async def undo(client: Client, merge_id: str, **request: Any) -> UndoMergeResponse:
    """Takes a merge back."""
    return await client.identity.UndoMerge(UndoMergeRequest(merge_id=merge_id, **request))


async def get_merge(client: Client, merge_id: str) -> Merge:
    """An entry of the ledger."""
    return (await client.identity.GetMerge(GetMergeRequest(merge_id=merge_id))).merge


async def identify(client: Client, who: Identifiers, anonymous_id: str) -> Link:
    """Links an anonymous_id to a person."""
    return (await client.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id=anonymous_id))).link


async def register(client: Client, who: Identifiers, token: str) -> None:
    """Registers a device."""
    device = NewDevice(token=token, platform=PLATFORM_APNS, application_name="app")
    await client.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=device))


async def disable(client: Client, token: str, who: Identifiers | None = None) -> None:
    """Switches a device off, for one profile or for everybody."""
    await client.devices.DisableDevice(DisableDeviceRequest(token=token, identifiers=who))


async def devices(client: Client, who: Identifiers) -> dict[str, bool]:
    """A profile's tokens, and whether each is enabled."""
    answer = await client.devices.ListDevices(ListDevicesRequest(identifiers=who, page_size=500))
    return {device.token: device.endpoint_enabled for device in answer.devices}


async def chunks(world: World, project_id: str) -> AsyncGenerator[None]:
    """Works off what is due now as a worker does, and stops after every chunk."""
    for intent_id in await world.due(project_id):
        lease = await world.take(project_id, intent_id)
        if lease is None:
            continue
        position = await world.chunk(lease)
        yield
        while position is not None:
            position = await world.chunk(lease, position)
            yield
