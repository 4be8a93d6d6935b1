"""BatchUpdateProfiles and BatchGetProfiles: many people in one call, each for themselves."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import timedelta
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.identity.naming import generated_placeholder
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON, DataFormat
from onefold.v1.error_reason_pb2 import ErrorReason
from onefold.v1.identity_service_pb2 import (
    BatchGetProfilesRequest,
    BatchUpdateProfilesRequest,
    BatchUpdateProfilesResponse,
    BatchUpdateProfilesResult,
    ForgetProfileRequest,
    GetProfileRequest,
    MergeProfilesRequest,
    PersonName,
    ProfileUpdate,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import (
    WRITE_OUTCOME_CREATED,
    WRITE_OUTCOME_SKIPPED,
    WRITE_OUTCOME_UNCHANGED,
    WRITE_OUTCOME_UPDATED,
    Identifiers,
    ProfileWrite,
)
from support.client import Client, email, failure, read_failure, user
from support.traces import rows_of
from support.world import World

TYPES = ["EMAIL", "USER_ID", "HYBRID"]


async def update(c: Client, updates: list[ProfileUpdate], request_id: str = "") -> BatchUpdateProfilesResponse:
    """Sends a batch of updates."""
    return await c.identity.BatchUpdateProfiles(BatchUpdateProfilesRequest(updates=updates, request_id=request_id))


def reason(result: BatchUpdateProfilesResult) -> str:
    """The reason of an item's error; "" for none."""
    return ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_") if result.HasField("error") else ""


async def put(c: Client, identifiers: Identifiers, fields: str = "{}") -> str:
    """Writes a profile; returns its id."""
    answer = await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=identifiers, data_fields_json=fields))
    return answer.profile.profile_id


async def fields_of(c: Client, identifiers: Identifiers) -> Any:
    """A profile's data fields."""
    request = GetProfileRequest(identifiers=identifiers, data_format=DATA_FORMAT_JSON)
    return json.loads((await c.identity.GetProfile(request)).profile.data_fields_json)


@pytest.mark.parametrize("project_type", TYPES)
async def test_a_thousand_items_with_a_bad_one(make_project: MakeProject, world: World, project_type: str) -> None:
    """I13: 1,000 items give 1,000 results in request order; the bad one is refused alone and 999 are stored."""
    c = await make_project(project_type)

    def who(index: int) -> Identifiers:
        if index == 37:
            return email("bad") if project_type == "EMAIL" else user("null")
        return email(f"p{index}@example.com") if project_type == "EMAIL" else user(f"p{index}")

    updates = [ProfileUpdate(identifiers=who(index), data_fields_json=f'{{"n":{index}}}') for index in range(1_000)]
    answer = await update(c, updates)
    assert len(answer.results) == 1_000
    for index, result in enumerate(answer.results):
        if index == 37:
            assert (result.error.code, reason(result)) == (grpc.StatusCode.INVALID_ARGUMENT.value[0], "FIELDS_INVALID")
            assert len(result.error.field_violations) == 1
        else:
            assert result.profile.outcome == WRITE_OUTCOME_CREATED
            assert result.profile.identifiers == who(index)
    assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", c.project_id) == 999
    assert await fields_of(c, who(999)) == {"n": 999}
    again = await update(c, updates)
    assert [each.profile.outcome for each in again.results].count(WRITE_OUTCOME_UNCHANGED) == 999
    assert [each.profile.profile_id for each in again.results] == [each.profile.profile_id for each in answer.results]


async def test_too_many_items(email_project: Client, world: World) -> None:
    """I13 X2: 1,001 items are refused as a whole and nothing is stored; none at all is an empty answer."""
    c = email_project
    before = await rows_of(world, c.project_id)
    updates = [ProfileUpdate(identifiers=email(f"p{index}@example.com")) for index in range(1_001)]
    refused = await failure(update(c, updates, request_id="bad "))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
    assert sorted(refused.fields) == ["request_id", "updates"]
    assert await rows_of(world, c.project_id) == before
    assert not (await update(c, [])).results


BAD_ITEMS: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("EMAIL", {}, "FIELDS_INVALID", ["identifiers"]),
    (
        "EMAIL",
        {"identifiers": Identifiers(email="bad", user_id="nan"), "data_fields_json": "["},
        "FIELDS_INVALID",
        ["data_fields_json", "identifiers.email", "identifiers.user_id"],
    ),
    (
        "EMAIL",
        {"identifiers": email("a@example.com"), "data_fields_json": '{"a":NaN}'},
        "FIELDS_INVALID",
        ["data_fields_json"],
    ),
    (
        "EMAIL",
        {"identifiers": email("a@example.com"), "data_fields_json": '{"a":' + "[" * 17 + "]" * 17 + "}"},
        "FIELDS_INVALID",
        ["data_fields_json"],
    ),
    (
        "EMAIL",
        {"identifiers": email("a@example.com"), "data_fields_json": json.dumps({f"k{i}": 1 for i in range(513)})},
        "FIELDS_INVALID",
        ["data_fields_json"],
    ),
    ("EMAIL", {"identifiers": user("nobody")}, "PROFILE_NOT_FOUND", []),
    ("EMAIL", {"identifiers": user("u" * 53)}, "FIELDS_INVALID", ["identifiers.user_id"]),
    ("EMAIL", {"identifiers": user("some-user-id"), "prefer_user_id": True}, "PLACEHOLDER_TAKEN", []),
    (
        "EMAIL",
        {"identifiers": email("there@example.com"), "data_fields_json": json.dumps({"big": "x" * 999_980})},
        "DATA_FIELDS_LIMIT",
        [],
    ),
    ("EMAIL", {"identifiers": email("gone@example.com")}, "FORGOTTEN", []),
    ("EMAIL", {"identifiers": user("visitor"), "prefer_user_id": True}, "FORGOTTEN", []),
    ("USER_ID", {"identifiers": email("a@example.com")}, "FIELDS_INVALID", ["identifiers.email"]),
    ("USER_ID", {"identifiers": user("gone")}, "FORGOTTEN", []),
    ("HYBRID", {"identifiers": Identifiers(email="bad", user_id="u")}, "FIELDS_INVALID", ["identifiers.email"]),
    (
        "HYBRID",
        {"identifiers": Identifiers(email="there@example.com", user_id="other")},
        "IDENTIFIERS_CONFLICT",
        [],
    ),
    ("HYBRID", {"identifiers": Identifiers(email="gone@example.com", user_id="other")}, "FORGOTTEN", []),
]


@pytest.mark.parametrize(("project_type", "bad", "expected", "fields"), BAD_ITEMS)
async def test_a_bad_item_spoils_no_other(
    make_project: MakeProject,
    world: World,
    project_type: str,
    bad: dict[str, Any],
    expected: str,
    fields: list[str],
) -> None:
    """I13 X2: an item is refused as its own call would be, with all its wrong fields; those around it are stored, also
    those of the very same people, and nothing of it is."""
    c = await make_project(project_type)
    there = Identifiers(email="there@example.com", user_id="there")
    await put(c, there, '{"kept":"' + "x" * 30 + '"}')
    await put(c, Identifiers(email="some-user-id+-1073031548@placeholder.email", user_id="other"))
    gone = user("gone") if project_type == "USER_ID" else email("gone@example.com")
    await c.identity.ForgetProfile(ForgetProfileRequest(identifiers=gone))
    if bad.get("prefer_user_id"):
        await c.identity.ForgetProfile(ForgetProfileRequest(identifiers=email(generated_placeholder("visitor"))))
    good = user("there") if project_type == "USER_ID" else email("there@example.com")
    answer = await update(
        c,
        [
            ProfileUpdate(identifiers=good, data_fields_json='{"first":1}'),
            ProfileUpdate(**bad),
            ProfileUpdate(identifiers=good, data_fields_json='{"last":1}'),
        ],
    )
    assert [reason(result) for result in answer.results] == ["", expected, ""]
    # What is wrong deep inside the data is named by its path.
    wrong = sorted(violation.field for violation in answer.results[1].error.field_violations)
    assert [each.partition("_json.")[0] + "_json" if "_json." in each else each for each in wrong] == fields
    single = await failure(c.identity.UpdateProfile(UpdateProfileRequest(**bad)))
    assert (single.code.value[0], single.reason) == (answer.results[1].error.code, expected)
    assert await fields_of(c, good) == {"kept": "x" * 30, "first": 1, "last": 1}
    assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", c.project_id) == 2


async def test_one_person_many_times(email_project: Client) -> None:
    """I13 I4 I14: a person who stands several times in a batch is created once, and each item builds on the last."""
    c = email_project
    a = email("a@example.com")
    answer = await update(
        c,
        [
            ProfileUpdate(identifiers=a, update_existing_only=True),
            ProfileUpdate(identifiers=a, data_fields_json='{"s":{"mobile":true},"n":1}'),
            ProfileUpdate(identifiers=a, data_fields_json='{"s":{"email":true}}', merge_nested_objects=True),
            ProfileUpdate(identifiers=email("A@Example.com"), data_fields_json='{"n":1}'),
            ProfileUpdate(identifiers=Identifiers(email="a@example.com", user_id="u")),
            ProfileUpdate(identifiers=user("u"), data_fields_json='{"s":{"web":true}}'),
            ProfileUpdate(identifiers=a, update_existing_only=True),
        ],
    )
    assert [result.profile.outcome for result in answer.results] == [
        WRITE_OUTCOME_SKIPPED,
        WRITE_OUTCOME_CREATED,
        WRITE_OUTCOME_UPDATED,
        WRITE_OUTCOME_UNCHANGED,
        WRITE_OUTCOME_UPDATED,
        WRITE_OUTCOME_UPDATED,
        WRITE_OUTCOME_UNCHANGED,
    ]
    assert answer.results[0].profile.profile_id == ""
    assert len({result.profile.profile_id for result in answer.results[1:]}) == 1
    assert await fields_of(c, a) == {"s": {"web": True}, "n": 1}


async def test_an_item_by_a_shared_user_id_says_so(email_project: Client) -> None:
    """I10 I13: an item by a user_id that several hold writes the oldest and tells how many hold it, as alone."""
    c = email_project
    ids = [await put(c, Identifiers(email=f"{each}@example.com", user_id="shared")) for each in "abc"]
    single = (await c.identity.UpdateProfile(UpdateProfileRequest(identifiers=user("shared")))).profile
    assert (single.profile_id, single.user_id_holder_count) == (ids[0], 3)
    answer = await update(c, [ProfileUpdate(identifiers=user("shared"), data_fields_json='{"a":1}')])
    assert answer.results[0].profile.profile_id == ids[0]
    assert answer.results[0].profile.user_id_holder_count == 3


async def test_each_item_tells_the_identifiers_that_it_left(email_project: Client) -> None:
    """I13 I14: the result of an item tells the person's identifiers as its own call would have, not what a later item
    of the batch made of them."""
    c = email_project
    answer = await update(
        c, [ProfileUpdate(identifiers=Identifiers(email="a@example.com", user_id=user_id)) for user_id in ("u1", "u2")]
    )
    assert [result.profile.identifiers.user_id for result in answer.results] == ["u1", "u2"]


def _random_update(dice: random.Random, project_type: str) -> ProfileUpdate:
    identifiers = Identifiers()
    if dice.random() < 0.65:
        identifiers.email = f"e{dice.randrange(4)}@example.com"
    if dice.random() < 0.65 or not identifiers.email:
        identifiers.user_id = f"u{dice.randrange(4)}"
    if dice.random() < 0.04:
        identifiers.email = "bad"
    return ProfileUpdate(
        identifiers=identifiers,
        data_fields_json=dice.choice(['{"a":1}', '{"a":{"b":1}}', '{"a":{"c":2}}', '{"d":[1]}', "{}", "[]"]),
        merge_nested_objects=dice.random() < 0.5,
        prefer_user_id=dice.random() < 0.3,
        update_existing_only=dice.random() < 0.15,
    )


async def _alone(c: Client, item: ProfileUpdate) -> tuple[str, list[str], ProfileWrite]:
    request = UpdateProfileRequest.FromString(item.SerializeToString())
    try:
        return "", [], (await c.identity.UpdateProfile(request)).profile
    except grpc.aio.AioRpcError as error:
        failed = read_failure(error)
        return failed.reason, failed.fields, ProfileWrite()


async def _people(world: World, project_id: str) -> dict[str, tuple[Any, ...]]:
    """All profiles by their ids, in the order in which they were made."""
    rows = await world.fetch(
        "SELECT profile_id, email, user_id, data_fields::text AS data_fields, signup_source, is_unknown"
        " FROM profiles WHERE project_id = $1 ORDER BY profile_id",
        project_id,
    )
    return {
        str(row["profile_id"]): (
            row["email"],
            row["user_id"],
            json.loads(row["data_fields"]),
            row["signup_source"],
            row["is_unknown"],
        )
        for row in rows
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("project_type", TYPES)
async def test_a_batch_equals_its_updates_one_by_one(
    make_project: MakeProject, world: World, project_type: str, seed: int
) -> None:
    """I13 I3 I4: whoever the items name, and however they take names from each other, a batch gives the results and
    leaves the profiles that its items would one after the other; with a forgotten name and one left by a merge."""
    dice = random.Random(f"{project_type} {seed}")
    batched, single = await make_project(project_type), await make_project(project_type)
    for c in (batched, single):
        gone = user("u3") if project_type == "USER_ID" else email("e3@example.com")
        await c.identity.ForgetProfile(ForgetProfileRequest(identifiers=gone))
        main = [Identifiers(email=f"e{each}@example.com", user_id=f"u{each}") for each in (1, 2)]
        for each in main:
            await put(c, each, '{"a":{"z":0}}')
        names = [user(each.user_id) if project_type == "USER_ID" else email(each.email) for each in main]
        await c.identity.MergeProfiles(MergeProfilesRequest(source=names[0], target=names[1], allow_known_source=True))
    for _ in range(4):
        items = [_random_update(dice, project_type) for _ in range(12)]
        results = (await update(batched, items)).results
        expected = [await _alone(single, item) for item in items]
        # One by one the profiles have other ids; they compare by the order in which they were made.
        order, other_order = (
            list(await _people(world, batched.project_id)),
            list(await _people(world, single.project_id)),
        )
        for item, result, (why, fields, profile) in zip(items, results, expected, strict=True):
            told = item, reason(result), [violation.field for violation in result.error.field_violations]
            assert told == (item, why, fields)
            assert (item, result.profile.outcome) == (item, profile.outcome)
            if profile.profile_id:
                assert order.index(result.profile.profile_id) == other_order.index(profile.profile_id)
        left, right = await _people(world, batched.project_id), await _people(world, single.project_id)
        assert list(left.values()) == list(right.values())


async def test_batches_over_the_same_people_at_once(hybrid_project: Client, world: World) -> None:
    """I13 F45: batches that create and update the same people at the same moment, in whatever order, make each person
    once and lose no field."""
    c = hybrid_project
    people = [user(f"u{index}") for index in range(40)]
    dice = random.Random(1)
    batches = []
    for number in range(6):
        dice.shuffle(people)
        batches.append([ProfileUpdate(identifiers=each, data_fields_json=f'{{"b{number}":1}}') for each in people])
    answers = await asyncio.gather(*(update(c, batch) for batch in batches))
    outcomes = [result.profile.outcome for answer in answers for result in answer.results]
    assert outcomes.count(WRITE_OUTCOME_CREATED) == 40 and outcomes.count(WRITE_OUTCOME_UPDATED) == 200
    assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", c.project_id) == 40
    for each in people:
        assert await fields_of(c, each) == {f"b{number}": 1 for number in range(6)}


async def test_request_ids_of_batches(email_project: Client, world: World) -> None:
    """X1: the same batch again gives the stored answer, errors of items included, and no second effect; another body is
    refused; after 24 hours the id is free."""
    c = email_project
    items = [
        ProfileUpdate(identifiers=email("a@example.com"), data_fields_json='{"n":1}'),
        ProfileUpdate(identifiers=email("bad")),
    ]
    first = await update(c, items, request_id="r")
    assert not first.replayed
    await put(c, email("a@example.com"), '{"n":2}')
    before = await rows_of(world, c.project_id)
    again = await update(c, items, request_id="r")
    assert again.replayed and list(again.results) == list(first.results)
    reused = await failure(update(c, items[:1], request_id="r"))
    assert (reused.code, reused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    assert reused.metadata == {"request_id": "r"}
    assert await rows_of(world, c.project_id) == before
    await world.pass_time(c.project_id, timedelta(hours=24, seconds=1))
    fresh = await update(c, items, request_id="r")
    assert not fresh.replayed and fresh.results[0].profile.outcome == WRITE_OUTCOME_UPDATED
    assert await fields_of(c, email("a@example.com")) == {"n": 1}


def names(*who: Identifiers | str) -> list[PersonName]:
    """People by identifiers or by profile_id."""
    return [PersonName(profile_id=each) if isinstance(each, str) else PersonName(identifiers=each) for each in who]


@pytest.mark.parametrize("data_format", DataFormat.values())
async def test_many_profiles_read_at_once(make_project: MakeProject, data_format: Any) -> None:
    """I11 I13 P6: one result per person in request order, by either identifier or by id, the same as GetProfile's; one
    who is not there, is named wrongly, or lives in another project does not spoil the others."""
    c, other = await make_project("HYBRID"), await make_project("HYBRID")
    a = await put(c, Identifiers(email="a@example.com", user_id="a"), '{"plan":"gold"}')
    b = await put(c, user("b"))
    stranger = await put(other, user("s"))
    asked = names(
        user("b"), a, email("nobody@example.com"), email("A@example.com"), user("null"), stranger, "x", b,
        Identifiers(email="a@example.com", user_id="b"), Identifiers(),
    )  # fmt: skip
    asked.append(PersonName())
    answer = await c.identity.BatchGetProfiles(BatchGetProfilesRequest(people=asked, data_format=data_format))
    told = [
        result.profile.profile_id or ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_")
        for result in answer.results
    ]
    assert told == [
        b, a, "PROFILE_NOT_FOUND", a, "FIELDS_INVALID", "PROFILE_NOT_FOUND", "FIELDS_INVALID", b,
        "IDENTIFIERS_CONFLICT", "FIELDS_INVALID", "FIELDS_INVALID",
    ]  # fmt: skip
    # Of another project, the same bytes as one that is not there.
    assert answer.results[5].error == answer.results[2].error
    assert [each.field for each in answer.results[4].error.field_violations] == ["identifiers.user_id"]
    assert [each.field for each in answer.results[6].error.field_violations] == ["profile_id"]
    for result in answer.results:
        if result.HasField("profile"):
            request = GetProfileRequest(profile_id=result.profile.profile_id, data_format=data_format)
            assert result.profile == (await c.identity.GetProfile(request)).profile
            assert result.profile.WhichOneof("fields") == (
                "data_fields_json" if data_format == DATA_FORMAT_JSON else "data_fields"
            )


async def test_a_thousand_profiles_read_at_once(user_id_project: Client) -> None:
    """I13 X2: 1,000 people may be asked for, 1,001 are refused, none gives none."""
    c = user_id_project
    await update(c, [ProfileUpdate(identifiers=user(f"p{index}")) for index in range(0, 1_000, 2)])
    asked = names(*(user(f"p{index}") for index in range(1_000)))
    answer = await c.identity.BatchGetProfiles(BatchGetProfilesRequest(people=asked))
    assert [result.profile.identifiers.user_id for result in answer.results] == [
        "" if index % 2 else f"p{index}" for index in range(1_000)
    ]
    refused = await failure(
        c.identity.BatchGetProfiles(BatchGetProfilesRequest(people=[*asked, asked[0]], data_format=7))  # type: ignore[arg-type]  # no known value
    )
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
    assert sorted(refused.fields) == ["data_format", "people"]
    assert not (await c.identity.BatchGetProfiles(BatchGetProfilesRequest())).results


async def test_profiles_that_do_not_fit_are_said_to_be_there(email_project: Client) -> None:
    """X5 X2: an answer holds at most 3 MiB of profiles; those that do not fit are told and can be asked for again."""
    c = email_project
    who = [email(f"p{index}@example.com") for index in range(4)]
    for each in who:
        await put(c, each, json.dumps({"big": "x" * 900_000}))
    asked = [*names(*who), *names(email("nobody@example.com"))]
    answer = await c.identity.BatchGetProfiles(BatchGetProfilesRequest(people=asked, data_format=DATA_FORMAT_JSON))
    told = [ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_") for result in answer.results]
    assert told == ["UNSPECIFIED"] * 3 + ["MESSAGE_TOO_LARGE", "PROFILE_NOT_FOUND"]
    again = await c.identity.BatchGetProfiles(BatchGetProfilesRequest(people=asked[3:], data_format=DATA_FORMAT_JSON))
    assert again.results[0].profile.identifiers == who[3]
