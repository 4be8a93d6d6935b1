"""Forgetting and deleting people: out of every read at once, off the disk soon after, and never back."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.config import Settings
from onefold.embedded import EmbeddedValkey
from onefold.v1.device_pb2 import PLATFORM_APNS, NewDevice
from onefold.v1.devices_service_pb2 import (
    DisableDeviceRequest,
    ListDevicesRequest,
    ListTokenHoldersRequest,
    RegisterDeviceRequest,
)
from onefold.v1.event_pb2 import EVENT_KIND_PURCHASE, NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, ListEventsRequest, TrackRequest
from onefold.v1.forgotten_pb2 import Forgotten
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_LINKED,
    MERGE_OUTCOME_MERGED,
    BatchGetProfilesRequest,
    BatchUpdateProfilesRequest,
    DeleteProfileRequest,
    ForgetProfileRequest,
    ForgetProfileResponse,
    GetMergeRequest,
    GetProfileRequest,
    IdentifyRequest,
    IdentifyResponse,
    ListForgottenRequest,
    ListMergesRequest,
    LookupProfilesRequest,
    MergeProfilesRequest,
    MergeProfilesResponse,
    PersonName,
    PreviewMergeRequest,
    ProfileUpdate,
    UndoMergeRequest,
    UnforgetProfileRequest,
    UpdateEmailRequest,
    UpdateProfileRequest,
    UpdateUserIdRequest,
)
from onefold.v1.options_pb2 import SCOPE_READ, SCOPE_WRITE
from onefold.v1.profile_pb2 import Identifiers
from onefold.v1.projects_service_pb2 import CreateApiKeyRequest
from onefold.workflows.run import Ran
from support.client import Client, Failure, email, failure, read_failure, user
from support.holding import held, until_waiting
from support.traces import keys_with, rows_of, tables_with
from support.world import World

# The type of a project, and the identifier by which its people are forgotten (P3).
FORGET_BY = [("EMAIL", "email"), ("USER_ID", "user_id"), ("HYBRID", "email"), ("HYBRID", "user_id")]
BLOCKED_KINDS = {"EMAIL": {"email"}, "USER_ID": {"user_id"}, "HYBRID": {"email", "user_id"}}


@pytest.fixture
def canary() -> str:
    """A word that stands nowhere else in the database."""
    return f"canary{secrets.token_hex(8)}"


def both(name: str) -> Identifiers:
    """A person by both identifiers, which every type of project takes."""
    return Identifiers(email=f"{name}@example.com", user_id=name)


def only(kind: str, name: str) -> Identifiers:
    """The same person by one of the identifiers."""
    return email(f"{name}@example.com") if kind == "email" else user(name)


def by_type(project_type: str, name: str) -> Identifiers:
    """The same person by the one identifier that its project's type always takes."""
    return only("user_id" if project_type == "USER_ID" else "email", name)


async def outcome(call: Awaitable[Any]) -> Any:
    """The answer of a call, or its failure."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return read_failure(error)


async def put(c: Client, identifiers: Identifiers, fields: str = "{}", request_id: str = "") -> str:
    """Writes a profile; returns its id."""
    answer = await c.identity.UpdateProfile(
        UpdateProfileRequest(identifiers=identifiers, data_fields_json=fields, request_id=request_id)
    )
    return answer.profile.profile_id


async def forget(c: Client, identifiers: Identifiers) -> ForgetProfileResponse:
    """Forgets a person."""
    return await c.identity.ForgetProfile(ForgetProfileRequest(identifiers=identifiers))


async def identify(c: Client, identifiers: Identifiers, anonymous_id: str) -> IdentifyResponse:
    """Links an anonymous_id."""
    return await c.identity.Identify(IdentifyRequest(identifiers=identifiers, anonymous_id=anonymous_id))


async def merge(c: Client, source: Identifiers, target: Identifiers) -> MergeProfilesResponse:
    """Merges known people."""
    return await c.identity.MergeProfiles(MergeProfilesRequest(source=source, target=target, allow_known_source=True))


async def register(c: Client, identifiers: Identifiers, token: str, fields: str = "{}") -> None:
    """Registers a device."""
    device = NewDevice(token=token, platform=PLATFORM_APNS, application_name="app", data_fields_json=fields)
    await c.devices.RegisterDevice(RegisterDeviceRequest(identifiers=identifiers, device=device))


async def exists(c: Client, identifiers: Identifiers) -> bool:
    """Whether a profile is there."""
    answer = await outcome(c.identity.GetProfile(GetProfileRequest(identifiers=identifiers)))
    assert not isinstance(answer, Failure) or answer.reason == "PROFILE_NOT_FOUND"
    return not isinstance(answer, Failure)


async def is_blocked(c: Client, identifiers: Identifiers) -> bool:
    """Whether nobody may have an identifier; makes the profile if not."""
    answer = await outcome(c.identity.UpdateProfile(UpdateProfileRequest(identifiers=identifiers)))
    assert not isinstance(answer, Failure) or answer.reason == "FORGOTTEN"
    return isinstance(answer, Failure)


async def assert_unreadable(
    c: Client,
    people: list[Identifiers],
    profile_ids: list[str],
    anonymous_ids: list[str] | None = None,
    tokens: list[str] | None = None,
    merge_ids: list[str] | None = None,
) -> None:
    """No read tells anything of somebody, by whatever they are asked for."""
    named: list[dict[str, Any]] = [{"identifiers": each} for each in people]
    named += [{"profile_id": each} for each in profile_ids]
    reads: list[Callable[..., Awaitable[Any]]] = [
        lambda **who: c.identity.GetProfile(GetProfileRequest(**who)),
        lambda **who: c.events.ListEvents(ListEventsRequest(**who)),
        lambda **who: c.devices.ListDevices(ListDevicesRequest(**who)),
    ]
    for who in named:
        for read in reads:
            gone = await failure(read(**who))
            assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    batch = await c.identity.BatchGetProfiles(BatchGetProfilesRequest(people=[PersonName(**who) for who in named]))
    assert [result.error.code for result in batch.results] == [grpc.StatusCode.NOT_FOUND.value[0]] * len(named)
    for person in people:
        asked = [LookupProfilesRequest(email=person.email)] if person.email else []
        asked += [LookupProfilesRequest(user_id=person.user_id)] if person.user_id else []
        for request in asked:
            assert not (await c.identity.LookupProfiles(request)).profiles
        gone = await failure(c.identity.ListMerges(ListMergesRequest(identifiers=person)))
        assert gone.reason == "PROFILE_NOT_FOUND"
    for anonymous_id in anonymous_ids or []:
        assert await c.names(anonymous_id=anonymous_id) == []
    for token in tokens or []:
        assert not (await c.devices.ListTokenHolders(ListTokenHoldersRequest(token=token))).holders
    entries = [(await c.identity.GetMerge(GetMergeRequest(merge_id=each))).merge for each in merge_ids or []]
    for profile_id in profile_ids:
        entries += (await c.identity.ListMerges(ListMergesRequest(profile_id=profile_id))).merges
    for entry in entries:
        assert entry.source_identifiers == Identifiers()
        assert not entry.anonymous_id
        assert not [*entry.source_fields, *entry.target_fields, *entry.merged_arrays]


@pytest.mark.parametrize("settled", [False, True], ids=["moves open", "settled"])
@pytest.mark.parametrize(("project_type", "kind"), FORGET_BY)
async def test_a_forgotten_person_is_gone(
    make_project: MakeProject,
    world: World,
    valkey: EmbeddedValkey,
    canary: str,
    project_type: str,
    kind: str,
    settled: bool,
) -> None:
    """I20 F43: a person with everything is out of all reads at once, and of every table and Valkey after two passes."""
    c = await make_project(project_type)
    name, other, x, token = canary, f"{canary}-2", f"{canary}-x", f"{canary}-token"
    fields = f'{{"{canary}":"{canary}","common":"{canary}"}}'
    await put(c, both("bystander"), '{"plan":"gold"}')
    await c.track(identifiers=by_type(project_type, "bystander"), name="theirs")

    person = await put(c, both(name), fields, request_id=f"{canary}-put")
    merged = await put(c, both(other), fields)
    await c.track(anonymous_id=x, name=canary, data_json=fields, event_id=f"{canary}-anonymous")
    link = (await identify(c, by_type(project_type, other), x)).link
    for owner in (name, other):
        await c.events.BatchTrack(
            BatchTrackRequest(
                events=[
                    NewEvent(
                        identifiers=by_type(project_type, owner),
                        name=canary,
                        kind=EVENT_KIND_PURCHASE,
                        data_json=fields,
                        event_id=f"{canary}-{owner}-{index}",
                        anonymous_id=f"{canary}-kept",
                    )
                    for index in range(3)
                ],
                request_id=f"{canary}-{owner}",
            )
        )
        await register(c, by_type(project_type, owner), token, fields)
    if settled:
        await world.settle(c.project_id)
    ledger = (await merge(c, by_type(project_type, other), by_type(project_type, name))).merge
    if settled:
        await world.settle(c.project_id)
    assert await tables_with(world, canary) >= {
        "profiles", "identifiers", "events", "devices", "merges", "requests", "event_ids"
    }  # fmt: skip

    answer = await forget(c, only(kind, name))
    assert answer.profile_existed
    # The names of the merged person are the person's too (I17).
    assert len(answer.forgotten) == 2 * len(BLOCKED_KINDS[project_type])

    for work in (None, world.work_off, world.settle):
        if work is not None:
            await work(c.project_id)
        await assert_unreadable(
            c,
            [by_type(project_type, name), by_type(project_type, other), only(kind, name), only(kind, other)],
            [person, merged],
            [x, f"{canary}-kept"],
            [token],
            [ledger.merge_id, link.merge_id],
        )
        assert await c.names(identifiers=by_type(project_type, "bystander")) == ["theirs"]
    assert await world.open_intents(c.project_id) == 0
    assert await world.value("SELECT count(*) FROM moves WHERE project_id = $1", c.project_id) == 0
    assert await tables_with(world, canary) == set()
    assert await keys_with(valkey.url, canary) == []
    for blocked in BLOCKED_KINDS[project_type]:
        for each in (name, other):
            refused = await failure(
                put(c, Identifiers(**{blocked: f"{each}@example.com" if blocked == "email" else each}))
            )
            assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")


Writing = Callable[[Client, Identifiers], Awaitable[Any]]
DEVICE = NewDevice(token="token", platform=PLATFORM_APNS, application_name="app")
WRITES: dict[str, Writing] = {
    "UpdateProfile": lambda c, who: c.identity.UpdateProfile(UpdateProfileRequest(identifiers=who)),
    "UpdateProfile with request_id": lambda c, who: c.identity.UpdateProfile(
        UpdateProfileRequest(identifiers=who, request_id="again")
    ),
    "UpdateProfile of existing only": lambda c, who: c.identity.UpdateProfile(
        UpdateProfileRequest(identifiers=who, update_existing_only=True)
    ),
    "Identify": lambda c, who: c.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="x")),
    "RegisterDevice": lambda c, who: c.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=DEVICE)),
    "Track": lambda c, who: c.events.Track(TrackRequest(event=NewEvent(identifiers=who, name="n", event_id="e"))),
    "Track of a purchase": lambda c, who: c.events.Track(
        TrackRequest(event=NewEvent(identifiers=who, name="n", kind=EVENT_KIND_PURCHASE, anonymous_id="x"))
    ),
    "MergeProfiles into it": lambda c, who: merge(c, both("other"), who),
    "PreviewMerge into it": lambda c, who: c.identity.PreviewMerge(
        PreviewMergeRequest(source=both("other"), target=who, allow_known_source=True)
    ),
    "UpdateEmail of it": lambda c, who: c.identity.UpdateEmail(
        UpdateEmailRequest(identifiers=who, new_email="new@example.com")
    ),
    "UpdateUserId of it": lambda c, who: c.identity.UpdateUserId(
        UpdateUserIdRequest(identifiers=who, new_user_id="new")
    ),
    "UpdateEmail to it": lambda c, who: c.identity.UpdateEmail(
        UpdateEmailRequest(identifiers=both("other"), new_email=who.email)
    ),
    "UpdateUserId to it": lambda c, who: c.identity.UpdateUserId(
        UpdateUserIdRequest(identifiers=both("other"), new_user_id=who.user_id)
    ),
}


@pytest.mark.parametrize("existed", [True, False], ids=["somebody", "nobody"])
@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_no_write_brings_a_forgotten_identifier_back(
    make_project: MakeProject, world: World, capfd: pytest.CaptureFixture[str], project_type: str, existed: bool
) -> None:
    """I20 I12 F42: every call that creates or writes is refused, stores nothing, logs nothing of it, before and after
    the worker; whether or not there was a profile."""
    c = await make_project(project_type)
    name = f"gone{secrets.token_hex(8)}"
    await put(c, both("other"))
    if existed:
        await put(c, both(name))
    kinds = sorted(BLOCKED_KINDS[project_type])
    for kind in kinds:
        assert (await forget(c, only(kind, name))).profile_existed == (existed and kind == kinds[0])
    for work in (None, world.settle):
        if work is not None:
            await work(c.project_id)
        before = await rows_of(world, c.project_id)
        for kind in kinds:
            who = only(kind, name)
            for call, write in WRITES.items():
                if call in ("UpdateEmail to it", "UpdateUserId to it") and not call.startswith(
                    "UpdateEmail" if kind == "email" else "UpdateUserId"
                ):
                    continue
                refused = await failure(write(c, who))
                assert (call, refused.code, refused.reason) == (
                    call,
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "FORGOTTEN",
                )
                assert name not in refused.message + str(refused.metadata)
            upper = Identifiers(email=who.email.upper(), user_id=who.user_id)
            tracked = await c.batch([NewEvent(identifiers=upper, name="n", event_id="e")])
            updated = await c.identity.BatchUpdateProfiles(
                BatchUpdateProfilesRequest(updates=[ProfileUpdate(identifiers=upper, data_fields_json='{"a":1}')])
            )
            for result in (tracked[0], updated.results[0]):
                assert result.error.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
                assert "FORGOTTEN" in str(result.error)
        assert await rows_of(world, c.project_id) == before
    written = capfd.readouterr()
    assert name not in written.out + written.err


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_a_forgotten_item_spoils_no_other(make_project: MakeProject, project_type: str) -> None:
    """I20 I13 E4: in a batch, the item of a forgotten person is refused and all others are stored."""
    c = await make_project(project_type)
    await put(c, both("gone"))
    await put(c, both("there"))
    await forget(c, by_type(project_type, "gone"))
    names = ["there", "gone", "there"]
    tracked = await c.batch([NewEvent(identifiers=by_type(project_type, each), name=each) for each in names])
    updated = await c.identity.BatchUpdateProfiles(
        BatchUpdateProfilesRequest(
            updates=[
                ProfileUpdate(identifiers=by_type(project_type, each), data_fields_json=f'{{"f{index}":1}}')
                for index, each in enumerate(names)
            ]
        )
    )
    assert [result.HasField("error") for result in tracked] == [False, True, False]
    assert [result.HasField("error") for result in updated.results] == [False, True, False]
    assert await c.names(identifiers=by_type(project_type, "there")) == ["there", "there"]
    read = await c.identity.GetProfile(GetProfileRequest(identifiers=by_type(project_type, "there")))
    assert set(read.profile.data_fields.fields) == {"f0", "f2"}


async def test_a_forgotten_persons_event_is_refused_though_its_id_is_still_known(email_project: Client) -> None:
    """F42: an event told again after its person was forgotten is refused, also while the worker has yet to erase it."""
    c = email_project
    await put(c, email("gone@example.com"))
    event = NewEvent(identifiers=email("gone@example.com"), name="n", event_id="e")
    await c.events.Track(TrackRequest(event=event))
    await forget(c, email("gone@example.com"))
    refused = await failure(c.events.Track(TrackRequest(event=event)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")


async def test_a_forgotten_placeholder_is_not_generated_again(email_project: Client) -> None:
    """I20 I8: a placeholder email that was forgotten is refused as any other when prefer_user_id would generate it."""
    c = email_project
    request = UpdateProfileRequest(identifiers=user("visitor"), prefer_user_id=True)
    placeholder = (await c.identity.UpdateProfile(request)).profile.identifiers.email
    await forget(c, email(placeholder))
    refused = await failure(c.identity.UpdateProfile(request))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
    assert not await exists(c, user("visitor"))


async def test_an_anonymous_id_of_a_forgotten_person_brings_nothing_along(
    email_project: Client, world: World, canary: str
) -> None:
    """I20 F43: linked to somebody else before the worker has erased its events, an id shows and keeps none of them."""
    c = email_project
    await c.track(anonymous_id="x", name=canary)
    await identify(c, email("gone@example.com"), "x")
    await forget(c, email("gone@example.com"))
    again = await identify(c, email("next@example.com"), "x")
    assert again.link.outcome == LINK_OUTCOME_LINKED
    await c.track(anonymous_id="x", name="of the next")
    for _ in range(2):
        assert await c.names(identifiers=email("next@example.com")) == ["of the next"]
        # The newest work first, so that the order in which workers come by decides nothing.
        for intent_id in reversed(await world.due(c.project_id)):
            lease = await world.take(c.project_id, intent_id)
            assert lease is not None
            position = await world.chunk(lease)
            while position is not None:
                position = await world.chunk(lease, position)
        await world.pass_time(c.project_id, timedelta(seconds=17))
    await world.settle(c.project_id)
    assert await c.names(identifiers=email("next@example.com")) == ["of the next"]
    assert "events" not in await tables_with(world, canary)


async def test_forgotten_by_a_name_that_a_merge_left(email_project: Client, world: World) -> None:
    """I20 I17: while a merged person's old email leads to the survivor, forgetting it forgets both."""
    c = email_project
    ids = [await put(c, email(f"{each}@example.com")) for each in "ab"]
    await merge(c, email("a@example.com"), email("b@example.com"))
    answer = await forget(c, email("a@example.com"))
    assert answer.profile_existed and len(answer.forgotten) == 2
    await assert_unreadable(c, [email("a@example.com"), email("b@example.com")], ids)
    for each in "ab":
        assert await is_blocked(c, email(f"{each}@example.com"))


async def test_forgetting_an_email_whose_redirect_is_over(email_project: Client, world: World) -> None:
    """I20 I17: 5 minutes after a merge the source's email is nobody's, and forgetting it blocks it like any other."""
    c = email_project
    for each in "ab":
        await put(c, email(f"{each}@example.com"))
    merged = await merge(c, email("a@example.com"), email("b@example.com"))
    await world.settle(c.project_id)
    await world.pass_time(c.project_id, timedelta(minutes=6))
    answer = await forget(c, email("a@example.com"))
    assert not answer.profile_existed and len(answer.forgotten) == 1
    assert await exists(c, email("b@example.com"))
    assert await is_blocked(c, email("a@example.com"))
    refused = await failure(c.identity.UndoMerge(UndoMergeRequest(merge_id=merged.merge.merge_id)))
    assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
    assert not await exists(c, email("a@example.com"))


async def test_unforget_restores_nothing(hybrid_project: Client, world: World) -> None:
    """I20: unforgetting by one identifier frees all that were forgotten with it, restores nothing, is idempotent."""
    c = hybrid_project
    old = await put(c, both("gone"), '{"plan":"gold"}')
    await c.track(identifiers=user("gone"), name="old", event_id="e")
    await c.track(anonymous_id="x", name="old")
    await identify(c, user("gone"), "x")
    await register(c, user("gone"), "token")
    await forget(c, user("gone"))
    request = UnforgetProfileRequest(identifiers=email("gone@example.com"))
    assert (await c.identity.UnforgetProfile(request)).unblocked_count == 2
    assert (await c.identity.UnforgetProfile(request)).unblocked_count == 0
    assert not (await c.identity.ListForgotten(ListForgottenRequest())).forgotten
    await assert_unreadable(c, [both("gone")], [old], ["x"], ["token"])
    new = await put(c, both("gone"))
    assert new != old
    await c.track(identifiers=user("gone"), name="new")
    for _ in range(2):
        read = await c.identity.GetProfile(GetProfileRequest(identifiers=email("gone@example.com")))
        assert read.profile.profile_id == new and not read.profile.data_fields.fields
        assert await c.names(identifiers=user("gone")) == ["new"]
        assert not (await c.devices.ListDevices(ListDevicesRequest(identifiers=user("gone")))).devices
        await world.settle(c.project_id)


async def test_the_list_of_the_forgotten(make_project: MakeProject) -> None:
    """I20: ListForgotten pages over every blocked identifier once, as keyed hashes that differ between projects."""
    c, other = await make_project("HYBRID"), await make_project("HYBRID")
    told: list[Forgotten] = []
    for index in range(7):
        who = only("email" if index % 2 else "user_id", f"person{index}")
        answer = await forget(c, who)
        assert not answer.profile_existed and len(answer.forgotten) == 1
        told += answer.forgotten
        plain = (who.email or who.user_id).encode()
        assert answer.forgotten[0].hash != hashlib.sha256(plain).hexdigest()
    pages: list[list[Forgotten]] = []
    token = ""
    while not pages or token:
        page = await c.identity.ListForgotten(ListForgottenRequest(page_size=3, page_token=token))
        pages.append(list(page.forgotten))
        token = page.next_page_token
    assert [len(page) for page in pages] == [3, 3, 1]
    listed = [entry for page in pages for entry in page]
    assert listed == sorted(told, key=lambda entry: entry.hash)
    assert all(len(bytes.fromhex(entry.hash)) == 32 and entry.HasField("forget_time") for entry in listed)
    assert [field.name for field in Forgotten.DESCRIPTOR.fields] == ["hash", "kind", "forget_time"]
    # The same value in another case is the same identifier, and forgetting twice changes nothing.
    twice = await forget(c, email("PERSON1@example.com"))
    assert [told[1]] == list(twice.forgotten)
    elsewhere = await forget(other, email("person1@example.com"))
    assert elsewhere.forgotten[0].hash != told[1].hash
    wrong = await failure(other.identity.ListForgotten(ListForgottenRequest(page_token="nonsense", page_size=3)))
    assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


@pytest.mark.parametrize(
    ("project_type", "identifiers", "fields"),
    [
        ("EMAIL", user("u"), ["identifiers.user_id"]),
        ("EMAIL", Identifiers(), ["identifiers"]),
        ("USER_ID", email("a@example.com"), ["identifiers.email"]),
        ("USER_ID", Identifiers(), ["identifiers"]),
        ("HYBRID", Identifiers(), ["identifiers"]),
        ("HYBRID", Identifiers(email="bad", user_id="null"), ["identifiers.email", "identifiers.user_id"]),
    ],
)
async def test_whom_a_project_forgets(
    make_project: MakeProject, world: World, project_type: str, identifiers: Identifiers, fields: list[str]
) -> None:
    """P3 I20 X2: each type forgets by its own keys, and every wrong field is told at once, with nothing blocked."""
    c = await make_project(project_type)
    before = await rows_of(world, c.project_id)
    for call in (
        c.identity.ForgetProfile(ForgetProfileRequest(identifiers=identifiers, request_id=" r")),
        c.identity.UnforgetProfile(UnforgetProfileRequest(identifiers=identifiers, request_id=" r")),
    ):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
        assert set(refused.fields) >= {"request_id"} and any(field in refused.fields for field in fields)
        assert set(refused.fields) - {"request_id"} <= {*fields, "identifiers"}
    assert await rows_of(world, c.project_id) == before


async def test_forgetting_needs_admin(email_project: Client, world: World) -> None:
    """I20 X2: a key that may read and write may neither forget, delete, unforget nor list; nothing happens then."""
    c = email_project
    await put(c, email("a@example.com"))
    made = await c.projects.CreateApiKey(CreateApiKeyRequest(scopes=[SCOPE_READ, SCOPE_WRITE]))
    weak = Client(c.channel, c.project_id, made.secret_text)
    before = await rows_of(world, c.project_id)
    who = email("a@example.com")
    for call in (
        weak.identity.ForgetProfile(ForgetProfileRequest(identifiers=who)),
        weak.identity.UnforgetProfile(UnforgetProfileRequest(identifiers=who)),
        weak.identity.ListForgotten(ListForgottenRequest()),
        weak.identity.DeleteProfile(DeleteProfileRequest(identifiers=who)),
    ):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        assert refused.metadata == {"required_scope": "ADMIN"}
    assert await rows_of(world, c.project_id) == before


async def test_two_people_are_not_forgotten_at_once(hybrid_project: Client, world: World) -> None:
    """I3 I20: identifiers of two people forget neither."""
    c = hybrid_project
    await put(c, email("a@example.com"))
    await put(c, user("b"))
    before = await rows_of(world, c.project_id)
    who = Identifiers(email="a@example.com", user_id="b")
    for call in (
        c.identity.ForgetProfile(ForgetProfileRequest(identifiers=who)),
        c.identity.DeleteProfile(DeleteProfileRequest(identifiers=who)),
    ):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IDENTIFIERS_CONFLICT")
    assert await rows_of(world, c.project_id) == before


async def test_a_shared_user_id_stays_free(email_project: Client) -> None:
    """P2 I20: in an EMAIL project the user_id of a forgotten person does not identify, and others keep it."""
    c = email_project
    for each in "ab":
        await put(c, Identifiers(email=f"{each}@example.com", user_id="shared"))
    await forget(c, email("a@example.com"))
    read = await c.identity.GetProfile(GetProfileRequest(identifiers=user("shared")))
    assert read.profile.identifiers.email == "b@example.com" and read.user_id_holder_count == 0
    await put(c, Identifiers(email="c@example.com", user_id="shared"))


@pytest.mark.parametrize("by_id", [False, True], ids=["by identifiers", "by id"])
@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_delete_erases_and_blocks_nothing(
    make_project: MakeProject, world: World, canary: str, project_type: str, by_id: bool
) -> None:
    """I20: DeleteProfile erases as ForgetProfile does, but blocks nothing; deleting nobody is NOT_FOUND."""
    c = await make_project(project_type)
    who = by_type(project_type, canary)
    profile_id = await put(c, both(canary), f'{{"{canary}":1}}')
    await c.track(anonymous_id=f"{canary}-x", name=canary)
    await identify(c, who, f"{canary}-x")
    await c.track(identifiers=who, name=canary, event_id=canary)
    await register(c, who, f"{canary}-token")
    request = DeleteProfileRequest(profile_id=profile_id) if by_id else DeleteProfileRequest(identifiers=who)
    assert (await c.identity.DeleteProfile(request)).profile_id == profile_id
    for work in (None, world.settle):
        if work is not None:
            await work(c.project_id)
        await assert_unreadable(c, [who], [profile_id], [f"{canary}-x"], [f"{canary}-token"])
    assert await tables_with(world, canary) == set()
    again = await failure(c.identity.DeleteProfile(request))
    assert (again.code, again.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
    assert not (await c.identity.ListForgotten(ListForgottenRequest())).forgotten
    assert await put(c, both(canary)) != profile_id
    assert await c.names(identifiers=who) == []


@pytest.mark.parametrize("gone", ["source", "target"])
@pytest.mark.parametrize("settled", [False, True], ids=["merge open", "merge settled"])
async def test_forgetting_beside_an_open_undo(
    email_project: Client, world: World, canary: str, gone: str, settled: bool
) -> None:
    """I20 I19: while an undone merge's events are on their way back, forgetting one side leaves the other whole."""
    c = email_project
    names = {"source": f"{canary}-s" if gone == "source" else "s", "target": f"{canary}-t" if gone == "target" else "t"}
    people = {side: email(f"{name}@example.com") for side, name in names.items()}
    for side, name in names.items():
        await put(c, people[side], f'{{"{name}":1}}')
        await c.track(anonymous_id=f"{name}-x", name=name)
        await identify(c, people[side], f"{name}-x")
        await c.track(identifiers=people[side], name=name, event_id=name)
        await register(c, people[side], f"{name}-token")
    merged = await merge(c, people["source"], people["target"])
    if settled:
        await world.settle(c.project_id)
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=merged.merge.merge_id))
    await forget(c, people[gone])
    kept = "target" if gone == "source" else "source"
    for work in (None, world.work_off, world.settle):
        if work is not None:
            await work(c.project_id)
        await assert_unreadable(c, [people[gone]], [], [f"{names[gone]}-x"], [f"{names[gone]}-token"])
        assert await c.names(identifiers=people[kept]) == [names[kept]] * 2
        read = await c.identity.GetProfile(GetProfileRequest(identifiers=people[kept]))
        assert list(read.profile.data_fields.fields) == [names[kept]]
        devices = (await c.devices.ListDevices(ListDevicesRequest(identifiers=people[kept]))).devices
        assert [device.token for device in devices] == [f"{names[kept]}-token"]
    assert await tables_with(world, canary) == set()
    assert await world.value("SELECT count(*) FROM moves WHERE project_id = $1", c.project_id) == 0


async def test_forgetting_beside_an_undone_association(email_project: Client, world: World, canary: str) -> None:
    """I20 I19: events that an undone association is giving back are the visitor's, and stay when the person goes."""
    c = email_project
    await c.track(anonymous_id="x", name="the visitor's")
    link = (await identify(c, email(f"{canary}@example.com"), "x")).link
    await c.track(identifiers=email(f"{canary}@example.com"), name=canary)
    await world.settle(c.project_id)
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=link.merge_id))
    await forget(c, email(f"{canary}@example.com"))
    for work in (world.work_off, world.settle):
        assert await c.names(anonymous_id="x") == ["the visitor's"]
        await work(c.project_id)
    assert await c.names(anonymous_id="x") == ["the visitor's"]
    assert await tables_with(world, canary) == set()


@pytest.mark.parametrize("worked", [False, True], ids=["disable open", "disable done"])
async def test_forgetting_beside_a_disable(email_project: Client, world: World, canary: str, worked: bool) -> None:
    """I20 F43: forgetting the last holder of a token that was disabled for everybody leaves no trace of the token."""
    c = email_project
    await put(c, email("a@example.com"))
    await register(c, email("a@example.com"), canary)
    await c.devices.DisableDevice(DisableDeviceRequest(token=canary))
    if worked:
        await world.settle(c.project_id)
    await forget(c, email("a@example.com"))
    assert not (await c.devices.ListTokenHolders(ListTokenHoldersRequest(token=canary))).holders
    await world.settle(c.project_id)
    assert await world.open_intents(c.project_id) == 0
    assert await tables_with(world, canary) == set()


async def _answer_of_an_update(c: Client, name: str) -> None:
    await put(c, email(f"{name}@example.com"), request_id="r")


async def _answer_of_a_batch(c: Client, name: str) -> None:
    updates = [ProfileUpdate(identifiers=email(address)) for address in ("other@example.com", f"{name}@example.com")]
    await c.identity.BatchUpdateProfiles(BatchUpdateProfilesRequest(updates=updates, request_id="r"))


async def _answer_of_a_renaming(c: Client, name: str) -> None:
    await c.identity.UpdateEmail(
        UpdateEmailRequest(identifiers=email(f"{name}@example.com"), new_email=f"{name}-2@example.com", request_id="r")
    )
    await c.identity.UpdateEmail(
        UpdateEmailRequest(identifiers=email(f"{name}-2@example.com"), new_email=f"{name}@example.com")
    )


async def _answer_of_a_merge(c: Client, name: str) -> None:
    await put(c, email(f"{name}-2@example.com"))
    await c.identity.MergeProfiles(
        MergeProfilesRequest(
            source=email(f"{name}-2@example.com"),
            target=email(f"{name}@example.com"),
            allow_known_source=True,
            request_id="r",
        )
    )


async def _answer_of_an_undone_merge(c: Client, name: str) -> None:
    await put(c, email("other@example.com"))
    merged = await c.identity.MergeProfiles(
        MergeProfilesRequest(
            source=email(f"{name}@example.com"),
            target=email("other@example.com"),
            allow_known_source=True,
            request_id="r",
        )
    )
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=merged.merge.merge_id))


async def _answer_of_an_undo(c: Client, name: str) -> None:
    await put(c, email("other@example.com"))
    merged = await merge(c, email(f"{name}@example.com"), email("other@example.com"))
    await c.identity.UndoMerge(UndoMergeRequest(merge_id=merged.merge.merge_id, request_id="r"))


async def _answer_of_an_event(c: Client, name: str) -> None:
    event = NewEvent(identifiers=email(f"{name}@example.com"), name="n", event_id=name)
    await c.events.Track(TrackRequest(event=event, request_id="r"))


async def _answer_of_a_duplicate(c: Client, name: str) -> None:
    event = NewEvent(identifiers=email(f"{name}@example.com"), name="n", event_id=name)
    await c.events.Track(TrackRequest(event=event))
    await c.events.Track(TrackRequest(event=event, request_id="r"))


async def _answer_of_an_anonymous_event(c: Client, name: str) -> None:
    event = NewEvent(anonymous_id="x", name="n", event_id=name)
    await c.events.Track(TrackRequest(event=event, request_id="r"))
    await identify(c, email(f"{name}@example.com"), "x")


async def _answer_of_a_device(c: Client, name: str) -> None:
    await c.devices.RegisterDevice(
        RegisterDeviceRequest(identifiers=email(f"{name}@example.com"), device=DEVICE, request_id="r")
    )


@pytest.mark.parametrize(
    "answer",
    [
        _answer_of_an_update,
        _answer_of_a_batch,
        _answer_of_a_renaming,
        _answer_of_a_merge,
        _answer_of_an_undone_merge,
        _answer_of_an_undo,
        _answer_of_an_event,
        _answer_of_a_duplicate,
        _answer_of_an_anonymous_event,
        _answer_of_a_device,
    ],
    ids=lambda each: each.__name__.removeprefix("_answer_of_").replace("_", " "),
)
async def test_stored_answers_go_too(
    email_project: Client, world: World, canary: str, answer: Callable[[Client, str], Awaitable[None]]
) -> None:
    """I20 F43 X1: an answer kept for its request_id that tells of a forgotten person goes with the person."""
    c = email_project
    await put(c, email(f"{canary}@example.com"))
    await answer(c, canary)
    assert "requests" in await tables_with(world, canary)
    await forget(c, email(f"{canary}@example.com"))
    await world.settle(c.project_id)
    assert await tables_with(world, canary) == set()


async def test_a_request_of_a_forgotten_person_is_not_replayed(email_project: Client) -> None:
    """F42 X1: a write sent again with its request_id after its person was forgotten is refused like any other."""
    c = email_project
    request = UpdateProfileRequest(identifiers=email("a@example.com"), request_id="r")
    await c.identity.UpdateProfile(request)
    assert (await c.identity.UpdateProfile(request)).replayed
    await forget(c, email("a@example.com"))
    assert (await failure(c.identity.UpdateProfile(request))).reason == "FORGOTTEN"


@pytest.mark.parametrize("call", ["forget", "unforget", "delete"])
async def test_request_ids_of_forgetting(email_project: Client, world: World, call: str) -> None:
    """X1: sent again with its request_id a write gives the stored answer and has no second effect; another body is
    refused; after 24 hours the id is free."""
    c = email_project
    a = email("a@example.com")
    sends: dict[str, tuple[Any, Any]] = {
        "forget": (c.identity.ForgetProfile, ForgetProfileRequest(identifiers=a, request_id="r")),
        "unforget": (c.identity.UnforgetProfile, UnforgetProfileRequest(identifiers=a, request_id="r")),
        "delete": (c.identity.DeleteProfile, DeleteProfileRequest(identifiers=a, request_id="r")),
    }
    send, request = sends[call]
    await put(c, a)
    if call == "unforget":
        await forget(c, a)
    first = await send(request)
    assert not first.replayed
    # As it was before, so that a second effect would show.
    if call == "unforget":
        await forget(c, a)
    else:
        await c.identity.UnforgetProfile(UnforgetProfileRequest(identifiers=a))
        await put(c, a)
    before = await rows_of(world, c.project_id)
    again = await send(request)
    assert again.replayed
    again.replayed = False
    assert again == first
    other = type(request).FromString(request.SerializeToString())
    other.identifiers.email = "b@example.com"
    reused = await failure(send(other))
    assert (reused.code, reused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    assert reused.metadata == {"request_id": "r"}
    assert await rows_of(world, c.project_id) == before
    await world.pass_time(c.project_id, timedelta(hours=25))
    assert not (await send(request)).replayed
    assert not await exists(c, a)


async def test_a_merge_into_a_forgotten_person_is_refused(email_project: Client, world: World) -> None:
    """F41: forgotten first, the merge is refused and the source is whole; merged first, both are gone."""
    c = email_project
    for each in "ab":
        await put(c, email(f"{each}@example.com"), f'{{"{each}":1}}')
        await c.track(identifiers=email(f"{each}@example.com"), name=each)
    await forget(c, email("b@example.com"))
    refused = await failure(merge(c, email("a@example.com"), email("b@example.com")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
    for work in (world.work_off, world.settle):
        assert await c.names(identifiers=email("a@example.com")) == ["a"]
        await work(c.project_id)
    read = await c.identity.GetProfile(GetProfileRequest(identifiers=email("a@example.com")))
    assert list(read.profile.data_fields.fields) == ["a"]


async def test_a_merge_of_a_forgotten_person_cannot_be_undone(email_project: Client, world: World) -> None:
    """I19 I20: neither a merge nor an association of a forgotten person can be undone, so nobody comes back by it."""
    c = email_project
    for each in "ab":
        await put(c, email(f"{each}@example.com"))
    link = (await identify(c, email("a@example.com"), "x")).link
    merged = (await merge(c, email("a@example.com"), email("b@example.com"))).merge
    await forget(c, email("b@example.com"))
    for _ in range(2):
        for merge_id in (merged.merge_id, link.merge_id):
            refused = await failure(c.identity.UndoMerge(UndoMergeRequest(merge_id=merge_id)))
            assert refused.code == grpc.StatusCode.FAILED_PRECONDITION
            assert refused.reason in {"MERGE_NOT_UNDOABLE", "MERGE_BUILT_ON"}
        assert not await exists(c, email("a@example.com"))
        await world.settle(c.project_id)


@pytest.mark.parametrize("forget_first", [False, True])
async def test_forget_and_merge_together(email_project: Client, world: World, canary: str, forget_first: bool) -> None:
    """F41: side by side over many rounds, either both are gone and blocked, or the merge is refused and A is whole."""
    c = email_project
    for index in range(20):
        a, b = email(f"{canary}a{index}@example.com"), email(f"{canary}b{index}@example.com")
        await put(c, a, '{"a":1}')
        await put(c, b)
        await c.track(identifiers=a, name="of a")
        await c.track(identifiers=b, name="of b")
        calls = [outcome(forget(c, b)), outcome(merge(c, a, b))]
        answers = await asyncio.gather(*(calls if forget_first else reversed(calls)))
        forgot, merged = answers if forget_first else reversed(answers)
        assert forgot.profile_existed
        assert await is_blocked(c, b)
        if isinstance(merged, Failure):
            assert (merged.code, merged.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
            assert await c.names(identifiers=a) == ["of a"]
            await forget(c, a)
        else:
            assert merged.outcome == MERGE_OUTCOME_MERGED
            assert not await exists(c, a)
            assert await is_blocked(c, a)
    await world.settle(c.project_id)
    assert await tables_with(world, canary) == set()


async def test_a_merge_that_commits_while_forget_waits(
    email_project: Client, settings: Settings, world: World, canary: str
) -> None:
    """F41 I20: a merge into B that commits while Forget(B) waits for B came first: A is gone and its email blocked."""
    c = email_project
    a, b = email(f"{canary}a@example.com"), email(f"{canary}b@example.com")
    await put(c, a)
    target = await put(c, b)
    async with held(settings, "SELECT FROM profiles WHERE profile_id = $1 FOR UPDATE", target):
        merging = asyncio.create_task(merge(c, a, b))
        await until_waiting(world, 1)
        forgetting = asyncio.create_task(forget(c, b))
        await until_waiting(world, 2)
    assert (await merging).outcome == MERGE_OUTCOME_MERGED
    assert (await forgetting).profile_existed
    assert not await exists(c, a) and not await exists(c, b)
    assert await is_blocked(c, b)
    assert await is_blocked(c, a)


async def test_a_renaming_that_commits_while_forget_waits(
    email_project: Client, settings: Settings, world: World, canary: str
) -> None:
    """I20 I12: a renaming that commits while Forget waits for the person came first: nobody has the old email then, it
    is blocked, and whoever has the new one is untouched; or both are gone and blocked."""
    c = email_project
    old, new = email(f"{canary}@example.com"), email(f"{canary}-new@example.com")
    profile_id = await put(c, old)
    async with held(settings, "SELECT FROM profiles WHERE profile_id = $1 FOR UPDATE", profile_id):
        renaming = asyncio.create_task(
            outcome(c.identity.UpdateEmail(UpdateEmailRequest(identifiers=old, new_email=new.email)))
        )
        await until_waiting(world, 1)
        forgetting = asyncio.create_task(forget(c, old))
        await until_waiting(world, 2)
    assert not isinstance(await renaming, Failure)
    await forgetting
    assert await is_blocked(c, old)
    if not await exists(c, new):
        assert await is_blocked(c, new)


async def test_an_undo_that_queues_behind_the_forget(
    email_project: Client, settings: Settings, world: World, canary: str
) -> None:
    """I19 I20: an undo that comes while a forget is under way waits for it and is refused; neither stops the other."""
    c = email_project
    a, b = email(f"{canary}a@example.com"), email(f"{canary}b@example.com")
    await put(c, a)
    target = await put(c, b)
    merge_id = (await merge(c, a, b)).merge.merge_id
    async with held(settings, "SELECT FROM profiles WHERE profile_id = $1 FOR UPDATE", target):
        forgetting = asyncio.create_task(outcome(forget(c, b)))
        await until_waiting(world, 1)
        undoing = asyncio.create_task(outcome(c.identity.UndoMerge(UndoMergeRequest(merge_id=merge_id))))
        await until_waiting(world, 2)
    forgot, undone = await forgetting, await undoing
    assert not isinstance(forgot, Failure), forgot
    assert isinstance(undone, Failure) and undone.reason == "MERGE_NOT_UNDOABLE", undone
    assert await is_blocked(c, a) and await is_blocked(c, b)


async def test_a_chunk_that_queues_behind_the_forget(
    email_project: Client, settings: Settings, world: World, canary: str
) -> None:
    """F43: a worker's chunk and a forget that meet wait for each other in one order; neither stops the other."""
    c = email_project
    who = email(f"{canary}@example.com")
    await c.track(anonymous_id="x", name=canary)
    link = (await identify(c, who, "x")).link
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = await world.value(deadlocks)
    async with held(settings, "SELECT FROM merges WHERE merge_id = $1 FOR UPDATE", link.merge_id):
        forgetting = asyncio.create_task(outcome(forget(c, who)))
        await until_waiting(world, 1)
        working = asyncio.create_task(world.work_off(c.project_id))
        await until_waiting(world, 2)
    forgot = await forgetting
    assert not isinstance(forgot, Failure), forgot
    assert await working == [Ran.ENDED]
    await world.settle(c.project_id)
    assert await tables_with(world, canary) == set()
    assert await world.value(deadlocks) == before


async def test_forget_and_undo_together(email_project: Client, world: World, canary: str) -> None:
    """F41 I19 I20: beside an undo, forgetting the target ends with the source back and whole, or with both gone."""
    c = email_project
    for index in range(6):
        a, b = email(f"{canary}a{index}@example.com"), email(f"{canary}b{index}@example.com")
        for who, name in ((a, "of a"), (b, "of b")):
            await put(c, who)
            await c.track(identifiers=who, name=name)
        merge_id = (await merge(c, a, b)).merge.merge_id
        forgot, undone = await asyncio.gather(
            outcome(forget(c, b)), outcome(c.identity.UndoMerge(UndoMergeRequest(merge_id=merge_id)))
        )
        assert not isinstance(forgot, Failure), forgot
        assert await is_blocked(c, b)
        if isinstance(undone, Failure):
            assert (undone.code, undone.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MERGE_NOT_UNDOABLE")
            assert await is_blocked(c, a)
        else:
            assert await c.names(identifiers=a) == ["of a"]
            await forget(c, a)
    await world.settle(c.project_id)
    assert await tables_with(world, canary) == set()


@pytest.mark.parametrize("request_id", ["", "r"], ids=["plain", "with request_id"])
async def test_an_event_in_flight_across_the_forget(
    email_project: Client, settings: Settings, world: World, canary: str, request_id: str
) -> None:
    """F43: an event whose transaction began before the forget and committed after it is in no read, and afterwards no
    byte of it is in any table."""
    c = email_project
    who = email(f"{canary}@example.com")
    profile_id = await put(c, who)
    event = NewEvent(identifiers=who, name=canary, event_id=canary, data_json=f'{{"{canary}":1}}')
    # Its transaction has looked the person up when it waits for its event_id.
    async with held(
        settings,
        "INSERT INTO event_ids (project_id, event_id, body_hash, receive_time) VALUES ($1, $2, '', now())",
        c.project_id,
        canary,
    ):
        tracking = asyncio.create_task(outcome(c.events.Track(TrackRequest(event=event, request_id=request_id))))
        await until_waiting(world, 1)
        await forget(c, who)
    assert not isinstance(await tracking, Failure)
    for work in (world.work_off, world.settle):
        await assert_unreadable(c, [who], [profile_id])
        await work(c.project_id)
    assert await tables_with(world, canary) == set()


async def test_a_visitors_event_in_flight_across_link_and_forget(
    email_project: Client, settings: Settings, world: World, canary: str
) -> None:
    """F43 F32: a visitor's event that began before its id was linked and commits after the person was forgotten is in
    no read, and afterwards in no table."""
    c = email_project
    async with held(
        settings,
        "INSERT INTO event_ids (project_id, event_id, body_hash, receive_time) VALUES ($1, $2, '', now())",
        c.project_id,
        canary,
    ):
        tracking = asyncio.create_task(c.track(anonymous_id="x", name=canary, event_id=canary))
        await until_waiting(world, 1)
        await identify(c, email("a@example.com"), "x")
        await forget(c, email("a@example.com"))
    await tracking
    for work in (world.work_off, world.settle):
        assert await c.names(anonymous_id="x") == []
        await work(c.project_id)
    assert await tables_with(world, canary) == set()


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_writes_in_flight_around_the_forget(
    make_project: MakeProject, world: World, valkey: EmbeddedValkey, canary: str, project_type: str
) -> None:
    """F43 F42: over many rounds of writes beside the forget, no read returns the person after its OK, every later write
    is refused, and in the end no table and nothing in Valkey holds a byte."""
    c = await make_project(project_type)
    for index in range(12):
        name = f"{canary}{index}"
        who, x = by_type(project_type, name), f"{name}x"
        fields = f'{{"{canary}":1}}'
        profile_id = await put(c, both(name), fields)
        await c.track(anonymous_id=x, name=canary, event_id=f"{name}-before")
        await identify(c, who, x)
        writes = [
            c.track(identifiers=who, name=canary, event_id=f"{name}-own", data_json=fields),
            c.batch([NewEvent(identifiers=who, name=canary, event_id=f"{name}-{each}") for each in range(5)]),
            c.track(anonymous_id=x, identifiers=who, name=canary),
            put(c, who, f'{{"{canary}-more":1}}'),
            identify(c, who, f"{x}-2"),
            register(c, who, f"{name}-token", fields),
        ]
        at = index % (len(writes) + 1)
        calls = [outcome(write) for write in writes]
        calls.insert(at, outcome(forget(c, who)))
        answers = await asyncio.gather(*calls)
        assert answers.pop(at).profile_existed
        for answer in answers:
            if isinstance(answer, Failure):
                assert (answer.code, answer.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
        await assert_unreadable(c, [who], [profile_id], [x], [f"{name}-token"])
        assert await is_blocked(c, who)
        if index % 4 == 3:
            await world.work_off(c.project_id)
    await world.settle(c.project_id)
    assert await world.open_intents(c.project_id) == 0
    assert await tables_with(world, canary) == set()
    assert await keys_with(valkey.url, canary) == []


CREATIONS: dict[str, Writing] = {
    **{name: WRITES[name] for name in ("UpdateProfile", "Identify", "RegisterDevice", "Track of a purchase")},
    "BatchUpdateProfiles": lambda c, who: c.identity.BatchUpdateProfiles(
        BatchUpdateProfilesRequest(updates=[ProfileUpdate(identifiers=who)])
    ),
    "BatchTrack": lambda c, who: c.events.BatchTrack(
        BatchTrackRequest(events=[NewEvent(identifiers=who, name="n", kind=EVENT_KIND_PURCHASE)])
    ),
    "rename": lambda c, who: WRITES["UpdateEmail to it"](c, who) if who.email else WRITES["UpdateUserId to it"](c, who),
    "conversion": WRITES["MergeProfiles into it"],
}


@pytest.mark.parametrize("creation", CREATIONS)
@pytest.mark.parametrize(("project_type", "kind"), FORGET_BY)
async def test_creation_beside_the_forgetting_of_nobody(
    make_project: MakeProject, creation: str, project_type: str, kind: str
) -> None:
    """F43 I20: a person created while the very identifier is being forgotten is gone or was refused, never alive."""
    c = await make_project(project_type)
    for index in range(8):
        await put(c, both("other"))
        who = only(kind, f"person{index}")
        calls = [outcome(CREATIONS[creation](c, who)), outcome(forget(c, who))]
        answers = await asyncio.gather(*(calls if index % 2 else reversed(calls)))
        created, forgot = answers if index % 2 else reversed(answers)
        assert not isinstance(forgot, Failure), forgot
        if isinstance(created, Failure):
            assert (created.code, created.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "FORGOTTEN")
        assert not await exists(c, who)
        assert await is_blocked(c, who)
        if forgot.profile_existed:
            for each in (only(other, "other") for other in sorted(BLOCKED_KINDS[project_type])):
                await c.identity.UnforgetProfile(UnforgetProfileRequest(identifiers=each))
