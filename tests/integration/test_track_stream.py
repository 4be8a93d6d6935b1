"""TrackStream: batches in order, each acknowledged once committed, by callers who read, dawdle, vanish or misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc.code_pb2 import Code

from onefold.config import Settings
from onefold.limits import MESSAGE_BYTES
from onefold.v1.event_pb2 import EVENT_KIND_CART_UPDATE, CommerceItem, NewEvent
from onefold.v1.events_service_pb2 import TrackStreamRequest, TrackStreamResponse
from onefold.v1.identity_service_pb2 import GetProfileRequest, UpdateProfileRequest
from onefold.v1.options_pb2 import SCOPE_WRITE
from onefold.v1.profile_pb2 import WRITE_OUTCOME_CREATED
from onefold.v1.projects_service_pb2 import CreateApiKeyRequest, RevokeApiKeyRequest
from support.client import Client, Failure, email, read_failure, user
from support.holding import stuck
from support.probes import eventually, held, rows_of, waits_for_lock
from support.serving import served
from support.world import World

Call = grpc.aio.StreamStreamCall[TrackStreamRequest, TrackStreamResponse]
INVALID = grpc.StatusCode.INVALID_ARGUMENT
STOPPING = (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")


def batch(sequence: int, *names: str, **fields: Any) -> TrackStreamRequest:
    """A batch of visitor's events whose event_ids are their names."""
    events = [NewEvent(**{"anonymous_id": "x", "name": name, "event_id": name, **fields}) for name in names]
    return TrackStreamRequest(sequence=sequence, events=events)


async def told(
    client: Client, requests: Iterable[TrackStreamRequest]
) -> tuple[list[TrackStreamResponse], Failure | None]:
    """What a stream of these batches, half-closed after the last, answers; and how it failed, if it did."""
    answers: list[TrackStreamResponse] = []
    call = client.events.TrackStream(iter(list(requests)))
    try:
        async for answer in call:
            answers.append(answer)
    except grpc.aio.AioRpcError as error:
        return answers, read_failure(error)
    return answers, None


async def write(call: Call, *requests: TrackStreamRequest) -> None:
    """Sends batches."""
    for request in requests:
        await call.write(request)


async def acknowledged(call: Call) -> TrackStreamResponse:
    """The next answer of a stream."""
    answer = await call.read()
    assert isinstance(answer, TrackStreamResponse)
    return answer


async def end_of(call: Call) -> Failure | None:
    """How a stream ends that answers nothing more; None if with OK."""
    try:
        answer = await call.read()
    except grpc.aio.AioRpcError as error:
        return read_failure(error)
    assert answer is grpc.aio.EOF, answer
    return None


def sequences(answers: list[TrackStreamResponse]) -> list[int]:
    return [answer.sequence for answer in answers]


# --- what it does -----------------------------------------------------------------------------------------------------


async def test_batches_are_acknowledged_in_order(user_id_project: Client) -> None:
    """E4: one answer for each batch under its number, in the order sent, with one result per event, in order; after the
    half-close everything is acknowledged, and the stream ends with OK."""
    requests = [batch(number, *(f"{number}-{n}" for n in range(number % 4))) for number in range(1, 31)]
    # Numbers need not be without gaps, and may be as large as they can be.
    requests += [batch(2**62, "late"), batch(2**63 - 1)]
    answers, ended = await told(user_id_project, requests)
    assert ended is None
    assert sequences(answers) == [request.sequence for request in requests]
    for request, answer in zip(requests, answers, strict=True):
        ids = [result.result.event_id for result in answer.results]
        assert ids == [event.event_id for event in request.events]
    expected = [event.name for request in requests for event in request.events]
    assert sorted(await user_id_project.names(anonymous_id="x")) == sorted(expected)


async def test_an_empty_stream(email_project: Client) -> None:
    """E4: half-closed before any batch, it ends with OK."""
    assert await told(email_project, []) == ([], None)


async def test_what_is_acknowledged_can_be_read(user_id_project: Client) -> None:
    """E4, X3: a read begun after a batch's acknowledgement sees the batch, while the stream stays open."""
    call = user_id_project.events.TrackStream()
    for number in range(1, 6):
        await write(call, batch(number, f"n{number}", identifiers=user("u1")))
        answer = await acknowledged(call)
        assert answer.sequence == number
        assert (await user_id_project.names(identifiers=user("u1")))[0] == f"n{number}"
    await call.done_writing()
    assert await end_of(call) is None


async def test_a_stream_does_what_batches_do(hybrid_project: Client) -> None:
    """E4, E3, E6, E7, F60, F61, F63: bad items fail alone, event_ids dedupe within and across batches and calls, people
    and carts come into being, invites are kept."""
    c = hybrid_project
    await c.batch([NewEvent(anonymous_id="x", name="before", event_id="before")])
    bought = NewEvent(identifiers=user("u1"), name="Cart", kind=EVENT_KIND_CART_UPDATE)
    bought.items.append(CommerceItem(id="tea", name="Tea"))
    first = TrackStreamRequest(
        sequence=1,
        events=[
            bought,
            NewEvent(name="of nobody"),
            NewEvent(anonymous_id="x", name="before", event_id="before"),
            NewEvent(anonymous_id="x", name="other body", event_id="before"),
            NewEvent(name="Invited", data_json='{"recipient":"guest@example.com"}'),
            NewEvent(anonymous_id="x", name="new", event_id="new"),
        ],
    )
    second = TrackStreamRequest(sequence=2, events=[first.events[5], NewEvent(identifiers=user("u1"), name="")])
    answers, ended = await told(c, [first, second])
    assert ended is None
    assert [[(each.error.code, each.result.duplicate) for each in answer.results] for answer in answers] == [
        [
            (0, False),
            (Code.INVALID_ARGUMENT, False),
            (0, True),
            (Code.ALREADY_EXISTS, False),
            (0, False),
            (0, False),
        ],
        [(0, True), (Code.INVALID_ARGUMENT, False)],
    ]
    assert answers[0].results[0].result.profile_outcome == WRITE_OUTCOME_CREATED
    assert [violation.field for violation in answers[0].results[1].error.field_violations] == ["identifiers"]
    profile = (await c.identity.GetProfile(GetProfileRequest(identifiers=user("u1")))).profile
    assert "shoppingCartItems" in profile.data_fields
    assert await c.names(recipient="guest@example.com") == ["Invited"]
    assert await c.names(anonymous_id="x") == ["new", "before"]


async def test_full_batches(email_project: Client, world: World) -> None:
    """E4, X5: a batch takes 1,000 events."""
    requests = [batch(number, *(f"{number}-{n}" for n in range(1_000))) for number in (1, 2)]
    answers, ended = await told(email_project, requests)
    assert ended is None
    assert [len(answer.results) for answer in answers] == [1_000, 1_000]
    sql = "SELECT count(*) FROM anonymous_events WHERE project_id = $1"
    assert await world.value(sql, email_project.project_id) == 2_000


async def test_resuming_with_what_was_not_acknowledged(email_project: Client, world: World) -> None:
    """E4, E3: sent again on a new stream under other numbers, batches with event_ids are stored once."""
    requests = [batch(number, f"{number}-a", f"{number}-b") for number in range(1, 6)]
    await told(email_project, requests)
    before = await rows_of(world, email_project.project_id)
    again = [TrackStreamRequest(sequence=request.sequence + 100, events=request.events) for request in requests]
    answers, ended = await told(email_project, again)
    assert ended is None
    assert all(result.result.duplicate for answer in answers for result in answer.results)
    assert await rows_of(world, email_project.project_id) == before


# --- what ends it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (batch(0, "bad"), "sequence"),
        (batch(-1, "bad"), "sequence"),
        (batch(7, "bad"), "sequence"),
        (batch(6, "bad"), "sequence"),
        (batch(-(2**63), "bad"), "sequence"),
        (batch(8, *["bad"] * 1_001), "events"),
    ],
    ids=["0", "negative", "the same", "smaller", "the smallest", "1,001 events"],
)
async def test_a_batch_that_cannot_be_taken(email_project: Client, bad: TrackStreamRequest, field: str) -> None:
    """E4, X2, X5: batches before it are committed and acknowledged; then the stream ends with INVALID_ARGUMENT naming
    the field, with nothing of it or after it stored."""
    answers, ended = await told(email_project, [batch(3, "first"), batch(7, "second"), bad, batch(9, "after")])
    assert sequences(answers) == [3, 7]
    assert ended is not None
    assert (ended.code, ended.reason, ended.fields) == (INVALID, "FIELDS_INVALID", [field])
    assert await email_project.names(anonymous_id="x") == ["second", "first"]


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (b"\xff" * 16, INVALID, "REQUEST_MALFORMED"),
        (b"\0" * (MESSAGE_BYTES + 1), grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE"),
    ],
    ids=["garbage", "over 4 MiB"],
)
async def test_bytes_that_are_no_batch(email_project: Client, data: bytes, code: grpc.StatusCode, reason: str) -> None:
    """F65, F75, X2: bytes that are no message of the method, or too many, end the stream with the published reason,
    after the batches before them were acknowledged."""
    raw: Any = email_project.channel.stream_stream(
        "/onefold.v1.EventsService/TrackStream",
        request_serializer=None,
        response_deserializer=TrackStreamResponse.FromString,
    )
    call: Call = raw(
        iter([batch(1, "good").SerializeToString(), data]),
        metadata=(("authorization", f"Bearer {email_project.key}"),),
    )
    assert (await acknowledged(call)).sequence == 1
    ended = await end_of(call)
    assert ended is not None
    assert (ended.code, ended.reason) == (code, reason)
    assert await email_project.names(anonymous_id="x") == ["good"]


async def test_a_key_that_is_no_good(email_project: Client, world: World) -> None:
    """X2, P6: without a key, or with a wrong one, a stream ends before anything is read."""
    before = await rows_of(world, email_project.project_id)
    for key in ("", "onefold_nobody_000000000000_0"):
        answers, ended = await told(Client(email_project.channel, "", key), [batch(1, "n")])
        assert (answers, ended.code if ended else None) == ([], grpc.StatusCode.UNAUTHENTICATED)
    assert await rows_of(world, email_project.project_id) == before


async def test_a_revoked_key_ends_the_stream(email_project: Client, settings: Settings) -> None:
    """F74: a stream whose key is revoked ends with UNAUTHENTICATED, though it never ends by itself."""
    own = settings.model_copy(update={"stream_key_check_seconds": 0.05})
    async with served(own) as channel:
        client = Client(channel, email_project.project_id, email_project.key)
        made = await client.projects.CreateApiKey(CreateApiKeyRequest(scopes=[SCOPE_WRITE]))
        call = Client(channel, client.project_id, made.secret_text).events.TrackStream()
        await write(call, batch(1, "before"))
        assert (await acknowledged(call)).sequence == 1
        await client.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=made.api_key.key_id))
        ended = await end_of(call)
    assert ended is not None
    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID")


def claim(project_id: str, event_id: str) -> tuple[str, tuple[object, ...]]:
    """A statement that makes whoever tells an event of that id wait."""
    sql = "INSERT INTO event_ids (project_id, event_id, body_hash, receive_time) VALUES ($1, $2, '', now())"
    return sql, (project_id, event_id)


async def test_a_batch_that_fails_ends_the_stream(email_project: Client, settings: Settings, world: World) -> None:
    """E4, F12: when PostgreSQL loses a batch's transaction, the stream ends with UNAVAILABLE; batches before it stay,
    nothing of it or of those that waited behind it is stored, and told again all of them are stored once."""
    c = email_project
    requests = [batch(1, "first"), batch(2, "lost-a", "lost-b"), batch(3, "behind")]
    async with held(settings.database_url, claim(c.project_id, "lost-b")):
        call = c.events.TrackStream()
        await write(call, *requests)
        assert (await acknowledged(call)).sequence == 1
        await waits_for_lock(world)
        await world.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND application_name = 'onefold server'"
        )
        ended = await end_of(call)
    assert ended is not None
    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE_UNAVAILABLE")
    assert ended.retry_seconds
    assert await c.names(anonymous_id="x") == ["first"]
    answers, ended = await told(c, requests[1:])
    assert (sequences(answers), ended) == ([2, 3], None)
    assert await c.names(anonymous_id="x") == ["behind", "lost-b", "lost-a", "first"]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_a_caller_who_goes_away(email_project: Client, settings: Settings, world: World, how: str) -> None:
    """F20, F21, E4: a stream that is cancelled, or whose deadline passes, while a batch waits for a lock leaves no
    effect of that batch, not later either, and no transaction open."""
    c = email_project
    call = c.events.TrackStream(timeout=1.5 if how == "deadline" else None)
    await write(call, batch(1, "first"))
    assert (await acknowledged(call)).sequence == 1
    async with stuck(settings, "event_ids", c.project_id):
        await write(call, batch(2, "waiting"))
        await waits_for_lock(world)
        if how == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call.read()
        else:
            ended = await end_of(call)
            assert ended is not None
            assert ended.code == grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: no_transaction_is_open(world))
    assert await c.names(anonymous_id="x") == ["first"]
    assert not (await c.track(anonymous_id="x", name="waiting", event_id="waiting")).duplicate


async def no_transaction_is_open(world: World) -> bool:
    """Whether no server is in a transaction, busy or idle."""
    count: int = await world.value(
        "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL AND application_name = 'onefold server' "
        "AND datname = current_database()"
    )
    return count == 0


async def test_no_transaction_waits_for_a_caller(email_project: Client, world: World) -> None:
    """F22, E4: while a stream is open and its caller silent, no transaction is."""
    call = email_project.events.TrackStream()
    await write(call, batch(1, "first"))
    await acknowledged(call)
    await eventually(lambda: no_transaction_is_open(world))
    await write(call, batch(2, "second"))
    assert (await acknowledged(call)).sequence == 2
    await call.done_writing()
    assert await end_of(call) is None


# --- under load -------------------------------------------------------------------------------------------------------

# Events of which the answer is larger than they are: each is told what is wrong with it.
WRONG = [NewEvent()] * 999
# The caller's side takes 64 kB that nobody has read, and no more.
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))


@pytest_asyncio.fixture
async def impatient(email_project: Client, settings: Settings) -> AsyncIterator[Client]:
    """A server that ends a stalled stream after 0.6 s, and has room for one stream."""
    own = settings.model_copy(update={"stream_write_seconds": 0.6, "concurrent_streams": 1})
    async with served(own, options=NARROW) as channel:
        yield Client(channel, email_project.project_id, email_project.key)


async def place_is_free(client: Client) -> bool:
    """Whether a server that has room for one stream takes another."""
    _, refused = await told(client, [])
    assert refused is None or refused.reason == "SERVER_BUSY"
    return refused is None


async def test_a_caller_who_reads_nothing(impatient: Client, world: World) -> None:
    """F22: a caller who reads no answers is cut off with STREAM_STALLED, and its place is free again, with no
    transaction open; what was answered, and at most one batch more, is stored."""
    call = impatient.events.TrackStream()
    for number in range(1, 4):
        request = batch(number, f"n{number}")
        request.events.extend(WRONG)
        await write(call, request)
    assert not await place_is_free(impatient)
    await eventually(lambda: place_is_free(impatient))
    assert await no_transaction_is_open(world)
    stored = len(await impatient.names(anonymous_id="x"))
    answers = []
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        while True:
            answers.append(await acknowledged(call))
    why = read_failure(ended.value)
    assert (why.code, why.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_STALLED")
    assert sequences(answers) == list(range(1, len(answers) + 1))
    assert len(answers) <= stored <= len(answers) + 1 <= 3


async def test_a_caller_who_sends_and_reads_nothing(impatient: Client) -> None:
    """F22: a caller who goes on sending without reading is held back after a few messages, by what the server has room
    for: one batch at work, 4 that wait, and flow control."""
    call = impatient.events.TrackStream()
    sent = 0

    async def send() -> None:
        nonlocal sent
        for number in range(1, 101):
            request = batch(number, f"n{number}", data_json="x" * 1_000_000)
            request.events.extend(WRONG)
            await call.write(request)
            sent = number

    sending = asyncio.create_task(send())
    await eventually(lambda: place_is_free(impatient))
    assert 0 < sent < 15
    call.cancel()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await sending


async def test_a_stream_too_many(impatient: Client) -> None:
    """F17, F75: a stream on top of those a server takes is refused at once with SERVER_BUSY; other calls are served,
    and when a place is free again, so is the next stream."""
    first = impatient.events.TrackStream()
    await write(first, batch(1, "first"))
    assert (await acknowledged(first)).sequence == 1
    for _ in range(3):
        answers, refused = await told(impatient, [batch(1, "refused")])
        assert answers == []
        assert refused is not None
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
        assert refused.retry_seconds
        await impatient.track(anonymous_id="x", name="unary")
    await first.done_writing()
    assert await end_of(first) is None
    answers, ended = await told(impatient, [batch(1, "next")])
    assert (sequences(answers), ended) == ([1], None)
    assert await impatient.names(anonymous_id="x") == ["next", "unary", "unary", "unary", "first"]


async def test_streams_leave_connections_to_other_calls(
    email_project: Client, settings: Settings, world: World
) -> None:
    """E4, F16: however many streams have batches to store, half of the connections are for other calls."""
    own = settings.model_copy(update={"server_connections": 4, "acquire_seconds": 0.2})
    async with served(own) as channel:
        c = Client(channel, email_project.project_id, email_project.key)
        await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=email("a@example.com")))
        async with stuck(settings, "event_ids", c.project_id):
            streams = [asyncio.create_task(told(c, [batch(1, "one")])) for _ in range(8)]
            await waits_for_lock(world, 2)
            for _ in range(3):
                await c.identity.GetProfile(GetProfileRequest(identifiers=email("a@example.com")))
                await c.track(anonymous_id="y", name="Viewed")
            waiting = await world.value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND application_name = 'onefold server'"
            )
            assert waiting == 2
        for answers, ended in await asyncio.gather(*streams):
            assert (sequences(answers), ended) == ([1], None)
    assert await email_project.names(anonymous_id="x") == ["one"]


async def test_a_pool_that_is_held(email_project: Client, settings: Settings, world: World) -> None:
    """F16: a stream that gets no connection in time ends with POOL_BUSY, and nothing of its batch is stored."""
    own = settings.model_copy(update={"server_connections": 2, "acquire_seconds": 0.2})
    async with served(own) as channel:
        c = Client(channel, email_project.project_id, email_project.key)
        await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=email("a@example.com")))
        request = UpdateProfileRequest(identifiers=email("a@example.com"), data_fields_json='{"a":1}')
        async with stuck(settings, "profiles", c.project_id):
            holding = [asyncio.ensure_future(c.identity.UpdateProfile(request)) for _ in range(2)]
            await waits_for_lock(world, 2)
            answers, ended = await told(c, [batch(1, "refused")])
        await asyncio.gather(*holding)
        assert await c.names(anonymous_id="x") == []
    assert answers == []
    assert ended is not None
    assert (ended.code, ended.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "POOL_BUSY")
    assert ended.retry_seconds


# --- a server that is being stopped -----------------------------------------------------------------------------------


async def test_stopping_with_batches_in_hand(email_project: Client, settings: Settings, world: World) -> None:
    """F18, E4: a server that is being stopped finishes the batch it is at and those it has read, acknowledges them, and
    then ends the stream with UNAVAILABLE / SERVER_STOPPING; nothing else is stored, and a new stream is refused so."""
    stop = asyncio.Event()
    async with served(settings, stop) as channel:
        c = Client(channel, email_project.project_id, email_project.key)
        async with stuck(settings, "event_ids", c.project_id):
            call = c.events.TrackStream()
            # More than the server reads ahead.
            await write(call, *(batch(number, f"{number}") for number in range(1, 11)))
            await waits_for_lock(world)
            stop.set()

            async def refuses() -> bool:
                _, refused = await told(c, [])
                return refused is not None and (refused.code, refused.reason) == STOPPING

            await eventually(refuses)
        answers = []
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            while True:
                answers.append(await acknowledged(call))
    why = read_failure(ended.value)
    assert (why.code, why.reason) == STOPPING
    assert why.retry_seconds
    assert sequences(answers) == list(range(1, len(answers) + 1))
    assert 1 <= len(answers) <= 5
    names = await email_project.names(anonymous_id="x")
    assert names == [f"{answer.sequence}" for answer in reversed(answers)]


async def test_stopping_with_an_idle_stream(email_project: Client, settings: Settings) -> None:
    """F18: a stream whose caller is silent ends at once when the server is being stopped; nobody waits for it."""
    stop = asyncio.Event()
    async with served(settings, stop) as channel:
        call = Client(channel, email_project.project_id, email_project.key).events.TrackStream()
        await write(call, batch(1, "first"))
        assert (await acknowledged(call)).sequence == 1
        stop.set()
        ended = await end_of(call)
    assert ended is not None
    assert (ended.code, ended.reason) == STOPPING
