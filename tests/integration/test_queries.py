"""The statements in the .sql files, against the real schema."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module, resources

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
    "describe_intent",
    "table_columns",
    "oldest_wanted_event",
    "purge_default_partition",
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
def test_no_statement_takes_whatever_columns_there_are(package: str, query: Query) -> None:
    """X3: columns are listed, so that an older server runs on a newer schema."""
    assert not re.search(r"\bSELECT\s+(\w+\.)?\*|\bRETURNING\s+\*", query.sql)


@pytest.mark.parametrize(("package", "query"), STATEMENTS, ids=[f"{p}.{q.name}" for p, q in STATEMENTS])
async def test_only_the_log_of_a_project_walks_in_the_order_of_time(
    database: Database, package: str, query: Query
) -> None:
    """E8, E9: no other statement can be planned over the indexes that hold a whole project by time, however small the
    tables were when it was planned; and those of the log are."""
    rows = await database.read(lambda connection: _plan(connection, query))
    indexes = set(re.findall(r"\w+_by_(?:source_)?time\w*|\w+_project_id_event_time_event_id_idx", "\n".join(rows)))
    walks = package == "onefold.activity" and query.name in {
        "created_of_project",
        "ledger_of_person",
        "ledger_of_project",
        "events_of_project",
        "anonymous_events_of_project",
        "invites_of_project",
    }
    assert bool(indexes) == walks


async def _plan(connection: Connection, query: Query) -> list[str]:
    # Without values nothing would be left of a partitioned table.
    await connection.execute(f"SET enable_partition_pruning = off; PREPARE planned AS {query.sql}")
    try:
        nothing = ", ".join("NULL" for _ in query.parameters)
        # The generic plan, which every connection keeps.
        rows = await connection.fetch(f"EXPLAIN EXECUTE planned{f'({nothing})' if nothing else ''}")
    finally:
        await connection.execute("DEALLOCATE planned; RESET enable_partition_pruning")
    return [row[0] for row in rows]
