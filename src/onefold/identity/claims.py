"""Who gets an identifier: the one place where its uniqueness is decided, by inserting it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias
from uuid import UUID

from onefold.callers import Project
from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection, Query
from onefold.identity.links import queries
from onefold.identity.naming import IdentifierKind
from onefold.identity.rules import forgotten_hashes

# An identifier that a profile is to have: kind, value, profile_id, and whether it can be one profile's only.
NewIdentifier: TypeAlias = tuple[IdentifierKind, str, UUID, bool]


async def claim_identifiers(connection: Connection, project: Project, new: Sequence[NewIdentifier]) -> None:
    """Gives identifiers to profiles.

    LostRaceError if somebody has one of them, or if one was forgotten, since they were looked up.
    """
    await claim(connection, project, new, queries.claim_identifiers)
    # ForgetProfile claims what it blocks, so whoever waited for it above sees it here, and nobody comes in between.
    hashes = forgotten_hashes(project, [(kind, value) for kind, value, _, _ in new])
    if await queries.any_forgotten.fetchval(connection, project_id=project.project_id, hashes=hashes):
        raise LostRaceError


async def claim(connection: Connection, project: Project, new: Sequence[NewIdentifier], statement: Query) -> None:
    """The same by a statement of the caller's choice, and with nothing looked up about forgetting."""
    kinds, values, profile_ids, exclusive = map(list, zip(*new, strict=True))
    claims = {"kinds": kinds, "values": values, "profile_ids": profile_ids, "exclusive": exclusive}
    claimed = await statement.execute(connection, project_id=project.project_id, **claims)
    if claimed != len(new):
        # One that a merge left to somebody, and whose time is over, is free.
        if await release_redirects(connection, project, [key[:3] for key in new]):
            claimed += await queries.claim_identifiers.execute(connection, project_id=project.project_id, **claims)
        if claimed != len(new):
            # Somebody committed one of them first; from the start again, the look-up finds theirs.
            raise LostRaceError


async def release_redirects(
    connection: Connection, project: Project, keys: Sequence[tuple[IdentifierKind, str, UUID | None]]
) -> int:
    """Frees identifiers (kind, value, who wants it) that a merge left to somebody and whose time is over, or that it
    left to the one who wants it; returns how many.
    """
    kinds, values, profile_ids = map(list, zip(*keys, strict=True))
    return await queries.release_redirects.execute(
        connection, kinds=kinds, values=values, profile_ids=profile_ids, project_id=project.project_id
    )
