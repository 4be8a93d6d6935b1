"""How soon onefold goes on after a worker was killed, and after PostgreSQL was away.

No call is made from this process: it starts others until the end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import asyncpg

from onefold.db.migrate import migrate
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.embedded import EmbeddedPostgres, EmbeddedValkey
from onefold.identity.links import claim_link
from onefold.intents import store as intents
from onefold.intents.rules import LEASE, IntentKind
from onefold.intents.store import Intent
from onefold.projects.bootstrap import ensure_project

from .figure import Figure
from .seed import visitor_in
from .stage import PROJECT, NotMeasuredError, Processes, eventually, part, private_folder, processes

_MERGES: Final = 8
_EVENTS: Final = 150_000
_BEGIN_SECONDS: Final = 90.0
_RESUME_SECONDS: Final = 90.0

_RESTARTS: Final = 5
_AWAY_SECONDS: Final = 1.0
_BACK_SECONDS: Final = 30.0


def resuming() -> list[Figure]:
    """Seconds from the SIGKILL of a worker in mid-relocation until another one commits the next chunk of each.

    The other worker sleeps until the kill, so that it has none of them. The most of all: there are too few for a
    percentile. The floor is the lease, which must end first.
    """
    with processes() as running, ExitStack() as stack:
        # As many at a time as there are relocations, so that each is in the midst of one.
        environment = {**running.environment, "ONEFOLD_WORKER_JOBS": str(_MERGES)}
        workers = []
        for name in ("victim", "heir"):
            worker, _ = stack.enter_context(part(running.folder / f"{name}.log", ["work"], environment))
            os.kill(worker.pid, signal.SIGSTOP)
            workers.append(worker.pid)
        seconds = asyncio.run(_resume_seconds(running, *workers))
    note = (
        f"the longest of {len(seconds)} relocations of {_EVENTS:,} events that were under way "
        f"(median {median(seconds):.1f}, shortest {min(seconds):.1f}), floor: the lease"
    )
    return [Figure("resume", max(seconds), "s", LEASE.total_seconds(), note)]


async def _resume_seconds(running: Processes, victim: int, heir: int) -> list[float]:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(running.database_url)
    try:
        merge_ids = [await _link(running, connection, f"killed-{n}") for n in range(_MERGES)]

        async def moved() -> dict[Any, int]:
            sql = "SELECT merge_id, moved_event_count FROM merges WHERE merge_id = ANY($1)"
            return {row[0]: row[1] for row in await connection.fetch(sql, merge_ids)}

        async def enough_are_under_way() -> bool:
            return sum(0 < count < _EVENTS for count in (await moved()).values()) >= _MERGES - 2

        os.kill(victim, signal.SIGCONT)
        await eventually(enough_are_under_way, "the relocations did not begin", seconds=_BEGIN_SECONDS)
        os.kill(victim, signal.SIGKILL)
        killed = time.perf_counter()
        os.kill(heir, signal.SIGCONT)
        # What the victim sent before its end counts as its own. What it had yet to begin, or had ended, is left out.
        await asyncio.sleep(1.0)
        at_kill = {merge_id: count for merge_id, count in (await moved()).items() if 0 < count < _EVENTS}
        resumed: dict[Any, float] = {}

        async def all_resumed() -> bool:
            for merge_id, count in (await moved()).items():
                if count > at_kill.get(merge_id, _EVENTS):
                    resumed.setdefault(merge_id, time.perf_counter() - killed)
            return len(resumed) == len(at_kill)

        await eventually(all_resumed, "the relocations were not resumed", seconds=_RESUME_SECONDS, every=0.05)

        return list(resumed.values())
    finally:
        await connection.close()


async def _link(running: Processes, connection: asyncpg.Connection[Any], anonymous_id: str) -> Any:
    """Links a visitor with many events to a person, as Identify does below the messages; the bell is never rung."""
    await visitor_in(connection, anonymous_id, _EVENTS)
    database = await Database.connect(running.database_url, connections=1)

    async def work(inner: Connection) -> Any:
        profile_id = await inner.fetchval(
            "INSERT INTO profiles (project_id, profile_id, email, signup_source) "
            "VALUES ($1, uuidv7(), $2 || '@example.com', 4) RETURNING profile_id",
            PROJECT,
            anonymous_id,
        )
        link, _ = await claim_link(inner, PROJECT, anonymous_id, profile_id, "bench")
        await intents.add(inner, Intent(PROJECT, link.merge_id, IntentKind.MOVE))
        return link.merge_id

    try:
        return await database.transact(work)
    finally:
        await database.close()


def recovering() -> list[Figure]:
    """Seconds from PostgreSQL's return after an immediate shutdown until a server's calls succeed, read and write.

    The floor is what PostgreSQL itself takes to return.
    """
    seconds, starts = [], []
    with private_folder() as folder, ExitStack() as stack:
        start = partial(EmbeddedPostgres.start, folder, durable=True)
        postgres = start()
        stack.callback(lambda: postgres.stop())
        valkey = EmbeddedValkey.start(folder)
        stack.callback(valkey.stop)
        asyncio.run(migrate(postgres.url()))
        key = asyncio.run(ensure_project(postgres.url(), project_id=PROJECT, identifier_type="EMAIL", api_key=None))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ONEFOLD_")},
            "ONEFOLD_DATABASE_URL": postgres.url(),
            "ONEFOLD_REDIS_URL": valkey.url,
        }
        _, said = stack.enter_context(part(folder / "server.log", ["serve", "--port", "0"], environment))
        log = folder / "prober.log"
        stack.enter_context(part(log, [said.removeprefix("ready "), key], environment, "bench_suite.prober"))
        for _ in range(_RESTARTS):
            postgres.stop(mode="immediate")
            stopped = time.monotonic()
            time.sleep(_AWAY_SECONDS)
            begin = time.monotonic()
            postgres = start()
            back = time.monotonic()
            starts.append(back - begin)
            seconds.append(max(0.0, _first_success(log, stopped) - back))
    note = f"the longest of {_RESTARTS} (median {median(seconds):.2f}), floor: PostgreSQL's own start, at its longest"
    return [Figure("recovery", max(seconds), "s", max(starts), note)]


def _first_success(log: Path, after: float) -> float:
    """When calls began to succeed after a moment, by the prober's lines."""
    deadline = time.monotonic() + _BACK_SECONDS
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            moment, state = line.split()
            if float(moment) > after and state == "OK":
                return float(moment)
        time.sleep(0.02)
    raise NotMeasuredError(f"no call succeeded within {_BACK_SECONDS:.0f} s of PostgreSQL's return")
