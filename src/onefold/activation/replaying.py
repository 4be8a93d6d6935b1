"""Replaying what a client kept of a visitor: the whole of Replay below the messages (U4, U7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from onefold.activation.store import queries
from onefold.callers import Project
from onefold.db.queries import Connection
from onefold.errors import OnefoldError
from onefold.events.ingest import Accepted, ingest
from onefold.events.rules import Arrival
from onefold.identity.batch import Update, update_profiles
from onefold.identity.naming import Named
from onefold.identity.people import Written, write_profile
from onefold.identity.rules import Call, Outcome

Item: TypeAlias = "Arrival | Change"
Result: TypeAlias = "Accepted | Written | OnefoldError"


@dataclass(frozen=True, slots=True)
class Change:
    """An update of the person's profile."""

    data_fields: dict[str, Any]
    merge_nested_objects: bool


async def replay(
    connection: Connection, project: Project, named: Named, call: Call, items: Sequence[Item]
) -> tuple[Written, list[Result]]:
    """Finds or creates the person and takes the items; returns what became of the person and of each item, in order.

    A fixed number of statements: the updates as one batch, then the events as one. Raises what `write_profile` raises.
    """
    written = await write_profile(connection, project, named, call)
    if written.person is None:
        now: datetime = await queries.this_moment.fetchval(connection)
        skipped = Accepted("", now, False, Outcome.SKIPPED, None)
        return written, [Written(None, Outcome.SKIPPED, 0) if isinstance(item, Change) else skipped for item in items]
    changes = [item for item in items if isinstance(item, Change)]
    updates = [Update(named, call, change.data_fields, change.merge_nested_objects) for change in changes]
    updated = iter(await update_profiles(connection, project, updates) if updates else [])
    arrivals = [item for item in items if isinstance(item, Arrival)]
    stored = iter(await ingest(connection, project, arrivals) if arrivals else [])
    results: list[Result] = [next(updated) if isinstance(item, Change) else next(stored) for item in items]
    if written.outcome is Outcome.UNCHANGED and any(
        isinstance(result, Written) and result.outcome is Outcome.UPDATED for result in results
    ):
        written = written._replace(outcome=Outcome.UPDATED)
    return written, results
