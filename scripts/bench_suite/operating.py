"""What an operator waits for: a command's help, and a project that is brought in from a file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

import asyncpg

from onefold.config import Settings
from onefold.db.migrate import migrate
from onefold.embedded import EmbeddedPostgres
from onefold.projects.bootstrap import ensure_project
from onefold.transfer.exporting import export_project
from onefold.transfer.file import check
from onefold.transfer.importing import import_project

from .figure import Figure
from .stage import NotMeasuredError, private_folder

_HELPS: Final = 5
_EVENTS: Final = 300_000
_FEW: Final = 50_000
_ROUNDS: Final = 3
_SEED: Final = """
WITH person AS (
    INSERT INTO profiles (project_id, profile_id, email, signup_source)
    SELECT $1, md5($1 || number)::uuid, 'reader-' || number || '@example.com', 1
    FROM generate_series(0, 999) AS number
)
INSERT INTO events (project_id, profile_id, event_time, event_id, receive_time, kind, name, data)
SELECT
    $1, md5($1 || number % 1000)::uuid, now() - interval '20 days' * (1 - number / $2::float8), uuidv7()::text, now(),
    2, 'page viewed',
    json_build_object('path', '/products/' || number % 5000, 'referrer', 'https://example.com/search', 'seconds', 12)
FROM generate_series(1, $2::integer) AS number
"""
_COLUMNS: Final = (
    "profile_id", "event_time", "event_id", "receive_time", "kind", "was_anonymous", "origin_id", "name",
    "anonymous_id", "data", "suppress_triggers",
)  # fmt: skip


def help_cpu() -> list[Figure]:
    """Seconds of CPU of `onefold --help`; the floor is a Python that does nothing."""
    commands = [[sys.executable, "-m", "onefold", "--help"], [sys.executable, "-c", "pass"]]
    shown, nothing = ([_child(command, os.environ)[0] for _ in range(_HELPS)] for command in commands)
    note = f"median of {_HELPS} ({min(shown):.2f} to {max(shown):.2f}), floor: Python alone"
    return [Figure("help_cpu", median(shown), "s", median(nothing), note)]


def importing() -> list[Figure]:
    """Events/s of an import over asyncpg's COPY of the same rows, and its memory over that of a smaller import."""
    with private_folder() as folder:
        # Autovacuum would fall into one measurement and not into the next.
        postgres = EmbeddedPostgres.start(folder, durable=True, settings={"autovacuum": "off"})
        try:
            settings = Settings(database_url=postgres.url(), redis_url="redis://127.0.0.1:1")
            rates, floors = asyncio.run(_rates(settings, folder))
            environment = {**os.environ, "ONEFOLD_DATABASE_URL": postgres.url(), "ONEFOLD_REDIS_URL": "redis://a:1"}
            small, large = (
                _child(
                    [sys.executable, "-m", "onefold", "import", str(folder / name), "--project", f"{name}-measured"],
                    environment,
                )[1]
                for name in ("few", "many")
            )
        finally:
            postgres.stop()
    note = f"medians of {_ROUNDS} imports of {_EVENTS:,} events ({min(rates):,.0f} to {max(rates):,.0f}), floor: COPY"
    return [
        Figure("import_ratio", median(rates), "events/s", median(floors), note),
        Figure("import_memory", large, "MB", small, f"peak of {_EVENTS:,} events, floor: of {_FEW:,}"),
    ]


async def _rates(settings: Settings, folder: Path) -> tuple[list[float], list[float]]:
    await migrate(settings.database_url)
    connection: asyncpg.Connection[Any] = await asyncpg.connect(settings.database_url)
    try:
        for name, events in (("few", _FEW), ("many", _EVENTS)):
            await ensure_project(settings.database_url, project_id=name, identifier_type="EMAIL", api_key=None)
            await connection.execute(_SEED, name, events)
            await export_project(settings, name, folder / name, wait_seconds=0)
        found = await connection.fetch(
            f"SELECT {', '.join(_COLUMNS)} FROM events WHERE project_id = 'many' "
            "ORDER BY profile_id, event_time, event_id"
        )
        rates, floors = [], []
        for number in range(_ROUNDS):
            rows = [(f"copy-{number}", *row) for row in found]
            begin = time.perf_counter()
            await connection.copy_records_to_table("events", records=rows, columns=("project_id", *_COLUMNS))
            floors.append(_EVENTS / (time.perf_counter() - begin))
            begin = time.perf_counter()
            await import_project(settings, check(folder / "many"), project_id=f"import-{number}")
            rates.append(_EVENTS / (time.perf_counter() - begin))
        return rates, floors
    finally:
        await connection.close()


# What a process has used before it becomes another program counts for its peak: so a small one starts the command.
_MEASURED: Final = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000, done.stderr[-300:])
"""


def _child(command: list[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Runs a command; its seconds of CPU, and its peak of memory in MB."""
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command], capture_output=True, text=True, check=True, env=environment
    )
    status, seconds, megabytes, *said = measured.stdout.split(" ", 3)
    if status != "0":
        raise NotMeasuredError(f"{' '.join(command[2:5])} failed: {''.join(said).strip()}")
    return float(seconds), float(megabytes)
