"""A call that is sent again, with the same request_id or event_ids, until its outcome is known or it is given up."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from chaos.log import Entry, Log
from chaos.model import Model
from onefold.client.errors import RefusedError, read_error
from onefold.v1 import devices_service_pb2 as devices
from onefold.v1 import events_service_pb2 as events
from onefold.v1 import identity_service_pb2 as identity
from support.client import Client

REQUESTS: Final[dict[str, Any]] = {
    "Track": events.TrackRequest,
    "BatchTrack": events.BatchTrackRequest,
    "UpdateProfile": identity.UpdateProfileRequest,
    "Identify": identity.IdentifyRequest,
    "MergeProfiles": identity.MergeProfilesRequest,
    "UndoMerge": identity.UndoMergeRequest,
    "ForgetProfile": identity.ForgetProfileRequest,
    "RegisterDevice": devices.RegisterDeviceRequest,
    "DisableDevice": devices.DisableDeviceRequest,
}
ANSWERS: Final[dict[str, Any]] = {
    "UpdateProfile": identity.UpdateProfileResponse,
    "Identify": identity.IdentifyResponse,
    "MergeProfiles": identity.MergeProfilesResponse,
    "UndoMerge": identity.UndoMergeResponse,
    "ForgetProfile": identity.ForgetProfileResponse,
    "RegisterDevice": devices.RegisterDeviceResponse,
    "DisableDevice": devices.DisableDeviceResponse,
}
# Nothing happened, and it passes.
_PASSING: Final = {"POOL_BUSY", "SERVER_BUSY", "LOCK_TIMEOUT", "SERVER_STOPPING"}
# The retries are ours, so that none happens without our knowing.
_OPTIONS: Final = [
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
]


@dataclass
class Answer:
    """What became of a call: its answer, or why it was refused, or neither; and whether an attempt may still arrive."""

    message: Any = None
    reason: str = ""
    stragglers: bool = False


class Callers:
    """Stubs of the project on both servers."""

    def __init__(self, addresses: Sequence[str], key: str, project_id: str) -> None:
        self._channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for address in addresses]
        self.clients = [Client(channel, project_id, key) for channel in self._channels]
        self._turn = itertools.count()

    def next(self) -> Client:
        """A server, each in turn."""
        return self.clients[next(self._turn) % len(self.clients)]

    async def close(self) -> None:
        """Closes the connections."""
        for channel in self._channels:
            await channel.close()


def stub(client: Client, method: str) -> Any:
    """The call of a method, whichever service has it."""
    for service in (client.identity, client.events, client.devices):
        if hasattr(service, method):
            return getattr(service, method)
    raise AttributeError(method)


async def insist(
    callers: Callers, method: str, request: Any, *, patience: float = 60.0, call_seconds: float = 4.0
) -> Answer:
    """Sends a call until it is answered, from server to server; gives up after `patience` seconds.

    A refusal counts only if no earlier attempt may have had the effect, or may still have it.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    pause, stragglers = 0.05, False
    while True:
        try:
            message = await stub(callers.next(), method)(request, timeout=call_seconds)
            return Answer(message, stragglers=stragglers)
        except grpc.aio.AioRpcError as error:
            trailers = [(key, value) for key, value in error.trailing_metadata() or ()]
            failure = read_error(error.code(), error.details() or "", trailers)
        if isinstance(failure, RefusedError) or failure.reason in _PASSING:
            if failure.reason not in _PASSING:
                return Answer(reason="" if stragglers else failure.reason or failure.status.name, stragglers=stragglers)
        else:
            stragglers = True
        if loop.time() + pause > deadline:
            return Answer(stragglers=stragglers)
        await asyncio.sleep(pause)
        pause = min(2 * pause, 1.0)


async def pages(callers: Callers, method: str, request: Any, *, patience: float = 60.0) -> list[Any] | None:
    """All answers of a paged read, each page from whichever server; None if a page could not be had in time."""
    found = []
    while True:
        answer = await insist(callers, method, request, patience=patience)
        if answer.message is None:
            return None
        found.append(answer.message)
        request.page_token = answer.message.next_page_token
        if not request.page_token:
            return found


@dataclass
class Journal:
    """Does operations: writes them to the log before and after, and tells the model."""

    log: Log
    model: Model
    callers: Callers
    random: random.Random
    # How often a client has no patience: that is how outcomes stay unknown.
    impatience: float = 0.02
    # Cleared to have everybody come to an end.
    running: bool = True
    # When the latest write began that was acknowledged.
    newest_ack: float = 0.0

    def begin(self, do: str, client: int, **entry: Any) -> Entry:
        """Notes that something is about to be sent."""
        self.log.operation += 1
        begun = self.log.write(op=self.log.operation, client=client, do=do, **entry)
        self.model.begin(begun)
        return begun

    def end(self, begun: Entry, end: str, **entry: Any) -> Entry:
        """Notes what became of it."""
        ended = self.log.write(op=begun["op"], end=end, **entry)
        self.model.end(ended)
        return ended

    async def call(self, do: str, client: int, method: str, request: Any, read: Any, **entry: Any) -> bool:
        """One operation by one call; whether it is done. `read` takes from the answer what the log holds."""
        call = [method, base64.b64encode(request.SerializeToString()).decode()]
        patience = 0.0 if self.random.random() < self.impatience else 60.0
        begun = self.begin(do, client, call=call, **entry)
        answer = await insist(self.callers, method, request, patience=patience)
        if answer.message is not None:
            raw = (
                {} if method not in ANSWERS else {"raw": base64.b64encode(answer.message.SerializeToString()).decode()}
            )
            self.end(begun, "ok", stragglers=answer.stragglers, **raw, **read(answer.message))
            self.newest_ack = max(self.newest_ack, begun["t"])
            return True
        if answer.reason:
            self.end(begun, "refused", reason=answer.reason, stragglers=answer.stragglers)
        else:
            self.end(begun, "unknown", stragglers=True)
        return False
