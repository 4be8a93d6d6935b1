"""UndoMerge: source and target are what they were, wherever the worker was, and what happened since is kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import grpc
import pytest

from conftest import MakeProject
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_LINKED,
    LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE,
    MERGE_OUTCOME_CONVERTED,
    UNDO_OUTCOME_ALREADY_UNDONE,
    UNDO_OUTCOME_UNDONE,
    ArrayMerge,
    DeleteProfileRequest,
    UpdateEmailRequest,
)
from onefold.v1.merge_pb2 import MERGE_STATE_UNDONE
from onefold.v1.profile_pb2 import Identifiers
from onefold.workflows import moving
from support.client import Client, email, failure, timestamp, user
from support.merging import (
    chunks,
    devices,
    disable,
    fields,
    get_merge,
    identify,
    merge,
    person,
    profile,
    put,
    put_unknown,
    register,
    undo,
)
from support.traces import rows_of
from support.world import World

TYPES = ("EMAIL", "USER_ID", "HYBRID")
A, B, C, D = (email(f"{letter}@example.com") for letter in "abcd")
VISITOR = "0e3b2c9a-7c1f-4b60-9d0e-6a4a5b6c7d8e"


async def step_through(world: World, project_id: str, check: Callable[[], Awaitable[None]]) -> None:
    """Checks now, after every chunk of the work there is, and when the moves are closed."""
    await check()
    for _ in range(3):
        async for _ in chunks(world, project_id):
            await check()
        await world.pass_time(project_id, timedelta(seconds=17))
    assert await world.open_intents(project_id) == 0
    assert await world.value("SELECT count(*) FROM moves WHERE project_id = $1", project_id) == 0
    await check()


async def stop_after(world: World, project_id: str, count: int) -> None:
    """Lets the worker do so many chunks and no more; its lease is over by the time that the next one comes."""
    steps = chunks(world, project_id)
    for _ in range(count):
        await anext(steps, None)
    await steps.aclose()
    await world.pass_time(project_id, timedelta(seconds=31))


# --- a merge of profiles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("known", [True, False])
async def test_both_are_what_they_were(make_project: MakeProject, world: World, kind: str, known: bool) -> None:
    """I19: ids, names, fields, flags, signup, events and devices of both are as before, at once and after the work."""
    client = await make_project(kind)
    source, target = person(kind, "source"), person(kind, "target")
    if not known:
        source = Identifiers(email="v-1@placeholder.email" if kind == "EMAIL" else "", user_id=VISITOR)
    await put(client, source, '{"plan":"gold","only":"source"}')
    if not known:
        await put_unknown(client, world, source)
    await put(client, target, '{"plan":"free"}')
    for who, token in ((source, "t1"), (source, "t2"), (target, "t2"), (target, "t3")):
        await register(client, who, token)
    await disable(client, "t2", source)
    for who in (source, target):
        await client.track(identifiers=who, name="own")
    people = [await profile(client, who) for who in (source, target)]

    merged = await merge(client, source, target, allow_known_source=known)
    undone = await undo(client, merged.merge.merge_id)

    assert undone.outcome == UNDO_OUTCOME_UNDONE
    assert undone.merge.state == MERGE_STATE_UNDONE
    assert undone.merge.HasField("undo_time")
    for who, before in zip((source, target), people, strict=True):
        now = await profile(client, who)
        # The writing of it is news, what was written is not.
        for changed in ("update_time", "profile_update_time"):
            before.ClearField(changed)
            now.ClearField(changed)
        assert now == before

    async def check() -> None:
        for who in (source, target):
            assert await client.names(identifiers=who) == ["own"]
        assert await devices(client, source) == {"t1": True, "t2": False}
        assert await devices(client, target) == {"t2": True, "t3": True}

    await step_through(world, client.project_id, check)


@pytest.mark.parametrize("before_undo", range(7))
@pytest.mark.parametrize("after_undo", [0, 2])
async def test_undone_in_the_middle_of_the_relocation(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, before_undo: int, after_undo: int
) -> None:
    """I19 E8: whatever part of the events has been moved, all are their owners' again, at every chunk of the way back.

    The second relocation is stopped half-way too, and taken up by another worker.
    """
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    c = email_project
    await put(c, B)
    for number in range(3):
        await c.track(anonymous_id="x", name=f"x{number}")
    await identify(c, A, "x")
    for number in range(3):
        await c.track(identifiers=A, name=f"a{number}")
        await c.track(identifiers=B, name=f"b{number}")
    merged = await merge(c, A, B)
    await stop_after(world, c.project_id, before_undo)
    await c.track(anonymous_id="x", name="late")
    await c.track(identifiers=A, name="for b")
    await undo(c, merged.merge.merge_id)
    await stop_after(world, c.project_id, after_undo)

    async def check() -> None:
        assert await c.names(identifiers=A, page_size=2) == ["late", "a2", "a1", "a0", "x2", "x1", "x0"]
        assert await c.names(identifiers=B, page_size=2) == ["for b", "b2", "b1", "b0"]
        assert await c.names(anonymous_id="x") == []

    await step_through(world, c.project_id, check)


@pytest.mark.parametrize("settled", [False, True])
async def test_fields_changed_since_keep_the_newer_value(email_project: Client, world: World, settled: bool) -> None:
    """I19: on the target; the source is as it was, and what the merge alone had given the target is gone."""
    c = email_project
    await put(c, A, '{"filled":1,"filled_and_changed":1,"both":1,"both_and_changed":1}')
    await put(c, B, '{"both":2,"both_and_changed":2,"own":2}')
    merged = await merge(c, A, B)
    await put(c, B, '{"filled_and_changed":3,"both_and_changed":3,"new":3}')
    if settled:
        await world.settle(c.project_id)
    await undo(c, merged.merge.merge_id)
    assert await fields(c, A) == {"filled": 1, "filled_and_changed": 1, "both": 1, "both_and_changed": 1}
    assert await fields(c, B) == {"both": 2, "own": 2, "filled_and_changed": 3, "both_and_changed": 3, "new": 3}


async def test_a_name_changed_since_is_kept(hybrid_project: Client) -> None:
    """I19: a name that filled a gap goes back to the source, unless the target got another one since."""
    c = hybrid_project
    for new_email in ("", "newer@example.com"):
        source = Identifiers(email=f"a{len(new_email)}@example.com", user_id=f"id-a{len(new_email)}")
        target = user(f"id-b{len(new_email)}")
        await put(c, source)
        await put(c, target)
        merged = await merge(c, source, target)
        assert (await profile(c, target)).identifiers.email == source.email
        if new_email:
            await c.identity.UpdateEmail(UpdateEmailRequest(identifiers=target, new_email=new_email))
        await undo(c, merged.merge.merge_id)
        assert (await profile(c, source)).identifiers == source
        assert (await profile(c, target)).identifiers == Identifiers(email=new_email, user_id=target.user_id)
        assert (await profile(c, email(source.email))).identifiers == source


async def test_undoing_twice_is_undoing_once(email_project: Client, world: World) -> None:
    """I19 F46: the second time is OK, says so and changes nothing, also after 30 days."""
    c = email_project
    for who in (A, B):
        await put(c, who)
    merged = await merge(c, A, B)
    await undo(c, merged.merge.merge_id)
    for days in (0, 31):
        await world.pass_time(c.project_id, timedelta(days=days))
        before = await rows_of(world, c.project_id)
        again = await undo(c, merged.merge.merge_id)
        assert again.outcome == UNDO_OUTCOME_ALREADY_UNDONE
        assert again.merge == await get_merge(c, merged.merge.merge_id)
        assert await rows_of(world, c.project_id) == before


async def test_an_undo_sent_again_is_replayed(email_project: Client) -> None:
    """X1: the same request_id gives the stored answer; for another merge it is refused."""
    c = email_project
    for who in (A, B, C):
        await put(c, who)
    merge_id = (await merge(c, A, B)).merge.merge_id
    other_id = (await merge(c, C, B)).merge.merge_id
    first = await undo(c, merge_id, request_id="u1")
    again = await undo(c, merge_id, request_id="u1")
    assert again.replayed
    again.replayed = False
    assert again == first
    refused = await failure(undo(c, other_id, request_id="u1"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    assert (await profile(c, C)).identifiers == B


@pytest.mark.parametrize(("age", "possible"), [(timedelta(days=30, minutes=-1), True), (timedelta(days=30), False)])
async def test_a_merge_can_be_undone_for_30_days(
    email_project: Client, world: World, age: timedelta, possible: bool
) -> None:
    """I19: and not a moment longer; a refused undo changes nothing."""
    c = email_project
    for who in (A, B):
        await put(c, who)
        await c.track(identifiers=who, name="own")
    merged = await merge(c, A, B)
    await world.settle(c.project_id)
    await world.pass_time(c.project_id, age - timedelta(seconds=17))
    if possible:
        await undo(c, merged.merge.merge_id)
        assert await c.names(identifiers=A) == ["own"]
        return
    before = await rows_of(world, c.project_id)
    refused = await failure(undo(c, merged.merge.merge_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MERGE_NOT_UNDOABLE")
    assert await rows_of(world, c.project_id) == before


async def test_a_merge_of_a_deleted_person_cannot_be_undone(email_project: Client) -> None:
    """I19 I20: when the person is gone there is nothing to bring back."""
    c = email_project
    for who in (A, B):
        await put(c, who)
    merged = await merge(c, A, B)
    await c.identity.DeleteProfile(DeleteProfileRequest(identifiers=B))
    refused = await failure(undo(c, merged.merge.merge_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MERGE_NOT_UNDOABLE")


@pytest.mark.parametrize("kind", TYPES)
async def test_a_name_that_was_given_to_somebody_else_is_not_taken_back(
    make_project: MakeProject, world: World, kind: str
) -> None:
    """I19 I17: once the source's name has been used anew the undo is refused, and not one row is different."""
    client = await make_project(kind)
    source, target = person(kind, "source"), person(kind, "target")
    for who in (source, target):
        await put(client, who, '{"a":1}')
        await register(client, who, "token")
        await client.track(identifiers=who, name="own")
    merged = await merge(client, source, target)
    await world.pass_time(client.project_id, timedelta(minutes=6))
    await put(client, source)
    before = await rows_of(world, client.project_id)
    refused = await failure(undo(client, merged.merge.merge_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SOURCE_IDENTIFIER_TAKEN")
    assert "kind" in refused.metadata
    assert await rows_of(world, client.project_id) == before


async def test_the_kind_of_the_name_that_is_taken_is_told(hybrid_project: Client, world: World) -> None:
    """I19: of two names of the source, the error tells the one that somebody else has."""
    c = hybrid_project
    await put(c, Identifiers(email="a@example.com", user_id="id-a"))
    await put(c, Identifiers(email="b@example.com", user_id="id-b"))
    merged = await merge(c, user("id-a"), user("id-b"))
    await world.pass_time(c.project_id, timedelta(minutes=6))
    await put(c, user("id-a"))
    refused = await failure(undo(c, merged.merge.merge_id))
    assert (refused.reason, refused.metadata) == ("SOURCE_IDENTIFIER_TAKEN", {"kind": "user_id"})


# --- chains ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relocated", ["nothing", "first", "both"])
async def test_a_chain_is_undone_from_its_end(email_project: Client, world: World, relocated: str) -> None:
    """I19 F36 F46: the first merge is refused naming the second; then both are undone, one after the other."""
    c = email_project
    people = (A, B, C)
    for who in people:
        await put(c, who)
        await c.track(identifiers=who, name=who.email[0])
    first = (await merge(c, A, B)).merge.merge_id
    if relocated != "nothing":
        await world.settle(c.project_id)
    second = (await merge(c, B, C)).merge.merge_id
    if relocated == "both":
        await world.settle(c.project_id)
    before = await rows_of(world, c.project_id)
    refused = await failure(undo(c, first))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MERGE_BUILT_ON")
    assert refused.metadata == {"merge_id": second}
    assert await rows_of(world, c.project_id) == before

    await undo(c, second)
    assert [await c.names(identifiers=who) for who in people] == [["b", "a"], ["b", "a"], ["c"]]
    await undo(c, first)

    async def check() -> None:
        assert [await c.names(identifiers=who) for who in people] == [["a"], ["b"], ["c"]]

    await step_through(world, c.project_id, check)


async def test_merges_into_one_target_are_undone_in_any_order(email_project: Client, world: World) -> None:
    """I19: two sources of one target are independent; each takes its own back."""
    c = email_project
    for who in (A, B, C):
        await put(c, who, f'{{"from_{who.email[0]}":1}}')
        await c.track(identifiers=who, name=who.email[0])
    first = (await merge(c, A, C)).merge.merge_id
    second = (await merge(c, B, C)).merge.merge_id
    await world.work_off(c.project_id)
    await undo(c, first)
    assert await fields(c, C) == {"from_b": 1, "from_c": 1}
    assert await c.names(identifiers=C) == ["c", "b"]
    await undo(c, second)
    for who in (A, B, C):
        assert await fields(c, who) == {f"from_{who.email[0]}": 1}

    async def check() -> None:
        for who in (A, B, C):
            assert await c.names(identifiers=who) == [who.email[0]]

    await step_through(world, c.project_id, check)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_arrays_of_several_merges_are_as_before(email_project: Client, order: tuple[int, int]) -> None:
    """I19: when every merge into a target is undone, in any order, an array is what it was before them."""
    c = email_project
    for who in (A, B, C):
        await put(c, who, f'{{"tags":["{who.email[0]}"]}}')
    tags = [ArrayMerge(field="tags")]
    merge_ids = [(await merge(c, who, C, array_merges=tags)).merge.merge_id for who in (A, B)]
    for index in order:
        await undo(c, merge_ids[index])
    for who in (A, B, C):
        assert await fields(c, who) == {"tags": [who.email[0]]}


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("work", [True, False])
async def test_merged_and_undone_again_and_again(email_project: Client, world: World, rounds: int, work: bool) -> None:
    """I19 E8: each event shows once under its owner though the moves of earlier rounds are still open."""
    c = email_project
    for who in (A, B):
        await put(c, who)
        await c.track(identifiers=who, name=who.email[0])
    for _ in range(rounds):
        merged = await merge(c, A, B)
        if work:
            await world.work_off(c.project_id)
        assert await c.names(identifiers=B) == ["b", "a"]
        await undo(c, merged.merge.merge_id)
        assert await c.names(identifiers=A) == ["a"]
        assert await c.names(identifiers=B) == ["b"]

    async def check() -> None:
        assert await c.names(identifiers=A) == ["a"]
        assert await c.names(identifiers=B) == ["b"]

    await step_through(world, c.project_id, check)


@pytest.mark.parametrize("back", [A, B])
async def test_undone_and_merged_once_more(email_project: Client, world: World, back: Identifiers) -> None:
    """I19 I16: after an undo the same two may be merged again, either way round, before the events are back."""
    c = email_project
    for who in (A, B):
        await put(c, who)
        await c.track(identifiers=who, name=who.email[0])
    first = await merge(c, A, B)
    await world.work_off(c.project_id)
    await undo(c, first.merge.merge_id)
    source, target = (A, B) if back is B else (B, A)
    await merge(c, source, target)

    async def check() -> None:
        for who in (A, B):
            assert await c.names(identifiers=who) == ["b", "a"]

    await step_through(world, c.project_id, check)


async def test_a_second_merge_counts_what_still_lies_with_the_target(email_project: Client, world: World) -> None:
    """I18: merged again before the events are back, the new entry counts them all the same."""
    c = email_project
    for who in (A, B):
        await put(c, who)
    for number in range(3):
        await c.track(identifiers=A, name=f"a{number}")
    first = await merge(c, A, B)
    await world.work_off(c.project_id)
    await undo(c, first.merge.merge_id)
    second = await merge(c, A, B)
    await world.settle(c.project_id)
    assert (await get_merge(c, second.merge.merge_id)).event_count == 3


# --- associations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_count", range(4))
async def test_an_association_is_undone(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, chunk_count: int
) -> None:
    """I19: its events are the visitor's again, late ones included, and the id may be linked to somebody else."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    c = email_project
    for name in ("one", "two", "three"):
        await c.track(anonymous_id="x", name=name)
    await c.track(anonymous_id="y", name="of y")
    link = await identify(c, A, "x")
    await identify(c, A, "y")
    await stop_after(world, c.project_id, chunk_count)
    await c.track(anonymous_id="x", name="late")
    await c.track(identifiers=A, anonymous_id="x", name="own")
    assert (await undo(c, link.merge_id)).outcome == UNDO_OUTCOME_UNDONE
    await c.track(anonymous_id="x", name="after")

    async def check() -> None:
        assert await c.names(identifiers=A) == ["own", "of y"]
        events = await c.timeline(anonymous_id="x")
        assert [event.name for event in events] == ["after", "late", "three", "two", "one"]
        assert not any(event.was_anonymous or event.profile_id for event in events)

    await step_through(world, c.project_id, check)
    assert (await identify(c, B, "x")).outcome == LINK_OUTCOME_LINKED
    assert (await identify(c, A, "x")).outcome == LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE
    assert await c.names(identifiers=B) == ["after", "late", "three", "two", "one"]


@pytest.mark.parametrize("again", [A, B])
@pytest.mark.parametrize("rounds", [1, 2])
async def test_an_id_linked_undone_and_linked_again(
    email_project: Client, world: World, again: Identifiers, rounds: int
) -> None:
    """I19 A4: its events show once, under whom it is linked to now, while earlier moves of them are still open."""
    c = email_project
    await put(c, A)
    await put(c, B)
    await c.track(anonymous_id="x", name="one")
    for _ in range(rounds):
        link = await identify(c, A, "x")
        await world.work_off(c.project_id)
        await undo(c, link.merge_id)
        assert await c.names(anonymous_id="x") == ["one"]
        link = await identify(c, again, "x")
        assert await c.names(anonymous_id="x") == []
        assert await c.names(identifiers=again) == ["one"]
        await undo(c, link.merge_id)
        assert await c.names(anonymous_id="x") == ["one"]
    await identify(c, again, "x")

    async def check() -> None:
        for who in (A, B):
            assert await c.names(identifiers=who) == (["one"] if who == again else [])
        assert await c.names(anonymous_id="x") == []

    await step_through(world, c.project_id, check)


@pytest.mark.parametrize("again", [A, B])
async def test_what_expired_after_an_undo_stays_gone(email_project: Client, world: World, again: Identifiers) -> None:
    """A2 F44 I19: an event that an undo made anonymous again and that turned 30 days old is nobody's, ever after.

    Not even when its id is linked anew while the event still lies where the first link had brought it.
    """
    c = email_project
    await put(c, A)
    await put(c, B)
    now = await world.now()
    await c.track(anonymous_id="x", name="old", event_time=timestamp(now - timedelta(days=29)))
    await c.track(anonymous_id="x", name="young", event_time=timestamp(now))
    link = await identify(c, A, "x")
    await world.settle(c.project_id)
    await undo(c, link.merge_id)
    assert await c.names(anonymous_id="x") == ["young", "old"]
    await world.pass_time(c.project_id, timedelta(days=2))
    assert await c.names(anonymous_id="x") == ["young"]
    await identify(c, again, "x")

    async def check() -> None:
        for who in (A, B):
            assert await c.names(identifiers=who) == (["young"] if who == again else [])
        assert await c.names(anonymous_id="x") == []

    await step_through(world, c.project_id, check)


async def test_a_link_is_not_undone_under_a_merge(email_project: Client, world: World) -> None:
    """I19: the person was merged since, so the merge must be undone first; then the link can be."""
    c = email_project
    await c.track(anonymous_id="x", name="one")
    link = await identify(c, A, "x")
    await put(c, B)
    merged = await merge(c, A, B)
    await world.work_off(c.project_id)
    refused = await failure(undo(c, link.merge_id))
    assert (refused.reason, refused.metadata) == ("MERGE_BUILT_ON", {"merge_id": merged.merge.merge_id})
    await undo(c, merged.merge.merge_id)
    await undo(c, link.merge_id)

    async def check() -> None:
        assert await c.names(identifiers=A) == []
        assert await c.names(identifiers=B) == []
        assert await c.names(anonymous_id="x") == ["one"]

    await step_through(world, c.project_id, check)


# --- conversions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("known", [True, False])
async def test_a_conversion_is_undone(make_project: MakeProject, world: World, kind: str, known: bool) -> None:
    """I19: the profile has its old names, is unknown again if it was, keeps what it has, and the new name is free."""
    client = await make_project(kind)
    source, target = person(kind, "old"), person(kind, "new")
    if not known:
        source = Identifiers(email="v-1@placeholder.email" if kind == "EMAIL" else "", user_id=VISITOR)
    profile_id = await put(client, source, '{"a":1}')
    if not known:
        await put_unknown(client, world, source)
    await client.track(identifiers=source, name="before")
    converted = await merge(client, source, target, allow_known_source=known)
    assert converted.outcome == MERGE_OUTCOME_CONVERTED
    await client.track(identifiers=target, name="since")
    await put(client, target, '{"b":2}')
    await undo(client, converted.merge.merge_id)
    found = await profile(client, source)
    assert (found.profile_id, found.identifiers, found.is_unknown) == (profile_id, source, not known)
    assert await fields(client, source) == {"a": 1, "b": 2}
    assert await client.names(identifiers=source) == ["since", "before"]
    assert await put(client, target) != profile_id


@pytest.mark.parametrize("then", ["renamed", "merged"])
async def test_a_temporary_id_still_leads_to_the_person_after_something_else_is_undone(
    user_id_project: Client, world: World, then: str
) -> None:
    """I17 I19: a visitor who became known is found by the temporary id for ever, also when a later change is undone."""
    c = user_id_project
    profile_id = await put_unknown(c, world, user(VISITOR))
    await merge(c, user(VISITOR), user("known"), allow_known_source=False)
    if then == "merged":
        await put(c, user("other"))
    later = await merge(c, user("known"), user("other"))
    await undo(c, later.merge.merge_id)
    for who in ("known", VISITOR):
        found = await profile(c, user(who))
        assert (found.profile_id, found.identifiers) == (profile_id, user("known"))


async def test_a_person_who_got_a_name_since_stays_known(email_project: Client, world: World) -> None:
    """I19: a visitor who was converted and then given another email keeps it when that is undone, and so is known."""
    c = email_project
    source = Identifiers(email="v-1@placeholder.email", user_id=VISITOR)
    await put_unknown(c, world, source)
    converted = await merge(c, source, A, allow_known_source=False)
    await c.identity.UpdateEmail(UpdateEmailRequest(identifiers=A, new_email="b@example.com"))
    await undo(c, converted.merge.merge_id)
    found = await profile(c, B)
    assert (found.identifiers, found.is_unknown) == (Identifiers(email="b@example.com", user_id=VISITOR), False)


async def test_a_name_that_the_target_took_is_not_taken_back(email_project: Client, world: World) -> None:
    """I19: the target made the source's name its own since, so the undo is refused and nothing is different."""
    c = email_project
    for who in (A, B):
        await put(c, who)
    merged = await merge(c, A, B)
    await c.identity.UpdateEmail(UpdateEmailRequest(identifiers=B, new_email="a@example.com"))
    before = await rows_of(world, c.project_id)
    refused = await failure(undo(c, merged.merge.merge_id))
    assert (refused.reason, refused.metadata) == ("SOURCE_IDENTIFIER_TAKEN", {"kind": "email"})
    assert await rows_of(world, c.project_id) == before


async def test_a_conversion_whose_old_name_was_given_away_is_not_undone(email_project: Client, world: World) -> None:
    """I19: refused, and nothing is different."""
    c = email_project
    await put(c, A)
    converted = await merge(c, A, B)
    await world.pass_time(c.project_id, timedelta(minutes=6))
    await put(c, A)
    before = await rows_of(world, c.project_id)
    refused = await failure(undo(c, converted.merge.merge_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SOURCE_IDENTIFIER_TAKEN")
    assert await rows_of(world, c.project_id) == before


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_by", ["source", "both"])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("written", ["at once", "before", "after", "half"])
async def test_a_device_disabled_since_stays_off(
    email_project: Client,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    held_by: str,
    everywhere: bool,
    written: str,
) -> None:
    """D7 F51 I19: whoever holds the token after the undo, a disable since the merge still holds for them."""
    monkeypatch.setattr("onefold.workflows.disabling.CHUNK_COPIES", 1)
    c = email_project
    for who in (A, B):
        await put(c, who)
    await register(c, A, "token")
    if held_by == "both":
        await register(c, B, "token")
    merged = await merge(c, A, B)
    if written == "at once":
        await world.settle(c.project_id)
    await disable(c, "token", None if everywhere else B)
    if written == "before":
        await world.settle(c.project_id)
    elif written == "half":
        await stop_after(world, c.project_id, 3)
    await undo(c, merged.merge.merge_id)
    for _ in range(3):
        assert await devices(c, A) == {"token": False}
        assert await devices(c, B) == ({"token": False} if held_by == "both" else {})
        await world.settle(c.project_id)


async def test_a_device_registered_since_is_the_targets_too(email_project: Client, world: World) -> None:
    """I19 D7: the target keeps what it registered itself, the source gets back what it had, on or off as it was."""
    c = email_project
    for who in (A, B):
        await put(c, who)
    await register(c, A, "on")
    await register(c, A, "off")
    await disable(c, "off", A)
    merged = await merge(c, A, B)
    for token in ("on", "off", "new"):
        await register(c, B, token)
    await undo(c, merged.merge.merge_id)
    for _ in range(2):
        assert await devices(c, A) == {"on": True, "off": False}
        assert await devices(c, B) == {"on": True, "off": True, "new": True}
        await world.settle(c.project_id)


async def test_a_disable_follows_a_chain_back(email_project: Client, world: World) -> None:
    """D7 F51 I19: switched off at the end of a chain, a device is off for its first holder when all is undone."""
    c = email_project
    for who in (A, B, C):
        await put(c, who)
    await register(c, A, "token")
    first = await merge(c, A, B)
    second = await merge(c, B, C)
    await disable(c, "token", C)
    await undo(c, second.merge.merge_id)
    assert await devices(c, B) == {"token": False}
    await undo(c, first.merge.merge_id)
    assert [await devices(c, who) for who in (A, B, C)] == [{"token": False}, {}, {}]
