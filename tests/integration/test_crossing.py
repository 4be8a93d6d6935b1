"""One project and another: every method of the API, asked with one project's key about another project's things."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

import grpc
import pytest

from conftest import MakeProject
from onefold import failpoints
from onefold.callers import Caller
from onefold.db.pool import Database
from onefold.errors import Kind, OnefoldError, Reason
from onefold.limits import STREAM_KEY_CHECK_SECONDS
from onefold.projects.keys import CACHE_SECONDS, Authenticator
from onefold.v1.identity_service_pb2 import UpdateProfileRequest
from onefold.v1.options_pb2 import SCOPE_READ
from onefold.v1.project_pb2 import IdentifierType
from onefold.v1.projects_service_pb2 import (
    CreateApiKeyRequest,
    CreateProjectRequest,
    RevokeApiKeyRequest,
    UpdateProjectRequest,
)
from support.client import Client
from support.methods import METHODS, REQUESTS, Names, Outcome, build, plain, send
from support.owners import MINE, made_up, owner_of
from support.probes import eventually, rows_of
from support.world import World

OK = grpc.StatusCode.OK
NOT_FOUND = grpc.StatusCode.NOT_FOUND
CASES = [(path, index) for path, builds in REQUESTS.items() for index in range(len(builds))]
# What names one thing that is not there, and makes none of it in any type of project.
MISSING = {
    "IdentityService/GetProfile",
    "DevicesService/ListDevices",
    "DevicesService/GetDisable",
    "IdentityService/GetMerge",
    "IdentityService/UndoMerge",
    "IdentityService/DeleteProfile",
    "ActivationService/UpdateCriterion",
    "ActivationService/DeleteCriterion",
    "ProjectsService/RevokeApiKey",
    ("DevicesService/DisableDevice", 0),
    ("DevicesService/DisableDevice", 1),
    ("EventsService/ListEvents", 0),
    ("EventsService/ListEvents", 1),
    ("IdentityService/ListMerges", 1),
    ("EventsService/ListActivity", 0),
    ("EventsService/ListActivity", 1),
    ("IdentityService/PreviewMerge", 0),
    ("IdentityService/MergeProfiles", 0),
}
# Projects share one space of ids, and whoever may make one is told that an id is taken.
GLOBAL = "ProjectsService/CreateProject"


async def stranger_to(owner: Client, project_type: str) -> Client:
    """Another project, in which there is one person."""
    made = await owner.projects.CreateProject(
        CreateProjectRequest(
            project_id=f"s{uuid.uuid4().hex[:16]}",
            identifier_type=IdentifierType.Value(f"IDENTIFIER_TYPE_{project_type}"),
        )
    )
    stranger = Client(owner.channel, made.project.project_id, made.api_key)
    await stranger.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=True))
    await stranger.identity.UpdateProfile(UpdateProfileRequest(identifiers=MINE, prefer_user_id=True))
    return stranger


def test_no_method_is_left_out() -> None:
    """F73: every method that the descriptors know has a request in the table."""
    assert METHODS.keys() == REQUESTS.keys()


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_another_projects_things_look_like_missing_ones(
    make_project: MakeProject, world: World, project_type: str
) -> None:
    """F73, P6: every method, asked with another project's key about this project's things, answers byte for byte as
    about things that nobody has, and no row of this project is read out or touched."""
    owner = await owner_of(await make_project(project_type))
    theirs, missing = owner.names, replace(made_up("nobodys"), word=owner.names.word)
    # A stored answer is the caller's own too: the same request_id with the same body finds nothing here.
    missing = replace(missing, request_id=f"{theirs.request_id}-2")
    before = await rows_of(world, owner.client.project_id, with_writers=True)
    stored = str(before)
    ids = (theirs.profile_id, theirs.merge_id, theirs.disable_id, theirs.criterion_id, theirs.key_id, theirs.request_id)
    assert [each for each in (*ids, theirs.recipient, theirs.anonymous_id, theirs.token) if each not in stored] == []
    assert all(
        before[table] for table in ("profiles", "events", "devices", "merges", "criteria", "requests", "triggers")
    )

    async def ask(path: str, index: int, names: Names) -> tuple[Outcome, str]:
        # A project for each question, so that none finds what another one has made.
        stranger = await stranger_to(owner.client, project_type)
        outcome = await send(stranger.channel, path, stranger.key, build(path, index, names))
        told = "\n".join(plain(message, names) for message in outcome.messages)
        for own in (stranger.project_id, stranger.key.split("_")[2]):
            told = told.replace(own, "own")
        return outcome, told

    found_all = await asyncio.gather(*(ask(*case, theirs) for case in CASES))
    wanted_all = await asyncio.gather(*(ask(*case, missing) for case in CASES))
    for case, (found, found_text), (wanted, wanted_text) in zip(CASES, found_all, wanted_all, strict=True):
        if case[0] == GLOBAL:
            assert (found.code, wanted.code) == (grpc.StatusCode.ALREADY_EXISTS, OK)
            continue
        assert (found.code, found.details, found.trailers) == (wanted.code, wanted.details, wanted.trailers), case
        assert found_text == wanted_text, case
        if case[0] in MISSING or case in MISSING:
            assert found.code is NOT_FOUND, case
        for message in found.messages:
            assert not getattr(message, "replayed", False), case
            assert theirs.profile_id not in str(message), case
            assert owner.client.project_id not in str(message), case
    assert await rows_of(world, owner.client.project_id, with_writers=True) == before


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "API_KEY_MISSING"), ("", "API_KEY_MISSING"), ("made-up", "API_KEY_INVALID")]
)
async def test_no_method_lets_anybody_in_without_a_good_key(
    email_project: Client, world: World, key: str | None, reason: str
) -> None:
    """P6, X2: every method, asked sensibly, is UNAUTHENTICATED without a key or with one that is not known, and nothing
    is written."""
    before = await rows_of(world, email_project.project_id, with_writers=True)
    names = made_up("anybody")
    for path, index in CASES:
        outcome = await send(email_project.channel, path, key, build(path, index, names))
        assert outcome.code is grpc.StatusCode.UNAUTHENTICATED, path
        assert reason in str(outcome.trailers), path
    assert await rows_of(world, email_project.project_id, with_writers=True) == before


async def test_a_revoked_key_ends_on_other_servers_too(email_project: Client, database: Database) -> None:
    """F74: 30 s after another server took its revocation, a server that has let a key in does so no more, though it was
    told nothing."""
    made = await email_project.projects.CreateApiKey(CreateApiKeyRequest(scopes=[SCOPE_READ]))
    now = 1_000.0
    other_server = Authenticator(database, b"secret", clock=lambda: now)
    assert (await other_server(made.secret_text)).project.project_id == email_project.project_id
    await email_project.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=made.api_key.key_id))
    now += 30.0
    with pytest.raises(OnefoldError) as refused:
        await other_server(made.secret_text)
    assert (refused.value.kind, refused.value.reason) == (Kind.UNAUTHENTICATED, Reason.API_KEY_INVALID)
    # An open stream asks again this often, and may then be told what was remembered just before.
    assert CACHE_SECONDS + STREAM_KEY_CHECK_SECONDS <= 30.0


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], asyncio.Event]]:
    """The look-ups of keys that have begun, each of which waits until the event is set."""
    begun: list[str] = []
    go_on = asyncio.Event()

    async def come_by(place: str, _connection: object) -> None:
        if place == "find_api_key":
            begun.append(place)
            await go_on.wait()

    monkeypatch.setattr(failpoints, "hook", come_by)
    yield begun, go_on
    go_on.set()


async def test_calls_at_the_same_time_share_the_look_up_of_their_key(
    email_project: Client, database: Database, looked_up: tuple[list[str], asyncio.Event]
) -> None:
    """F16: a hundred calls with a key that is not remembered look it up once, and the one that began it may go away."""
    begun, go_on = looked_up
    authenticator = Authenticator(database, b"secret")
    calls = [asyncio.create_task(authenticator(email_project.key)) for _ in range(100)]
    await eventually(lambda: true_of(begun))
    calls[0].cancel()
    go_on.set()
    callers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(callers[0], asyncio.CancelledError)
    assert {caller.project.project_id for caller in callers[1:] if isinstance(caller, Caller)} == {
        email_project.project_id
    }
    assert len(begun) == 1


async def test_a_look_up_that_meets_a_change_is_not_remembered(
    email_project: Client, database: Database, looked_up: tuple[list[str], asyncio.Event]
) -> None:
    """F74: what was read of a key while its project changed may be what was there before: the next call reads again."""
    begun, go_on = looked_up
    authenticator = Authenticator(database, b"secret")
    early = asyncio.create_task(authenticator(email_project.key))
    await eventually(lambda: true_of(begun))
    authenticator.forget(email_project.project_id)
    late = asyncio.create_task(authenticator(email_project.key))
    await eventually(lambda: true_of(begun[1:]))
    go_on.set()
    await asyncio.gather(early, late)
    await authenticator(email_project.key)
    # The late one's is remembered.
    assert len(begun) == 2


async def true_of(things: Sequence[object]) -> bool:
    """Whether there are any."""
    return bool(things)
