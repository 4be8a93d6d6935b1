"""The merge ledger and what a merge writes, in PostgreSQL. The caller owns the transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection, Queries, Record
from onefold.identity.links import OPEN_LINK
from onefold.identity.naming import IdentifierKind
from onefold.identity.store import Profile, to_profile_row

queries: Final = Queries("onefold.merges")


@dataclass(frozen=True, slots=True)
class MergeRow:
    """An entry of the ledger; snapshot is JSON text, None once it is gone."""

    merge_id: UUID
    kind: str
    target_profile_id: UUID
    source_profile_id: UUID | None
    anonymous_id: str | None
    origin_ids: list[UUID]
    create_time: datetime
    key_id: str
    snapshot: str | None
    source_email: str | None
    source_user_id: str | None
    source_fields: list[str]
    target_fields: list[str]
    merged_arrays: list[str]
    device_count: int
    settle_time: datetime | None
    undo_time: datetime | None
    event_count: int
    oldest_event_time: datetime | None
    # The database's clock when the entry was read.
    now: datetime


@dataclass(frozen=True, slots=True)
class Device:
    """A copy that the target had before the merge of a token that the source had too."""

    token: str
    platform: int
    application_name: str
    data_fields: str
    endpoint_enabled: bool
    operation_number: int
    # Whether the target had registered it itself.
    is_own: bool
    # The newest operation on either copy when they were merged: what came after it happened since.
    merged_operation_number: int
    update_time: datetime


async def lock_profiles(connection: Connection, project_id: str, ids: Sequence[UUID]) -> dict[UUID, Profile]:
    """Holds profiles, in order. LostRaceError if one of them is gone."""
    rows = await queries.lock_profiles.fetch(connection, project_id=project_id, profile_ids=list(ids))
    if len(rows) != len(set(ids)):
        raise LostRaceError
    return {row["profile_id"]: to_profile_row(row) for row in rows}


async def device_tokens(connection: Connection, project_id: str, profile_id: UUID) -> list[str]:
    """The tokens that a profile holds, sorted."""
    rows = await queries.device_tokens.fetch(connection, project_id=project_id, profile_id=profile_id)
    return [row["token"] for row in rows]


async def overlapping_devices(
    connection: Connection, project_id: str, source_id: UUID, target_id: UUID
) -> list[Device]:
    """The target's own copies of tokens that the source holds too."""
    rows = await queries.overlapping_devices.fetch(
        connection, source_id=source_id, project_id=project_id, target_id=target_id
    )
    return [
        Device(
            row["token"],
            row["platform"],
            row["application_name"],
            row["data_fields"],
            row["endpoint_enabled"],
            row["operation_number"],
            row["is_own"],
            row["merged_operation_number"],
            row["update_time"],
        )
        for row in rows
    ]


async def get_merge(connection: Connection, project_id: str, merge_id: UUID) -> MergeRow | None:
    """An entry of the ledger."""
    row = await queries.get_merge.fetchrow(connection, project_id=project_id, merge_id=merge_id)
    return _merge(row) if row else None


async def list_merges(
    connection: Connection, project_id: str, profile_id: UUID, before_id: UUID, count: int
) -> list[MergeRow]:
    """At most `count` merges that a profile took part in, newest first, before a certain one."""
    rows = await queries.list_merges.fetch(
        connection, project_id=project_id, profile_id=profile_id, before_id=before_id, count=count
    )
    return [_merge(row) for row in rows]


async def hand_over(
    connection: Connection, project_id: str, source_id: UUID, target_id: UUID, redirect_end_time: datetime | None
) -> None:
    """Lets all that leads to the source lead to the target, and gives the target the source's devices.

    The source's own email and user_id do so until redirect_end_time, None for ever.
    """
    await queries.copy_devices.execute(connection, target_id=target_id, project_id=project_id, source_ids=[source_id])
    await queries.drop_shared_identifiers.execute(
        connection,
        project_id=project_id,
        source_id=source_id,
        target_id=target_id,
        redirect_end_time=redirect_end_time,
    )
    await queries.hand_over_identifiers.execute(
        connection,
        target_id=target_id,
        source_id=source_id,
        redirect_end_time=redirect_end_time,
        project_id=project_id,
    )
    await queries.delete_profile.execute(connection, project_id=project_id, profile_id=source_id)


async def add_move(connection: Connection, project_id: str, source_id: UUID, target_id: UUID, merge_id: UUID) -> None:
    """Makes the source's events the target's, and what was on its way to the source."""
    await queries.hand_over_moves.execute(
        connection, target_id=target_id, merge_id=merge_id, project_id=project_id, source_id=source_id
    )
    await queries.add_merge_move.execute(
        connection, project_id=project_id, merge_id=merge_id, source_id=source_id, target_id=target_id
    )


async def write_profile(
    connection: Connection,
    project_id: str,
    profile_id: UUID,
    email: str | None,
    user_id: str | None,
    data_fields: str,
    *,
    is_unknown: bool,
    cart_event_time: datetime | None,
) -> None:
    """Writes what a merge, or its undoing, makes of a profile."""
    await queries.write_profile.execute(
        connection,
        email=email,
        user_id=user_id,
        data_fields=data_fields,
        is_unknown=is_unknown,
        cart_event_time=cart_event_time,
        project_id=project_id,
        profile_id=profile_id,
    )


async def tell_session(
    connection: Connection, project_id: str, source: Profile, owner_id: UUID, *, was_known: bool
) -> None:
    """Notes on the unknownSession event of an unknown profile, which is now the owner's, whether it was merged into a
    profile that was there before (U6)."""
    await queries.tell_session.execute(
        connection,
        was_known=was_known,
        project_id=project_id,
        source_id=source.profile_id,
        owner_id=owner_id,
        event_time=source.signup_time,
        event_id=str(source.profile_id),
    )


async def follow_visitor(connection: Connection, project_id: str, profile_id: UUID) -> None:
    """Lets links that a worker made follow the visitor again."""
    await queries.follow_visitor.execute(connection, open_link=OPEN_LINK, project_id=project_id, profile_id=profile_id)


async def own_identifier(
    connection: Connection, project_id: str, profile_id: UUID, kind: IdentifierKind, value: str
) -> None:
    """Makes an identifier that a merge left to a profile its own."""
    await queries.own_identifier.execute(
        connection, project_id=project_id, profile_id=profile_id, kind=kind, value=value
    )


async def find_later_merge(connection: Connection, project_id: str, target_id: UUID, merge_id: UUID) -> UUID | None:
    """A merge that took the target away after a certain one; None if there is none."""
    later: UUID | None = await queries.find_later_merge.fetchval(
        connection, project_id=project_id, target_id=target_id, merge_id=merge_id
    )
    return later


async def count_devices(connection: Connection, project_id: str, profile_id: UUID) -> int:
    """How many devices a profile holds."""
    count: int = await queries.count_devices.fetchval(connection, project_id=project_id, profile_id=profile_id)
    return count


async def device_numbers(
    connection: Connection, project_id: str, profile_id: UUID, tokens: Sequence[str]
) -> dict[str, int]:
    """The newest operations on those of a profile's copies whose tokens are asked for."""
    rows = await queries.device_numbers.fetch(
        connection, project_id=project_id, profile_id=profile_id, tokens=list(tokens)
    )
    return {row["token"]: row["operation_number"] for row in rows}


def _merge(row: Record) -> MergeRow:
    values: dict[str, Any] = {name: row[name] for name in MergeRow.__dataclass_fields__}
    return MergeRow(**values)
