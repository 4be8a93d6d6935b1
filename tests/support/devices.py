"""Short ways to register, disable and list devices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.device_pb2 import PLATFORM_FCM, Device, Disable, NewDevice, Platform, TokenHolder
from onefold.v1.devices_service_pb2 import (
    DisableDeviceRequest,
    DisableDeviceResponse,
    GetDisableRequest,
    ListDevicesRequest,
    ListTokenHoldersRequest,
    RegisterBrowserTokenRequest,
    RegisterBrowserTokenResponse,
    RegisterDeviceRequest,
    RegisterDeviceResponse,
)
from onefold.v1.profile_pb2 import Identifiers
from support.client import Client, email
from support.world import World

# Either registration: both take the client, who it is for, the token, and fields of the request by name.
Register = Callable[..., Awaitable[RegisterDeviceResponse | RegisterBrowserTokenResponse]]


async def register(
    client: Client,
    identifiers: Identifiers,
    token: str = "T",
    platform: Platform.ValueType = PLATFORM_FCM,
    fields: str = "",
    application_name: str = "shop",
    **request: Any,
) -> RegisterDeviceResponse:
    """Registers a device for a person."""
    device = NewDevice(token=token, platform=platform, application_name=application_name)
    if fields:
        device.data_fields_json = fields
    answer: RegisterDeviceResponse = await client.devices.RegisterDevice(
        RegisterDeviceRequest(identifiers=identifiers, device=device, **request)
    )
    return answer


async def register_browser(
    client: Client, identifiers: Identifiers, token: str = "T", fields: str = "", **request: Any
) -> RegisterBrowserTokenResponse:
    """Registers a browser token for a person."""
    if fields:
        request["data_fields_json"] = fields
    answer: RegisterBrowserTokenResponse = await client.devices.RegisterBrowserToken(
        RegisterBrowserTokenRequest(identifiers=identifiers, browser_token=token, **request)
    )
    return answer


async def disable(client: Client, token: str = "T", **request: Any) -> DisableDeviceResponse:
    """Switches a token off, for `identifiers` or for everybody."""
    answer: DisableDeviceResponse = await client.devices.DisableDevice(DisableDeviceRequest(token=token, **request))
    return answer


async def get_disable(client: Client, disable_id: str) -> Disable:
    """How far a disable is."""
    answer = await client.devices.GetDisable(GetDisableRequest(disable_id=disable_id))
    return answer.disable


async def devices(client: Client, identifiers: Identifiers, page_size: int = 500) -> list[Device]:
    """All devices of a person, page after page."""
    found: list[Device] = []
    token = ""
    while True:
        page = await client.devices.ListDevices(
            ListDevicesRequest(
                identifiers=identifiers, data_format=DATA_FORMAT_JSON, page_size=page_size, page_token=token
            )
        )
        found.extend(page.devices)
        token = page.next_page_token
        if not token:
            return found


async def holders(client: Client, token: str = "T", page_size: int = 500) -> list[TokenHolder]:
    """All holders of a token, page after page."""
    found: list[TokenHolder] = []
    page_token = ""
    while True:
        page = await client.devices.ListTokenHolders(
            ListTokenHoldersRequest(token=token, page_size=page_size, page_token=page_token)
        )
        found.extend(page.holders)
        page_token = page.next_page_token
        if not page_token:
            return found


async def enabled(client: Client, token: str = "T") -> dict[str, bool]:
    """Whether each holder may be reached, as both reads tell it: they must agree."""
    told = {holder.identifiers.email: holder.device.endpoint_enabled for holder in await holders(client, token)}
    for address, is_enabled in list(told.items())[:5]:
        [own] = [device for device in await devices(client, email(address)) if device.token == token]
        assert own.endpoint_enabled is is_enabled
    return told


async def hold_token(world: World, project_id: str, count: int, token: str = "T") -> None:
    """Makes people p0, p1, ... who hold a token, registered before everything that follows."""
    await world.fetch(
        """
        WITH person AS (
            SELECT uuidv7() AS profile_id, 'p' || number || '@example.com' AS email
            FROM generate_series(0, $2::integer - 1) AS number
        ), profile AS (
            INSERT INTO profiles (project_id, profile_id, email, signup_source)
            SELECT $1, profile_id, email, 4 FROM person
        ), identifier AS (
            INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive)
            SELECT $1, 1, email, profile_id, true FROM person
        )
        INSERT INTO devices (project_id, profile_id, token, platform, application_name, endpoint_enabled,
                             operation_number, create_time, update_time)
        SELECT $1, profile_id, $3, 3, 'shop', true, nextval('operation_numbers'), now(), now() FROM person
        """,
        project_id,
        count,
        token,
    )
    # As autovacuum does within a minute: plans made while the tables were small are made anew.
    await world.fetch("ANALYZE devices, profiles, identifiers, token_disables")


async def hold_devices(world: World, project_id: str, profile_id: str, platform: int, count: int) -> None:
    """Gives a profile so many devices of a platform."""
    await world.fetch(
        """
        INSERT INTO devices (project_id, profile_id, token, platform, application_name, endpoint_enabled,
                             operation_number, create_time, update_time)
        SELECT $1, $2, $3::integer || '-' || number, $3, 'shop', true, nextval('operation_numbers'), now(), now()
        FROM generate_series(1, $4::integer) AS number
        """,
        project_id,
        UUID(profile_id),
        platform,
        count,
    )


def claim(client: Client, request_id: str) -> tuple[str, tuple[object, ...]]:
    """Holds a request_id open: a call that uses it has done all its work when it meets this row, and waits."""
    return (
        "INSERT INTO requests (project_id, request_id, body_hash, answer) VALUES ($1, $2, '', '')",
        (client.project_id, request_id),
    )
