"""What the boundary promises of every stream, whichever method it is of: keys, deadlines, ends, and slow readers.

The methods here belong to no service of ours: one that answers a request with a stream, one that answers each message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from onefold.callers import Caller, IdentifierType, Project, ProjectSettings, Region, Scope, caller
from onefold.errors import Kind, OnefoldError, Reason
from onefold.rpc.boundary import Boundary, Bounds
from support.client import Failure, read_failure
from support.probes import eventually

PROJECT = Project("shop", IdentifierType.EMAIL, Region.US, ProjectSettings(), datetime.now(UTC), datetime.now(UTC))
ANSWER, EXCHANGE = "/onefold.test.Streams/Answer", "/onefold.test.Streams/Exchange"
CODECS: dict[str, Any] = {
    "request_deserializer": StringValue.FromString,
    "response_serializer": StringValue.SerializeToString,
}
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))


@dataclass
class Service:
    """Answers what the caller asks for; knows how many of its handlers are running."""

    running: int = 0
    looked_up: int = 0
    # What the look-up of a key comes to, by its number; the first one lets the stream in.
    look_ups: list[OnefoldError | None] = field(default_factory=list)

    async def authenticate(self, key: str) -> Caller:
        """A caller whose key_id says how often it was looked up."""
        self.looked_up += 1
        fault = self.look_ups[self.looked_up - 1] if self.looked_up <= len(self.look_ups) else None
        if fault is not None:
            raise fault
        return Caller(PROJECT, f"{self.looked_up}", frozenset({Scope.READ}))

    async def answer(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        """One answer at once, and then what the request says."""
        self.running += 1
        try:
            yield StringValue(value="first")
            match request.value:
                case "break":
                    raise RuntimeError("-".join(("secret", "word")))
                case "large":
                    yield StringValue(value="x" * (4 * 1024 * 1024 + 1))
                case "flood":
                    while True:
                        yield StringValue(value="x" * 100_000)
                case "wait":
                    await asyncio.Event().wait()
        finally:
            self.running -= 1

    async def exchange(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        """Answers each message with the key_id of its caller as it is then."""
        self.running += 1
        try:
            async for _ in requests:
                yield StringValue(value=caller().key_id)
        finally:
            self.running -= 1


@asynccontextmanager
async def serving(service: Service, **bounds: Any) -> AsyncIterator[tuple[Boundary, grpc.aio.Channel]]:
    """A real server with the two methods behind a boundary."""
    boundary = Boundary(service.authenticate, {ANSWER: Scope.READ, EXCHANGE: Scope.READ}, Bounds(**bounds))
    server = grpc.aio.server(interceptors=[boundary])
    handlers = {
        "Answer": grpc.unary_stream_rpc_method_handler(service.answer, **CODECS),
        "Exchange": grpc.stream_stream_rpc_method_handler(service.exchange, **CODECS),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("onefold.test.Streams", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=NARROW) as channel:
            yield boundary, channel
    finally:
        await server.stop(1.0)


def ask(channel: grpc.aio.Channel, request: str | bytes, timeout: float | None = None) -> Any:
    """Calls the method that answers with a stream."""
    data = request if isinstance(request, bytes) else StringValue(value=request).SerializeToString()
    call: Any = channel.unary_stream(ANSWER, response_deserializer=StringValue.FromString)
    return call(data, timeout=timeout, metadata=(("authorization", "Bearer key"),))


def exchange(channel: grpc.aio.Channel) -> Any:
    """Calls the method that answers each message."""
    call: Any = channel.stream_stream(
        EXCHANGE, request_serializer=StringValue.SerializeToString, response_deserializer=StringValue.FromString
    )
    return call(metadata=(("authorization", "Bearer key"),))


async def to_the_end(call: Any) -> tuple[list[str], Failure | None]:
    """What a call still answers, and how it fails, if it does."""
    answers = []
    try:
        while (answer := await call.read()) is not grpc.aio.EOF:
            answers.append(answer.value)
    except grpc.aio.AioRpcError as error:
        return answers, read_failure(error)
    return answers, None


async def nothing_runs(service: Service) -> bool:
    return service.running == 0


async def test_a_stream_that_ends() -> None:
    """X2: answers come in order, and the end is OK."""
    service = Service()
    async with serving(service) as (_, channel):
        assert await to_the_end(ask(channel, "end")) == (["first"], None)
        assert service.running == 0


@pytest.mark.parametrize(
    ("request_", "code", "reason", "answered"),
    [
        ("break", grpc.StatusCode.INTERNAL, "INTERNAL", ["first"]),
        ("large", grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE", ["first"]),
        (b"\xff" * 16, grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED", []),
    ],
    ids=["a fault of ours", "an answer over 4 MiB", "garbage"],
)
async def test_a_stream_that_fails(
    capfd: pytest.CaptureFixture[str],
    request_: str | bytes,
    code: grpc.StatusCode,
    reason: str,
    answered: list[str],
) -> None:
    """X2, F65: what was answered before a failure arrives; then the published reason, and never a fault's own text."""
    service = Service()
    async with serving(service) as (_, channel):
        answers, ended = await to_the_end(ask(channel, request_))
    assert answers == answered
    assert ended is not None
    assert (ended.code, ended.reason) == (code, reason)
    assert "secret-word" not in ended.message + "".join(capfd.readouterr())
    assert service.running == 0


async def test_a_deadline_that_passes() -> None:
    """F20: a stream's deadline is its caller's; when it passes, what the stream held is given back."""
    service = Service()
    async with serving(service) as (_, channel):
        answers, ended = await to_the_end(ask(channel, "wait", timeout=0.3))
        assert answers == ["first"]
        assert ended is not None
        assert ended.code == grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: nothing_runs(service))


async def test_a_caller_who_reads_nothing() -> None:
    """F22: a stream of answers that nobody reads ends with STREAM_STALLED and gives back what it held, without waiting
    for the caller; the status is there when they read on."""
    service = Service()
    async with serving(service, stream_write_seconds=0.1) as (_, channel):
        call = ask(channel, "flood")
        assert (await call.read()).value == "first"
        await eventually(lambda: nothing_runs(service))
        answers, ended = await to_the_end(call)
    assert len(answers) < 50
    assert ended is not None
    assert (ended.code, ended.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_STALLED")


@pytest.mark.parametrize("open_stream", [lambda channel: ask(channel, "wait"), exchange], ids=["answers", "exchange"])
async def test_a_server_that_is_being_stopped(open_stream: Callable[[grpc.aio.Channel], Any]) -> None:
    """F18: open streams end with UNAVAILABLE / SERVER_STOPPING when the server is being stopped, and new ones too."""
    service = Service()
    async with serving(service) as (boundary, channel):
        call = open_stream(channel)
        await call.initial_metadata()
        boundary.stop()
        for each in (call, open_stream(channel)):
            _, ended = await to_the_end(each)
            assert ended is not None
            assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        assert service.running == 0


def fault(kind: Kind, reason: Reason) -> OnefoldError:
    return OnefoldError(kind, reason, "A sentence.")


async def test_a_stream_sees_its_caller_as_they_are_now() -> None:
    """P6: a stream that lasts goes on with the project's settings as they are, not as they were when it began."""
    service = Service()
    async with serving(service, stream_key_check_seconds=0.02) as (_, channel):
        call = exchange(channel)
        seen: set[str] = set()

        async def has_changed() -> bool:
            await call.write(StringValue())
            seen.add((await call.read()).value)
            return len(seen) > 3

        await eventually(has_changed)
        await call.done_writing()
        assert await to_the_end(call) == ([], None)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Kind.UNAUTHENTICATED, Reason.API_KEY_INVALID), (Kind.PERMISSION_DENIED, Reason.SCOPE_MISSING)],
)
async def test_a_key_that_goes_bad(kind: Kind, reason: Reason) -> None:
    """F74: a stream ends when its key does; while the key cannot be looked up, because the database is away or busy, it
    goes on."""
    away = [
        fault(Kind.UNAVAILABLE, Reason.DATABASE_UNAVAILABLE),
        fault(Kind.RESOURCE_EXHAUSTED, Reason.POOL_BUSY),
    ]
    service = Service(look_ups=[None, *away, None, *away, fault(kind, reason)])
    async with serving(service, stream_key_check_seconds=0.02) as (_, channel):
        answers, ended = await to_the_end(ask(channel, "wait"))
    assert answers == ["first"]
    assert ended is not None
    assert (ended.code.name, ended.reason) == (kind.name, reason)
    assert (service.looked_up, service.running) == (7, 0)


async def test_streams_and_calls_have_places_of_their_own() -> None:
    """F17, F75: a stream too many is refused with SERVER_BUSY, and has a place when another one has ended."""
    service = Service()
    async with serving(service, concurrent_streams=2) as (_, channel):
        open_streams = [ask(channel, "wait") for _ in range(2)]
        for call in open_streams:
            await call.read()
        for _ in range(5):
            answers, ended = await to_the_end(ask(channel, "end"))
            assert answers == []
            assert ended is not None
            assert (ended.code, ended.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")
            assert ended.retry_seconds
        open_streams[0].cancel()

        async def has_a_place() -> bool:
            return (await to_the_end(ask(channel, "end")))[1] is None

        await eventually(has_a_place)
