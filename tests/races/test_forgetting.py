"""Races with forgetting: F41, F43."""

from __future__ import annotations

from datetime import timedelta

import pytest

from onefold.failpoints import COMMIT, COPY_EVENTS
from onefold.identity import store as identity
from onefold.merges import store as merges
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import (
    MERGE_OUTCOME_MERGED,
    ForgetProfileRequest,
    ForgetProfileResponse,
    GetProfileRequest,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import Identifiers
from onefold.workflows import moving
from races.stage import GUARDED, A, B, Stage, switch_off
from support.client import email, failure
from support.merging import identify, merge, put
from support.traces import tables_with


async def forget(stage: Stage, who: Identifiers) -> ForgetProfileResponse:
    """Forgets a person."""
    return await stage.identity.ForgetProfile(ForgetProfileRequest(identifiers=who))


async def is_there(stage: Stage, who: Identifiers) -> bool:
    """Whether a name leads to anybody."""
    try:
        await stage.identity.GetProfile(GetProfileRequest(identifiers=who))
    except Exception:
        assert (await failure(stage.identity.GetProfile(GetProfileRequest(identifiers=who)))).reason == (
            "PROFILE_NOT_FOUND"
        )
        return False
    return True


@GUARDED
async def test_forgotten_while_somebody_is_merged_into_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """F41, I20: a merge that comes while B is being forgotten waits, is refused, and leaves A whole; without its lock
    on the two profiles it goes on, and A is gone into nobody."""
    if not guarded:
        switch_off(monkeypatch, merges.queries, "lock_profiles", "FOR UPDATE")
    for who in (A, B):
        await put(stage, who)
    await stage.track(identifiers=A, name="of a")
    forgetting = await stage.start("forget", forget(stage, B), COMMIT)
    merging = await stage.start("merge", merge(stage, A, B))
    assert (await forgetting.end()).profile_existed
    assert await merging.reason() == ("FORGOTTEN" if guarded else "")
    assert await is_there(stage, A) is guarded
    assert not await is_there(stage, B)
    if guarded:
        await stage.world.settle(stage.project_id)
        assert await stage.names(identifiers=A) == ["of a"]


@GUARDED
async def test_forgotten_just_after_somebody_was_merged_into_them(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """F41, F42, I20: forgetting B waits for the merge that is being committed: both are gone, and neither name comes
    back; without the lock on B's row, A's name is not blocked."""
    if not guarded:
        switch_off(monkeypatch, identity.queries, "lock_profile", "FOR UPDATE")
    for who in (A, B):
        await put(stage, who)
    merging = await stage.start("merge", merge(stage, A, B), COMMIT)
    forgetting = await stage.start("forget", forget(stage, B))
    assert (await merging.end()).outcome == MERGE_OUTCOME_MERGED
    await forgetting.end()
    assert [await is_there(stage, who) for who in (A, B)] == [False, False]
    back = await stage.start("back", stage.identity.UpdateProfile(UpdateProfileRequest(identifiers=A)))
    assert await back.reason() == ("FORGOTTEN" if guarded else "")
    assert (await failure(stage.identity.UpdateProfile(UpdateProfileRequest(identifiers=B)))).reason == "FORGOTTEN"


@GUARDED
@pytest.mark.parametrize("whose", ["the person's", "the visitor's"])
async def test_an_event_is_in_flight_across_the_forget(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, whose: str, guarded: bool
) -> None:
    """F43: an event that was on its way when its person, or the person whose visitor it is of, was forgotten, and that
    is committed after the worker's first pass, is in no read, and in the end in no table; erased in one pass, it stays.
    """
    if not guarded:
        monkeypatch.setattr(moving, "SETTLE_AFTER", timedelta(seconds=-1))
    canary = f"canary-{stage.project_id}"
    who = email(f"{canary}@example.com")
    await put(stage, who)
    new = NewEvent(identifiers=who, name="seen", data_json=f'{{"a":"{canary}"}}')
    if whose == "the visitor's":
        new = NewEvent(anonymous_id="x", name="seen", data_json=f'{{"a":"{canary}"}}')
    event = await stage.start("event", stage.events.Track(TrackRequest(event=new, request_id="r")), COPY_EVENTS)
    if whose == "the visitor's":
        await identify(stage, who, "x")
    await forget(stage, who)
    await stage.world.work_off(stage.project_id)
    await event.end()
    assert not await is_there(stage, who)
    is_back = not guarded and whose == "the visitor's"
    assert await stage.names(anonymous_id="x") == (["seen"] if is_back else [])
    await stage.world.settle(stage.project_id)
    table = "events" if whose == "the person's" else "anonymous_events"
    left = await tables_with(stage.world, canary)
    assert (table in left) is not guarded
    assert not left or not guarded


@pytest.mark.parametrize("first", ["chunk", "forget"])
async def test_a_chunk_meets_the_forget(stage: Stage, first: str) -> None:
    """F43: whether a chunk of A's relocation to B or the forgetting of B is first, the other waits, both end well, and
    in the end nothing of either is in any table."""
    canary = f"canary-{stage.project_id}"
    source, target = email(f"{canary}-a@example.com"), email(f"{canary}-b@example.com")
    for who in (source, target):
        await put(stage, who)
        await stage.track(identifiers=who, name=canary)
    await merge(stage, source, target)
    lease = await stage.lease()
    if first == "chunk":
        chunk = await stage.chunk(lease, "profile_to_profile")
        forgetting = await stage.start("forget", forget(stage, target))
        assert forgetting.blocked
        await chunk.end()
        await forgetting.end()
    else:
        forgetting = await stage.start("forget", forget(stage, target), COMMIT)
        chunk = await stage.chunk(lease)
        assert chunk.blocked
        await forgetting.end()
        await chunk.end()
    assert [await is_there(stage, who) for who in (source, target)] == [False, False]
    # The lease that the chunk has left ends, and what it saw last is looked at once more.
    await stage.world.pass_time(stage.project_id, timedelta(seconds=40))
    await stage.world.settle(stage.project_id)
    assert await tables_with(stage.world, canary) == set()
