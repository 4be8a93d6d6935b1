"""What is told of every call: counted, logged in one line, and traced. Cheap, because it is done for each.

The counts of a method are looked up once; a line is made at once and written by another thread (logs.py).
Nothing of a request or an answer is looked at.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable
from typing import Final

from google.protobuf.descriptor import FileDescriptor

from onefold import logs
from onefold.errors import Kind, OnefoldError
from onefold.telemetry import metrics, tracing

_OK: Final = "OK"
_CANCELLED: Final = "CANCELLED"
_CODES: Final = {_OK: 0, _CANCELLED: 1, **{kind.name: kind.value for kind in Kind}}
# What an operator should look at: all else is the caller's affair.
_LEVELS: Final = {
    Kind.UNAVAILABLE.name: logging.WARNING,
    Kind.DEADLINE_EXCEEDED.name: logging.WARNING,
    Kind.INTERNAL.name: logging.ERROR,
}


def prepare(files: Iterable[FileDescriptor]) -> None:
    """Shows every method's series from the start, so that the first failure of one is an increase, not a new series."""
    for file in files:
        for service in file.services_by_name.values():
            for method in service.methods:
                MethodWatch(
                    f"/{service.full_name}/{method.name}",
                    takes_stream=method.client_streaming,
                    gives_stream=method.server_streaming,
                )


class MethodWatch:
    """Watches the calls of one method."""

    def __init__(self, method: str, *, takes_stream: bool, gives_stream: bool) -> None:
        """`method` is its path, /package.Service/Method, of a descriptor: so the labels are bounded."""
        self.method = method
        service, _, name = method.lstrip("/").rpartition("/")
        kind = {
            (False, False): "unary",
            (False, True): "server_stream",
            (True, False): "client_stream",
            (True, True): "bidi_stream",
        }[takes_stream, gives_stream]
        self.counts = metrics.method_counts(kind, service, name)
        self._handling = metrics.HANDLING.labels(kind, service, name)

    def begin(self, trace_parent: str | None) -> Call:
        """A call begins, with the traceparent it came with; its span becomes the current one."""
        self.counts.started += 1
        return Call(self, trace_parent)

    def ended(self, code: str, seconds: float) -> None:
        """Counts a call that has ended."""
        handled = self.counts.handled
        handled[code] = handled.get(code, 0) + 1
        self._handling.observe(seconds)


class Call:
    """One call, from when its handler begins until it has its answer or its error."""

    __slots__ = ("_began", "_span", "_trace_parent", "_watch", "project_id")

    def __init__(self, watch: MethodWatch, trace_parent: str | None) -> None:
        self._watch = watch
        self._trace_parent = trace_parent
        self._span = tracing.begin_call(watch.method, trace_parent)
        self._began = time.perf_counter()
        # Once it is known who calls.
        self.project_id = ""

    def succeeded(self) -> None:
        """The call was answered."""
        self._end(_OK, "", logging.INFO)

    def failed(self, error: OnefoldError) -> None:
        """The call was refused or broke."""
        code = error.kind.name
        metrics.FAILED.labels(error.reason.value).inc()
        self._end(code, error.reason.value, _LEVELS.get(code, logging.INFO))

    def cancelled(self, seconds_left: float | None) -> None:
        """gRPC took the call away: its caller has gone, or its deadline has passed."""
        passed = seconds_left is not None and seconds_left <= 0
        self._end(Kind.DEADLINE_EXCEEDED.name if passed else _CANCELLED, "", logging.INFO)

    def _end(self, code: str, reason: str, level: int) -> None:
        seconds = time.perf_counter() - self._began
        self._watch.ended(code, seconds)
        if logs.is_on(level) and (code != _OK or logs.ok_share >= 1 or random.random() < logs.ok_share):  # noqa: S311
            fields: dict[str, object] = {
                "method": self._watch.method,
                "code": code,
                "milliseconds": round(seconds * 1e3, 3),
            }
            if self.project_id:
                fields["project_id"] = self.project_id
            if reason:
                fields["reason"] = reason
            trace_id = None
            if self._span is not None:
                trace_id = tracing.trace_id_of(self._span)
            elif self._trace_parent is not None:
                trace_id = tracing.trace_id_in(self._trace_parent)
            if trace_id is not None:
                fields["trace_id"] = trace_id
            logs.emit(level, "call", fields)
        if self._span is not None:
            tracing.end_call(self._span, _CODES[code], reason or code, self.project_id)
