"""The links of anonymous ids to people, and what stands for a visitor where profiles have an id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection, Queries, Record
from onefold.limits import ANONYMOUS_LIFETIME, LINK_GRACE

queries: Final = Queries("onefold.identity")

# The grace of an id that a worker linked to an unknown profile: until it is known who it is, as good as for ever.
OPEN_LINK: Final = timedelta(days=50 * 365)


@dataclass(frozen=True, slots=True)
class LinkRow:
    """An anonymous_id's link to a person: its ledger entry, when it was made, and when its grace ends."""

    profile_id: UUID
    merge_id: UUID
    origin_id: UUID
    link_time: datetime
    grace_end_time: datetime

    @property
    def follows_visitor(self) -> bool:
        """Whether a worker made it for an unknown profile, and it is not known yet who the visitor is."""
        return self.grace_end_time - self.link_time > LINK_GRACE


async def claim_link(
    connection: Connection,
    project_id: str,
    anonymous_id: str,
    profile_id: UUID,
    key_id: str,
    grace: timedelta = LINK_GRACE,
) -> tuple[LinkRow, bool]:
    """Links an anonymous_id to a person unless it is linked; returns the link that stands, and if it is new."""
    row = await queries.claim_link.fetchrow(
        connection,
        project_id=project_id,
        anonymous_id=anonymous_id,
        profile_id=profile_id,
        grace=grace,
        subject_id=subject_id(project_id, anonymous_id),
        lifetime=ANONYMOUS_LIFETIME,
        key_id=key_id,
    )
    if row is not None:
        return to_link(row, subject_id(project_id, anonymous_id)), True
    standing = await find_link(connection, project_id, anonymous_id)
    if standing is None:
        # It was freed between the two statements.
        raise LostRaceError
    return standing, False


async def find_link(connection: Connection, project_id: str, anonymous_id: str) -> LinkRow | None:
    """Whose an anonymous_id is; None while it is nobody's."""
    row = await queries.find_link.fetchrow(connection, project_id=project_id, anonymous_id=anonymous_id)
    return to_link(row, subject_id(project_id, anonymous_id)) if row else None


async def find_unknown_holder(connection: Connection, project_id: str, anonymous_id: str) -> UUID | None:
    """The unknown profile that an anonymous_id stands for; None if there is none."""
    profile_id: UUID | None = await queries.find_unknown_holder.fetchval(
        connection, project_id=project_id, anonymous_id=anonymous_id
    )
    return profile_id


async def settle_links(connection: Connection, project_id: str, profile_id: UUID) -> None:
    """Lets links that followed a visitor end after the grace, because it is known now who it is."""
    await queries.settle_links.execute(connection, project_id=project_id, profile_id=profile_id, grace=LINK_GRACE)


def session_id(project_id: str, user_id: str) -> UUID:
    """What stands for an unknown profile that is not made yet, where profiles and visitors have an id."""
    # No anonymous_id holds a NUL, so no visitor's id is made of the same text.
    return subject_id(project_id, f"session\0{user_id}")


def subject_id(project_id: str, anonymous_id: str) -> UUID:
    """The key of an anonymous_id's events: 16 bytes of SHA-256, so that no id can be made to meet another's."""
    return UUID(bytes=hashlib.sha256(f"{project_id}\0{anonymous_id}".encode()).digest()[:16])


def to_link(row: Record, subject: UUID) -> LinkRow:
    return LinkRow(row["profile_id"], row["merge_id"], subject, row["link_time"], row["grace_end_time"])
