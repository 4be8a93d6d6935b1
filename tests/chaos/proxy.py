"""A TCP proxy in front of PostgreSQL that breaks connections where it hurts most: between a COMMIT and its answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

# The simple query "COMMIT" as a client sends it: alone, because it waits for the answer before it sends anything more.
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_BYTES = 64 * 1024
_ANSWER_SECONDS = 3.0


class Proxy:
    """Passes connections on to a unix socket until it is told to do worse."""

    def __init__(self, target: Callable[[], str]) -> None:
        self._target = target
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        # How many of the next COMMITs are carried out and never answered.
        self.swallow = 0
        # How many were.
        self.swallowed = 0
        # How long a COMMIT is kept before it is passed on.
        self.hold_seconds = 0.0

    async def start(self) -> None:
        """Listens on a free loopback port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self, keep_every: int = 0) -> int:
        """Ends the connections there are, or all but every n-th; returns how many."""
        chosen = [
            task for number, task in enumerate(list(self._connections), 1) if not keep_every or number % keep_every
        ]
        for task in chosen:
            task.cancel()
        return len(chosen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            # Cut by us, or PostgreSQL is away: the client sees a lost connection either way.
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_unix_connection(self._target())

        async def ask(data: bytes) -> bool:
            if not data.endswith(COMMIT):
                ahead.write(data)
                return True
            if self.hold_seconds:
                await asyncio.sleep(self.hold_seconds)
            if not self.swallow:
                ahead.write(data)
                return True
            self.swallow -= 1
            answering.cancel()
            await asyncio.wait({answering})
            ahead.write(data)
            # PostgreSQL answers when the commit is on its disk; only then is the connection dropped.
            await asyncio.wait_for(behind.read(_BYTES), _ANSWER_SECONDS)
            self.swallowed += 1
            return False

        async def answer(data: bytes) -> bool:
            writer.write(data)
            return True

        answering = asyncio.create_task(_pump(behind, answer, writer))
        asking = asyncio.create_task(_pump(reader, ask, ahead))
        try:
            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            if answering.cancelled():
                await asyncio.wait({asking})
        finally:
            for pump in (asking, answering):
                pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({asking, answering})
            ahead.transport.abort()


async def _pump(
    reader: asyncio.StreamReader, give: Callable[[bytes], Awaitable[bool]], writer: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        while data := await reader.read(_BYTES):
            if not await give(data):
                return
            await writer.drain()
