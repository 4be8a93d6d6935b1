"""The side port with callers that are slow, hostile or wrong."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from onefold.errors import OnefoldError
from onefold.telemetry import http
from onefold.telemetry.http import Readiness, SidePort
from support.scraping import ask, get

PAGE = "answered 1.0\n"


@dataclass
class Port:
    """A side port, what it says of itself, and how often its page was made."""

    address: str
    readiness: Readiness
    pages: itertools.count[int]

    def connect(self) -> tuple[str, int]:
        """Where to connect to."""
        host, _, number = self.address.rpartition(":")
        return host, int(number)


@pytest_asyncio.fixture
async def port() -> AsyncIterator[Port]:
    """A side port whose page of metrics says how often it was made."""
    pages = itertools.count(1)
    readiness = Readiness()

    async def render() -> tuple[bytes, str]:
        return f"answered {next(pages)}.0\n".encode(), "text/plain; version=0.0.4"

    side_port = SidePort(readiness, render)
    yield Port(await side_port.start("127.0.0.1", 0), readiness, pages)
    await side_port.stop()


async def test_each_page_has_its_type_and_its_length(port: Port) -> None:
    """F18: probes and a scraper get what they ask for, as text that is nobody's cache's."""
    port.readiness.problem = None
    assert [(await get(port.address, path)).body for path in ("/livez", "/readyz", "/metrics")] == [
        "ok\n",
        "ok\n",
        PAGE,
    ]
    answer = await get(port.address, "/metrics?name=x")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4"
    assert answer.headers["cache-control"] == "no-store"
    assert int(answer.headers["content-length"]) == len(answer.body)


async def test_a_process_that_should_get_no_work_says_why(port: Port) -> None:
    """F15, F18: /readyz is 503 with the reason while /livez stays 200."""
    for problem in ("starting", "PostgreSQL takes no writes", "stopping"):
        port.readiness.problem = problem
        ready = await get(port.address, "/readyz")
        assert (ready.status, ready.body) == (503, f"{problem}\n")
        assert (await get(port.address, "/livez")).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"DELETE /livez HTTP/1.1\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"200 /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"x" * 20_000, 431),
    ],
)
async def test_what_is_no_request_of_ours_is_refused(port: Port, request_bytes: bytes, status: int) -> None:
    """F75: garbage, other methods, other paths and long headers get their status, and nothing else happens."""
    answer = await ask(port.address, request_bytes)
    assert answer.status == status
    assert answer.headers.get("allow") == ("GET, HEAD" if status == 405 else None)
    assert (await get(port.address, "/livez")).status == 200


async def test_head_has_no_body(port: Port) -> None:
    """F75: HEAD answers as GET does, without the text."""
    answer = await get(port.address, "/livez", "HEAD")
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "3", "")


async def test_a_request_that_never_ends_is_ended(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """F75: who sends a request bit by bit, or nothing at all, is sent away after a time."""
    monkeypatch.setattr(http, "REQUEST_SECONDS", 0.2)
    assert (await ask(port.address, b"GET /livez HTTP/1.1\r\n")).status == 408
    assert (await ask(port.address, b"")).status == 408


async def test_idle_connections_keep_no_probe_waiting(port: Port) -> None:
    """F75: however many connections stay open and silent, the next probe is answered; the oldest of them is gone."""
    idle = [await asyncio.open_connection(*port.connect()) for _ in range(2 * http.CONNECTIONS)]
    assert (await get(port.address, "/livez")).status == 200
    reader, _ = idle[0]
    assert await reader.read() == b""
    for _, writer in idle:
        writer.close()


async def test_many_scrapes_cost_as_much_as_a_few(port: Port) -> None:
    """F75: a page is made at most ten times a second; scrapes that come together share one."""
    answers = await asyncio.gather(*(get(port.address, "/metrics") for _ in range(20)))
    assert all(answer.status == 200 for answer in answers)
    assert next(port.pages) <= 10


async def test_a_taken_port_is_told(port: Port) -> None:
    """X2: a second process on the port is refused with its name."""
    second = SidePort(Readiness(), lambda: pytest.fail("never asked"))
    host, number = port.connect()
    with pytest.raises(OnefoldError, match=port.address):
        await second.start(host, number)
    await second.stop()
