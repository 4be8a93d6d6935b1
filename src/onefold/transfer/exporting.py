"""Taking a project out: one snapshot, written as PostgreSQL sends it, so that memory stays as it is."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import orjson

from onefold.config import Settings
from onefold.db.errors import LOST_CONNECTION, translate
from onefold.db.migrate import connect, require_schema_on
from onefold.db.queries import Connection
from onefold.errors import Reason, failed_precondition, not_found
from onefold.limits import ANONYMOUS_LIFETIME
from onefold.projects.store import forget_secret, get_project
from onefold.transfer.file import Head, Writer
from onefold.transfer.tables import TABLES, columns_of, queries

# Characters that no JSON text holds: with these, COPY's CSV is the lines themselves.
DELIMITER: Final = "\x01"
QUOTE: Final = "\x02"
_POLL_SECONDS: Final = 0.5


async def export_project(
    settings: Settings,
    project_id: str,
    path: Path,
    *,
    wait_seconds: float,
    on_waiting: Callable[[int], None] = lambda _: None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Writes a project to a file; returns how many rows of each table.

    Waits for workers to end what they have to do for it, for so long at most. `on_waiting` hears how much that is, and
    `on_bytes` how much is written. Raises OnefoldError.
    """
    connection = await connect(settings.database_url)
    deadline = time.monotonic() + wait_seconds
    try:
        await require_schema_on(connection)
        while True:
            async with connection.transaction(isolation="repeatable_read"):
                if await get_project(connection, project_id) is None:
                    raise not_found(Reason.PROFILE_NOT_FOUND, f"There is no project {project_id}.")
                left: int = await queries.work_left.fetchval(connection, project_id=project_id)
                if not left:
                    return await _export(connection, settings, project_id, path, on_bytes)
            if time.monotonic() >= deadline:
                raise failed_precondition(
                    Reason.INTERNAL,
                    f"Workers have still {left} things to do for {project_id}: export it while nobody calls it, with a "
                    f"worker running, and see: onefold intents list --project {project_id}",
                )
            on_waiting(left)
            await asyncio.sleep(_POLL_SECONDS)
    except (*LOST_CONNECTION, asyncpg.PostgresError) as error:
        raise translate(error) or error from None
    finally:
        await connection.close()


async def _export(
    connection: Connection, settings: Settings, project_id: str, path: Path, on_bytes: Callable[[int], None]
) -> dict[str, int]:
    await connection.execute(
        f"CREATE TEMP TABLE named_visitors ON COMMIT DROP AS {queries.linked_visitors.sql}", project_id
    )
    await connection.execute("ALTER TABLE named_visitors ADD PRIMARY KEY (subject_id)")
    writer = Writer(path)

    async def write(lines: bytes) -> None:
        writer.rows(lines)
        on_bytes(writer.bytes)

    try:
        columns = {table.name: list(await columns_of(connection, table.name)) for table in TABLES}
        writer.head(await _head(connection, settings, project_id, columns))
        for table in TABLES:
            writer.section(table.name)
            sql = table.export_sql(columns[table.name])
            arguments: list[Any] = [project_id]
            if "$2" in sql:
                arguments.append(ANONYMOUS_LIFETIME)
            await connection.copy_from_query(
                sql, *arguments, output=write, format="csv", delimiter=DELIMITER, quote=QUOTE
            )
        return writer.finish()
    finally:
        writer.drop()


async def _head(connection: Connection, settings: Settings, project_id: str, columns: dict[str, list[str]]) -> Head:
    names = ", ".join(await columns_of(connection, "projects"))
    row = await connection.fetchval(
        f"SELECT row_to_json(r)::text FROM (SELECT {names} FROM projects WHERE project_id = $1) AS r",  # noqa: S608
        project_id,
    )
    forget = await queries.forget_name.fetchrow(connection, project_id=project_id)
    assert forget is not None  # the project is there
    proof = await forget_proof(connection, settings, forget["forget_name"]) if forget["has_hashes"] else None
    return Head(
        project_id=project_id,
        project=orjson.loads(row),
        forget_name=forget["forget_name"],
        forget_proof=proof,
        columns=columns,
    )


async def forget_proof(connection: Connection, settings: Settings, forget_name: str) -> str:
    """What two servers have in common exactly when hashes of forgotten identifiers mean the same to both."""
    given = settings.forget_secret
    secret = given.get_secret_value().encode() if given else await forget_secret(connection)
    key = hmac.digest(secret, forget_name.encode(), "sha256")
    return hmac.digest(key, b"onefold export", "sha256").hex()
