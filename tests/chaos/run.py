"""A run from its first line to its last: start everything, break things, let it come to rest, audit twice."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from chaos.audit import REPLAYS, Audit
from chaos.calls import Callers, Journal
from chaos.clients import ChaosClient
from chaos.faults import Faults
from chaos.log import Entry, Log, read_log
from chaos.model import Model
from chaos.operations import new_event
from chaos.places import Findings, Place, bystanders, rest
from chaos.reads import Reader, names
from chaos.stage import SERVERS, WORKERS, Stage
from onefold.db.migrate import migrate
from onefold.projects.bootstrap import ensure_project
from onefold.v1.device_pb2 import PLATFORM_APNS, NewDevice
from onefold.v1.devices_service_pb2 import RegisterDeviceRequest
from onefold.v1.events_service_pb2 import BatchTrackRequest
from onefold.v1.identity_service_pb2 import UpdateProfileRequest

CLIENTS: Final = 16
PROJECT, OTHER = "chaos", "other"
# What must be 0, in the order in which it is told.
WRONG: Final = (
    "lost",
    "doubled",
    "misattributed",
    "wrong_reads",
    "wrong_answers",
    "stuck",
    "halves",
    "invented",
    "corrupted",
    "refused_stored",
    "resurrected",
    "canaries",
    "disables_ineffective",
    "wrongly_off",
    "bystanders_changed",
    "replays_wrong",
    "replay_changes",
    "deadlocks",
    "broken_calls",
    "crashes",
)
# An end to everything, should even the waiting go wrong.
_MARGIN_SECONDS: Final = 900.0
# How long a client rests between two operations, on average: two servers on a small machine are busy with that.
_PAUSE_SECONDS: Final = 0.04


@dataclass
class Opened:
    """PostgreSQL, Valkey, two servers and two workers that run."""

    stage: Stage
    place: Place
    keys: dict[str, str]
    parts: tuple[str, ...]

    async def restart(self) -> None:
        """Ends all of it in order and starts it again."""
        for name in self.parts:
            await self.stage.ask("kill", name)
        await self.stage.ask("postgres_stop", "fast")
        await self.stage.ask("valkey_stop")
        await self.stage.ask("postgres_start")
        await self.stage.ask("valkey_start")
        await self.start_all()

    async def start_all(self) -> None:
        """Starts servers and workers; returns when they are ready."""
        for name in self.parts:
            await self.stage.ask("start", name)
        await self.stage.ask("ready", *self.parts)


@asynccontextmanager
async def opened_as(folder: Path, settings: dict[str, str], parts: tuple[str, ...]) -> AsyncIterator[Opened]:
    """Some processes running on the data of a folder; ended with the block, whatever happens in it."""
    stage = await Stage.open(folder, settings)
    try:
        said = await stage.ask("open")
        await migrate(said["database_url"])
        keys = await _keys(folder / "keys.json", said["database_url"])
        running = Opened(stage, Place(**said), keys, parts)
        await running.start_all()
        yield running
    finally:
        await stage.close()


async def _keys(kept: Path, database_url: str) -> dict[str, str]:
    """The projects' keys, made once for a folder: a new one would be a change to a project that nobody may change."""
    if not kept.exists():
        keys = {
            project: await ensure_project(database_url, project_id=project, identifier_type="HYBRID", api_key=None)
            for project in (PROJECT, OTHER)
        }
        kept.write_text(json.dumps(keys))
    loaded: dict[str, str] = json.loads(kept.read_text())
    return loaded


def opened(folder: Path) -> AbstractAsyncContextManager[Opened]:
    """All of them."""
    return opened_as(folder, {}, SERVERS + WORKERS)


@asynccontextmanager
async def calling(running: Opened, project: str = PROJECT) -> AsyncIterator[Callers]:
    """Stubs of a project."""
    callers = Callers(running.place.addresses, running.keys[project], project)
    try:
        yield callers
    finally:
        await callers.close()


async def set_up(running: Opened, log: Log, seed: int) -> Entry:
    """Makes those to whom nothing will be done, here and in another project; writes the log's first entry."""
    header: Entry = {
        "do": "header",
        "seed": seed,
        "project": PROJECT,
        "other": OTHER,
        "epoch": int(time.time()),
        "still": [],
    }
    for project, people in ((PROJECT, [f"still{n}" for n in range(10)]), (OTHER, [f"shared{n}" for n in range(3)])):
        async with calling(running, project) as callers:
            for name in people:
                client, who = callers.next(), names(name)
                answer = await client.identity.UpdateProfile(
                    UpdateProfileRequest(identifiers=who, data_fields_json="{}")
                )
                device = NewDevice(token=f"{name}-token", platform=PLATFORM_APNS, application_name="app")
                if project == OTHER:
                    # The same token, visitor and event ids as over there.
                    device.token = f"shared-token{name[-1]}"
                else:
                    header["still"].append(answer.profile.profile_id)
                await client.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=device))
                events = [
                    new_event(f"bystander-{name}-{n}", home, header["epoch"])
                    for n in range(5)
                    for home in ([f"p:{name}"] if n % 2 or project == PROJECT else [f"x:{name}"])
                ]
                await client.events.BatchTrack(BatchTrackRequest(events=events))
    connection: asyncpg.Connection[Any] = await asyncpg.connect(running.place.database_url)
    try:
        header["bystanders"] = await bystanders(connection, header)
    finally:
        await connection.close()
    return log.write(**header)


def load(path: Path) -> tuple[Model, Entry]:
    """What a log amounts to, and its first entry with the calls that were acknowledged."""
    model, header = Model(), {}
    begun: dict[int, Entry] = {}
    acknowledged = []
    for entry in read_log(path):
        if entry.get("do") == "header":
            header = entry
        model.feed(entry)
        if "op" in entry and "end" not in entry:
            begun[entry["op"]] = entry
        elif entry.get("end") == "ok":
            first = begun.pop(entry["op"])
            # What was told by a stream, or with ids that others use, has no answer of its own to compare with.
            if "call" in first and not first.get("shared_ids"):
                acknowledged.append((first, entry))
    for operation in list(model.begun):
        # The checker itself ended here: nobody knows.
        model.end({"op": operation, "end": "unknown", "stragglers": True})
    header["acknowledged"] = acknowledged
    return model, header


async def audit(
    running: Opened, path: Path, replay_seed: int, *, replays: int = REPLAYS
) -> tuple[Audit, Findings, Model]:
    """Audits what a log says against what runs."""
    model, header = load(path)
    async with calling(running) as callers:
        one = Audit(running.place, model, header, callers)
        return one, await one.run(replay_seed, replays=replays), model


async def chaos(minutes: float, seed: int, keep: Path | None = None) -> dict[str, Any]:
    """A whole run; returns what it found."""
    with _folder(keep) as (folder, path):
        async with asyncio.timeout(minutes * 60 + _MARGIN_SECONDS), opened(folder) as running:
            log = Log(path)
            header = await set_up(running, log, seed)
            faults, reads = await _load_and_break(running, log, header, minutes, seed)
            quiesce = await rest(running.place.database_url)
            log.close()
            first, findings, model = await audit(running, path, seed)
            counts = await running.stage.ask("counts")
            await running.restart()
            await rest(running.place.database_url)
            _, again, _ = await audit(running, path, seed + 1)
    findings.counts["crashes"] += counts["crashes"]
    # Whatever the second audit finds that the first did not is wrong too; what both find counts once.
    findings.examples += [f"after a restart, {each}" for each in again.examples if each not in findings.examples]
    return {
        "seed": seed,
        "minutes": minutes,
        "operations": model.counts["operations"],
        "acked": model.counts["acked"],
        "unknown": model.counts["unknown"],
        "unknown_effective": first.unknown_effective,
        "refused": dict(model.refused),
        "reads": reads,
        "replays": first.replays,
        "faults": dict(sorted(faults.counts.items())),
        "commits_swallowed": counts["swallowed"],
        **{kind: max(findings.counts[kind], again.counts[kind]) for kind in WRONG},
        "slowest_recovery_s": round(faults.slowest_recovery, 2),
        "quiesce_s": round(quiesce, 1),
        "problems": findings.examples,
    }


async def _load_and_break(running: Opened, log: Log, header: Entry, minutes: float, seed: int) -> tuple[Faults, int]:
    async with calling(running) as callers:
        journal = Journal(log, Model(), callers, random.Random(f"patience-{seed}"))
        reader = Reader(journal, PROJECT)
        clients = [ChaosClient(n, journal, reader, seed, header["epoch"]) for n in range(CLIENTS)]
        faults = Faults(running.stage, journal, seed, running.place.redis_url)
        async with asyncio.TaskGroup() as group:
            for client in clients:
                group.create_task(client.run(_PAUSE_SECONDS))
            group.create_task(reader.watch_tables(running.place.database_url))
            breaking = group.create_task(faults.run())
            await asyncio.sleep(minutes * 60)
            journal.running = False
            await breaking
            await faults.heal()
        return faults, reader.count


async def audit_again(path: Path) -> dict[str, Any]:
    """Starts everything on the data that was kept with a log, and audits."""
    async with asyncio.timeout(_MARGIN_SECONDS), opened(data_of(path)) as running:
        await rest(running.place.database_url)
        one, findings, model = await audit(running, path, 0)
        return {
            "acked": model.counts["acked"],
            "unknown": model.counts["unknown"],
            "unknown_effective": one.unknown_effective,
            "replays": one.replays,
            **{kind: findings.counts[kind] for kind in WRONG},
            "problems": findings.examples,
        }


def is_right(result: dict[str, Any]) -> bool:
    """Whether a run or an audit found nothing wrong."""
    return not any(result.get(kind) for kind in WRONG) and not result["problems"]


class _folder:  # noqa: N801 - reads as a function
    """The folder of a run and its log: kept where the caller says, or private and removed at the end."""

    def __init__(self, keep: Path | None) -> None:
        self._keep = keep
        self._folder = data_of(keep) if keep else Path(tempfile.mkdtemp(prefix="onefold-chaos-"))

    def __enter__(self) -> tuple[Path, Path]:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._folder.chmod(0o711)
        return self._folder, self._keep or self._folder / "clients.jsonl"

    def __exit__(self, *_: object) -> None:
        if self._keep is None:
            shutil.rmtree(self._folder, ignore_errors=True)


def data_of(log: Path) -> Path:
    """Where the data belongs that a kept log tells about."""
    return log.with_name(f"{log.name}.data").resolve()
