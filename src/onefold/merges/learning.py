"""Learning who a visitor is, where the visitor has an unknown profile already (U5).

An anonymous_id that a worker linked to an unknown profile stands for a visitor, not for a person. Whoever it turns out
to be gets everything: the unknown profile is merged into the person, or renamed in place where nobody is there.
"""

from __future__ import annotations

from uuid import UUID

from onefold.callers import IdentifierType, Project
from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason
from onefold.identity import links
from onefold.identity import store as identity
from onefold.identity.naming import Named
from onefold.identity.rules import Call
from onefold.merges.merging import Wanted, merge

# What a merge says of a source that was an unknown profile a moment ago.
_OVERTAKEN = (Reason.KNOWN_SOURCE, Reason.PROFILE_NOT_FOUND)


async def learn_who(
    connection: Connection, project: Project, named: Named, call: Call, anonymous_id: str, key_id: str
) -> UUID | None:
    """Makes the unknown profile that an anonymous_id stands for the named person's; returns the ledger's entry.

    None, and nothing is done, if it stands for none, for the person already, or if the call may not make the person.
    Raises what `merge` raises, and LostRaceError.
    """
    profile_id = await links.find_unknown_holder(connection, project.project_id, anonymous_id)
    if profile_id is None:
        return None
    person = await identity.find_person(connection, project, named, to_write=True)
    if person is None and not _makes(project, named, call):
        return None
    if person is not None and person.profile_id == profile_id:
        return None
    try:
        merged = await merge(connection, project, Wanted(profile_id, named, [], False), key_id)
    except OnefoldError as error:
        if error.reason in _OVERTAKEN:
            raise LostRaceError from None
        raise
    return merged.merge_id


def _makes(project: Project, named: Named, call: Call) -> bool:
    """Whether the call would make the person (I7, I14); else it answers as it would without the anonymous_id."""
    if call.update_existing_only:
        return False
    return named.email is not None or project.identifier_type is not IdentifierType.EMAIL or call.prefer_user_id
