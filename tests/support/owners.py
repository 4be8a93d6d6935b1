"""A project with one of everything that a request can name."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace

import grpc

from onefold.v1.identity_service_pb2 import UpdateProfileRequest
from onefold.v1.options_pb2 import SCOPE_READ
from onefold.v1.profile_pb2 import Identifiers
from onefold.v1.projects_service_pb2 import CreateApiKeyRequest
from support.client import Client
from support.methods import REQUESTS, Names, Outcome, build, send

MINE = Identifiers(email="mine@example.com", user_id="mine")

# What its own services sent before: these are there to be found, by the same names and request_ids.
BEFORE = [
    "ProjectsService/UpdateProject",
    "ActivationService/CreateCriterion",
    "IdentityService/UpdateProfile",
    "EventsService/Track",
    "EventsService/BatchTrack",
    "ActivationService/RecordConsent",
    "IdentityService/Identify",
    "DevicesService/RegisterDevice",
    "DevicesService/DisableDevice",
    "DevicesService/RegisterBrowserToken",
    "ActivationService/CreateUnknownProfile",
    "ActivationService/Replay",
    "EventsService/WatchTriggers",
]


def made_up(word: str) -> Names:
    """Names that nothing has."""
    return Names(
        email=f"{word}@example.com",
        user_id=f"{word}-user",
        session_id=str(uuid.uuid4()),
        profile_id=str(uuid.uuid4()),
        anonymous_id=f"{word}-visitor",
        event_id=f"{word}-event",
        token=f"{word}-token",
        recipient=f"{word}-guest@example.com",
        merge_id=str(uuid.uuid4()),
        disable_id=str(uuid.uuid4()),
        criterion_id=str(uuid.uuid4()),
        key_id=uuid.uuid4().hex[:12],
        project_id=f"p{uuid.uuid4().hex[:12]}",
        cursor=f"{word}-cursor",
        request_id=f"{word}-request",
        word=word,
        mine=MINE,
    )


@dataclass(frozen=True)
class Owner:
    """A project with one of everything, and the names of it all."""

    client: Client
    names: Names


async def owner_of(client: Client, word: str = "theirs") -> Owner:
    """A fresh project, after its services have sent every kind of write."""
    names = replace(made_up(word), project_id=client.project_id)
    await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=MINE, prefer_user_id=True))
    for path in BEFORE:
        for index in range(len(REQUESTS[path])):
            outcome = await send(client.channel, path, client.key, build(path, index, names))
            names = learned(names, path, outcome)
    key = await client.projects.CreateApiKey(CreateApiKeyRequest(scopes=[SCOPE_READ]))
    return Owner(client, replace(names, key_id=key.api_key.key_id))


def learned(names: Names, path: str, outcome: Outcome) -> Names:
    """The names, with the ids that an answer gives."""
    if outcome.code is not grpc.StatusCode.OK:
        return names
    answer = outcome.messages[0]
    match path:
        case "ActivationService/CreateCriterion":
            return replace(names, criterion_id=answer.criterion.criterion_id)
        case "IdentityService/Identify" if answer.link.merge_id and answer.profile.identifiers != MINE:
            return replace(names, profile_id=answer.profile.profile_id, merge_id=answer.link.merge_id)
        case "DevicesService/DisableDevice" if answer.disable.disable_id:
            return replace(names, disable_id=answer.disable.disable_id)
        case "EventsService/WatchTriggers":
            return replace(names, cursor=answer.cursor)
    return names
