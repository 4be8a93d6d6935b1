"""SQL that lives in .sql files, loaded by name.

A file holds statements, each introduced by `-- name: the_name` and a comment that says why it is as it is. Parameters
are written `:name`; the loader turns them into PostgreSQL's `$1`, `$2`, ... in order of first use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from onefold import failpoints

Record: TypeAlias = asyncpg.Record
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

_NAME = re.compile(r"^-- name: ([a-z_0-9]+)$", re.MULTILINE)
# A parameter is a colon and a name; a cast has two colons, and a time of day in a literal has a digit after its colon.
_PARAMETER = re.compile(r"(?<![:\w]):([a-z_]\w*)")


@dataclass(frozen=True, slots=True)
class Query:
    """One statement. Its methods take the parameters by name and raise asyncpg's errors as they are."""

    name: str
    sql: str
    parameters: tuple[str, ...]

    def arguments(self, values: Mapping[str, object]) -> list[object]:
        """The values in the order of the statement's numbers. KeyError or TypeError if they are not the parameters."""
        if len(values) != len(self.parameters):
            raise TypeError(f"{self.name} takes {self.parameters}, not {tuple(values)}")
        return [values[parameter] for parameter in self.parameters]

    async def fetch(self, connection: Connection, **values: object) -> list[Record]:
        """All rows."""
        if failpoints.hook is not None:
            await failpoints.hook(self.name, connection)
        return await connection.fetch(self.sql, *self.arguments(values))

    async def fetchrow(self, connection: Connection, **values: object) -> Record | None:
        """The first row, or None."""
        if failpoints.hook is not None:
            await failpoints.hook(self.name, connection)
        return await connection.fetchrow(self.sql, *self.arguments(values))

    async def fetchval(self, connection: Connection, **values: object) -> Any:
        """The first column of the first row, or None."""
        if failpoints.hook is not None:
            await failpoints.hook(self.name, connection)
        return await connection.fetchval(self.sql, *self.arguments(values))

    async def execute(self, connection: Connection, **values: object) -> int:
        """Runs the statement; returns the number of rows it touched, 0 where that has no meaning."""
        if failpoints.hook is not None:
            await failpoints.hook(self.name, connection)
        tag = await connection.execute(self.sql, *self.arguments(values))
        count = tag.rsplit(" ", 1)[-1]
        return int(count) if count.isdigit() else 0


class Queries:
    """The statements of one package's .sql file, by attribute: `queries.find_holders`."""

    def __init__(self, package: str, file: str = "queries.sql") -> None:
        text = resources.files(package).joinpath(file).read_text(encoding="utf-8")
        heads = list(_NAME.finditer(text))
        ends = [head.start() for head in heads[1:]] + [len(text)]
        self._queries = {
            head.group(1): _parse(head.group(1), text[head.end() : end]) for head, end in zip(heads, ends, strict=True)
        }
        if len(self._queries) != len(heads):
            raise ValueError(f"{package}/{file} names a statement twice")

    def __getattr__(self, name: str) -> Query:
        try:
            return self._queries[name]
        except KeyError:
            raise AttributeError(name) from None

    def __iter__(self) -> Iterator[Query]:
        return iter(self._queries.values())


def _parse(name: str, body: str) -> Query:
    # The comments stay out of what is sent: they are for the reader of the file.
    sql = "\n".join(line for line in body.splitlines() if not line.lstrip().startswith("--")).strip().rstrip(";")
    parameters: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${parameters.setdefault(match.group(1), len(parameters) + 1)}"

    numbered = _PARAMETER.sub(number, sql)
    return Query(name, numbered, tuple(parameters))
