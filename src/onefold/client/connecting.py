"""Channels to onefold: who calls, how long a call may take, and how it is sent again.

gRPC sends a call again by itself when it failed with UNAVAILABLE. That is safe because every write leaves here with a
request_id, or its events with event_ids, whether the caller gave any or not.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from onefold.client.errors import CallError, read_error
from onefold.v1.activation_service_pb2_grpc import ActivationServiceStub
from onefold.v1.devices_service_pb2_grpc import DevicesServiceStub
from onefold.v1.events_service_pb2 import BatchTrackRequest, TrackRequest
from onefold.v1.events_service_pb2_grpc import EventsServiceStub
from onefold.v1.identity_service_pb2_grpc import IdentityServiceStub
from onefold.v1.projects_service_pb2_grpc import ProjectsServiceStub

if TYPE_CHECKING:
    # Types only: at run time one class serves both kinds of channel.
    from onefold.v1.activation_service_pb2_grpc import ActivationServiceAsyncStub
    from onefold.v1.devices_service_pb2_grpc import DevicesServiceAsyncStub
    from onefold.v1.events_service_pb2_grpc import EventsServiceAsyncStub
    from onefold.v1.identity_service_pb2_grpc import IdentityServiceAsyncStub
    from onefold.v1.projects_service_pb2_grpc import ProjectsServiceAsyncStub

CALL_SECONDS: Final = 10.0
_MESSAGE_BYTES: Final = 8 * 1024 * 1024
_ATTEMPTS: Final = 5
# https://github.com/grpc/proposal/blob/master/A6-client-retries.md
SERVICE_CONFIG: Final = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": _ATTEMPTS,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Tls:
    """How to be sure of the server, and it of us. Each is PEM; without root certificates the system's are used."""

    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """The same as gRPC has it."""
        return grpc.ssl_channel_credentials(self.root_certificates, self.private_key, self.certificate_chain)


class Client:
    """The services of one project, for asyncio. Close it, or use it in `async with`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.identity: IdentityServiceAsyncStub = IdentityServiceStub(channel)
        self.events: EventsServiceAsyncStub = EventsServiceStub(channel)
        self.devices: DevicesServiceAsyncStub = DevicesServiceStub(channel)
        self.activation: ActivationServiceAsyncStub = ActivationServiceStub(channel)
        self.projects: ProjectsServiceAsyncStub = ProjectsServiceStub(channel)

    async def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class SyncClient:
    """The services of one project, for threads. Close it, or use it in `with`."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.identity: IdentityServiceStub = IdentityServiceStub(channel)
        self.events: EventsServiceStub = EventsServiceStub(channel)
        self.devices: DevicesServiceStub = DevicesServiceStub(channel)
        self.activation: ActivationServiceStub = ActivationServiceStub(channel)
        self.projects: ProjectsServiceStub = ProjectsServiceStub(channel)

    def close(self) -> None:
        """Closes the connections; calls under way are cancelled."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(target: str, api_key: str, *, tls: Tls | None = None, call_seconds: float = CALL_SECONDS) -> Client:
    """A client for asyncio. Connects when first called.

    `target` is HOST:PORT, or dns:///HOST:PORT to spread the calls over all its addresses. `call_seconds` is the
    deadline of calls that are given none.
    """
    interceptors: list[grpc.aio.ClientInterceptor] = [
        kind(api_key, call_seconds) for kind in (_AsyncCalls, _AsyncAnswers, _AsyncStreams)
    ]
    if tls is None:
        return Client(grpc.aio.insecure_channel(target, _options(), interceptors=interceptors))
    return Client(grpc.aio.secure_channel(target, tls.credentials(), _options(), interceptors=interceptors))


def connect_sync(
    target: str, api_key: str, *, tls: Tls | None = None, call_seconds: float = CALL_SECONDS
) -> SyncClient:
    """The same for threads."""
    channel = (
        grpc.insecure_channel(target, _options())
        if tls is None
        else grpc.secure_channel(target, tls.credentials(), _options())
    )
    interceptors = [kind(api_key, call_seconds) for kind in (_SyncCalls, _SyncAnswers, _SyncStreams)]
    return SyncClient(grpc.intercept_channel(channel, *interceptors))


def _options() -> list[tuple[str, Any]]:
    return [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.enable_retries", 1),
        # An answer is 4 MiB at most; a margin, so that it is never this side that refuses it.
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        # Finds out that a connection is dead although nothing says so, as behind some load balancers.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


def made_repeatable(request: M) -> M:
    """The request, or a copy with what makes it safe to send again: event_ids for events, else a request_id.

    Events get ids rather than the call: the server answers such calls together, while it must keep an answer for each
    request_id.
    """
    if "request_id" not in request.DESCRIPTOR.fields_by_name or getattr(request, "request_id"):  # noqa: B009 - M has no such attribute to the type checker
        return request
    copy: Any = type(request)()
    copy.CopyFrom(request)
    if isinstance(copy, TrackRequest):
        copy.event.event_id = copy.event.event_id or str(uuid.uuid4())
    elif isinstance(copy, BatchTrackRequest):
        for event in copy.events:
            event.event_id = event.event_id or str(uuid.uuid4())
    else:
        copy.request_id = uuid.uuid4().hex
    return copy  # type: ignore[no-any-return]  # it is of the request's type


class _Calls:
    def __init__(self, api_key: str, call_seconds: float) -> None:
        self.authorization = ("authorization", f"Bearer {api_key}")
        self._call_seconds = call_seconds

    def _timeout(self, timeout: float | None) -> float:
        return self._call_seconds if timeout is None else timeout

    def _with_key(self, details: Any, timeout: float | None) -> grpc.aio.ClientCallDetails:
        return grpc.aio.ClientCallDetails(
            method=details.method,
            timeout=timeout,
            metadata=grpc.aio.Metadata(*(details.metadata or ()), self.authorization),
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
        )


class _AsyncCalls(_Calls, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        details = self._with_key(client_call_details, self._timeout(client_call_details.timeout))
        try:
            return await (await continuation(details, made_repeatable(request)))
        except grpc.aio.AioRpcError as error:
            failure = _failure(error)
        raise failure


# Streams have no deadline but one that is given, and are not begun again by themselves. A class for each kind: gRPC
# takes an interceptor for one kind only.
class _AsyncAnswers(_Calls, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        details = self._with_key(client_call_details, client_call_details.timeout)
        return _answers(await continuation(details, request))


class _AsyncStreams(_Calls, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        details = self._with_key(client_call_details, client_call_details.timeout)
        return _answers(await continuation(details, request_iterator))


async def _answers(call: AsyncIterator[Any]) -> AsyncIterator[Any]:
    try:
        async for answer in call:
            yield answer
        return
    except grpc.aio.AioRpcError as error:
        failure = _failure(error)
    raise failure


def _failure(error: grpc.aio.AioRpcError) -> CallError:
    trailers = [(key, value) for key, value in error.trailing_metadata() or ()]
    return read_error(error.code(), error.details() or "", trailers)


class _SyncDetails(grpc.ClientCallDetails):
    def __init__(self, details: Any, timeout: float | None, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
        self.method = details.method
        self.timeout = timeout
        self.metadata = metadata
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


class _SyncCalls(_Calls, grpc.UnaryUnaryClientInterceptor):
    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        details = _SyncDetails(
            client_call_details,
            self._timeout(client_call_details.timeout),
            (*(client_call_details.metadata or ()), self.authorization),
        )
        call = continuation(details, made_repeatable(request))
        if call.exception() is not None:
            raise read_error(call.code(), call.details() or "", call.trailing_metadata() or ()) from None
        return call


class _SyncAnswers(_Calls, grpc.UnaryStreamClientInterceptor):
    def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        return _Answers(continuation(_streaming(self, client_call_details), request))


class _SyncStreams(_Calls, grpc.StreamStreamClientInterceptor):
    def intercept_stream_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return _Answers(continuation(_streaming(self, client_call_details), request_iterator))


def _streaming(calls: _Calls, details: Any) -> _SyncDetails:
    return _SyncDetails(details, details.timeout, (*(details.metadata or ()), calls.authorization))


class _Answers:
    """The answers of a stream, whose end is one of our errors."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            call: Any = error
            failure = read_error(call.code(), call.details() or "", call.trailing_metadata() or ())
        raise failure

    def cancel(self) -> None:
        """Ends the stream."""
        self._call.cancel()
