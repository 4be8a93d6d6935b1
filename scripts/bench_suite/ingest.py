"""How fast events come in: Track, BatchTrack, several processes, and what a server needs for it.

Everything runs in processes of its own: PostgreSQL, the server, and what makes the load. This one only counts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import urandom
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final
from uuid import UUID

import asyncpg

from onefold.events.ingest import event_id_at
from onefold.events.store import EVENT_COLUMNS
from onefold.v1.event_pb2 import EVENT_KIND_PAGE, NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, TrackRequest, TrackStreamRequest
from onefold.v1.profile_pb2 import Identifiers

from .figure import Figure
from .load import BATCH_TRACK, TRACK, TRACK_STREAM, Loaded, Server, call
from .stage import PROJECT, NotMeasuredError, Processes, part, processes

_PEOPLE: Final = 100
_DATA: Final = {
    "path": "/products/1234",
    "referrer": "https://example.com/search",
    "seconds": 12,
    "tags": ["sale", "new"],
    "member": True,
}
_TEXT: Final = json.dumps(_DATA, separators=(",", ":"))

# As many people as there are loads: each h2load tells of one.
_TRACKERS: Final = 8
_TRACK_CALLS: Final = 8_000
_IN_FLIGHT: Final = 256

_BATCH: Final = 1_000
_BATCHES: Final = 20
_BATCHES_IN_FLIGHT: Final = 8
# So many different ones, sent in turn; _BATCHES and the others are multiples of it.
_DIFFERENT: Final = 4

_ROUNDS: Final = 7
# On a busy machine fewer rounds must do.
_ROUNDS_SECONDS: Final = 45.0
_LEAST_ROUNDS: Final = 3

_MEMORY_EVENTS: Final = 1_000_000
_LATENCY_SECONDS: Final = 8.0

_ids = itertools.count(1)


def track_ratio() -> list[Figure]:
    """Unary Track/s with JSON data and 256 in flight, over a Track that answers a constant."""
    return _track("track_ratio", _event)


def track_struct_ratio() -> list[Figure]:
    """The same with the data as a Struct."""
    return _track("track_struct_ratio", _struct_event)


def _track(name: str, event: Callable[[int], NewEvent]) -> list[Figure]:
    requests = [TrackRequest(event=event(person)).SerializeToString() for person in range(_TRACKERS)]
    with _served() as (running, server), _floor(running) as floor:
        rounds = _Rounds()
        for number in rounds:
            at_floor = call(floor, TRACK, requests, calls=_TRACK_CALLS, in_flight=_IN_FLIGHT)
            with _stored(running, _TRACK_CALLS):
                tracked = call(server, TRACK, requests, calls=_TRACK_CALLS, in_flight=_IN_FLIGHT)
            if number:  # the first one warms up
                rounds.add(tracked, at_floor)
        return [rounds.figure(name, "events/s", 1, "a Track that answers a constant, on a server of its own")]


def batch() -> list[Figure]:
    """Events/s by BatchTrack(1,000), over COPY of the same rows into a table with the same columns and keys.

    With data as JSON text, as a Struct, and with event ids of the caller; and by TrackStream. The server is run as it
    would be on a machine of two cores, in two processes; the first figure is taken of one process, too.
    """
    few = _DIFFERENT
    with _served() as (running, one), _two(running) as two:
        return [
            _batch(running, two, "batch_track_ratio", BATCH_TRACK, lambda: _batches(_event, few)),
            _batch(running, two, "batch_track_struct_ratio", BATCH_TRACK, lambda: _batches(_struct_event, few)),
            _batch(running, two, "batch_track_ids_ratio", BATCH_TRACK, _batches_with_ids),
            _batch(running, two, "stream_ratio", TRACK_STREAM, _stream),
            _batch(running, one, "batch_track_one_process_ratio", BATCH_TRACK, lambda: _batches(_event, few)),
            _batch(running, one, "stream_one_process_ratio", TRACK_STREAM, _stream),
        ]


def _batch(
    running: Processes, server: Server, name: str, method: str, make_requests: Callable[[], list[bytes]]
) -> Figure:
    rounds = _Rounds(seconds=_ROUNDS_SECONDS / 2)
    for number in rounds:
        copied = asyncio.run(_copy(running))
        requests = make_requests()
        with _stored(running, _BATCH * _BATCHES):
            tracked = call(
                server,
                method,
                requests,
                calls=_BATCHES,
                in_flight=_BATCHES_IN_FLIGHT,
                once=len(requests) == _BATCHES,
            )
        if number:
            rounds.add(tracked, copied)
    what = f"COPY of as many rows, a thousand at a time (batches: {_BATCHES_IN_FLIGHT} in flight)"
    return rounds.figure(name, "events/s", _BATCH, what)


def scale() -> list[Figure]:
    """Track/s of two processes on one port over one process."""
    requests = [TrackRequest(event=_event(person)).SerializeToString() for person in range(_TRACKERS)]
    with _served() as (running, one), _two(running) as two:
        rounds = _Rounds()
        for number in rounds:
            loads = []
            for server in (one, two):
                with _stored(running, _TRACK_CALLS):
                    loads.append(call(server, TRACK, requests, calls=_TRACK_CALLS, in_flight=_IN_FLIGHT))
            if number:
                rounds.add(loads[1], loads[0])
        return [rounds.figure("scale", "events/s", 1, "one process")]


def memory() -> list[Figure]:
    """The server's peak after 1,000,000 events by BatchTrack, and that over its peak after the first half."""
    with _served() as (running, server):
        requests = _batches(_event, _DIFFERENT)
        before = _peak_megabytes(server.pid)
        peaks = []
        for _ in range(2):
            calls = _MEMORY_EVENTS // 2 // _BATCH
            with _stored(running, calls * _BATCH):
                call(server, BATCH_TRACK, requests, calls=calls, in_flight=_BATCHES_IN_FLIGHT)
            peaks.append(_peak_megabytes(server.pid))
        note = f"the server's peak after {_MEMORY_EVENTS:,} events by BatchTrack, floor: "
        return [
            Figure("ingest_memory", peaks[1], "MB", before, note + "before the first"),
            Figure("ingest_memory_growth", peaks[1], "MB", peaks[0], note + "after half of them"),
        ]


def latency() -> list[Figure]:
    """What Track takes at half the peak rate: p50, p95 and p99, over the same of a Track that answers a constant."""
    requests = [TrackRequest(event=_event(person)).SerializeToString() for person in range(_TRACKERS)]
    with _served() as (running, server), _floor(running) as floor:
        peaks = [call(server, TRACK, requests, calls=_TRACK_CALLS, in_flight=_IN_FLIGHT).per_second for _ in range(3)]
        rate = max(peaks) / 2
        calls = int(rate * _LATENCY_SECONDS) // _TRACKERS * _TRACKERS
        paced = [call(each, TRACK, requests, calls=calls, in_flight=_IN_FLIGHT, rate=rate) for each in (floor, server)]
        at_floor, tracked = ([0.0, *quantiles(each.milliseconds, n=100)] for each in paced)
        note = (
            f"of {calls:,} calls at {paced[1].per_second:,.0f}/s (peak {max(peaks):,.0f}/s; server "
            f"{paced[1].server_share:.0%} of a core, load {paced[1].load_share:.0%}), floor: of a constant answer"
        )
        return [
            Figure(f"track_p{percent}", tracked[percent], "ms", at_floor[percent], f"p{percent} {note}")
            for percent in (50, 95, 99)
        ]


# --- the rounds -------------------------------------------------------------------------------------------------------


@dataclass
class _Rounds:
    """Pairs of measurements, taken in turn; iterating begins the rounds until there are enough or the time is over."""

    seconds: float = _ROUNDS_SECONDS
    pairs: list[tuple[Loaded, Loaded]] = field(default_factory=list)

    def __iter__(self) -> Iterator[int]:
        deadline = time.monotonic() + self.seconds
        for number in range(_ROUNDS + 1):
            if number > _LEAST_ROUNDS and time.monotonic() > deadline:
                return
            yield number

    def add(self, measured: Loaded, floor: Loaded) -> None:
        """Notes one pair."""
        self.pairs.append((measured, floor))

    def figure(self, name: str, unit: str, per_call: int, floor: str) -> Figure:
        """The medians, and how they came about."""
        measured, floors = zip(*self.pairs, strict=True)
        ratios = [first.per_second / second.per_second for first, second in self.pairs]
        note = (
            f"medians of {len(self.pairs)} rounds (ratios {min(ratios):.2f} to {max(ratios):.2f}), floor: {floor}; "
            f"server {_median(measured, 'server_share'):.0%} of a core, load {_median(measured, 'load_share'):.0%}; "
            f"server's processor {_median(measured, 'server_microseconds') / per_call:.0f} microseconds an event"
        )
        if any(each.server_share for each in floors):
            note += f", floor {_median(floors, 'server_microseconds') / per_call:.0f}"
        value, limit = (_median(loads, "per_second") * per_call for loads in (measured, floors))
        return Figure(name, value, unit, limit, note)


def _median(loads: Sequence[Loaded], what: str) -> float:
    return median(getattr(load, what) for load in loads)


# --- what is sent -----------------------------------------------------------------------------------------------------


def _event(person: int, event_id: str = "") -> NewEvent:
    return NewEvent(
        identifiers=Identifiers(email=_email(person)),
        name="page viewed",
        kind=EVENT_KIND_PAGE,
        data_json=_TEXT,
        event_id=event_id,
    )


def _struct_event(person: int, event_id: str = "") -> NewEvent:
    event = _event(person, event_id)
    event.data.update(_DATA)
    return event


def _thousand(event: Callable[..., NewEvent], *, ids: bool = False) -> list[NewEvent]:
    """Events of a hundred people."""
    return [event(number % _PEOPLE, f"event-{next(_ids)}" if ids else "") for number in range(_BATCH)]


def _batches(event: Callable[..., NewEvent], count: int) -> list[bytes]:
    return [BatchTrackRequest(events=_thousand(event)).SerializeToString() for _ in range(count)]


def _batches_with_ids() -> list[bytes]:
    return [BatchTrackRequest(events=_thousand(_event, ids=True)).SerializeToString() for _ in range(_BATCHES)]


def _stream() -> list[bytes]:
    return [
        TrackStreamRequest(sequence=number, events=_thousand(_event)).SerializeToString()
        for number in range(1, _BATCHES + 1)
    ]


def _email(person: int) -> str:
    return f"person-{person}@example.com"


# --- where it goes ----------------------------------------------------------------------------------------------------


@contextmanager
def _served() -> Iterator[tuple[Processes, Server]]:
    """The stage and its server; the people are there."""
    with processes() as running:
        asyncio.run(_with(running, _make_people))
        yield running, Server(running.address, running.api_key, running.server_pid)


@contextmanager
def _two(running: Processes) -> Iterator[Server]:
    """A second server, of two processes on one port."""
    arguments = ["serve", "--workers", "2", "--port", "0"]
    with part(running.folder / "two.log", arguments, running.environment) as (child, said):
        yield Server(said.removeprefix("ready "), running.api_key, child.pid)


@contextmanager
def _floor(running: Processes) -> Iterator[Server]:
    """The server whose Track does nothing. One call that gRPC's status tells about shows that it answers."""
    arguments = ["serve", "--port", "0"]
    log = running.folder / "floor.log"
    with part(log, arguments, running.environment, module="bench_suite.floor_server") as (child, said):
        floor = Server(said.removeprefix("ready "), running.api_key, child.pid)
        call(floor, TRACK, [TrackRequest(event=_event(0)).SerializeToString()], calls=1, in_flight=1, once=True)
        yield floor


async def _with(running: Processes, work: Callable[[asyncpg.Connection[Any]], Any]) -> Any:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(running.database_url)
    try:
        return await work(connection)
    finally:
        await connection.close()


async def _make_people(connection: asyncpg.Connection[Any]) -> None:
    await connection.execute(
        "INSERT INTO profiles (project_id, profile_id, email, signup_source) "
        "SELECT $1, uuidv7(), 'person-' || number || '@example.com', 1 FROM generate_series(0, $2::integer) AS number",
        PROJECT,
        _PEOPLE - 1,
    )
    await connection.execute(
        "INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive) "
        "SELECT project_id, 1, email, profile_id, true FROM profiles"
    )
    await connection.execute("CREATE TABLE copied_events (LIKE events INCLUDING ALL)")
    await connection.execute("ANALYZE")


@contextmanager
def _stored(running: Processes, events: int) -> Iterator[None]:
    """Whatever is acknowledged in the block must be stored when it ends: so many events."""

    async def count(connection: asyncpg.Connection[Any]) -> int:
        # A checkpoint of the last round's pages belongs to nobody.
        await connection.execute("CHECKPOINT")
        rows: int = await connection.fetchval("SELECT count(*) FROM events")
        return rows

    before = asyncio.run(_with(running, count))
    yield
    stored = asyncio.run(_with(running, count)) - before
    if stored != events:
        raise NotMeasuredError(f"{stored} of {events} events are stored")


async def _copy(running: Processes) -> Loaded:
    """COPY of the rows that the batches make: one after the other, each in a transaction of its own."""

    async def copy(connection: asyncpg.Connection[Any]) -> Loaded:
        people = await connection.fetch("SELECT profile_id FROM profiles")
        now = datetime.now(UTC)
        ids = [person["profile_id"] for person in people]
        batches = [[_row(ids[number % _PEOPLE], now) for number in range(_BATCH)] for _ in range(_BATCHES)]
        await connection.execute("CHECKPOINT")
        begin, computed = time.perf_counter(), time.process_time()
        for rows in batches:
            await connection.copy_records_to_table("copied_events", records=rows, columns=EVENT_COLUMNS)
        seconds = time.perf_counter() - begin
        return Loaded(_BATCHES, seconds, (time.process_time() - computed) / seconds, 0.0)

    copied: Loaded = await _with(running, copy)
    return copied


def _row(profile_id: UUID, now: datetime) -> tuple[Any, ...]:
    values = {
        **dict.fromkeys(EVENT_COLUMNS),
        "project_id": PROJECT,
        "profile_id": profile_id,
        "event_time": now,
        "event_id": event_id_at(now, next(_ids), urandom(8).hex()),
        "receive_time": now,
        "kind": EVENT_KIND_PAGE,
        "name": "page viewed",
        "data": _TEXT,
        "was_anonymous": False,
        "suppress_triggers": False,
    }
    return tuple(values.values())


def _peak_megabytes(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    [kilobytes] = [row.split()[1] for row in text.splitlines() if row.startswith("VmHWM:")]
    return int(kilobytes) / 1_024
