"""Migrations: numbered .sql files, each applied once, in one transaction, in order, by one process at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

import asyncpg

from onefold.db.errors import LOST_CONNECTION, unavailable
from onefold.db.partitions import ensure_partitions
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, failed_precondition

# Any number will do that nobody else uses in this database.
_LOCK_KEY = 0x6F6E65666F6C64


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name without ".sql", its text and the SHA-256 of that."""

    version: int
    name: str
    sql: str
    checksum: str


def migrations() -> list[Migration]:
    """Every migration that this version of onefold knows, in order."""
    found = []
    for file in resources.files("onefold.db").joinpath("migrations").iterdir():
        if file.name.endswith(".sql"):
            sql = file.read_text(encoding="utf-8")
            name = file.name.removesuffix(".sql")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            found.append(Migration(int(name.split("_", 1)[0]), name, sql, checksum))
    return sorted(found, key=lambda migration: migration.version)


async def migrate(database_url: str) -> list[str]:
    """Brings the schema up to date and makes the partitions ahead; returns the names of the migrations applied.

    Raises OnefoldError: UNAVAILABLE when PostgreSQL cannot be reached, FAILED_PRECONDITION when a migration that was
    applied has been edited since.
    """
    connection = await _connect(database_url)
    try:
        # Held until the connection closes: a second process waits, and then finds nothing left to do.
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            "version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, "
            "apply_time timestamptz NOT NULL DEFAULT now())"
        )
        applied = {
            row["version"]: row["checksum"]
            for row in await connection.fetch("SELECT version, checksum FROM schema_migrations")
        }
        done = []
        for migration in migrations():
            if migration.version not in applied:
                async with connection.transaction():
                    await connection.execute(migration.sql)
                    await connection.execute(
                        "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
                        migration.version,
                        migration.name,
                        migration.checksum,
                    )
                done.append(migration.name)
            elif applied[migration.version] != migration.checksum:
                raise failed_precondition(
                    Reason.INTERNAL, f"Migration {migration.name} was changed after it had been applied."
                )
        await ensure_partitions(connection)
        return done
    finally:
        await connection.close()


async def missing_migrations(connection: Connection) -> list[str]:
    """The names of the migrations that the database lacks. A database that has more is newer, and is fine."""
    exists = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
    rows = await connection.fetch("SELECT version FROM schema_migrations") if exists else []
    applied = {row["version"] for row in rows}
    return [migration.name for migration in migrations() if migration.version not in applied]


async def require_schema(database: Database) -> None:
    """Refuses to start on a schema that is older than this version. A newer one is fine: migrations only add."""
    missing = await database.read(missing_migrations)
    if missing:
        raise failed_precondition(Reason.INTERNAL, f"The database lacks {', '.join(missing)}. Run: onefold migrate")


async def _connect(database_url: str) -> asyncpg.Connection[asyncpg.Record]:
    try:
        return await asyncpg.connect(database_url, timeout=5.0, server_settings={"timezone": "UTC"})
    except (*LOST_CONNECTION, TimeoutError):
        raise unavailable() from None
    except asyncpg.InvalidCatalogNameError:
        raise OnefoldError(
            unavailable().kind, Reason.DATABASE_UNAVAILABLE, "The database named in the URL does not exist."
        ) from None
    except asyncpg.PostgresError as error:
        raise OnefoldError(unavailable().kind, Reason.DATABASE_UNAVAILABLE, type(error).__name__) from None
