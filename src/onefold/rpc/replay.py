"""request_id: the same write sent again within 24 hours gives the stored answer and has no second effect (X1)."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message

from onefold.db.errors import LostRaceError
from onefold.db.pool import Database
from onefold.db.queries import Connection, Queries
from onefold.errors import Reason, failed_precondition
from onefold.limits import REQUEST_ID_LIFETIME
from onefold.telemetry import metrics

_queries = Queries("onefold.rpc")


R = TypeVar("R", bound=Message)


async def write_once(
    database: Database,
    project_id: str,
    request: Message,
    request_id: str,
    answer_type: type[R],
    work: Callable[[Connection], Awaitable[R]],
    *,
    subjects: Collection[UUID] = (),
    outlives_people: bool = False,
) -> tuple[R, bool]:
    """Runs `work` in a transaction, or answers what it answered before; returns the answer and whether it is stored.

    The answer is stored in the same transaction as the effect, so that either both are there or neither. A call that
    fails stores nothing: sent again, it is tried again. `subjects` are the visitors whom the answer tells about beside
    its profiles: it goes when one of them is forgotten, unless it `outlives_people` because it tells nothing of them.
    Raises FAILED_PRECONDITION / REQUEST_ID_REUSED when the id stands for another request.
    """
    if not request_id:
        return await database.transact(work), False
    body_hash = _body_hash(request)

    async def once(connection: Connection) -> tuple[R, bool]:
        stored = await _queries.find_answer.fetchrow(
            connection, project_id=project_id, request_id=request_id, lifetime=REQUEST_ID_LIFETIME
        )
        if stored is not None:
            if stored["body_hash"] != body_hash:
                raise failed_precondition(
                    Reason.REQUEST_ID_REUSED,
                    "The request_id was used for another request within the last 24 hours.",
                    request_id=request_id,
                )
            return answer_type.FromString(stored["answer"]), True
        answer = await work(connection)
        stored_now = await _queries.store_answer.fetchval(
            connection,
            project_id=project_id,
            request_id=request_id,
            body_hash=body_hash,
            answer=answer.SerializeToString(),
            profile_ids=[] if outlives_people else sorted(_profile_ids(answer).union(subjects)),
            lifetime=REQUEST_ID_LIFETIME,
        )
        if stored_now is None:
            # The same request ran at the same time and committed first. Everything done here is rolled back.
            raise LostRaceError
        return answer, False

    answer, replayed = await database.transact(once)
    if replayed:
        metrics.REPLAYED.inc()
        answer.replayed = True  # type: ignore[attr-defined]  # every answer of a write has it; a test walks them all
    return answer, replayed


def _profile_ids(message: Message) -> set[UUID]:
    """The ids of the profiles that an answer tells about: every field ...profile_id in it, however deep."""
    found = set()
    for field, value in message.ListFields():
        if field.name.endswith("profile_id"):
            found.add(UUID(value))
        elif field.message_type is not None and field.message_type.file.package == "onefold.v1":
            for each in value if field.is_repeated else [value]:
                found |= _profile_ids(each)
    return found


def _body_hash(request: Message) -> bytes:
    """A digest of method and body. Maps are written in key order, so equal requests have equal digests."""
    body = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.blake2b(body, digest_size=16).digest()
