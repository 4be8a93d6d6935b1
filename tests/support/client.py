"""The generated stubs with a key in hand, and short ways to say what tests say often."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from onefold.v1.activation_service_pb2_grpc import ActivationServiceStub
from onefold.v1.devices_service_pb2_grpc import DevicesServiceStub
from onefold.v1.event_pb2 import Event, NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, ListEventsRequest, TrackRequest
from onefold.v1.events_service_pb2_grpc import EventsServiceStub
from onefold.v1.identity_service_pb2_grpc import IdentityServiceStub
from onefold.v1.profile_pb2 import Identifiers
from onefold.v1.projects_service_pb2_grpc import ProjectsServiceStub

if TYPE_CHECKING:
    # Types only: at run time one class serves both kinds of channel.
    from onefold.v1.activation_service_pb2_grpc import ActivationServiceAsyncStub
    from onefold.v1.devices_service_pb2_grpc import DevicesServiceAsyncStub
    from onefold.v1.events_service_pb2_grpc import EventsServiceAsyncStub
    from onefold.v1.identity_service_pb2_grpc import IdentityServiceAsyncStub
    from onefold.v1.projects_service_pb2_grpc import ProjectsServiceAsyncStub


@dataclass(frozen=True)
class Failure:
    """What a call that failed told: the code, the published reason, the wrong fields in order, the metadata."""

    code: grpc.StatusCode
    reason: str
    fields: list[str]
    metadata: dict[str, str]
    message: str
    retry_seconds: float | None


@dataclass
class Client:
    """Stubs of all services that call as one project."""

    channel: grpc.aio.Channel
    project_id: str
    key: str
    identity: IdentityServiceAsyncStub = field(init=False)
    events: EventsServiceAsyncStub = field(init=False)
    devices: DevicesServiceAsyncStub = field(init=False)
    projects: ProjectsServiceAsyncStub = field(init=False)
    activation: ActivationServiceAsyncStub = field(init=False)

    def __post_init__(self) -> None:
        keyed: Any = _KeyedChannel(self.channel, self.key)
        self.identity = IdentityServiceStub(keyed)
        self.events = EventsServiceStub(keyed)
        self.devices = DevicesServiceStub(keyed)
        self.projects = ProjectsServiceStub(keyed)
        self.activation = ActivationServiceStub(keyed)

    async def track(self, **event: Any) -> Any:
        """Tracks one event; returns its TrackResult."""
        return (await self.events.Track(TrackRequest(event=NewEvent(**event)))).result

    async def batch(self, events: Iterable[NewEvent]) -> list[Any]:
        """Tracks a batch; returns its BatchTrackResults."""
        return list((await self.events.BatchTrack(BatchTrackRequest(events=events))).results)

    async def timeline(self, page_size: int = 500, **request: Any) -> list[Event]:
        """All events of a subject, page after page."""
        events: list[Event] = []
        token = ""
        while True:
            page = await self.events.ListEvents(ListEventsRequest(page_size=page_size, page_token=token, **request))
            events.extend(page.events)
            token = page.next_page_token
            if not token:
                return events

    async def names(self, **request: Any) -> list[str]:
        """The names of a subject's events, newest first."""
        return [event.name for event in await self.timeline(**request)]


class _KeyedChannel:
    """A channel that adds the key to every call made through it."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {key}"),)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._keyed(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._keyed(self._channel.unary_stream(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._keyed(self._channel.stream_stream(*args, **kwargs))

    def _keyed(self, call: Any) -> Any:
        def keyed(request: Any = None, *, timeout: float | None = None, metadata: Any = ()) -> Any:
            # Of a call that sends a stream: its messages, or None to write them one by one.
            return call(request, timeout=timeout, metadata=(*self._metadata, *metadata))

        return keyed


def email(address: str) -> Identifiers:
    """A person by email."""
    return Identifiers(email=address)


def user(user_id: str) -> Identifiers:
    """A person by user_id."""
    return Identifiers(user_id=user_id)


def timestamp(moment: datetime) -> Timestamp:
    """A moment as a message."""
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def first_answer(call: Any) -> Awaitable[Any]:
    """The answer of a call; of one that answers with a stream, the first."""
    answer: Awaitable[Any] = call if isinstance(call, Awaitable) else call.read()
    return answer


async def failure(call: Awaitable[object]) -> Failure:
    """The failure of a call that must fail."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return read_failure(error)
    raise AssertionError(f"the call succeeded: {answer}")


def read_failure(error: grpc.aio.AioRpcError) -> Failure:
    """What a failed call told."""
    info, bad, retry = ErrorInfo(), BadRequest(), RetryInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what it takes
    retry_seconds = None
    for detail in status.details if status else ():
        for wanted in (info, bad, retry):
            if detail.Is(wanted.DESCRIPTOR):
                detail.Unpack(wanted)
                if wanted is retry:
                    retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return Failure(
        error.code(),
        info.reason,
        [violation.field for violation in bad.field_violations],
        dict(info.metadata),
        error.details() or "",
        retry_seconds,
    )
