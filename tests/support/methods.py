"""Every method of the API, walked from the descriptors, with one sensible request or more for each.

A test that walks `REQUESTS` meets every method: `test_no_method_is_left_out` fails when one has no row.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from onefold.server import FILES
from onefold.v1.activation_service_pb2 import (
    CreateCriterionRequest,
    CreateUnknownProfileRequest,
    DeleteCriterionRequest,
    EvaluateCriteriaRequest,
    ListCriteriaRequest,
    RecordConsentRequest,
    ReplayItem,
    ReplayRequest,
    ReplayUpdate,
    UpdateCriterionRequest,
)
from onefold.v1.consent_pb2 import DeviceInfo
from onefold.v1.criterion_pb2 import (
    COMPARATOR_EQUALS,
    CRITERION_DATA_TYPE_CUSTOM_EVENT,
    CriterionCondition,
    CriterionLeaf,
    CriterionNode,
    CriterionQuery,
)
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import (
    DisableDeviceRequest,
    GetDisableRequest,
    ListDevicesRequest,
    ListTokenHoldersRequest,
    RegisterBrowserTokenRequest,
    RegisterDeviceRequest,
)
from onefold.v1.event_pb2 import EVENT_KIND_CART_UPDATE, CommerceItem, NewEvent
from onefold.v1.events_service_pb2 import (
    TRIGGER_START_OLDEST,
    BatchTrackRequest,
    ListActivityRequest,
    ListEventsRequest,
    TrackRequest,
    TrackStreamRequest,
    WatchTriggersRequest,
)
from onefold.v1.identity_service_pb2 import (
    ArrayMerge,
    BatchGetProfilesRequest,
    BatchUpdateProfilesRequest,
    DeleteProfileRequest,
    ForgetProfileRequest,
    GetMergeRequest,
    GetProfileRequest,
    IdentifyRequest,
    ListForgottenRequest,
    ListMergesRequest,
    LookupProfilesRequest,
    MergeProfilesRequest,
    PersonName,
    PreviewMergeRequest,
    ProfileUpdate,
    UndoMergeRequest,
    UnforgetProfileRequest,
    UpdateEmailRequest,
    UpdateProfileRequest,
    UpdateUserIdRequest,
)
from onefold.v1.options_pb2 import SCOPE_READ
from onefold.v1.profile_pb2 import Identifiers
from onefold.v1.project_pb2 import IDENTIFIER_TYPE_USER_ID
from onefold.v1.projects_service_pb2 import (
    CreateApiKeyRequest,
    CreateProjectRequest,
    GetProjectRequest,
    ListApiKeysRequest,
    ListProjectsRequest,
    RevokeApiKeyRequest,
    UpdateProjectRequest,
)

METHODS: Final[dict[str, MethodDescriptor]] = {
    f"{service.name}/{method.name}": method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
}


@dataclass(frozen=True)
class Names:
    """Everything by which a request can name something of a project."""

    email: str
    user_id: str
    # A temporary user_id of a visitor.
    session_id: str
    profile_id: str
    anonymous_id: str
    event_id: str
    token: str
    recipient: str
    merge_id: str
    disable_id: str
    criterion_id: str
    key_id: str
    project_id: str
    cursor: str
    request_id: str
    # What stands in data, names and notes.
    word: str
    # A person who is surely there, for requests that need two.
    mine: Identifiers

    @property
    def who(self) -> Identifiers:
        """The person by user_id, which every type of project takes."""
        return Identifiers(user_id=self.user_id)

    @property
    def both(self) -> Identifiers:
        """The person by both."""
        return Identifiers(email=self.email, user_id=self.user_id)

    @property
    def data(self) -> str:
        """JSON text with the word in a key and in a value."""
        return f'{{"{self.word}":"{self.word}"}}'


Build = Callable[[Names], Message]


def _root(names: Names) -> CriterionNode:
    condition = CriterionCondition(field="eventName", comparator=COMPARATOR_EQUALS, values=[names.word])
    return CriterionNode(
        leaf=CriterionLeaf(data_type=CRITERION_DATA_TYPE_CUSTOM_EVENT, query=CriterionQuery(condition=condition))
    )


def _event(names: Names) -> NewEvent:
    return NewEvent(identifiers=names.who, name=names.word, data_json=names.data, event_id=names.event_id)


def _events(names: Names) -> list[NewEvent]:
    item = CommerceItem(id=names.word, name=names.word, price=1.5, quantity=1)
    return [
        _event(names),
        NewEvent(identifiers=Identifiers(email=names.email), name=names.word, event_id=f"{names.event_id}-e"),
        NewEvent(anonymous_id=names.anonymous_id, name=names.word, event_id=f"{names.event_id}-x"),
        NewEvent(name=names.word, data_json=f'{{"recipient":"{names.recipient}"}}', event_id=f"{names.event_id}-i"),
        NewEvent(
            identifiers=names.who,
            name=names.word,
            kind=EVENT_KIND_CART_UPDATE,
            items=[item],
            event_id=f"{names.event_id}-c",
        ),
    ]


def _device(names: Names) -> NewDevice:
    return NewDevice(token=names.token, platform=PLATFORM_FCM, application_name=names.word, data_fields_json=names.data)


_INFO = DeviceInfo(device_id="device", platform="iOS", application_name="Pizza")

# By method: what a service would send, naming its people and things in each way there is. In this order they can be
# sent one after the other: what makes comes first, what takes away last.
REQUESTS: Final[dict[str, list[Build]]] = {
    "ProjectsService/GetProject": [lambda n: GetProjectRequest()],
    "ProjectsService/UpdateProject": [lambda n: UpdateProjectRequest(triggers_enabled=True)],
    "ProjectsService/CreateProject": [
        lambda n: CreateProjectRequest(project_id=n.project_id, identifier_type=IDENTIFIER_TYPE_USER_ID)
    ],
    "ProjectsService/ListProjects": [lambda n: ListProjectsRequest()],
    "ProjectsService/CreateApiKey": [lambda n: CreateApiKeyRequest(scopes=[SCOPE_READ], display_name=n.word)],
    "ProjectsService/ListApiKeys": [lambda n: ListApiKeysRequest()],
    "ActivationService/CreateCriterion": [
        lambda n: CreateCriterionRequest(name=n.word, root=_root(n), request_id=n.request_id)
    ],
    "ActivationService/UpdateCriterion": [
        lambda n: UpdateCriterionRequest(
            criterion_id=n.criterion_id, name=f"{n.word} 2", version=1, request_id=n.request_id
        )
    ],
    "ActivationService/ListCriteria": [lambda n: ListCriteriaRequest()],
    "IdentityService/UpdateProfile": [
        lambda n: UpdateProfileRequest(
            identifiers=n.both, data_fields_json=n.data, prefer_user_id=True, request_id=n.request_id
        ),
        lambda n: UpdateProfileRequest(identifiers=n.who, data_fields_json=n.data),
    ],
    "IdentityService/BatchUpdateProfiles": [
        lambda n: BatchUpdateProfilesRequest(
            updates=[
                ProfileUpdate(identifiers=n.who, data_fields_json=n.data),
                ProfileUpdate(identifiers=Identifiers(email=n.email), data_fields_json=n.data),
                ProfileUpdate(identifiers=n.who, data_fields_json=n.data, prefer_user_id=True),
            ],
            request_id=n.request_id,
        )
    ],
    "EventsService/Track": [
        lambda n: TrackRequest(event=_event(n), request_id=n.request_id),
        lambda n: TrackRequest(
            event=NewEvent(anonymous_id=n.anonymous_id, name=n.word, data_json=n.data, event_id=f"{n.event_id}-t")
        ),
    ],
    "EventsService/BatchTrack": [lambda n: BatchTrackRequest(events=_events(n), request_id=n.request_id)],
    "EventsService/TrackStream": [lambda n: TrackStreamRequest(sequence=1, events=_events(n))],
    "ActivationService/EvaluateCriteria": [
        lambda n: EvaluateCriteriaRequest(
            anonymous_id=n.anonymous_id, events=[NewEvent(name=n.word)], data_fields_json=n.data
        )
    ],
    "ActivationService/RecordConsent": [
        lambda n: RecordConsentRequest(anonymous_id=n.anonymous_id, device=_INFO, request_id=n.request_id),
        lambda n: RecordConsentRequest(identifiers=n.who, is_known=True, device=_INFO),
    ],
    "IdentityService/Identify": [
        lambda n: IdentifyRequest(
            identifiers=n.both, anonymous_id=n.anonymous_id, data_fields_json=n.data, request_id=n.request_id
        ),
        lambda n: IdentifyRequest(identifiers=n.mine, anonymous_id=n.anonymous_id, data_fields_json=n.data),
        lambda n: IdentifyRequest(identifiers=n.who, anonymous_id=f"{n.anonymous_id}-2"),
    ],
    "DevicesService/RegisterDevice": [
        lambda n: RegisterDeviceRequest(
            identifiers=n.who, device=_device(n), prefer_user_id=True, exclusive=True, request_id=n.request_id
        ),
        lambda n: RegisterDeviceRequest(identifiers=n.mine, device=_device(n), exclusive=True),
    ],
    "DevicesService/RegisterBrowserToken": [
        lambda n: RegisterBrowserTokenRequest(identifiers=n.who, browser_token=n.token, request_id=n.request_id),
        lambda n: RegisterBrowserTokenRequest(identifiers=n.mine, browser_token=n.token, exclusive=True),
    ],
    "DevicesService/ListDevices": [
        lambda n: ListDevicesRequest(identifiers=n.who),
        lambda n: ListDevicesRequest(profile_id=n.profile_id),
    ],
    "DevicesService/ListTokenHolders": [lambda n: ListTokenHoldersRequest(token=n.token)],
    "DevicesService/DisableDevice": [
        lambda n: DisableDeviceRequest(token=n.token, identifiers=n.who),
        lambda n: DisableDeviceRequest(token=n.token, identifiers=n.mine),
        lambda n: DisableDeviceRequest(token=n.token, request_id=n.request_id),
    ],
    "DevicesService/GetDisable": [lambda n: GetDisableRequest(disable_id=n.disable_id)],
    "ActivationService/CreateUnknownProfile": [
        lambda n: CreateUnknownProfileRequest(
            user_id=n.session_id,
            session_count=1,
            first_session_time=Timestamp(seconds=1_700_000_000),
            device=_INFO,
            data_fields_json=n.data,
            request_id=n.request_id,
        ),
        lambda n: CreateUnknownProfileRequest(user_id=n.session_id, criterion_id=n.criterion_id),
    ],
    "ActivationService/Replay": [
        lambda n: ReplayRequest(
            identifiers=n.who,
            items=[
                ReplayItem(event=NewEvent(name=n.word, event_id=f"{n.event_id}-r")),
                ReplayItem(update=ReplayUpdate(data_fields_json=n.data)),
            ],
            prefer_user_id=True,
            request_id=n.request_id,
        )
    ],
    "IdentityService/GetProfile": [
        lambda n: GetProfileRequest(profile_id=n.profile_id),
        lambda n: GetProfileRequest(identifiers=n.who),
    ],
    "IdentityService/BatchGetProfiles": [
        lambda n: BatchGetProfilesRequest(
            people=[
                PersonName(profile_id=n.profile_id),
                PersonName(identifiers=n.who),
                PersonName(identifiers=Identifiers(email=n.email)),
                PersonName(identifiers=n.both),
            ]
        )
    ],
    "IdentityService/LookupProfiles": [
        lambda n: LookupProfilesRequest(user_id=n.user_id),
        lambda n: LookupProfilesRequest(email=n.email),
    ],
    "EventsService/ListEvents": [
        lambda n: ListEventsRequest(profile_id=n.profile_id),
        lambda n: ListEventsRequest(identifiers=n.who),
        lambda n: ListEventsRequest(anonymous_id=n.anonymous_id),
        lambda n: ListEventsRequest(recipient=n.recipient),
    ],
    "EventsService/ListActivity": [
        lambda n: ListActivityRequest(profile_id=n.profile_id),
        lambda n: ListActivityRequest(identifiers=n.who),
        lambda n: ListActivityRequest(anonymous_id=n.anonymous_id),
        # Of the whole project, which names nothing.
        lambda n: ListActivityRequest(),
    ],
    "EventsService/WatchTriggers": [
        lambda n: WatchTriggersRequest(cursor=n.cursor),
        lambda n: WatchTriggersRequest(at=TRIGGER_START_OLDEST, names=[n.word]),
    ],
    "IdentityService/UpdateEmail": [
        lambda n: UpdateEmailRequest(identifiers=n.who, new_email=f"new-{n.email}", request_id=n.request_id),
        lambda n: UpdateEmailRequest(identifiers=n.mine, new_email=n.email),
    ],
    "IdentityService/UpdateUserId": [
        lambda n: UpdateUserIdRequest(identifiers=n.who, new_user_id=f"{n.user_id}-2", request_id=n.request_id),
        lambda n: UpdateUserIdRequest(identifiers=n.mine, new_user_id=n.user_id),
    ],
    "IdentityService/PreviewMerge": [
        lambda n: PreviewMergeRequest(source=n.who, target=n.mine, allow_known_source=True),
        lambda n: PreviewMergeRequest(source=n.mine, target=n.who, allow_known_source=True),
    ],
    "IdentityService/MergeProfiles": [
        lambda n: MergeProfilesRequest(
            source=n.who,
            target=n.mine,
            allow_known_source=True,
            request_id=n.request_id,
            array_merges=[ArrayMerge(field=n.word)],
        ),
        lambda n: MergeProfilesRequest(source=n.mine, target=n.who, allow_known_source=True),
    ],
    "IdentityService/GetMerge": [lambda n: GetMergeRequest(merge_id=n.merge_id)],
    "IdentityService/ListMerges": [
        lambda n: ListMergesRequest(profile_id=n.profile_id),
        lambda n: ListMergesRequest(identifiers=n.who),
    ],
    "IdentityService/UndoMerge": [lambda n: UndoMergeRequest(merge_id=n.merge_id, request_id=n.request_id)],
    "IdentityService/ListForgotten": [lambda n: ListForgottenRequest()],
    "IdentityService/DeleteProfile": [
        lambda n: DeleteProfileRequest(profile_id=n.profile_id, request_id=n.request_id),
        lambda n: DeleteProfileRequest(identifiers=n.who),
    ],
    "IdentityService/ForgetProfile": [
        lambda n: ForgetProfileRequest(identifiers=n.who, request_id=n.request_id),
        lambda n: ForgetProfileRequest(identifiers=Identifiers(email=n.email)),
    ],
    "IdentityService/UnforgetProfile": [
        lambda n: UnforgetProfileRequest(identifiers=n.who, request_id=n.request_id),
        lambda n: UnforgetProfileRequest(identifiers=Identifiers(email=n.email)),
    ],
    "ActivationService/DeleteCriterion": [
        lambda n: DeleteCriterionRequest(criterion_id=n.criterion_id, request_id=n.request_id)
    ],
    "ProjectsService/RevokeApiKey": [lambda n: RevokeApiKeyRequest(key_id=n.key_id)],
}


def build(path: str, index: int, names: Names) -> Message:
    """A request of the table. Its request_id is the method's own, for one that another method had would be refused."""
    return REQUESTS[path][index](replace(names, request_id=f"{names.request_id}-{path}"))


@dataclass(frozen=True)
class Outcome:
    """All that came back of a call: its messages, or the code, the text and every byte of the trailing metadata."""

    messages: tuple[Any, ...] = ()
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailers: tuple[tuple[str, Any], ...] = ()


def open_call(channel: grpc.aio.Channel, path: str, key: str | None) -> Any:
    """A multi-callable of a method that takes its messages as bytes, as whoever writes them by hand sends them."""
    method = METHODS[path]
    kind = (
        channel.stream_stream
        if method.client_streaming
        else channel.unary_stream
        if method.server_streaming
        else channel.unary_unary
    )
    call: Any = kind(f"/{method.full_name.rpartition('.')[0]}/{method.name}")

    def keyed(request: bytes, timeout: float = 20.0) -> Any:
        metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        return call([request] if method.client_streaming else request, metadata=metadata, timeout=timeout)

    return keyed


async def send(channel: grpc.aio.Channel, path: str, key: str | None, request: Message | bytes) -> Outcome:
    """Calls a method; of one whose answer does not end by itself, the first message is taken."""
    method = METHODS[path]
    answer_type = GetMessageClass(method.output_type)
    call = open_call(channel, path, key)(request if isinstance(request, bytes) else request.SerializeToString())
    try:
        if not method.server_streaming:
            return Outcome((answer_type.FromString(await call),))
        answers = []
        async for answer in call:
            answers.append(answer_type.FromString(answer))
            if not method.client_streaming:
                call.cancel()
                break
        return Outcome(tuple(answers))
    except grpc.aio.AioRpcError as error:
        trailers = tuple(sorted(error.trailing_metadata() or ()))
        return Outcome((), error.code(), error.details() or "", trailers)
    except asyncio.CancelledError:
        if call.cancelled():
            return Outcome((), grpc.StatusCode.CANCELLED)
        raise


_MADE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{64}\b")
_PLACEHOLDER = re.compile(r"\+-?\d+@placeholder\.email")


def plain(message: Message, names: Names) -> str:
    """An answer as text, in which what stands for itself alone is written the same: the names that were asked for,
    and ids, hashes, times and secrets that a server makes anew each time."""
    copy = type(message)()
    copy.CopyFrom(message)
    _clear_made(copy)
    text = str(copy)
    # The longest first: one may be part of another.
    for value, field in sorted(
        ((value, field) for field, value in vars(names).items() if isinstance(value, str)),
        key=lambda pair: -len(pair[0]),
    ):
        text = text.replace(value, field)
    return _MADE.sub("made", _PLACEHOLDER.sub("PLACEHOLDER", text))


def _clear_made(message: Message) -> None:
    for field, value in message.ListFields():
        if field.full_name in ("onefold.v1.ApiKey.key_id", "onefold.v1.CreateApiKeyResponse.secret_text") or (
            field.name in ("api_key", "cursor", "next_page_token") and field.message_type is None
        ):
            message.ClearField(field.name)
        elif field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp":
            value.Clear()
        elif field.message_type is not None and field.message_type.file.package == "onefold.v1":
            for each in value if field.is_repeated else [value]:
                _clear_made(each)
