"""Every metric that a process counts by itself, under the names that dashboards of gRPC services expect, or onefold_*.

Labels hold names of the protos, reasons and kinds only: nobody's data, and never more series than the code has names.
What is looked up when somebody asks (pool, backlog, health) is in state.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

# A series more for each counter, which no dashboard reads.
disable_created_metrics()  # type: ignore[no-untyped-call]  # its author left it so
# Of this process, and not the library's default one, which anything that is imported may add to.
REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

# From a call that touches no row (1 ms) to the longest that is allowed (30 s).
_CALL_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# A connection is there at once or waited for; the pool gives up after acquire_seconds (2 s by default).
_ACQUIRE_BUCKETS: Final = (0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# A chunk is to take under 0.2 s (F40).
_CHUNK_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)

_METHOD: Final = ("grpc_type", "grpc_service", "grpc_method")


@dataclass(slots=True)
class MethodCounts:
    """What is counted of one method. Plain numbers, for one thread counts, and the library's locks cost a call 3 µs."""

    started: int = 0
    received: int = 0
    sent: int = 0
    # By code. OK is there from the start, so that a ratio of failures does not begin without its denominator.
    handled: dict[str, int] = field(default_factory=lambda: {"OK": 0})


class _Calls(Collector):
    """Shows the counts of all methods that are called, or could be."""

    def __init__(self) -> None:
        self.methods: dict[tuple[str, str, str], MethodCounts] = {}

    def collect(self) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "Calls begun.", labels=_METHOD)
        received = CounterMetricFamily("grpc_server_msg_received", "Messages received.", labels=_METHOD)
        sent = CounterMetricFamily("grpc_server_msg_sent", "Messages sent.", labels=_METHOD)
        handled = CounterMetricFamily("grpc_server_handled", "Calls ended, by code.", labels=(*_METHOD, "grpc_code"))
        for labels, counts in list(self.methods.items()):
            started.add_metric(labels, counts.started)
            received.add_metric(labels, counts.received)
            sent.add_metric(labels, counts.sent)
            for code, count in list(counts.handled.items()):
                handled.add_metric((*labels, code), count)
        yield from (started, received, sent, handled)


_calls: Final = _Calls()
REGISTRY.register(_calls)


def method_counts(kind: str, service: str, method: str) -> MethodCounts:
    """The counts of a method of this process, whoever asks for them."""
    return _calls.methods.setdefault((kind, service, method), MethodCounts())


HANDLING: Final = Histogram(
    "grpc_server_handling_seconds", "How long calls took.", _METHOD, buckets=_CALL_BUCKETS, registry=REGISTRY
)
FAILED: Final = Counter(
    "onefold_call_errors_total", "Calls that failed, by their published reason.", ("reason",), registry=REGISTRY
)
ACQUIRE: Final = Histogram(
    "onefold_pool_acquire_seconds",
    "How long a transaction waited for its connection.",
    buckets=_ACQUIRE_BUCKETS,
    registry=REGISTRY,
)
BATCH_EVENTS: Final = Histogram(
    "onefold_batch_events", "Track calls that shared a commit.", buckets=_BATCH_BUCKETS, registry=REGISTRY
)
DUPLICATES: Final = Counter(
    "onefold_duplicate_events_total", "Events recognised by their event_id as stored before.", registry=REGISTRY
)
REPLAYED: Final = Counter(
    "onefold_replayed_answers_total", "Writes answered by the stored answer of their request_id.", registry=REGISTRY
)
BELLS: Final = Counter(
    "onefold_doorbell_rings_total",
    "Bells by what became of them: rung, failed, or silent (not tried: the last ones failed, or too many waited).",
    ("result",),
    registry=REGISTRY,
)
CHUNKS: Final = Histogram(
    "onefold_intent_chunk_seconds",
    "How long a chunk of an intent took, from BEGIN to COMMIT.",
    ("kind",),
    buckets=_CHUNK_BUCKETS,
    registry=REGISTRY,
)
ROWS: Final = Counter(
    "onefold_intent_rows_total",
    "Rows written by chunks that were committed: events relocated (MOVE), copies disabled (DISABLE).",
    ("kind",),
    registry=REGISTRY,
)
RUNS: Final = Counter(
    "onefold_intent_runs_total",
    "Stretches of work by how they ended: ended (or postponed), paused, failed, stopped, nothing (lease lost).",
    ("kind", "result"),
    registry=REGISTRY,
)
LOOP_DELAY: Final = Histogram(
    "onefold_event_loop_delay_seconds",
    "How much later than asked for the event loop came back, looked at once a second.",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
    registry=REGISTRY,
)

# There from the start, so that the first one is an increase, not a new series.
for _result in ("rung", "failed", "silent"):
    BELLS.labels(_result)


def prepare_kinds(kinds: Iterable[str]) -> None:
    """The same for the kinds of intents, in a process that works on them."""
    for kind in kinds:
        CHUNKS.labels(kind)
        ROWS.labels(kind)
        for result in ("ended", "paused", "failed", "stopped", "nothing"):
            RUNS.labels(kind, result)
