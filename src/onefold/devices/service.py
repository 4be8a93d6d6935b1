"""DevicesService: reads the request, owns the transaction, writes the answer."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import grpc
import orjson

from onefold.activity import store as activity
from onefold.callers import Project, caller
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.devices import store
from onefold.devices.rules import Platform, Registration, counts_anew, register
from onefold.errors import OnefoldError, Reason, not_found
from onefold.identity.messages import (
    read_data_format,
    read_identifiers,
    to_identifiers,
    to_outcome,
    to_profile_write,
)
from onefold.identity.naming import Named
from onefold.identity.people import find_profile_id, write_profile
from onefold.identity.rules import Call, Outcome, SignupSource
from onefold.identity.store import hold_profile
from onefold.intents import store as intents
from onefold.intents.doorbell import Doorbell
from onefold.intents.rules import IntentKind
from onefold.intents.store import Intent
from onefold.limits import DEVICE_FIELDS_BYTES, NAME_BYTES, TOKEN_BYTES
from onefold.rpc.checks import Checker, to_timestamp
from onefold.rpc.paging import build_page, make_token, page_size, read_token, text_part
from onefold.rpc.payload import read_json, read_struct, write_struct
from onefold.rpc.replay import write_once
from onefold.v1 import device_pb2, devices_service_pb2, devices_service_pb2_grpc, profile_pb2

Context = grpc.aio.ServicerContext[Any, Any]

Registered = TypeVar(
    "Registered", devices_service_pb2.RegisterDeviceResponse, devices_service_pb2.RegisterBrowserTokenResponse
)
Answer: TypeAlias = (
    devices_service_pb2.RegisterDeviceResponse
    | devices_service_pb2.RegisterBrowserTokenResponse
    | devices_service_pb2.DisableDeviceResponse
)

_FIRST_PROFILE = UUID(int=0)


class DevicesService(devices_service_pb2_grpc.DevicesServiceServicer):
    """Keeps the devices of every profile."""

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        self._database = database
        self._doorbell = doorbell

    async def RegisterDevice(
        self, request: devices_service_pb2.RegisterDeviceRequest, context: Context
    ) -> devices_service_pb2.RegisterDeviceResponse:
        """Registers a device for a profile."""
        checker = Checker()
        named = read_identifiers(checker, caller().project, request.identifiers, long_user_id=request.prefer_user_id)
        registration = _read_device(checker, request.device)
        call = Call(
            SignupSource.DEVICE,
            prefer_user_id=request.prefer_user_id,
            update_existing_only=request.update_existing_only,
        )
        return await self._register(
            checker, request, devices_service_pb2.RegisterDeviceResponse, named, registration, call
        )

    async def RegisterBrowserToken(
        self, request: devices_service_pb2.RegisterBrowserTokenRequest, context: Context
    ) -> devices_service_pb2.RegisterBrowserTokenResponse:
        """Registers a browser for web push."""
        checker = Checker()
        # A long user_id alone may find somebody; it never makes anybody, as there is no prefer_user_id here.
        named = read_identifiers(checker, caller().project, request.identifiers, long_user_id=True)
        registration = _read_browser_token(checker, request)
        call = Call(SignupSource.DEVICE, update_existing_only=request.update_existing_only)
        return await self._register(
            checker, request, devices_service_pb2.RegisterBrowserTokenResponse, named, registration, call
        )

    async def _register(
        self,
        checker: Checker,
        request: devices_service_pb2.RegisterDeviceRequest | devices_service_pb2.RegisterBrowserTokenRequest,
        answer_type: type[Registered],
        named: Named,
        registration: Registration,
        call: Call,
    ) -> Registered:
        """Checks what the two registrations have in common, and commits either."""
        project = caller().project
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> Registered:
            # The profile's row is locked first, so the count of its devices cannot change before the commit.
            written = await write_profile(connection, project, named, call)
            outcome, disable = Outcome.SKIPPED, None
            if written.person is not None and written.person.profile_id is not None:
                outcome, disable = await _register_copy(
                    connection, project, written.person.profile_id, registration, exclusive=request.exclusive
                )
            return answer_type(profile=to_profile_write(written), device_outcome=to_outcome(outcome), disable=disable)

        answer, replayed = await write_once(self._database, project.project_id, request, request_id, answer_type, work)
        self._complete(project, answer, registration.token, replayed=replayed)
        return answer

    async def DisableDevice(
        self, request: devices_service_pb2.DisableDeviceRequest, context: Context
    ) -> devices_service_pb2.DisableDeviceResponse:
        """Switches a device off, for one profile or for all that hold it."""
        project = caller().project
        checker = Checker()
        token = _read_token(checker, "token", request.token)
        named = (
            read_identifiers(checker, project, request.identifiers, long_user_id=True)
            if request.HasField("identifiers")
            else None
        )
        request_id = checker.request_id(request.request_id)
        checker.raise_if_wrong()

        async def work(connection: Connection) -> devices_service_pb2.DisableDeviceResponse:
            if named is None:
                return await _disable_token(connection, project, token)
            profile_id = await find_profile_id(connection, project, named, to_write=True)
            return await _disable_copy(connection, project, profile_id, token)

        answer, replayed = await write_once(
            self._database, project.project_id, request, request_id, devices_service_pb2.DisableDeviceResponse, work
        )
        self._complete(project, answer, token, replayed=replayed)
        return answer

    def _complete(self, project: Project, answer: Answer, token: str, *, replayed: bool) -> None:
        """Completes an answer that tells of a disable, and calls a worker for the disable when it is new."""
        if answer.HasField("disable"):
            answer.disable.token = token
            if not replayed:
                self._doorbell.ring(_intent(project, UUID(answer.disable.disable_id)))

    async def GetDisable(
        self, request: devices_service_pb2.GetDisableRequest, context: Context
    ) -> devices_service_pb2.GetDisableResponse:
        """Tells how far a disable's work is."""
        project = caller().project
        checker = Checker()
        disable_id = checker.uuid("disable_id", request.disable_id)
        checker.raise_if_wrong()

        async def find(connection: Connection) -> tuple[store.DisableRow | None, bool]:
            row = await store.find_disable(connection, project.project_id, disable_id)
            return row, await intents.is_stuck(connection, project.project_id, disable_id)

        row, stuck = await self._database.read(find, snapshot=True)
        if row is None:
            raise not_found(Reason.DISABLE_NOT_FOUND, "No disable has this id.")
        return devices_service_pb2.GetDisableResponse(disable=_to_disable(row, stuck=stuck))

    async def ListDevices(
        self, request: devices_service_pb2.ListDevicesRequest, context: Context
    ) -> devices_service_pb2.ListDevicesResponse:
        """Lists a page of a profile's devices."""
        project = caller().project
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        count = page_size(checker, request.page_size)
        by_id = request.WhichOneof("person") == "profile_id"
        asked_id = checker.uuid("profile_id", request.profile_id) if by_id else None
        named = None if by_id else read_identifiers(checker, project, request.identifiers, long_user_id=True)
        checker.raise_if_wrong()
        [after] = read_token(request, request.page_token, text_part) or [""]

        async def list_page(connection: Connection) -> list[store.DeviceRow]:
            profile_id = await find_profile_id(connection, project, named, asked_id)
            return await store.list_devices(connection, project.project_id, profile_id, after, count + 1)

        rows = await self._database.read(list_page, snapshot=True)
        answer = devices_service_pb2.ListDevicesResponse()
        answer.devices.extend(build_page(rows, count, lambda row: _to_device(row, as_json=as_json)))
        if len(answer.devices) < len(rows):
            answer.next_page_token = make_token(request, [answer.devices[-1].token])
        return answer

    async def ListTokenHolders(
        self, request: devices_service_pb2.ListTokenHoldersRequest, context: Context
    ) -> devices_service_pb2.ListTokenHoldersResponse:
        """Lists a page of the profiles that hold a token."""
        project = caller().project
        checker = Checker()
        as_json = read_data_format(checker, request.data_format)
        count = page_size(checker, request.page_size)
        token = _read_token(checker, "token", request.token)
        checker.raise_if_wrong()
        [after] = read_token(request, request.page_token, UUID) or [_FIRST_PROFILE]
        rows = await self._database.read(
            lambda connection: store.list_token_holders(connection, project.project_id, token, after, count + 1)
        )
        answer = devices_service_pb2.ListTokenHoldersResponse()
        answer.holders.extend(build_page(rows, count, lambda row: _to_holder(row, as_json=as_json)))
        if len(answer.holders) < len(rows):
            answer.next_page_token = make_token(request, [answer.holders[-1].device.profile_id])
        return answer


async def _register_copy(
    connection: Connection, project: Project, profile_id: UUID, registration: Registration, *, exclusive: bool
) -> tuple[Outcome, device_pb2.Disable | None]:
    await store.lock_token(connection, project.project_id, registration.token, shared=not exclusive)
    stored = await store.find_copy(connection, project.project_id, profile_id, registration.token)
    held = 0
    if counts_anew(stored, registration):
        browser = registration.platform is Platform.WEB
        held = await store.count_devices(connection, project.project_id, profile_id, browser=browser)
    copy, outcome = register(stored, registration, held)
    disable = None
    if exclusive and await store.others_hold_token(connection, project.project_id, registration.token, profile_id):
        # Before the copy is written: it gets the later number, and so it stays on.
        disable = await _add_disable(connection, project, registration.token, kept_by=profile_id)
    if outcome is Outcome.UNCHANGED:
        # It is an operation all the same, and the newest one decides when profiles are merged.
        await store.renew_copy(connection, project.project_id, profile_id, registration.token)
    else:
        await store.put_copy(connection, project.project_id, profile_id, registration.token, copy)
        await activity.note_registered(
            connection, project.project_id, profile_id, registration.token, registration.platform
        )
    return outcome, disable


async def _disable_copy(
    connection: Connection, project: Project, profile_id: UUID, token: str
) -> devices_service_pb2.DisableDeviceResponse:
    # Held, so that a merge cannot take the copy along while it is being switched off.
    await hold_profile(connection, project.project_id, profile_id)
    await store.lock_token(connection, project.project_id, token, shared=True)
    stored = await store.find_copy(connection, project.project_id, profile_id, token)
    if stored is None:
        raise _device_not_found()
    # An operation also on a copy that is off: the newest one decides when profiles are merged.
    await store.disable_copy(connection, project.project_id, profile_id, token)
    if stored.endpoint_enabled:
        await activity.note_disabled(connection, project.project_id, profile_id, token, stored.platform)
    return devices_service_pb2.DisableDeviceResponse(
        outcome=to_outcome(Outcome.UPDATED if stored.endpoint_enabled else Outcome.UNCHANGED)
    )


async def _disable_token(
    connection: Connection, project: Project, token: str
) -> devices_service_pb2.DisableDeviceResponse:
    await store.lock_token(connection, project.project_id, token, shared=False)
    if not await store.token_is_held(connection, project.project_id, token):
        raise _device_not_found()
    return devices_service_pb2.DisableDeviceResponse(
        outcome=profile_pb2.WRITE_OUTCOME_UPDATED, disable=await _add_disable(connection, project, token)
    )


async def _add_disable(
    connection: Connection, project: Project, token: str, kept_by: UUID | None = None
) -> device_pb2.Disable:
    """Switches every copy of a token off at commit, and leaves the writing of the copies to a worker. The token must be
    locked exclusively. `kept_by`: whose copy is to be registered, and so on, right after."""
    row = await store.add_disable(connection, project.project_id, token)
    await activity.note_disabled_for_all(connection, project.project_id, token, kept_by)
    await intents.add(connection, _intent(project, row.disable_id))
    disable = _to_disable(row, stuck=False)
    # Answers are stored with the profiles that they name, and forgotten with these. This one need not name any: so the
    # token stays out of it, and is put back from the request.
    disable.ClearField("token")
    return disable


def _intent(project: Project, disable_id: UUID) -> Intent:
    return Intent(project.project_id, disable_id, IntentKind.DISABLE)


def _device_not_found() -> OnefoldError:
    return not_found(Reason.DEVICE_NOT_FOUND, "The token is not registered there.")


def _read_token(checker: Checker, field: str, token: str) -> str:
    checker.text(field, token, required=True, max_bytes=TOKEN_BYTES)
    if token and (not token.isascii() or " " in token):
        checker.refuse(field, "must be ASCII without spaces")
    return token


def _read_device(checker: Checker, device: device_pb2.NewDevice) -> Registration:
    token = _read_token(checker, "device.token", device.token)
    known: list[int] = list(Platform)
    if device.platform == device_pb2.PLATFORM_UNSPECIFIED:
        checker.refuse("device.platform", "is required")
    else:
        checker.one_of("device.platform", device.platform, known)
    application_name = checker.text(
        "device.application_name", device.application_name, required=True, max_bytes=NAME_BYTES
    )
    fields = _read_fields(checker, "device.", device)
    platform = Platform(device.platform) if device.platform in known else Platform.APNS
    return Registration(token, platform, application_name, fields)


def _read_browser_token(checker: Checker, request: devices_service_pb2.RegisterBrowserTokenRequest) -> Registration:
    token = _read_token(checker, "browser_token", request.browser_token)
    application_name = checker.text("application_name", request.application_name, max_bytes=NAME_BYTES)
    return Registration(token, Platform.WEB, application_name, _read_fields(checker, "", request))


def _read_fields(
    checker: Checker, prefix: str, message: device_pb2.NewDevice | devices_service_pb2.RegisterBrowserTokenRequest
) -> dict[str, Any]:
    field, fields = message.WhichOneof("fields"), {}
    match field:
        case "data_fields":
            fields = read_struct(checker, prefix + field, message.data_fields, max_bytes=DEVICE_FIELDS_BYTES).value
        case "data_fields_json":
            fields = read_json(checker, prefix + field, message.data_fields_json, max_bytes=DEVICE_FIELDS_BYTES).value
    return fields


def _to_device(row: store.DeviceRow, *, as_json: bool) -> device_pb2.Device:
    answer = device_pb2.Device(
        token=row.token,
        platform=device_pb2.Platform.ValueType(row.platform),
        application_name=row.application_name,
        endpoint_enabled=row.endpoint_enabled,
        create_time=to_timestamp(row.create_time),
        update_time=to_timestamp(row.update_time),
        profile_id=str(row.profile_id),
    )
    if as_json:
        answer.data_fields_json = row.data_fields
    else:
        write_struct(answer.data_fields, orjson.loads(row.data_fields))
        answer.data_fields.SetInParent()
    return answer


def _to_holder(row: store.HolderRow, *, as_json: bool) -> device_pb2.TokenHolder:
    return device_pb2.TokenHolder(
        identifiers=to_identifiers(row.email, row.user_id), device=_to_device(row.device, as_json=as_json)
    )


def _to_disable(row: store.DisableRow, *, stuck: bool) -> device_pb2.Disable:
    state = device_pb2.DISABLE_STATE_RUNNING
    if row.finish_time is not None:
        state = device_pb2.DISABLE_STATE_DONE
    elif stuck:
        state = device_pb2.DISABLE_STATE_STUCK
    return device_pb2.Disable(
        disable_id=str(row.disable_id),
        token=row.token,
        state=state,
        disabled_count=row.disabled_count,
        create_time=to_timestamp(row.create_time),
        finish_time=to_timestamp(row.finish_time) if row.finish_time else None,
    )
