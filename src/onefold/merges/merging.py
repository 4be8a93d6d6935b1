"""Merging one person into another, as one short transaction whatever the number of events."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from onefold.callers import IdentifierType, Project
from onefold.db.queries import Connection
from onefold.devices.store import lock_token
from onefold.errors import Reason, exhausted, failed_precondition
from onefold.events.rules import CART_FIELD
from onefold.identity import claims, links
from onefold.identity import store as identity
from onefold.identity.naming import IdentifierKind, Named, is_placeholder
from onefold.identity.people import profile_not_found
from onefold.identity.rules import Person, is_exclusive, wanted_identifiers
from onefold.identity.store import Profile
from onefold.intents import store as intents
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent
from onefold.limits import DATA_FIELDS_BYTES
from onefold.merges import store
from onefold.merges.rules import KNOWN_REDIRECT, ArrayMerge, MergedFields, merge_profiles


class Outcome(enum.IntEnum):
    """What a merge did; the numbers are those of MergeOutcome in the protos."""

    MERGED = 1
    CONVERTED = 2
    SAME_PROFILE = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """A merge as asked for. A source that is known already comes by its id: its names may lead to somebody else."""

    source: Named | UUID
    target: Named
    array_merges: Sequence[ArrayMerge]
    allow_known_source: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a merge does: to whom, and what the survivor will be. `target` is None for a conversion."""

    outcome: Outcome
    source: Profile
    target: Profile | None
    survivor: Profile
    merged: MergedFields
    now: datetime


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did: the survivor as it is now, and the ledger's entry (None for SAME_PROFILE)."""

    outcome: Outcome
    survivor: Profile
    merge_id: UUID | None
    intent: Intent | None


async def plan(connection: Connection, project: Project, wanted: Wanted, *, lock: bool) -> Plan:
    """Works out a merge without writing. With `lock`, the profiles are held until the end of the transaction.

    Raises PROFILE_NOT_FOUND, IDENTIFIERS_CONFLICT, FORGOTTEN, KNOWN_SOURCE, ARRAY_NOT_MERGEABLE, DATA_FIELDS_LIMIT, and
    LostRaceError.
    """
    names = [name for name in (wanted.source, wanted.target) if isinstance(name, Named)]
    keys = [key for name in names for key in wanted_identifiers(project.identifier_type, name)]
    found = await identity.find(connection, project, keys)
    for name in names:
        found.directory.refuse_forgotten(name)
    source_id = wanted.source
    if isinstance(source_id, Named):
        source_person = found.directory.find(source_id)
        if source_person is None:
            raise profile_not_found()
        source_id = source_person.profile_id
    target_person = found.directory.find(wanted.target)
    ids = [source_id, *([target_person.profile_id] if target_person else [])]
    profiles = await _profiles(connection, project, ids, lock=lock)
    source = profiles[source_id]
    if target_person is not None and target_person.profile_id == source_id:
        return Plan(Outcome.SAME_PROFILE, source, source, source, MergedFields({}, [], [], []), found.now)
    if not source.is_unknown and not wanted.allow_known_source:
        raise failed_precondition(
            Reason.KNOWN_SOURCE, "The source is a known profile; merging it needs allow_known_source."
        )
    if target_person is None or target_person.profile_id is None:
        merged = MergedFields(orjson.loads(source.data_fields), [], [], [])
        survivor = _converted(project, source, wanted.target)
        return Plan(Outcome.CONVERTED, source, None, survivor, merged, found.now)
    target = profiles[target_person.profile_id]
    merged = merge_profiles(orjson.loads(source.data_fields), orjson.loads(target.data_fields), wanted.array_merges)
    encoded = orjson.dumps(merged.fields)
    if len(encoded) > DATA_FIELDS_BYTES:
        raise exhausted(
            Reason.DATA_FIELDS_LIMIT,
            f"The merged profile's data fields would exceed {DATA_FIELDS_BYTES} bytes.",
            limit_bytes=str(DATA_FIELDS_BYTES),
        )
    email, user_id = _filled(source, target)
    # A cart that fills a gap stands as of the event it did with the source.
    cart_event_time = (source if CART_FIELD in merged.source_fields else target).cart_event_time
    survivor = replace(
        target, email=email, user_id=user_id, data_fields=encoded.decode(), cart_event_time=cart_event_time
    )
    return Plan(Outcome.MERGED, source, target, survivor, merged, found.now)


async def merge(connection: Connection, project: Project, wanted: Wanted, key_id: str) -> Merged:
    """Merges, effective at commit. Raises what `plan` raises."""
    planned = await plan(connection, project, wanted, lock=True)
    match planned.outcome:
        case Outcome.SAME_PROFILE:
            return Merged(planned.outcome, planned.survivor, None, None)
        case Outcome.CONVERTED:
            return await _convert(connection, project, planned, key_id)
        case Outcome.MERGED:
            return await _merge(connection, project, planned, key_id)


async def _merge(connection: Connection, project: Project, planned: Plan, key_id: str) -> Merged:
    source, target, survivor = planned.source, planned.target, planned.survivor
    assert target is not None  # only a conversion has none
    project_id = project.project_id
    tokens = await store.device_tokens(connection, project_id, source.profile_id)
    for token in tokens:
        # A disable for everybody that runs at the same time must find the target's copies, or come after them.
        await lock_token(connection, project_id, token, shared=True)
    overlapping = await store.overlapping_devices(connection, project_id, source.profile_id, target.profile_id)
    redirect_end = None if source.is_unknown else planned.now + KNOWN_REDIRECT
    await store.hand_over(connection, project_id, source.profile_id, target.profile_id, redirect_end)
    for kind, before, after in _identifiers(target, survivor):
        if after is not None and after != before:
            await store.own_identifier(connection, project_id, target.profile_id, kind, after)
    await _write(connection, project_id, survivor)
    merge_id = await _add_to_ledger(
        connection,
        project_id,
        planned,
        key_id,
        "PROFILE",
        device_count=len(tokens),
        overlapping=[asdict(device) for device in overlapping],
    )
    await store.add_move(connection, project_id, source.profile_id, target.profile_id, merge_id)
    if source.is_unknown:
        # After the moves are held: no worker can be moving the event.
        await store.tell_session(connection, project_id, source, target.profile_id, was_known=True)
        if not survivor.is_unknown:
            await links.settle_links(connection, project_id, target.profile_id)
    intent = Intent(project_id, merge_id, IntentKind.MOVE)
    await intents.add(connection, intent)
    return Merged(planned.outcome, survivor, merge_id, intent)


async def _convert(connection: Connection, project: Project, planned: Plan, key_id: str) -> Merged:
    source, survivor = planned.source, planned.survivor
    new = [
        (kind, after, source.profile_id, is_exclusive(project.identifier_type, kind))
        for kind, before, after in _identifiers(source, survivor)
        if after is not None and after != before
    ]
    old = [
        (kind, before, is_exclusive(project.identifier_type, kind))
        for kind, before, after in _identifiers(source, survivor)
        if before is not None and after != before
    ]
    for kind, value, _ in old:
        await store.queries.release_identifier.execute(
            connection,
            project_id=project.project_id,
            kind=kind,
            value=value,
            profile_id=source.profile_id,
        )
    if new:
        await claims.claim_identifiers(connection, project, [*new])
    if old:
        await store.queries.leave_redirects.execute(
            connection,
            project_id=project.project_id,
            profile_id=source.profile_id,
            redirect_end_time=None if source.is_unknown else planned.now + KNOWN_REDIRECT,
            kinds=[kind for kind, _, _ in old],
            values=[value for _, value, _ in old],
            exclusive=[exclusive for _, _, exclusive in old],
        )
    await _write(connection, project.project_id, survivor)
    if source.is_unknown:
        await links.settle_links(connection, project.project_id, source.profile_id)
    merge_id = await _add_to_ledger(
        connection, project.project_id, planned, key_id, "CONVERSION", device_count=0, overlapping=[]
    )
    return Merged(planned.outcome, survivor, merge_id, None)


async def _profiles(connection: Connection, project: Project, ids: list[UUID], *, lock: bool) -> dict[UUID, Profile]:
    if lock:
        return await store.lock_profiles(connection, project.project_id, ids)
    profiles = {}
    for profile_id in ids:
        profile = await identity.get_profile(connection, project.project_id, profile_id)
        if profile is None:
            raise profile_not_found()
        profiles[profile_id] = profile
    return profiles


def _filled(source: Profile, target: Profile) -> tuple[str | None, str | None]:
    """The survivor's identifiers: the target's, and where it has none those of a known source. A visitor's temporary
    user_id and a placeholder email name nobody and fill nothing."""
    email, user_id = target.email, target.user_id
    if email is None and not is_placeholder(source.email):
        email = source.email
    if user_id is None and not source.is_unknown:
        user_id = source.user_id
    return email, user_id


def _converted(project: Project, source: Profile, target: Named) -> Profile:
    """The source under the target's names (U5): what is not named stays, except that an unknown HYBRID profile gives up
    its temporary user_id once it has an email."""
    email = target.email or source.email
    user_id = target.user_id or source.user_id
    if (
        project.identifier_type is IdentifierType.HYBRID
        and source.is_unknown
        and target.user_id is None
        and email is not None
    ):
        user_id = None
    return replace(source, email=email, user_id=user_id, is_unknown=False)


def _identifiers(before: Profile, after: Profile) -> list[tuple[IdentifierKind, str | None, str | None]]:
    return [
        (IdentifierKind.EMAIL, before.email, after.email),
        (IdentifierKind.USER_ID, before.user_id, after.user_id),
    ]


async def _write(connection: Connection, project_id: str, survivor: Profile) -> None:
    await store.write_profile(
        connection,
        project_id,
        survivor.profile_id,
        survivor.email,
        survivor.user_id,
        survivor.data_fields,
        is_unknown=survivor.is_unknown,
        cart_event_time=survivor.cart_event_time,
    )


async def _add_to_ledger(
    connection: Connection,
    project_id: str,
    planned: Plan,
    key_id: str,
    kind: str,
    *,
    device_count: int,
    overlapping: list[dict[str, Any]],
) -> UUID:
    before = planned.target or planned.source
    snapshot = {
        "source": _snapshot(planned.source),
        "before": _snapshot(before),
        "after": _snapshot(planned.survivor),
        "devices": overlapping,
    }
    merge_id: UUID = await store.queries.add_merge.fetchval(
        connection,
        project_id=project_id,
        kind=kind,
        target_id=planned.survivor.profile_id,
        source_id=planned.source.profile_id,
        key_id=key_id,
        # The ids come from the driver as a subclass of UUID, which orjson does not know.
        snapshot=orjson.dumps(snapshot, default=str).decode(),
        source_fields=planned.merged.source_fields,
        target_fields=planned.merged.target_fields,
        merged_arrays=planned.merged.merged_arrays,
        device_count=device_count,
    )
    return merge_id


def _snapshot(profile: Profile) -> dict[str, Any]:
    return {**asdict(profile), "data_fields": orjson.Fragment(profile.data_fields)}


def as_person(profile: Profile) -> Person:
    """A profile as the answers of writes describe it."""
    return Person(profile.profile_id, profile.email, profile.user_id)
