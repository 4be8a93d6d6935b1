"""What the model is made of: people, events, and what merges leave. Times are seconds on a clock of the model's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

Kind = Literal["email", "user_id"]
Key = tuple[Kind, str]
Names = dict[Kind, str]


class Wrote(IntEnum):
    """What a write did to a profile, or to a device. Outcomes have the names and numbers that the protos give them."""

    UNSPECIFIED, CREATED, UPDATED, UNCHANGED = range(4)


class Linked(IntEnum):
    """What became of an anonymous_id."""

    LINKED, ALREADY_LINKED, REFUSED_LINKED_ELSEWHERE = range(1, 4)


class Merged(IntEnum):
    """What a merge did."""

    MERGED, CONVERTED, SAME_PROFILE = range(1, 4)


class Undone(IntEnum):
    """What an undo did."""

    UNDONE, ALREADY_UNDONE = range(1, 3)


class Refused(Exception):  # noqa: N818  it is the answer of a call, not a fault of the model
    """The call must fail with this reason, and nothing must have happened."""


@dataclass(eq=False)
class Person:
    """A profile. Merged away it points to the survivor; erased it is gone."""

    age: int
    names: Names = field(default_factory=dict)
    fields: dict[str, int] = field(default_factory=dict)
    # Of each copy of a device the number of the last operation on it, and whether that left it on.
    devices: dict[str, tuple[int, bool]] = field(default_factory=dict)
    # A visitor's profile, and whether it is not known yet who it is.
    is_visitors: bool = False
    is_unknown: bool = False
    profile_id: str = ""
    into: Person | None = None
    is_gone: bool = False

    @property
    def survivor(self) -> Person:
        """Who this person is by now."""
        return self.into.survivor if self.into else self


@dataclass(eq=False)
class Event:
    """An event, what was told, and for whom it was received: a person, or an anonymous_id."""

    home: Person | str
    body: object
    anonymous_id: str
    event_time: float
    receive_time: float
    event_id: str = ""

    @property
    def tells_of_merge(self) -> bool:
        """U6: an unknownSession event says so once its profile was merged into one that already existed."""
        home = self.home
        return self.body == "unknownSession" and isinstance(home, Person) and home.is_unknown and home.into is not None


@dataclass(eq=False)
class Merge:
    """An entry of the ledger: an association, or a merge, whose source is the target itself if it was renamed in place.

    `before` and `after` are what a merge found and made of the target.
    """

    target: Person
    time: float
    before: Person
    after: Person
    source: Person | None = None
    anonymous_id: str = ""
    merge_id: str = ""
    is_undone: bool = False
    is_erased: bool = False

    @property
    def is_link(self) -> bool:
        """Whether it is a link that stands."""
        return self.source is None and not self.is_undone and not self.is_erased


class Redirect(NamedTuple):
    """An identifier that a merge left to a person, until a moment."""

    key: Key
    person: Person
    merge: Merge
    end_time: float
