"""Taking a merge back, as one short transaction whatever the number of events."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from onefold.callers import Project
from onefold.db.queries import Connection
from onefold.devices.store import lock_token
from onefold.errors import OnefoldError, Reason, failed_precondition, not_found
from onefold.identity import claims
from onefold.identity import store as identity
from onefold.identity.naming import IdentifierKind
from onefold.identity.rules import is_exclusive
from onefold.intents import store as intents
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent
from onefold.merges import store
from onefold.merges.rules import is_undoable, undo_devices, undo_fields, undo_identifier
from onefold.merges.store import MergeRow


class Outcome(enum.IntEnum):
    """What an undo did; the numbers are those of UndoOutcome in the protos."""

    UNDONE = 1
    ALREADY_UNDONE = 2


@dataclass(frozen=True, slots=True)
class Undone:
    """What an undo did, and the work it left."""

    outcome: Outcome
    intents: list[Intent]


async def undo(connection: Connection, project: Project, merge_id: UUID) -> Undone:
    """Undoes a merge, effective at commit.

    Raises MERGE_NOT_FOUND, MERGE_NOT_UNDOABLE, MERGE_BUILT_ON, SOURCE_IDENTIFIER_TAKEN, and LostRaceError.
    """
    # The order of locks is that of all writers: profiles, intents, moves, ledger. The target's row makes two undos of
    # one merge wait for each other, so the ledger is looked at before, to know the target, and again when it is held.
    row = await _check(connection, project, merge_id)
    if row.undo_time is not None:
        return Undone(Outcome.ALREADY_UNDONE, [])
    await store.lock_profiles(connection, project.project_id, [row.target_profile_id])
    row = await _check(connection, project, merge_id)
    if row.undo_time is not None:
        return Undone(Outcome.ALREADY_UNDONE, [])
    match row.kind:
        case "ASSOCIATION":
            left = await _undo_association(connection, project, row)
        case "PROFILE":
            left = await _undo_profile(connection, project, row)
        case _:
            left = await _undo_conversion(connection, project, row)
    await store.queries.mark_undone.execute(connection, project_id=project.project_id, merge_id=merge_id)
    return Undone(Outcome.UNDONE, left)


def merge_not_found() -> OnefoldError:
    """The project has no such merge."""
    return not_found(Reason.MERGE_NOT_FOUND, "No merge has this id.")


async def _check(connection: Connection, project: Project, merge_id: UUID) -> MergeRow:
    """The merge, if it was undone or can be."""
    row = await store.get_merge(connection, project.project_id, merge_id)
    if row is None:
        raise merge_not_found()
    if row.undo_time is None:
        _check_age(row)
        later = await store.find_later_merge(connection, project.project_id, row.target_profile_id, merge_id)
        if later is not None:
            raise failed_precondition(
                Reason.MERGE_BUILT_ON, "A later merge builds on this one. Undo that one first.", merge_id=str(later)
            )
    return row


def _check_age(row: MergeRow) -> None:
    erased = row.anonymous_id is None if row.kind == "ASSOCIATION" else row.snapshot is None
    if erased or not is_undoable(row.create_time, row.now):
        raise failed_precondition(
            Reason.MERGE_NOT_UNDOABLE, "The merge is older than 30 days, or its person was forgotten."
        )


async def _undo_association(connection: Connection, project: Project, row: MergeRow) -> list[Intent]:
    await store.queries.free_anonymous_id.execute(
        connection,
        project_id=project.project_id,
        subject_id=row.origin_ids[0],
        anonymous_id=row.anonymous_id,
        merge_id=row.merge_id,
    )
    return await _give_back(connection, project, row, owner_subject_id=row.origin_ids[0])


async def _undo_profile(connection: Connection, project: Project, row: MergeRow) -> list[Intent]:
    assert row.source_profile_id is not None  # a merge of profiles has one
    assert row.snapshot is not None  # checked by the caller
    project_id, source_id, target_id = project.project_id, row.source_profile_id, row.target_profile_id
    snapshot = orjson.loads(row.snapshot)
    target = (await store.lock_profiles(connection, project_id, [target_id]))[target_id]
    for token in await store.device_tokens(connection, project_id, source_id):
        # As in a merge: a disable for everybody at the same time must find the copies written here, or come after them.
        await lock_token(connection, project_id, token, shared=True)
    source, before, after = snapshot["source"], snapshot["before"], snapshot["after"]

    await _take_back_redirects(connection, project_id, target_id, source)
    email = undo_identifier(before["email"], after["email"], target.email)
    user_id = undo_identifier(before["user_id"], after["user_id"], target.user_id)
    for kind, value, kept in (
        (IdentifierKind.EMAIL, target.email, email),
        (IdentifierKind.USER_ID, target.user_id, user_id),
    ):
        if value is not None and value != kept:
            # The merge had filled a gap with it.
            await store.queries.release_identifier.execute(
                connection, project_id=project_id, kind=kind, value=value, profile_id=target_id
            )
    fields = undo_fields(before["data_fields"], after["data_fields"], orjson.loads(target.data_fields))
    cart_event_time = target.cart_event_time
    if cart_event_time == _cart_event_time(after):
        cart_event_time = _cart_event_time(before)
    await store.write_profile(
        connection,
        project_id,
        target_id,
        email,
        user_id,
        orjson.dumps(fields).decode(),
        is_unknown=target.is_unknown,
        cart_event_time=cart_event_time,
    )
    await _claim_source(connection, project, source_id, source)
    await store.queries.restore_profile.execute(
        connection, project_id=project_id, snapshot=orjson.dumps(source).decode()
    )
    await _rebase_later(connection, project_id, row, snapshot)
    await store.queries.hand_back_identifiers.execute(
        connection,
        source_id=source_id,
        project_id=project_id,
        target_id=target_id,
        origin_ids=row.origin_ids,
    )
    await _return_devices(connection, row, project_id, snapshot["devices"])
    left = await _give_back(connection, project, row, owner_profile_id=source_id)
    if source["is_unknown"]:
        restored = (await store.lock_profiles(connection, project_id, [source_id]))[source_id]
        await store.tell_session(connection, project_id, restored, source_id, was_known=False)
        await store.follow_visitor(connection, project_id, source_id)
    return left


async def _rebase_later(connection: Connection, project_id: str, row: MergeRow, undone: dict[str, Any]) -> None:
    """Takes what this merge brought out of what later merges into the target would restore when they are undone."""
    before, after = undone["before"]["data_fields"], undone["after"]["data_fields"]
    later = await store.queries.later_merges_into.fetch(
        connection, project_id=project_id, target_id=row.target_profile_id, merge_id=row.merge_id
    )
    for each in later:
        snapshot = orjson.loads(each["snapshot"])
        # Both sides: a value that neither has is not the later merge's to take away.
        for side in (snapshot["before"], snapshot["after"]):
            side["data_fields"] = undo_fields(before, after, side["data_fields"])
        if snapshot["devices"] and row.source_profile_id is not None:
            numbers = await store.device_numbers(
                connection, project_id, row.source_profile_id, [device["token"] for device in snapshot["devices"]]
            )
            snapshot["devices"] = undo_devices(undone["devices"], numbers, snapshot["devices"])
        await store.queries.rewrite_snapshot.execute(
            connection,
            snapshot=orjson.dumps(snapshot).decode(),
            project_id=project_id,
            merge_id=each["merge_id"],
        )


async def _undo_conversion(connection: Connection, project: Project, row: MergeRow) -> list[Intent]:
    assert row.snapshot is not None  # checked by the caller
    project_id, profile_id = project.project_id, row.target_profile_id
    snapshot = orjson.loads(row.snapshot)
    before, after = snapshot["before"], snapshot["after"]
    profile = (await store.lock_profiles(connection, project_id, [profile_id]))[profile_id]
    await _take_back_redirects(connection, project_id, profile_id, before)
    email = undo_identifier(before["email"], after["email"], profile.email)
    user_id = undo_identifier(before["user_id"], after["user_id"], profile.user_id)
    claimed: dict[str, Any] = {}
    for kind, now_has, kept in (
        (IdentifierKind.EMAIL, profile.email, email),
        (IdentifierKind.USER_ID, profile.user_id, user_id),
    ):
        if now_has == kept:
            continue
        if now_has is not None:
            await store.queries.release_identifier.execute(
                connection, project_id=project_id, kind=kind, value=now_has, profile_id=profile_id
            )
        claimed[kind.name.lower()] = kept
    await _claim_source(connection, project, profile_id, claimed)
    # Whoever got a name of their own since is known.
    is_unknown = before["is_unknown"] and (email, user_id) == (before["email"], before["user_id"])
    await store.write_profile(
        connection,
        project_id,
        profile_id,
        email,
        user_id,
        profile.data_fields,
        is_unknown=is_unknown,
        cart_event_time=profile.cart_event_time,
    )
    if is_unknown:
        await store.follow_visitor(connection, project_id, profile_id)
    return []


async def _claim_source(connection: Connection, project: Project, source_id: UUID, source: dict[str, Any]) -> None:
    """Gives the source its own names back. SOURCE_IDENTIFIER_TAKEN if somebody has one by now, or it was forgotten."""
    names = _names(source)
    if not names:
        return
    directory = (await identity.find(connection, project, names)).directory
    taken = [
        kind
        for kind, value in names
        if is_exclusive(project.identifier_type, kind)
        and ((kind, value) in directory.holders or (kind, value) in directory.forgotten)
    ]
    if taken:
        raise failed_precondition(
            Reason.SOURCE_IDENTIFIER_TAKEN,
            "An identifier of the source belongs to another profile by now, or was forgotten.",
            kind=",".join(kind.name.lower() for kind in taken),
        )
    await claims.claim_identifiers(
        connection,
        project,
        [(kind, value, source_id, is_exclusive(project.identifier_type, kind)) for kind, value in names],
    )


async def _take_back_redirects(
    connection: Connection, project_id: str, target_id: UUID, source: dict[str, Any]
) -> None:
    names = _names(source)
    await store.queries.take_back_redirects.execute(
        connection,
        kinds=[kind for kind, _ in names],
        values=[value for _, value in names],
        project_id=project_id,
        target_id=target_id,
    )


def _cart_event_time(snapshot: dict[str, Any]) -> datetime | None:
    """The event that a cart stood as of; one that was written before there were carts has none."""
    text = snapshot.get("cart_event_time")
    return datetime.fromisoformat(text) if text is not None else None


def _names(source: dict[str, Any]) -> list[tuple[IdentifierKind, str]]:
    names = ((IdentifierKind.EMAIL, source.get("email")), (IdentifierKind.USER_ID, source.get("user_id")))
    return [(kind, value) for kind, value in names if value is not None]


async def _return_devices(
    connection: Connection, row: MergeRow, project_id: str, overlapping: list[dict[str, Any]]
) -> None:
    """Takes the target's copies apart: those of the source are the source's, as every disable since has left them."""
    source_id, target_id = row.source_profile_id, row.target_profile_id
    rows = await store.queries.other_sources.fetch(
        connection, project_id=project_id, target_id=target_id, merge_id=row.merge_id
    )
    others = [each["source_profile_id"] for each in rows]
    await store.queries.remove_returned_devices.execute(
        connection,
        project_id=project_id,
        target_id=target_id,
        source_id=source_id,
        overlapping=[device["token"] for device in overlapping],
        source_ids=[source_id, *others],
    )
    for device in overlapping:
        await store.queries.restore_device.execute(
            connection,
            platform=device["platform"],
            application_name=device["application_name"],
            data_fields=device["data_fields"],
            endpoint_enabled=device["endpoint_enabled"],
            operation_number=device["operation_number"],
            update_time=datetime.fromisoformat(device["update_time"]),
            token=device["token"],
            merged_operation_number=device["merged_operation_number"],
            project_id=project_id,
            target_id=target_id,
        )
    await store.queries.copy_devices.execute(connection, target_id=target_id, project_id=project_id, source_ids=others)


async def _give_back(
    connection: Connection,
    project: Project,
    row: MergeRow,
    *,
    owner_profile_id: UUID | None = None,
    owner_subject_id: UUID | None = None,
) -> list[Intent]:
    """Turns the events round: what came from the source is the source's again, wherever it lies."""
    project_id, target_id = project.project_id, row.target_profile_id
    # The intent first, then the move: the order in which a chunk takes them.
    await store.queries.drop_intent.execute(connection, project_id=project_id, intent_id=row.merge_id)
    await store.queries.drop_move.execute(connection, project_id=project_id, move_id=row.merge_id)
    if owner_profile_id is not None:
        await store.queries.hand_back_moves.execute(
            connection,
            source_id=owner_profile_id,
            project_id=project_id,
            target_id=target_id,
            merge_id=row.merge_id,
            origin_ids=row.origin_ids,
        )
    owner = {"owner_profile_id": owner_profile_id, "owner_subject_id": owner_subject_id}
    split = await store.queries.split_given_back.fetch(
        connection,
        project_id=project_id,
        target_id=target_id,
        merge_id=row.merge_id,
        origin_ids=row.origin_ids,
        **owner,
    )
    added = await store.queries.add_undo_move.fetch(
        connection,
        project_id=project_id,
        merge_id=row.merge_id,
        target_id=target_id,
        origin_ids=row.origin_ids,
        **owner,
    )
    left = [Intent(project_id, each["move_id"], IntentKind.MOVE) for each in [*split, *added]]
    for intent in left:
        await intents.add(connection, intent)
    return left
