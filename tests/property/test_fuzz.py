"""Every method, sent what nobody should send: the answer is always one that is published, and tells nobody's data.

ONEFOLD_FUZZ_EXAMPLES makes it look further.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

from conftest import MakeProject
from onefold.config import Settings
from onefold.projects.bootstrap import ensure_project
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import RegisterDeviceRequest
from onefold.v1.error_reason_pb2 import ErrorReason
from onefold.v1.identity_service_pb2 import UnforgetProfileRequest, UpdateProfileRequest
from onefold.v1.item_error_pb2 import ItemError
from support.client import Client
from support.hostile import requests
from support.methods import METHODS, Outcome, build, send
from support.owners import Owner, owner_of
from support.traces import keys_with

NOTHING_HAPPENED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# These leave little behind for the next request to meet: each has a project of its own, and its person is put back.
TAKE_AWAY = {
    "IdentityService/MergeProfiles",
    "IdentityService/UpdateEmail",
    "IdentityService/UpdateUserId",
    "IdentityService/UndoMerge",
    "IdentityService/DeleteProfile",
    "IdentityService/ForgetProfile",
    "ActivationService/DeleteCriterion",
    "ProjectsService/UpdateProject",
}
PUT_BACK = "IdentityService/UpdateProfile"
# What names a person or a visitor.
PRIVATE = ["email", "user_id", "session_id", "anonymous_id", "token", "recipient"]
# Values that are stored and never sent by the fuzzer: whoever tells one read it from a table.
CANARIES = ["canary-of-ours", "canary-of-theirs"]


async def planted(client: Client, word: str, canary: str) -> Owner:
    """A project with one of everything, and a canary in all that can be told of its person."""
    owner = await owner_of(client, word)
    data = f'{{"note":"{canary}"}}'
    await client.identity.UpdateProfile(
        UpdateProfileRequest(identifiers=owner.names.both, data_fields_json=data, prefer_user_id=True)
    )
    await client.track(identifiers=owner.names.who, name=canary, data_json=data)
    await client.track(anonymous_id=owner.names.anonymous_id, name=canary, data_json=data)
    device = NewDevice(token=f"{word}-token-2", platform=PLATFORM_FCM, application_name=canary, data_fields_json=data)
    await client.devices.RegisterDevice(RegisterDeviceRequest(identifiers=owner.names.who, device=device))
    return owner


@dataclass(frozen=True)
class Targets:
    """Whom the requests are about: a project that takes them, and another one that must not be told of."""

    ours: Owner
    theirs: Owner


@pytest_asyncio.fixture(scope="module")
async def shared(settings: Settings, channel: grpc.aio.Channel) -> Targets:
    """Two projects for all methods that take nothing away."""
    made = []
    for word, canary in zip(("ours", "theirs"), CANARIES, strict=True):
        project_id = f"fuzz-{word}"
        key = await ensure_project(settings.database_url, project_id=project_id, identifier_type="HYBRID", api_key=None)
        made.append(await planted(Client(channel, project_id, key), word, canary))
    return Targets(*made)


@pytest.mark.parametrize("path", METHODS)
async def test_whatever_is_sent_the_answer_is_a_published_one(
    shared: Targets,
    make_project: MakeProject,
    settings: Settings,
    capfd: pytest.CaptureFixture[str],
    path: str,
) -> None:
    """X2, F64, F65, F66, F67, F68, F69, F73: a method answers OK or that nothing happened, with one ErrorInfo and a
    published reason, whatever bytes it is sent; what is stored of people is in no error, no log and not in Valkey."""
    ours = shared.ours
    if path in TAKE_AWAY:
        ours = await planted(await make_project("HYBRID"), "ours", CANARIES[0])
    others = [value for value in vars(shared.theirs.names).values() if isinstance(value, str)]
    # What is a key of data or a request_id may be told to who sent it; what names a person may not.
    private = [*CANARIES, *(getattr(names, field) for names in (ours.names, shared.theirs.names) for field in PRIVATE)]
    loop = asyncio.get_running_loop()

    async def ask(request: bytes) -> Outcome:
        if path in TAKE_AWAY:
            await ours.client.identity.UnforgetProfile(UnforgetProfileRequest(identifiers=ours.names.both))
            await send(ours.client.channel, PUT_BACK, ours.client.key, build(PUT_BACK, 1, ours.names))
        return await send(ours.client.channel, path, ours.client.key, request)

    @hypothesis_settings(
        max_examples=int(os.environ.get("ONEFOLD_FUZZ_EXAMPLES", "20")),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(path, ours.names, others))
    def look(request: bytes) -> None:
        outcome = asyncio.run_coroutine_threadsafe(ask(request), loop).result()
        judge(outcome, private)

    await asyncio.to_thread(look)
    written = "".join(capfd.readouterr())
    assert "call broke" not in written
    assert [canary for canary in private if canary in written] == []
    for canary in private:
        assert await keys_with(settings.redis_url, canary) == []


def judge(outcome: Outcome, private: list[str]) -> None:
    """Fails unless the outcome is one that the contract knows."""
    for message in outcome.messages:
        for error in item_errors(message):
            assert error.reason in ErrorReason.values() and error.reason, error
            assert error.code in {code.value[0] for code in NOTHING_HAPPENED}, error
            assert [text for text in private if text in str(error)] == []
    if outcome.code is grpc.StatusCode.OK:
        return
    assert outcome.code in NOTHING_HAPPENED, outcome
    status = Status.FromString(dict(outcome.trailers)["grpc-status-details-bin"])
    assert (status.code, status.message) == (outcome.code.value[0], outcome.details)
    infos = []
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info):
            infos.append(info)
    [info] = infos
    assert info.domain == "onefold"
    assert f"ERROR_REASON_{info.reason}" in ErrorReason.DESCRIPTOR.values_by_name
    # Which of the caller's own ids was used before is told back, whatever it looks like.
    told = {key: text for key, text in info.metadata.items() if key not in ("request_id", "event_id")}
    details = [str(detail) for detail in status.details if not detail.Is(ErrorInfo.DESCRIPTOR)]
    assert [text for text in private if text in f"{status.message} {told} {details}"] == []


def item_errors(message: Message) -> list[ItemError]:
    """The errors of items in an answer."""
    found = []
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.file.package == "onefold.v1":
            for each in value if field.is_repeated else [value]:
                found += [each] if isinstance(each, ItemError) else item_errors(each)
    return found
