"""What a registration and a disable do to a profile's copy of a device. Pure.

Registrations and disables of one token are numbered in the order of their commits. A copy is reachable if it was
enabled by an operation that no disable of the token, finished or not, came after.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

from onefold.errors import OnefoldError, Reason, exhausted
from onefold.identity.rules import Outcome, updated_fields
from onefold.limits import DEVICES_PER_PROFILE

# The application of a browser token that no registration has named one for.
BROWSER_APPLICATION_NAME: Final = "web"


class Platform(enum.IntEnum):
    """Who delivers; the numbers are those in the protos and in the table."""

    APNS = 1
    APNS_SANDBOX = 2
    FCM = 3
    WEB = 4


@dataclass(frozen=True, slots=True)
class Registration:
    """A device as a request tells it, checked. Only a browser token may come without an application_name ("")."""

    token: str
    platform: Platform
    application_name: str
    data_fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Copy:
    """A profile's copy as reads see it: with the open disables of its token applied."""

    platform: Platform
    application_name: str
    data_fields: str
    endpoint_enabled: bool


def register(stored: Copy | None, registration: Registration, held_count: int) -> tuple[Copy, Outcome]:
    """The copy after a registration, and what that did to it (D1). Data fields are merged, top-level key by key.

    `held_count` is how many devices of the sort the profile has. Raises DEVICE_LIMIT (D6) or DATA_FIELDS_LIMIT.
    """
    if counts_anew(stored, registration) and held_count >= DEVICES_PER_PROFILE:
        raise device_limit(registration.platform)
    before = stored.data_fields if stored else "{}"
    fields = updated_fields(before, registration.data_fields, nested=False) or before
    name = registration.application_name or (stored.application_name if stored else BROWSER_APPLICATION_NAME)
    after = Copy(registration.platform, name, fields, True)
    if stored is None:
        return after, Outcome.CREATED
    return after, Outcome.UNCHANGED if after == stored else Outcome.UPDATED


def counts_anew(stored: Copy | None, registration: Registration) -> bool:
    """Whether a registration adds to the profile's devices of its sort: browser tokens and others are counted apart."""
    return stored is None or (stored.platform is Platform.WEB) != (registration.platform is Platform.WEB)


def device_limit(platform: Platform) -> OnefoldError:
    """The profile has as many browser tokens, or as many other devices, as it may have."""
    sort = "browser tokens" if platform is Platform.WEB else "devices"
    return exhausted(
        Reason.DEVICE_LIMIT,
        f"The profile has {DEVICES_PER_PROFILE} {sort} already, which is as many as it may have.",
        limit=str(DEVICES_PER_PROFILE),
    )
