"""Intents in PostgreSQL: added by the call that has the effect, leased and finished by a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

from onefold.db.pool import after_commit
from onefold.db.queries import Connection, Queries, Record
from onefold.intents.rules import LEASE, IntentKind, gives_up, retry_delay
from onefold.telemetry import tracing

queries: Final = Queries("onefold.intents")


class LeaseLostError(Exception):
    """Another worker holds the intent now. Whatever the chunk wrote must be rolled back."""


@dataclass(frozen=True, slots=True)
class Intent:
    """A piece of work: (project_id, intent_id), its kind, and how often it was tried since it last got on."""

    project_id: str
    intent_id: UUID
    kind: IntentKind
    attempt_count: int = 0
    # The span of the call that left it.
    trace_parent: str | None = field(default=None, compare=False)


@dataclass(slots=True)
class Progress:
    """What a worker has done for an intent, as far as it is committed."""

    rows: int = 0

    def add(self, rows: int) -> None:
        """Some more."""
        self.rows += rows


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write for an intent, until another worker's token replaces this one."""

    intent: Intent
    token: UUID
    progress: Progress = field(default_factory=Progress, compare=False)


async def add(connection: Connection, intent: Intent) -> None:
    """Leaves work to the workers, in the caller's transaction. It may start at once."""
    await queries.add_intent.execute(
        connection,
        project_id=intent.project_id,
        intent_id=intent.intent_id,
        kind=intent.kind,
        trace_parent=tracing.trace_parent(),
    )


async def due(connection: Connection, count: int) -> list[Intent]:
    """At most `count` intents that nobody works on and that should be worked on now, the longest due first."""
    rows = await queries.due_intents.fetch(connection, kinds=list(IntentKind), count=count)
    return [_intent(row) for row in rows]


async def due_activations(connection: Connection, count: int) -> list[Intent]:
    """The same, of intents to look at visitors alone."""
    return [_intent(row) for row in await queries.due_activations.fetch(connection, count=count)]


async def take(connection: Connection, project_id: str, intent_id: UUID) -> Lease | None:
    """The lease of an intent; None if it is done, not due, held by another, given up, or of a kind unknown here."""
    token = uuid4()
    row = await queries.take_lease.fetchrow(
        connection,
        lease_token=token,
        lease=LEASE,
        project_id=project_id,
        intent_id=intent_id,
        kinds=list(IntentKind),
    )
    if row is None:
        return None
    intent = Intent(project_id, intent_id, IntentKind(row["kind"]), row["attempt_count"], row["trace_parent"])
    return Lease(intent, token)


async def renew(connection: Connection, lease: Lease) -> None:
    """Keeps the lease, and holds it for the rest of the transaction. LeaseLostError if another worker has it."""
    held = await queries.renew_lease.fetchval(
        connection,
        lease=LEASE,
        project_id=lease.intent.project_id,
        intent_id=lease.intent.intent_id,
        lease_token=lease.token,
    )
    if held is None:
        raise LeaseLostError


async def note_progress(connection: Connection, lease: Lease, rows: int) -> None:
    """Starts the attempts anew, because this one has written so many rows."""
    await queries.note_progress.execute(connection, **_of(lease))
    after_commit(partial(lease.progress.add, rows))


async def finish(connection: Connection, lease: Lease) -> None:
    """Removes the intent: its work is done. LeaseLostError if another worker has it."""
    if not await queries.finish_intent.execute(connection, **_of(lease)):
        raise LeaseLostError


async def postpone(connection: Connection, lease: Lease, due_time: datetime) -> None:
    """Gives the lease back until a moment of the database's clock. LeaseLostError if another worker has it."""
    if not await queries.postpone_intent.execute(connection, due_time=due_time, **_of(lease)):
        raise LeaseLostError


async def fail(connection: Connection, lease: Lease, error: str) -> timedelta | None:
    """Notes a failed attempt; returns how long to wait for the next one, or None when the intent is now stuck.

    `error` is the name of what went wrong, never a driver's text.
    """
    attempt = lease.intent.attempt_count
    delay = None if gives_up(attempt) else retry_delay(attempt)
    await queries.fail_intent.execute(
        connection, error=error, delay=delay or timedelta(0), give_up=delay is None, **_of(lease)
    )
    return delay


async def release(connection: Connection, lease: Lease) -> None:
    """Gives the lease back so that another worker can go on at once."""
    await queries.release_lease.execute(connection, **_of(lease))


async def is_stuck(connection: Connection, project_id: str, intent_id: UUID) -> bool:
    """Whether the workers gave an intent up."""
    row = await queries.find_intent.fetchrow(connection, project_id=project_id, intent_id=intent_id)
    return row is not None and row["stuck_time"] is not None


@dataclass(frozen=True, slots=True)
class ListedIntent:
    """An intent as an operator sees it. state is STUCK, RUNNING (leased), WAITING (for due_time) or DUE."""

    project_id: str
    intent_id: UUID
    kind: str
    state: str
    create_time: datetime
    due_time: datetime
    attempt_count: int
    stuck_time: datetime | None
    last_error: str | None


async def list_intents(
    connection: Connection, project_id: str | None, *, stuck_only: bool, count: int
) -> list[ListedIntent]:
    """At most `count` intents of a project, or of all, the oldest first; kinds that this version does not know too."""
    rows = await queries.list_intents.fetch(connection, project_id=project_id, stuck_only=stuck_only, count=count)
    return [ListedIntent(**{field.name: row[field.name] for field in fields(ListedIntent)}) for row in rows]


async def describe(connection: Connection, intent_id: UUID) -> dict[str, Any] | None:
    """Everything that an operator may want to know of an open intent; None if there is none."""
    row = await queries.describe_intent.fetchrow(connection, intent_id=intent_id)
    return dict(row) if row else None


async def retry(connection: Connection, project_id: str | None, intent_ids: Sequence[UUID] | None) -> int:
    """Lets stuck intents begin anew: those named, or all; returns how many. The sweep finds them."""
    return await queries.retry_intents.execute(
        connection, project_id=project_id, intent_ids=list(intent_ids) if intent_ids is not None else None
    )


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is left to do of one kind. Ages in seconds; None if there is no such intent."""

    kind: str
    open_count: int
    stuck_count: int
    oldest_seconds: float | None
    overdue_seconds: float | None


async def backlog(connection: Connection) -> list[Backlog]:
    """What is left to do in all projects, by kind; kinds that this version does not know too."""
    rows = await queries.backlog.fetch(connection)
    return [Backlog(**{field.name: row[field.name] for field in fields(Backlog)}) for row in rows]


def _intent(row: Record) -> Intent:
    return Intent(row["project_id"], row["intent_id"], IntentKind(row["kind"]), row["attempt_count"])


def _of(lease: Lease) -> dict[str, object]:
    return {
        "project_id": lease.intent.project_id,
        "intent_id": lease.intent.intent_id,
        "lease_token": lease.token,
    }
