"""Criteria in PostgreSQL. Typed functions over queries.sql; the caller owns the transaction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final
from uuid import UUID

import orjson

from onefold.activation.criteria import Node, from_document, to_document
from onefold.activation.rules import DATA_TYPES, CompiledCriterion, Event
from onefold.clock import EARLIEST, LATEST
from onefold.db.queries import Connection, Queries, Record
from onefold.events import store as events
from onefold.limits import EVENT_AHEAD, VISITOR_EVENTS

queries: Final = Queries("onefold.activation")

# Later than any event can be.
_AFTER_ALL: Final = LATEST + 2 * EVENT_AHEAD


@dataclass(frozen=True, slots=True)
class CriterionRow:
    """A criterion; root is the tree as JSON text."""

    criterion_id: UUID
    name: str
    version: int
    root: str
    create_time: datetime
    update_time: datetime

    def compiled(self) -> CompiledCriterion:
        """The criterion, ready to be evaluated."""
        return _compiled(str(self.criterion_id), self.root)


def encode_tree(root: Node) -> str:
    """A tree as it is stored."""
    return orjson.dumps(to_document(root)).decode()


def decode_tree(text: str) -> Node:
    """The inverse of encode_tree."""
    root: Node = from_document(orjson.loads(text))
    return root


async def insert_criterion(connection: Connection, project_id: str, name: str, root: str) -> CriterionRow:
    """Makes a criterion."""
    row = await queries.insert_criterion.fetchrow(connection, project_id=project_id, name=name, root=root)
    assert row is not None  # an INSERT of one row returns one row
    return _criterion(row)


async def count_criteria(connection: Connection, project_id: str) -> int:
    """How many criteria a project has."""
    count: int = await queries.count_criteria.fetchval(connection, project_id=project_id)
    return count


async def list_criteria(connection: Connection, project_id: str) -> list[CriterionRow]:
    """The criteria of a project, oldest first."""
    return [_criterion(row) for row in await queries.list_criteria.fetch(connection, project_id=project_id)]


async def lock_criterion(connection: Connection, project_id: str, criterion_id: UUID) -> CriterionRow | None:
    """A criterion, held for a change; None if there is none of this id."""
    row = await queries.lock_criterion.fetchrow(connection, project_id=project_id, criterion_id=criterion_id)
    return _criterion(row) if row else None


async def update_criterion(
    connection: Connection, project_id: str, criterion_id: UUID, name: str, root: str
) -> CriterionRow:
    """Changes a criterion that is held, which gives it the next version."""
    row = await queries.update_criterion.fetchrow(
        connection, name=name, root=root, project_id=project_id, criterion_id=criterion_id
    )
    assert row is not None  # the caller holds the row
    return _criterion(row)


async def delete_criterion(connection: Connection, project_id: str, criterion_id: UUID) -> bool:
    """Deletes a criterion; False if there was none of this id."""
    return bool(await queries.delete_criterion.execute(connection, project_id=project_id, criterion_id=criterion_id))


async def hold_criteria(connection: Connection, project_id: str, criterion_ids: Collection[UUID]) -> set[UUID]:
    """Keeps criteria from being deleted until the end of the transaction; returns those that are still there."""
    rows = await queries.hold_criteria.fetch(connection, project_id=project_id, criterion_ids=list(criterion_ids))
    return {row["criterion_id"] for row in rows}


async def stored_events(connection: Connection, project_id: str, anonymous_id: str) -> list[Event]:
    """What criteria see of a visitor's stored events that are nobody's: the newest 1,000, oldest first."""
    wanted = events.Filter(_AFTER_ALL, "", EARLIEST, None, list(DATA_TYPES), VISITOR_EVENTS)
    rows = await events.list_anonymous_events(connection, project_id, anonymous_id, wanted)
    return [Event(row.event_id, DATA_TYPES[row.kind], row.name, orjson.loads(row.data)) for row in reversed(rows)]


@lru_cache(maxsize=512)
def _compiled(criterion_id: str, root: str) -> CompiledCriterion:
    # Compiling patterns costs more than a thousand evaluations, and a criterion seldom changes.
    return CompiledCriterion(criterion_id, decode_tree(root))


def _criterion(row: Record) -> CriterionRow:
    return CriterionRow(
        row["criterion_id"], row["name"], row["version"], row["root"], row["create_time"], row["update_time"]
    )
