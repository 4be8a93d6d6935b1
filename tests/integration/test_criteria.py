"""Profile-creation criteria: kept, listed, refused when they are no good, and evaluated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from onefold.config import Settings
from onefold.limits import CRITERIA_PER_PROJECT, CRITERION_BYTES
from onefold.v1.activation_service_pb2 import (
    CreateCriterionRequest,
    DeleteCriterionRequest,
    EvaluateCriteriaRequest,
    EvaluateCriteriaResponse,
    ListCriteriaRequest,
    UpdateCriterionRequest,
)
from onefold.v1.criterion_pb2 import Criterion, CriterionNode
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.event_pb2 import EVENT_KIND_CART_UPDATE, EVENT_KIND_PAGE, EVENT_KIND_PURCHASE, NewEvent
from support.client import Client, email, failure, timestamp
from support.criteria import condition, group, leaf, make_criterion, named, tree
from support.holding import held, until_waiting
from support.merging import identify
from support.world import World

Make = Callable[[Client, dict[str, Any]], Coroutine[Any, Any, Any]]


async def criteria(client: Client) -> list[Criterion]:
    """The criteria of a project."""
    return list((await client.activation.ListCriteria(ListCriteriaRequest())).criteria)


async def evaluate(client: Client, *events: dict[str, Any], **request: Any) -> EvaluateCriteriaResponse:
    """Evaluates events, told as the arguments of NewEvent."""
    told = [NewEvent(**event) for event in events]
    return await client.activation.EvaluateCriteria(EvaluateCriteriaRequest(events=told, **request))


async def update(client: Client, criterion_id: str, **request: Any) -> Criterion:
    """Changes a criterion."""
    if "root" in request:
        request["root"] = tree(request["root"])
    answer = await client.activation.UpdateCriterion(UpdateCriterionRequest(criterion_id=criterion_id, **request))
    return answer.criterion


# --- kept ------------------------------------------------------------------------------------------------------------


async def test_a_criterion_is_made_listed_changed_and_deleted(email_project: Client, world: World) -> None:
    """U1: id, name, tree, version and times of a criterion at each stage of its life, in order."""
    before = await world.now()
    first = await make_criterion(email_project, named("Viewed"), "first")
    second = await make_criterion(email_project, named("Added", minMatch=2), "second")
    assert (first.version, first.name, first.create_time) == (1, "first", first.update_time)
    assert before <= first.create_time.ToDatetime(before.tzinfo)
    assert await criteria(email_project) == [first, second]

    changed = await update(email_project, first.criterion_id, root=named("Left"))
    assert (changed.criterion_id, changed.version, changed.name) == (first.criterion_id, 2, "first")
    assert MessageToDict(changed.root) == MessageToDict(tree(named("Left")))
    assert changed.create_time == first.create_time
    assert changed.update_time.ToNanoseconds() > first.update_time.ToNanoseconds()
    renamed = await update(email_project, first.criterion_id, name="another")
    assert (renamed.version, renamed.name, renamed.root) == (3, "another", changed.root)
    assert await update(email_project, first.criterion_id, name="another", root=named("Left")) == renamed
    assert await criteria(email_project) == [renamed, second]

    gone = await email_project.activation.DeleteCriterion(DeleteCriterionRequest(criterion_id=first.criterion_id))
    assert gone.criterion_id == first.criterion_id
    assert await criteria(email_project) == [second]


async def test_client_code_gets_the_criteria_as_json(email_project: Client) -> None:
    """U1: the JSON that client code evaluates counts the criteria and names them as the messages do."""
    assert (await email_project.activation.ListCriteria(ListCriteriaRequest())).criteria_json == ""
    made = [await make_criterion(email_project, named("Viewed"), name) for name in ("first", "second")]
    answer = await email_project.activation.ListCriteria(ListCriteriaRequest(data_format=DATA_FORMAT_JSON))
    document = json.loads(answer.criteria_json)
    assert document["count"] == 2
    assert [(each["criteriaId"], each["name"], each["updatedAt"]) for each in document["criteriaSets"]] == [
        (each.criterion_id, each.name, each.update_time.ToMilliseconds()) for each in made
    ]


async def test_a_criterion_is_found_by_its_project_only(email_project: Client, user_id_project: Client) -> None:
    """U1, F73: another project's criterion is as unknown as one that is nobody's, and stays as it is."""
    made = await make_criterion(email_project, named("Viewed"))
    assert await criteria(user_id_project) == []
    for criterion_id in (made.criterion_id, str(uuid4())):
        for call in (
            update(user_id_project, criterion_id, name="taken"),
            user_id_project.activation.DeleteCriterion(DeleteCriterionRequest(criterion_id=criterion_id)),
        ):
            refused = await failure(call)
            assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "CRITERION_NOT_FOUND")
    assert await criteria(email_project) == [made]


async def test_a_change_of_an_older_version_is_refused(email_project: Client) -> None:
    """U1: a change that was made for another version than the criterion has is CRITERIA_STALE, and changes nothing."""
    made = await make_criterion(email_project, named("Viewed"))
    changed = await update(email_project, made.criterion_id, name="newer", version=1)
    refused = await failure(update(email_project, made.criterion_id, name="lost", version=1))
    assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CRITERIA_STALE")
    assert await criteria(email_project) == [changed]


async def test_two_changes_at_once(email_project: Client, settings: Settings, world: World) -> None:
    """U1: of two changes that meet and were made for one version, one counts and the other is CRITERIA_STALE."""
    made = await make_criterion(email_project, named("Viewed"))
    async with held(settings, "SELECT FROM criteria WHERE project_id = $1 FOR UPDATE", email_project.project_id):
        changes = [
            asyncio.create_task(update(email_project, made.criterion_id, name=f"change {number}", version=1))
            for number in range(2)
        ]
        await until_waiting(world, 2)
    results = await asyncio.gather(*changes, return_exceptions=True)
    [now] = await criteria(email_project)
    assert [each for each in results if isinstance(each, Criterion)] == [now]
    assert now.version == 2


async def test_a_project_has_fifty_criteria(email_project: Client, settings: Settings, world: World) -> None:
    """U1, X5: the criterion after the last one that fits is refused, also when two come at once."""
    await world.fetch(
        "INSERT INTO criteria (project_id, criterion_id, name, root) "
        "SELECT $1, uuidv7(), 'one of many', $2::json FROM generate_series(2, $3::integer) RETURNING 1",
        email_project.project_id,
        '{"leaf":{"data_type":"user","query":{"condition":{"field":"a","comparator":"IsSet","values":[]}}}}',
        CRITERIA_PER_PROJECT,
    )
    async with held(settings, "SELECT FROM projects WHERE project_id = $1 FOR UPDATE", email_project.project_id):
        calls = [asyncio.create_task(make_criterion(email_project, named("Viewed"))) for _ in range(2)]
        await until_waiting(world, 2)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["AioRpcError", "Criterion"]
    refused = await failure(make_criterion(email_project, named("Viewed")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CRITERIA_LIMIT")
    assert refused.metadata == {"limit": str(CRITERIA_PER_PROJECT)}
    assert len(await criteria(email_project)) == CRITERIA_PER_PROJECT


async def test_criteria_can_be_sent_again(email_project: Client) -> None:
    """X1: the same request_id gives the stored answer; nothing is made, changed or deleted a second time."""
    activation = email_project.activation
    create = CreateCriterionRequest(name="once", root=tree(named("Viewed")), request_id="create")
    made, again = [await activation.CreateCriterion(create) for _ in range(2)]
    assert (made.replayed, again.replayed) == (False, True)
    assert made.criterion == again.criterion
    change = UpdateCriterionRequest(
        criterion_id=made.criterion.criterion_id, name="twice", version=1, request_id="change"
    )
    changed, again_changed = [await activation.UpdateCriterion(change) for _ in range(2)]
    assert (again_changed.replayed, again_changed.criterion) == (True, changed.criterion)
    delete = DeleteCriterionRequest(criterion_id=made.criterion.criterion_id, request_id="delete")
    _, again_deleted = [await activation.DeleteCriterion(delete) for _ in range(2)]
    assert again_deleted.replayed
    assert await criteria(email_project) == []


# --- refused ---------------------------------------------------------------------------------------------------------

GOOD = condition("a", "EQUALS", "1")
BAD_TREES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["root"]),
    "an empty group": (group("and"), ["root.and.nodes"]),
    "an empty node": (group("or", {}, named("Viewed"), {}), ["root.or.nodes[0]", "root.or.nodes[2]"]),
    "no data type": ({"leaf": {"query": GOOD}}, ["root.leaf.data_type"]),
    "no query": ({"leaf": {"dataType": "CRITERION_DATA_TYPE_USER"}}, ["root.leaf.query"]),
    "counts that cross": (named("Viewed", minMatch=3, maxMatch=2), ["root.leaf.max_match"]),
    "a negative count": (named("Viewed", minMatch=-1), ["root.leaf.min_match"]),
    "two profiles": (leaf("USER", GOOD, minMatch=2), ["root.leaf.min_match"]),
    "look-ahead": (
        leaf("CUSTOM_EVENT", group("not", GOOD, condition("a", "MATCHES_REGEX", "a", "(?=b)"))),
        ["root.leaf.query.not.nodes[1].condition.values[1]"],
    ),
    "a back-reference": (
        leaf("CUSTOM_EVENT", condition("a", "MATCHES_REGEX", r"(a)\1")),
        ["root.leaf.query.condition.values[0]"],
    ),
    "no comparator, no field": (
        leaf("CUSTOM_EVENT", {"condition": {"values": ["1"]}}),
        ["root.leaf.query.condition.field", "root.leaf.query.condition.comparator"],
    ),
    "no value": (leaf("CUSTOM_EVENT", condition("a", "EQUALS")), ["root.leaf.query.condition.values"]),
    "NUL": (leaf("CUSTOM_EVENT", condition("a\0", "EQUALS", "\0")), ["root.leaf.query.condition.field"]),
    "too large": (
        leaf("CUSTOM_EVENT", condition("a", "EQUALS", *["x" * 4_000] * (CRITERION_BYTES // 4_000))),
        ["root"],
    ),
}


@pytest.mark.parametrize("name", BAD_TREES)
@pytest.mark.parametrize("how", ["create", "update"])
async def test_a_tree_that_is_no_good_is_refused_when_saved(email_project: Client, name: str, how: str) -> None:
    """U1, F71, X2: a criterion that could not be evaluated is never saved, and every offending node is named."""
    root, wrong = BAD_TREES[name]
    made = await make_criterion(email_project, named("Viewed"))
    call: Any = make_criterion(email_project, root)
    if how == "update":
        call.close()
        call = update(email_project, made.criterion_id, root=root)
    refused = await failure(call)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID")
    assert set(wrong) <= set(refused.fields)
    assert await criteria(email_project) == [made]


async def test_all_that_is_wrong_is_said_at_once(email_project: Client) -> None:
    """X2: the name, the request_id and the tree of a criterion are judged together; many faults still fit an answer."""
    nodes = [leaf("CUSTOM_EVENT", condition("", "EQUALS", "1")) for _ in range(40)]
    request = CreateCriterionRequest(name="a\nb", root=tree(group("or", *nodes)), request_id=" ")
    refused = await failure(email_project.activation.CreateCriterion(request))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields[:2] == ["name", "request_id"]
    assert "root.or.nodes[3].leaf.query.condition.field" in refused.fields
    missing = await failure(email_project.activation.CreateCriterion(CreateCriterionRequest()))
    assert missing.fields == ["name", "root"]
    lost = await failure(update(email_project, "no id", name=""))
    assert lost.fields == ["criterion_id", "name"]


async def test_a_tree_nested_beyond_reason_is_refused(email_project: Client) -> None:
    """U1, F67: a tree as deep as a message can be is refused, and not by a fault of the server."""
    root = CriterionNode()
    node = root
    for _ in range(40):
        node = getattr(node, "not").nodes.add()
    refused = await failure(email_project.activation.CreateCriterion(CreateCriterionRequest(name="deep", root=root)))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields


# --- evaluated -------------------------------------------------------------------------------------------------------


async def test_the_oldest_criterion_that_matches_is_answered(email_project: Client) -> None:
    """U1, U2: criteria are or-ed and the first match wins; those before it are reported, those after it are not."""
    first = await make_criterion(email_project, named("Bought"), "first")
    second = await make_criterion(email_project, named("Viewed", minMatch=2), "second")
    third = await make_criterion(email_project, named("Viewed"), "third")
    answer = await evaluate(email_project, {"name": "Viewed"}, {"name": "Viewed"})
    assert answer.criterion_id == second.criterion_id
    assert [(each.name, each.version, each.is_match) for each in answer.reports] == [
        ("first", 1, False),
        ("second", 1, True),
    ]
    answer = await evaluate(email_project, {"name": "Viewed"})
    assert answer.criterion_id == third.criterion_id
    answer = await evaluate(email_project, {"name": "Left"})
    assert answer.criterion_id == ""
    assert [each.criterion_id for each in answer.reports] == [
        first.criterion_id,
        second.criterion_id,
        third.criterion_id,
    ]


async def test_an_answer_says_why(email_project: Client) -> None:
    """U2: which leaf was matched by which event; for a near miss, how many and what are missing."""
    await make_criterion(
        email_project,
        group(
            "and",
            named("Viewed", minMatch=2),
            leaf("USER", condition("country", "EQUALS", "IT")),
            leaf("PURCHASE", condition("shoppingCartItems.price", "GREATER_THAN", "100"), maxMatch=3),
        ),
    )
    purchase = {"name": "order", "kind": EVENT_KIND_PURCHASE, "data_json": '{"shoppingCartItems":[{"price":50}]}'}
    answer = await evaluate(
        email_project,
        {"name": "Viewed", "event_id": "one"},
        {"name": "Other"},
        {"name": "Viewed", "kind": EVENT_KIND_PAGE},
        purchase,
        data_fields_json='{"country":"FR"}',
    )
    assert answer.criterion_id == ""
    [report] = answer.reports
    viewed, country, bought = report.leaves
    assert (viewed.path, viewed.is_match, viewed.match_count, viewed.needed) == ("and.nodes[0].leaf", True, 2, 2)
    assert list(viewed.event_ids) == ["one", "events[2]"]
    assert (country.is_match, country.match_count, country.needed) == (False, 0, 1)
    assert [(each.path, each.field) for each in country.unmet] == [("and.nodes[1].leaf.query.condition", "country")]
    assert (bought.is_match, bought.match_count, bought.max_match) == (False, 0, 3)
    assert [each.field for each in bought.unmet] == ["shoppingCartItems.price"]


async def test_stored_events_of_a_visitor_count_too(email_project: Client, world: World) -> None:
    """U2, A2, A3: what a visitor did is evaluated with what is told; not what is older than 30 days or somebody's."""
    await make_criterion(email_project, named("Viewed", minMatch=2))
    now = await world.now()
    await email_project.track(anonymous_id="x", name="Viewed", event_id="stored")
    old = timestamp(now - timedelta(days=29, hours=23))
    await email_project.track(anonymous_id="x", name="Viewed", event_time=old)
    both = await evaluate(email_project, anonymous_id="x")
    assert both.criterion_id
    await world.pass_time(email_project.project_id, timedelta(hours=1))
    one = await evaluate(email_project, anonymous_id="x")
    assert (one.criterion_id, list(one.reports[0].leaves[0].event_ids)) == ("", ["stored"])
    assert (await evaluate(email_project, {"name": "Viewed"}, anonymous_id="x")).criterion_id
    await identify(email_project, email("a@example.com"), "x")
    assert (await evaluate(email_project, anonymous_id="x")).reports[0].leaves[0].match_count == 0


@pytest.mark.parametrize(
    ("kind", "data", "data_type", "field"),
    [
        (EVENT_KIND_PURCHASE, '{"shoppingCartItems":[{"name":"pizza"}]}', "PURCHASE", "shoppingCartItems.name"),
        (
            EVENT_KIND_CART_UPDATE,
            '{"updateCart":{"updatedShoppingCartItems":[{"name":"pizza"}]}}',
            "CART_UPDATE",
            "updateCart.updatedShoppingCartItems.name",
        ),
    ],
)
async def test_items_are_reached_by_their_paths(
    email_project: Client, kind: int, data: str, data_type: str, field: str
) -> None:
    """U1: a condition on items finds them in purchases and carts, and in no other kind of event."""
    await make_criterion(email_project, leaf(data_type, condition(field, "EQUALS", "pizza")))
    assert (await evaluate(email_project, {"name": "any", "kind": kind, "data_json": data})).criterion_id
    assert not (await evaluate(email_project, {"name": "any", "data_json": data})).criterion_id


async def test_events_that_are_no_good_are_refused_by_their_place(email_project: Client) -> None:
    """X2: every wrong event of an evaluation is named, and nothing is evaluated."""
    refused = await failure(
        evaluate(
            email_project,
            {"name": "fine"},
            {"name": ""},
            {"name": "x", "data_json": "[]"},
            data_fields_json="nothing",
            anonymous_id="null",
        )
    )
    assert refused.fields == ["events[1].name", "events[2].data_json", "data_fields_json", "anonymous_id"]
    many = await failure(evaluate(email_project, *[{"name": "x"}] * 1_001))
    assert many.fields == ["events"]
    bad = await failure(evaluate(email_project, *[{"name": ""}] * 1_000))
    assert bad.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_evil_pattern_costs_nothing(email_project: Client) -> None:
    """F71: (a+)+$ against 100 kB is answered well within a call's time, because RE2 takes linear time."""
    await make_criterion(email_project, leaf("CUSTOM_EVENT", condition("text", "MATCHES_REGEX", "(a+)+$")))
    text = json.dumps({"text": "a" * 90_000 + "!"})
    request = EvaluateCriteriaRequest(events=[NewEvent(name="x", data_json=text)])
    answer = await email_project.activation.EvaluateCriteria(request, timeout=2)
    assert answer.criterion_id == ""
