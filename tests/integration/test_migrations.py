"""Migrations: what is applied, what is refused, and who may run on what they make."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from onefold.config import Settings
from onefold.db.migrate import Migration, State, migrate, migrations, standing
from onefold.errors import OnefoldError
from onefold.projects.bootstrap import ensure_project
from onefold.v1.identity_service_pb2 import ForgetProfileRequest
from support.client import Client, email
from support.commands import invoked, refused
from support.databases import empty_database
from support.merging import devices, disable, fields, identify, merge, put, register, undo
from support.probes import eventually, held, world_of
from support.serving import served

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
A, B = email("a@example.com"), email("b@example.com")
FIRST = Migration.of(
    "0001_first",
    "CREATE TABLE first (n integer);\nINSERT INTO first VALUES (1);\n"
    # Migrating makes the partitions of this one as well.
    "CREATE TABLE anonymous_events (event_time timestamptz NOT NULL) PARTITION BY RANGE (event_time);\n"
    "CREATE TABLE anonymous_events_default PARTITION OF anonymous_events DEFAULT;\n",
)
INDEX = Migration.of(
    "0002_index",
    "-- without transaction\n-- Said again, it begins anew.\nDROP INDEX CONCURRENTLY IF EXISTS first_n;\n"
    "CREATE INDEX CONCURRENTLY first_n\nON first (n);\n",
)


@pytest_asyncio.fixture
async def url(settings: Settings) -> AsyncIterator[str]:
    """An empty database."""
    async with empty_database(settings.database_url, "migrating") as own:
        yield own


async def value(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def told(url: str) -> dict[str, str]:
    """The environment of a command on a database."""
    return {"ONEFOLD_DATABASE_URL": url, "ONEFOLD_REDIS_URL": "redis://127.0.0.1:1"}


async def test_the_schema_that_is_written_down(settings: Settings, url: str) -> None:
    """F27: src/onefold/db/schema.sql is the sum of the migrations; after a new one run scripts/gen-schema."""
    await migrate(url)
    schema = runpy.run_path(str(SCRIPTS / "lib" / "schema.py"))
    assert schema["dump"](url) == schema["FILE"].read_text(encoding="utf-8")


async def test_how_migrations_stand(url: str) -> None:
    """F27: --status tells of every migration whether it is applied and when, pending, changed, or newer; --dry-run
    prints what would be run and runs nothing."""
    names = [migration.name for migration in migrations()]
    before = await invoked("migrate", "--status", "--json", **told(url))
    assert before.exit_code == 1
    assert [json.loads(line)["state"] for line in before.stdout.splitlines()] == ["pending"] * len(names)
    dry = await invoked("migrate", "--dry-run", **told(url))
    assert dry.exit_code == 0
    assert all(f"-- {migration.name}\n{migration.sql.rstrip()}" in dry.stdout for migration in migrations())
    assert await value(url, "SELECT to_regclass('schema_migrations') IS NULL AND to_regclass('projects') IS NULL")

    applied = await invoked("migrate", **told(url))
    assert (applied.exit_code, applied.stdout.splitlines()) == (0, [f"applied {name}" for name in names])
    after = await invoked("migrate", "--status", **told(url))
    assert after.exit_code == 0
    assert after.stdout.count("applied") == len(names) + 1
    assert (await invoked("migrate", "--dry-run", **told(url))).stdout == "up to date\n"

    await value(url, "INSERT INTO schema_migrations VALUES (9999, '9999_of_tomorrow', '') RETURNING 1")
    newer = await invoked("migrate", **told(url))
    assert (newer.exit_code, newer.stdout) == (0, "up to date; a newer version has applied 9999_of_tomorrow\n")
    assert (await standing(url))[-1].state is State.NEWER

    await value(url, "UPDATE schema_migrations SET checksum = 'other' WHERE version = 2 RETURNING 1")
    assert names[1] in refused(await invoked("migrate", **told(url)))
    assert names[1] in refused(await invoked("migrate", "--dry-run", **told(url)))
    changed = await invoked("migrate", "--status", **told(url))
    assert (changed.exit_code, changed.stdout.count("changed")) == (1, 1)


async def test_a_changed_migration_stops_all(url: str) -> None:
    """F27: where a migration was edited after it had been applied, none is applied at all."""
    await migrate(url, known=[FIRST])
    edited = Migration.of(FIRST.name, FIRST.sql + "-- edited")
    with pytest.raises(OnefoldError, match="0001_first"):
        await migrate(url, known=[edited, INDEX])
    assert await value(url, "SELECT to_regclass('first_n')") is None


async def test_a_migration_that_fails(url: str) -> None:
    """F27: a migration that fails leaves nothing of itself, and those before it stay."""
    failing = Migration.of("0002_failing", "CREATE TABLE second (n integer);\nSELECT 1 / 0;\n")
    with pytest.raises(OnefoldError, match="0002_failing could not be applied: DivisionByZeroError"):
        await migrate(url, known=[FIRST, failing])
    assert [each.state for each in await standing(url, [FIRST, failing])] == [State.APPLIED, State.PENDING]
    assert await value(url, "SELECT to_regclass('second')") is None


async def test_an_index_without_a_transaction(url: str) -> None:
    """F27: a migration marked "without transaction" may build an index while others write, also when a second process
    migrates at the same time, and is run again when it was cut off."""
    await migrate(url, known=[FIRST])
    # What a build that was cut off leaves behind.
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE INDEX first_n ON first (n)")
    await connection.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'first_n'::regclass")
    await connection.close()
    waited: list[bool] = []
    # A writer that has not ended holds the build up; meanwhile the second process waits for the first.
    async with held(url, ("INSERT INTO first VALUES (2)", ())) as writer:
        both = [
            asyncio.create_task(migrate(url, known=[FIRST, INDEX], on_waiting=lambda: waited.append(True)))
            for _ in range(2)
        ]

        async def one_waits() -> bool:
            return bool(waited)

        await eventually(one_waits)
        # Nobody else is held up: that is what it is for.
        await value(url, "INSERT INTO first VALUES (3) RETURNING 1")
        await writer.commit()
        assert sorted(await asyncio.gather(*both)) == [[], [INDEX.name]]
    assert await value(url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'first_n'::regclass")


async def test_this_version_on_a_newer_schema(settings: Settings, url: str) -> None:
    """F27: a server and the workers' code of this version run on a schema to which a newer version has added a nullable
    column to every table, a table and an index."""
    tables = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition"
    tomorrow = Migration.of(
        "9999_of_tomorrow",
        f"DO $$ DECLARE name text; BEGIN FOR name IN {tables} "
        "AND relnamespace = 'public'::regnamespace LOOP "
        "EXECUTE format('ALTER TABLE %I ADD COLUMN of_tomorrow text', name); END LOOP; END $$;\n"
        "CREATE TABLE tomorrow (project_id text PRIMARY KEY);\n"
        "CREATE INDEX profiles_of_tomorrow ON profiles (project_id, of_tomorrow);\n",
    )
    await migrate(url, known=[*migrations(), tomorrow])
    assert await migrate(url) == []
    key = await ensure_project(url, project_id="shop", identifier_type="EMAIL", api_key=None)
    own = settings.model_copy(update={"database_url": url, "drain_seconds": 0.0})
    async with served(own) as channel, world_of(url) as world:
        client = Client(channel, "shop", key)
        await put(client, A, '{"a":1}')
        await put(client, B, '{"b":2}')
        await client.track(anonymous_id="x", name="seen", event_id="1")
        await identify(client, B, "x")
        await register(client, B, "t")
        merged = (await merge(client, B, A)).merge.merge_id
        await world.settle("shop")
        assert await client.names(identifiers=A) == ["seen"]
        assert await fields(client, A) == {"a": 1, "b": 2}
        await undo(client, merged)
        await disable(client, "t")
        await world.settle("shop")
        assert await client.names(identifiers=B) == ["seen"]
        assert await devices(client, B) == {"t": False}
        await client.identity.ForgetProfile(ForgetProfileRequest(identifiers=B))
        await world.settle("shop")
        assert await world.value("SELECT count(*) FROM events WHERE project_id = 'shop'") == 0
