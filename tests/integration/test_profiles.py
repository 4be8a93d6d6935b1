"""Profiles through the API: writing, reading, and what Identify does beyond linking."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON, DATA_FORMAT_STRUCT, DataFormat
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, ListDevicesRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import (
    EVENT_KIND_CART_UPDATE,
    EVENT_KIND_CUSTOM,
    EVENT_KIND_PURCHASE,
    EVENT_KIND_UNSPECIFIED,
    EventKind,
    NewEvent,
)
from onefold.v1.events_service_pb2 import ListEventsRequest
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_LINKED,
    LINK_OUTCOME_MERGING_OFF,
    LINK_OUTCOME_SKIPPED,
    GetProfileRequest,
    GetProfileResponse,
    IdentifyRequest,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import (
    SIGNUP_SOURCE_DEVICE,
    SIGNUP_SOURCE_EVENT,
    SIGNUP_SOURCE_IDENTIFY,
    SIGNUP_SOURCE_PROFILE_UPDATE,
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_SKIPPED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
    Profile,
    ProfileWrite,
    SignupSource,
)
from onefold.v1.projects_service_pb2 import UpdateProjectRequest
from support.client import Client, email, failure, read_failure, user
from support.world import World

MakeProject = Callable[..., Awaitable[Client]]

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
DEVICE = NewDevice(token="t", platform=PLATFORM_FCM, application_name="app")


async def update(project: Client, who: Identifiers, fields: object = None, **request: Any) -> ProfileWrite:
    """UpdateProfile with data fields as JSON text."""
    text = "" if fields is None else fields if isinstance(fields, str) else json.dumps(fields)
    if text:
        request["data_fields_json"] = text
    return (await project.identity.UpdateProfile(UpdateProfileRequest(identifiers=who, **request))).profile


async def get(project: Client, who: Identifiers) -> Profile:
    """The profile that identifiers name."""
    return (await project.identity.GetProfile(GetProfileRequest(identifiers=who))).profile


async def fields_text(project: Client, who: Identifiers) -> str:
    """A profile's data fields as the text that is answered."""
    request = GetProfileRequest(identifiers=who, data_format=DATA_FORMAT_JSON)
    return (await project.identity.GetProfile(request)).profile.data_fields_json


async def fields_of(project: Client, who: Identifiers) -> Any:
    """A profile's data fields."""
    return json.loads(await fields_text(project, who))


async def exists(project: Client, who: Identifiers) -> bool:
    """Whether somebody is found."""
    try:
        await get(project, who)
    except grpc.aio.AioRpcError as error:
        assert error.code() == NOT_FOUND
        return False
    return True


async def count_profiles(world: World, project: Client) -> int:
    """How many profiles a project has."""
    count: int = await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", project.project_id)
    return count


async def switch_merging(project: Client, enabled: bool) -> None:
    """Switches a project's event merging."""
    await project.projects.UpdateProject(UpdateProjectRequest(event_merging_enabled=enabled))


# --- identifiers as they come in -------------------------------------------------------------------------------------


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_a_refused_identifier_is_refused_by_every_call(
    make_project: MakeProject, world: World, project_type: str
) -> None:
    """I1, I2, P3, F69, X2: writes and reads name each bad, empty or absent identifier by its field, and make nobody."""
    project = await make_project(project_type)
    bad = Identifiers(email="not an email", user_id="undefined")
    cases = [
        (bad, ["identifiers.email", "identifiers.user_id"]),
        (Identifiers(email="\N{KELVIN SIGN}@example.com", user_id="u"), ["identifiers.email"]),
        (Identifiers(email="bad", user_id="good"), ["identifiers.email"]),
        (user("NULL"), ["identifiers.user_id"]),
        (user("   "), ["identifiers.user_id"]),
        (user("u" * 53), ["identifiers.user_id"]),
        (user("u" * 3000), ["identifiers.user_id"]),
        (user("a\x00b"), ["identifiers.user_id"]),
        (Identifiers(), ["identifiers"]),
        (None, ["identifiers"]),
    ]
    for who, fields in cases:
        event = [f"event.{field}" for field in fields]
        writes: list[tuple[Awaitable[object], list[str]]] = [
            (project.identity.UpdateProfile(UpdateProfileRequest(identifiers=who)), fields),
            (project.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="x")), fields),
            (project.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=DEVICE)), fields),
            (project.track(identifiers=who or Identifiers(), name="Event"), event),
        ]
        for call, wrong in writes:
            failed = await failure(call)
            assert (failed.code, failed.reason, failed.fields) == (INVALID, "FIELDS_INVALID", wrong), who
        if who is None or len(who.user_id) < 53:
            reads: list[Awaitable[object]] = [
                project.identity.GetProfile(GetProfileRequest(identifiers=who)),
                project.devices.ListDevices(ListDevicesRequest(identifiers=who)),
                project.events.ListEvents(ListEventsRequest(identifiers=who)),
            ]
            for read in reads:
                failed = await failure(read)
                assert (failed.code, failed.reason, failed.fields) == (INVALID, "FIELDS_INVALID", fields), who
    assert await count_profiles(world, project) == 0


async def test_a_user_id_project_is_never_asked_by_email(user_id_project: Client) -> None:
    """P3: in a USER_ID project an email alone names nobody, in reads, disables and writes alike."""
    await update(user_id_project, Identifiers(email="a@example.com", user_id="u"))
    who = email("a@example.com")
    calls: list[Awaitable[object]] = [
        user_id_project.identity.GetProfile(GetProfileRequest(identifiers=who)),
        user_id_project.identity.UpdateProfile(UpdateProfileRequest(identifiers=who)),
        user_id_project.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="x")),
        user_id_project.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=DEVICE)),
        user_id_project.devices.DisableDevice(DisableDeviceRequest(identifiers=who, token="t")),
        user_id_project.devices.ListDevices(ListDevicesRequest(identifiers=who)),
        user_id_project.events.ListEvents(ListEventsRequest(identifiers=who)),
    ]
    for call in calls:
        failed = await failure(call)
        assert (failed.code, failed.fields) == (INVALID, ["identifiers.email"])


async def test_a_bad_email_rejects_the_call_beside_a_good_user_id(hybrid_project: Client) -> None:
    """I1: in a HYBRID project nothing of a call with a bad email happens, not even for the user_id it names."""
    await update(hybrid_project, user("u"), {"plan": "free"})
    failed = await failure(update(hybrid_project, Identifiers(email="bad", user_id="u"), {"plan": "gold"}))
    assert (failed.code, failed.fields) == (INVALID, ["identifiers.email"])
    assert await fields_of(hybrid_project, user("u")) == {"plan": "free"}


@pytest.mark.parametrize("project_type", ["EMAIL", "HYBRID"])
async def test_emails_are_one_by_ascii_case_only(make_project: MakeProject, project_type: str) -> None:
    """I1, F70: any ASCII case names the same person, stored in small letters; dots and tags name others."""
    project = await make_project(project_type)
    first = await update(project, email("First.Last@Example.COM"))
    assert first.identifiers.email == "first.last@example.com"
    assert (await get(project, email("FIRST.LAST@EXAMPLE.COM"))).profile_id == first.profile_id
    again = await update(project, email("first.LAST@example.com"))
    assert (again.outcome, again.profile_id) == (WRITE_OUTCOME_UNCHANGED, first.profile_id)
    for other in ["firstlast@example.com", "first.last+tag@example.com", "first.last@mail.example.com"]:
        assert not await exists(project, email(other))


async def test_a_user_id_is_taken_as_it_is(user_id_project: Client) -> None:
    """I2, F69: case, quotes, inner spaces and characters of four bytes are kept; each spelling is another person."""
    ids = ["Ann", "ann", "o'brien", '"ann"', "'; DROP TABLE profiles; --", "a n", "%", "\N{GRINNING FACE}" * 52]
    written = [await update(user_id_project, user(user_id)) for user_id in ids]
    assert [answer.identifiers.user_id for answer in written] == ids
    assert len({answer.profile_id for answer in written}) == len(ids)
    for user_id, answer in zip(ids, written, strict=True):
        found = await get(user_id_project, user(user_id))
        assert (found.profile_id, found.identifiers.user_id) == (answer.profile_id, user_id)


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_a_user_id_is_never_generated(make_project: MakeProject, project_type: str) -> None:
    """I2, I9: a person gets no user_id that nobody gave, and outside EMAIL projects no email either."""
    project = await make_project(project_type)
    if project_type != "USER_ID":
        assert (await update(project, email("a@example.com"))).identifiers == email("a@example.com")
    if project_type != "EMAIL":
        written = await update(project, user("u"), prefer_user_id=True)
        assert (written.identifiers, written.email_is_placeholder) == (user("u"), False)


# --- uniqueness ------------------------------------------------------------------------------------------------------


async def test_a_shared_user_id_leads_to_the_oldest_and_says_so(email_project: Client) -> None:
    """P2, I10 but for the look-up of all: EMAIL profiles may share a user_id; the oldest is taken, the number told."""
    people = [email(f"{name}@example.com") for name in "abc"]
    ids = [(await update(email_project, who)).profile_id for who in people]
    # The youngest gets the user_id first: the oldest is the profile that is, not the one that had it first.
    for who in reversed(people):
        await update(email_project, Identifiers(email=who.email, user_id="u"))
    read = await email_project.identity.GetProfile(GetProfileRequest(identifiers=user("u")))
    assert (read.profile.profile_id, read.user_id_holder_count) == (ids[0], 3)
    written = await update(email_project, user("u"), {"seen": True})
    assert (written.profile_id, written.user_id_holder_count) == (ids[0], 3)
    # By email it is not ambiguous, and the next oldest follows when the first lets the user_id go.
    assert (await update(email_project, Identifiers(email="b@example.com", user_id="u"))).user_id_holder_count == 0
    await update(email_project, Identifiers(email="a@example.com", user_id="v"))
    read = await email_project.identity.GetProfile(GetProfileRequest(identifiers=user("u")))
    assert (read.profile.profile_id, read.user_id_holder_count) == (ids[1], 2)
    await update(email_project, Identifiers(email="b@example.com", user_id="v"))
    read = await email_project.identity.GetProfile(GetProfileRequest(identifiers=user("u")))
    assert (read.profile.profile_id, read.user_id_holder_count) == (ids[2], 0)


async def test_a_batch_takes_the_oldest_holder_as_single_calls_do(email_project: Client) -> None:
    """I10 in part, E4: a user_id that an earlier event of the batch gave to an older profile leads to that one."""
    older = await update(email_project, email("older@example.com"))
    await update(email_project, Identifiers(email="younger@example.com", user_id="u"))
    results = await email_project.batch(
        [
            NewEvent(identifiers=Identifiers(email="older@example.com", user_id="u"), name="First"),
            NewEvent(identifiers=user("u"), name="Second"),
        ]
    )
    assert [result.result.profile_id for result in results] == [older.profile_id] * 2


async def test_many_profiles_may_share_an_email_in_a_user_id_project(user_id_project: Client) -> None:
    """P2: in a USER_ID project an email is an attribute, which one person's change leaves with the others."""
    for user_id in ("u", "v"):
        written = await update(user_id_project, Identifiers(email="a@example.com", user_id=user_id))
        assert written.outcome == WRITE_OUTCOME_CREATED
    await update(user_id_project, Identifiers(email="b@example.com", user_id="u"))
    assert (await get(user_id_project, user("v"))).identifiers.email == "a@example.com"
    assert (await get(user_id_project, user("u"))).identifiers.email == "b@example.com"


async def test_two_people_are_never_merged_silently(hybrid_project: Client, world: World) -> None:
    """I3, F72: two people's identifiers in one call are refused naming both kinds, and both stay as they were."""
    await update(hybrid_project, email("a@example.com"), {"n": 1})
    await update(hybrid_project, user("u"), {"n": 2})
    before = await world.fetch("SELECT * FROM profiles WHERE project_id = $1 ORDER BY 2", hybrid_project.project_id)
    both = Identifiers(email="a@example.com", user_id="u")
    calls: list[Awaitable[object]] = [
        update(hybrid_project, both, {"n": 3}),
        hybrid_project.identity.Identify(IdentifyRequest(identifiers=both, anonymous_id="x")),
        hybrid_project.devices.RegisterDevice(RegisterDeviceRequest(identifiers=both, device=DEVICE)),
        hybrid_project.track(identifiers=both, name="Event"),
        get(hybrid_project, both),
    ]
    for call in calls:
        failed = await failure(call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "IDENTIFIERS_CONFLICT")
        assert failed.metadata == {"kinds": "email,user_id"}
        assert "a@example.com" not in failed.message
    after = await world.fetch("SELECT * FROM profiles WHERE project_id = $1 ORDER BY 2", hybrid_project.project_id)
    assert after == before
    assert await hybrid_project.timeline(identifiers=user("u")) == []
    # The refused Identify has not used the anonymous_id up.
    answer = await hybrid_project.identity.Identify(IdentifyRequest(identifiers=user("u"), anonymous_id="x"))
    assert answer.link.outcome == LINK_OUTCOME_LINKED


async def test_an_identifier_that_was_let_go_is_free(hybrid_project: Client) -> None:
    """P2: an email that its profile exchanged for another may become somebody else's."""
    first = await update(hybrid_project, Identifiers(email="old@example.com", user_id="u"))
    await update(hybrid_project, Identifiers(email="new@example.com", user_id="u"))
    assert not await exists(hybrid_project, email("old@example.com"))
    other = await update(hybrid_project, Identifiers(email="old@example.com", user_id="v"))
    assert other.outcome == WRITE_OUTCOME_CREATED
    assert other.profile_id != first.profile_id
    failed = await failure(update(hybrid_project, Identifiers(email="new@example.com", user_id="v")))
    assert failed.reason == "IDENTIFIERS_CONFLICT"


# --- who is made -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_which_kinds_of_events_make_a_person(make_project: MakeProject, project_type: str, batch: bool) -> None:
    """I5, I6, I7: in an EMAIL project purchases and carts alone make whom they name; elsewhere every kind does."""
    project = await make_project(project_type)
    kinds = [kind for kind in EventKind.values() if kind != EVENT_KIND_UNSPECIFIED]
    assert len(kinds) == 11
    for kind in kinds:
        makes = project_type != "EMAIL" or kind in (EVENT_KIND_PURCHASE, EVENT_KIND_CART_UPDATE)
        by_email, by_user_id = email(f"{kind}@example.com"), user(f"user-{kind}")
        for who, prefer in [(by_email, False), (by_user_id, True)]:
            if project_type == "USER_ID" and who.email:
                continue
            event = NewEvent(identifiers=who, name="Event", kind=kind, prefer_user_id=prefer)
            if batch:
                [item] = await project.batch([event])
                outcome = item.result.profile_outcome if item.HasField("result") else item.error.code
            elif makes:
                outcome = (
                    await project.track(identifiers=who, name="Event", kind=kind, prefer_user_id=prefer)
                ).profile_outcome
            else:
                call = project.track(identifiers=who, name="Event", kind=kind, prefer_user_id=prefer)
                outcome = (await failure(call)).code.value[0]
            assert outcome == (WRITE_OUTCOME_CREATED if makes else NOT_FOUND.value[0]), (kind, who)
            assert await exists(project, who) is makes


async def test_an_event_without_prefer_user_id_makes_nobody_by_user_id(email_project: Client) -> None:
    """I7: in an EMAIL project not even a purchase makes a person by user_id alone without prefer_user_id."""
    failed = await failure(email_project.track(identifiers=user("u"), name="Bought", kind=EVENT_KIND_PURCHASE))
    assert (failed.code, failed.reason) == (NOT_FOUND, "PROFILE_NOT_FOUND")
    assert not await exists(email_project, user("u"))


@pytest.mark.parametrize(
    ("user_id", "placeholder"),
    [
        ("some-user-id", "some-user-id+-1073031548@placeholder.email"),
        ("Aa", "aa+2112@placeholder.email"),
        # SHA-1 of 53, and of 256, times the letter u.
        ("u" * 53, "353922886d35fa407d9fedafaa5620c1b77c3881@placeholder.email"),
        ("u" * 256, "67b502bb6ad14ba9124c141e114eb7ebec483946@placeholder.email"),
    ],
    ids=["short", "capital", "53", "256"],
)
async def test_prefer_user_id_makes_a_profile_with_a_placeholder(
    email_project: Client, user_id: str, placeholder: str
) -> None:
    """I7, I8, I9: the generated placeholder is the documented one, is told to be one, and names the profile."""
    written = await update(email_project, user(user_id), prefer_user_id=True)
    assert written.outcome == WRITE_OUTCOME_CREATED
    assert written.identifiers == Identifiers(email=placeholder, user_id=user_id)
    assert written.email_is_placeholder
    for who in (user(user_id), email(placeholder)):
        read = await get(email_project, who)
        assert (read.profile_id, read.email_is_placeholder) == (written.profile_id, True)
        assert read.email_domain == "placeholder.email"
    again = await update(email_project, user(user_id), prefer_user_id=True)
    assert (again.outcome, again.profile_id) == (WRITE_OUTCOME_UNCHANGED, written.profile_id)


async def test_a_user_id_over_256_bytes_is_refused_even_with_prefer_user_id(email_project: Client) -> None:
    """I8: the one path that allows long ids ends at 256 bytes."""
    failed = await failure(update(email_project, user("u" * 257), prefer_user_id=True))
    assert (failed.code, failed.fields) == (INVALID, ["identifiers.user_id"])


@pytest.mark.parametrize("project_type", ["USER_ID", "HYBRID"])
async def test_prefer_user_id_allows_no_long_ids_elsewhere(make_project: MakeProject, project_type: str) -> None:
    """I7, I8: outside EMAIL projects prefer_user_id is ignored, so 53 characters are refused with it as without."""
    failed = await failure(update(await make_project(project_type), user("u" * 53), prefer_user_id=True))
    assert (failed.code, failed.fields) == (INVALID, ["identifiers.user_id"])


async def test_a_placeholder_that_is_taken_is_told(email_project: Client) -> None:
    """I8, I9: a caller may name a placeholder; a generated one that meets it is ALREADY_EXISTS, from every call."""
    taken = email("some-user-id+-1073031548@placeholder.email")
    written = await update(email_project, taken)
    assert (written.outcome, written.email_is_placeholder) == (WRITE_OUTCOME_CREATED, True)
    who = user("some-user-id")
    calls: list[Awaitable[object]] = [
        update(email_project, who, prefer_user_id=True),
        email_project.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="x", prefer_user_id=True)),
        email_project.devices.RegisterDevice(
            RegisterDeviceRequest(identifiers=who, device=DEVICE, prefer_user_id=True)
        ),
        email_project.track(identifiers=who, name="Bought", kind=EVENT_KIND_PURCHASE, prefer_user_id=True),
    ]
    for call in calls:
        failed = await failure(call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.ALREADY_EXISTS, "PLACEHOLDER_TAKEN")
    assert not await exists(email_project, who)
    assert (await get(email_project, taken)).identifiers == taken


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_a_caller_may_name_a_placeholder(make_project: MakeProject, project_type: str) -> None:
    """I9: any address at placeholder.email, in any case, is told to be a placeholder in every type; others are not."""
    project = await make_project(project_type)
    for number, (address, placeholder) in enumerate(
        [("Any-Thing@Placeholder.EMAIL", True), ("a@example.com", False), ("x@sub.placeholder.email", False)]
    ):
        written = await update(project, Identifiers(email=address, user_id=f"u-{number}"))
        read = await get(project, user(f"u-{number}"))
        assert written.identifiers.email == read.identifiers.email == address.lower()
        assert (written.email_is_placeholder, read.email_is_placeholder) == (placeholder, placeholder)


# --- data fields -----------------------------------------------------------------------------------------------------


async def test_an_update_is_an_upsert(email_project: Client) -> None:
    """I4: fields absent from a request survive, a null is kept as null, and an update of nothing changes nothing."""
    who = email("a@example.com")
    assert (await update(email_project, who, {"a": 1, "b": "x"})).outcome == WRITE_OUTCOME_CREATED
    assert (await update(email_project, who, {"b": None, "c": [True]})).outcome == WRITE_OUTCOME_UPDATED
    assert await fields_of(email_project, who) == {"a": 1, "b": None, "c": [True]}
    assert (await update(email_project, who)).outcome == WRITE_OUTCOME_UNCHANGED
    assert await fields_of(email_project, who) == {"a": 1, "b": None, "c": [True]}
    struct = (await get(email_project, who)).data_fields
    assert struct["b"] is None
    assert struct.fields["b"].WhichOneof("kind") == "null_value"


@pytest.mark.parametrize("call", ["UpdateProfile", "Identify"])
@pytest.mark.parametrize("form", ["struct", "json"])
@pytest.mark.parametrize(
    ("nested", "after"),
    [(False, {"mySettings": {"email": True}}), (True, {"mySettings": {"mobile": True, "email": True}})],
)
async def test_objects_are_replaced_or_merged_one_level_deep(
    email_project: Client, call: str, form: str, nested: bool, after: dict[str, Any]
) -> None:
    """I4, I15: the documented example, in both forms of data and by both calls."""
    who = email("a@example.com")
    await update(email_project, who, {"mySettings": {"mobile": True}, "kept": 1})
    fields: dict[str, Any] = {"data_fields_json": '{"mySettings":{"email":true}}'}
    if form == "struct":
        struct = Struct()
        struct.update({"mySettings": {"email": True}})
        fields = {"data_fields": struct}
    if call == "Identify":
        identified = await email_project.identity.Identify(
            IdentifyRequest(identifiers=who, anonymous_id="x", merge_nested_objects=nested, **fields)
        )
        outcome = identified.profile.outcome
    else:
        outcome = (await update(email_project, who, merge_nested_objects=nested, **fields)).outcome
    assert outcome == WRITE_OUTCOME_UPDATED
    assert await fields_of(email_project, who) == {**after, "kept": 1}


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**64 - 1, 2**53 + 1, -(2**53) - 1])
async def test_integers_of_64_bits_are_exact(email_project: Client, number: int) -> None:
    """I4: an integer told as JSON comes back to the last digit, also after another field was updated."""
    who = email("a@example.com")
    await update(email_project, who, {"n": number, "deep": {"list": [number]}})
    for _ in range(2):
        assert await fields_of(email_project, who) == {"n": number, "deep": {"list": [number]}}
        assert (await update(email_project, who, {"n": number})).outcome == WRITE_OUTCOME_UNCHANGED
        await update(email_project, who, {"deep": {"list": [number]}}, merge_nested_objects=True)


@pytest.mark.parametrize(
    "text",
    [
        *["1", "1.0", "1.5", "-0.0", "0.1", "1e2", "1e15", "1e16", "1e19", "1e22", "1e300", "5e-324", "2.5e-8"],
        *["true", "null", '""', "[]", "{}", '{"b":1,"a":[1.0,{"z":null,"y":1e16}]}', '"\\u00e9\\ud83d\\ude00"'],
    ],
)
async def test_the_same_update_again_is_unchanged(email_project: Client, text: str) -> None:
    """I4, I14: whatever the value, the same call again changes nothing and says so."""
    who = email("a@example.com")
    fields = f'{{"value":{text}}}'
    assert (await update(email_project, who, fields)).outcome == WRITE_OUTCOME_CREATED
    before = await get(email_project, who)
    # As doubles: 1e300 may come back as an integer of 301 digits, which to a reader of doubles is the same number.
    assert json.loads(await fields_text(email_project, who), parse_int=float) == json.loads(fields, parse_int=float)
    assert (await update(email_project, who, fields)).outcome == WRITE_OUTCOME_UNCHANGED
    assert await get(email_project, who) == before


@pytest.mark.parametrize("number", [1e16, 2.0**53, 2.0**53 + 2, -1e16, 1e19, 0.5, -0.0])
async def test_the_same_struct_again_is_unchanged(email_project: Client, number: float) -> None:
    """I4, I14: a number told as Struct is the same number when it is told again."""
    who = email("a@example.com")
    struct = Struct()
    struct.update({"value": number})
    assert (await update(email_project, who, data_fields=struct)).outcome == WRITE_OUTCOME_CREATED
    assert (await get(email_project, who)).data_fields["value"] == number
    assert (await update(email_project, who, data_fields=struct)).outcome == WRITE_OUTCOME_UNCHANGED


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ("[1]", "data_fields_json"),
        ("{", "data_fields_json"),
        ('{"a":NaN}', "data_fields_json"),
        ('{"a":1e400}', "data_fields_json"),
        ('{"a":"\\ud800"}', "data_fields_json"),
        ('{"a":{"b":["x","\\u0000"]}}', "data_fields_json.a.b[1]"),
    ],
)
async def test_bad_data_fields_are_named_and_make_nobody(email_project: Client, fields: str, wrong: str) -> None:
    """I4, X2: what is no JSON object, or holds what cannot be kept, is refused by its path and nothing happens."""
    failed = await failure(update(email_project, email("a@example.com"), fields))
    assert (failed.code, failed.fields) == (INVALID, [wrong])
    assert not await exists(email_project, email("a@example.com"))


async def test_data_fields_over_a_megabyte_are_refused_and_the_profile_stays(email_project: Client) -> None:
    """I4, X5: stored and given fields together may have 1 MB; beyond it, fields and identifiers stay as they were."""
    who = email("a@example.com")
    await update(email_project, who, {"a": "x" * 600_000})
    failed = await failure(update(email_project, Identifiers(email=who.email, user_id="u"), {"b": "y" * 500_000}))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DATA_FIELDS_LIMIT")
    assert failed.metadata == {"limit_bytes": "1000000"}
    assert list(await fields_of(email_project, who)) == ["a"]
    assert (await get(email_project, who)).identifiers.user_id == ""


@pytest.mark.parametrize("data_format", [DATA_FORMAT_STRUCT, DATA_FORMAT_JSON])
@pytest.mark.parametrize(("item", "count"), [("1", 490_000), ("1e300", 20_000)])
async def test_fields_that_were_taken_can_be_read_or_the_answer_says_why_not(
    email_project: Client, item: str, count: int, data_format: DataFormat.ValueType
) -> None:
    """X2, X5: data fields under 1 MB come back, or else the error carries the published reason MESSAGE_TOO_LARGE."""
    who = email("a@example.com")
    await update(email_project, who, f'{{"list":[{",".join([item] * count)}]}}')
    try:
        answer = await email_project.identity.GetProfile(GetProfileRequest(identifiers=who, data_format=data_format))
    except grpc.aio.AioRpcError as error:
        assert (error.code(), read_failure(error).reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "MESSAGE_TOO_LARGE",
        )
    else:
        text = answer.profile.data_fields_json
        struct = answer.profile.data_fields
        assert len(json.loads(text)["list"] if text else struct.fields["list"].list_value.values) == count


# --- reading ---------------------------------------------------------------------------------------------------------


async def make_by_update(project: Client, who: Identifiers) -> None:
    await update(project, who)


async def make_by_identify(project: Client, who: Identifiers) -> None:
    await project.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id="x"))


async def make_by_event(project: Client, who: Identifiers) -> None:
    await project.track(identifiers=who, name="Bought", kind=EVENT_KIND_PURCHASE)


async def make_by_device(project: Client, who: Identifiers) -> None:
    await project.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=DEVICE))


@pytest.mark.parametrize(
    ("make", "source"),
    [
        (make_by_update, SIGNUP_SOURCE_PROFILE_UPDATE),
        (make_by_identify, SIGNUP_SOURCE_IDENTIFY),
        (make_by_event, SIGNUP_SOURCE_EVENT),
        (make_by_device, SIGNUP_SOURCE_DEVICE),
    ],
)
async def test_a_read_tells_everything_about_a_profile(
    email_project: Client,
    world: World,
    make: Callable[[Client, Identifiers], Awaitable[None]],
    source: SignupSource.ValueType,
) -> None:
    """I11: identifiers, fields, domain, flags, the call that made it, four times by the database's clock, the id."""
    who = Identifiers(email="a@mail.example.com", user_id="u")
    start = await world.now()
    await make(email_project, who)
    end = await world.now()
    profile = await get(email_project, who)
    assert profile.identifiers == who
    assert profile.WhichOneof("fields") == "data_fields"
    assert not profile.data_fields.fields
    assert profile.email_domain == "mail.example.com"
    assert (profile.email_is_placeholder, profile.is_unknown) == (False, False)
    assert profile.signup_source == source
    for name in ("signup_time", "profile_update_time", "create_time", "update_time"):
        assert start <= getattr(profile, name).ToDatetime(start.tzinfo) <= end
    assert str(UUID(profile.profile_id)) == profile.profile_id
    by_id = await email_project.identity.GetProfile(GetProfileRequest(profile_id=profile.profile_id))
    assert by_id == GetProfileResponse(profile=profile)


async def test_a_profile_without_an_email_has_no_domain(user_id_project: Client) -> None:
    """I11: where there is no email, email and domain are empty and nothing is called a placeholder."""
    await update(user_id_project, user("u"))
    profile = await get(user_id_project, user("u"))
    assert (profile.identifiers, profile.email_domain, profile.email_is_placeholder) == (user("u"), "", False)


async def test_the_times_of_a_profile_follow_what_changes(email_project: Client, world: World) -> None:
    """I11: fields and identifiers move the update times; signup and creation stay, as do all when nothing changes."""
    who = Identifiers(email="a@example.com", user_id="u")
    await update(email_project, who, {"a": 1})
    for change, moves in [
        (update(email_project, who, {"a": 1}), False),
        (update(email_project, who, {"a": 2}), True),
        (update(email_project, Identifiers(email=who.email, user_id="v")), True),
        (email_project.track(identifiers=Identifiers(email=who.email, user_id="w"), name="Event"), True),
        (email_project.track(identifiers=email(who.email), name="Event"), False),
    ]:
        await world.pass_time(email_project.project_id, timedelta(hours=1))
        before = await get(email_project, email(who.email))
        await change
        after = await get(email_project, email(who.email))
        assert (after.create_time, after.signup_time) == (before.create_time, before.signup_time)
        assert (after.profile_update_time != before.profile_update_time) is moves
        assert after.update_time.ToDatetime() >= after.profile_update_time.ToDatetime()


async def test_the_profile_id_outlives_every_identifier(hybrid_project: Client) -> None:
    """I2, I11: a person who exchanges the email keeps the id, and whatever hangs on it."""
    first = await update(hybrid_project, Identifiers(email="a@example.com", user_id="u"), {"a": 1})
    await hybrid_project.track(identifiers=user("u"), name="Event")
    changed = await update(hybrid_project, Identifiers(email="b@example.com", user_id="u"))
    assert (changed.outcome, changed.profile_id) == (WRITE_OUTCOME_UPDATED, first.profile_id)
    assert await hybrid_project.names(identifiers=email("b@example.com")) == ["Event"]
    assert await fields_of(hybrid_project, email("b@example.com")) == {"a": 1}


@pytest.mark.parametrize(
    ("profile_id", "code"),
    [
        ("0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11", NOT_FOUND),
        ("", INVALID),
        ("u", INVALID),
        ("{0198c2f0-7d1a-7bbb-8a52-0d6b1f2a9c11}", INVALID),
        ("0198c2f07d1a7bbb8a520d6b1f2a9c11", INVALID),
    ],
)
async def test_an_id_that_is_nobodys_or_no_id_is_told_apart(
    email_project: Client, profile_id: str, code: grpc.StatusCode
) -> None:
    """I11, X2: an id that nobody has is NOT_FOUND, and a text that is none is INVALID_ARGUMENT naming the field."""
    failed = await failure(email_project.identity.GetProfile(GetProfileRequest(profile_id=profile_id)))
    assert failed.code == code
    assert failed.fields == ([] if code is NOT_FOUND else ["profile_id"])


async def test_reading_by_two_identifiers_goes_by_the_one_that_identifies(make_project: MakeProject) -> None:
    """P3: with both given, an EMAIL project reads by email and a USER_ID project by user_id."""
    both = Identifiers(email="a@example.com", user_id="u")
    for project_type, finds, other in [
        ("EMAIL", Identifiers(email="a@example.com", user_id="v"), Identifiers(email="b@example.com", user_id="u")),
        ("USER_ID", Identifiers(email="b@example.com", user_id="u"), Identifiers(email="a@example.com", user_id="v")),
    ]:
        project = await make_project(project_type)
        await update(project, other)
        failed = await failure(get(project, both))
        assert (failed.code, failed.reason) == (NOT_FOUND, "PROFILE_NOT_FOUND")
        made = await update(project, finds)
        assert (await get(project, both)).profile_id == made.profile_id


# --- Identify --------------------------------------------------------------------------------------------------------


async def test_identify_associates_nothing_while_merging_is_off(email_project: Client, world: World) -> None:
    """P5, I15: with event merging off the profile is written; the id and its events stay free until it is on again."""
    await switch_merging(email_project, False)
    await email_project.track(anonymous_id="x", name="Viewed")
    request = IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x", data_fields_json='{"plan":"gold"}')
    for outcome in (WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UNCHANGED):
        answer = await email_project.identity.Identify(request)
        assert answer.profile.outcome == outcome
        assert answer.link.outcome == LINK_OUTCOME_MERGING_OFF
        assert not answer.link.merge_id
        assert not answer.link.HasField("link_time")
        assert not answer.link.HasField("grace_end_time")
    await email_project.track(anonymous_id="x", name="Clicked")
    await world.settle(email_project.project_id)
    assert await email_project.names(identifiers=email("a@example.com")) == []
    assert await email_project.names(anonymous_id="x") == ["Clicked", "Viewed"]
    assert await fields_of(email_project, email("a@example.com")) == {"plan": "gold"}

    await switch_merging(email_project, True)
    answer = await email_project.identity.Identify(
        IdentifyRequest(identifiers=email("b@example.com"), anonymous_id="x")
    )
    assert answer.link.outcome == LINK_OUTCOME_LINKED
    assert await email_project.names(identifiers=email("b@example.com")) == ["Clicked", "Viewed"]
    assert await email_project.names(identifiers=email("a@example.com")) == []


async def test_switching_merging_off_leaves_what_was_associated(email_project: Client, world: World) -> None:
    """P5: what Identify associated before the switch stays the person's, before and after the worker has moved it."""
    await email_project.track(anonymous_id="x", name="Viewed")
    await email_project.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"))
    await switch_merging(email_project, False)
    assert await email_project.names(identifiers=email("a@example.com")) == ["Viewed"]
    await world.settle(email_project.project_id)
    assert await email_project.names(identifiers=email("a@example.com")) == ["Viewed"]
    assert await email_project.names(anonymous_id="x") == []


async def test_identify_links_nothing_to_a_person_it_skips(email_project: Client) -> None:
    """I14, I15: with update_existing_only and nobody there nothing is linked, and the id is still free."""
    await email_project.track(anonymous_id="x", name="Viewed")
    answer = await email_project.identity.Identify(
        IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x", update_existing_only=True)
    )
    assert answer.profile == ProfileWrite(outcome=WRITE_OUTCOME_SKIPPED)
    assert answer.link.outcome == LINK_OUTCOME_SKIPPED
    assert not answer.link.merge_id
    assert await email_project.names(anonymous_id="x") == ["Viewed"]
    answer = await email_project.identity.Identify(
        IdentifyRequest(identifiers=email("b@example.com"), anonymous_id="x")
    )
    assert answer.link.outcome == LINK_OUTCOME_LINKED


async def test_identify_that_finds_nobody_links_nothing(email_project: Client) -> None:
    """I7, I15: an Identify that is NOT_FOUND has no effect on the anonymous_id."""
    failed = await failure(email_project.identity.Identify(IdentifyRequest(identifiers=user("u"), anonymous_id="x")))
    assert (failed.code, failed.reason) == (NOT_FOUND, "PROFILE_NOT_FOUND")
    answer = await email_project.identity.Identify(
        IdentifyRequest(identifiers=email("b@example.com"), anonymous_id="x")
    )
    assert answer.link.outcome == LINK_OUTCOME_LINKED


async def test_identify_links_to_the_profile_it_finds(email_project: Client) -> None:
    """I15: an existing person, with update_existing_only and without, gets the id and the new attributes."""
    made = await update(email_project, Identifiers(email="a@example.com", user_id="u"), {"a": 1})
    await email_project.track(anonymous_id="x", name="Viewed")
    answer = await email_project.identity.Identify(
        IdentifyRequest(identifiers=user("u"), anonymous_id="x", data_fields_json='{"b":2}', update_existing_only=True)
    )
    assert (answer.profile.profile_id, answer.profile.outcome) == (made.profile_id, WRITE_OUTCOME_UPDATED)
    assert answer.link.outcome == LINK_OUTCOME_LINKED
    grace = answer.link.grace_end_time.ToDatetime() - answer.link.link_time.ToDatetime()
    assert grace == timedelta(minutes=5)
    assert await email_project.names(identifiers=email("a@example.com")) == ["Viewed"]
    assert await fields_of(email_project, user("u")) == {"a": 1, "b": 2}


@pytest.mark.parametrize("anonymous_id", ["", "   ", "undefined", "NULL", "x" * 257, "a\nb"])
async def test_identify_needs_an_anonymous_id_of_its_own(email_project: Client, anonymous_id: str) -> None:
    """I2, I15: an id that is missing, or that many visitors would share, is refused and the profile is not written."""
    failed = await failure(
        email_project.identity.Identify(IdentifyRequest(identifiers=email("a@example.com"), anonymous_id=anonymous_id))
    )
    assert (failed.code, failed.fields) == (INVALID, ["anonymous_id"])
    assert not await exists(email_project, email("a@example.com"))


# --- two at once -----------------------------------------------------------------------------------------------------

ROUNDS = 40


@pytest.mark.parametrize(
    ("project_type", "given"),
    [("USER_ID", "user_id"), ("HYBRID", "user_id"), ("HYBRID", "email"), ("EMAIL", "email"), ("EMAIL", "placeholder")],
)
async def test_two_first_events_at_once_make_one_profile(
    make_project: MakeProject, world: World, project_type: str, given: str
) -> None:
    """F45, P2: of two first events for a new person together, one makes the profile and both are on it, every time."""
    project = await make_project(project_type)
    for number in range(ROUNDS):
        who = email(f"a{number}@example.com") if given == "email" else user(f"u-{number}")
        results = await asyncio.gather(
            *(
                project.track(
                    identifiers=who, name=name, kind=EVENT_KIND_PURCHASE, prefer_user_id=given == "placeholder"
                )
                for name in ("First", "Second")
            )
        )
        assert results[0].profile_id == results[1].profile_id
        assert {result.profile_outcome for result in results} == {WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UNCHANGED}
        assert sorted(await project.names(identifiers=who)) == ["First", "Second"]
    assert await count_profiles(world, project) == ROUNDS


async def test_first_calls_of_every_sort_at_once_make_one_profile(user_id_project: Client, world: World) -> None:
    """F45: an event, a batch, an update, an Identify and a device for one new user_id together reach one profile."""
    for number in range(ROUNDS):
        who = user(f"u-{number}")
        tracked, batch, updated, identified, registered = await asyncio.gather(
            user_id_project.track(identifiers=who, name="Single", kind=EVENT_KIND_CUSTOM),
            user_id_project.batch([NewEvent(identifiers=who, name=name) for name in ("First", "Second")]),
            update(user_id_project, who, {"a": 1}),
            user_id_project.identity.Identify(
                IdentifyRequest(identifiers=who, anonymous_id=f"x-{number}", data_fields_json='{"b":2}')
            ),
            user_id_project.devices.RegisterDevice(RegisterDeviceRequest(identifiers=who, device=DEVICE)),
        )
        writes = [updated, identified.profile, registered.profile]
        ids = {tracked.profile_id, *(item.result.profile_id for item in batch), *(write.profile_id for write in writes)}
        assert len(ids) == 1
        outcomes = [tracked.profile_outcome, batch[0].result.profile_outcome, *(write.outcome for write in writes)]
        assert outcomes.count(WRITE_OUTCOME_CREATED) == 1
        assert sorted(await user_id_project.names(identifiers=who)) == ["First", "Second", "Single"]
        assert await fields_of(user_id_project, who) == {"a": 1, "b": 2}
        devices = await user_id_project.devices.ListDevices(ListDevicesRequest(identifiers=who))
        assert [device.token for device in devices.devices] == ["t"]
    assert await count_profiles(world, user_id_project) == ROUNDS


async def test_updates_at_once_lose_no_field(hybrid_project: Client) -> None:
    """I4: of updates to one profile together, by either identifier and merged into one object, none is lost."""
    both = Identifiers(email="a@example.com", user_id="u")
    await update(hybrid_project, both)
    for number in range(ROUNDS // 2):
        await asyncio.gather(
            *(
                update(hybrid_project, who, {"object": {f"{number}-{index}": index}}, merge_nested_objects=True)
                for index, who in enumerate([email(both.email), user(both.user_id), both, email(both.email)])
            )
        )
    wanted = {f"{number}-{index}": index for number in range(ROUNDS // 2) for index in range(4)}
    assert await fields_of(hybrid_project, both) == {"object": wanted}


async def test_an_email_wanted_by_two_at_once_is_one_persons(hybrid_project: Client) -> None:
    """P2, I3: when two people are given one new email together, one gets it and the other call is refused whole."""
    for number in range(ROUNDS):
        people = [f"u-{number}", f"v-{number}"]
        for user_id in people:
            await update(hybrid_project, user(user_id))
        wanted = f"a{number}@example.com"
        answers = await asyncio.gather(
            *(update(hybrid_project, Identifiers(email=wanted, user_id=user_id), {"got": True}) for user_id in people),
            return_exceptions=True,
        )
        refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
        [taken] = [answer for answer in answers if isinstance(answer, ProfileWrite)]
        assert [error.code() for error in refused] == [grpc.StatusCode.FAILED_PRECONDITION]
        assert (await get(hybrid_project, email(wanted))).profile_id == taken.profile_id
        got = [await fields_of(hybrid_project, user(user_id)) for user_id in people]
        assert sorted(got, key=len) == [{}, {"got": True}]


async def test_an_anonymous_id_wanted_by_two_new_people_at_once_is_one_persons(email_project: Client) -> None:
    """I15: two Identifies of one id for two new people together write both profiles and link one of them."""
    for number in range(ROUNDS // 2):
        await email_project.track(anonymous_id=f"x-{number}", name="Viewed")
        people = [email(f"{name}{number}@example.com") for name in "ab"]
        answers = await asyncio.gather(
            *(
                email_project.identity.Identify(IdentifyRequest(identifiers=who, anonymous_id=f"x-{number}"))
                for who in people
            )
        )
        assert [answer.profile.outcome for answer in answers] == [WRITE_OUTCOME_CREATED] * 2
        linked = [answer.link.outcome == LINK_OUTCOME_LINKED for answer in answers]
        assert sorted(linked) == [False, True]
        for who, is_linked in zip(people, linked, strict=True):
            assert await email_project.names(identifiers=who) == (["Viewed"] if is_linked else [])
