"""What an audit looks at and what it notes: tables as a whole, Valkey, the logs of the processes."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from chaos.log import CANARY, Entry

QUIET_SECONDS: Final = 180.0
_TABLES: Final = """
SELECT r.relname AS name
FROM pg_class AS r
WHERE r.relnamespace = 'public'::regnamespace AND r.relkind IN ('r', 'p') AND NOT r.relispartition
ORDER BY 1
"""


@dataclass(frozen=True)
class Stored:
    """A row of an event as it lies: with a person, or with nobody."""

    profile_id: str | None
    anonymous_id: str | None
    receive_time: int
    event_time: int
    name: str
    data: Any


@dataclass
class Findings:
    """What is wrong, by what it is called, and the first examples in words."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str) -> None:
        """Notes one more."""
        self.counts[kind] += 1
        if self.counts[kind] <= 5:
            self.examples.append(f"{kind}: {what}")


@dataclass
class Place:
    """Where what is audited runs."""

    database_url: str
    redis_url: str
    addresses: Sequence[str]
    logs: Sequence[str]


async def tables(connection: Any) -> list[str]:
    """The names of all tables; of one in partitions the whole."""
    return [row["name"] for row in await connection.fetch(_TABLES)]


async def fingerprints(connection: Any) -> dict[str, str]:
    """What each table holds, in a few bytes."""
    found = {}
    for table in await tables(connection):
        rows = await connection.fetch(f"SELECT t::text AS row FROM {table} AS t")
        texts = sorted(row["row"] for row in rows)
        found[table] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return found


async def find_canaries(gone: set[str], connection: Any, place: Place) -> list[str]:
    """Where any of these texts still stands: in a column of a table, under a key of Valkey, in the log of a process."""
    found: list[str] = []

    def look(where: str, text: str) -> None:
        for canary in gone.intersection(CANARY.findall(text)):
            at = text.index(canary)
            found.append(f"{canary} in {where}: {text[max(at - 100, 0) : at + 60]}")

    for table in await tables(connection):
        for row in await connection.fetch(f"SELECT t::text AS row FROM {table} AS t"):
            look(table, row["row"])
    # Bytes are written in another way than the text in them.
    for row in await connection.fetch("SELECT answer FROM requests"):
        look("requests", row["answer"].decode("latin-1"))
    redis = Redis.from_url(place.redis_url)
    async for key in redis.scan_iter():
        kind = (await redis.type(key)).decode()
        value = await redis.get(key) if kind == "string" else await redis.zrange(key, 0, -1) if kind == "zset" else b""
        look("Valkey", f"{key!r} {value!r}")
    await redis.aclose()
    for log in place.logs:
        look(Path(log).name, Path(log).read_text(errors="replace"))
    return found


async def bystanders(connection: Any, header: Entry) -> str:
    """A fingerprint of another project, and of those people of this one to whom nothing is done."""
    texts = []
    for row in await connection.fetch(
        "SELECT DISTINCT c.table_name AS name, "
        "bool_or(c.column_name = 'profile_id') OVER (PARTITION BY c.table_name) AS is_about_people "
        "FROM information_schema.columns AS c "
        "JOIN pg_class AS r ON r.relname = c.table_name AND r.relkind IN ('r', 'p') AND NOT r.relispartition "
        "WHERE c.table_schema = 'public' AND c.column_name IN ('project_id', 'profile_id') ORDER BY 1"
    ):
        table = row["name"]
        others = await connection.fetch(
            f"SELECT t::text AS row FROM {table} AS t WHERE project_id = $1 ORDER BY 1", header["other"]
        )
        texts += [f"{table} {each['row']}" for each in others]
        if row["is_about_people"]:
            still = await connection.fetch(
                f"SELECT t::text AS row FROM {table} AS t "
                "WHERE project_id = $1 AND profile_id = ANY($2::uuid[]) ORDER BY 1",
                header["project"],
                [UUID(each) for each in header["still"]],
            )
            texts += [f"{table} {each['row']}" for each in still]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


async def rest(database_url: str, seconds: float = QUIET_SECONDS) -> float:
    """Waits until the workers have nothing left to do; returns how long that took. The audit finds what is left."""
    begun = time.monotonic()
    connection: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    try:
        while await connection.fetchval("SELECT count(*) FROM intents") and time.monotonic() < begun + seconds:
            await asyncio.sleep(0.1)
    finally:
        await connection.close()
    return time.monotonic() - begun


def micros_of(moment: Any) -> int:
    """A moment in microseconds since 1970, exactly."""
    seconds = int(moment.replace(microsecond=0).timestamp())
    return seconds * 1_000_000 + int(moment.microsecond)
