"""Profiles: reading one beside a call that does nothing and among a million, and writing a thousand at once."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any, Final

import asyncpg
from grpc_health.v1.health_pb2 import HealthCheckRequest

from onefold.db.migrate import migrate
from onefold.projects.bootstrap import ensure_project
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.identity_service_pb2 import BatchUpdateProfilesRequest, GetProfileRequest
from onefold.v1.profile_pb2 import Identifiers

from .client import Stage
from .figure import Figure
from .load import Server, call
from .stage import PROJECT, Processes, part, processes

_GET_PROFILE: Final = "/onefold.v1.IdentityService/GetProfile"
_CHECK: Final = "/grpc.health.v1.Health/Check"
_ROUNDS: Final = 9
# On a busy machine fewer rounds must do.
_ROUNDS_SECONDS: Final = 60.0
_LEAST_ROUNDS: Final = 3

# As many people as there are loads: each h2load asks for one.
_READERS: Final = 8
_READS: Final = 8_000
_IN_FLIGHT: Final = 256

_FEW: Final = 1_000
_MANY: Final = 1_000_000
_LOOK_UPS: Final = 300

_BATCH: Final = 1_000
_BATCHES: Final = 12
_numbers = itertools.count(1)

# What a service knows of a person; data_fields is about 130 bytes.
_SEED = """
WITH person AS (
    INSERT INTO profiles (project_id, profile_id, email, data_fields, signup_source)
    SELECT
        $1, uuidv7(), 'reader-' || number || '@example.com',
        json_build_object(
            'firstName', 'Ada', 'plan', 'gold', 'visits', number, 'subscribed', true, 'tags', ARRAY['sale', 'new'],
            'address', json_build_object('city', 'London', 'country', 'GB')
        ),
        1
    FROM generate_series(1, $2::integer) AS number
    RETURNING profile_id, email
)

INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive)
SELECT $1, 1, email, profile_id, true FROM person
"""

# What somebody would write who knew that all of them are new and that nobody else writes.
_BY_HAND = """
WITH new AS (
    INSERT INTO profiles (project_id, profile_id, email, data_fields, signup_source)
    SELECT $1, uuidv7(), address, fields, 1
    FROM unnest($2::text [], $3::json []) AS person (address, fields)
    RETURNING profile_id, email
)

INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive)
SELECT $1, 1, email, profile_id, true FROM new
"""


def get_profile_ratio() -> list[Figure]:
    """GetProfile/s by email with 256 in flight, over a call that does nothing (grpc.health.v1) on the same server."""
    requests = [_request(number) for number in range(1, _READERS + 1)]
    nothing = [HealthCheckRequest().SerializeToString()] * _READERS
    with processes() as running:
        asyncio.run(_seed(running.database_url, _FEW))
        server = Server(running.address, running.api_key, running.server_pid)
        # Calls whose status is looked at show that all of them are answered.
        call(server, _GET_PROFILE, requests, calls=_READERS, in_flight=1, once=True)
        reads, floors = [], []
        for number in _rounds():
            floor = call(server, _CHECK, nothing, calls=_READS, in_flight=_IN_FLIGHT)
            read = call(server, _GET_PROFILE, requests, calls=_READS, in_flight=_IN_FLIGHT)
            if number:  # the first one warms up
                floors.append(floor)
                reads.append(read)
        call(server, _GET_PROFILE, requests, calls=_READERS, in_flight=1, once=True)
    ratios = [read.per_second / floor.per_second for read, floor in zip(reads, floors, strict=True)]
    note = (
        f"medians of {len(reads)} rounds (ratios {min(ratios):.2f} to {max(ratios):.2f}), floor: grpc.health.v1 Check; "
        f"server's processor {median(read.server_microseconds for read in reads):.0f} microseconds a call, "
        f"floor {median(floor.server_microseconds for floor in floors):.0f}"
    )
    value, limit = (median(load.per_second for load in loads) for loads in (reads, floors))
    return [Figure("get_profile_ratio", value, "calls/s", limit, note)]


def lookup_flatness() -> list[Figure]:
    """p50 of GetProfile by email with 1,000,000 profiles stored over p50 with 1,000.

    Two servers on two databases of one PostgreSQL are called at the same time, each with one call after the other, so
    that whatever else the machine does falls on both. Each call asks for another person, at random.
    """
    dice = random.Random(1)

    def read(server: Server, profiles: int) -> list[float]:
        requests = [_request(number) for number in dice.sample(range(1, profiles + 1), _LOOK_UPS)]
        return call(server, _GET_PROFILE, requests, calls=_LOOK_UPS, in_flight=1, once=True).milliseconds

    with processes() as running, _other_server(running) as (few_url, few), ThreadPoolExecutor() as threads:
        asyncio.run(_seed(running.database_url, _MANY))
        asyncio.run(_seed(few_url, _FEW))
        servers = (Server(running.address, running.api_key, running.server_pid), few)
        # The first round warms up.
        _, *rounds = [list(threads.map(read, servers, (_MANY, _FEW))) for _ in _rounds()]
    many, floor = ([taken for each in rounds for taken in each[side]] for side in range(2))
    note = f"p50 of {len(many):,} calls with {_MANY:,} profiles, floor: as many with {_FEW:,}"
    return [Figure("lookup_flatness", median(many), "ms", median(floor), note)]


async def batch_update(stage: Stage) -> list[Figure]:
    """Profiles/s through BatchUpdateProfiles(1,000 new) over one INSERT of the same rows by hand. They take turns.

    Each has its people as 1,000 rows, and makes what it sends of them.
    """
    by_call: list[float] = []
    by_hand: list[float] = []
    for number in range(_BATCHES + 2):
        if number == 2:
            # After two rounds to warm up: the plans of a service in use know how large its tables are.
            await stage.fresh("profiles", "identifiers")
            by_call, by_hand = [], []
        for turn in range(2):
            people = [
                (f"batch-{next(_numbers)}@example.com", '{"firstName":"Ada","plan":"gold","visits":12}')
                for _ in range(_BATCH)
            ]
            begin = time.perf_counter()
            if turn == number % 2:
                request = BatchUpdateProfilesRequest()
                for address, fields in people:
                    request.updates.add(data_fields_json=fields).identifiers.email = address
                await stage.identity.BatchUpdateProfiles(request, metadata=stage.metadata)
                by_call.append(_BATCH / (time.perf_counter() - begin))
            else:
                addresses, texts = zip(*people, strict=True)
                await stage.database.execute(_BY_HAND, PROJECT, addresses, texts)
                by_hand.append(_BATCH / (time.perf_counter() - begin))
    note = f"medians of {_BATCHES} batches of {_BATCH:,}, the client's own work included; floor: one INSERT"
    return [Figure("batch_update_ratio", median(by_call), "profiles/s", median(by_hand), note)]


def _rounds() -> Iterator[int]:
    deadline = time.monotonic() + _ROUNDS_SECONDS
    for number in range(_ROUNDS + 1):
        if number > _LEAST_ROUNDS and time.monotonic() > deadline:
            return
        yield number


def _request(number: int) -> bytes:
    person = Identifiers(email=f"reader-{number}@example.com")
    return GetProfileRequest(identifiers=person, data_format=DATA_FORMAT_JSON).SerializeToString()


@contextmanager
def _other_server(running: Processes) -> Iterator[tuple[str, Server]]:
    """A server of its own on a database of its own, and the database's address."""
    url, api_key = asyncio.run(_make_database(running))
    environment = {**running.environment, "ONEFOLD_DATABASE_URL": url}
    with part(running.folder / "other.log", ["serve", "--port", "0"], environment) as (child, said):
        yield url, Server(said.removeprefix("ready "), api_key, child.pid)


async def _make_database(running: Processes) -> tuple[str, str]:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(running.database_url)
    try:
        await connection.execute("CREATE DATABASE other")
        name = await connection.fetchval("SELECT current_database()")
    finally:
        await connection.close()
    url = running.database_url.replace(f"/{name}?", "/other?")
    await migrate(url)
    return url, await ensure_project(url, project_id=PROJECT, identifier_type="EMAIL", api_key=None)


async def _seed(url: str, people: int) -> None:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    try:
        await connection.execute(_SEED, PROJECT, people, timeout=300)
        await connection.execute("VACUUM ANALYZE profiles, identifiers")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
