"""What visitors and people allowed (U8)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from onefold.activation.store import queries
from onefold.callers import Project
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, failed_precondition
from onefold.identity import links
from onefold.identity import store as identity
from onefold.identity.naming import Named, is_session_id
from onefold.identity.people import profile_not_found


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, when (None for now), and on which device (JSON text)."""

    decision_time: datetime | None
    is_withdrawn: bool
    is_known: bool
    device: str


@dataclass(frozen=True, slots=True)
class Consent:
    """Consent as it stands; device is JSON text."""

    consent_time: datetime | None
    withdraw_time: datetime | None
    is_known: bool
    device: str
    record_time: datetime

    @property
    def is_given(self) -> bool:
        """Whether it was given, and not taken back at that time or later."""
        return self.consent_time is not None and (self.withdraw_time is None or self.withdraw_time < self.consent_time)


def visitor_id(project: Project, holder: Named | str) -> UUID:
    """Under what the consent of somebody without a profile is kept."""
    if isinstance(holder, str):
        return links.subject_id(project.project_id, holder)
    return links.session_id(project.project_id, holder.user_id or "")


async def record(
    connection: Connection, project: Project, holder: Named | str, decision: Decision
) -> tuple[Consent, UUID | None]:
    """Records a decision of a person, of an unknown profile to come, or of an anonymous_id; returns what stands now,
    and the profile whose it is.

    Raises PROFILE_NOT_FOUND, IDENTIFIERS_CONFLICT, FORGOTTEN, and LostRaceError.
    """
    profile_id = None
    if not isinstance(holder, str):
        person = await identity.find_person(connection, project, holder, to_write=True)
        if person is not None and person.profile_id is not None:
            profile_id = person.profile_id
            # Held: whoever forgets the person finds the record, or is found out here.
            await identity.hold_profile(connection, project.project_id, profile_id)
        elif holder.email is not None or not is_session_id(holder.user_id):
            raise profile_not_found()
    row = await queries.record_consent.fetchrow(
        connection,
        project_id=project.project_id,
        holder_id=profile_id or visitor_id(project, holder),
        is_withdrawn=decision.is_withdrawn,
        is_known=decision.is_known,
        device=decision.device,
        is_profiles=profile_id is not None,
        decision_time=decision.decision_time,
    )
    assert row is not None  # an upsert returns its row
    return Consent(**dict(row)), profile_id


async def hold(connection: Connection, project_id: str, holder_ids: Collection[UUID]) -> set[UUID]:
    """Those of visitors who consented; none of them can take it back before the transaction has ended."""
    rows = await queries.hold_consents.fetch(connection, project_id=project_id, holder_ids=list(holder_ids))
    return {row["holder_id"] for row in rows}


async def give_to_profile(connection: Connection, project_id: str, holder_id: UUID, profile_id: UUID) -> None:
    """Lets the consent of a visitor be that of the profile that was made."""
    await queries.give_consent_to_profile.execute(
        connection, profile_id=profile_id, project_id=project_id, holder_id=holder_id
    )


def consent_required() -> OnefoldError:
    """The project wants consent and the visitor has not given it."""
    return failed_precondition(
        Reason.CONSENT_REQUIRED, "The visitor has not consented, and the project requires it (RecordConsent)."
    )
