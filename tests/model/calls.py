"""Sending a request, and comparing its answer with the model's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from conftest import MakeProject
from model.entities import Event, Linked, Merge, Merged, Person, Refused, Undone, Wrote
from model.model import Model, is_placeholder
from model.reads import said
from onefold.failpoints import COMMITTED
from onefold.v1.error_reason_pb2 import ErrorReason
from support.client import Client, Failure, read_failure
from support.crashing import Place, crash_at
from support.traces import rows_of
from support.world import World

T = TypeVar("T")
# What a request, or an item of a batch, does to the model, given the answer to it; and how the two are compared.
Run = Callable[[Any], tuple[Any, ...]]
Check = Callable[..., None]

HOURS_24 = 86_400.0


@dataclass
class Surroundings:
    """What the machine acts upon: the loop of the server, and the tests' hands on it."""

    loop: asyncio.AbstractEventLoop
    make_project: MakeProject
    world: World
    example_count: int = 0
    step_count: int = 0
    crash_count: int = 0

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs work on the server's loop, and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


@dataclass
class Sent:
    """A request that was answered OK, how to judge it, and its answer: whom that tells about, until when it is kept."""

    request: Any
    check: Check
    runs: tuple[Run, ...]
    answer: Any
    subjects: set[str]
    end_time: float


@dataclass
class Calls:
    """The writes of one project."""

    around: Surroundings
    client: Client
    model: Model
    request_count: int = 0
    # Where the server ends that is sent the next write, if anywhere.
    crash: Place | None = None
    sent: dict[str, Sent] = field(default_factory=dict)

    def write(self, request: Any, check: Check, *runs: Run) -> None:
        """Sends a write, and compares its answer, or each of its results, with the model's.

        If the answer to its request_id is kept, it must be that one, and nothing may happen.
        """
        self.model.now += 0.001
        if not request.request_id:
            self.request_count += 1
            request.request_id = f"r{self.request_count}"
        sent = self.sent.get(request.request_id)
        answer = self.send(request) if sent is not None or self.crash is None else self.send_to_crashing(request)
        if sent is not None and self.model.now < sent.end_time:
            assert answer.replayed
            answer.replayed = False
            assert answer == sent.answer
            return
        for item, run in zip([answer] if len(runs) == 1 else answer.results, runs, strict=True):
            try:
                expected = run(item)
            except Refused as refused:
                assert reason_of(item) == str(refused), item
            else:
                assert not reason_of(item), item
                check(item, *expected)
        if not isinstance(answer, Failure):
            assert not answer.replayed
            told = str(answer)
            subjects = {person.profile_id for person in self.model.people if person.profile_id in told}
            end_time = self.model.now + HOURS_24
            self.sent[request.request_id] = Sent(request, check, runs, answer, subjects | visitors(request), end_time)

    def send_to_crashing(self, request: Any) -> Any:
        """Sends a write to a server that ends at a certain place, if it comes by there, and then again; the answer.

        The first answer is lost. If the server had committed, the second one is it; else nothing had happened.
        """
        place, self.crash = self.crash, None
        assert place is not None  # asked before
        project_id = self.client.project_id
        before = self.around.do(rows_of(self.around.world, project_id))
        with crash_at(place) as crash:
            answer = self.send(request)
        if not crash.place:
            return answer
        self.around.crash_count += 1
        is_committed = crash.place == COMMITTED
        assert reason_of(answer) == "SERVER_STOPPING"
        assert (self.around.do(rows_of(self.around.world, project_id)) == before) is not is_committed
        answer = self.send(request)
        if is_committed:
            assert answer.replayed
            answer.replayed = False
        return answer

    def send(self, request: Any) -> Any:
        """The answer of a call, or its Failure."""
        service = request.DESCRIPTOR.file.name.removeprefix("onefold/v1/").removesuffix("_service.proto")
        method = getattr(getattr(self.client, service), request.DESCRIPTOR.name.removesuffix("Request"))

        async def send() -> Any:
            try:
                return await method(request)
            except grpc.aio.AioRpcError as error:
                return read_failure(error)

        return self.around.do(send())

    # --- what an answer must tell ------------------------------------------------------------------------------------

    def written(self, answer: Any, person: Person, outcome: Wrote) -> None:
        """Of a call that writes a profile."""
        self._profile(answer.profile, person)
        assert answer.profile.outcome == outcome

    def visited(self, answer: Any, person: Person, outcome: Wrote, event: Event | None) -> None:
        """Of CreateUnknownProfile."""
        self.written(answer, person, outcome)
        if event is not None:
            event.event_id = person.profile_id
        assert (answer.is_unknown, answer.event_id) == (person.is_unknown, event.event_id if event else "")

    def identified(self, answer: Any, person: Person, outcome: Wrote, linked: Linked, link: Merge) -> None:
        """Of Identify."""
        self.written(answer, person, outcome)
        link.merge_id = link.merge_id or answer.link.merge_id
        standing = "" if linked is Linked.REFUSED_LINKED_ELSEWHERE else link.merge_id
        assert (answer.link.outcome, answer.link.merge_id) == (linked, standing)

    def tracked(self, answer: Any, event: Event | None, outcome: Wrote) -> None:
        """Of one event."""
        result = answer.result
        assert (result.duplicate, result.profile_outcome) == (event is None, outcome)
        if event is not None:
            owner = self.model.owner(event)
            if owner is not None:
                self._learn(owner, result.profile_id)
            assert result.profile_id == (owner.profile_id if owner else "")
            assert event.event_id in ("", result.event_id)
            event.event_id = result.event_id

    def merged(self, answer: Any, outcome: Merged, survivor: Person, merge: Merge | None) -> None:
        """Of MergeProfiles."""
        assert answer.outcome == outcome
        self._profile(answer.survivor, survivor)
        if merge is not None:
            merge.merge_id = answer.merge.merge_id

    def undone(self, answer: Any, outcome: Undone) -> None:
        """Of UndoMerge."""
        assert answer.outcome == outcome

    def deleted(self, answer: Any, person: Person, erased: set[str]) -> None:
        """Of DeleteProfile."""
        assert answer.profile_id == person.profile_id
        self._drop_answers(erased)

    def forgotten(self, answer: Any, existed: bool, count: int, erased: set[str]) -> None:
        """Of ForgetProfile."""
        assert (answer.profile_existed, len(answer.forgotten)) == (existed, count)
        self._drop_answers(erased)

    def unforgotten(self, answer: Any, count: int) -> None:
        """Of UnforgetProfile."""
        assert answer.unblocked_count == count

    def registered(self, answer: Any, person: Person, outcome: Wrote, device_outcome: Wrote) -> None:
        """Of RegisterDevice."""
        self.written(answer, person, outcome)
        assert answer.device_outcome == device_outcome

    def disabled(self, answer: Any, outcome: Wrote) -> None:
        """Of DisableDevice."""
        assert answer.outcome == outcome

    def _profile(self, profile: Any, person: Person) -> None:
        self._learn(person, profile.profile_id)
        assert (profile.profile_id, profile.identifiers) == (person.profile_id, said(person.names))
        assert profile.email_is_placeholder == is_placeholder(person.names.get("email", ""))

    def _learn(self, person: Person, profile_id: str) -> None:
        """A new person's id is nobody else's, and stays."""
        if not person.profile_id:
            assert profile_id not in {"", *(each.profile_id for each in self.model.people)}
            person.profile_id = profile_id

    def _drop_answers(self, erased: set[str]) -> None:
        """F43: the kept answers that tell of somebody go with them."""
        for sent in self.sent.values():
            if sent.subjects & erased:
                sent.end_time = 0.0


def reason_of(answer: Any) -> str:
    """Why a call, or an item of a batch, was refused; "" if it was not."""
    if isinstance(answer, Failure):
        return answer.reason
    if "error" in answer.DESCRIPTOR.fields_by_name and answer.HasField("error"):
        return ErrorReason.Name(answer.error.reason).removeprefix("ERROR_REASON_")
    return ""


def visitors(request: Any) -> set[str]:
    """The anonymous ids that a request tells about without a person."""
    events = [request.event] if request.DESCRIPTOR.name == "TrackRequest" else getattr(request, "events", [])
    return {event.anonymous_id for event in events if not event.HasField("identifiers")}
