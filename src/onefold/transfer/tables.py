"""What of a project goes along, and how each table's rows are written and read.

The statements are built from the catalog, so that a column which a migration adds goes along without anybody's
remembering it; the names in them are those of the catalog, never of a file.

Two things do not stay as they are. What stands for a visitor is made of the project's id and the anonymous_id, so a
file holds the anonymous_id instead, and a project may be brought in under another id. And what is only of use in the
database where it was made stays there: see LEFT_OUT.
"""

# ruff: noqa: S608 - what the statements are made of comes from here and from the catalog

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from onefold.db.queries import Connection, Queries

queries: Final = Queries("onefold.transfer")

# Tables of a project that do not go along, each with the reason.
LEFT_OUT: Final = {
    "projects": "its row is the head of the file",
    "api_keys": "a key opens one project in one database; the import makes a first one",
    "intents": "an export waits until nothing is left to do",
    "moves": "the same",
    "activation_notes": "the same",
    "activation_reviews": "the same",
    "activation_visitors": "counted anew from the events",
    "triggers": "their numbers order what one database committed; what is not told by then is not told any more",
    "trigger_purges": "set by the import, so that cursors from before are refused",
    "imports": "how far an import is",
}
# Columns of the project's own row that do not go along.
_OWN: Final = {"project_id", "creator_project_id", "forget_name"}


def subject(anonymous_id: str) -> str:
    """The SQL for what stands for a visitor (identity.store.subject_id) in the project that is $1."""
    text = f"convert_to($1::text, 'UTF8') || '\\x00'::bytea || convert_to({anonymous_id}, 'UTF8')"
    return f"encode(substring(sha256({text}) FOR 16), 'hex')::uuid"


def _named(uuid: str) -> str:
    """A visitor's id as @anonymous_id if the project knows of whom it is, any other id as it is."""
    return (
        f"coalesce((SELECT '@' || v.anonymous_id FROM named_visitors AS v WHERE v.subject_id = {uuid}), {uuid}::text)"
    )


def _unnamed(text: str) -> str:
    return f"CASE WHEN {text} LIKE '@%' THEN {subject(f'substr({text}, 2)')} ELSE {text}::uuid END"


def _each(array: str, expression: str) -> str:
    return f"ARRAY(SELECT {expression} FROM unnest({array}) WITH ORDINALITY AS each (id, position) ORDER BY position)"


@dataclass(frozen=True, slots=True)
class Changed:
    """A column that is written and read otherwise than it is stored: how, and the type that it has in the file."""

    written: str
    type: str
    read: str


def _ids(column: str) -> Changed:
    return Changed(_each(column, _named("each.id")), "text[]", _each(f"r.{column}", _unnamed("each.id")))


@dataclass(frozen=True, slots=True)
class Table:
    """One table: in which order its rows are written, and which columns are not simply what they are.

    `made` columns are not in the file; `only` says which rows go along.
    """

    name: str
    order: str
    changed: Mapping[str, Changed] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    only: str = "true"

    def export_sql(self, columns: Sequence[str]) -> str:
        """Rows as JSON texts of one line. Line ends in stored JSON are blanks between its tokens, never in a string."""
        listed = ", ".join(
            f"{self.changed[name].written} AS {name}" if name in self.changed else f"t.{name}" for name in columns
        )
        rows = f"SELECT {listed} FROM {self.name} AS t WHERE t.project_id = $1 AND {self.only} ORDER BY {self.order}"
        return f"SELECT translate(row_to_json(r)::text, E'\\n\\r', '  ') FROM ({rows}) AS r"

    def import_sql(self, columns: Mapping[str, str]) -> str:
        """Brings in what is staged; `columns` are those of the file with their types. Others take their defaults."""
        types = ", ".join(
            f"{name} {self.changed[name].type if name in self.changed else type_}" for name, type_ in columns.items()
        )
        read = {name: self.changed[name].read if name in self.changed else f"r.{name}" for name in columns}
        read |= self.made
        return (
            f"INSERT INTO {self.name} (project_id, {', '.join(read)}) "
            f"SELECT $1::text, {', '.join(read.values())} FROM staged, json_to_record(staged.line) AS r ({types})"
        )


_ORIGIN: Final = Changed(
    f"CASE WHEN origin_id = {subject('anonymous_id')} THEN 'visitor' ELSE origin_id::text END",
    "text",
    f"CASE WHEN r.origin_id = 'visitor' THEN {subject('r.anonymous_id')} ELSE r.origin_id::uuid END",
)
TABLES: Final = (
    Table("criteria", "criterion_id"),
    Table("profiles", "profile_id"),
    Table(
        "identifiers",
        "kind, value, profile_id",
        {
            "origin_id": Changed(
                "CASE WHEN kind <> 3 THEN origin_id END",
                "uuid",
                f"CASE WHEN r.kind = 3 THEN {subject('r.value')} ELSE r.origin_id END",
            )
        },
    ),
    Table("forgotten", "hash"),
    Table("consents", "holder_id", {"holder_id": Changed(_named("holder_id"), "text", _unnamed("r.holder_id"))}),
    Table("merges", "merge_id", {"origin_ids": _ids("origin_ids")}),
    Table("devices", "profile_id, token"),
    Table("token_disables", "disable_id"),
    Table("activities", "activity_time, activity_id"),
    Table("requests", "request_id", {"profile_ids": _ids("profile_ids")}),
    Table("event_ids", "event_id"),
    Table("invite_events", "recipient, event_time, event_id"),
    Table(
        "anonymous_events",
        "event_time, event_id, anonymous_id",
        made={"subject_id": subject("r.anonymous_id")},
        # Their 30 days are over for every read, whether or not they are on the disk.
        only="event_time > now() - $2::interval",
    ),
    Table("events", "profile_id, event_time, event_id", {"origin_id": _ORIGIN}),
)


async def columns_of(connection: Connection, table: str) -> dict[str, str]:
    """The columns of a table but for project_id and what the database makes itself, each with its type."""
    rows: list[asyncpg.Record] = await queries.table_columns.fetch(connection, table=table)
    made = next((each.made for each in TABLES if each.name == table), {})
    left = _OWN if table == "projects" else {"project_id", *made}
    return {row["name"]: row["type"] for row in rows if row["name"] not in left}
