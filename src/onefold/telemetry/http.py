"""The side port: /livez, /readyz and /metrics over HTTP, for those who watch a process and have no gRPC.

As little of HTTP as they need: GET and HEAD, one request a connection. Whoever else comes is refused soon and cheaply:
so many connections at a time, so many bytes and seconds for a request, and a page of metrics made at most ten times a
second, however often it is asked for. It needs no key, and so shows nothing of anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from onefold.ports import cannot_listen
from onefold.telemetry import metrics

CONNECTIONS: Final = 32
REQUEST_BYTES: Final = 8 * 1024
REQUEST_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 10.0
_METRICS_REUSED_SECONDS: Final = 0.1
_TEXT: Final = "text/plain; charset=utf-8"
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


@dataclass(slots=True)
class Readiness:
    """Why this process should get no work now; None when it should."""

    problem: str | None = "starting"


# The page of metrics, and its content type.
Render = Callable[[], Awaitable[tuple[bytes, str]]]


class SidePort:
    """Answers between `start` and `stop`."""

    def __init__(self, readiness: Readiness, render: Render) -> None:
        self._readiness = readiness
        self._render = render
        self._rendering = asyncio.Lock()
        self._rendered: tuple[bytes, str] = (b"", _TEXT)
        self._rendered_at = float("-inf")
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        # In the order in which they came.
        self._open: dict[asyncio.Task[None], None] = {}

    async def start(self, host: str, port: int) -> str:
        """Begins to answer; returns "HOST:PORT". Raises OnefoldError if another program has the port."""
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=REQUEST_BYTES)
        except OSError:
            raise cannot_listen(host, port) from None
        self._watching = asyncio.create_task(_watch_loop(), name="event loop delay")
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Ends, and the connections that are left with it."""
        if self._server is not None:
            self._server.close()
        tasks = [*self._open, *([self._watching] if self._watching else [])]
        for each in tasks:
            each.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= CONNECTIONS:
            # The oldest goes, not the newest: a probe has its answer at once, and who stays for long has none coming.
            next(iter(self._open)).cancel()
        serving = asyncio.create_task(self._serve(reader, writer))
        self._open[serving] = None
        serving.add_done_callback(self._open.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # Whoever goes away or does not read is no concern of ours.
            with contextlib.suppress(OSError, TimeoutError):
                method, path = await _read(reader)
                status, content_type, body = await self._answer(method, path)
                async with asyncio.timeout(ANSWER_SECONDS):
                    writer.write(_head(status, content_type, body) + (b"" if method == "HEAD" else body))
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            # Nothing more is waited for: not for what is unread, nor for a goodbye.
            writer.transport.abort()

    async def _answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        if method.isdigit():  # what was wrong with the request
            return int(method), _TEXT, path.encode()
        if path not in ("/livez", "/readyz", "/metrics"):
            return 404, _TEXT, b"There are /livez, /readyz and /metrics.\n"
        if method not in ("GET", "HEAD"):
            return 405, _TEXT, b"GET or HEAD.\n"
        if path == "/livez":
            # That the event loop came to this line is what it says.
            return 200, _TEXT, b"ok\n"
        if path == "/readyz":
            problem = self._readiness.problem
            return (200, _TEXT, b"ok\n") if problem is None else (503, _TEXT, f"{problem}\n".encode())
        async with self._rendering:
            if time.monotonic() - self._rendered_at >= _METRICS_REUSED_SECONDS:
                self._rendered = await self._render()
                self._rendered_at = time.monotonic()
        body, content_type = self._rendered
        return 200, content_type, body


async def _read(reader: asyncio.StreamReader) -> tuple[str, str]:
    """The method and the path of a request; a status and a text if it is none."""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            head = await reader.readuntil(b"\r\n\r\n")
    except TimeoutError:
        return "408", "The request did not come to its end.\n"
    except asyncio.LimitOverrunError:
        return "431", "The request is too long.\n"
    except asyncio.IncompleteReadError:
        return "400", "The request is not HTTP/1.\n"
    parts = head.partition(b"\r\n")[0].split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1.") or not parts[0].isalpha():
        return "400", "The request is not HTTP/1.\n"
    return parts[0].decode(errors="replace"), parts[1].partition(b"?")[0].decode(errors="replace")


async def _watch_loop() -> None:
    """Measures for ever how late the event loop is: whatever holds it up shows there."""
    while True:
        asked = time.perf_counter() + 1.0
        await asyncio.sleep(1.0)
        metrics.LOOP_DELAY.observe(max(0.0, time.perf_counter() - asked))


def _head(status: int, content_type: str, body: bytes) -> bytes:
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    ).encode()
