"""Events whose ids the server makes go into their tables by COPY, beside the statements in queries.sql."""

from __future__ import annotations

from typing import Any

import pytest

from onefold.events.store import ANONYMOUS_EVENT_COLUMNS, EVENT_COLUMNS
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.identity_service_pb2 import UpdateProfileRequest
from support.client import Client, email
from support.world import World


@pytest.mark.parametrize(
    ("table", "columns"), [("events", EVENT_COLUMNS), ("anonymous_events", ANONYMOUS_EVENT_COLUMNS)]
)
async def test_every_column_is_filled_in(world: World, table: str, columns: tuple[str, ...]) -> None:
    """E1, X3: COPY knows every column of the table, so that none is silently left at its default."""
    rows = await world.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = $1", table
    )
    assert sorted(row[0] for row in rows) == sorted(columns)


@pytest.mark.parametrize(
    ("table", "whose"),
    [("events", {"identifiers": email("a@example.com")}), ("anonymous_events", {"anonymous_id": "x"})],
)
async def test_ids_of_the_server_and_of_callers(
    email_project: Client, world: World, table: str, whose: dict[str, Any]
) -> None:
    """E3, E4: two events of a batch, one with an event_id, are stored alike, and at one moment."""
    await email_project.identity.UpdateProfile(UpdateProfileRequest(identifiers=email("a@example.com")))
    told = {**whose, "name": "Viewed", "data_json": '{"n": 1e300}'}
    made, given = await email_project.batch([NewEvent(**told), NewEvent(**told, event_id="given")])
    assert (made.result.event_id != "given", given.result.event_id) == (True, "given")
    rows = await world.fetch(f"SELECT * FROM {table} WHERE project_id = $1", email_project.project_id)
    stored = {row["event_id"]: {**row, "event_id": None} for row in rows}
    assert stored.keys() == {made.result.event_id, "given"}
    assert stored[made.result.event_id] == stored["given"]
