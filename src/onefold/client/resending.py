"""What streams that begin again have in common: when to, how long to wait, and what is still to be acknowledged."""

from __future__ import annotations

import random
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from onefold.client.errors import CallError, ResourceExhaustedError, UnknownOutcomeError
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackStreamRequest, TrackStreamResponse

# As many as the server has waiting; more would only lie in memory twice.
WINDOW_BATCHES: Final = 4
GIVE_UP_SECONDS: Final = 60.0
_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 5.0


@dataclass
class Retry:
    """How long to wait before a stream is begun again: longer each time, until it gets on or the time is over."""

    give_up_seconds: float
    _since: float = field(default_factory=time.monotonic)
    _wait: float = _FIRST_WAIT_SECONDS

    def got_on(self) -> None:
        """Something came: what was wrong is over."""
        self._since = time.monotonic()
        self._wait = _FIRST_WAIT_SECONDS

    def after(self, error: CallError) -> float:
        """Seconds to wait after an error. Raises it if beginning again would not help, or has not for too long."""
        passes = isinstance(error, UnknownOutcomeError) or (
            isinstance(error, ResourceExhaustedError) and error.retry_after_seconds is not None
        )
        if not passes or time.monotonic() - self._since > self.give_up_seconds:
            raise error
        wait, self._wait = self._wait, min(2 * self._wait, _LONGEST_WAIT_SECONDS)
        # Clients that lost one server should not come to the next one all at once.
        return max(error.retry_after_seconds or 0.0, wait) * random.uniform(0.5, 1.5)  # noqa: S311 - not for secrets


@dataclass
class Window:
    """The batches that were taken and are not acknowledged, the oldest first. They are what is sent again."""

    next_sequence: int
    batches: deque[TrackStreamRequest] = field(default_factory=deque)
    # The source has no more.
    ended: bool = False

    @property
    def is_full(self) -> bool:
        """Whether no further batch should be taken."""
        return len(self.batches) >= WINDOW_BATCHES

    @property
    def is_done(self) -> bool:
        """Whether everything is acknowledged and nothing more will come."""
        return self.ended and not self.batches

    def add(self, events: Sequence[NewEvent]) -> None:
        """Takes a batch. Its events get their ids now, so that they are the same however often it is sent."""
        request = TrackStreamRequest(sequence=self.next_sequence, events=events)
        for event in request.events:
            event.event_id = event.event_id or str(uuid.uuid4())
        self.batches.append(request)
        self.next_sequence += 1

    def after(self, sequence: int) -> TrackStreamRequest | None:
        """The first batch with a larger number, None if there is none yet."""
        return next((batch for batch in self.batches if batch.sequence > sequence), None)

    def acknowledge(self, answer: TrackStreamResponse) -> None:
        """A batch is committed, and so are all before it."""
        while self.batches and self.batches[0].sequence <= answer.sequence:
            self.batches.popleft()
