"""MergeProfiles and PreviewMerge: what goes where, what is refused, where names lead, what the ledger says."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import ListEventsRequest
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE,
    MERGE_OUTCOME_CONVERTED,
    MERGE_OUTCOME_MERGED,
    MERGE_OUTCOME_SAME_PROFILE,
    ArrayMerge,
    GetMergeRequest,
    GetProfileRequest,
    ListMergesRequest,
    MergeProfilesRequest,
    PreviewMergeRequest,
    UpdateEmailRequest,
    UpdateProfileRequest,
)
from onefold.v1.merge_pb2 import (
    MERGE_KIND_ASSOCIATION,
    MERGE_KIND_CONVERSION,
    MERGE_KIND_PROFILE,
    MERGE_STATE_DONE,
    MERGE_STATE_RUNNING,
    Merge,
)
from onefold.v1.options_pb2 import SCOPE_READ, SCOPE_WRITE
from onefold.v1.profile_pb2 import WRITE_OUTCOME_CREATED, WRITE_OUTCOME_UNCHANGED, WRITE_OUTCOME_UPDATED, Identifiers
from onefold.v1.projects_service_pb2 import CreateApiKeyRequest
from onefold.workflows import moving
from support.client import Client, email, failure, timestamp, user
from support.merging import (
    chunks,
    devices,
    disable,
    fields,
    get_merge,
    identify,
    merge,
    person,
    profile,
    put,
    put_unknown,
    register,
    undo,
)
from support.traces import rows_of
from support.world import World

TYPES = ("EMAIL", "USER_ID", "HYBRID")
A, B, C = email("a@example.com"), email("b@example.com"), email("c@example.com")
# What a visitor is called before anybody knows them.
VISITOR = "0e3b2c9a-7c1f-4b60-9d0e-6a4a5b6c7d8e"
PAST_REDIRECT = timedelta(minutes=5, seconds=1)


async def visitor(client: Client, world: World, kind: str, data: str = "{}") -> tuple[Identifiers, str]:
    """A visitor's profile as each type of project makes it: a temporary user_id, in EMAIL with a placeholder email."""
    who = user(VISITOR)
    if kind == "EMAIL":
        who = Identifiers(email="visitor-1@placeholder.email", user_id=VISITOR)
    return who, await put_unknown(client, world, who, data)


async def list_merges(client: Client, page_size: int = 500, **request: Any) -> list[Merge]:
    """The ledger of a person, page after page."""
    merges: list[Merge] = []
    token = ""
    while True:
        page = await client.identity.ListMerges(ListMergesRequest(page_size=page_size, page_token=token, **request))
        merges.extend(page.merges)
        token = page.next_page_token
        if not token:
            return merges


# --- what goes where -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
async def test_everything_of_the_source_goes_to_the_target(make_project: MakeProject, world: World, kind: str) -> None:
    """I16: fields, events, devices, anonymous ids are the target's at once and after the work; the source is gone."""
    client = await make_project(kind)
    source, target = person(kind, "source"), person(kind, "target")
    source_id = await put(client, source, '{"plan":"gold","only":"source"}')
    target_id = await put(client, target, '{"plan":"free"}')
    await client.track(anonymous_id="x", name="anonymous")
    await identify(client, source, "x")
    await client.track(identifiers=source, name="of source")
    await client.track(identifiers=target, name="of target")
    await register(client, source, "token")

    merged = await merge(client, source, target)

    assert merged.outcome == MERGE_OUTCOME_MERGED
    assert merged.survivor.profile_id == target_id
    assert merged.survivor.identifiers == target
    assert merged.survivor.outcome == WRITE_OUTCOME_UPDATED
    for _ in range(2):
        assert await fields(client, target) == {"plan": "free", "only": "source"}
        assert await client.names(identifiers=target) == ["of target", "of source", "anonymous"]
        assert await devices(client, target) == {"token": True}
        gone = await failure(client.identity.GetProfile(GetProfileRequest(profile_id=source_id)))
        assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
        gone = await failure(client.timeline(profile_id=source_id))
        assert (gone.code, gone.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")
        await world.settle(client.project_id)
    other = person(kind, "other")
    await put(client, other)
    assert (await identify(client, other, "x")).outcome == LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE
    assert (await world.value("SELECT count(*) FROM moves WHERE project_id = $1", client.project_id)) == 0


async def test_an_event_keeps_everything_it_had(email_project: Client, world: World) -> None:
    """I16 A8: body, times, id, kind and the mark of having been anonymous come along unchanged."""
    c = email_project
    then = timestamp(await world.now() - timedelta(days=3))
    await put(c, A)
    await put(c, B)
    await c.track(anonymous_id="x", name="anonymous", data_json='{"n":1e300}', event_time=then, event_id="e1")
    await identify(c, A, "x")
    await c.track(identifiers=A, name="known", data_json='{"a":[1,2]}', event_id="e2")
    before = await c.timeline(identifiers=A, data_format=DATA_FORMAT_JSON)
    target_id = (await merge(c, A, B)).survivor.profile_id
    for event in before:
        event.profile_id = target_id
    for _ in range(2):
        assert await c.timeline(identifiers=B, data_format=DATA_FORMAT_JSON) == before
        await world.work_off(c.project_id)


@pytest.mark.parametrize(
    ("source", "target", "merged"),
    [
        ({"address": {"city": "Turin", "zip": "1"}}, {"address": {"city": "Rome"}}, {"address": {"city": "Rome"}}),
        ({"plan": "gold"}, {"plan": None}, {"plan": None}),
        ({"tags": ["a", "b"], "cards": [{"id": 1}]}, {"tags": ["b"], "cards": []}, {"tags": ["b"], "cards": []}),
    ],
)
async def test_the_targets_value_wins(
    email_project: Client, source: dict[str, Any], target: dict[str, Any], merged: dict[str, Any]
) -> None:
    """I16: objects are not combined and unnamed arrays not concatenated; a null of the target is a value."""
    await put(email_project, A, json.dumps(source))
    await put(email_project, B, json.dumps(target))
    await merge(email_project, A, B)
    assert await fields(email_project, B) == merged


async def test_named_arrays_are_concatenated(email_project: Client) -> None:
    """I16 I18: without repeats, objects by dedupe_by, a scalar as an array of one; the ledger says which they were."""
    await put(
        email_project, A, '{"tags":["a","b"],"cards":[{"id":1,"of":"source"},{"id":3}],"color":"red","only":"source"}'
    )
    await put(email_project, B, '{"tags":["b","c"],"cards":[{"id":1,"of":"target"},{"id":2}],"color":["blue"]}')
    merged = await merge(
        email_project,
        A,
        B,
        array_merges=[
            ArrayMerge(field="tags"),
            ArrayMerge(field="cards", dedupe_by="id"),
            ArrayMerge(field="color"),
            ArrayMerge(field="only"),
            ArrayMerge(field="nowhere"),
        ],
    )
    assert await fields(email_project, B) == {
        "tags": ["b", "c", "a"],
        "cards": [{"id": 1, "of": "target"}, {"id": 2}, {"id": 3}],
        "color": ["blue", "red"],
        "only": ["source"],
    }
    assert list(merged.merge.merged_arrays) == ["cards", "color", "only", "tags"]
    assert not merged.merge.source_fields
    assert not merged.merge.target_fields


async def test_what_cannot_be_compared_fails_the_merge_and_nothing_happens(email_project: Client, world: World) -> None:
    """I16 X2: dedupe_by on something that is no object fails, naming the field, and not one row is different."""
    c = email_project
    await put(c, A, '{"cards":[{"id":1}]}')
    await put(c, B, '{"cards":["one"]}')
    await c.track(identifiers=A, name="of a")
    await register(c, A, "token")
    before = await rows_of(world, c.project_id)
    failed = await failure(merge(c, A, B, array_merges=[ArrayMerge(field="cards", dedupe_by="id")]))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ARRAY_NOT_MERGEABLE")
    assert failed.metadata == {"field": "cards"}
    assert await rows_of(world, c.project_id) == before


@pytest.mark.parametrize("letter", ["a", "è"])
async def test_what_would_not_fit_fails_the_merge(email_project: Client, world: World, letter: str) -> None:
    """I16 X5: two profiles that together would exceed 1 MB (bytes, not characters) stay two, and nothing happens."""
    c = email_project
    half = letter * (600_000 // len(letter.encode()))
    await put(c, A, json.dumps({"one": half}, ensure_ascii=False))
    await put(c, B, json.dumps({"other": half}, ensure_ascii=False))
    before = await rows_of(world, c.project_id)
    failed = await failure(merge(c, A, B))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DATA_FIELDS_LIMIT")
    assert await rows_of(world, c.project_id) == before


async def test_a_known_sources_names_fill_gaps(hybrid_project: Client) -> None:
    """I16: a target without an email gets the source's, which is then its own: it leads to the target for good."""
    c = hybrid_project
    await put(c, Identifiers(email="a@example.com", user_id="id-a"))
    target_id = await put(c, user("id-b"))
    await merge(c, user("id-a"), user("id-b"))
    assert (await profile(c, A)).profile_id == target_id
    assert (await profile(c, user("id-b"))).identifiers == Identifiers(email="a@example.com", user_id="id-b")


# --- what is refused, and what is no merge ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("target_there", [True, False])
async def test_a_missing_source_is_not_found(make_project: MakeProject, kind: str, target_there: bool) -> None:
    """I16: a source that nobody has is NOT_FOUND, whether the target is there or not."""
    client = await make_project(kind)
    if target_there:
        await put(client, person(kind, "target"))
    failed = await failure(merge(client, person(kind, "nobody"), person(kind, "target")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND")


@pytest.mark.parametrize("kind", TYPES)
async def test_the_same_profile_is_a_no_op(make_project: MakeProject, world: World, kind: str) -> None:
    """I16: merging a person with themselves is OK, says SAME_PROFILE, writes nothing and has no entry in the ledger."""
    client = await make_project(kind)
    profile_id = await put(client, person(kind, "one"), '{"plan":"gold"}')
    before = await rows_of(world, client.project_id)
    for allow in (True, False):
        same = await merge(client, person(kind, "one"), person(kind, "one"), allow_known_source=allow)
        assert same.outcome == MERGE_OUTCOME_SAME_PROFILE
        assert (same.survivor.profile_id, same.survivor.outcome) == (profile_id, WRITE_OUTCOME_UNCHANGED)
        assert not same.HasField("merge")
    assert await rows_of(world, client.project_id) == before


@pytest.mark.parametrize("kind", TYPES)
async def test_a_known_source_must_be_allowed(make_project: MakeProject, world: World, kind: str) -> None:
    """I16: known into known is refused without allow_known_source, and nothing happens."""
    client = await make_project(kind)
    await put(client, person(kind, "source"))
    await put(client, person(kind, "target"))
    before = await rows_of(world, client.project_id)
    failed = await failure(merge(client, person(kind, "source"), person(kind, "target"), allow_known_source=False))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KNOWN_SOURCE")
    assert await rows_of(world, client.project_id) == before


async def test_allowing_a_known_source_takes_the_scope_admin(email_project: Client, world: World) -> None:
    """I16: a key without ADMIN may not merge known people, but merges a visitor into a known person."""
    await put(email_project, A)
    await put(email_project, B)
    source, _ = await visitor(email_project, world, "EMAIL")
    made = await email_project.projects.CreateApiKey(CreateApiKeyRequest(scopes=[SCOPE_WRITE, SCOPE_READ]))
    writer = Client(email_project.channel, email_project.project_id, made.secret_text)
    refused = await failure(merge(writer, A, B))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert refused.metadata == {"required_scope": "ADMIN"}
    assert (await profile(email_project, A)).identifiers == A
    assert (await merge(writer, source, B, allow_known_source=False)).outcome == MERGE_OUTCOME_MERGED


async def test_everything_wrong_is_told_at_once(user_id_project: Client) -> None:
    """X2 P3: a merge that names people as its project does not is refused with all wrong fields."""
    failed = await failure(
        user_id_project.identity.MergeProfiles(
            MergeProfilesRequest(
                source=A,
                array_merges=[ArrayMerge(field="ok"), ArrayMerge(dedupe_by="id")],
                request_id=" ",
            )
        )
    )
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
    assert sorted(failed.fields) == ["array_merges[1].field", "request_id", "source.email", "target"]


# --- a visitor turns out to be somebody ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
async def test_a_visitor_merges_into_a_known_person(make_project: MakeProject, world: World, kind: str) -> None:
    """I16 I17: it needs no permission; the temporary id leads to the person for ever and is never a name of theirs."""
    client = await make_project(kind)
    source, _ = await visitor(client, world, kind, '{"seen":3}')
    target = person(kind, "target")
    target_id = await put(client, target)
    await client.track(identifiers=source, name="as visitor")
    merged = await merge(client, source, target, allow_known_source=False)
    assert merged.outcome == MERGE_OUTCOME_MERGED
    for days in (0, 1, 365):
        await world.pass_time(client.project_id, timedelta(days=days))
        await world.work_off(client.project_id)
        found = await profile(client, user(VISITOR))
        assert (found.profile_id, found.identifiers, found.is_unknown) == (target_id, target, False)
        assert await client.names(identifiers=user(VISITOR)) == ["as visitor"]


@pytest.mark.parametrize("known_by", ["email", "user_id"])
async def test_a_temporary_id_fills_no_gap(hybrid_project: Client, world: World, known_by: str) -> None:
    """I16: what stood for a visitor is not made a name of the person, even where the person has none."""
    source = Identifiers(email="visitor-1@placeholder.email", user_id=VISITOR)
    target = A if known_by == "email" else user("id-a")
    await put_unknown(hybrid_project, world, source)
    await put(hybrid_project, target)
    await merge(hybrid_project, source, target, allow_known_source=False)
    assert (await profile(hybrid_project, target)).identifiers == target


@pytest.mark.parametrize(
    ("kind", "target", "named"),
    [
        # EMAIL replaces the placeholder and keeps the user_id.
        ("EMAIL", A, Identifiers(email="a@example.com", user_id=VISITOR)),
        ("EMAIL", Identifiers(email="a@example.com", user_id="id-a"), None),
        ("USER_ID", user("id-a"), None),
        ("USER_ID", Identifiers(email="a@example.com", user_id="id-a"), None),
        ("HYBRID", A, None),
        ("HYBRID", user("id-a"), None),
        ("HYBRID", Identifiers(email="a@example.com", user_id="id-a"), None),
    ],
)
async def test_a_visitor_becomes_a_person_who_was_not_there(
    make_project: MakeProject, world: World, kind: str, target: Identifiers, named: Identifiers | None
) -> None:
    """I16 U5: without a target the source is renamed in place: the same profile, known now, with all it had."""
    client = await make_project(kind)
    source, profile_id = await visitor(client, world, kind, '{"seen":3}')
    await client.track(identifiers=source, name="as visitor")
    await register(client, source, "token")

    converted = await merge(client, source, target, allow_known_source=False)

    assert converted.outcome == MERGE_OUTCOME_CONVERTED
    assert (converted.survivor.profile_id, converted.survivor.outcome) == (profile_id, WRITE_OUTCOME_UPDATED)
    assert converted.survivor.identifiers == (named or target)
    assert not converted.survivor.email_is_placeholder
    assert converted.merge.kind == MERGE_KIND_CONVERSION
    assert converted.merge.state == MERGE_STATE_DONE
    assert converted.merge.source_profile_id == converted.merge.target_profile_id == profile_id
    assert converted.merge.source_identifiers == source
    for who in (target, user(VISITOR)):
        found = await profile(client, who)
        assert (found.profile_id, found.identifiers, found.is_unknown) == (profile_id, named or target, False)
        assert await client.names(identifiers=who) == ["as visitor"]
        assert await devices(client, who) == {"token": True}
        assert await fields(client, who) == {"seen": 3}
    await world.pass_time(client.project_id, timedelta(days=100))
    assert (await profile(client, user(VISITOR))).profile_id == profile_id


@pytest.mark.parametrize("kind", TYPES)
async def test_a_known_person_is_renamed_in_place(make_project: MakeProject, world: World, kind: str) -> None:
    """I16 I17: a known source without a target is renamed if allowed; the old name leads there for 5 minutes."""
    client = await make_project(kind)
    profile_id = await put(client, person(kind, "old"))
    refused = await failure(merge(client, person(kind, "old"), person(kind, "new"), allow_known_source=False))
    assert refused.reason == "KNOWN_SOURCE"
    converted = await merge(client, person(kind, "old"), person(kind, "new"))
    assert converted.outcome == MERGE_OUTCOME_CONVERTED
    assert (await profile(client, person(kind, "old"))).identifiers == person(kind, "new")
    await world.pass_time(client.project_id, PAST_REDIRECT)
    gone = await failure(profile(client, person(kind, "old")))
    assert gone.reason == "PROFILE_NOT_FOUND"
    assert await put(client, person(kind, "old")) != profile_id


# --- where the source's names lead -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
async def test_a_known_name_leads_to_the_target_for_5_minutes(
    make_project: MakeProject, world: World, kind: str
) -> None:
    """I17: for reads and writes alike; then it is free, and a new profile arises under it."""
    client = await make_project(kind)
    source, target = person(kind, "source"), person(kind, "target")
    await put(client, source)
    target_id = await put(client, target)
    await merge(client, source, target)
    await world.pass_time(client.project_id, timedelta(minutes=4, seconds=50))
    await client.track(identifiers=source, name="late")
    assert await put(client, source, '{"late":true}') == target_id
    assert await client.names(identifiers=target) == ["late"]
    assert await fields(client, target) == {"late": True}

    await world.pass_time(client.project_id, timedelta(seconds=11))
    gone = await failure(profile(client, source))
    assert gone.reason == "PROFILE_NOT_FOUND"
    made = await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=source))
    assert made.profile.outcome == WRITE_OUTCOME_CREATED
    assert made.profile.profile_id != target_id
    assert made.profile.identifiers == source
    assert await client.names(identifiers=source) == []
    assert await client.names(identifiers=target) == ["late"]


@pytest.mark.parametrize(
    ("kind", "by"),
    [
        ("EMAIL", A),
        ("EMAIL", Identifiers(email="a@example.com", user_id="id-a")),
        ("EMAIL", Identifiers(email="b@example.com", user_id="id-a")),
        ("USER_ID", user("id-a")),
        ("USER_ID", Identifiers(email="a@example.com", user_id="id-b")),
        ("HYBRID", A),
        ("HYBRID", user("id-a")),
        ("HYBRID", Identifiers(email="a@example.com", user_id="id-a")),
        ("HYBRID", Identifiers(email="b@example.com", user_id="id-a")),
        ("HYBRID", Identifiers(email="a@example.com", user_id="id-b")),
    ],
)
async def test_a_left_name_never_overwrites_the_targets_own(
    make_project: MakeProject, kind: str, by: Identifiers
) -> None:
    """I17: a write that still uses the source's names reaches the target and leaves the target's names alone."""
    client = await make_project(kind)
    both = {name: Identifiers(email=f"{name}@example.com", user_id=f"id-{name}") for name in "ab"}
    await put(client, both["a"])
    target_id = await put(client, both["b"])
    await merge(client, both["a"], both["b"])
    written = await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=by, data_fields_json='{"n":1}'))
    assert written.profile.profile_id == target_id
    assert written.profile.identifiers == both["b"]
    assert await fields(client, both["b"]) == {"n": 1}


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("EMAIL", Identifiers(email="c@example.com", user_id="id-a")),
        ("USER_ID", Identifiers(email="a@example.com", user_id="id-c")),
    ],
)
@pytest.mark.parametrize("there", [True, False])
async def test_a_shared_name_that_a_merge_left_may_be_given_to_others(
    make_project: MakeProject, kind: str, other: Identifiers, there: bool
) -> None:
    """I3 I17 P2: a name that several may share leads to the target, and is still set on anybody else who gives it."""
    client = await make_project(kind)
    both = {name: Identifiers(email=f"{name}@example.com", user_id=f"id-{name}") for name in "ab"}
    await put(client, both["a"])
    await put(client, both["b"])
    if there:
        await put(client, email("c@example.com") if kind == "EMAIL" else user("id-c"))
    await merge(client, both["a"], both["b"])
    written = await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=other))
    assert written.profile.identifiers == other


async def test_a_shared_name_leads_to_the_target_again(email_project: Client, world: World) -> None:
    """I17: the 5 minutes of a name begin with each merge that brings it, also when an earlier one's are over."""
    c = email_project
    for letter in "ac":
        await put(c, Identifiers(email=f"{letter}@example.com", user_id="shared"))
    target_id = await put(c, Identifiers(email="b@example.com", user_id="id-b"))
    await merge(c, C, B)
    await world.pass_time(c.project_id, PAST_REDIRECT)
    await merge(c, A, B)
    assert (await profile(c, user("shared"))).profile_id == target_id


async def test_nobody_can_take_a_name_that_still_leads_somewhere(email_project: Client) -> None:
    """I17 I12: during the 5 minutes another person cannot be given the name, but the target can."""
    for who in (A, B, C):
        await put(email_project, who)
    await merge(email_project, A, B)
    taken = await failure(
        email_project.identity.UpdateEmail(UpdateEmailRequest(identifiers=C, new_email="a@example.com"))
    )
    assert (taken.code, taken.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDENTIFIER_TAKEN")
    await email_project.identity.UpdateEmail(UpdateEmailRequest(identifiers=B, new_email="a@example.com"))
    assert (await profile(email_project, A)).identifiers == A


# --- the ledger ------------------------------------------------------------------------------------------------------


async def test_the_ledger_tells_who_when_and_what(email_project: Client, world: World) -> None:
    """I18: source and target, their names, the key, the time, which value won, how many events, the oldest, devices."""
    c = email_project
    source_id = await put(c, A, '{"plan":"gold","only":1,"tags":["a"]}')
    target_id = await put(c, B, '{"plan":"free","own":1,"tags":["b"]}')
    start = await world.now()
    oldest = timestamp(start - timedelta(days=9))
    await c.batch(NewEvent(identifiers=A, name=f"e{n}", event_time=oldest if n == 2 else None) for n in range(3))
    for token in ("t1", "t2"):
        await register(c, A, token)
    answered = (await merge(c, A, B, array_merges=[ArrayMerge(field="tags")])).merge
    assert answered.state == MERGE_STATE_RUNNING
    await world.settle(c.project_id)
    entry = await get_merge(c, answered.merge_id)
    assert entry.kind == MERGE_KIND_PROFILE
    assert entry.state == MERGE_STATE_DONE
    assert (entry.source_profile_id, entry.target_profile_id) == (source_id, target_id)
    assert entry.source_identifiers == A
    assert (list(entry.source_fields), list(entry.target_fields), list(entry.merged_arrays)) == (
        ["only"],
        ["plan"],
        ["tags"],
    )
    assert (entry.event_count, entry.device_count) == (3, 2)
    # The time that settling let pass moved the ledger and the events back alike.
    oldest_events = await c.timeline(identifiers=B)
    assert entry.oldest_event_time == oldest_events[-1].event_time
    assert entry.key_id == c.key.split("_")[-2]
    assert entry.undo_end_time.ToDatetime() - entry.create_time.ToDatetime() == timedelta(days=30)
    assert not entry.HasField("undo_time")
    assert start - timedelta(seconds=20) <= entry.create_time.ToDatetime(tzinfo=start.tzinfo) <= await world.now()


@pytest.mark.parametrize("relocated", [False, True])
async def test_the_count_does_not_depend_on_how_far_the_workers_were(
    email_project: Client, world: World, relocated: bool
) -> None:
    """I18: a merge counts every event that it gave the target, also those that a link before had given the source."""
    c = email_project
    await put(c, B)
    for name in ("one", "two", "three"):
        await c.track(anonymous_id="x", name=name)
    await identify(c, A, "x")
    await c.track(identifiers=A, name="own")
    if relocated:
        await world.settle(c.project_id)
    merged = await merge(c, A, B)
    await world.settle(c.project_id)
    assert (await get_merge(c, merged.merge.merge_id)).event_count == 4


async def test_a_merge_is_listed_for_everybody_who_took_part(email_project: Client) -> None:
    """I18: by the target, by the source's name while it leads there, and by the source's id though it is gone."""
    ids = [await put(email_project, who) for who in (A, B, C)]
    link = await identify(email_project, A, "x")
    first = (await merge(email_project, A, B)).merge.merge_id
    second = (await merge(email_project, B, C)).merge.merge_id
    assert [entry.merge_id for entry in await list_merges(email_project, profile_id=ids[0])] == [first, link.merge_id]
    assert [entry.merge_id for entry in await list_merges(email_project, profile_id=ids[1])] == [second, first]
    assert [entry.merge_id for entry in await list_merges(email_project, profile_id=ids[2])] == [second]
    for who in (A, B, C):
        assert [entry.merge_id for entry in await list_merges(email_project, identifiers=who)] == [second]


async def test_a_conversion_is_listed_once(email_project: Client, world: World) -> None:
    """I18: also though the profile is its source and its target."""
    source, profile_id = await visitor(email_project, world, "EMAIL")
    converted = await merge(email_project, source, A, allow_known_source=False)
    assert await list_merges(email_project, profile_id=profile_id) == [converted.merge]


async def test_the_ledger_comes_in_pages(email_project: Client) -> None:
    """I18: pages of any size yield every entry once, newest first."""
    profile_id = await put(email_project, A)
    made = [(await identify(email_project, A, f"x{number}")).merge_id for number in range(5)]
    for page_size in (1, 2, 5, 500):
        listed = await list_merges(email_project, page_size=page_size, profile_id=profile_id)
        assert [entry.merge_id for entry in listed] == made[::-1]
        assert {entry.kind for entry in listed} == {MERGE_KIND_ASSOCIATION}


async def test_a_merge_of_another_project_is_not_found(email_project: Client, make_project: MakeProject) -> None:
    """I18 F73: its id is nobody's in the own project, with the same answer as an id that never was."""
    await put(email_project, A)
    await put(email_project, B)
    merge_id = (await merge(email_project, A, B)).merge.merge_id
    other = await make_project("EMAIL")
    unknown = "00000000-0000-7000-8000-000000000000"
    for foreign, missing in (
        (other.identity.GetMerge(GetMergeRequest(merge_id=merge_id)), get_merge(other, unknown)),
        (undo(other, merge_id), undo(other, unknown)),
    ):
        told = await failure(foreign)
        assert (told.code, told.reason) == (grpc.StatusCode.NOT_FOUND, "MERGE_NOT_FOUND")
        assert told == await failure(missing)


# --- previews --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("case", ["merge", "conversion", "same", "visitor"])
async def test_a_preview_writes_nothing_and_tells_what_the_merge_does(
    make_project: MakeProject, world: World, kind: str, case: str
) -> None:
    """I19: not one row is different after a preview, and the merge that follows does what it said."""
    client = await make_project(kind)
    source, target = person(kind, "source"), person(kind, "target")
    data = '{"plan":"gold","only":1,"tags":["a"]}'
    if case == "visitor":
        source, _ = await visitor(client, world, kind, data)
    else:
        await put(client, source, data)
    if case in ("merge", "visitor"):
        await put(client, target, '{"plan":"free","own":1,"tags":["b"]}')
        await register(client, target, "t1")
    if case == "same":
        target = source
    for token in ("t1", "t2"):
        await register(client, source, token)
    await client.track(identifiers=source, name="of source")
    asked: dict[str, Any] = {
        "source": source,
        "target": target,
        "array_merges": [ArrayMerge(field="tags")],
        "allow_known_source": case != "visitor",
    }
    before = await rows_of(world, client.project_id)
    told = await client.identity.PreviewMerge(PreviewMergeRequest(data_format=DATA_FORMAT_JSON, **asked))
    assert await rows_of(world, client.project_id) == before

    done = await client.identity.MergeProfiles(MergeProfilesRequest(**asked))
    assert told.outcome == done.outcome
    assert told.survivor.profile_id == done.survivor.profile_id
    assert told.survivor.identifiers == done.survivor.identifiers
    assert list(told.source_fields) == list(done.merge.source_fields)
    assert list(told.target_fields) == list(done.merge.target_fields)
    assert list(told.merged_arrays) == list(done.merge.merged_arrays)
    assert told.device_count == done.merge.device_count
    now = await profile(client, target)
    assert json.loads(told.survivor.data_fields_json) == json.loads(now.data_fields_json)
    for name in ("identifiers", "is_unknown", "email_domain", "email_is_placeholder", "signup_time", "create_time"):
        assert getattr(told.survivor, name) == getattr(now, name)


@pytest.mark.parametrize(
    ("source", "target", "allow", "reason"),
    [
        (C, B, True, "PROFILE_NOT_FOUND"),
        (A, B, False, "KNOWN_SOURCE"),
        (A, B, True, "ARRAY_NOT_MERGEABLE"),
    ],
)
async def test_a_preview_fails_as_the_merge_would(
    email_project: Client, source: Identifiers, target: Identifiers, allow: bool, reason: str
) -> None:
    """I19: what the merge refuses, its preview refuses with the same answer."""
    await put(email_project, A, '{"cards":"one"}')
    await put(email_project, B)
    asked: dict[str, Any] = {
        "source": source,
        "target": target,
        "array_merges": [ArrayMerge(field="cards", dedupe_by="id")],
        "allow_known_source": allow,
    }
    told = await failure(email_project.identity.PreviewMerge(PreviewMergeRequest(**asked)))
    assert told.reason == reason
    assert told == await failure(email_project.identity.MergeProfiles(MergeProfilesRequest(**asked)))


# --- sending again ---------------------------------------------------------------------------------------------------


async def test_a_merge_sent_again_has_no_second_effect(email_project: Client, world: World) -> None:
    """X1: the same request_id gives the stored answer, even after the merge was undone; another body is refused."""
    c = email_project
    for who in (A, B):
        await put(c, who)
    first = await merge(c, A, B, request_id="r1")
    assert not first.replayed
    await undo(c, first.merge.merge_id)
    before = await rows_of(world, c.project_id)
    again = await merge(c, A, B, request_id="r1")
    assert again.replayed
    again.replayed = False
    assert again == first
    other = await failure(merge(c, B, A, request_id="r1"))
    assert (other.code, other.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REQUEST_ID_REUSED")
    assert await rows_of(world, c.project_id) == before


async def test_a_merge_that_failed_is_tried_again(email_project: Client) -> None:
    """X1: a failure stores no answer, so the same request_id may succeed later."""
    await put(email_project, A)
    await put(email_project, B, '{"cards":["one"]}')
    arrays = [ArrayMerge(field="cards", dedupe_by="id")]
    assert (await failure(merge(email_project, A, B, array_merges=arrays, request_id="r1"))).reason == (
        "ARRAY_NOT_MERGEABLE"
    )
    await put(email_project, B, '{"cards":[{"id":1}]}')
    assert (await merge(email_project, A, B, array_merges=arrays, request_id="r1")).outcome == MERGE_OUTCOME_MERGED


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "enabled"),
    [
        # The newest operation on the token decides, whichever of the two it was made on.
        (["register A", "register B", "disable A"], False),
        (["register A", "register B", "disable B"], False),
        (["register A", "disable A", "register B"], True),
        (["register B", "disable B", "register A"], True),
        (["register A", "disable A"], False),
        (["register A"], True),
        # Telling a device again is an operation, also when nothing about it is new.
        (["register A", "register B", "disable B", "register A"], True),
        (["register B", "disable B"], False),
        (["register A", "register B", "disable *"], False),
        (["register A", "disable *", "register B"], True),
        (["register A", "disable *"], False),
        (["register B", "disable *", "register A"], True),
    ],
)
@pytest.mark.parametrize("written", [False, True])
async def test_the_newest_operation_on_a_token_decides(
    email_project: Client, world: World, steps: list[str], enabled: bool, written: bool
) -> None:
    """D7 F51: the target holds the token once, on or off by the newest operation, wherever a disable's work is."""
    c = email_project
    people = {"A": A, "B": B}
    for who in people.values():
        await put(c, who)
    for step in steps:
        what, name = step.split()
        if what == "register":
            await register(c, people[name], "token")
        else:
            await disable(c, "token", people.get(name))
    if written:
        await world.settle(c.project_id)
    await merge(c, A, B)
    for _ in range(3):
        assert await devices(c, B) == {"token": enabled}
        await world.settle(c.project_id)


async def test_a_merge_in_the_middle_of_a_disable_enables_nothing(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7 F51: a copy that the fan-out has passed, or not reached, is off under the target, at every chunk and after."""
    monkeypatch.setattr("onefold.workflows.disabling.CHUNK_COPIES", 1)
    c = email_project
    pairs = [(email(f"s{n}@example.com"), email(f"t{n}@example.com")) for n in range(3)]
    for source, target in pairs:
        # Once the source is the older profile, once the target: the fan-out goes by profile.
        for who in (source, target) if source != pairs[1][0] else (target, source):
            await put(c, who)
        await register(c, source, "token")
    await disable(c, "token")
    left = list(pairs)
    async for _ in chunks(world, c.project_id):
        if left:
            await merge(c, *left.pop())
        for source, target in pairs:
            who = source if (source, target) in left else target
            assert await devices(c, who) == {"token": False}
    await world.settle(c.project_id)
    for source, target in left:
        await merge(c, source, target)
    for _, target in pairs:
        assert await devices(c, target) == {"token": False}


async def test_the_union_of_devices(email_project: Client) -> None:
    """D7: the target holds every token of both, and those that it held alone stay as they were."""
    for who, tokens in ((A, ("t1", "t2")), (B, ("t2", "t3", "t4"))):
        for token in tokens:
            await register(email_project, who, token)
    await disable(email_project, "t3", B)
    merged = await merge(email_project, A, B)
    assert merged.merge.device_count == 2
    assert await devices(email_project, B) == {"t1": True, "t2": True, "t3": False, "t4": True}


# --- reading while it is moved ---------------------------------------------------------------------------------------


async def test_late_events_of_a_visitors_id_follow_the_merge(email_project: Client, world: World) -> None:
    """A7 F39 F33: merged inside the grace, the id's late events are the survivor's and counted; later ones are not."""
    c = email_project
    await c.track(anonymous_id="x", name="early")
    link = await identify(c, A, "x")
    await put(c, B)
    await world.pass_time(c.project_id, timedelta(minutes=4))
    await merge(c, A, B)
    await world.settle(c.project_id)
    await c.track(anonymous_id="x", name="late")
    for _ in range(2):
        assert await c.names(identifiers=B) == ["late", "early"]
        assert await c.names(anonymous_id="x") == []
        await world.settle(c.project_id)
    entry = await get_merge(c, link.merge_id)
    assert entry.event_count == 2
    assert entry.oldest_event_time == (await c.timeline(identifiers=B))[-1].event_time
    await world.pass_time(c.project_id, timedelta(minutes=2))
    await c.track(anonymous_id="x", name="too late")
    assert await c.names(identifiers=B) == ["late", "early"]
    assert await c.names(anonymous_id="x") == ["too late"]
    assert (await get_merge(c, link.merge_id)).event_count == 2


@pytest.mark.parametrize("page_size", [1, 3, 7])
async def test_pages_turned_while_events_move(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    """F40 E8: a reader who turns one page after every chunk gets each event once, in order."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    c = email_project
    for who in (A, B):
        await put(c, who)
    start = await world.now()
    for number in range(20):
        whose = {"identifiers": A if number % 2 else B} if number % 5 else {"anonymous_id": "x"}
        await c.track(name=f"e{number}", event_time=timestamp(start - timedelta(hours=number)), **whose)
    await identify(c, A, "x")
    await merge(c, A, B)
    expected = [f"e{number}" for number in range(20)]
    readers = [Reader(c, page_size)]
    async for _ in chunks(world, c.project_id):
        readers.append(Reader(c, page_size))
        for reader in readers:
            await reader.turn()
    for reader in readers:
        while not reader.done:
            await reader.turn()
        assert reader.names == expected


class Reader:
    """Somebody who reads the target's timeline a page at a time."""

    def __init__(self, client: Client, page_size: int) -> None:
        self._client, self._page_size, self._token = client, page_size, ""
        self.names: list[str] = []
        self.done = False

    async def turn(self) -> None:
        """Reads one more page."""
        if self.done:
            return
        page = await self._client.events.ListEvents(
            ListEventsRequest(identifiers=B, page_size=self._page_size, page_token=self._token)
        )
        self.names += [event.name for event in page.events]
        self._token = page.next_page_token
        self.done = not self._token
