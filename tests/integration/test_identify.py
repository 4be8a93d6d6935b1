"""Identify: linking a visitor's id to a person."""

from __future__ import annotations

from datetime import timedelta

import pytest

from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_ALREADY_LINKED,
    LINK_OUTCOME_LINKED,
    LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE,
    IdentifyRequest,
)
from support.client import Client, email, timestamp
from support.world import World


async def test_the_history_is_the_persons_from_the_moment_identify_returns(email_project: Client, world: World) -> None:
    """A3: before any worker has run, after the first pass and after the last, the timeline is the same."""
    now = await world.now()
    for name, days in (("Viewed", 2), ("Clicked", 1), ("Added", 0)):
        await email_project.track(anonymous_id="abc123", name=name, event_time=timestamp(now - timedelta(days=days)))
    answer = await email_project.identity.Identify(
        IdentifyRequest(identifiers=email("person@example.com"), anonymous_id="abc123")
    )
    assert answer.link.outcome == LINK_OUTCOME_LINKED

    for _ in range(3):
        events = await email_project.timeline(identifiers=email("person@example.com"))
        assert [event.name for event in events] == ["Added", "Clicked", "Viewed"]
        assert all(event.was_anonymous and event.anonymous_id == "abc123" for event in events)
        assert await email_project.names(anonymous_id="abc123") == []
        await world.work_off(email_project.project_id)
        await world.pass_time(email_project.project_id, timedelta(seconds=17))
    assert await world.open_intents(email_project.project_id) == 0


@pytest.mark.parametrize("again", [0, 1])
async def test_an_id_is_single_use(email_project: Client, again: int) -> None:
    """A4: linked to one person it is refused to another, whose profile is written all the same."""
    first = await email_project.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"))
    for _ in range(again):
        repeated = await email_project.identity.Identify(
            IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x")
        )
        assert repeated.link.outcome == LINK_OUTCOME_ALREADY_LINKED
        assert repeated.link.grace_end_time == first.link.grace_end_time
    refused = await email_project.identity.Identify(
        IdentifyRequest(identifiers=email("b@example.com"), anonymous_id="x", data_fields_json='{"plan":"gold"}')
    )
    assert refused.link.outcome == LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE
    assert not refused.link.merge_id
    assert not refused.link.HasField("link_time")
    assert refused.profile.profile_id
