"""Migrations: numbered .sql files, each applied once, in one transaction, in order, by one process at a time.

A file whose first line is "-- without transaction" is run statement by statement, for what PostgreSQL does outside of
transactions only (CREATE INDEX CONCURRENTLY). It may be cut off between two of them and is then run again from its
beginning, so each of its statements must bear that: DROP INDEX CONCURRENTLY IF EXISTS first.
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from typing import Final

import asyncpg

from onefold.db.errors import LOST_CONNECTION, translate, unavailable
from onefold.db.partitions import ensure_partitions
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError, Reason, failed_precondition

# Any number will do that nobody else uses in this database.
_LOCK_KEY: Final = 0x6F6E65666F6C64
_LOCK_POLL_SECONDS: Final = 0.2
_WITHOUT_TRANSACTION: Final = "-- without transaction"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name without ".sql", its text and the SHA-256 of that."""

    version: int
    name: str
    sql: str
    checksum: str

    @classmethod
    def of(cls, name: str, sql: str) -> Migration:
        """The migration in a file of this name, without its ".sql"."""
        return cls(int(name.split("_", 1)[0]), name, sql, hashlib.sha256(sql.encode()).hexdigest())

    @property
    def in_transaction(self) -> bool:
        """Whether it is applied as a whole or not at all."""
        return self.sql.partition("\n")[0].strip() != _WITHOUT_TRANSACTION

    def statements(self) -> Iterator[str]:
        """The statements of one that is run without a transaction; each ends at the end of a line."""
        lines = [line for line in self.sql.splitlines() if not line.lstrip().startswith("--")]
        for statement in "\n".join(lines).split(";\n"):
            if statement.strip().rstrip(";"):
                yield statement.strip().rstrip(";")


class State(enum.StrEnum):
    """How a migration stands in a database."""

    APPLIED = "applied"
    PENDING = "pending"
    # Applied, but its file has been edited since: nobody knows what the schema is.
    CHANGED = "changed"
    # Applied by a newer version of onefold.
    NEWER = "newer"


@dataclass(frozen=True, slots=True)
class Status:
    """One migration, and how it stands."""

    name: str
    state: State
    apply_time: datetime | None


def migrations() -> list[Migration]:
    """Every migration that this version of onefold knows, in order."""
    found = [
        Migration.of(file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in resources.files("onefold.db").joinpath("migrations").iterdir()
        if file.name.endswith(".sql")
    ]
    return sorted(found, key=lambda migration: migration.version)


async def migrate(
    database_url: str,
    *,
    known: Sequence[Migration] | None = None,
    on_applied: Callable[[str], None] = lambda _: None,
    on_waiting: Callable[[], None] = lambda: None,
) -> list[str]:
    """Brings the schema up to date and makes the partitions ahead; returns the names of the migrations applied.

    `on_applied` is told each as soon as it is, `on_waiting` once if another process is migrating. `known` replaces the
    migrations of this version.

    Raises OnefoldError: UNAVAILABLE when PostgreSQL cannot be reached, FAILED_PRECONDITION when a migration that was
    applied has been edited since.
    """
    known = migrations() if known is None else known
    connection = await connect(database_url)
    try:
        await _lock(connection, on_waiting)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            "version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, "
            "apply_time timestamptz NOT NULL DEFAULT now())"
        )
        standing = await _standing(connection, known)
        # Before anything is done: what comes next may build on what was meant, not on what is there.
        for status in standing:
            if status.state is State.CHANGED:
                raise failed_precondition(
                    Reason.INTERNAL,
                    f"Migration {status.name} was changed after it had been applied. Restore its file; "
                    "a change of the schema is a new migration.",
                )
        pending = {status.name for status in standing if status.state is State.PENDING}
        done = []
        for migration in known:
            if migration.name in pending:
                await _apply(connection, migration)
                done.append(migration.name)
                on_applied(migration.name)
        await ensure_partitions(connection)
        return done
    except (*LOST_CONNECTION, asyncpg.PostgresError) as error:
        raise translate(error) or error from None
    finally:
        await connection.close()


async def standing(database_url: str, known: Sequence[Migration] | None = None) -> list[Status]:
    """How each migration stands, in order; writes nothing. Raises OnefoldError as `migrate` does."""
    connection = await connect(database_url)
    try:
        return await _standing(connection, migrations() if known is None else known)
    except (*LOST_CONNECTION, asyncpg.PostgresError) as error:
        raise translate(error) or error from None
    finally:
        await connection.close()


async def missing_migrations(connection: Connection) -> list[str]:
    """The names of the migrations that the database lacks. A database that has more is newer, and is fine."""
    return [status.name for status in await _standing(connection, migrations()) if status.state is State.PENDING]


async def require_schema(database: Database) -> None:
    """Refuses to start on a schema that is older than this version. A newer one is fine: migrations only add."""
    await database.read(require_schema_on)


async def require_schema_on(connection: Connection) -> None:
    """The same on one connection."""
    missing = await missing_migrations(connection)
    if missing:
        raise failed_precondition(Reason.INTERNAL, f"The database lacks {', '.join(missing)}. Run: onefold migrate")


async def _standing(connection: Connection, known: Sequence[Migration]) -> list[Status]:
    exists = await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL")
    rows = (
        await connection.fetch("SELECT version, name, checksum, apply_time FROM schema_migrations ORDER BY version")
        if exists
        else []
    )
    applied = {row["version"]: row for row in rows}
    found = []
    for migration in known:
        row = applied.pop(migration.version, None)
        if row is None:
            found.append(Status(migration.name, State.PENDING, None))
        else:
            state = State.APPLIED if row["checksum"] == migration.checksum else State.CHANGED
            found.append(Status(migration.name, state, row["apply_time"]))
    return found + [Status(row["name"], State.NEWER, row["apply_time"]) for row in applied.values()]


async def _apply(connection: Connection, migration: Migration) -> None:
    note = (
        "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)",
        migration.version,
        migration.name,
        migration.checksum,
    )
    try:
        if migration.in_transaction:
            async with connection.transaction():
                await connection.execute(migration.sql)
                await connection.execute(*note)
            return
        for statement in migration.statements():
            await connection.execute(statement)
        await connection.execute(*note)
    except asyncpg.PostgresError as error:
        raise translate(error) or failed_precondition(
            Reason.INTERNAL, f"Migration {migration.name} could not be applied: {type(error).__name__}."
        ) from None


async def _lock(connection: Connection, on_waiting: Callable[[], None]) -> None:
    """Takes the lock of migrations, which is held until the connection closes: whoever comes second has nothing to do.

    Asked for again and again rather than waited for in PostgreSQL: CREATE INDEX CONCURRENTLY waits for every statement
    that runs, and two migrating processes would wait for each other.
    """
    while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK_KEY):
        on_waiting()
        on_waiting = _nothing
        await asyncio.sleep(_LOCK_POLL_SECONDS)


def _nothing() -> None:
    return


async def connect(database_url: str) -> asyncpg.Connection[asyncpg.Record]:
    """One connection for long work of an operator, without the time limits of servers and workers.

    Raises OnefoldError with what is wrong with the address.
    """
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
