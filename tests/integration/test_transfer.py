"""Taking a project out as a file and bringing it in: there again under another id, and on another database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
import pytest_asyncio
from pydantic import SecretStr

from onefold.config import Settings
from onefold.db.migrate import migrate
from onefold.errors import OnefoldError
from onefold.transfer.exporting import export_project
from onefold.transfer.file import check
from onefold.transfer.importing import discard_import, import_project
from onefold.transfer.tables import LEFT_OUT, TABLES, columns_of
from onefold.v1.activation_service_pb2 import ListCriteriaRequest, RecordConsentRequest
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.device_pb2 import PLATFORM_APNS, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, ListDevicesRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import EVENT_KIND_PURCHASE, CommerceItem, NewEvent
from onefold.v1.events_service_pb2 import (
    TRIGGER_START_OLDEST,
    ListActivityRequest,
    TrackRequest,
    WatchTriggersRequest,
)
from onefold.v1.identity_service_pb2 import (
    ForgetProfileRequest,
    GetProfileRequest,
    IdentifyRequest,
    MergeProfilesRequest,
    UndoMergeRequest,
    UpdateProfileRequest,
)
from onefold.v1.projects_service_pb2 import GetProjectRequest, UpdateProjectRequest
from support.client import Client, email, failure
from support.criteria import custom_event
from support.probes import rows_of
from support.serving import served
from support.world import World

A, B, C, D = (email(f"{name}@example.com") for name in "abcd")
