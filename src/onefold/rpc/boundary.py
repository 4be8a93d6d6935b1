"""What every call passes on its way in and out.

In: a place -> deadline -> key -> scope -> message -> rates -> handler. Out: an OnefoldError becomes its status,
anything else a fixed text with an id under which the log has the rest. No other code calls abort.

A stream passes the same, and its key is looked at again while it lasts. It has no deadline but the caller's own, and
ends when the caller reads nothing for 30 s. When the server is being stopped, a stream that only answers ends at once;
one that takes messages gets no more of them, finishes what it has, and then ends so.

To gRPC every method takes a stream of messages, also one that takes a single message. For those gRPC would wait for the
message before anything here is asked: a stranger who never sends it would hold a place that nobody counts, for ever.

The server takes so many calls and so many streams at a time. Whatever comes on top of them is refused at once, so that
what is in hand gets done.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import secrets
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
import structlog
from google.protobuf.descriptor import FileDescriptor

from onefold.callers import Caller, Scope, caller, set_caller
from onefold.errors import Kind, OnefoldError, Reason, exhausted
from onefold.limits import (
    CALL_DEFAULT_SECONDS,
    CALL_MAX_SECONDS,
    STREAM_KEY_CHECK_SECONDS,
    STREAM_WRITE_SECONDS,
)
from onefold.rpc.messages import MISSING, check_message, fitting, tolerant
from onefold.rpc.rates import Rates
from onefold.rpc.status import to_status
from onefold.rpc.streams import all_ended
from onefold.telemetry.calls import Call, MethodWatch
from onefold.v1 import options_pb2

_log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]
# Of a method that answers with a stream. Its request is a message, or the messages of a stream.
StreamHandler = Callable[[Any, Context], AsyncIterator[Any]]
Authenticate = Callable[[str], Awaitable[Caller]]

PREFIX: Final = "/onefold."
# How long the end of a stream may wait for a caller who reads nothing.
_FAREWELL_SECONDS: Final = 1.0
_END: Final = object()
# A limit that was raised meanwhile is noticed within this.
_RATE_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a server takes on at a time, and how long it waits for the callers of streams."""

    concurrent_calls: int = 2_000
    concurrent_streams: int = 500
    stream_write_seconds: float = STREAM_WRITE_SECONDS
    stream_key_check_seconds: float = STREAM_KEY_CHECK_SECONDS


class _Places:
    """So many calls, or streams, at a time: `with places` keeps one for as long as the block lasts."""

    def __init__(self, count: int) -> None:
        self._free = count

    def __enter__(self) -> None:
        """Raises SERVER_BUSY if none is free."""
        if self._free == 0:
            raise _busy()
        self._free -= 1

    def __exit__(self, *_fault: object) -> None:
        self._free += 1


class _NotNowError(Exception):
    """Whether the key of a stream is still good cannot be told at this moment."""


def required_scopes(files: list[FileDescriptor]) -> dict[str, Scope]:
    """The scope of every method, by its path, as the protos' required_scope option says. ValueError if one has none."""
    scopes = {}
    for file in files:
        for service in file.services_by_name.values():
            for method in service.methods:
                number = method.GetOptions().Extensions[options_pb2.required_scope]
                if not number:
                    raise ValueError(f"{method.full_name} has no required_scope")
                name = options_pb2.Scope.Name(number).removeprefix("SCOPE_")
                scopes[f"/{service.full_name}/{method.name}"] = Scope(name)
    return scopes


class Boundary(grpc.aio.ServerInterceptor):
    """The only interceptor. It leaves services other than onefold's own (health, reflection) as they are."""

    def __init__(
        self,
        authenticate: Authenticate,
        scopes: Mapping[str, Scope],
        bounds: Bounds | None = None,
        rates: Rates | None = None,
    ) -> None:
        self._authenticate = authenticate
        self._rates = rates or Rates()
        self._scopes = scopes
        self._bounds = bounds or Bounds()
        self._calls = _Places(self._bounds.concurrent_calls)
        self._streams = _Places(self._bounds.concurrent_streams)
        self._stopping = asyncio.Event()
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def stop(self) -> None:
        """Refuses every call from now on, with UNAVAILABLE, and ends the streams so; other calls being served go on.

        A stream that takes messages first finishes those it has.
        """
        self._stopping.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the method's handler, once per method."""
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(PREFIX):
            return handler
        if method not in self._wrapped:
            self._wrapped[method] = self._wrap(method, self._scopes[method], handler)
        return self._wrapped[method]

    def _wrap(
        self, method: str, scope: Scope, handler: grpc.RpcMethodHandler[Any, Any]
    ) -> grpc.RpcMethodHandler[Any, Any]:
        codecs: dict[str, Any] = {
            "request_deserializer": tolerant(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        watch = MethodWatch(method, takes_stream=handler.request_streaming, gives_stream=handler.response_streaming)
        if not handler.response_streaming:
            return grpc.stream_unary_rpc_method_handler(
                self._guard(watch, scope, cast("Handler", handler.unary_unary)), **codecs
            )
        if handler.request_streaming:
            guarded = self._guard_stream(
                watch, scope, cast("StreamHandler", handler.stream_stream), takes_messages=True
            )
            return grpc.stream_stream_rpc_method_handler(guarded, **codecs)
        guarded = self._guard_stream(watch, scope, cast("StreamHandler", handler.unary_stream), takes_messages=False)
        return grpc.stream_stream_rpc_method_handler(guarded, **codecs)

    def _guard(self, watch: MethodWatch, scope: Scope, handler: Handler) -> Handler:
        async def guarded(requests: AsyncIterator[Any], context: Context) -> Any:  # noqa: RET503
            metadata = _metadata(context)
            call = watch.begin(metadata.get("traceparent"))
            try:
                if self._stopping.is_set():
                    raise _stopping()
                with self._calls:
                    async with asyncio.timeout(_seconds(context)):
                        set_caller(who := await self._admit(metadata, scope))
                        call.project_id = who.project.project_id
                        request = await _only(context)
                        watch.counts.received += 1
                        self._rates.admit(who, scope, watch.method, request)
                        answer = fitting(await handler(request, context))
                watch.counts.sent += 1
                call.succeeded()
                return answer
            except asyncio.CancelledError:
                call.cancelled(context.time_remaining())
                raise
            except Exception as fault:  # whatever it is, its text may hold somebody's data and stays here
                # The error itself is not kept: it knows this frame, and with it the request would outlive the call.
                status = to_status(_to_error(watch.method, fault, call))
            await context.abort_with_status(status)  # raises

        return guarded

    def _guard_stream(
        self, watch: MethodWatch, scope: Scope, handler: StreamHandler, *, takes_messages: bool
    ) -> Callable[[Any, Context], Any]:
        async def guarded(requests: AsyncIterator[Any], context: Context) -> None:
            metadata = _metadata(context)
            call = watch.begin(metadata.get("traceparent"))
            try:
                if self._stopping.is_set():
                    raise _stopping()
                with self._streams:
                    async with asyncio.timeout(context.time_remaining()):
                        set_caller(who := await self._admit(metadata, scope))
                        call.project_id = who.project.project_id
                        self._rates.admit(who, scope, watch.method)
                        if takes_messages:
                            async with contextlib.aclosing(self._until_stopping(requests, watch)) as messages:
                                work = self._write_all(handler(messages, context), context, watch)
                                await self._while_admitted(work, context, scope, ends_itself=True)
                        else:
                            async with asyncio.timeout(CALL_DEFAULT_SECONDS):
                                request = await _only(context)
                            watch.counts.received += 1
                            work = self._write_all(handler(request, context), context, watch)
                            await self._while_admitted(work, context, scope, ends_itself=False)
                call.succeeded()
                return
            except asyncio.CancelledError:
                call.cancelled(context.time_remaining())
                raise
            except Exception as fault:  # as above
                status = to_status(_to_error(watch.method, fault, call))
            # The status waits behind what was written before. A caller who reads nothing gets it when they do; nothing
            # here waits for that.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await context.abort_with_status(status)

        return guarded

    async def _while_admitted(
        self, work: Coroutine[Any, Any, None], context: Context, scope: Scope, *, ends_itself: bool
    ) -> None:
        """Runs a stream until it ends or its key is not good any more, or the server is being stopped.

        One that `ends_itself` when the server is being stopped is left to do so.
        """
        within = contextvars.copy_context()
        working = asyncio.create_task(work, context=within)
        stopping = asyncio.create_task(self._stopping.wait())
        watched: set[asyncio.Task[Any]] = {working} if ends_itself else {working, stopping}
        try:
            while not working.done():
                await asyncio.wait(
                    watched,
                    timeout=self._bounds.stream_key_check_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if stopping.done() and not ends_itself:
                    raise _stopping()
                if not working.done():
                    with contextlib.suppress(_NotNowError):
                        # The project's settings may have changed: the stream goes on with those of now.
                        within.run(set_caller, await self._admit_again(context, scope))
            working.result()
        finally:
            stopping.cancel()
            working.cancel()
            # Whatever the stream holds is given back before the call ends.
            await all_ended({working, stopping})

    async def _until_stopping(self, requests: AsyncIterator[Any], watch: MethodWatch) -> AsyncGenerator[Any]:
        """The messages of a stream, until the server is being stopped: then SERVER_STOPPING."""
        stopping = asyncio.create_task(self._stopping.wait())
        reading: asyncio.Task[Any] | None = None
        try:
            while True:
                reading = asyncio.create_task(_next(requests))
                await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    raise _stopping()
                request = reading.result()
                if request is _END:
                    return
                watch.counts.received += 1
                check_message(request)
                # A stream is not refused for its project's limit: it is read as fast as that allows.
                while seconds := self._rates.seconds_until(caller(), watch.method, request):
                    await asyncio.wait({stopping}, timeout=min(seconds, _RATE_LOOK_SECONDS))
                    if stopping.done():
                        raise _stopping()
                yield request
        finally:
            stopping.cancel()
            if reading is not None:
                reading.cancel()

    async def _write_all(self, answers: AsyncIterator[Any], context: Context, watch: MethodWatch) -> None:
        seconds = self._bounds.stream_write_seconds
        # Before any answer: gRPC would send it together with the first one, and once more with the status if that one
        # is still on its way, which fails.
        await context.send_initial_metadata(())
        async with contextlib.aclosing(cast("AsyncGenerator[Any]", answers)):
            async for answer in answers:
                try:
                    async with asyncio.timeout(seconds):
                        await context.write(fitting(answer))
                        watch.counts.sent += 1
                except TimeoutError:
                    raise OnefoldError(
                        Kind.DEADLINE_EXCEEDED,
                        Reason.STREAM_STALLED,
                        f"Nothing was read from the stream for {seconds:g} seconds.",
                    ) from None

    async def _admit_again(self, context: Context, scope: Scope) -> Caller:
        """The caller of a stream as they are now. _NotNowError if that cannot be told, because the database is busy."""
        try:
            return await self._admit(_metadata(context), scope)
        except OnefoldError as error:
            if error.kind in (Kind.UNAVAILABLE, Kind.RESOURCE_EXHAUSTED):
                # Nothing can be read or written just now either; the stream's own work will say so, or it passes.
                raise _NotNowError from None
            raise

    async def _admit(self, metadata: Mapping[str, str], scope: Scope) -> Caller:
        scheme, _, key = metadata.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = ""
        if not key.strip():
            raise OnefoldError(
                Kind.UNAUTHENTICATED,
                Reason.API_KEY_MISSING,
                'The call needs the metadata "authorization: Bearer KEY".',
            )
        caller = await self._authenticate(key.strip())
        if scope not in caller.scopes:
            raise OnefoldError(
                Kind.PERMISSION_DENIED,
                Reason.SCOPE_MISSING,
                f"The key lacks the scope {scope}.",
                {"required_scope": scope},
            )
        return caller


def _metadata(context: Context) -> dict[str, str]:
    """What came with the call, in words; of a name that came more than once the last."""
    return {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}


async def _only(context: Context) -> Any:
    """The request of a method that takes one. Not by iterating: a generator that is left unfinished costs a task."""
    request = await context.read()
    return check_message(MISSING if request is grpc.aio.EOF else request)


async def _next(requests: AsyncIterator[Any]) -> Any:
    return await anext(requests, _END)


def _to_error(method: str, fault: Exception, call: Call) -> OnefoldError:
    match fault:
        case OnefoldError():
            error = fault
        case TimeoutError():
            error = OnefoldError(
                Kind.DEADLINE_EXCEEDED,
                Reason.DEADLINE_PASSED,
                "The call took longer than its deadline allows. What became of it is unknown.",
            )
        case _:
            error = _internal(method, fault)
    call.failed(error)
    return error


def _stopping() -> OnefoldError:
    return OnefoldError(
        Kind.UNAVAILABLE,
        Reason.SERVER_STOPPING,
        "The server is being stopped. Send the call again, to another one.",
        retry_after_seconds=0.1,
    )


def _busy() -> OnefoldError:
    error = exhausted(
        Reason.SERVER_BUSY, "The server has as many calls in hand as it takes. Send this one again later."
    )
    error.retry_after_seconds = 1.0
    return error


def _seconds(context: Context) -> float:
    """How long the call may take: what the caller says, 10 s if it says nothing, 30 s at most."""
    remaining = context.time_remaining()
    return CALL_DEFAULT_SECONDS if remaining is None else min(remaining, CALL_MAX_SECONDS)


def _internal(method: str, fault: Exception) -> OnefoldError:
    error_id = secrets.token_hex(8)
    # Names of types and lines of code only: an exception's own text may quote a row.
    where = traceback.format_tb(fault.__traceback__)
    _log.error("call broke", method=method, error_id=error_id, fault=type(fault).__name__, where=where)
    return OnefoldError(
        Kind.INTERNAL, Reason.INTERNAL, f"A fault of the server; its log has it as {error_id}.", {"error_id": error_id}
    )
