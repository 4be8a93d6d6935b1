"""Looking for what a test has put in, in every table and in Valkey, in clear or as the bytes of a stored answer."""

from __future__ import annotations

from redis.asyncio import Redis

from support.world import World

# Parts of partitioned tables are left out: the whole is looked at.
_TABLES = """
SELECT c.relname, EXISTS (
    SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'project_id' AND NOT a.attisdropped
) AS of_project
FROM pg_class AS c
INNER JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY c.relname
"""


async def tables_with(world: World, text: str) -> set[str]:
    """The tables of the whole database of which a row holds the text (bytea shows as hexadecimal digits)."""
    found = set()
    for table in await world.fetch(_TABLES):
        hits = await world.value(
            f"SELECT count(*) FROM {table['relname']} AS t"
            " WHERE strpos(lower(t::text), lower($1)) > 0 OR strpos(t::text, $2) > 0",
            text,
            text.encode().hex(),
        )
        if hits:
            found.add(table["relname"])
    return found


async def keys_with(url: str, text: str) -> list[bytes]:
    """The keys of Valkey that hold the text, in their name or in what they hold."""
    redis: Redis = Redis.from_url(url)
    try:
        keys = [key async for key in redis.scan_iter(count=1_000)]
        held = [(key, await _content(redis, key)) for key in keys]
    finally:
        await redis.aclose()
    return [key for key, content in held if text.encode() in key or text.encode() in content]


async def _content(redis: Redis, key: bytes) -> bytes:
    match await redis.type(key):
        case b"string":
            return bytes(await redis.get(key) or b"")
        case b"zset":
            return b"".join(await redis.zrange(key, 0, -1))
        case _:
            return bytes(await redis.dump(key) or b"")


async def rows_of(world: World, project_id: str) -> dict[str, list[str]]:
    """Every row of a project, as text, by table: two of these are equal exactly if nothing was stored in between."""
    names = [table["relname"] for table in await world.fetch(_TABLES) if table["of_project"]]
    # One statement: the tables are many, and most of them hold next to nothing of one project.
    parts = [f"SELECT '{name}' AS name, t::text AS row FROM {name} AS t WHERE project_id = $1" for name in names]
    rows: dict[str, list[str]] = {name: [] for name in names}
    for each in await world.fetch(f"{' UNION ALL '.join(parts)} ORDER BY 1, 2", project_id):
        rows[each["name"]].append(each["row"])
    return rows
