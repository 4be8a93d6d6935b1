"""Short ways to write criteria as messages, and to have them in a project."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict

from onefold.v1.activation_service_pb2 import CreateCriterionRequest, DeleteCriterionRequest
from onefold.v1.criterion_pb2 import Criterion, CriterionNode
from support.client import Client


def condition(field: str, comparator: str, *values: str, field_type: str = "") -> dict[str, Any]:
    """A condition, in the JSON form of its message."""
    told: dict[str, Any] = {"field": field, "comparator": f"COMPARATOR_{comparator}", "values": list(values)}
    return {"condition": told | ({"fieldType": f"FIELD_TYPE_{field_type}"} if field_type else {})}


def leaf(data_type: str, query: dict[str, Any], **counts: int) -> dict[str, Any]:
    """A leaf, in the JSON form of its message."""
    return {"leaf": {"dataType": f"CRITERION_DATA_TYPE_{data_type}", "query": query, **counts}}


def group(combinator: str, *nodes: dict[str, Any]) -> dict[str, Any]:
    """An and, or or not, in the JSON form of its message."""
    return {combinator: {"nodes": list(nodes)}}


def named(name: str, **counts: int) -> dict[str, Any]:
    """A leaf for custom events of a name."""
    return leaf("CUSTOM_EVENT", condition("eventName", "EQUALS", name), **counts)


def tree(root: dict[str, Any]) -> CriterionNode:
    """The message."""
    return ParseDict(root, CriterionNode())


async def make_criterion(client: Client, root: dict[str, Any], name: str = "a criterion", **request: Any) -> Criterion:
    """Makes a criterion."""
    answer = await client.activation.CreateCriterion(CreateCriterionRequest(name=name, root=tree(root), **request))
    return answer.criterion


async def delete_criterion(client: Client, criterion_id: str) -> None:
    """Deletes a criterion."""
    await client.activation.DeleteCriterion(DeleteCriterionRequest(criterion_id=criterion_id))
