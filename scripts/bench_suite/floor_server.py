"""`onefold serve` with a Track that answers a constant: the floor of the figures about Track.

Everything around the handler is the product's own: gRPC with its options, the boundary with key, scope, deadline and
decoding, the same method with the same messages. A process of its own, so that the measured server is the product as it
is, and the product has no call that only a benchmark wants.
"""

from __future__ import annotations

from typing import Any

from onefold.cli import main
from onefold.clock import EARLIEST
from onefold.events.service import EventsService
from onefold.rpc.checks import to_timestamp
from onefold.v1.event_pb2 import TrackResult
from onefold.v1.events_service_pb2 import TrackRequest, TrackResponse
from onefold.v1.profile_pb2 import WRITE_OUTCOME_UNCHANGED

_UUID = "0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11"
# Of the size of a real answer.
_ANSWER = TrackResponse(
    result=TrackResult(
        event_id=_UUID, receive_time=to_timestamp(EARLIEST), profile_outcome=WRITE_OUTCOME_UNCHANGED, profile_id=_UUID
    )
)


async def track(self: EventsService, request: TrackRequest, context: Any) -> TrackResponse:
    return _ANSWER


if __name__ == "__main__":
    EventsService.Track = track  # type: ignore[method-assign]
    main()
