"""Bringing a project in: the rows first, some megabytes a transaction, and the project itself last.

Until then nobody can reach the rows, for every call begins with a key of the project. How far the import is stands in
the database and moves with the rows, so an import that was interrupted goes on where it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import asyncpg
import orjson

from onefold.config import Settings
from onefold.db.errors import LOST_CONNECTION, translate
from onefold.db.migrate import connect, require_schema_on
from onefold.db.queries import Connection
from onefold.errors import Reason, Violation, already_exists, failed_precondition, invalid
from onefold.projects.keys import new_key
from onefold.projects.rules import ALL_SCOPES, project_id_problem, split_key
from onefold.projects.store import get_project, hold_project_id, insert_api_key
from onefold.transfer.exporting import DELIMITER, QUOTE, forget_proof
from onefold.transfer.file import Checked, Section, blocks, wrong
from onefold.transfer.tables import TABLES, Table, columns_of, queries

_DISCARD_ROWS: Final = 50_000
_PIECE_BYTES: Final = 64 * 1024
_TABLES: Final = {table.name: table for table in TABLES}


async def import_project(
    settings: Settings,
    file: Checked,
    *,
    project_id: str | None = None,
    drop_forgotten: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> str:
    """Brings in a file that was checked, under its project's id or another; returns the text of a first key.

    Run again after an interruption it goes on where it was. Raises OnefoldError.
    """
    project_id = project_id or file.head.project_id
    _require_id(project_id)
    connection = await connect(settings.database_url)
    try:
        await require_schema_on(connection)
        columns = await _columns(connection, file)
        skipped = await _check_forgotten(connection, settings, file, drop_forgotten=drop_forgotten)
        section, offset = await _begin(connection, project_id, file)
        await connection.execute("CREATE TEMP TABLE staged (line json NOT NULL) ON COMMIT DELETE ROWS")
        names = [each.name for each in file.sections]
        for each in file.sections[names.index(section) if section else 0 :]:
            if each.name not in skipped:
                start = offset if each.name == section else each.start
                await _bring_in(connection, project_id, file, each, start, columns[each.name], on_bytes)
        return await _finish(connection, project_id, file)
    except (*LOST_CONNECTION, asyncpg.PostgresError) as error:
        raise translate(error) or error from None
    finally:
        await connection.close()


async def discard_import(settings: Settings, project_id: str) -> int:
    """Removes what an interrupted import has brought in; returns how many rows. Raises OnefoldError."""
    _require_id(project_id)
    connection = await connect(settings.database_url)
    try:
        await _hold(connection, project_id)
        if await queries.find_import.fetchrow(connection, project_id=project_id) is None:
            raise failed_precondition(Reason.INTERNAL, f"There is no unfinished import of {project_id}.")
        removed = 0
        for table in TABLES:
            # In steps, so that no transaction holds the database up.
            sql = (
                f"DELETE FROM {table.name} WHERE project_id = $1 AND (tableoid, ctid) IN "  # noqa: S608
                f"(SELECT tableoid, ctid FROM {table.name} WHERE project_id = $1 LIMIT {_DISCARD_ROWS})"
            )
            while count := int((await connection.execute(sql, project_id)).rpartition(" ")[2]):
                removed += count
        await queries.end_import.execute(connection, project_id=project_id)
        return removed
    except (*LOST_CONNECTION, asyncpg.PostgresError) as error:
        raise translate(error) or error from None
    finally:
        await connection.close()


async def _columns(connection: Connection, file: Checked) -> dict[str, dict[str, str]]:
    """The columns of each of the file's tables, with their types. Refuses a file that has more than this database."""
    found = {}
    for section in file.sections:
        known = await columns_of(connection, section.name) if section.name in _TABLES else {}
        told = file.head.columns.get(section.name, ())
        if not told or not set(told) <= set(known):
            raise wrong(file.path, f"has {section.name} that this version does not know: import it with a newer one")
        found[section.name] = {name: known[name] for name in told}
    return found


async def _check_forgotten(
    connection: Connection, settings: Settings, file: Checked, *, drop_forgotten: bool
) -> set[str]:
    """The sections to leave out. Hashes that are keyed otherwise would block nobody, in silence."""
    if drop_forgotten:
        return {"forgotten"}
    told = file.head.forget_proof
    if told is not None and told != await forget_proof(connection, settings, file.head.forget_name):
        raise failed_precondition(
            Reason.INTERNAL,
            f"{file.path} has hashes of forgotten identifiers under another secret: set ONEFOLD_FORGET_SECRET as where "
            "it was exported, or give --drop-forgotten, which lets those identifiers come back",
        )
    return set()


async def _begin(connection: asyncpg.Connection[asyncpg.Record], project_id: str, file: Checked) -> tuple[str, int]:
    """The section and the place in the file where to go on."""
    await _hold(connection, project_id)
    async with connection.transaction():
        await hold_project_id(connection, project_id)
        if await get_project(connection, project_id) is not None:
            raise already_exists(
                Reason.PROJECT_EXISTS, f"There is a project {project_id} already: choose another id with --project."
            )
        row = await queries.find_import.fetchrow(connection, project_id=project_id)
        if row is None:
            await queries.begin_import.execute(connection, project_id=project_id, file_hash=file.sha256)
            return "", 0
    if row["file_hash"] != file.sha256:
        raise failed_precondition(
            Reason.INTERNAL,
            f"An import of another file into {project_id} is unfinished: run it again, or remove what it has brought "
            f"in: onefold import --discard {project_id}",
        )
    return row["section"], row["byte_offset"]


async def _hold(connection: Connection, project_id: str) -> None:
    if not await queries.hold_import.fetchval(connection, project_id=project_id):
        raise failed_precondition(Reason.INTERNAL, f"An import of {project_id} is running already.")


async def _bring_in(
    connection: asyncpg.Connection[asyncpg.Record],
    project_id: str,
    file: Checked,
    section: Section,
    start: int,
    columns: Mapping[str, str],
    on_bytes: Callable[[int], None],
) -> None:
    table: Table = _TABLES[section.name]
    sql = table.import_sql(columns)
    for block, end in blocks(file.path, section, start):
        try:
            async with connection.transaction():
                await connection.copy_to_table(
                    "staged", source=_pieces(block), format="csv", delimiter=DELIMITER, quote=QUOTE
                )
                tag = await connection.execute(sql, project_id)
                if int(tag.rpartition(" ")[2]) != block.count(b"\n"):
                    raise wrong(file.path, f"changed while it was read, among its {section.name}")
                await queries.note_import.execute(
                    connection, section=section.name, byte_offset=end, project_id=project_id
                )
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError):
            # Its hash is right, so somebody has made it by hand.
            raise wrong(file.path, f"has {section.name} that cannot be stored, before byte {end}") from None
        on_bytes(end)


async def _pieces(block: bytes) -> AsyncIterator[bytes]:
    """A block as asyncpg takes it without keeping it: of what it reads from a file object it holds every byte until the
    garbage collector comes by, which is the whole file."""
    for start in range(0, len(block), _PIECE_BYTES):
        yield block[start : start + _PIECE_BYTES]


async def _finish(connection: asyncpg.Connection[asyncpg.Record], project_id: str, file: Checked) -> str:
    """Makes the project, and with it everything visible; returns a key."""
    known = await columns_of(connection, "projects")
    row = {name: value for name, value in file.head.project.items() if name in known}
    types = ", ".join(f"{name} {known[name]}" for name in row)
    text = new_key(project_id)
    async with connection.transaction():
        await _raise_operation_numbers(connection, project_id)
        if row.get("server_side_activation"):
            await queries.add_visitors.execute(connection, project_id=project_id)
        await queries.expire_cursors.execute(connection, project_id=project_id)
        await connection.execute(
            f"INSERT INTO projects (project_id, forget_name, {', '.join(row)}) "  # noqa: S608 - names of the catalog
            f"SELECT $1, $2, {', '.join(row)} FROM json_to_record($3::json) AS r ({types})",
            project_id,
            file.head.forget_name,
            orjson.dumps(row).decode(),
        )
        await insert_api_key(connection, project_id, split_key(text), ALL_SCOPES, "first key", None)
        await queries.end_import.execute(connection, project_id=project_id)
    return text


async def _raise_operation_numbers(connection: Connection, project_id: str) -> None:
    """A disable must have a larger number than every registration before it, also than those that came along."""
    largest = await queries.largest_operation.fetchval(connection, project_id=project_id)
    if largest is None:
        return
    # ALTER SEQUENCE keeps others from taking numbers until the commit; asking first would let them in between.
    await connection.execute("SET LOCAL lock_timeout = '10s'")
    await connection.execute("ALTER SEQUENCE operation_numbers INCREMENT BY 1")
    if largest >= await connection.fetchval("SELECT last_value FROM operation_numbers"):
        await connection.execute(f"ALTER SEQUENCE operation_numbers RESTART WITH {int(largest) + 1}")


def _require_id(project_id: str) -> None:
    problem: Any = project_id_problem(project_id)
    if problem:
        raise invalid([Violation("project_id", problem)])
