"""Forgetting a person, as one short transaction whatever the number of events: unseen at commit, erased after.

The identifiers that identify are blocked by keyed hashes. Whoever is about to create the person at the same moment
either committed before, and is found, or waits for the identifier and then finds it blocked.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from onefold.activity import store as activity
from onefold.callers import Project
from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection, Queries
from onefold.devices.store import lock_token
from onefold.events.store import recipient_id
from onefold.identity import claims
from onefold.identity import store as identity
from onefold.identity.links import session_id, subject_id
from onefold.identity.naming import IdentifierKind, Named
from onefold.identity.rules import forgotten_hash, is_exclusive, wanted_identifiers
from onefold.intents import store as intents
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent

queries: Final = Queries("onefold.forgetting")


@dataclass(frozen=True, slots=True)
class Blocked:
    """An identifier that must not come back."""

    hash: bytes
    kind: IdentifierKind
    forget_time: datetime


@dataclass(frozen=True, slots=True)
class Forgot:
    """What forgetting did: whether there was a profile, what is blocked now, and the work it left."""

    profile_existed: bool
    blocked: list[Blocked]
    intents: list[Intent]


async def forget(connection: Connection, project: Project, named: Named) -> Forgot:
    """Forgets whom the identifiers name, and blocks them; effective at commit. LostRaceError as all writers."""
    keys = wanted_identifiers(project.identifier_type, named)
    found = await identity.find(connection, project, keys)
    person = found.directory.find(named)
    hashes = _hashes(project, keys)
    free = [key for key in keys if key not in found.directory.holders and forgotten_hash(project, *key) is not None]
    if free and not all(key in found.directory.forgotten for key in free):
        await _hold(connection, project, free)
    left: list[Intent] = []
    if named.user_id is not None:
        # Nobody need be there: a visitor may have consented to a profile that was never made.
        session = session_id(project.project_id, named.user_id)
        await queries.delete_activation.execute(connection, project_id=project.project_id, holder_ids=[session])
        await queries.delete_answers.execute(connection, project_id=project.project_id, profile_ids=[session])
    if person is not None and person.profile_id is not None:
        # Held first: what a merge or a renaming that is just being committed gave the person is to be blocked too.
        await identity.lock_data_fields(connection, project.project_id, person)
        hashes |= await identifying_hashes(connection, project, person.profile_id)
        left = await erase(connection, project, person.profile_id, for_good=True)
    # An address that was forgotten before has its erasure already, and cannot have got anything since.
    unheld = [value for kind, value in free if kind is IdentifierKind.EMAIL]
    unheld = [value for value in unheld if (IdentifierKind.EMAIL, value) not in found.directory.forgotten]
    left += await _erase_invites(connection, project, unheld, for_good=True)
    await queries.block.execute(
        connection,
        project_id=project.project_id,
        forget_id=await queries.new_forget_id.fetchval(connection),
        hashes=list(hashes),
        kinds=list(hashes.values()),
    )
    if free:
        await queries.let_identifiers_go.execute(connection, project_id=project.project_id)
    rows = await queries.find_blocked.fetch(connection, project_id=project.project_id, hashes=list(hashes))
    blocked = [Blocked(row["hash"], IdentifierKind(row["kind"]), row["forget_time"]) for row in rows]
    return Forgot(person is not None, blocked, left)


async def unforget(connection: Connection, project: Project, named: Named) -> int:
    """Lets identifiers be used again, with those that were forgotten together with them; returns how many."""
    project_id = project.project_id
    hashes = _hashes(project, wanted_identifiers(project.identifier_type, named))
    rows = await queries.unblock.fetch(connection, project_id=project_id, hashes=list(hashes))
    unblocked = {row["hash"] for row in rows}
    # What is sent to the address from now on stays.
    erasing = await queries.endless_erasures.fetch(connection, project_id=project_id)
    await queries.end_erasures.execute(
        connection,
        project_id=project_id,
        move_ids=[
            row["move_id"]
            for row in erasing
            if forgotten_hash(project, IdentifierKind.EMAIL, row["container_recipient"]) in unblocked
        ],
    )
    return len(unblocked)


async def list_forgotten(connection: Connection, project_id: str, after_hash: bytes, count: int) -> list[Blocked]:
    """At most `count` blocked identifiers whose hashes come after one, by hash."""
    rows = await queries.list_forgotten.fetch(connection, project_id=project_id, after_hash=after_hash, count=count)
    return [Blocked(row["hash"], IdentifierKind(row["kind"]), row["forget_time"]) for row in rows]


async def erase(connection: Connection, project: Project, profile_id: UUID, *, for_good: bool = False) -> list[Intent]:
    """Takes a person out of every read, and leaves the erasing of the events and of the activity log to a worker.

    `for_good`: the identifiers that identify are being blocked in the same transaction. It is noted in the log.
    """
    project_id = project.project_id
    if await queries.lock_profile.fetchval(connection, project_id=project_id, profile_id=profile_id) is None:
        raise LostRaceError
    owned = await queries.identifiers_of.fetch(connection, project_id=project_id, profile_id=profile_id)
    merged = await queries.merged_profiles.fetch(connection, project_id=project_id, profile_id=profile_id)
    everything = [profile_id, *(row["origin_id"] for row in merged)]
    subjects = [subject_id(project_id, row["value"]) for row in owned if row["kind"] == IdentifierKind.ANONYMOUS_ID]
    sessions = [session_id(project_id, row["value"]) for row in owned if row["kind"] == IdentifierKind.USER_ID]
    await queries.delete_activation.execute(
        connection, project_id=project_id, holder_ids=[*everything, *subjects, *sessions]
    )
    await queries.delete_identifiers.execute(connection, project_id=project_id, profile_id=profile_id)
    await queries.delete_profile.execute(connection, project_id=project_id, profile_id=profile_id)
    rows = await queries.delete_devices.fetch(connection, project_id=project_id, profile_ids=everything)
    tokens = sorted({row["token"] for row in rows})
    for token in tokens:
        # A disable for everybody that is being committed is waited for, and goes too.
        await lock_token(connection, project_id, token, shared=True)
    await queries.delete_disables.execute(connection, project_id=project_id, tokens=tokens)
    await queries.delete_token_notes.execute(connection, project_id=project_id, tokens=tokens)
    await queries.delete_answers.execute(
        connection, project_id=project_id, profile_ids=[*everything, *subjects, *sessions]
    )
    # Moves before the ledger: the order in which a worker's chunk takes them.
    await queries.disown_moves.execute(connection, project_id=project_id, profile_id=profile_id)
    await queries.empty_ledger.execute(connection, project_id=project_id, profile_ids=everything)
    await queries.empty_undone.execute(
        connection,
        project_id=project_id,
        anonymous_ids=[row["value"] for row in owned if row["kind"] == IdentifierKind.ANONYMOUS_ID],
    )
    await activity.note_forgotten(connection, project_id, profile_id, blocked=for_good)
    rows = await queries.add_erasures.fetch(
        connection,
        project_id=project_id,
        profile_ids=[profile_id, *(None for _ in subjects)],
        subject_ids=[None, *subjects],
    )
    left = [Intent(project_id, row["move_id"], IntentKind.MOVE) for row in rows]
    for intent in left:
        await intents.add(connection, intent)
    emails = [row["value"] for row in owned if row["kind"] == IdentifierKind.EMAIL]
    return left + await _erase_invites(connection, project, emails, for_good=for_good)


async def _erase_invites(
    connection: Connection, project: Project, emails: list[str], *, for_good: bool
) -> list[Intent]:
    """Takes the invites sent to addresses out of every read, and leaves the erasing to a worker.

    Where an address is blocked, whatever is still on its way goes too; else, what was received until now, unless
    somebody else has the address.
    """
    if not emails:
        return []
    project_id = project.project_id
    rows = await queries.add_invite_erasures.fetch(
        connection,
        project_id=project_id,
        recipients=emails,
        blocked=for_good and is_exclusive(project.identifier_type, IdentifierKind.EMAIL),
    )
    await queries.delete_answers.execute(
        connection,
        project_id=project_id,
        profile_ids=[recipient_id(project_id, row["container_recipient"]) for row in rows],
    )
    left = [Intent(project_id, row["move_id"], IntentKind.ERASE_INVITES) for row in rows]
    for intent in left:
        await intents.add(connection, intent)
    return left


async def identifying_hashes(connection: Connection, project: Project, profile_id: UUID) -> dict[bytes, IdentifierKind]:
    """The hashes of everything that identifies a person, the names that merges left included."""
    rows = await queries.identifiers_of.fetch(connection, project_id=project.project_id, profile_id=profile_id)
    return _hashes(project, [(IdentifierKind(row["kind"]), row["value"]) for row in rows])


def _hashes(project: Project, keys: list[tuple[IdentifierKind, str]]) -> dict[bytes, IdentifierKind]:
    hashes = {}
    for kind, value in keys:
        hashed = forgotten_hash(project, kind, value)
        if hashed is not None:
            hashes[hashed] = kind
    return hashes


async def _hold(connection: Connection, project: Project, keys: list[tuple[IdentifierKind, str]]) -> None:
    await claims.release_redirects(connection, project, [(kind, value, None) for kind, value in keys])
    held = await queries.hold_identifiers.execute(
        connection,
        project_id=project.project_id,
        kinds=[kind for kind, _ in keys],
        values=[value for _, value in keys],
    )
    if held != len(keys):
        # Somebody was created meanwhile; from the start again, the look-up finds them.
        raise LostRaceError
