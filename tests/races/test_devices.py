"""Races over whether a device is on: F47, F48, and what a worker meets that writes the copies of a token."""

from __future__ import annotations

from typing import Any

import pytest

from onefold.devices import store as devices
from onefold.failpoints import COMMIT
from onefold.v1.identity_service_pb2 import UNDO_OUTCOME_UNDONE, ForgetProfileRequest
from onefold.workflows import disabling
from races.schedule import Actor
from races.stage import GUARDED, A, B, C, Stage, switch_off
from support.client import email
from support.devices import hold_token
from support.merging import devices as devices_of
from support.merging import disable, merge, profile, register, undo


def switch_off_token_lock(patch: pytest.MonkeyPatch) -> None:
    """Nobody waits for anybody over a token."""
    switch_off(patch, devices.queries, "lock_token", "pg_advisory_xact_lock($1::bigint)", "$1::bigint")
    switch_off(patch, devices.queries, "lock_token_shared", "pg_advisory_xact_lock_shared($1::bigint)", "$1::bigint")


@GUARDED
@pytest.mark.parametrize("first", ["register", "disable"])
async def test_a_registration_meets_a_disable(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, first: str, guarded: bool
) -> None:
    """F47, D4: who has the token's lock is first. A registration answered after the disable stays on, one answered
    before it is off; without the lock, one of either kind is the other way round."""
    if not guarded:
        switch_off_token_lock(monkeypatch)
    await register(stage, B, "T")
    answered: list[str] = []

    async def note(name: str) -> None:
        await (register(stage, A, "T") if name == "register" else disable(stage, "T"))
        answered.append(name)

    second = "disable" if first == "register" else "register"
    # Both as far as they come: without the lock the second one is answered while the first has yet to commit.
    one = await stage.start(first, note(first), COMMIT)
    two = await stage.start(second, note(second))
    await one.end()
    await two.end()
    assert answered == ([first, second] if guarded else [second, first])
    is_on = (await devices_of(stage, A))["T"]
    assert (is_on is (answered[-1] == "register")) is guarded
    assert await devices_of(stage, B) == {"T": False}
    if guarded:
        await stage.world.settle(stage.project_id)
        assert (await devices_of(stage, A), await devices_of(stage, B)) == ({"T": is_on}, {"T": False})


@GUARDED
@pytest.mark.parametrize("who", ["a holder", "somebody new"])
@pytest.mark.parametrize("first", ["register", "chunk"])
async def test_somebody_registers_while_a_token_is_disabled_for_10000(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, first: str, who: str, guarded: bool
) -> None:
    """F48, D4: whoever registers in the midst of a chunk, or meets it while registering, is on in every read from then
    on, and all others are off, also
    when another worker begins anew; a worker that does not look at the order switches everybody off."""
    if not guarded:
        guard = "AND devices.operation_number < (SELECT disable.operation_number FROM disable)"
        switch_off(monkeypatch, disabling.queries, "disable_chunk", guard)
    await hold_token(stage.world, stage.project_id, 10_000)
    await disable(stage, "T")
    holder = A if who == "somebody new" else email("p17@example.com")
    lease = await stage.lease()
    if first == "register":
        registering = await stage.start("register", register(stage, holder, "T"), COMMIT)
        chunk = await stage.chunk(lease)
        await registering.end()
    else:
        chunk = await stage.chunk(lease, "count_disabled")
        registering = await stage.start("register", register(stage, holder, "T"))
    await chunk.end()
    await registering.end()
    on = "SELECT profile_id::text FROM devices WHERE project_id = $1 AND endpoint_enabled"
    assert (await devices_of(stage, holder))["T"] is (guarded or not (first == "register" and who == "a holder"))
    # The worker is killed, and another one begins anew.
    position = await stage.world.chunk(lease)
    while position is not None:
        position = await stage.world.chunk(lease, position)
    left = [row["profile_id"] for row in await stage.world.fetch(on, stage.project_id)]
    assert left == ([(await profile(stage, holder)).profile_id] if guarded else [])
    assert await devices_of(stage, holder) == {"T": guarded}


async def test_a_disable_writes_5000_copies_at_a_time(stage: Stage) -> None:
    """F48, D3: a worker's transaction writes 5,000 copies and no more, so nobody can wait long for its end."""
    await hold_token(stage.world, stage.project_id, 5_001)
    await disable(stage, "T")
    await stage.world.chunk(await stage.lease())
    sql = "SELECT count(*) FROM devices WHERE project_id = $1 AND NOT endpoint_enabled"
    assert await stage.world.value(sql, stage.project_id) == 5_000


@pytest.mark.parametrize("first", ["undo", "chunk"])
async def test_an_undo_meets_a_disable_of_the_tokens(stage: Stage, first: str) -> None:
    """F48, I19, D3: an undo that takes copies apart while a worker switches them off, or a worker that comes while the
    undo does, waits and ends well: of a token each writes one of the copies that the other wants, so neither deadlocks.
    """
    for token in ("T1", "T2"):
        for who in (A, B, C):
            await register(stage, who, token)
    await merge(stage, C, B)
    merged = await merge(stage, A, B)
    await stage.world.settle(stage.project_id)
    for token in ("T1", "T2"):
        await disable(stage, token)
    leases = [await stage.world.take(stage.project_id, each) for each in await stage.world.due(stage.project_id)]
    [one, two] = [lease for lease in leases if lease is not None]
    taking_back = undo(stage, merged.merge.merge_id)
    if first == "undo":
        undoing = await stage.start("undo", taking_back, COMMIT)
        chunks = [await stage.chunk(lease) for lease in (one, two)]
        outcome = (await undoing.end()).outcome
        for chunk in chunks:
            await chunk.end()
    else:
        chunks = [await stage.chunk(lease, "count_disabled") for lease in (two, one)]
        undoing = await stage.start("undo", taking_back)
        for chunk in chunks:
            await chunk.end()
        outcome = (await undoing.end()).outcome
    assert outcome == UNDO_OUTCOME_UNDONE
    # Nobody began again: what deadlocks does.
    assert [actor.seen.count("begin") for actor in (*chunks, undoing)] == [1, 1, 1]
    await stage.world.settle(stage.project_id)
    for who in (A, B):
        assert await devices_of(stage, who) == {"T1": False, "T2": False}


@pytest.mark.parametrize("first", ["forget", "chunk"])
async def test_a_forget_meets_a_disable_of_the_token(stage: Stage, first: str) -> None:
    """F43, D3: forgetting a person of several parts, who each have a copy of a token that a worker is switching off,
    and the worker take the copies in one order: whoever comes second waits, neither begins again, and no copy is left.
    """
    for who in (C, B, A):
        await register(stage, who, "T")
    await merge(stage, A, B)
    await merge(stage, C, B)
    await stage.world.settle(stage.project_id)
    await disable(stage, "T")
    lease = await stage.lease()

    async def forget() -> None:
        await stage.identity.ForgetProfile(ForgetProfileRequest(identifiers=B))

    if first == "forget":
        one: Actor[Any] = await stage.start("forget", forget(), COMMIT)
        two: Actor[Any] = await stage.chunk(lease)
    else:
        one = await stage.chunk(lease, "count_disabled")
        two = await stage.start("forget", forget())
    assert two.blocked
    await one.end()
    await two.end()
    assert [actor.seen.count("begin") for actor in (one, two)] == [1, 1]
    assert await stage.world.value("SELECT count(*) FROM devices WHERE project_id = $1", stage.project_id) == 0
