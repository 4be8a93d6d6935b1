"""The seeded faults: one every 1 to 5 s, each healed after a while of its own, so that they overlap in any order."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from chaos.calls import Journal
from chaos.stage import SERVERS, WORKERS, Stage

_RECOVERY_SECONDS = 60.0
# Without these no call is answered.
_NEEDED = {*SERVERS, "postgres"}


class Faults:
    """What is broken just now, and breaking more."""

    def __init__(self, stage: Stage, journal: Journal, seed: int, redis_url: str) -> None:
        self.stage, self.journal = stage, journal
        self.random = random.Random(f"faults-{seed}")
        self.redis_url = redis_url
        self.counts: Counter[str] = Counter()
        self.slowest_recovery = 0.0
        # What is broken, or not ready again yet.
        self._broken: set[str] = set()
        self._ending = asyncio.Event()
        self._healing: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Breaks things until told to stop."""
        weights = {
            self.kill_server: 5.0,
            self.kill_worker: 4.0,
            self.freeze_server: 3.0,
            self.freeze_worker: 4.0,
            self.flush_valkey: 2.0,
            self.stop_valkey: 2.0,
            self.stop_postgres: 2.5,
            self.swallow_commits: 5.0,
            self.cut_connections: 3.0,
            self.skew_clock: 2.0,
        }
        while self.journal.running:
            await asyncio.sleep(self.random.uniform(1.0, 5.0))
            before = self.counts.total()
            # What would be broken may be broken already; then it is something else's turn.
            while self.journal.running and self.counts.total() == before:
                await self.random.choices(list(weights), list(weights.values()))[0]()

    async def heal(self) -> None:
        """Mends everything that is still broken, in random order; returns when all processes are ready."""
        self._ending.set()
        await asyncio.gather(*self._healing)
        await self.stage.ask("swallow", 0)
        await self.stage.ask("ready", *SERVERS, *WORKERS)
        await asyncio.gather(*self._watching)

    # --- how ---------------------------------------------------------------------------------------------------------

    def note(self, kind: str, who: str = "") -> None:
        """Counts a fault, and writes it to the log."""
        self.counts[kind] += 1
        self.journal.log.write(do="fault", kind=kind, who=who)

    def mend_later(self, what: str, mend: Callable[[], Awaitable[Any]], least: float, most: float) -> None:
        """Has something mended after a random time. Until then, and until it is ready, nothing more is done to it."""
        self._broken.add(what)
        seconds, at_the_end = self.random.uniform(least, most), self.random.uniform(0.0, 1.0)

        async def heal() -> None:
            try:
                await asyncio.wait_for(self._ending.wait(), seconds)
                await asyncio.sleep(at_the_end)
            except TimeoutError:
                # Its time has come before the end of all.
                pass
            await mend()
            self._broken.discard(what)
            self.journal.log.write(do="healed", what=what)
            if what in _NEEDED and not self._broken & _NEEDED:
                task = asyncio.create_task(self._watch_recovery())
                self._watching.add(task)
                task.add_done_callback(self._watching.discard)

        task = asyncio.create_task(heal())
        self._healing.add(task)
        task.add_done_callback(self._healing.discard)

    async def _watch_recovery(self) -> None:
        """How long it takes, once nothing that calls need is broken, until a write that began then is acknowledged."""
        begun = time.monotonic()
        while self.journal.newest_ack <= begun and time.monotonic() < begun + _RECOVERY_SECONDS:
            if self._broken & _NEEDED or not self.journal.running:
                # Something else broke, or the clients have ended.
                return
            await asyncio.sleep(0.02)
        self.slowest_recovery = max(self.slowest_recovery, time.monotonic() - begun)

    async def _start(self, name: str, *module: str) -> None:
        await self.stage.ask("start", name, *module)
        await self.stage.ask("ready", name)

    def _whole(self, names: tuple[str, ...]) -> str | None:
        """One of these processes that nothing is done to."""
        whole = [name for name in names if name not in self._broken]
        return self.random.choice(whole) if whole else None

    # --- what --------------------------------------------------------------------------------------------------------

    async def kill_server(self) -> None:
        await self._kill(SERVERS, "kill_server", 4.0)

    async def kill_worker(self) -> None:
        await self._kill(WORKERS, "kill_worker", 8.0)

    async def _kill(self, names: tuple[str, ...], kind: str, most: float) -> None:
        name = self._whole(names)
        if name is not None:
            self.note(kind, name)
            await self.stage.ask("kill", name)
            self.mend_later(name, lambda: self._start(name), 0.2, most)

    async def freeze_server(self) -> None:
        await self._freeze(SERVERS, "freeze_server", 6.0)

    async def freeze_worker(self) -> None:
        # Now and then beyond the lease of 30 s.
        await self._freeze(WORKERS, "freeze_worker", self.random.choice([3.0, 10.0, 45.0]))

    async def _freeze(self, names: tuple[str, ...], kind: str, most: float) -> None:
        name = self._whole(names)
        if name is not None:
            self.note(kind, name)
            await self.stage.ask("freeze", name)
            self.mend_later(name, lambda: self.stage.ask("thaw", name), most / 2, most)

    async def skew_clock(self) -> None:
        """A process is started anew, with its clock an hour ahead."""
        name = self._whole(SERVERS + WORKERS)
        if name is None:
            return
        self.note("skew_clock", name)
        # Nothing else is done to it before it is ready.
        self._broken.add(name)
        await self.stage.ask("kill", name)

        async def mend() -> None:
            await self.stage.ask("kill", name)
            await self._start(name)

        skewed = asyncio.create_task(self._start(name, "chaos.skewed"))
        self._healing.add(skewed)
        skewed.add_done_callback(self._healing.discard)
        self.mend_later(name, mend, 10.0, 25.0)

    async def flush_valkey(self) -> None:
        redis = Redis.from_url(self.redis_url)
        with suppress(RedisError, OSError):
            await redis.flushall()
            self.note("flush_valkey")
        await redis.aclose()

    async def stop_valkey(self) -> None:
        if "valkey" not in self._broken:
            self.note("stop_valkey")
            await self.stage.ask("valkey_stop")
            self.mend_later("valkey", lambda: self.stage.ask("valkey_start"), 0.5, 12.0)

    async def stop_postgres(self) -> None:
        if "postgres" not in self._broken:
            self.note("stop_postgres")
            await self.stage.ask("postgres_stop")
            self.mend_later("postgres", lambda: self.stage.ask("postgres_start"), 0.1, 2.0)

    async def swallow_commits(self) -> None:
        self.note("swallow_commits")
        await self.stage.ask("swallow", self.random.randint(1, 5))

    async def cut_connections(self) -> None:
        self.note("cut_connections")
        await self.stage.ask("cut", self.random.choice([0, 0, 2, 3]))
