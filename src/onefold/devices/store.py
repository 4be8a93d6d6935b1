"""Devices in PostgreSQL. Typed functions over queries.sql; the caller owns the transaction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from onefold.db.queries import Connection, Queries, Record
from onefold.devices.rules import Copy, Platform

queries: Final = Queries("onefold.devices")


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A profile's copy as reads see it; data_fields is JSON text."""

    profile_id: UUID
    token: str
    platform: Platform
    application_name: str
    data_fields: str
    endpoint_enabled: bool
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class HolderRow:
    """A holder of a token: how the profile is named, and its copy."""

    email: str | None
    user_id: str | None
    device: DeviceRow


@dataclass(frozen=True, slots=True)
class DisableRow:
    """A disable of all copies of a token; finish_time is None while a worker still writes them."""

    disable_id: UUID
    token: str
    disabled_count: int
    create_time: datetime
    finish_time: datetime | None


async def lock_token(connection: Connection, project_id: str, token: str, *, shared: bool) -> None:
    """Orders a token's registrations (shared) and disables for everybody until the end of the transaction."""
    digest = hashlib.blake2b(f"token\0{project_id}\0{token}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "big", signed=True)
    await (queries.lock_token_shared if shared else queries.lock_token).execute(connection, key=key)


async def find_copy(connection: Connection, project_id: str, profile_id: UUID, token: str) -> Copy | None:
    """A profile's copy of a device; None if it has none."""
    row = await queries.find_copy.fetchrow(connection, project_id=project_id, token=token, profile_id=profile_id)
    if row is None:
        return None
    return Copy(Platform(row["platform"]), row["application_name"], row["data_fields"], row["endpoint_enabled"])


async def count_devices(connection: Connection, project_id: str, profile_id: UUID, *, browser: bool) -> int:
    """How many browser tokens, or how many other devices, a profile holds."""
    count: int = await queries.count_devices.fetchval(
        connection, project_id=project_id, profile_id=profile_id, browser=browser
    )
    return count


async def put_copy(connection: Connection, project_id: str, profile_id: UUID, token: str, copy: Copy) -> None:
    """Writes a registered copy. The token must be locked."""
    await queries.put_copy.execute(
        connection,
        project_id=project_id,
        profile_id=profile_id,
        token=token,
        platform=copy.platform,
        application_name=copy.application_name,
        data_fields=copy.data_fields,
    )


async def renew_copy(connection: Connection, project_id: str, profile_id: UUID, token: str) -> None:
    """Notes a registration that leaves an enabled copy as it is. The token must be locked."""
    await queries.renew_copy.execute(connection, project_id=project_id, profile_id=profile_id, token=token)


async def disable_copy(connection: Connection, project_id: str, profile_id: UUID, token: str) -> None:
    """Switches one profile's copy off; of one that is off, as reads see it, it notes the disable. The token must be
    locked."""
    await queries.disable_copy.execute(connection, project_id=project_id, profile_id=profile_id, token=token)


async def token_is_held(connection: Connection, project_id: str, token: str) -> bool:
    """Whether anybody holds a token."""
    held: bool = await queries.token_is_held.fetchval(connection, project_id=project_id, token=token)
    return held


async def others_hold_token(connection: Connection, project_id: str, token: str, profile_id: UUID) -> bool:
    """Whether a disable would reach anybody's copy but one profile's. The token must be locked exclusively."""
    held: bool = await queries.others_hold_token.fetchval(
        connection, project_id=project_id, token=token, profile_id=profile_id
    )
    return held


async def add_disable(connection: Connection, project_id: str, token: str) -> DisableRow:
    """Disables a token for everybody, effective at commit. The token must be locked exclusively."""
    row = await queries.add_disable.fetchrow(connection, project_id=project_id, token=token)
    assert row is not None  # an INSERT of one row returns one row
    return _disable(row)


async def find_disable(connection: Connection, project_id: str, disable_id: UUID) -> DisableRow | None:
    """A disable by its id."""
    row = await queries.find_disable.fetchrow(connection, project_id=project_id, disable_id=disable_id)
    return _disable(row) if row else None


async def list_devices(
    connection: Connection, project_id: str, profile_id: UUID, after_token: str, count: int
) -> list[DeviceRow]:
    """At most `count` devices of a profile whose tokens come after one, by token."""
    rows = await queries.list_devices.fetch(
        connection, project_id=project_id, profile_id=profile_id, after_token=after_token, count=count
    )
    return [_device(row) for row in rows]


async def list_token_holders(
    connection: Connection, project_id: str, token: str, after_profile_id: UUID, count: int
) -> list[HolderRow]:
    """At most `count` holders of a token whose profile ids come after one, oldest profile first."""
    rows = await queries.list_token_holders.fetch(
        connection, project_id=project_id, token=token, after_profile_id=after_profile_id, count=count
    )
    return [HolderRow(row["email"], row["user_id"], _device(row)) for row in rows]


def _device(row: Record) -> DeviceRow:
    return DeviceRow(
        row["profile_id"],
        row["token"],
        Platform(row["platform"]),
        row["application_name"],
        row["data_fields"],
        row["endpoint_enabled"],
        row["create_time"],
        row["update_time"],
    )


def _disable(row: Record) -> DisableRow:
    return DisableRow(row["disable_id"], row["token"], row["disabled_count"], row["create_time"], row["finish_time"])
