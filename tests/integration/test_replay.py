"""request_id: a write sent again, at once, late, or beside itself, has one effect and one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from onefold.config import Settings
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, TrackRequest
from onefold.v1.identity_service_pb2 import IdentifyRequest, UpdateProfileRequest
from support.client import Client, email, failure, read_failure, user
from support.probes import eventually, held, rows_of, waits_for_lock
from support.world import World

A, B = email("a@example.com"), email("b@example.com")
DEVICE = NewDevice(token="T", platform=PLATFORM_FCM, application_name="shop", data_fields_json='{"a":1}')
DAY = timedelta(hours=24)


@dataclass(frozen=True)
class Write:
    """A method with a request_id: a request that works, others that differ from it, and one that fails at first."""

    service: str
    method: str
    request: Message
    others: tuple[Message, ...]
    # It fails until the profile with user_id u1 is there and holds the token T; None where no call fails so.
    failing: Message | None
    # A table to which the request adds just this many rows.
    adds: tuple[str, int]

    def call(self, client: Client, request: Message, request_id: str, timeout: float | None = None) -> Awaitable[Any]:
        """Sends a request under an id."""
        named = type(request)()
        named.CopyFrom(request)
        named.request_id = request_id  # type: ignore[attr-defined]  # each of these requests has one
        answer: Awaitable[Any] = getattr(getattr(client, self.service), self.method)(named, timeout=timeout)
        return answer


WRITES = [
    Write(
        "identity",
        "UpdateProfile",
        UpdateProfileRequest(identifiers=A, data_fields_json='{"plan":"gold"}'),
        (
            UpdateProfileRequest(identifiers=B, data_fields_json='{"plan":"gold"}'),
            UpdateProfileRequest(identifiers=A, data_fields_json='{"plan":"tin"}'),
            UpdateProfileRequest(identifiers=A, data_fields_json='{"plan":"gold"}', merge_nested_objects=True),
            UpdateProfileRequest(identifiers=A),
        ),
        UpdateProfileRequest(identifiers=user("u1"), data_fields_json='{"plan":"gold"}'),
        ("profiles", 1),
    ),
    Write(
        "identity",
        "Identify",
        IdentifyRequest(identifiers=A, anonymous_id="x"),
        (IdentifyRequest(identifiers=B, anonymous_id="x"), IdentifyRequest(identifiers=A, anonymous_id="y")),
        IdentifyRequest(identifiers=user("u1"), anonymous_id="x"),
        ("merges", 1),
    ),
    Write(
        "events",
        "Track",
        TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed", data_json='{"a":1}')),
        (
            TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed", data_json='{"a":2}')),
            TrackRequest(event=NewEvent(anonymous_id="y", name="Viewed", data_json='{"a":1}')),
        ),
        TrackRequest(event=NewEvent(identifiers=user("u1"), name="Viewed")),
        ("anonymous_events", 1),
    ),
    Write(
        "events",
        "BatchTrack",
        # One that is stored, one that is refused, one that is a duplicate: the stored answer has all three.
        BatchTrackRequest(
            events=[
                NewEvent(anonymous_id="x", name="Viewed", event_id="e1"),
                NewEvent(identifiers=user("nobody"), name="Viewed"),
                NewEvent(anonymous_id="x", name="Viewed", event_id="e1"),
                NewEvent(name="Viewed"),
            ]
        ),
        (
            BatchTrackRequest(events=[NewEvent(anonymous_id="x", name="Viewed", event_id="e1")]),
            BatchTrackRequest(),
        ),
        None,
        ("anonymous_events", 1),
    ),
    Write(
        "devices",
        "RegisterDevice",
        RegisterDeviceRequest(identifiers=A, device=DEVICE),
        (
            RegisterDeviceRequest(identifiers=B, device=DEVICE),
            RegisterDeviceRequest(
                identifiers=A, device=NewDevice(token="T2", platform=PLATFORM_FCM, application_name="shop")
            ),
        ),
        RegisterDeviceRequest(identifiers=user("u1"), device=DEVICE),
        ("profiles", 1),
    ),
    Write(
        "devices",
        "DisableDevice",
        DisableDeviceRequest(token="held"),
        (DisableDeviceRequest(token="held2"), DisableDeviceRequest(token="held", identifiers=user("holder"))),
        DisableDeviceRequest(token="T"),
        ("token_disables", 1),
    ),
]

each_write = pytest.mark.parametrize("write", WRITES, ids=lambda write: write.method)


@pytest.fixture
async def client(email_project: Client) -> Client:
    """A project in which somebody holds the tokens "held" and "held2"."""
    for token in ("held", "held2"):
        await email_project.devices.RegisterDevice(
            RegisterDeviceRequest(
                identifiers=user("holder"),
                prefer_user_id=True,
                device=NewDevice(token=token, platform=PLATFORM_FCM, application_name="shop"),
            )
        )
    return email_project


def assert_replay(answer: Any, first: Any) -> None:
    """The answer is the stored one, field for field, and says so."""
    assert answer.replayed
    assert not first.replayed
    answer.replayed = False
    assert answer == first


@each_write
async def test_again(client: Client, world: World, write: Write) -> None:
    """X1, F3: the same call again, however often, gives the same answer marked as replayed, and changes no row."""
    first = await write.call(client, write.request, "r1")
    after_first = await rows_of(world, client.project_id)
    for _ in range(3):
        assert_replay(await write.call(client, write.request, "r1"), first)
    assert await rows_of(world, client.project_id) == after_first


@each_write
async def test_again_after_the_world_moved_on(client: Client, world: World, write: Write) -> None:
    """X1: the answer is the one of that time, and undoes nothing that happened since."""
    first = await write.call(client, write.request, "r1")
    for number, other in enumerate(write.others):
        await write.call(client, other, f"later-{number}")
    await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=A, data_fields_json='{"plan":"lead"}'))
    await client.identity.Identify(IdentifyRequest(identifiers=B, anonymous_id="z"))
    await world.settle(client.project_id)
    before = await rows_of(world, client.project_id)
    assert_replay(await write.call(client, write.request, "r1"), first)
    assert await rows_of(world, client.project_id) == before


@each_write
async def test_at_once(client: Client, world: World, write: Write) -> None:
    """X1: of eight equal calls at one time one has the effect, and all have its answer."""
    table, added = write.adds
    before = len((await rows_of(world, client.project_id))[table])
    answers = await asyncio.gather(*(write.call(client, write.request, "r1") for _ in range(8)))
    firsts = [answer for answer in answers if not answer.replayed]
    assert len(firsts) == 1
    for answer in answers:
        if answer is not firsts[0]:
            assert_replay(answer, firsts[0])
    assert len((await rows_of(world, client.project_id))[table]) == before + added


@each_write
async def test_another_body(client: Client, world: World, write: Write) -> None:
    """X1: the same id with another body, or for another method, is refused, names the id and does nothing."""
    first = await write.call(client, write.request, "r1")
    before = await rows_of(world, client.project_id)
    tried = [(write, other) for other in write.others]
    tried += [(other, other.request) for other in WRITES if other is not write]
    for of, request in tried:
        refused = await failure(of.call(client, request, "r1"))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
        assert refused.metadata == {"request_id": "r1"}
    assert await rows_of(world, client.project_id) == before
    assert_replay(await write.call(client, write.request, "r1"), first)


@each_write
async def test_another_body_at_once(client: Client, write: Write) -> None:
    """X1: of two bodies under one id at one time, one is done and the other refused."""
    calls: list[Awaitable[Any]] = []
    for _ in range(3):
        calls += [write.call(client, write.request, "r1"), write.call(client, write.others[-1], "r1")]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    won = 0 if isinstance(answers[0], Message) else 1
    assert all(isinstance(answer, Message) for answer in answers[won::2])
    for answer in answers[1 - won :: 2]:
        assert isinstance(answer, grpc.aio.AioRpcError)
        assert read_failure(answer).reason == "REQUEST_ID_REUSED"


@each_write
async def test_for_24_hours(client: Client, world: World, write: Write) -> None:
    """X1: a minute before 24 hours the answer is still the stored one; then the id is new, also for another body."""
    first = await write.call(client, write.request, "r1")
    await write.call(client, write.request, "r2")
    await world.pass_time(client.project_id, DAY - timedelta(minutes=1))
    assert_replay(await write.call(client, write.request, "r1"), first)
    await world.pass_time(client.project_id, timedelta(minutes=1))
    assert not (await write.call(client, write.request, "r1")).replayed
    assert (await write.call(client, write.request, "r1")).replayed
    other = next(other for other in WRITES if other is not write)
    assert not (await other.call(client, other.request, "r2")).replayed


@pytest.mark.parametrize("write", [write for write in WRITES if write.failing], ids=lambda write: write.method)
async def test_a_failure_is_not_kept(client: Client, world: World, write: Write) -> None:
    """X1, X2: a call that failed left no row, and the same request_id is tried anew once the reason is gone."""
    assert write.failing is not None
    before = await rows_of(world, client.project_id)
    refused = await failure(write.call(client, write.failing, "r1"))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert await rows_of(world, client.project_id) == before

    named = RegisterDeviceRequest(identifiers=user("u1"), device=DEVICE, prefer_user_id=True)
    await client.devices.RegisterDevice(named)
    answer = await write.call(client, write.failing, "r1")
    assert not answer.replayed
    assert_replay(await write.call(client, write.failing, "r1"), answer)


@each_write
async def test_no_id(client: Client, write: Write) -> None:
    """X1: without a request_id nothing is remembered: the call is done again."""
    for _ in range(2):
        assert not (await write.call(client, write.request, "")).replayed


@each_write
@pytest.mark.parametrize("request_id", ["r" * 129, "a\nb", "nul\0", " r", "r "])
async def test_a_bad_id(client: Client, world: World, write: Write, request_id: str) -> None:
    """X2, X5: a request_id is 1 to 128 printable characters without surrounding space."""
    before = await rows_of(world, client.project_id)
    refused = await failure(write.call(client, write.request, request_id))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
    assert refused.fields == ["request_id"]
    assert await rows_of(world, client.project_id) == before


async def test_ids_are_the_projects_own(client: Client, user_id_project: Client) -> None:
    """X1, P6: two projects may use one request_id for different things."""
    await client.events.Track(TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed"), request_id="r1"))
    answer = await user_id_project.identity.UpdateProfile(UpdateProfileRequest(identifiers=user("u1"), request_id="r1"))
    assert not answer.replayed


async def test_the_longest_id(client: Client) -> None:
    """X5: 128 characters are good, whatever their bytes."""
    write = WRITES[0]
    first = await write.call(client, write.request, "ü" * 128)
    assert_replay(await write.call(client, write.request, "ü" * 128), first)


# --- deadlines --------------------------------------------------------------------------------------------------------


def _lock_profile(client: Client) -> tuple[str, tuple[object, ...]]:
    return ("SELECT FROM profiles WHERE project_id = $1 FOR UPDATE", (client.project_id,))


def _lock_linked(client: Client) -> tuple[str, tuple[object, ...]]:
    return (
        """
        INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive, merge_id, link_time, grace_end_time)
        VALUES ($1, 3, 'x', uuidv7(), true, uuidv7(), now(), now())
        """,
        (client.project_id,),
    )


def _lock_event_id(client: Client) -> tuple[str, tuple[object, ...]]:
    return (
        "INSERT INTO event_ids (project_id, event_id, body_hash, receive_time) VALUES ($1, 'e1', '', now())",
        (client.project_id,),
    )


def _lock_disables(client: Client) -> tuple[str, tuple[object, ...]]:
    return ("LOCK TABLE token_disables IN EXCLUSIVE MODE", ())


EVENT = NewEvent(anonymous_id="x", name="Viewed", event_id="e1")
QUEUED: list[tuple[Write, Message, Callable[[Client], tuple[str, tuple[object, ...]]]]] = [
    (WRITES[0], UpdateProfileRequest(identifiers=user("holder"), data_fields_json='{"a":1}'), _lock_profile),
    (WRITES[1], IdentifyRequest(identifiers=A, anonymous_id="x"), _lock_linked),
    (WRITES[2], TrackRequest(event=EVENT), _lock_event_id),
    (WRITES[3], BatchTrackRequest(events=[EVENT, NewEvent(anonymous_id="y", name="Viewed")]), _lock_event_id),
    (WRITES[4], RegisterDeviceRequest(identifiers=user("holder"), device=DEVICE), _lock_profile),
    (WRITES[5], DisableDeviceRequest(token="held"), _lock_disables),
]


@pytest.mark.parametrize(("write", "request_body", "lock"), QUEUED, ids=lambda value: getattr(value, "method", ""))
@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_given_up_while_queued(
    client: Client,
    world: World,
    settings: Settings,
    write: Write,
    request_body: Message,
    lock: Callable[[Client], tuple[str, tuple[object, ...]]],
    how: str,
) -> None:
    """F21: a call given up while it waited for a lock has no effect, not later either; its retry has just one."""
    before = await rows_of(world, client.project_id)
    async with held(settings.database_url, lock(client)) as other:
        call: Any = write.call(client, request_body, "r1", timeout=0.3 if how == "deadline" else 10.0)
        if how == "cancel":
            await waits_for_lock(world)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            late = await failure(call)
            assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
        # The server has let go of it, too: nobody waits for the lock any more.
        await eventually(lambda: _nobody_waits(world))
        assert await rows_of(world, client.project_id) == before
        await other.rollback()
    first = await write.call(client, request_body, "r1")
    assert not first.replayed
    assert_replay(await write.call(client, request_body, "r1"), first)


async def _nobody_waits(world: World) -> bool:
    waiting: int = await world.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'onefold server' AND (wait_event_type = 'Lock' OR state LIKE 'idle in transaction%')"
    )
    return waiting == 0


@pytest.fixture
async def slow_commit(world: World, settings: Settings) -> Any:
    """While entered, the COMMIT of a transaction that stored the request_id "slow" waits."""
    await world.fetch(
        """
        CREATE FUNCTION wait_in_commit() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NULL; END $$
        """
    )
    await world.fetch(
        """
        CREATE CONSTRAINT TRIGGER wait_in_commit AFTER INSERT ON requests DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (new.request_id = 'slow') EXECUTE FUNCTION wait_in_commit()
        """
    )
    yield lambda: held(settings.database_url, ("SELECT pg_advisory_xact_lock(4711)", ()))
    await world.fetch("DROP TRIGGER wait_in_commit ON requests")
    await world.fetch("DROP FUNCTION wait_in_commit")


@each_write
@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_given_up_during_the_commit(
    client: Client, world: World, slow_commit: Any, write: Write, how: str
) -> None:
    """F20, F14: a call given up while it was being committed has its whole effect; the retry gives its answer."""
    before = await rows_of(world, client.project_id)
    async with slow_commit() as other:
        call: Any = write.call(client, write.request, "slow", timeout=0.3 if how == "deadline" else 10.0)
        await waits_for_lock(world)
        if how == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        else:
            late = await failure(call)
            assert late.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await rows_of(world, client.project_id) == before
        await other.rollback()

    async def stored() -> bool:
        return bool((await rows_of(world, client.project_id))["requests"])

    await eventually(stored)
    after = await rows_of(world, client.project_id)
    table, added = write.adds
    assert len(after[table]) == len(before[table]) + added
    assert (await write.call(client, write.request, "slow")).replayed
    assert await rows_of(world, client.project_id) == after
