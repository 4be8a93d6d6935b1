"""Data to measure on, written straight into the tables.

By the API a million events would take a minute and be a measurement of their own; what is measured here begins when
they are stored. The rows are those that the service would have written, and PostgreSQL makes them itself, which is
faster than any way of sending them.
"""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from onefold.identity.links import subject_id

from .client import Stage
from .stage import PROJECT

EVENTS: Final = 1_000_000
HOLDERS: Final = 100_000

# Spread over 20 days and so over 21 partitions, in the order in which they happened. data is about 100 bytes.
_EVENTS = """
INSERT INTO anonymous_events (
    project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, data
)
SELECT
    $1, $2, event_time, uuidv7()::text, event_time, 2, 'page viewed', $3,
    json_build_object('path', '/products/' || number % 5000, 'referrer', 'https://example.com/search', 'seconds', 12)
FROM (
    SELECT number, now() - interval '20 days' * (1 - number / $4::float8) AS event_time
    FROM generate_series(1, $4::integer) AS number
)
"""

# A person's own, likewise.
_PERSON_EVENTS = """
INSERT INTO events (project_id, profile_id, event_time, event_id, receive_time, kind, name, data)
SELECT
    $1, $2, event_time, uuidv7()::text, event_time, 2, 'page viewed',
    json_build_object('path', '/products/' || number % 5000, 'referrer', 'https://example.com/search', 'seconds', 12)
FROM (
    SELECT number, now() - interval '20 days' * (1 - number / $3::float8) AS event_time
    FROM generate_series(1, $3::integer) AS number
)
"""

# Twenty thousand visitors with ten events each. A plan depends on the statistics, and a table that holds nobody but one
# visitor has those of no service that is in use.
_CROWD = """
INSERT INTO anonymous_events (
    project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, data
)
SELECT
    $1, md5(visitor)::uuid, event_time, uuidv7()::text, event_time, 2, 'page viewed', visitor, '{"path": "/"}'
FROM (
    SELECT 'crowd-' || number % 20000 AS visitor, now() - interval '20 days' * (1 - number / 200000.0) AS event_time
    FROM generate_series(1, 200000) AS number
)
"""


async def crowd(stage: Stage) -> None:
    """Makes the visitors that a service has anyway, unless they are there."""
    if not await stage.database.fetchval("SELECT EXISTS (SELECT FROM anonymous_events)"):
        await stage.database.execute(_CROWD, PROJECT)


async def visitor(stage: Stage, anonymous_id: str, events: int) -> None:
    """Makes a visitor with that many events."""
    await visitor_in(stage.database, anonymous_id, events)


async def visitor_in(database: asyncpg.Connection[Any], anonymous_id: str, events: int) -> None:
    """The same, where there is no stage."""
    await database.execute(_EVENTS, PROJECT, subject_id(PROJECT, anonymous_id), anonymous_id, events)


async def person_events(stage: Stage, profile_id: str, events: int) -> None:
    """Gives a person that many events."""
    await stage.database.execute(_PERSON_EVENTS, PROJECT, profile_id, events, timeout=300)


async def big_visitors(stage: Stage, count: int) -> list[str]:
    """That many visitors of a million events each, who are still nobody: some are there, others are made now."""
    await crowd(stage)
    while len(stage.visitors) < count:
        anonymous_id = f"big-{len(stage.visitors)}"
        await visitor(stage, anonymous_id, EVENTS)
        stage.visitors.append(anonymous_id)
    return stage.visitors[:count]


async def phone_owners(stage: Stage) -> None:
    """A hundred thousand people, each with a phone of their own, so that most tokens have one holder, as they do."""
    if await stage.database.fetchval("SELECT EXISTS (SELECT FROM devices)"):
        return
    await stage.database.execute(
        "INSERT INTO profiles (project_id, profile_id, email, signup_source) "
        "SELECT $1, uuidv7(), 'holder-' || number || '@example.com', 4 FROM generate_series(1, $2::integer) AS number",
        PROJECT,
        HOLDERS,
    )
    await stage.database.execute(
        "INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive) "
        "SELECT project_id, 1, email, profile_id, true FROM profiles WHERE email LIKE 'holder-%'"
    )
    await _devices(stage, "'own-' || profile_id")


async def shared_phone(stage: Stage, token: str) -> None:
    """A token that all of them hold."""
    await phone_owners(stage)
    await _devices(stage, f"'{token}'")


async def _devices(stage: Stage, token: str) -> None:
    await stage.database.execute(
        "INSERT INTO devices (project_id, profile_id, token, platform, application_name, data_fields, "
        "endpoint_enabled, operation_number, create_time, update_time) "
        f"SELECT project_id, profile_id, {token}, 1, 'Pizza Tracker', '{{\"phoneType\": \"iPhone\"}}', "
        "true, nextval('operation_numbers'), now(), now() FROM profiles WHERE email LIKE 'holder-%'"
    )
