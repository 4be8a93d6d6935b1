"""Spans of OpenTelemetry: call -> transaction -> intent -> the worker's chunks, as one trace.

On exactly if the standard variables OTEL_* ask for it and the extra `otel` is installed; otherwise nothing of it is
imported, and every function here returns at once. Spans hold names, kinds and counts: no text of an error, no data.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider

_log = structlog.get_logger()

# W3C trace context, version 00. Nothing else of what a caller sends is kept or logged.
_TRACE_PARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_OFF: Final = nullcontext()
# A collector that is away must not hold up the end of a process.
_FLUSH_SECONDS: Final = 2.0

_tracer: Tracer | None = None


def configure(role: str) -> None:
    """Turns tracing on if the environment asks for it. `role` is "server" or "worker", for the service's name."""
    if not _wanted(os.environ):
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
    except ImportError:
        _log.warning("tracing is off: OTEL_* is set, but the extra otel is not installed")
        return
    exporter: SpanExporter
    match os.environ.get("OTEL_TRACES_EXPORTER", "otlp"):
        case "otlp":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter()
        case "console":
            exporter = ConsoleSpanExporter()
        case other:
            _log.warning("tracing is off: OTEL_TRACES_EXPORTER must be otlp, console or none", given=other[:40])
            return
    name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": f"onefold-{role}"}
    resource = Resource.create({**name, "service.version": version("onefold")})
    # Sampler, limits and the exporter's address are read from OTEL_* by the library.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    atexit.register(_shut_down, provider.shutdown)
    use(provider)


def use(provider: TracerProvider | None) -> None:
    """Makes spans by this provider from now on; None turns tracing off."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("onefold")


def begin_call(method: str, trace_parent: str | None) -> tuple[Span, object] | None:
    """Begins the span of a call and makes it the current one; to be given to end_call. None if tracing is off."""
    if _tracer is None:
        return None
    from opentelemetry import context, trace

    service, _, name = method.lstrip("/").rpartition("/")
    span = _tracer.start_span(
        method.lstrip("/"),
        context=_remote(trace_parent),
        kind=trace.SpanKind.SERVER,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
    )
    return span, context.attach(trace.set_span_in_context(span))


def end_call(begun: tuple[Span, object], code: int, reason: str, project_id: str) -> None:
    """Ends the span of a call, with its gRPC code, and what else there is."""
    from opentelemetry import context, trace

    span, token = begun
    span.set_attribute("rpc.grpc.status_code", code)
    if project_id:
        span.set_attribute("onefold.project_id", project_id)
    if code:
        span.set_attribute("onefold.reason", reason)
        span.set_status(trace.StatusCode.ERROR, reason)
    span.end()
    context.detach(token)  # type: ignore[arg-type]  # what attach() returned


def trace_id_of(begun: tuple[Span, object]) -> str:
    """The trace of a call's span, in hexadecimal."""
    return f"{begun[0].get_span_context().trace_id:032x}"


def trace_id_in(trace_parent: str) -> str | None:
    """The trace that a caller's traceparent names; None if it is not one."""
    match = _TRACE_PARENT.fullmatch(trace_parent)
    return match[1] if match else None


def span(name: str, **attributes: str | int) -> AbstractContextManager[Span | None]:
    """A span within the current one. None without one: what nobody asked for (a sweep, a probe) is no trace."""
    if _tracer is None or current() is None:
        return _OFF
    return _spanning(_tracer, name, attributes, None, ())


def work_span(name: str, trace_parent: str | None, **attributes: str | int) -> AbstractContextManager[Span | None]:
    """The span of a worker at an intent, which goes on with the trace of the call that left it."""
    if _tracer is None or trace_parent is None:
        return _OFF
    return _spanning(_tracer, name, attributes, trace_parent, ())


def shared_span(name: str, of: Iterable[SpanContext | None]) -> AbstractContextManager[Span | None]:
    """The span of work that several calls share: a trace of its own, linked to each of theirs."""
    if _tracer is None:
        return _OFF
    callers = [context for context in of if context is not None]
    return _spanning(_tracer, name, {}, None, callers) if callers else _OFF


def current() -> SpanContext | None:
    """The current span, to be linked to."""
    if _tracer is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return context if context.is_valid else None


def trace_parent() -> str | None:
    """The current span as a traceparent, to be kept with work that goes on elsewhere."""
    context = current()
    if context is None:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


@contextmanager
def _spanning(
    tracer: Tracer, name: str, attributes: Mapping[str, str | int], parent: str | None, of: Iterable[SpanContext]
) -> Iterator[Span]:
    from opentelemetry import trace

    # The library would write an exception's text into the span, which may quote a row.
    with tracer.start_as_current_span(
        name,
        context=_remote(parent),
        attributes=attributes,
        links=[trace.Link(context) for context in of],
        record_exception=False,
        set_status_on_exception=False,
    ) as running:
        try:
            yield running
        except BaseException as fault:
            running.set_status(trace.StatusCode.ERROR, type(fault).__name__)
            raise


def _remote(trace_parent: str | None) -> Context | None:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if trace_parent is None or _TRACE_PARENT.fullmatch(trace_parent) is None:
        return None
    return TraceContextTextMapPropagator().extract({"traceparent": trace_parent})


def _wanted(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    names = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environment.get(name) for name in names)


def _shut_down(shut_down: object) -> None:
    assert callable(shut_down)
    flushing = threading.Thread(target=shut_down, daemon=True)
    flushing.start()
    flushing.join(_FLUSH_SECONDS)
