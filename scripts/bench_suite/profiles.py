"""Reading one profile: beside a call that does nothing, and in a project with a million profiles."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any, Final

import asyncpg
from grpc_health.v1.health_pb2 import HealthCheckRequest

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.identity_service_pb2 import GetProfileRequest
from onefold.v1.profile_pb2 import Identifiers

from .figure import Figure
from .load import Server, call
from .stage import PROJECT, processes

_GET_PROFILE: Final = "/onefold.v1.IdentityService/GetProfile"
_CHECK: Final = "/grpc.health.v1.Health/Check"
_READERS: Final = 8
_READS: Final = 8_000
_IN_FLIGHT: Final = 256
_ROUNDS: Final = 7
# On a busy machine fewer rounds must do.
_ROUNDS_SECONDS: Final = 60.0
_LEAST_ROUNDS: Final = 3

# What a service knows of a person, about 130 bytes.
_PEOPLE = """
WITH person AS (
    INSERT INTO profiles (project_id, profile_id, email, user_id, data_fields, signup_source)
    SELECT
        $1, uuidv7(), 'reader-' || number || '@example.com', 'reader-' || number,
        json_build_object('firstName', 'Ada', 'plan', 'gold', 'tags', ARRAY['sale', 'new'], 'subscribed', true,
            'address', json_build_object('city', 'London', 'country', 'GB'), 'visits', number),
        1
    FROM generate_series(1, $2::integer) AS number
    RETURNING profile_id, email, user_id
)

INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive)
SELECT $1, 1, email, profile_id, true FROM person
UNION ALL
SELECT $1, 2, user_id, profile_id, false FROM person
"""


def _request(number: int) -> GetProfileRequest:
    return GetProfileRequest(
        identifiers=Identifiers(email=f"reader-{number}@example.com"), data_format=DATA_FORMAT_JSON
    )


def get_profile_ratio() -> list[Figure]:
    """GetProfile/s by email with 256 in flight, over a call that does nothing (grpc.health.v1) on the same server."""
    requests = [_request(number).SerializeToString() for number in range(1, _READERS + 1)]
    nothing = [HealthCheckRequest().SerializeToString()] * _READERS
    with processes() as running:
        asyncio.run(_seed(running.database_url, 1_000))
        server = Server(running.address, running.api_key, running.server_pid)
        # One call that gRPC's status tells about shows that each is answered.
        for method, request in ((_GET_PROFILE, requests[0]), (_CHECK, nothing[0])):
            call(server, method, [request], calls=1, in_flight=1, once=True)
        reads, floors = [], []
        deadline = time.monotonic() + _ROUNDS_SECONDS
        for number in range(_ROUNDS + 1):
            if number > _LEAST_ROUNDS and time.monotonic() > deadline:
                break
            floor = call(server, _CHECK, nothing, calls=_READS, in_flight=_IN_FLIGHT)
            read = call(server, _GET_PROFILE, requests, calls=_READS, in_flight=_IN_FLIGHT)
            if number:  # the first one warms up
                floors.append(floor)
                reads.append(read)
    ratios = [read.per_second / floor.per_second for read, floor in zip(reads, floors, strict=True)]
    note = (
        f"medians of {len(reads)} rounds (ratios {min(ratios):.2f} to {max(ratios):.2f}), floor: grpc.health.v1 Check; "
        f"server's processor {median(read.server_microseconds for read in reads):.0f} microseconds a call, "
        f"floor {median(floor.server_microseconds for floor in floors):.0f}"
    )
    return [
        Figure(
            "get_profile_ratio",
            median(read.per_second for read in reads),
            "calls/s",
            median(floor.per_second for floor in floors),
            note,
        )
    ]


async def _seed(url: str, people: int) -> None:
    connection: asyncpg.Connection[Any] = await asyncpg.connect(url)
    try:
        await connection.execute(_PEOPLE, PROJECT, people)
        await connection.execute("VACUUM ANALYZE profiles, identifiers")
    finally:
        await connection.close()
