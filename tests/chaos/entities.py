"""What the model is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

LINKED, ALREADY_LINKED, REFUSED_ELSEWHERE = 1, 2, 3
MERGED, CONVERTED, SAME_PROFILE = 1, 2, 3
GONE = "(forgotten)"


@dataclass
class DeviceOperation:
    """A registration or a disable of one copy: when it was sent, and when it was answered (inf: never)."""

    is_registration: bool
    begun: float
    ended: float


@dataclass
class Person:
    """A person as the log has it."""

    name: str
    exists: bool = False
    profile_id: str = ""
    fields: dict[str, int] = field(default_factory=dict)
    # Updates of which nobody knows whether they took effect.
    maybe_fields: list[dict[str, int]] = field(default_factory=list)
    devices: dict[str, list[DeviceOperation]] = field(default_factory=dict)
    into: str | None = None
    is_forgotten: bool = False
    is_frozen: bool = False
    # Merged and undone again: whose the devices are then is another test's matter.
    was_undone: bool = False


@dataclass
class Visitor:
    """An anonymous id: whom it is linked to, until when events follow, and who may have it if nobody is known to."""

    winner: str | None = None
    linked: float = inf
    grace_end: int = 0
    candidates: set[str] = field(default_factory=set)
    # Calls about it that might still be on their way in a frozen server.
    has_stragglers: bool = False


@dataclass
class Event:
    """An event: whose it was told to be ("p:NAME" or "x:ANONYMOUS_ID"), when it was acknowledged, and by which call."""

    home: str
    operation: int
    acked: float = inf
    receive_time: int = 0
    is_refused: bool = False


@dataclass
class Merge:
    """A merge that can be undone, with the target's fields before and after."""

    source: str
    target: str
    before: dict[str, int]
    after: dict[str, int]


@dataclass
class Alternative:
    """An operation whose outcome is unknown, and the people as they are if it took effect."""

    operation: int
    people: dict[str, Person]


@dataclass
class Duel:
    """What is known of two people who are merged into each other."""

    names: tuple[str, str]
    survivors: set[str] = field(default_factory=set)
    merged_count: int = 0
    unknown_count: int = 0
