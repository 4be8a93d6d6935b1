"""Log lines: readable on a terminal, one JSON object a line elsewhere; always on stderr, never with anybody's data.

Every line has time, level and event, then what belongs to the event. A thread of its own writes them, so that nothing
waits for whoever reads them: when stderr is a pipe that nobody empties, lines are dropped and counted, not calls held.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from select import select
from types import TracebackType
from typing import Any, Final

import orjson
import structlog

# Lines that wait to be written; more are dropped.
WAITING_BYTES: Final = 4 * 1024 * 1024
# Lines that come together are written together: to wake the thread costs more than to write.
_GATHER_SECONDS: Final = 0.02
# How long the end of a process may wait for somebody to read its last lines.
_CLOSE_SECONDS: Final = 1.0

# The share of calls that went well which is logged; those that did not always are.
ok_share = 1.0
_level = logging.INFO
_writer: Writer | None = None
_NAMES: Final = {level: logging.getLevelName(level).lower() for level in (10, 20, 30, 40, 50)}
_render: Callable[[dict[str, Any]], bytes]


class Writer:
    """Writes lines to a descriptor by a thread of its own. `write` never waits."""

    def __init__(self, descriptor: int, tell: Callable[[int], bytes], waiting_bytes: int = WAITING_BYTES) -> None:
        """`tell` makes the line that says how many were dropped."""
        self._tell = tell
        self._waiting_bytes = waiting_bytes
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._bytes = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        # Lines that were not written because nobody read those before them.
        self.dropped = 0
        self._told = 0
        self._thread = threading.Thread(target=self._run, name="log lines", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Takes a line, or drops it if too many wait."""
        with self._lock:
            if self._bytes + len(line) > self._waiting_bytes:
                self.dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Writes what waits, if that can be done within a second."""
        self._closing = True
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._closing:
                time.sleep(_GATHER_SECONDS)
            self._wake.clear()
            with self._lock:
                lines, self._lines = self._lines, []
            text = b"".join(lines)
            # Nobody reads any more: there is nobody left to tell.
            with suppress(OSError):
                self._write_all(text)
            with self._lock:
                # Only now: what is being written is still in memory.
                self._bytes -= len(text)
                dropped = self.dropped
            if dropped > self._told:
                lost, self._told = dropped - self._told, dropped
                self.write(self._tell(lost))
            if self._closing and not self._lines:
                return

    def _write_all(self, text: bytes) -> None:
        rest = memoryview(text)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                select([], [self._descriptor], [])


def configure(level: str = "INFO", share: float = 1.0) -> None:
    """Sets up the log lines of this process: the least level that is written, and the share of calls that went well."""
    global _level, _writer, _render, ok_share
    _level, ok_share = logging.getLevelNamesMapping()[level], share
    _writer = Writer(sys.stderr.fileno(), _dropped_line)
    _render = _for_people if sys.stderr.isatty() else _for_programs
    atexit.register(_writer.close)
    structlog.configure(
        processors=[_rendered],
        wrapper_class=structlog.make_filtering_bound_logger(_level),
        logger_factory=lambda *_: _Lines(),
        cache_logger_on_first_use=True,
    )
    # arq logs the arguments of its jobs, redis and grpc their peers: only what is wrong is wanted of them.
    logging.basicConfig(level=logging.ERROR, handlers=[_Foreign()], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _last_words


def is_on(level: int) -> bool:
    """Whether lines of a level are written."""
    return _writer is not None and level >= _level


def emit(level: int, event: str, fields: Mapping[str, object]) -> None:
    """Writes a line, if its level is on, without the way through structlog: for what comes with every call."""
    if _writer is not None and level >= _level:
        _writer.write(_line(level, event, fields))


def _line(level: int, event: str, fields: Mapping[str, object]) -> bytes:
    return _render({"time": datetime.now(UTC), "level": _NAMES[level], "event": event, **fields})


def _dropped_line(count: int) -> bytes:
    return _line(logging.WARNING, "log lines were dropped", {"lines": count})


def dropped_lines() -> int:
    """How many lines this process has dropped."""
    return _writer.dropped if _writer is not None else 0


class _Lines:
    """What structlog gives its lines to."""

    def msg(self, line: bytes) -> None:
        if _writer is not None:
            _writer.write(line)

    debug = info = warning = warn = error = critical = fatal = exception = log = msg


class _Foreign(logging.Handler):
    """Lines of libraries: what they were going to say without its values, and where it went wrong without its text."""

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name}
        if record.exc_info and record.exc_info[0] is not None:
            fields |= {"fault": record.exc_info[0].__name__, "where": traceback.format_tb(record.exc_info[2])}
        said = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        emit(record.levelno, said.partition("\n")[0], fields)


def _last_words(kind: type[BaseException], fault: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, fault, where)
        return
    # Names of types and lines of code only: an exception's own text may quote a row.
    emit(logging.CRITICAL, "process broke", {"fault": kind.__name__, "where": traceback.format_tb(where)})


def _rendered(_logger: object, method: str, fields: MutableMapping[str, Any]) -> bytes:
    return _line(logging.getLevelNamesMapping().get(method.upper(), logging.ERROR), str(fields.pop("event")), fields)


def _for_programs(line: dict[str, Any]) -> bytes:
    return orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)


def _for_people(line: dict[str, Any]) -> bytes:
    line["time"] = line["time"].isoformat(timespec="milliseconds")
    return (str(_console(None, "", line)) + "\n").encode(errors="replace")


_console: Final = structlog.dev.ConsoleRenderer(timestamp_key="time")
