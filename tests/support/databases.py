"""Databases of a test's own on the PostgreSQL that all tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg


@asynccontextmanager
async def empty_database(url: str, name: str) -> AsyncIterator[str]:
    """The address of a new database without any table; dropped at the end, whoever is connected."""
    admin = await asyncpg.connect(url)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        own = url.replace("@/onefold?", f"@/{name}?")
        assert own != url
        try:
            yield own
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
