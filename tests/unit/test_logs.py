"""Log lines: their shape, and what happens when nobody reads them. Each test has a process or a pipe of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from datetime import datetime

from onefold.logs import Writer
from support.processes import environment

CANARY = "canary@example.com"
PROGRAM = """
import logging, sys, structlog, warnings
from onefold import logs
logs.configure({level!r})
logs.emit(logging.INFO, "call", {{"method": "/onefold.v1.EventsService/Track", "code": "OK"}})
structlog.get_logger().warning("health changed", serving=False)
structlog.get_logger().debug("said in detail")
logging.getLogger("library").error("job %s failed", "canary@example.com")
try:
    raise ValueError("canary@example.com")
except ValueError:
    logging.getLogger("library").exception("broke\\nwith canary@example.com")
warnings.warn("canary@example.com", stacklevel=1)
raise RuntimeError("canary@example.com")
"""


def run(program: str, stderr: int) -> int:
    """Runs a program with this as its standard error; its exit status."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, stderr=stderr, env=environment(), timeout=60, check=False).returncode


def said(program: str) -> str:
    """What a program says on a pipe."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, stderr=subprocess.PIPE, env=environment(), timeout=60, check=False).stderr.decode()


def test_every_line_has_one_shape_and_nobodys_data() -> None:
    """F42: lines of ours, of libraries and of the end of a process are JSON with time, level and event, and the text of
    an exception or an argument is in none."""
    text = said(PROGRAM.format(level="INFO"))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [list(line)[:3] for line in lines] == [["time", "level", "event"]] * len(lines)
    assert [(line["level"], line["event"]) for line in lines] == [
        ("info", "call"),
        ("warning", "health changed"),
        ("error", "job %s failed"),
        ("error", "broke"),
        ("critical", "process broke"),
    ]
    assert all(datetime.fromisoformat(line["time"]).tzinfo is not None for line in lines)
    assert (lines[3]["fault"], lines[4]["fault"]) == ("ValueError", "RuntimeError")
    assert CANARY not in text


def test_the_level_is_a_setting() -> None:
    """F18: below the level that is set nothing is written."""
    levels = [json.loads(line)["level"] for line in said(PROGRAM.format(level="WARNING")).splitlines()]
    assert levels == ["warning", "error", "error", "critical"]


def test_a_terminal_gets_lines_for_people() -> None:
    """F18: on a terminal a line is no JSON, and says the same."""
    master, slave = os.openpty()
    assert run('from onefold import logs; logs.configure(); logs.emit(20, "call", {"code": "OK"})', slave) == 0
    os.close(slave)
    text = os.read(master, 10_000).decode()
    os.close(master)
    assert "call" in text
    assert "OK" in text
    assert not text.startswith("{")


def test_a_pipe_that_nobody_reads_holds_nobody_up() -> None:
    """F22: lines beyond what may wait are dropped and counted, whole lines only; once somebody reads, the rest comes
    and a line says how many are missing."""
    reading, writing = os.pipe()
    writer = Writer(writing, lambda count: b"dropped %d\n" % count, waiting_bytes=200_000)
    line = b"x" * 999 + b"\n"
    for _ in range(2_000):
        writer.write(line)
    assert writer.dropped >= 1_700
    lines: list[bytes] = []
    with os.fdopen(reading, "rb") as pipe:
        while not lines or not lines[-1].startswith(b"dropped"):
            lines.append(pipe.readline())
        writer.close()
    os.close(writing)
    assert set(lines[:-1]) == {line}
    assert len(lines) - 1 + writer.dropped == 2_000
    assert lines[-1] == b"dropped %d\n" % writer.dropped


def test_a_reader_who_is_gone_holds_nobody_up() -> None:
    """F22: a process whose standard error was closed by its reader goes on, and ends."""
    reading, writing = os.pipe()
    os.close(reading)
    writer = Writer(writing, lambda count: b"")
    for _ in range(10):
        writer.write(b"line\n")
    writer.close()
    os.close(writing)
    assert writer.dropped == 0
