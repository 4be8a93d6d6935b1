"""Whom a call finds or makes, for every combination of what it names, who is there, and what it asks.

The table below is the contract written out by hand; nothing in it is worked out by the code under test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import pytest

from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import RegisterBrowserTokenRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import EVENT_KIND_CUSTOM, EVENT_KIND_PURCHASE, EventKind, NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import GetProfileRequest, IdentifyRequest, UpdateProfileRequest
from onefold.v1.profile_pb2 import Identifiers, ProfileWrite, WriteOutcome
from support.client import Client, Failure, email, read_failure, user
from support.placeholders import short_placeholder
from support.world import World

# In the table a profile is written EMAIL/USER_ID, "-" standing for none: e and u are what the call may name, f and v
# another email and another user_id, p the placeholder generated for u. The columns:
#
#   named    what the call gives
#   there    the profiles that exist before, the oldest first; a star before the one that the call finds
#   creating what UpdateProfile, Identify, RegisterDevice and a purchase answer: plain, with prefer_user_id, with
#            update_existing_only, with both flags; and RegisterBrowserToken, which has no prefer_user_id (I7)
#   custom   what a custom event answers, with the same four settings
#   after    the one profile found, or made where none is, as it is after a call that wrote
#
# One word stands for four equal answers. I5 to I7 decide who is made, I3 what is set, P3 who may be named, I14 what is
# skipped: only what would have been created. A profile that is not the one found stays as it was, always.
TABLES = {
    # I5: a custom event makes nobody. I7: by user_id alone nobody is made without prefer_user_id.
    "EMAIL": """
        named | there       | creating                             | custom    | after
        e     |             | CREATED CREATED SKIPPED SKIPPED      | NOT_FOUND | e/-
        e     | *e/-        | UNCHANGED                            | UNCHANGED | e/-
        e     | *e/v        | UNCHANGED                            | UNCHANGED | e/v
        e     | f/u         | CREATED CREATED SKIPPED SKIPPED      | NOT_FOUND | e/-
        e     | *e/u        | UNCHANGED                            | UNCHANGED | e/u
        e     | *e/v f/u    | UNCHANGED                            | UNCHANGED | e/v
        u     |             | NOT_FOUND CREATED NOT_FOUND SKIPPED  | NOT_FOUND | p/u
        u     | e/-         | NOT_FOUND CREATED NOT_FOUND SKIPPED  | NOT_FOUND | p/u
        u     | e/v         | NOT_FOUND CREATED NOT_FOUND SKIPPED  | NOT_FOUND | p/u
        u     | *f/u        | UNCHANGED                            | UNCHANGED | f/u
        u     | *e/u        | UNCHANGED                            | UNCHANGED | e/u
        u     | e/v *f/u    | UNCHANGED                            | UNCHANGED | f/u
        u     | *e/u f/u    | UNCHANGED                            | UNCHANGED | e/u
        eu    |             | CREATED CREATED SKIPPED SKIPPED      | NOT_FOUND | e/u
        eu    | *e/-        | UPDATED                              | UPDATED   | e/u
        eu    | *e/v        | UPDATED                              | UPDATED   | e/u
        eu    | f/u         | CREATED CREATED SKIPPED SKIPPED      | NOT_FOUND | e/u
        eu    | *e/u        | UNCHANGED                            | UNCHANGED | e/u
        eu    | *e/v f/u    | UPDATED                              | UPDATED   | e/u
        eu    | *e/- f/u    | UPDATED                              | UPDATED   | e/u
    """,
    # P3: an email names nobody. P2: an email may be shared. I6: every event makes the person.
    "USER_ID": """
        named | there       | creating                             | custom                          | after
        e     |             | INVALID                              | INVALID                         |
        e     | e/v         | INVALID                              | INVALID                         |
        e     | f/u         | INVALID                              | INVALID                         |
        e     | e/u         | INVALID                              | INVALID                         |
        e     | e/v f/u     | INVALID                              | INVALID                         |
        u     |             | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | -/u
        u     | e/v         | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | -/u
        u     | *-/u        | UNCHANGED                            | UNCHANGED                       | -/u
        u     | *f/u        | UNCHANGED                            | UNCHANGED                       | f/u
        u     | *e/u        | UNCHANGED                            | UNCHANGED                       | e/u
        u     | e/v *f/u    | UNCHANGED                            | UNCHANGED                       | f/u
        eu    |             | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | e/u
        eu    | e/v         | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | e/u
        eu    | *-/u        | UPDATED                              | UPDATED                         | e/u
        eu    | *f/u        | UPDATED                              | UPDATED                         | e/u
        eu    | *e/u        | UNCHANGED                            | UNCHANGED                       | e/u
        eu    | e/v *f/u    | UPDATED                              | UPDATED                         | e/u
        eu    | e/v *-/u    | UPDATED                              | UPDATED                         | e/u
    """,
    # I3: two people are never merged silently, and neither is one who is known under another user_id.
    "HYBRID": """
        named | there       | creating                             | custom                          | after
        e     |             | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | e/-
        e     | *e/-        | UNCHANGED                            | UNCHANGED                       | e/-
        e     | *e/v        | UNCHANGED                            | UNCHANGED                       | e/v
        e     | -/u         | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | e/-
        e     | f/u         | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | e/-
        e     | *e/u        | UNCHANGED                            | UNCHANGED                       | e/u
        e     | *e/v f/u    | UNCHANGED                            | UNCHANGED                       | e/v
        u     |             | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | -/u
        u     | e/-         | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | -/u
        u     | e/v         | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | -/u
        u     | *-/u        | UNCHANGED                            | UNCHANGED                       | -/u
        u     | *f/u        | UNCHANGED                            | UNCHANGED                       | f/u
        u     | *e/u        | UNCHANGED                            | UNCHANGED                       | e/u
        u     | e/v *f/u    | UNCHANGED                            | UNCHANGED                       | f/u
        eu    |             | CREATED CREATED SKIPPED SKIPPED      | CREATED CREATED SKIPPED SKIPPED | e/u
        eu    | *e/-        | UPDATED                              | UPDATED                         | e/u
        eu    | e/v         | CONFLICT                             | CONFLICT                        |
        eu    | *-/u        | UPDATED                              | UPDATED                         | e/u
        eu    | *f/u        | UPDATED                              | UPDATED                         | e/u
        eu    | *e/u        | UNCHANGED                            | UNCHANGED                       | e/u
        eu    | e/- -/u     | CONFLICT                             | CONFLICT                        |
        eu    | e/v -/u     | CONFLICT                             | CONFLICT                        |
        eu    | e/v f/u     | CONFLICT                             | CONFLICT                        |
    """,
}

FLAGS = [(False, False), (True, False), (False, True), (True, True)]  # prefer_user_id, update_existing_only
FAILURES = {
    "NOT_FOUND": (grpc.StatusCode.NOT_FOUND, "PROFILE_NOT_FOUND"),
    "INVALID": (grpc.StatusCode.INVALID_ARGUMENT, "FIELDS_INVALID"),
    "CONFLICT": (grpc.StatusCode.FAILED_PRECONDITION, "IDENTIFIERS_CONFLICT"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    named: str
    there: list[str]
    creating: list[str]
    custom: list[str]
    after: str

    @property
    def before(self) -> list[str]:
        """The profiles there."""
        return [written.removeprefix("*") for written in self.there]

    @property
    def found(self) -> str | None:
        """The one of them that the call finds."""
        return next((written.removeprefix("*") for written in self.there if written.startswith("*")), None)


def rows(project_type: str) -> list[Row]:
    """The lines of a table."""
    lines = [[cell.strip() for cell in line.split("|")] for line in TABLES[project_type].strip().splitlines()]
    return [
        Row(named, there.split(), _four(creating), _four(custom), after)
        for named, there, creating, custom, after in lines[1:]
    ]


def _four(cell: str) -> list[str]:
    words = cell.split()
    return words * 4 if len(words) == 1 else words


@dataclass(frozen=True)
class Names:
    """The letters of the table spelled out, differently for every call, so that calls do not meet."""

    number: int

    def email(self, letter: str) -> str:
        """An email, or "" for none."""
        match letter:
            case "-":
                return ""
            case "p":
                return short_placeholder(self.user_id("u"))
            case _:
                return f"{letter}{self.number}@example.com"

    def user_id(self, letter: str) -> str:
        """A user_id, or "" for none."""
        return "" if letter == "-" else f"{letter}-{self.number}"

    def person(self, written: str) -> Identifiers:
        """The identifiers of a profile written as in the table."""
        email, user_id = written.split("/")
        return Identifiers(email=self.email(email), user_id=self.user_id(user_id))

    def named(self, letters: str) -> Identifiers:
        """What a call gives."""
        return self.person(("e" if "e" in letters else "-") + "/" + ("u" if "u" in letters else "-"))


@dataclass(frozen=True)
class Answer:
    """What a call told about the profile. `identifiers` is None where the call does not tell them."""

    outcome: str
    profile_id: str
    identifiers: Identifiers | None


Ask = Callable[[Client, Identifiers, bool, bool], Awaitable[Answer]]


async def update(project: Client, who: Identifiers, prefer: bool, only: bool) -> Answer:
    """UpdateProfile."""
    request = UpdateProfileRequest(identifiers=who, prefer_user_id=prefer, update_existing_only=only)
    return _written((await project.identity.UpdateProfile(request)).profile)


async def identify(project: Client, who: Identifiers, prefer: bool, only: bool) -> Answer:
    """Identify, with an anonymous_id of its own."""
    request = IdentifyRequest(
        identifiers=who, anonymous_id=f"x/{who.email}/{who.user_id}", prefer_user_id=prefer, update_existing_only=only
    )
    return _written((await project.identity.Identify(request)).profile)


async def register(project: Client, who: Identifiers, prefer: bool, only: bool) -> Answer:
    """RegisterDevice."""
    device = NewDevice(token="t", platform=PLATFORM_FCM, application_name="app")
    request = RegisterDeviceRequest(identifiers=who, device=device, prefer_user_id=prefer, update_existing_only=only)
    answer = await project.devices.RegisterDevice(request)
    assert (answer.device_outcome == WriteOutcome.WRITE_OUTCOME_SKIPPED) is (
        answer.profile.outcome == WriteOutcome.WRITE_OUTCOME_SKIPPED
    )
    return _written(answer.profile)


async def register_browser(project: Client, who: Identifiers, prefer: bool, only: bool) -> Answer:
    """RegisterBrowserToken."""
    assert not prefer
    request = RegisterBrowserTokenRequest(identifiers=who, browser_token="t", update_existing_only=only)
    answer = await project.devices.RegisterBrowserToken(request)
    assert (answer.device_outcome == WriteOutcome.WRITE_OUTCOME_SKIPPED) is (
        answer.profile.outcome == WriteOutcome.WRITE_OUTCOME_SKIPPED
    )
    return _written(answer.profile)


def track(kind: EventKind.ValueType) -> Ask:
    """Track, with an event of a kind."""

    async def ask(project: Client, who: Identifiers, prefer: bool, only: bool) -> Answer:
        event = NewEvent(identifiers=who, name="Event", kind=kind, prefer_user_id=prefer, update_existing_only=only)
        result = (await project.events.Track(TrackRequest(event=event))).result
        return Answer(_word(result.profile_outcome), result.profile_id, None)

    return ask


def _written(profile: ProfileWrite) -> Answer:
    return Answer(_word(profile.outcome), profile.profile_id, profile.identifiers)


def _word(outcome: WriteOutcome.ValueType) -> str:
    return WriteOutcome.Name(outcome).removeprefix("WRITE_OUTCOME_")


CREATING: dict[str, Ask] = {
    "UpdateProfile": update,
    "Identify": identify,
    "RegisterDevice": register,
    "RegisterBrowserToken": register_browser,
    "Track purchase": track(EVENT_KIND_PURCHASE),
}
CALLS: dict[str, Ask] = {**CREATING, "Track custom": track(EVENT_KIND_CUSTOM)}


async def ask_or_fail(call: Ask, project: Client, who: Identifiers, prefer: bool, only: bool) -> Answer | Failure:
    """The answer of a call, or how it failed."""
    try:
        return await call(project, who, prefer, only)
    except grpc.aio.AioRpcError as error:
        return read_failure(error)


async def identifiers_of(project: Client, profile_id: str) -> Identifiers:
    """What a profile is named by now."""
    return (await project.identity.GetProfile(GetProfileRequest(profile_id=profile_id))).profile.identifiers


async def found_by(project: Client, who: Identifiers) -> list[str]:
    """Whom a look-up finds: one profile_id, or none."""
    try:
        return [(await project.identity.GetProfile(GetProfileRequest(identifiers=who))).profile.profile_id]
    except grpc.aio.AioRpcError as error:
        assert read_failure(error).reason == "PROFILE_NOT_FOUND"
        return []


def unique_names(project_type: str, names: Names) -> list[Identifiers]:
    """Every identifier of a case that is unique in the project's type (P2), so that a look-up tells who holds it."""
    emails = [email(names.email(letter)) for letter in "ef"]
    user_ids = [user(names.user_id(letter)) for letter in "uv"]
    return {"EMAIL": emails, "USER_ID": user_ids, "HYBRID": emails + user_ids}[project_type]


async def count_profiles(world: World, project: Client) -> int:
    """How many profiles a project has."""
    count: int = await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", project.project_id)
    return count


@pytest.mark.parametrize("call_name", CALLS)
@pytest.mark.parametrize("project_type", TABLES)
async def test_every_call_finds_or_makes_whom_the_table_says(
    make_project: Callable[..., Awaitable[Client]], world: World, project_type: str, call_name: str
) -> None:
    """I3, I5, I6, I7, I8, I14, P2, P3, F72: the outcome or the error, and who holds which identifiers afterwards."""
    project = await make_project(project_type)
    profiles = 0
    for line, row in enumerate(rows(project_type)):
        answers = row.creating if call_name in CREATING else row.custom
        # The four settings meet no identifier of each other, so they may as well run at once.
        profiles += sum(
            await asyncio.gather(
                *(
                    check(project, project_type, row, Names(4 * line + column), call_name, flags, expected)
                    for column, (flags, expected) in enumerate(zip(FLAGS, answers, strict=True))
                    if not (call_name == "RegisterBrowserToken" and flags[0])
                )
            )
        )
    assert await count_profiles(world, project) == profiles


async def check(
    project: Client,
    project_type: str,
    row: Row,
    names: Names,
    call_name: str,
    flags: tuple[bool, bool],
    expected: str,
) -> int:
    """Makes the profiles of a line, makes the call, and checks what it told and did; returns how many profiles stay."""
    case = f"{row}, {call_name} with prefer_user_id={flags[0]}, update_existing_only={flags[1]}"
    before: dict[str, str] = {}
    for written in row.before:
        made = await update(project, names.person(written), False, False)
        assert made.outcome == "CREATED", case
        before[written] = made.profile_id

    got = await ask_or_fail(CALLS[call_name], project, names.named(row.named), *flags)

    after = {profile_id: names.person(written) for written, profile_id in before.items()}
    if expected in FAILURES:
        assert isinstance(got, Failure), (case, got)
        assert (got.code, got.reason) == FAILURES[expected], case
        assert got.metadata.get("kinds") == ("email,user_id" if expected == "CONFLICT" else None), case
        prefix = "event." if call_name.startswith("Track") else ""
        assert got.fields == ([f"{prefix}identifiers.email"] if expected == "INVALID" else []), case
    else:
        assert isinstance(got, Answer), (case, got)
        assert got.outcome == expected, case
        if expected == "SKIPPED":
            assert not got.profile_id, case
        else:
            assert got.profile_id, case
            if row.found is None:
                assert got.profile_id not in after, case
            else:
                assert got.profile_id == before[row.found], case
            after[got.profile_id] = names.person(row.after)
            assert got.identifiers in (None, after[got.profile_id]), case
    for profile_id, identifiers in after.items():
        assert await identifiers_of(project, profile_id) == identifiers, case
    for name in unique_names(project_type, names):
        holder = [at for at, held in after.items() if name in (user(held.user_id), email(held.email))]
        assert await found_by(project, name) == holder, case
    return len(after)


def test_the_table_is_whole() -> None:
    """I3: every type has a line for nobody, for one by email, one by user_id, one by both, and two, however named."""
    for project_type in TABLES:
        for named in ("e", "u", "eu"):
            there = [set("".join(row.there)) & {"e", "u"} for row in rows(project_type) if row.named == named]
            counts = {len(row.there) for row in rows(project_type) if row.named == named}
            assert counts == {0, 1, 2}
            for wanted in (set(), {"e"}, {"u"}, {"e", "u"}):
                assert wanted in there
