"""Whom identifiers name, and what a write does to the profile.

Pure: values in, decisions out. The Directory works out a whole batch in memory, in the order of its items, as if each
had been a call of its own; the store then writes the result with a fixed number of statements.
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import orjson

from onefold.callers import IdentifierType, Project
from onefold.errors import (
    OnefoldError,
    Reason,
    already_exists,
    exhausted,
    failed_precondition,
    not_found,
)
from onefold.identity.naming import IdentifierKind, Named, generated_placeholder, is_placeholder
from onefold.limits import (
    DATA_FIELDS_BYTES,
)


class Outcome(enum.IntEnum):
    """What a write did; the numbers are those of WriteOutcome in the protos."""

    CREATED = 1
    UPDATED = 2
    UNCHANGED = 3
    SKIPPED = 4


class SignupSource(enum.IntEnum):
    """Which call made a profile; the numbers are those in the protos."""

    PROFILE_UPDATE = 1
    IDENTIFY = 2
    EVENT = 3
    DEVICE = 4
    ACTIVATION = 5


# --- whom they name --------------------------------------------------------------------------------------------------


def is_exclusive(project_type: IdentifierType, kind: IdentifierKind) -> bool:
    """Whether an identifier belongs to one profile only (P2)."""
    match kind:
        case IdentifierKind.EMAIL:
            return project_type is not IdentifierType.USER_ID
        case IdentifierKind.USER_ID:
            return project_type is not IdentifierType.EMAIL
        case IdentifierKind.ANONYMOUS_ID:
            return True


@dataclass(eq=False, slots=True)
class Person:
    """A profile as a batch sees it: what it is now, and what the batch has made of it so far."""

    profile_id: UUID
    email: str | None
    user_id: str | None
    source: SignupSource | None = None
    stored_email: str | None = None
    stored_user_id: str | None = None

    @property
    def is_new(self) -> bool:
        """Whether this batch creates it."""
        return self.source is not None

    @property
    def identifiers_changed(self) -> bool:
        """Whether this batch gives it another email or user_id."""
        return (self.email, self.user_id) != (self.stored_email, self.stored_user_id)


def is_named_anew(project_type: IdentifierType, person: Person) -> bool:
    """Whether a person has got another user_id, or a real email where that identifies."""
    real_email = person.email is not None and not is_placeholder(person.email)
    return person.user_id != person.stored_user_id or (
        real_email and person.email != person.stored_email and is_exclusive(project_type, IdentifierKind.EMAIL)
    )


class Placement(NamedTuple):
    """What a write found: the person, or None for one that is skipped; CREATED, UPDATED, UNCHANGED or SKIPPED."""

    person: Person | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Call:
    """What a call may do with a person it does not find."""

    source: SignupSource
    creates: bool = True
    prefer_user_id: bool = False
    update_existing_only: bool = False


# One identifier: what it is and how it is written.
Key: TypeAlias = tuple[IdentifierKind, str]


class VacatedError(Exception):
    """An earlier item of the batch took an identifier from its oldest holder; the next one must be looked up anew."""


@dataclass(slots=True)
class Directory:
    """Who the identifiers of a batch belong to. Filled from the store, then changed by `place`, item after item."""

    project_type: IdentifierType
    # The ids of the people that the batch makes, each later than the one before and than everybody's who was found.
    new_ids: Iterator[UUID] = field(default_factory=lambda: iter(()))
    # What would be kept of each identifier that was looked up if its person were forgotten.
    hashes: dict[Key, bytes | None] = field(default_factory=dict)
    holders: dict[Key, Person] = field(default_factory=dict)
    people: dict[UUID, Person] = field(default_factory=dict)
    # Identifiers that lead to a profile because a merge left them to it: they find it, and are never set on it.
    redirects: set[Key] = field(default_factory=set)
    # Identifiers whose person was forgotten.
    forgotten: set[Key] = field(default_factory=set)
    _vacated: set[Key] = field(default_factory=set)

    def add(self, kind: IdentifierKind, value: str, person: Person) -> None:
        """Notes the (oldest) holder of an identifier, as stored."""
        self.holders[kind, value] = person
        self.people[person.profile_id] = person

    def new_people(self) -> list[Person]:
        """Those that the batch creates, in the order of their ids."""
        return [person for person in self.people.values() if person.is_new]

    def changed_people(self) -> list[Person]:
        """Those that were there before and get another identifier, in the order in which rows are locked."""
        changed = [person for person in self.people.values() if not person.is_new and person.identifiers_changed]
        return sorted(changed, key=lambda person: person.profile_id)

    def find(self, named: Named) -> Person | None:
        """Whom a read names; None for nobody. Raises IDENTIFIERS_CONFLICT as a write would, and VacatedError."""
        email, user_id = named
        by_email = self._holder(IdentifierKind.EMAIL, email) if email is not None else None
        by_user_id = self._holder(IdentifierKind.USER_ID, user_id) if user_id is not None else None
        match self.project_type:
            case IdentifierType.EMAIL:
                return by_email if email else by_user_id
            case IdentifierType.USER_ID:
                return by_user_id
            case IdentifierType.HYBRID:
                if by_email and by_user_id and by_email is not by_user_id:
                    raise _conflict()
                return by_user_id or by_email

    def place(self, named: Named, call: Call) -> Placement:
        """Finds the person that a write names, or creates it, and sets the identifiers given (I3 to I8, I14).

        Raises PROFILE_NOT_FOUND, PLACEHOLDER_TAKEN, IDENTIFIERS_CONFLICT or FORGOTTEN; nothing has changed then.
        """
        return self.settle(self.find_to_write(named), named, call)

    def find_to_write(self, named: Named) -> Person | None:
        """Whom a write names; None for nobody. Raises what `find` raises, and FORGOTTEN."""
        self.refuse_forgotten(named)
        return self.find(named)

    def settle(self, person: Person | None, named: Named, call: Call) -> Placement:
        """The rest of `place`, for whom `find_to_write` found."""
        if person is None:
            return self._create(named, call)
        if (
            self.project_type is IdentifierType.HYBRID
            and named.user_id
            and person.user_id is not None
            and person.user_id != named.user_id
            and (IdentifierKind.USER_ID, named.user_id) not in self.redirects
        ):
            # Found by email, but known under another user_id: taking the email along would be a silent merge.
            raise _conflict()
        changed = self._set(person, IdentifierKind.EMAIL, named.email)
        changed = self._set(person, IdentifierKind.USER_ID, named.user_id) or changed
        return Placement(person, Outcome.UPDATED if changed else Outcome.UNCHANGED)

    def rename(self, person: Person, kind: IdentifierKind, value: str) -> Outcome:
        """Gives a person another email or user_id (I12). Raises IDENTIFIER_TAKEN or FORGOTTEN."""
        if (kind, value) in self.forgotten:
            self.refuse_forgotten(Named(value, None) if kind is IdentifierKind.EMAIL else Named(None, value))
        holder = self.holders.get((kind, value))
        if holder is not None and holder is not person and is_exclusive(self.project_type, kind):
            raise already_exists(
                Reason.IDENTIFIER_TAKEN, "The new identifier belongs to another profile.", kind=kind.name.lower()
            )
        # What a merge left to this very person may become its own.
        self.redirects.discard((kind, value))
        return Outcome.UPDATED if self._set(person, kind, value) else Outcome.UNCHANGED

    def refuse_forgotten(self, named: Named) -> None:
        """Raises FORGOTTEN if one of the identifiers must not come back (I20)."""
        if not self.forgotten:
            return
        for kind, value in ((IdentifierKind.EMAIL, named.email), (IdentifierKind.USER_ID, named.user_id)):
            if value is not None and (kind, value) in self.forgotten:
                raise failed_precondition(
                    Reason.FORGOTTEN, "The person with this identifier was forgotten; it must not come back."
                )

    def _holder(self, kind: IdentifierKind, value: str) -> Person | None:
        if (kind, value) in self._vacated:
            raise VacatedError
        return self.holders.get((kind, value))

    def _create(self, named: Named, call: Call) -> Placement:
        email = named.email
        creates = call.creates
        if self.project_type is IdentifierType.EMAIL and email is None:
            creates = creates and call.prefer_user_id
            if creates and named.user_id:
                email = generated_placeholder(named.user_id)
        if not creates:
            raise not_found(Reason.PROFILE_NOT_FOUND, "No profile has these identifiers.")
        if call.update_existing_only:
            return Placement(None, Outcome.SKIPPED)
        if email != named.email:
            named = Named(email, named.user_id)
            self.refuse_forgotten(named)
            if (IdentifierKind.EMAIL, email) in self.holders:
                raise already_exists(
                    Reason.PLACEHOLDER_TAKEN, "The generated placeholder email belongs to another profile already."
                )
        return Placement(self.create(named, call.source), Outcome.CREATED)

    def create(self, named: Named, source: SignupSource) -> Person:
        """A new person with these identifiers, which nobody has."""
        profile_id = next(self.new_ids)
        person = self.people[profile_id] = Person(profile_id, named.email, named.user_id, source)
        if named.email is not None:
            self._lead((IdentifierKind.EMAIL, named.email), person)
        if named.user_id is not None:
            self._lead((IdentifierKind.USER_ID, named.user_id), person)
        return person

    def _set(self, person: Person, kind: IdentifierKind, value: str | None) -> bool:
        old = person.email if kind is IdentifierKind.EMAIL else person.user_id
        if value is None or value == old:
            return False
        if (kind, value) in self.redirects and self.holders.get((kind, value)) is person:
            # A merge left it to this person, who is found by it and keeps their own.
            return False
        if kind is IdentifierKind.EMAIL:
            person.email = value
        else:
            person.user_id = value
        if old is not None and self.holders.get((kind, old)) is person:
            del self.holders[kind, old]
            if not is_exclusive(self.project_type, kind):
                # Others may hold it too; only the store knows who is the oldest now.
                self._vacated.add((kind, old))
        self._lead((kind, value), person)
        return True

    def _lead(self, key: Key, person: Person) -> None:
        """Lets an identifier that a person has now lead to them, or, if it is shared, still to its oldest holder."""
        holder = self.holders.get(key)
        # Whoever has it comes before anybody whom a merge left it to.
        if holder is None or key in self.redirects or person.profile_id < holder.profile_id:
            self.holders[key] = person
            self.redirects.discard(key)


def forgotten_hash(project: Project, kind: IdentifierKind, value: str) -> bytes | None:
    """What is kept of an identifier whose person is forgotten; None for one that does not identify in the project."""
    return forgotten_hashes(project, [(kind, value)])[0]


def forgotten_hashes(project: Project, keys: Sequence[Key]) -> list[bytes | None]:
    """The same of many identifiers, in order."""
    keyed = hmac.new(project.forget_key, digestmod="sha256")
    prefixes = {
        kind: f"{kind.name}\0"
        for kind in (IdentifierKind.EMAIL, IdentifierKind.USER_ID)
        if is_exclusive(project.identifier_type, kind)
    }
    hashes: list[bytes | None] = []
    for kind, value in keys:
        if kind not in prefixes:
            hashes.append(None)
            continue
        hashed = keyed.copy()
        hashed.update((prefixes[kind] + value).encode())
        hashes.append(hashed.digest())
    return hashes


def wanted_identifiers(
    project_type: IdentifierType, named: Named, *, prefer_user_id: bool = False
) -> list[tuple[IdentifierKind, str]]:
    """The identifiers whose holders a Directory must know to place a person."""
    wanted = []
    if named.email:
        wanted.append((IdentifierKind.EMAIL, named.email))
    if named.user_id:
        wanted.append((IdentifierKind.USER_ID, named.user_id))
        if prefer_user_id and not named.email and project_type is IdentifierType.EMAIL:
            wanted.append((IdentifierKind.EMAIL, generated_placeholder(named.user_id)))
    return wanted


def _conflict() -> OnefoldError:
    return failed_precondition(
        Reason.IDENTIFIERS_CONFLICT,
        "email and user_id name two different profiles; both are unique in this project, and nothing was merged.",
        kinds="email,user_id",
    )


# --- what a write does to the data fields ----------------------------------------------------------------------------


def merge_fields(stored: Mapping[str, Any], given: Mapping[str, Any], *, nested: bool) -> dict[str, Any]:
    """The data fields after an update (I4): given keys replace stored ones, all others survive.

    With `nested`, where both hold an object its keys are merged, one level deep; deeper objects are replaced.
    """
    merged = dict(stored)
    for key, value in given.items():
        old = merged.get(key)
        if nested and isinstance(value, dict) and isinstance(old, dict):
            merged[key] = {**old, **value}
        else:
            merged[key] = value
    return merged


def updated_fields(stored: str, given: Mapping[str, Any], *, nested: bool) -> str | None:
    """The JSON text of the data fields after an update; None if nothing changes.

    Raises RESOURCE_EXHAUSTED / DATA_FIELDS_LIMIT if they would exceed 1 MB.
    """
    if not given:
        return None
    before = orjson.loads(stored)
    after = merge_fields(before, given, nested=nested) if before else given
    if before and same_json(before, after):
        return None
    text = orjson.dumps(after)
    if len(text) > DATA_FIELDS_BYTES:
        raise exhausted(
            Reason.DATA_FIELDS_LIMIT,
            f"The profile's data fields would exceed {DATA_FIELDS_BYTES} bytes.",
            limit_bytes=str(DATA_FIELDS_BYTES),
        )
    return text.decode()


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: numbers by their value, but true is not 1 as it is to Python."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)
