"""Switching off every holder's copy of a token.

The disable took effect when DisableDevice committed; this only writes what reads work out already. Registrations
exclude the disable by the token's lock and take their number under it, so there are no stragglers: one pass is enough.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from onefold.db.queries import Connection, Queries
from onefold.intents import store as intents
from onefold.intents.store import Lease

queries: Final = Queries("onefold.workflows")

CHUNK_COPIES: Final = 5_000
_FIRST: Final = UUID(int=0)


async def disable_chunk(connection: Connection, lease: Lease, position: UUID | None) -> UUID | None:
    """One transaction's worth of work; returns the profile to go on after, or None when the intent is finished.

    Safe to run again from the start at any time: a copy that is off is not counted again. Raises LeaseLostError.
    """
    await intents.renew(connection, lease)
    project_id, disable_id = lease.intent.project_id, lease.intent.intent_id
    switched = await queries.disable_chunk.fetchrow(
        connection,
        project_id=project_id,
        disable_id=disable_id,
        after_profile_id=position or _FIRST,
        count=CHUNK_COPIES,
    )
    assert switched is not None  # a SELECT without FROM returns one row
    last: UUID | None = switched["last_profile_id"]
    if switched["disabled_count"]:
        await intents.note_progress(connection, lease, switched["disabled_count"])
    await queries.count_disabled.execute(
        connection,
        disabled_count=switched["disabled_count"],
        is_last=last is None,
        project_id=project_id,
        disable_id=disable_id,
    )
    if last is None:
        await intents.finish(connection, lease)
    return last
