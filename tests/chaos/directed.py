"""For each mutant the operations and faults under which it shows at once, followed by the same audit as ever.

The same scenario without the mutant must find nothing. One server and one worker run, so that it is known who acts.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from chaos.audit import Audit
from chaos.calls import Callers, Journal
from chaos.clients import ChaosClient
from chaos.log import Entry, Log
from chaos.model import Model
from chaos.mutants import MUTANTS
from chaos.places import bystanders
from chaos.reads import STORED_TWICE, Reader
from chaos.run import WRONG, Opened, load, opened_as
from onefold.db.pool import WORKER_SETTINGS, Database
from onefold.errors import OnefoldError, Reason
from onefold.intents.doorbell import QUEUE_NAME
from onefold.projects.bootstrap import ensure_project
from onefold.workflows.run import run_intent

# A bell that is heard starts the work within a fraction of this; the sweep comes later than this.
_BEGUN_SECONDS: Final = 5.0
SETTINGS: Final = {"ONEFOLD_SWEEP_SECONDS": "10"}
_LONGEST_SECONDS: Final = 600.0
PERSON: Final = "u-person"


@dataclass
class Scene:
    """What a scenario acts with, and what it finds beside the audit."""

    theatre: Theatre
    running: Opened
    project: str
    journal: Journal
    client: ChaosClient
    connection: asyncpg.Connection[Any]
    found: list[tuple[str, str]]

    async def ask(self, action: str, *words: Any) -> Any:
        """Has the stage do something."""
        return await self.running.stage.ask(action, *words)

    async def value(self, sql: str) -> Any:
        """One value of the project, whose id is $1."""
        return await self.connection.fetchval(sql, self.project)

    async def within(self, seconds: float, sql: str) -> bool:
        """Whether a statement comes to answer true in time."""
        deadline = time.monotonic() + seconds
        while not await self.value(sql):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def link_visitor(self, events: int = 5) -> None:
        """A visitor with events, and who it is."""
        assert await self.client.write(PERSON, {"a": 1})
        assert await self.client.track([(f"e{number}", "x:visitor") for number in range(events)])
        assert await self.client.identify_as(PERSON, "visitor")


_BEGUN: Final = "SELECT count(*) FROM moves WHERE project_id = $1 AND first_pass_time IS NOT NULL"


async def skip_intent(scene: Scene) -> None:
    """A visitor is linked, and everything comes to rest."""
    await scene.link_visitor()


async def ring_before_commit(scene: Scene) -> None:
    """A link whose COMMIT takes a while: the work begins as soon as it is committed."""
    assert await scene.client.write(PERSON, {"a": 1})
    # It has just swept, and will not do so again for a while: whoever begins now has heard the bell.
    await scene.theatre.cast("worker0", ["onefold"], anew=True)
    await scene.ask("hold", 0.4)
    assert await scene.client.identify_as(PERSON, "visitor")
    await scene.ask("hold", 0.0)
    if not await scene.within(_BEGUN_SECONDS, _BEGUN):
        scene.found.append(("late", "nobody began within 5 s, and nothing was broken"))


async def no_lease_check(scene: Scene) -> None:
    """A worker loses its lease between two chunks: it moves nothing more."""
    await scene.connection.execute(
        "INSERT INTO anonymous_events "
        "(project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, data) "
        "SELECT $1, $2, now() - n * interval '1 ms', 'bystander' || n, now(), 1, 'did', 'crowd', '{}' "
        "FROM generate_series(1, 30000) AS n",
        scene.project,
        _subject(scene.project, "crowd"),
    )
    assert await scene.client.write(PERSON, {"a": 1})
    await scene.ask("hold", 0.2)
    assert await scene.client.identify_as(PERSON, "crowd")
    left = "SELECT count(*) FROM anonymous_events WHERE project_id = $1"
    assert await scene.within(15.0, "SELECT count(*) < 30000 FROM anonymous_events WHERE project_id = $1")
    async with scene.connection.transaction():
        # Waits for the chunk that runs, and keeps the next one out until the lease is another's.
        await scene.connection.execute(
            "UPDATE intents SET lease_token = gen_random_uuid(), lease_end_time = now() + interval '1 min' "
            "WHERE project_id = $1",
            scene.project,
        )
        at_loss = await scene.value(left)
    assert at_loss > 0
    await scene.ask("hold", 0.0)
    if await scene.within(1.5, f"SELECT ({left}) <> {at_loss}"):
        scene.found.append(("unfenced", "a worker that had lost its lease went on moving events"))


async def copy_without_delete(scene: Scene) -> None:
    """A visitor's events are looked at as soon as they are moved."""
    await scene.link_visitor()
    assert await scene.within(15.0, "SELECT sum(moved_event_count) = 5 FROM merges WHERE project_id = $1")
    twice = [row["event_id"] for row in await scene.connection.fetch(STORED_TWICE, scene.project)]
    scene.journal.model.feed(scene.journal.log.write(do="doubled", events=twice))
    await scene.client.reader.person(PERSON, 500)


async def unsorted_locks(scene: Scene) -> None:
    """Two batches tell the same events in opposite order, and both must wait for one that a third holds."""
    assert await scene.client.write(PERSON, {"a": 1})
    events = sorted((f"e{number}", f"p:{PERSON}") for number in range(1000))
    holding = scene.connection.transaction()
    await holding.start()
    await scene.value(f"INSERT INTO event_ids VALUES ($1, '{events[500][0]}', '', now()) RETURNING 1")
    telling = asyncio.gather(*(scene.client.track(each, shared_ids=True) for each in (events, events[::-1])))
    waiting = "SELECT count(*) = 2 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND $1::text IS NOT NULL"
    met = await scene.within(_BEGUN_SECONDS, waiting)
    await holding.rollback()
    await telling
    assert met


async def no_re_ring(scene: Scene) -> None:
    """The bell is lost with everything else in Valkey while no worker runs: the next one looks by itself."""
    module = await scene.ask("kill", "worker0")
    await scene.link_visitor(1)
    redis = Redis.from_url(scene.running.place.redis_url)
    # The server rings in the background; only then can the bell be lost.
    deadline = time.monotonic() + _BEGUN_SECONDS
    while not await redis.zcard(QUEUE_NAME) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    await redis.flushall()
    await redis.aclose()
    await scene.ask("start", "worker0", *module)
    await scene.ask("ready", "worker0")
    if not await scene.within(_BEGUN_SECONDS, _BEGUN):
        scene.found.append(("stuck", "an intent whose bell was lost is left alone"))


async def early_answer(scene: Scene) -> None:
    """The server is killed while COMMITs are on their way to PostgreSQL."""
    assert await scene.client.write(PERSON, {"a": 1})
    await scene.ask("hold", 30.0)
    telling = asyncio.create_task(scene.client.track([("e1", f"p:{PERSON}")]))
    await asyncio.wait({telling}, timeout=1.5)
    module = await scene.ask("kill", "server0")
    await scene.ask("cut", 0)
    await scene.ask("hold", 0.0)
    await scene.ask("start", "server0", *module)
    await scene.ask("ready", "server0")
    assert await telling


async def fan_out_without_order(scene: Scene) -> None:
    """A token is registered again after it was disabled for everybody, and before the worker comes to it."""
    await scene.ask("freeze", "worker0")
    for name in ("u-before", "u-after"):
        assert await scene.client.write(name, {"a": 1})
    assert await scene.client.register_for("u-before", "token")
    assert await scene.client.disable_for(None, "token")
    assert await scene.client.register_for("u-after", "token")
    await scene.ask("thaw", "worker0")
    await scene.within(
        13.0, "SELECT count(*) = 1 FROM token_disables WHERE project_id = $1 AND finish_time IS NOT NULL"
    )


SCENARIOS: Final[dict[str, Callable[[Scene], Awaitable[None]]]] = {
    "skip-intent": skip_intent,
    "ring-before-commit": ring_before_commit,
    "no-lease-check": no_lease_check,
    "copy-without-delete": copy_without_delete,
    "unsorted-locks": unsorted_locks,
    "no-re-ring": no_re_ring,
    "early-answer": early_answer,
    "fan-out-without-order": fan_out_without_order,
}


def _subject(project: str, anonymous_id: str) -> UUID:
    from onefold.identity.links import subject_id

    return subject_id(project, anonymous_id)


@asynccontextmanager
async def opened_small(folder: Path) -> AsyncIterator[Opened]:
    """One server and one worker."""
    async with opened_as(folder, SETTINGS, ("server0", "worker0")) as running:
        yield running


class Theatre:
    """Where scenarios are played, one after the other, each in a project of its own."""

    def __init__(self, running: Opened) -> None:
        self.running = running
        self._modules = {part: ["onefold"] for part in running.parts}

    async def cast(self, part: str, module: list[str], *, anew: bool = False) -> None:
        """Has a server or worker run as a module: if it runs as another one, or is wanted anew, it is replaced."""
        if anew or self._modules[part] != module:
            self._modules[part] = module
            for action in ("kill", "start"):
                await self.running.stage.ask(action, part, *(module if action == "start" else []))
            await self.running.stage.ask("ready", part)

    async def play(self, name: str, *, mutated: bool) -> dict[str, Any]:
        """Plays a scenario with the mutant or without it; returns what was found."""
        running, begun = self.running, time.monotonic()
        for part in running.parts:
            await self.cast(part, ["chaos.mutants", name] if mutated and part == MUTANTS[name][1] else ["onefold"])
        project = f"{name}-{'mutated' if mutated else 'whole'}"
        url = running.place.database_url
        running.keys[project] = await ensure_project(url, project_id=project, identifier_type="HYBRID", api_key=None)
        lengths = {path: Path(path).stat().st_size for path in running.place.logs}
        connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
        callers = Callers(running.place.addresses[:1], running.keys[project], project)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clients.jsonl"
            log = Log(path)
            try:
                epoch = int(time.time())
                header: Entry = {"do": "header", "project": project, "other": "", "epoch": epoch, "still": []}
                header["bystanders"] = await bystanders(connection, header)
                log.write(**header)
                journal = Journal(log, Model(), callers, random.Random(name), impatience=0.0)
                client = ChaosClient(0, journal, Reader(journal, project), 0, epoch)
                scene = Scene(self, running, project, journal, client, connection, [])
                await SCENARIOS[name](scene)
                await _hurry(url, project)
                model, header = load(path)
                findings = await Audit(running.place, model, header, callers, log_offsets=lengths).run(0)
            finally:
                log.close()
                await callers.close()
                await connection.close()
        for kind, what in scene.found:
            findings.add(kind, what)
        return {
            "mutant": name,
            "mutated": mutated,
            "found": bool(findings.counts),
            "seconds": round(time.monotonic() - begun, 1),
            **{kind: findings.counts[kind] for kind in (*WRONG, "late", "unfenced")},
            "problems": findings.examples,
        }


async def _hurry(url: str, project: str) -> None:
    """Has the work of a project come to its end, letting the time pass that moves wait for stragglers and leases."""
    database = await Database.connect(url, settings=WORKER_SETTINGS, connections=2)
    try:
        for _ in range(20):

            async def pass_time(connection: Any) -> list[UUID]:
                await connection.execute(
                    "UPDATE moves SET first_pass_time = first_pass_time - interval '17 s' WHERE project_id = $1",
                    project,
                )
                rows = await connection.fetch(
                    "UPDATE intents SET due_time = due_time - interval '17 s', "
                    "lease_token = NULL, lease_end_time = NULL "
                    "WHERE project_id = $1 RETURNING intent_id",
                    project,
                )
                return [row["intent_id"] for row in rows]

            try:
                left = await database.transact(pass_time)
                if not left:
                    return
                for intent_id in left:
                    await run_intent(database, project, intent_id)
            except OnefoldError as error:
                # A worker that began before holds what it is working at.
                if error.reason is not Reason.LOCK_TIMEOUT:
                    raise
    finally:
        await database.close()


async def check_mutants(names: Sequence[str], *, mutated: bool = True) -> list[dict[str, Any]]:
    """Plays the scenarios of mutants, with the bug or without."""
    with tempfile.TemporaryDirectory(prefix="onefold-chaos-") as folder:
        Path(folder).chmod(0o711)
        async with asyncio.timeout(_LONGEST_SECONDS), opened_small(Path(folder)) as running:
            theatre = Theatre(running)
            return [await theatre.play(name, mutated=mutated) for name in names]
