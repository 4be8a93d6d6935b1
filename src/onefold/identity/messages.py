"""The identity messages that other services speak too: reading who is named, telling what became of the profile."""

from __future__ import annotations

from typing import Final

import orjson

from onefold.callers import Project
from onefold.identity.naming import Named, anonymous_id_problem, is_placeholder, name_person
from onefold.identity.people import Written
from onefold.identity.rules import Outcome
from onefold.identity.store import Profile
from onefold.rpc.checks import Checker, fill_timestamp
from onefold.rpc.payload import write_struct
from onefold.v1 import data_format_pb2, profile_pb2

_DATA_FORMATS: Final = frozenset(data_format_pb2.DataFormat.values())


def read_identifiers(
    checker: Checker,
    project: Project,
    identifiers: profile_pb2.Identifiers,
    *,
    prefix: str = "identifiers",
    long_user_id: bool = False,
) -> Named:
    """Checks identifiers. Returns an empty name after noting violations."""
    named, violations = name_person(
        project.identifier_type,
        identifiers.email,
        identifiers.user_id,
        prefix=prefix,
        refused=project.refused_ids,
        long_user_id=long_user_id,
    )
    for violation in violations:
        checker.refuse(violation.field, violation.description)
    return named or Named(None, None)


def read_data_format(checker: Checker, value: data_format_pb2.DataFormat.ValueType) -> bool:
    """Whether an answer's data is to be JSON text rather than a Struct."""
    checker.one_of("data_format", value, _DATA_FORMATS)
    return value == data_format_pb2.DATA_FORMAT_JSON


def read_anonymous_id(checker: Checker, project: Project, field: str, value: str) -> str:
    """Checks an anonymous_id that is required."""
    problem = anonymous_id_problem(value, project.refused_ids) if value else "is required"
    if problem:
        checker.refuse(field, problem)
    return value


def to_identifiers(email: str | None, user_id: str | None) -> profile_pb2.Identifiers:
    """Identifiers as an answer has them; "" stands for none."""
    return profile_pb2.Identifiers(email=email or "", user_id=user_id or "")


def to_profile_write(written: Written) -> profile_pb2.ProfileWrite:
    """What a write did to a profile, as an answer has it."""
    answer = profile_pb2.ProfileWrite()
    fill_profile_write(answer, written)
    return answer


def fill_profile_write(answer: profile_pb2.ProfileWrite, written: Written) -> None:
    """The same in place, which spares the many of a batch a copy each."""
    answer.outcome = to_outcome(written.outcome)
    if written.person is None:
        return
    answer.profile_id = str(written.person.profile_id)
    if written.email is not None:
        answer.identifiers.email = written.email
        answer.email_is_placeholder = is_placeholder(written.email)
    if written.user_id is not None:
        answer.identifiers.user_id = written.user_id
    if written.holder_count > 1:
        answer.user_id_holder_count = written.holder_count


def to_outcome(outcome: Outcome) -> profile_pb2.WriteOutcome.ValueType:
    """The enum's value of the same number."""
    return profile_pb2.WriteOutcome.ValueType(outcome)


def to_profile(profile: Profile, *, as_json: bool) -> profile_pb2.Profile:
    """A profile as an answer has it."""
    answer = profile_pb2.Profile()
    fill_profile(answer, profile, as_json=as_json)
    return answer


def fill_profile(answer: profile_pb2.Profile, profile: Profile, *, as_json: bool) -> None:
    """The same in place."""
    answer.profile_id = str(profile.profile_id)
    if profile.email is not None:
        answer.identifiers.email = profile.email
        answer.email_domain = profile.email.rpartition("@")[2]
        answer.email_is_placeholder = is_placeholder(profile.email)
    if profile.user_id is not None:
        answer.identifiers.user_id = profile.user_id
    answer.is_unknown = profile.is_unknown
    answer.signup_source = profile_pb2.SignupSource.ValueType(profile.signup_source)
    fill_timestamp(answer.signup_time, profile.signup_time)
    fill_timestamp(answer.profile_update_time, profile.profile_update_time)
    fill_timestamp(answer.create_time, profile.create_time)
    fill_timestamp(answer.update_time, profile.update_time)
    if as_json:
        answer.data_fields_json = profile.data_fields
    else:
        write_struct(answer.data_fields, orjson.loads(profile.data_fields))
        answer.data_fields.SetInParent()
