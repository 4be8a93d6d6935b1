"""What a client can do: each operation is one call, or a stream, and stands in the log."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import grpc

from chaos.calls import Journal, insist
from chaos.log import Entry, body_of, canary_of, event_time_of
from chaos.reads import Reader, names
from onefold.v1.device_pb2 import PLATFORM_APNS, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, RegisterDeviceRequest
from onefold.v1.error_reason_pb2 import ErrorReason
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, TrackRequest, TrackStreamRequest
from onefold.v1.identity_service_pb2 import IdentifyRequest, UpdateProfileRequest


def new_event(event_id: str, home: str, epoch: int) -> NewEvent:
    """The event of an id, always the same."""
    event = NewEvent(event_id=event_id, name="did", data_json=json.dumps(body_of(event_id, home)))
    moment = event_time_of(event_id, epoch)
    if moment is not None:
        event.event_time.FromMicroseconds(moment)
    if home.startswith("x:"):
        event.anonymous_id = home[2:]
    else:
        event.identifiers.CopyFrom(names(home[2:]))
    return event


def micros(timestamp: Any) -> int:
    """A moment as an answer has it, in microseconds since 1970."""
    return int(timestamp.ToMicroseconds())


class Operations:
    """A client's calls. What it does is decided by its seed alone."""

    def __init__(self, number: int, journal: Journal, reader: Reader, seed: int, epoch: int) -> None:
        self.number = number
        self.journal, self.model, self.callers = journal, journal.model, journal.callers
        self.reader = reader
        self.random = random.Random(f"{seed}-{number}")
        self.epoch = epoch
        self.count = 0
        self.counter = 0

    def request_id(self) -> str:
        self.count += 1
        return f"r{self.number}-{self.count}"

    def events(self, home: str, most: int) -> list[tuple[str, str]]:
        """New events for a person or a visitor."""
        self.count += 1
        many = self.random.choice([1, 1, self.random.randint(2, most), most])
        return [(f"e{self.number}-{self.count}-{each}", home) for each in range(many)]

    async def track(self, events: list[tuple[str, str]], **entry: Any) -> bool:
        """Tells events: one by Track, several by BatchTrack."""
        messages = [new_event(event_id, home, self.epoch) for event_id, home in events]
        if len(events) == 1:
            return await self.journal.call(
                "track",
                self.number,
                "Track",
                TrackRequest(event=messages[0]),
                lambda answer: {"results": [_result(answer.result)]},
                events=events,
                **entry,
            )
        return await self.journal.call(
            "track", self.number, "BatchTrack", BatchTrackRequest(events=messages), _results, events=events, **entry
        )

    async def stream_to(self, home: str) -> None:
        """Several batches on a stream; what was not acknowledged when it broke is sent again."""
        batches = [self.events(home, 20) for _ in range(self.random.randint(2, 6))]
        begun = [self.journal.begin("track", self.number, events=batch, stream=True) for batch in batches]
        requests = [
            TrackStreamRequest(sequence=number, events=[new_event(*event, self.epoch) for event in batch])
            for number, batch in enumerate(batches, 1)
        ]
        acknowledged = 0
        try:
            call = self.callers.next().events.TrackStream(timeout=10.0)
            for request in requests:
                await call.write(request)
            await call.done_writing()
            while (answer := await call.read()) is not grpc.aio.EOF:
                self.journal.end(begun[acknowledged], "ok", stragglers=False, **_results(answer))
                acknowledged += 1
        except grpc.aio.AioRpcError:
            # The rest is told by calls, with the same ids.
            pass
        except asyncio.InvalidStateError:
            # The stream ended under a write.
            pass
        for entry, request in list(zip(begun, requests, strict=True))[acknowledged:]:
            answer = await insist(self.callers, "BatchTrack", BatchTrackRequest(events=request.events))
            if answer.message is None:
                self.journal.end(entry, "unknown", stragglers=True)
            else:
                self.journal.end(entry, "ok", stragglers=True, **_results(answer.message))

    async def write(self, name: str, fields: dict[str, int]) -> bool:
        """UpdateProfile."""
        request = UpdateProfileRequest(
            identifiers=names(name),
            data_fields_json=json.dumps({"canary": canary_of(f"p:{name}"), **fields}),
            request_id=self.request_id(),
        )
        return await self.journal.call(
            "update",
            self.number,
            "UpdateProfile",
            request,
            lambda answer: {"profile_id": answer.profile.profile_id},
            who=name,
            fields=fields,
        )

    def new_field(self) -> dict[str, int]:
        self.counter += 1
        return {f"k{self.random.randrange(4)}": self.counter}

    async def identify_as(self, name: str, visitor: str) -> bool:
        """Identify."""
        fields = self.new_field()
        request = IdentifyRequest(
            identifiers=names(name),
            data_fields_json=json.dumps(fields),
            anonymous_id=visitor,
            request_id=self.request_id(),
        )
        return await self.journal.call(
            "identify",
            self.number,
            "Identify",
            request,
            lambda answer: {
                "profile_id": answer.profile.profile_id,
                "outcome": answer.link.outcome,
                "grace_end": micros(answer.link.grace_end_time),
            },
            who=name,
            x=visitor,
            fields=fields,
        )

    async def register_for(self, name: str, token: str) -> bool:
        """RegisterDevice."""
        device = NewDevice(
            token=token,
            platform=PLATFORM_APNS,
            application_name="app",
            data_fields_json=json.dumps({"of": canary_of(f"p:{name}")}),
        )
        request = RegisterDeviceRequest(identifiers=names(name), device=device, request_id=self.request_id())
        return await self.journal.call(
            "register", self.number, "RegisterDevice", request, lambda answer: {}, who=name, token=token
        )

    async def disable_for(self, name: str | None, token: str) -> bool:
        """DisableDevice."""
        request = DisableDeviceRequest(token=token, request_id=self.request_id())
        if name is not None:
            request.identifiers.CopyFrom(names(name))
        return await self.journal.call(
            "disable", self.number, "DisableDevice", request, lambda answer: {}, who=name, token=token
        )


def _result(result: Any, reason: str = "") -> tuple[int, str, bool, str]:
    return micros(result.receive_time), result.profile_id, result.duplicate, reason


def _results(answer: Any) -> Entry:
    """What became of the events of a batch: each has a result or a reason."""
    return {"results": [_result(each.result, _reason(each.error.reason)) for each in answer.results]}


def _reason(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason).removeprefix("ERROR_REASON_") if reason else ""
