"""The processes under test, and the helper that starts, kills, freezes and restarts them.

The helper is a process of its own: children must not be forked from one in which gRPC has threads. It does what it is
told line by line, and ends with all its children when its stdin does; its children are killed by the kernel should it
be killed itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from onefold.embedded import EmbeddedPostgres, EmbeddedValkey, process
from onefold.ports import require_free

TESTS = Path(__file__).resolve().parents[1]
SERVERS = ("server0", "server1")
WORKERS = ("worker0", "worker1")
_READY_SECONDS = 60.0
# A commit is with the operating system before it is answered, which outlives PostgreSQL. A deadlock is told before a
# lock_timeout can end it.
_POSTGRES = {"synchronous_commit": "on", "deadlock_timeout": "200ms"}


class Stage:
    """The helper, seen from the checker. Every method returns when the helper has done it."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, folder: Path, settings: Mapping[str, str] | None = None) -> Stage:
        """Starts the helper; nothing else runs yet. `settings` are ONEFOLD_* variables of the processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ONEFOLD_")}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chaos.stage", str(folder), json.dumps(dict(settings or {}))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**kept, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])},
            # A Ctrl-C reaches us alone, and we end the helper in order.
            start_new_session=True,
            limit=1024 * 1024,
        )
        return cls(child)

    async def ask(self, action: str, *words: Any) -> Any:
        """Has the helper do something; returns its answer. RuntimeError if it could not."""
        assert self._child.stdin is not None
        self._number += 1
        future = self._answers[self._number] = asyncio.get_running_loop().create_future()
        self._child.stdin.write(json.dumps([self._number, action, *words]).encode() + b"\n")
        return await future

    async def close(self) -> None:
        """Ends the helper and everything it has started."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            await asyncio.wait_for(self._child.wait(), 30.0)
        except TimeoutError:
            self._child.kill()
            await self._child.wait()
        await asyncio.wait({self._reading}, timeout=5.0)

    async def _read(self) -> None:
        assert self._child.stdout is not None
        while line := await self._child.stdout.readline():
            number, done, answer = json.loads(line)
            future = self._answers.pop(number)
            if not future.done():
                if done:
                    future.set_result(answer)
                else:
                    future.set_exception(RuntimeError(answer))
        for future in self._answers.values():
            if not future.done():
                future.set_exception(RuntimeError("the helper has ended"))


class _Part:
    """A server or a worker that is to run, and is started again whenever it has ended."""

    def __init__(self, name: str, log: Path, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.name, self.log, self.arguments, self.environment = name, log, arguments, environment
        self.module = ["onefold"]
        self.child: process.Child | None = None
        self.is_ready = self.is_frozen = False
        self.crash_count = 0
        self._starting: asyncio.Task[None] | None = None

    def want(self, module: list[str]) -> None:
        """Has it run from now on, as a module of Python with first arguments."""
        self.module = module
        if self._starting is None:
            self._starting = asyncio.create_task(self._keep_running())

    async def ready(self) -> None:
        """Returns when it is ready."""
        deadline = time.monotonic() + _READY_SECONDS
        while not self.is_ready:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} was not ready in time: {self.log.read_text()[-500:]}")
            await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """SIGKILL, and no new start."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
            self._starting = None
        if self.child is not None:
            self.child.kill()
            while self.child.poll() is None:
                await asyncio.sleep(0.01)
        self.child, self.is_ready, self.is_frozen = None, False, False

    def signal(self, number: signal.Signals) -> None:
        """Freezes it or lets it go on."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)
            self.is_frozen = number == signal.SIGSTOP

    async def _keep_running(self) -> None:
        while True:
            pipe = self._start()
            assert self.child is not None
            reader = asyncio.StreamReader()
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda reader=reader: asyncio.StreamReaderProtocol(reader),  # type: ignore[misc]
                os.fdopen(pipe, "rb"),
            )
            try:
                self.is_ready = (await reader.readline()).startswith(b"ready")
                while self.child.poll() is None:
                    await asyncio.sleep(0.05)
                # One that cannot start, because PostgreSQL is away, ends in order and is tried again.
                self.crash_count += self.is_ready
                self.is_ready = False
            finally:
                transport.close()
            await asyncio.sleep(0.3)

    def _start(self) -> int:
        reader, ready_fd = os.pipe2(os.O_CLOEXEC)
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self.child = process.spawn(
                [sys.executable, "-m", *self.module, *self.arguments, "--ready-fd", str(ready_fd)],
                death_signal=signal.SIGKILL,  # a frozen process would never see a gentler one
                output=output,
                environment=self.environment,
                pass_fds=[ready_fd],
            )
        finally:
            os.close(output)
            os.close(ready_fd)
        return reader


class _Helper:
    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        from chaos.proxy import Proxy

        self.folder = folder
        self.settings = settings
        self.postgres: EmbeddedPostgres | None = None
        self.valkey: EmbeddedValkey | None = None
        self.socket = ""
        self.proxy = Proxy(lambda: self.socket)
        self.parts: dict[str, _Part] = {}

    async def open(self) -> dict[str, Any]:
        """Starts PostgreSQL, Valkey and the proxy; the servers' ports are chosen and stay the same."""
        url = await self.postgres_start()
        redis_url = await self.valkey_start()
        await self.proxy.start()
        environment = {
            **os.environ,
            **self.settings,
            "ONEFOLD_DATABASE_URL": f"postgresql://onefold@127.0.0.1:{self.proxy.port}/onefold?sslmode=disable",
            "ONEFOLD_REDIS_URL": redis_url,
        }
        ports = [require_free("127.0.0.1", 0) for _ in SERVERS]
        for name, port in zip(SERVERS, ports, strict=True):
            log = self.folder / f"{name}.log"
            self.parts[name] = _Part(name, log, ["serve", "--port", str(port)], environment)
        for name in WORKERS:
            self.parts[name] = _Part(name, self.folder / f"{name}.log", ["work"], environment)
        for part in self.parts.values():
            part.log.touch()
        logs = [str(part.log) for part in self.parts.values()]
        logs += [str(self.folder / "postgres.log"), str(self.folder / "valkey.log")]
        addresses = [f"127.0.0.1:{port}" for port in ports]
        return {"database_url": url, "redis_url": redis_url, "addresses": addresses, "logs": logs}

    async def start(self, name: str, *module: str) -> None:
        """Starts a server or worker; from now on it is started again should it end."""
        self.parts[name].want(list(module) or ["onefold"])

    async def ready(self, *names: str) -> None:
        """Returns when they are ready."""
        for name in names:
            await self.parts[name].ready()

    async def kill(self, name: str) -> list[str]:
        """Kills a server or worker; returns as what module it ran."""
        await self.parts[name].kill()
        return self.parts[name].module

    async def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self.parts[name].signal(signal.SIGSTOP)

    async def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.parts[name].signal(signal.SIGCONT)

    async def postgres_start(self) -> str:
        """Starts PostgreSQL; blocks, but whoever needs the proxy meanwhile has nothing behind it anyway."""
        self.postgres = EmbeddedPostgres.start(self.folder, durable=False, settings=_POSTGRES)
        url = self.postgres.url()
        self.socket = f"{url.partition('host=')[2].partition('&')[0]}/.s.PGSQL.5432"
        return url

    async def postgres_stop(self, mode: Any = "immediate") -> None:
        """Shuts PostgreSQL down."""
        if self.postgres is not None:
            self.postgres.stop(mode=mode)
            self.postgres = None

    async def valkey_start(self) -> str:
        """Starts Valkey."""
        self.valkey = EmbeddedValkey.start(self.folder)
        return self.valkey.url

    async def valkey_stop(self) -> None:
        """Ends Valkey."""
        if self.valkey is not None:
            self.valkey.stop()
            self.valkey = None

    async def swallow(self, count: int) -> None:
        """The answers to so many of the next COMMITs are lost."""
        self.proxy.swallow = count

    async def hold(self, seconds: float) -> None:
        """Every COMMIT is kept for so long before PostgreSQL sees it."""
        self.proxy.hold_seconds = seconds

    async def cut(self, keep_every: int) -> int:
        """Cuts connections to PostgreSQL."""
        return self.proxy.cut(keep_every)

    async def counts(self) -> dict[str, int]:
        """What happened here that nobody asked for, and how many answers to COMMIT were lost."""
        return {"crashes": sum(part.crash_count for part in self.parts.values()), "swallowed": self.proxy.swallowed}

    async def close(self) -> None:
        """Ends everything."""
        for part in self.parts.values():
            with suppress(ProcessLookupError):
                await part.kill()
        await self.valkey_stop()
        await self.postgres_stop("fast")


async def _main(folder: Path, settings: Mapping[str, str]) -> None:
    helper = _Helper(folder, settings)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()

    async def act(number: int, action: str, words: list[Any]) -> None:
        try:
            answer = [number, True, await getattr(helper, action)(*words)]
        except Exception as error:
            answer = [number, False, f"{action}: {type(error).__name__}: {error}"]
        with suppress(BrokenPipeError):
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()

    try:
        while line := await reader.readline():
            number, action, *words = json.loads(line)
            task = asyncio.create_task(act(number, action, words))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        await helper.close()


if __name__ == "__main__":
    # Our own end is told by the end of stdin, whoever sends what signal to the terminal's processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(_main(Path(sys.argv[1]), json.loads(sys.argv[2])))
