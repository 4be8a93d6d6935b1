"""Who calls: the project that a call belongs to, and what its key may do.

A call belongs to exactly one project, taken from its API key and never from the request (P6). The boundary sets it,
services read it by `caller()`.
"""

from __future__ import annotations

import enum
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final


class IdentifierType(enum.StrEnum):
    """What names a person in a project; chosen when it is made, and for good (P1)."""

    EMAIL = "EMAIL"
    USER_ID = "USER_ID"
    HYBRID = "HYBRID"


class Region(enum.StrEnum):
    """Where a project's data is to be kept."""

    US = "US"
    EU = "EU"


class Scope(enum.StrEnum):
    """What a key may do."""

    READ = "READ"
    WRITE = "WRITE"
    ADMIN = "ADMIN"


# Ids that clients send for "nobody", in lower case. One such id would gather everyone under one profile.
REFUSED_IDS: Final = frozenset(
    {"null", "undefined", "none", "nil", "nan", "0", "anonymous", "guest", "[object object]"}
)


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    """What a project switches on and off, with what a new one begins with. Names as in the protos and the table."""

    # Identify associates the events of an anonymous_id with the person (P5).
    event_merging_enabled: bool = True
    # Trigger-eligible events are kept for WatchTriggers (E10).
    triggers_enabled: bool = False
    # Visitors whose events match a criterion get an unknown profile by themselves (U2).
    server_side_activation: bool = False
    # An unknown profile needs the visitor's consent (U8).
    require_consent: bool = False
    # What one process of a server takes of the project; 0 for no limit.
    max_calls_per_second: int = 0
    max_events_per_second: int = 0

    @property
    def watches_visitors(self) -> bool:
        """Whether workers look at what visitors do. A project that associates no events makes no profile of them."""
        return self.server_side_activation and self.event_merging_enabled


@dataclass(frozen=True, slots=True)
class Project:
    """A project and its settings."""

    project_id: str
    identifier_type: IdentifierType
    region: Region
    settings: ProjectSettings
    create_time: datetime
    update_time: datetime
    # The name under which identifiers are forgotten: that of the project which this one is a copy of, if it is one.
    forget_name: str = ""
    # Keys the hashes of forgotten identifiers: of a server's secret and the project, so that no two projects share one.
    forget_key: bytes = field(default=b"", repr=False)
    # Ids that name nobody, in lower case (I2). The same for all projects of a server.
    refused_ids: frozenset[str] = REFUSED_IDS


@dataclass(frozen=True, slots=True)
class Caller:
    """The project and the key of one call."""

    project: Project
    key_id: str
    scopes: frozenset[Scope]
    # How long the key is good for, when it was looked up; None for a key without an end.
    seconds_left: float | None = None


_caller: ContextVar[Caller] = ContextVar("onefold_caller")


def caller() -> Caller:
    """The caller of the call being served. LookupError outside of one."""
    return _caller.get()


def set_caller(value: Caller) -> None:
    """Notes who calls, for the rest of this call's task."""
    _caller.set(value)
