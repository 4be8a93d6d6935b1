"""The statements in the .sql files, against the real schema."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Iterator, Sequence
from importlib import import_module, resources
from typing import Any

import pytest

import onefold
from onefold.db.pool import Database
from onefold.db.queries import Connection, Queries, Query

PACKAGES = [
    module.name
    for module in pkgutil.walk_packages(onefold.__path__, "onefold.")
    if module.ispkg and resources.files(import_module(module.name)).joinpath("queries.sql").is_file()
]
STATEMENTS = [(package, query) for package in PACKAGES for query in Queries(package)]
# What workers, operators and retention look at; ids that belong to nobody yet; locks whose key holds the project.
OF_NO_PROJECT = {
    "due_intents",
    "due_activations",
    "backlog",
    "describe_intent",
    "table_columns",
    "oldest_wanted_event",
    "purge_default_partition",
    "purge_copies",
    "purge_snapshots",
    "purge_disables",
    "purge_redirects",
    "purge_consents",
    "purge_visitors",
    "this_moment",
    "moment_after",
    "new_forget_id",
    "purge_requests",
    "purge_event_ids",
    "purge_triggers",
    "last_trigger_number",
    "newest_triggers",
    "trigger_writers",
    "new_profile_ids",
    "lock_token",
    "lock_token_shared",
}
# Statements about projects and keys themselves: a key's id before it is known whose it is, a new project, the list of a
# project's own.
WITHIN_PROJECTS = {"find_api_key", "forget_secret", "insert_project", "list_projects", "is_ahead"}
# Of the commands of whoever runs the service, which may look at all projects. No call of the API comes here.
OF_OPERATORS = {"list_intents", "retry_intents", "list_all_projects"}
# The tables that hold rows of projects, each with the position of the column.
_PROJECT_TABLES = """
SELECT c.relname, a.attnum
FROM pg_class AS c
INNER JOIN pg_namespace AS n ON n.oid = c.relnamespace
INNER JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'project_id' AND NOT a.attisdropped
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')
"""


def test_the_walk_meets_every_file() -> None:
    """X3: no queries.sql of the package escapes the tests below."""
    files = list(resources.files("onefold").iterdir())
    found = [file.name for file in files if file.is_dir() and file.joinpath("queries.sql").is_file()]
    assert sorted(PACKAGES) == sorted(f"onefold.{name}" for name in found)
    assert len(STATEMENTS) > 30


@pytest.mark.parametrize(("package", "query"), STATEMENTS, ids=[f"{p}.{q.name}" for p, q in STATEMENTS])
async def test_every_statement_prepares(database: Database, package: str, query: Query) -> None:
    """X3: PostgreSQL understands the statement on the schema that the migrations make, and its parameters all."""

    async def prepare(connection: Connection) -> int:
        return len((await connection.prepare(query.sql)).get_parameters())

    assert await database.read(prepare) == len(query.parameters)


@pytest.mark.parametrize(("package", "query"), STATEMENTS, ids=[f"{p}.{q.name}" for p, q in STATEMENTS])
def test_every_statement_keeps_to_one_project(package: str, query: Query) -> None:
    """P6: a statement names the project it is about, except the few that are about none."""
    keeps = "project_id" in query.parameters
    assert keeps or query.name in OF_NO_PROJECT or package == "onefold.projects"


@pytest.mark.parametrize(("package", "query"), STATEMENTS, ids=[f"{p}.{q.name}" for p, q in STATEMENTS])
async def test_postgresql_sees_every_statement_kept_to_one_project(
    database: Database, package: str, query: Query
) -> None:
    """P6, F73: by PostgreSQL's own plan, every table that a statement reads or changes is looked at for the rows of the
    caller's project alone, and every row that it inserts is of that project."""
    if query.name in OF_NO_PROJECT | WITHIN_PROJECTS | OF_OPERATORS:
        return
    rows = await database.read(lambda connection: _plan(connection, query, "VERBOSE, FORMAT JSON"))
    tables = await database.read(lambda connection: connection.fetch(_PROJECT_TABLES))
    positions = {row["relname"]: row["attnum"] for row in tables}
    assert len(positions) > 20
    assert _unbound(json.loads("".join(rows))[0]["Plan"], query, positions) == []


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT event_id FROM events WHERE profile_id = $1::uuid AND $2::text IS NOT NULL", "events"),
        (
            """SELECT e.event_id FROM profiles AS p INNER JOIN events AS e ON e.profile_id = p.profile_id
            WHERE p.profile_id = $1::uuid AND p.project_id = $2""",
            "events",
        ),
        ("DELETE FROM devices WHERE profile_id = $1::uuid OR project_id = $2", "devices"),
        (
            """INSERT INTO requests (project_id, request_id, body_hash, answer)
            SELECT 'another', $1::text, '', '' WHERE $2::text IS NOT NULL""",
            "Insert requests",
        ),
    ],
    ids=["read", "join", "or", "insert"],
)
async def test_a_statement_that_leaves_its_project_is_found(database: Database, sql: str, told: str) -> None:
    """P6: the look at the plans finds a statement that reads, joins, changes or inserts rows of other projects."""
    query = Query("bad", sql, ("other", "project_id"))
    rows = await database.read(lambda connection: _plan(connection, query, "VERBOSE, FORMAT JSON"))
    tables = await database.read(lambda connection: connection.fetch(_PROJECT_TABLES))
    found = _unbound(json.loads("".join(rows))[0]["Plan"], query, {row["relname"]: row["attnum"] for row in tables})
    assert [line for line in found if told in line] == found != []


def _unbound(plan: dict[str, Any], query: Query, positions: dict[str, int]) -> list[str]:
    """The tables of a plan that are not bound to the project that the statement is given."""
    number = query.parameters.index("project_id") + 1 if "project_id" in query.parameters else 0
    given = re.compile(rf"project_id\)?(?:::\w+)? = \(?\${number}\b")
    nodes = list(_nodes(plan))
    # What comes out of a part of the statement was read by it, under the same test.
    bound = {node["Alias"] for node in nodes if node["Node Type"] in ("CTE Scan", "Subquery Scan")}
    waiting = [node for node in nodes if "Scan" in node["Node Type"] and node.get("Relation Name") in positions]
    waiting = [node for node in waiting if node["Node Type"] != "CTE Scan"]
    while waiting:
        found = [node for node in waiting if any(map(given.search, _conditions(node))) or _follows(node, bound)]
        if not found:
            break
        bound |= {node["Alias"] for node in found}
        waiting = [node for node in waiting if node not in found]
    wrong = [f"{node['Node Type']} {node['Relation Name']}: {' AND '.join(_conditions(node))}" for node in waiting]
    for node in nodes:
        if node.get("Operation") == "Insert" and node["Relation Name"] in positions:
            value = _inserted(node, query, positions[node["Relation Name"]])
            if not re.fullmatch(rf"\(?\${number}\)?(::\w+)?|\w+\.project_id|project_id", value):
                wrong.append(f"Insert {node['Relation Name']}: {value}")
    return wrong


def _inserted(node: dict[str, Any], query: Query, position: int) -> str:
    """What an INSERT gives as the project_id: its source has the columns of the table."""
    source = next(child for child in node["Plans"] if child["Parent Relationship"] == "Outer")
    value = str(source["Output"][position - 1])
    if not value.startswith('"*SELECT*".'):
        return value
    # Handed on from below, where the columns are those that the statement lists.
    listed = re.search(rf"INSERT INTO {node['Relation Name']}[^(]*\(([^)]*)\)", query.sql)
    assert listed is not None
    columns = [column.strip() for column in listed[1].split(",")]
    return str(source["Plans"][0]["Output"][columns.index("project_id")])


def _follows(node: dict[str, Any], bound: set[str]) -> bool:
    """Whether the rows of a scan are those of the project of rows that are bound."""
    pattern = re.compile(r"project_id\)?(?:::\w+)? = \(?(\w+)\.project_id")
    return any(other in bound for condition in _conditions(node) for other in pattern.findall(condition))


def _conditions(node: dict[str, Any]) -> list[str]:
    """What holds for every row of a scan; what is only one side of an OR does not count."""
    names = ("Index Cond", "Recheck Cond", "Filter", "TID Cond")
    parts = [part for name in names if name in node for part in _conjuncts(str(node[name]))]
    return [part for part in parts if " OR " not in part]


def _conjuncts(text: str) -> list[str]:
    """The parts of a condition that AND joins at its outermost level."""
    parts, depth, begin = [], 0, 0
    inner = text[1:-1] if text.startswith("(") and text.endswith(")") else text
    for index, letter in enumerate(inner):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth < 0:
            # The first and the last parenthesis are no pair.
            return [text]
        if depth == 0 and inner.startswith(" AND ", index):
            parts.append(inner[begin:index])
            begin = index + len(" AND ")
    return [*parts, inner[begin:]]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        # An index has its condition in the bitmap's node above it, once more.
        if child["Node Type"] != "Bitmap Index Scan":
            yield from _nodes(child)


@pytest.mark.parametrize(("package", "query"), STATEMENTS, ids=[f"{p}.{q.name}" for p, q in STATEMENTS])
def test_no_statement_takes_whatever_columns_there_are(package: str, query: Query) -> None:
    """X3: columns are listed, so that an older server runs on a newer schema."""
    assert not re.search(r"\bSELECT\s+(\w+\.)?\*|\bRETURNING\s+\*", query.sql)


@pytest.mark.parametrize(("package", "query"), STATEMENTS, ids=[f"{p}.{q.name}" for p, q in STATEMENTS])
async def test_only_the_log_of_a_project_walks_in_the_order_of_time(
    database: Database, package: str, query: Query
) -> None:
    """E8, E9: no other statement can be planned over the indexes that hold a whole project by time, however small the
    tables were when it was planned; and those of the log can."""
    walks = package == "onefold.activity" and query.name in {
        "created_of_project",
        "ledger_of_person",
        "ledger_of_project",
        "events_of_project",
        "anonymous_events_of_project",
        "invites_of_project",
    }
    # Of the few rows that tests leave, to read all and sort them may seem as cheap.
    orders = ("sort", "incremental_sort") if walks else ()
    rows = await database.read(lambda connection: _plan(connection, query, without=orders))
    indexes = set(re.findall(r"\w+_by_(?:source_)?time\w*|\w+_project_id_event_time_event_id_idx", "\n".join(rows)))
    assert bool(indexes) == walks


async def _plan(
    connection: Connection, query: Query, options: str = "VERBOSE OFF", without: Sequence[str] = ()
) -> list[str]:
    # Without values nothing would be left of a partitioned table.
    switches = [f"enable_{name}" for name in ("partition_pruning", *without)]
    # SQL's own PREPARE takes no statement that makes a table; what fills the table is what is planned.
    sql = re.sub(r"^CREATE TEMP TABLE \w+ ON COMMIT DROP AS\s", "", query.sql)
    await connection.execute("".join(f"SET {name} = off; " for name in switches) + f"PREPARE planned AS {sql}")
    try:
        nothing = ", ".join("NULL" for _ in query.parameters)
        # The generic plan, which every connection keeps.
        rows = await connection.fetch(f"EXPLAIN ({options}) EXECUTE planned{f'({nothing})' if nothing else ''}")
    finally:
        await connection.execute("DEALLOCATE planned" + "".join(f"; RESET {name}" for name in switches))
    return [row[0] for row in rows]
