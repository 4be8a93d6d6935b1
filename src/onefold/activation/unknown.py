"""Making the unknown profile of a visitor, with the event that tells of it (U3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from onefold.activation import consents, store
from onefold.callers import Project
from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, already_exists, failed_precondition
from onefold.events.ingest import ingest
from onefold.events.rules import Arrival, EventKind
from onefold.identity import links
from onefold.identity import store as identity
from onefold.identity.naming import Named
from onefold.identity.people import Written, write_profile
from onefold.identity.rules import Call, Outcome, Person, SignupSource
from onefold.rpc.payload import Payload

UNKNOWN_SESSION: Final = "unknownSession"
# In an EMAIL project under a generated placeholder (I8); elsewhere the flag says nothing.
MAKE_UNKNOWN: Final = Call(SignupSource.ACTIVATION, prefer_user_id=True)


@dataclass(frozen=True, slots=True)
class Session:
    """A visitor as a client kept it: the UUID, the criterion that matched, and what the event is to say."""

    user_id: str
    criterion_id: UUID | None
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a visitor: the profile, whether it is an unknown one, and the event ("" if it is another's)."""

    written: Written
    is_unknown: bool
    event_id: str


async def make_unknown(
    connection: Connection, project: Project, session: Session, data_fields: dict[str, object]
) -> Made:
    """Makes a visitor's profile, unless the UUID leads to one already.

    Raises IDENTIFIER_TAKEN, CRITERIA_STALE, CONSENT_REQUIRED, what `write_profile` raises, and LostRaceError.
    """
    project_id = project.project_id
    named = Named(None, session.user_id)
    person = await identity.find_person(connection, project, named, to_write=True)
    if person is not None:
        return await _found(connection, project_id, session.user_id, person)
    if session.criterion_id is not None and not await store.hold_criteria(
        connection, project_id, [session.criterion_id]
    ):
        raise failed_precondition(
            Reason.CRITERIA_STALE, "The criterion does not exist any more. List the criteria and evaluate again."
        )
    holder_id = links.session_id(project_id, session.user_id)
    if project.settings.require_consent and not await consents.hold(connection, project_id, [holder_id]):
        raise consents.consent_required()
    written = await write_profile(connection, project, named, MAKE_UNKNOWN, data_fields=data_fields)
    if written.outcome is not Outcome.CREATED or written.person is None or written.person.profile_id is None:
        # Somebody with this user_id came in between.
        raise LostRaceError
    profile_id = written.person.profile_id
    await consents.give_to_profile(connection, project_id, holder_id, profile_id)
    await tell_sessions(connection, project, [(session.user_id, profile_id, session.data)])
    return Made(written, True, str(profile_id))


async def tell_sessions(
    connection: Connection, project: Project, sessions: Sequence[tuple[str, UUID, dict[str, Any]]]
) -> None:
    """Stores the unknownSession events of profiles that this transaction makes, each with its user_id and its data.

    They are taken in as any event is. Each has a key that can be told from its profile: it happens at the moment of the
    signup, under the profile's id.
    """
    now: datetime = await store.queries.this_moment.fetchval(connection)
    arrivals = [
        Arrival(
            Named(None, user_id),
            None,
            UNKNOWN_SESSION,
            EventKind.CUSTOM,
            Payload(data, orjson.dumps(data).decode()),
            str(profile_id),
            now,
        )
        for user_id, profile_id, data in sessions
    ]
    for result in await ingest(connection, project, arrivals):
        if isinstance(result, OnefoldError):
            raise result


async def _found(connection: Connection, project_id: str, user_id: str, person: Person) -> Made:
    """The answer where the UUID leads to somebody."""
    profile = person.profile_id and await identity.get_profile(connection, project_id, person.profile_id)
    if not profile:
        raise LostRaceError
    written = Written.of(person, Outcome.UNCHANGED)
    if profile.user_id != user_id:
        # The visitor turned out to be this person.
        return Made(written, profile.is_unknown, "")
    if not profile.is_unknown and profile.signup_source is not SignupSource.ACTIVATION:
        raise already_exists(Reason.IDENTIFIER_TAKEN, "The user_id is a known person's.", kind="user_id")
    return Made(written, profile.is_unknown, str(profile.profile_id))
