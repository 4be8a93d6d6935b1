"""The lists of projects and of keys, and changing a key while both work."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import pytest

from conftest import MakeProject
from onefold.v1.options_pb2 import SCOPE_ADMIN, SCOPE_READ, SCOPE_WRITE
from onefold.v1.project_pb2 import IDENTIFIER_TYPE_HYBRID, IDENTIFIER_TYPE_USER_ID, REGION_EU, ApiKey, Project
from onefold.v1.projects_service_pb2 import (
    CreateApiKeyRequest,
    CreateProjectRequest,
    GetProjectRequest,
    ListApiKeysRequest,
    ListProjectsRequest,
    RevokeApiKeyRequest,
)
from support.client import Client, failure, timestamp
from support.world import World


async def project_pages(c: Client, page_size: int = 0) -> list[list[Project]]:
    """All pages of the projects."""
    found: list[list[Project]] = []
    token = ""
    while not found or token:
        page = await c.projects.ListProjects(ListProjectsRequest(page_size=page_size, page_token=token))
        found.append(list(page.projects))
        token = page.next_page_token
    return found


async def key_pages(c: Client, page_size: int = 0) -> list[list[ApiKey]]:
    """All pages of the keys."""
    found: list[list[ApiKey]] = []
    token = ""
    while not found or token:
        page = await c.projects.ListApiKeys(ListApiKeysRequest(page_size=page_size, page_token=token))
        found.append(list(page.api_keys))
        token = page.next_page_token
    return found


async def test_projects_are_listed_to_those_who_made_them(make_project: MakeProject) -> None:
    """P6: ListProjects shows the key's own project and those made with its keys, by project_id in pages, and nobody
    else's, not even to the projects that were made."""
    c, other = await make_project("EMAIL"), await make_project("HYBRID")
    keys = {}
    for name in ("zz", "aa", "mm"):
        made = await c.projects.CreateProject(
            CreateProjectRequest(
                project_id=f"{name}-{c.project_id}",
                identifier_type=IDENTIFIER_TYPE_USER_ID,
                region=REGION_EU,
                event_merging_enabled=False,
            )
        )
        keys[name] = made.api_key
    await other.projects.CreateProject(
        CreateProjectRequest(project_id=f"bb-{other.project_id}", identifier_type=IDENTIFIER_TYPE_HYBRID)
    )
    expected = sorted([c.project_id, *(f"{name}-{c.project_id}" for name in keys)])
    found = await project_pages(c, page_size=3)
    assert [[project.project_id for project in page] for page in found] == [expected[:3], expected[3:]]
    assert [len(page) for page in await project_pages(c, page_size=4)] == [4]
    for name, key in keys.items():
        child = Client(c.channel, f"{name}-{c.project_id}", key)
        own = (await child.projects.GetProject(GetProjectRequest())).project
        assert [own] == [project for page in found for project in page if project.project_id == own.project_id]
        assert await project_pages(child) == [[own]]
        assert (own.identifier_type, own.region, own.event_merging_enabled) == (
            IDENTIFIER_TYPE_USER_ID,
            REGION_EU,
            False,
        )


async def test_keys_are_rotated(make_project: MakeProject) -> None:
    """P6 F74: two keys live side by side; the revoked one is refused at once by the server that was told, the other
    goes on, and the list tells both without their secrets."""
    c, other = await make_project("EMAIL"), await make_project("EMAIL")
    made = await c.projects.CreateApiKey(
        CreateApiKeyRequest(scopes=[SCOPE_WRITE, SCOPE_ADMIN, SCOPE_READ], display_name="the next one")
    )
    successor = Client(c.channel, c.project_id, made.secret_text)
    for each in (c, successor):
        assert (await each.projects.GetProject(GetProjectRequest())).project.project_id == c.project_id
    [listed] = await key_pages(successor)
    assert len(listed) == 2 and [key.key_id for key in listed] == sorted(key.key_id for key in listed)
    assert not any(key.HasField("revoke_time") or key.HasField("expire_time") for key in listed)
    assert made.api_key in listed and made.api_key.display_name == "the next one"
    for text in (c.key, made.secret_text):
        assert text.rpartition("_")[2] not in str(listed)

    [old] = [key for key in listed if key != made.api_key]
    revoked = (await successor.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=old.key_id))).api_key
    assert revoked.key_id == old.key_id and revoked.HasField("revoke_time")
    refused = await failure(c.projects.GetProject(GetProjectRequest()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAUTHENTICATED, "API_KEY_INVALID")
    assert (await successor.projects.GetProject(GetProjectRequest())).project.project_id == c.project_id
    # Revoked once: the first time stays.
    again = (await successor.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=old.key_id))).api_key
    assert again == revoked
    assert revoked in (await key_pages(successor))[0]
    # Nobody's keys but the project's own.
    strangers = await failure(other.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=made.api_key.key_id)))
    assert (strangers.code, strangers.reason) == (grpc.StatusCode.NOT_FOUND, "API_KEY_NOT_FOUND")
    assert (await successor.projects.GetProject(GetProjectRequest())).project.project_id == c.project_id


async def test_keys_are_listed_in_pages(email_project: Client, world: World) -> None:
    """P6: the list of keys holds every key of the project once, by key_id, page by page, the ended ones included."""
    c = email_project
    soon = await world.now() + timedelta(hours=1)
    made = [
        (
            await c.projects.CreateApiKey(
                CreateApiKeyRequest(scopes=[SCOPE_READ], display_name=f"key {index}", expire_time=timestamp(soon))
            )
        ).api_key
        for index in range(6)
    ]
    ended = (await c.projects.RevokeApiKey(RevokeApiKeyRequest(key_id=made[0].key_id))).api_key
    found = await key_pages(c, page_size=3)
    assert [len(page) for page in found] == [3, 3, 1]
    listed = [key for page in found for key in page]
    assert [key.key_id for key in listed] == sorted(key.key_id for key in listed)
    assert all(key in listed for key in [ended, *made[1:]])
    assert all(key.expire_time == timestamp(soon) and key.HasField("create_time") for key in made)


@pytest.mark.parametrize("listing", ["projects", "keys"])
async def test_the_lists_refuse(email_project: Client, listing: str) -> None:
    """X2 P6: the lists need the scope ADMIN, a page_size that is not negative, and a token that they gave."""
    c = email_project
    made = await c.projects.CreateApiKey(CreateApiKeyRequest(scopes=[SCOPE_READ, SCOPE_WRITE]))
    weak = Client(c.channel, c.project_id, made.secret_text)

    def call(client: Client, **request: Any) -> Any:
        if listing == "projects":
            return client.projects.ListProjects(ListProjectsRequest(**request))
        return client.projects.ListApiKeys(ListApiKeysRequest(**request))

    refused = await failure(call(weak))
    assert (refused.code, refused.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    negative = await failure(call(c, page_size=-1))
    assert (negative.code, negative.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["page_size"])
    keys = await c.projects.ListApiKeys(ListApiKeysRequest(page_size=1))
    for token in ["nonsense", *([keys.next_page_token] if listing == "projects" else [])]:
        wrong = await failure(call(c, page_token=token))
        assert (wrong.code, wrong.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")
