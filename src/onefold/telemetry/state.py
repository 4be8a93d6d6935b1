"""Metrics that are looked up when somebody asks: the pool, the backlog in PostgreSQL, health, what runs here."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

import asyncpg
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from onefold import logs
from onefold.db.pool import Database
from onefold.errors import OnefoldError
from onefold.events.batcher import Batcher
from onefold.intents import store as intents
from onefold.intents.doorbell import Doorbell
from onefold.intents.rules import IntentKind
from onefold.intents.store import Backlog
from onefold.telemetry import metrics
from onefold.telemetry.http import Readiness

# All processes ask for the same numbers: often enough for an alert, seldom enough to be nothing to the database.
_BACKLOG_SECONDS: Final = 5.0
# A scrape does not wait for a database that is slow or away: it says so and shows the rest.
_LOOK_SECONDS: Final = 1.0


class StateMetrics(Collector):
    """What a server or a worker is at this moment, beside what it has counted. `page` answers a scrape."""

    def __init__(
        self,
        database: Database,
        readiness: Readiness,
        *,
        role: str,
        doorbell: Doorbell | None = None,
        batcher: Batcher | None = None,
    ) -> None:
        self._database = database
        self._readiness = readiness
        self._role = role
        self._doorbell = doorbell
        self._batcher = batcher
        self._backlog: list[Backlog] | None = None
        self._looked_at = float("-inf")
        # One page may be of several parts; a process may have several pages (in tests), each of its own server.
        self._registry = CollectorRegistry()
        self._registry.register(self)
        database.on_acquire = metrics.ACQUIRE.observe

    async def page(self) -> tuple[bytes, str]:
        """Everything in Prometheus' text format, and its content type. Takes little more than a second at most."""
        if time.monotonic() - self._looked_at >= _BACKLOG_SECONDS:
            self._looked_at = time.monotonic()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    self._backlog = await self._database.read(intents.backlog)
            except (OnefoldError, asyncpg.PostgresError, TimeoutError):
                # Old numbers would look like good ones.
                self._backlog = None
        # A thousand lines take 10 ms: in a thread, so that calls get on meanwhile.
        counted = await asyncio.to_thread(generate_latest, metrics.REGISTRY)
        return counted + generate_latest(self._registry), CONTENT_TYPE_PLAIN_0_0_4

    def collect(self) -> Iterator[Metric]:
        """The metrics; the backlog as `page` has found it."""
        build = GaugeMetricFamily(
            "onefold_build_info", "What runs here; always 1.", labels=["role", "version", "python", "grpc"]
        )
        build.add_metric([self._role, version("onefold"), platform.python_version(), version("grpcio")], 1)
        yield build
        yield GaugeMetricFamily(
            "onefold_ready", "1 if this process should get work, as /readyz says.", self._readiness.problem is None
        )
        in_use, idle, allowed = self._database.connections()
        pool = GaugeMetricFamily("onefold_pool_connections", "PostgreSQL connections by state.", labels=["state"])
        pool.add_metric(["in_use"], in_use)
        pool.add_metric(["idle"], idle)
        yield pool
        yield GaugeMetricFamily("onefold_pool_connections_max", "PostgreSQL connections at most.", allowed)
        yield GaugeMetricFamily(
            "onefold_pool_waiting", "Transactions that wait for a connection.", self._database.waiting
        )
        yield CounterMetricFamily(
            "onefold_lost_races_total", "Transactions run again because another was first.", self._database.lost_races
        )
        yield CounterMetricFamily(
            "onefold_log_lines_dropped_total", "Log lines dropped because nobody read stderr.", logs.dropped_lines()
        )
        if self._doorbell is not None:
            yield GaugeMetricFamily(
                "onefold_doorbell_degraded",
                "1 while the last bells failed: the workers' sweep does the work, up to 10 s later.",
                self._doorbell.degraded,
            )
        if self._batcher is not None:
            yield GaugeMetricFamily(
                "onefold_batch_waiting", "Track calls that wait for their batch.", self._batcher.waiting
            )
        yield from self._collect_backlog()

    def _collect_backlog(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "onefold_backlog_known", "1 if PostgreSQL told what is left to do.", self._backlog is not None
        )
        if self._backlog is None:
            return
        opened = GaugeMetricFamily("onefold_intents_open", "Intents that the workers have to do.", labels=["kind"])
        stuck = GaugeMetricFamily("onefold_intents_stuck", "Intents that the workers gave up.", labels=["kind"])
        oldest = GaugeMetricFamily("onefold_intents_oldest_seconds", "Age of the oldest open one.", labels=["kind"])
        overdue = GaugeMetricFamily(
            "onefold_intents_overdue_seconds", "How long the longest due has waited for a worker.", labels=["kind"]
        )
        found = {each.kind: each for each in self._backlog}
        # Those that this version knows are always there, so that an alert does not begin with a missing series. A newer
        # version's count together: names from a table are no labels.
        newer = [each for kind, each in found.items() if kind not in set(IntentKind)]
        for kind in [*IntentKind, "NEWER"] if newer else list(IntentKind):
            these = newer if kind == "NEWER" else [found[kind]] if kind in found else []
            opened.add_metric([kind], sum(each.open_count for each in these))
            stuck.add_metric([kind], sum(each.stuck_count for each in these))
            oldest.add_metric([kind], max((each.oldest_seconds or 0.0 for each in these), default=0.0))
            overdue.add_metric([kind], max((each.overdue_seconds or 0.0 for each in these), default=0.0))
        yield from (opened, stuck, oldest, overdue)
