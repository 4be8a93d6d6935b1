"""Races over whose an event is, and whether it is there: F32, F40, F44, F60."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import timedelta

import pytest

from onefold.events import store as events
from onefold.failpoints import COMMIT, COPY_EVENTS
from onefold.identity import links
from onefold.identity import store as identity
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, ListActivityRequest, ListEventsRequest, TrackRequest
from onefold.v1.profile_pb2 import Identifiers
from onefold.workflows import moving, retention
from onefold.workflows.retention import keep_partitions, purge
from races.schedule import Actor
from races.stage import GUARDED, A, B, Stage, switch_off
from support.client import timestamp
from support.merging import disable, identify, merge, put, register

# As a test's own settings for what is over at once: the pass that sees an intent first is the last one.
AT_ONCE = timedelta(seconds=-1)


async def track(stage: Stage, name: str, who: Identifiers | None = None, event_id: str = "") -> str:
    """Tells an event of a person or of x, in a transaction of its own; whom it went to."""
    event = NewEvent(identifiers=who, anonymous_id="" if who else "x", name=name, event_id=event_id)
    request = TrackRequest(event=event, request_id=f"track-{name}")
    return (await stage.events.Track(request)).result.profile_id


@GUARDED
@pytest.mark.parametrize("stop", [COPY_EVENTS, COMMIT])
async def test_an_event_is_in_flight_across_the_link(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, stop: str, guarded: bool
) -> None:
    """F32, A3: an event whose transaction began before its id was linked, and ends after a worker's first pass, is A's
    in every read at once; with a move that the first pass closes, it is nobody's for good."""
    if not guarded:
        monkeypatch.setattr(moving, "SETTLE_AFTER", AT_ONCE)
    event = await stage.start("event", track(stage, "late"), stop)
    await identify(stage, A, "x")
    await stage.world.work_off(stage.project_id)
    await event.end()
    right = ["late"] if guarded else []
    assert (await stage.names(identifiers=A), await stage.names(anonymous_id="x")) == (right, [])
    await stage.world.settle(stage.project_id)
    assert (await stage.names(identifiers=A), await stage.names(anonymous_id="x")) == (right, [])


@pytest.mark.parametrize("worked", [False, True])
async def test_an_event_comes_while_its_link_is_committed(stage: Stage, worked: bool) -> None:
    """F32, A3: an event that is told and answered while the link's transaction is open is A's when that is over."""
    link = await stage.start("link", identify(stage, A, "x"), COMMIT)
    assert await track(stage, "beside") == ""
    await link.end()
    if worked:
        await stage.world.settle(stage.project_id)
    assert (await stage.names(identifiers=A), await stage.names(anonymous_id="x")) == (["beside"], [])


# --- relocation -------------------------------------------------------------------------------------------------------


async def linked_history(stage: Stage, count: int) -> list[str]:
    """Links x, of which so many events are stored; their names, newest first."""
    now = await stage.world.now()
    told = [
        NewEvent(anonymous_id="x", name=f"e{n}", event_time=timestamp(now - timedelta(hours=n))) for n in range(count)
    ]
    await stage.batch(told)
    await identify(stage, A, "x")
    return [event.name for event in told]


@GUARDED
@pytest.mark.parametrize("ahead", [0, 1, 2])
async def test_a_reader_pages_through_a_relocation(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, ahead: int, guarded: bool
) -> None:
    """F40, E8: with a chunk beginning, or being committed, between any two pages, a sequence of pages yields each event
    once; reads that do not look through the open move miss those that are still to be moved."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 3)
    if not guarded:
        guard = "WHERE open_moves.container_subject_id IS NOT NULL"
        switch_off(monkeypatch, events.queries, "list_events", guard, guard + " AND false")
    names = await linked_history(stage, 12)
    lease = await stage.lease()
    chunk: Actor[object] | None = None
    is_over = False

    async def step() -> None:
        """Half a chunk: it begins and stands before its commit, or it is committed."""
        nonlocal chunk, is_over
        if chunk is None and not is_over:
            chunk = await stage.chunk(lease, COMMIT, position)
        elif chunk is not None:
            positions.append(await chunk.end())
            is_over, chunk = positions[-1] is None, None

    positions: list[object] = [None]
    position = None
    for _ in range(ahead):
        await step()
        position = positions[-1]
    seen, token = [], ""
    while True:
        request = ListEventsRequest(identifiers=A, page_size=2, page_token=token)
        page = await stage.events.ListEvents(request)
        seen += [event.name for event in page.events]
        token = page.next_page_token
        if not token:
            break
        await step()
        position = positions[-1]
    assert is_over or len(positions) > 2 or not guarded
    assert (seen == names) is guarded


@GUARDED
async def test_no_call_waits_for_a_chunk(stage: Stage, guarded: bool) -> None:
    """F40: while a chunk has moved its rows and has yet to commit, no call of the people concerned waits for a lock.

    What may wait is the count of a late event, for the last statement of the chunk alone: a chunk that stands after it
    is the twin, which a call waits for.
    """
    await put(stage, A)
    await register(stage, A, "T")
    await linked_history(stage, 8)
    chunk = await stage.chunk(await stage.lease(), "count_moved" if guarded else COMMIT)
    calls: dict[str, Awaitable[object]] = {
        "ListEvents": stage.names(identifiers=A),
        "ListEvents of the visitor": stage.names(anonymous_id="x"),
        "ListActivity": stage.events.ListActivity(ListActivityRequest(identifiers=A)),
        "Track": track(stage, "own", A),
        "UpdateProfile": put(stage, A, '{"a":1}'),
        "Identify": identify(stage, A, "y"),
        "RegisterDevice": register(stage, A, "T2"),
        "DisableDevice": disable(stage, "T"),
        "Track of the visitor": track(stage, "late"),
    }
    started = {name: await stage.start(name, call) for name, call in calls.items()}
    waiting = [name for name, call in started.items() if call.blocked]
    assert waiting == ([] if guarded else ["Track of the visitor"])
    await chunk.end()
    for call in started.values():
        await call.end()


async def test_a_chunk_has_5000_rows(stage: Stage) -> None:
    """F40, F4: a worker's transaction moves 5,000 rows and no more, so nobody can wait long for its end."""
    await stage.world.fetch(
        """
        INSERT INTO anonymous_events (
            project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, data
        )
        SELECT $1, $2, now() - number * interval '1 s', 'e' || number, now(), 1, 'seen', 'x', '{}'
        FROM generate_series(1, 5001) AS number
        """,
        stage.project_id,
        links.subject_id(stage.project_id, "x"),
    )
    await identify(stage, A, "x")
    await stage.world.chunk(await stage.lease())
    sql = "SELECT count(*) FROM events WHERE project_id = $1"
    assert await stage.world.value(sql, stage.project_id) == 5_000


# --- what is over -----------------------------------------------------------------------------------------------------


async def retain(stage: Stage) -> None:
    """What a worker does about what is over."""
    await keep_partitions(stage.world.database)
    await purge(stage.world.database)


@GUARDED
async def test_an_expired_event_is_not_revived(stage: Stage, monkeypatch: pytest.MonkeyPatch, guarded: bool) -> None:
    """F44, A2: an event whose 30 days end before the link begins is nobody's, though its row is still there when the
    worker comes; with a link that takes whatever lies there, it is revived."""
    if not guarded:
        guard = "link.grace_end_time,\n        link.link_time - $7::interval"
        switch_off(monkeypatch, identity.queries, "claim_link", guard, "link.grace_end_time, '-infinity'")
    await stage.track(anonymous_id="x", name="old")
    await stage.world.pass_time(stage.project_id, timedelta(days=30))
    await stage.track(anonymous_id="x", name="new")
    link = await stage.start("link", identify(stage, A, "x"), COMMIT)
    await retain(stage)
    await link.end()
    for _ in range(2):
        assert await stage.names(identifiers=A) == (["new"] if guarded else ["new", "old"])
        await stage.world.settle(stage.project_id)
        await retain(stage)


@GUARDED
async def test_retention_beside_a_link_that_is_not_worked_off(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """F44, A3: an event that was alive when its id was linked is A's, though it turns 30 days old before a worker moves
    it and retention runs before and while it does; without regard for open moves, retention drops it."""
    if not guarded:
        for name in ("oldest_wanted_event", "purge_default_partition"):
            guard = "container_subject_id IS NOT NULL"
            switch_off(monkeypatch, retention.queries, name, guard, guard + " AND false")
    now = await stage.world.now()
    await stage.track(anonymous_id="x", name="old", event_time=timestamp(now - timedelta(days=29)))
    link = await stage.start("link", identify(stage, A, "x"), COMMIT)
    await retain(stage)
    await link.end()
    await stage.world.pass_time(stage.project_id, timedelta(days=4))
    await retain(stage)
    right = ["old"] if guarded else []
    assert await stage.names(identifiers=A) == right
    if guarded:
        chunk = await stage.chunk(await stage.lease(), "subject_to_profile")
        # The partition is not to be had, or wanted: either way it stays.
        await retain(stage)
        await chunk.end()
    await stage.world.settle(stage.project_id)
    assert await stage.names(identifiers=A) == right


# --- told twice -------------------------------------------------------------------------------------------------------


@GUARDED
@pytest.mark.parametrize("between", ["1 ms", "29 days", "a merge", "a merge that is committed meanwhile"])
async def test_one_event_told_twice(stage: Stage, monkeypatch: pytest.MonkeyPatch, between: str, guarded: bool) -> None:
    """F60, E3: the same event_id and body again, while the first is being committed, 29 days later, after a merge or in
    the midst of one, is a duplicate, and one event; without the claim on the id there are two."""
    if not guarded:
        guard = "WHERE event_ids.receive_time <= now() - $4::interval"
        switch_off(monkeypatch, events.queries, "claim_event_ids", guard, guard + " OR true")
    for who in (A, B):
        await put(stage, who)
    request = BatchTrackRequest(events=[NewEvent(identifiers=A, name="seen", event_id="e")])
    first = await stage.start("first", stage.events.BatchTrack(request), COMMIT if between == "1 ms" else None)
    merging = None
    if between == "29 days":
        await stage.world.pass_time(stage.project_id, timedelta(days=29))
    elif between.startswith("a merge"):
        merging = await stage.start("merge", merge(stage, A, B), COMMIT)
        if between == "a merge":
            await merging.end()
    again = await stage.start("again", stage.events.BatchTrack(request))
    if merging is not None and not merging.task.done():
        await merging.end()
    results = [(await call.end()).results[0] for call in (first, again)]
    assert [result.result.duplicate for result in results] == [False, guarded]
    names = ["seen"] if guarded else ["seen", "seen"]
    who = B if merging is not None else A
    assert await stage.names(identifiers=who) == names
    if guarded:
        await stage.world.settle(stage.project_id)
        assert await stage.names(identifiers=who) == names
