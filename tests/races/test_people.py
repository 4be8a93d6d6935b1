"""Races over who somebody is: F30, F35, F38, F45."""

from __future__ import annotations

import asyncio
from uuid import UUID

import grpc
import pytest

from onefold.config import Settings
from onefold.db.migrate import migrate
from onefold.db.pool import SERVER_SETTINGS
from onefold.embedded import EmbeddedPostgres
from onefold.failpoints import COMMIT, COMMITTED
from onefold.identity import store as identity
from onefold.merges import store as merges
from onefold.projects.bootstrap import ensure_project
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_LINKED,
    LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE,
    MERGE_OUTCOME_MERGED,
    MERGE_OUTCOME_SAME_PROFILE,
    IdentifyRequest,
    IdentifyResponse,
    LookupProfilesRequest,
)
from onefold.v1.profile_pb2 import Identifiers
from races.stage import GUARDED, A, B, Stage, switch_off
from support.client import Client, read_failure, user
from support.holding import held
from support.merging import fields, merge, profile, put
from support.probes import eventually, waits_for_lock, world_of
from support.serving import served
from support.world import World

LINKED, REFUSED = LINK_OUTCOME_LINKED, LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE


async def identify(stage: Stage, who: Identifiers, request_id: str = "") -> IdentifyResponse:
    """Links x to a person, whose profile it writes."""
    return await stage.identity.Identify(
        IdentifyRequest(identifiers=who, anonymous_id="x", data_fields_json='{"plan":"gold"}', request_id=request_id)
    )


@GUARDED
@pytest.mark.parametrize("first", ["a", "b"])
async def test_two_people_identify_one_visitor(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, first: str, guarded: bool
) -> None:
    """F30, A4: the second waits for the first commit and is REFUSED_LINKED_ELSEWHERE, with its profile written; without
    the unique key of links both are LINKED, and the visitor's event is under both."""
    if not guarded:
        switch_off(monkeypatch, identity.queries, "claim_link", ", true, ", ", false, ")
    await stage.track(anonymous_id="x", name="seen")
    one, other = (A, B) if first == "a" else (B, A)
    winner = await stage.start("winner", identify(stage, one), COMMIT)
    loser = await stage.start("loser", identify(stage, other), COMMIT)
    told = [(await winner.end()).link.outcome, (await loser.end()).link.outcome]
    assert told == ([LINKED, REFUSED] if guarded else [LINKED, LINKED])
    assert await stage.named(one, other) == ([["seen"], []] if guarded else [["seen"], ["seen"]])
    assert await fields(stage, other) == {"plan": "gold"}
    if guarded:
        await stage.world.settle(stage.project_id)
        assert await stage.named(one, other) == [["seen"], []]


@pytest.mark.parametrize(("place", "linked"), [(COMMIT, "b"), (COMMITTED, "a")])
async def test_the_first_of_two_dies(stage: Stage, place: str, linked: str) -> None:
    """F30, F2, F3: if the first of two dies before its commit the second is LINKED; if it dies after it, with the
    answer lost, the second is refused, and sending the first again gives the lost answer."""
    await stage.track(anonymous_id="x", name="seen")
    first = await stage.start("first", identify(stage, A, request_id="r"), place)
    second = await stage.start("second", identify(stage, B), COMMIT)
    await first.die()
    told = (await second.end()).link.outcome
    again = await identify(stage, A, request_id="r")
    if linked == "b":
        assert (told, again.link.outcome, again.replayed) == (LINKED, REFUSED, False)
    else:
        assert (told, again.link.outcome, again.replayed) == (REFUSED, LINKED, True)
    assert await stage.named(A, B) == ([["seen"], []] if linked == "a" else [[], ["seen"]])


@GUARDED
async def test_two_people_are_merged_both_ways(
    postgres: EmbeddedPostgres, settings: Settings, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """F35: both wait for the same row first, so one is MERGED, the other SAME_PROFILE with the same survivor, and
    PostgreSQL counts no deadlock; locked in the order of each request, they deadlock, and one of them fails."""
    if not guarded:
        order = "ORDER BY array_position($2, profile_id)"
        switch_off(monkeypatch, merges.queries, "lock_profiles", "ORDER BY profile_id", order)
    monkeypatch.setitem(SERVER_SETTINGS, "lock_timeout", "8s")
    monkeypatch.setitem(SERVER_SETTINGS, "statement_timeout", "9s")
    # In a database of its own, whose count is nobody else's.
    name = f"race_{'guarded' if guarded else 'unguarded'}"
    own = settings.model_copy(update={"database_url": postgres.url(name)})
    async with world_of(settings.database_url) as world:
        await world.database.maintain(lambda connection: connection.execute(f"CREATE DATABASE {name}"))
        try:
            await migrate(own.database_url)
            key = await ensure_project(own.database_url, project_id="race", identifier_type="EMAIL", api_key=None)
            # Its sessions end with the server: at its end one tells PostgreSQL what it has counted.
            async with served(own) as channel, world_of(own.database_url) as inside:
                await merge_both_ways(Client(channel, "race", key), own, inside, guarded)
            sql = "SELECT deadlocks FROM pg_stat_database WHERE datname = $1"

            async def is_counted() -> bool:
                return bool(await world.value(sql, name) == (0 if guarded else 1))

            await eventually(is_counted)
        finally:
            await world.database.maintain(lambda connection: connection.execute(f"DROP DATABASE {name} WITH (FORCE)"))


async def merge_both_ways(c: Client, settings: Settings, world: World, guarded: bool) -> None:
    """Merges A and B both ways while the row that both need first is somebody else's."""
    older = await put(c, A)
    await put(c, B)
    hold = "SELECT FROM profiles WHERE project_id = $1 AND profile_id = $2 FOR UPDATE"
    tasks = []
    async with held(settings, hold, c.project_id, UUID(older)):
        for count, (source, target) in enumerate([(A, B), (B, A)], start=1):
            tasks.append(asyncio.ensure_future(merge(c, source, target)))
            await waits_for_lock(world, count)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    merged = [answer for answer in answers if not isinstance(answer, BaseException)]
    if guarded:
        assert [answer.outcome for answer in merged] == [MERGE_OUTCOME_MERGED, MERGE_OUTCOME_SAME_PROFILE]
        survivors = {answer.survivor.profile_id for answer in merged}
        assert survivors == {(await profile(c, who)).profile_id for who in (A, B)}
    else:
        [lost] = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        assert read_failure(lost).reason == "LOCK_TIMEOUT"


@GUARDED
@pytest.mark.parametrize("first", ["update", "merge"])
async def test_the_source_is_updated_while_it_is_merged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, first: str, guarded: bool
) -> None:
    """F38, I16: an update before the merge fills B's gaps and B's own value wins; one acknowledged after it is B's
    newest. Without the lock on the row that either builds on, the update is acknowledged and lost."""
    if not guarded:
        queries, name = (merges.queries, "lock_profiles") if first == "update" else (identity.queries, "lock_profile")
        switch_off(monkeypatch, queries, name, "FOR UPDATE")
    await put(stage, A)
    target = await put(stage, B, '{"both":"of b"}')
    update = put(stage, A, '{"both":"of a","only":"of a"}')
    calls = [update, merge(stage, A, B)] if first == "update" else [merge(stage, A, B), update]
    one = await stage.start("first", calls[0], COMMIT)
    other = await stage.start("second", calls[1])
    await one.end()
    await other.end()
    right = {"both": "of b" if first == "update" else "of a", "only": "of a"}
    assert await fields(stage, B) == (right if guarded else {"both": "of b"})
    if guarded:
        assert await fields(stage, A) == right
        assert await put(stage, A, '{"both":"newest"}') == target
        assert await fields(stage, B) == {"both": "newest", "only": "of a"}


@GUARDED
@pytest.mark.parametrize("stage", ["USER_ID"], indirect=True)
async def test_two_first_events_of_one_person(stage: Stage, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    """F45, I6: the second event waits for the first to make the person, and goes to the same one; without the unique
    key of identifiers two people arise."""
    if not guarded:
        guard = ("new.profile_id, new.exclusive", "new.profile_id, false")
        switch_off(monkeypatch, identity.queries, "claim_for_new_people", *guard)

    async def track(name: str) -> str:
        # With a request_id of its own: without one, the server would store both in one transaction.
        request = TrackRequest(event=NewEvent(identifiers=user("new"), name=name), request_id=name)
        return (await stage.events.Track(request)).result.profile_id

    one = await stage.start("one", track("one"), COMMIT)
    two = await stage.start("two", track("two"))
    owners = {await one.end(), await two.end()}
    found = await stage.identity.LookupProfiles(LookupProfilesRequest(user_id="new"))
    assert {each.profile_id for each in found.profiles} == owners
    assert len(owners) == (1 if guarded else 2)
    if guarded:
        assert sorted(await stage.names(identifiers=user("new"))) == ["one", "two"]
