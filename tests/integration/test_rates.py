"""Limits of calls and events a second, by project."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.callers import Caller, IdentifierType, Project, ProjectSettings, Region, Scope
from onefold.errors import OnefoldError, Reason
from onefold.rpc.rates import Rates
from onefold.server import EVENT_COUNTS, FILES
from onefold.v1.activation_service_pb2 import ReplayItem, ReplayRequest, ReplayUpdate
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, TrackRequest, TrackStreamRequest
from onefold.v1.identity_service_pb2 import GetProfileRequest
from onefold.v1.projects_service_pb2 import GetProjectRequest, UpdateProjectRequest
from support.client import Client, failure, read_failure, user
from support.probes import eventually
from support.world import World

TRACK, BATCH = "/onefold.v1.EventsService/Track", "/onefold.v1.EventsService/BatchTrack"
STREAM, REPLAY = "/onefold.v1.EventsService/TrackStream", "/onefold.v1.ActivationService/Replay"
EVENT = NewEvent(anonymous_id="x", name="Viewed")


async def limited(project: Client, **limits: int) -> None:
    """Sets limits of a project."""
    answer = await project.projects.UpdateProject(UpdateProjectRequest(**limits))  # type: ignore[arg-type]
    assert {name: getattr(answer.project, name) for name in limits} == limits


async def test_a_project_begins_without_limits(hybrid_project: Client) -> None:
    """X5: limits are 0 until they are set, keep when other settings change, and are 0 again when told so."""
    read = hybrid_project.projects.GetProject
    project = (await read(GetProjectRequest())).project
    assert (project.max_calls_per_second, project.max_events_per_second) == (0, 0)
    await limited(hybrid_project, max_calls_per_second=1_000_000, max_events_per_second=7)
    await hybrid_project.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=True))
    project = (await read(GetProjectRequest())).project
    assert (project.max_calls_per_second, project.max_events_per_second) == (1_000_000, 7)
    await limited(hybrid_project, max_calls_per_second=0, max_events_per_second=0)


@pytest.mark.parametrize("value", [-1, 1_000_001, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("field", ["max_calls_per_second", "max_events_per_second"])
async def test_a_limit_that_cannot_be(hybrid_project: Client, field: str, value: int) -> None:
    """X2, X5: a limit below 0 or over 1,000,000 is refused by its field."""
    told = await failure(hybrid_project.projects.UpdateProject(UpdateProjectRequest(**{field: value})))  # type: ignore[arg-type]
    assert (told.code, told.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_call_too_many_is_refused(hybrid_project: Client, make_project: MakeProject, world: World) -> None:
    """X2, X5: calls beyond the limit are RESOURCE_EXHAUSTED / RATE_LIMITED with the time to wait and leave nothing
    behind; another project is not touched, and ADMIN calls lift the limit."""
    await limited(hybrid_project, max_calls_per_second=1)
    other = await make_project("HYBRID")
    calls = [hybrid_project.events.Track(TrackRequest(event=EVENT)) for _ in range(50)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert len(await asyncio.gather(*(other.events.Track(TrackRequest(event=EVENT)) for _ in range(50)))) == 50
    refused = [read_failure(error) for error in done if isinstance(error, grpc.aio.AioRpcError)]
    assert refused
    for told in refused:
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert told.metadata == {"limit": "calls", "per_second": "1"}
        assert told.retry_seconds is not None
        assert 0 < told.retry_seconds <= 1
    stored = await world.value("SELECT count(*) FROM anonymous_events WHERE project_id = $1", hybrid_project.project_id)
    assert stored == 50 - len(refused)
    await limited(hybrid_project, max_calls_per_second=0)
    await asyncio.gather(*(hybrid_project.events.Track(TrackRequest(event=EVENT)) for _ in range(50)))


async def test_the_events_of_a_batch_count(hybrid_project: Client) -> None:
    """X5: a batch larger than the limit is taken once, then all events wait for it, while calls without any go on."""
    await limited(hybrid_project, max_events_per_second=2)
    assert len(await hybrid_project.batch([EVENT] * 1_000)) == 1_000
    for request in (
        hybrid_project.events.Track(TrackRequest(event=EVENT)),
        hybrid_project.events.BatchTrack(BatchTrackRequest(events=[EVENT])),
        hybrid_project.activation.Replay(ReplayRequest(identifiers=user("u"), items=[ReplayItem(event=EVENT)])),
    ):
        told = await failure(request)
        assert (told.reason, told.metadata) == ("RATE_LIMITED", {"limit": "events", "per_second": "2"})
        assert told.retry_seconds is not None
        assert told.retry_seconds > 60
    told = await failure(hybrid_project.identity.GetProfile(GetProfileRequest(identifiers=user("u"))))
    assert told.reason == "PROFILE_NOT_FOUND"


async def test_a_stream_is_read_more_slowly(hybrid_project: Client) -> None:
    """E4, X5: TrackStream is not refused for its events: while they are over the limit, it takes no more of them."""
    await limited(hybrid_project, max_events_per_second=1)

    async def batches() -> AsyncIterator[TrackStreamRequest]:
        for sequence in (1, 2):
            yield TrackStreamRequest(sequence=sequence, events=[EVENT] * 500)

    call: Any = hybrid_project.events.TrackStream(batches())
    assert (await call.read()).sequence == 1
    second = asyncio.ensure_future(call.read())
    told = await failure(hybrid_project.events.Track(TrackRequest(event=EVENT)))
    assert told.reason == "RATE_LIMITED"
    assert not second.done()
    call.cancel()

    async def ended() -> bool:
        return bool(second.done())

    await eventually(ended)


def caller_of(project_id: str, **limits: int) -> Caller:
    """A caller of a project with limits."""
    settings = ProjectSettings(**limits)  # type: ignore[arg-type]
    now = datetime.now(UTC)
    return Caller(Project(project_id, IdentifierType.EMAIL, Region.US, settings, now, now), "key", frozenset(Scope))


@pytest.mark.parametrize(
    ("method", "request_", "count"),
    [
        (TRACK, TrackRequest(event=EVENT), 1),
        (BATCH, BatchTrackRequest(events=[EVENT] * 7), 7),
        (STREAM, TrackStreamRequest(events=[EVENT] * 5), 5),
        (REPLAY, ReplayRequest(items=[ReplayItem(event=EVENT)] * 3 + [ReplayItem(update=ReplayUpdate())]), 3),
    ],
)
def test_what_a_request_counts_as(method: str, request_: Any, count: int) -> None:
    """X5: every method that brings events counts them, and the limit is told when one more would pass it."""
    now = 0.0
    rates, caller = Rates(EVENT_COUNTS, clock=lambda: now), caller_of("shop", max_events_per_second=2 * count)
    for _ in range(2):
        rates.admit(caller, Scope.WRITE, method, request_)
    with pytest.raises(OnefoldError) as raised:
        rates.admit(caller, Scope.WRITE, method, request_)
    assert raised.value.reason is Reason.RATE_LIMITED
    assert raised.value.retry_after_seconds == pytest.approx(0.5)
    rates.admit(caller, Scope.ADMIN, method, request_)
    rates.admit(caller_of("other", max_events_per_second=count), Scope.WRITE, method, request_)
    now += 0.51
    rates.admit(caller, Scope.WRITE, method, request_)


def test_every_method_that_takes_events_is_counted() -> None:
    """X5: no WRITE method whose request holds events is left out of the counting."""
    found = set()
    for service in (service for file in FILES for service in file.services_by_name.values()):
        for method in service.methods:
            below = [field.message_type for field in method.input_type.fields if field.message_type]
            inner = [field.message_type for message in below for field in message.fields if field.message_type]
            holds = any(message.full_name == "onefold.v1.NewEvent" for message in [*below, *inner])
            if holds and method.GetOptions().idempotency_level != method.GetOptions().NO_SIDE_EFFECTS:
                found.add(f"/{service.full_name}/{method.name}")
    assert found == set(EVENT_COUNTS)
