"""What the protos publish is what the code does: reasons, scopes, request ids, limits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import MethodDescriptor

from onefold import limits
from onefold.callers import Scope
from onefold.errors import Kind, Reason
from onefold.rpc.boundary import required_scopes
from onefold.server import FILES
from onefold.v1.error_reason_pb2 import ErrorReason

PROTOS = Path(__file__).resolve().parents[2] / "protos" / "onefold" / "v1"
SCOPES = required_scopes(FILES)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
# A client's stream has no one request that could be sent again as a whole: its batches are, and their event_ids make
# that safe.
WRITES = [path for path in METHODS if SCOPES[path] is Scope.WRITE and not METHODS[path].client_streaming]
REASON = re.compile(r"^  // ([A-Z_]+)[.,](?:(?!^  ERROR_).)*^  ERROR_REASON_([A-Z_]+) = \d+;", re.MULTILINE | re.DOTALL)
# Answered by gRPC itself or by the caller's own deadline, before or beside any method: no proto comment is about them.
OF_THE_TRANSPORT = {
    *("STREAM_KEY_CHECK_SECONDS", "METADATA_BYTES", "CALL_DEFAULT_SECONDS", "CALL_MAX_SECONDS", "CONNECTION_STREAMS"),
}


def comments(file: str) -> str:
    """A proto's comments as running text."""
    lines = (PROTOS / file).read_text().splitlines()
    return " ".join(line.strip().removeprefix("//").strip() for line in lines if line.strip().startswith("//"))


def test_the_published_reasons_are_the_raised_ones() -> None:
    """X2: error_reason.proto and onefold.errors.Reason have the same names."""
    published = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.DESCRIPTOR.values_by_name} - {"UNSPECIFIED"}
    assert published == {reason.name for reason in Reason} == {reason.value for reason in Reason}


def test_every_reason_is_published_with_its_code() -> None:
    """X2: the comment of each reason begins with the gRPC code that it comes with."""
    published = {name: code for code, name in REASON.findall((PROTOS / "error_reason.proto").read_text())}
    assert published.keys() == {reason.name for reason in Reason}
    assert set(published.values()) <= {kind.name for kind in Kind}


def test_every_method_has_a_scope() -> None:
    """P6: no method can be called without a key that holds the scope its proto names."""
    assert SCOPES.keys() == METHODS.keys()
    assert len(METHODS) > 10


def test_every_proto_with_a_service_is_served() -> None:
    """P6: no service file is left out of what the server guards."""
    assert {file.name.rsplit("/", 1)[-1] for file in FILES} == {path.name for path in PROTOS.glob("*_service.proto")}


@pytest.mark.parametrize("path", METHODS)
def test_reads_say_that_they_only_read(path: str) -> None:
    """X1: a method that needs the read scope promises in its options to have no side effect; a write never does."""
    method: MethodDescriptor = METHODS[path]
    no_side_effects = method.GetOptions().idempotency_level == method.GetOptions().NO_SIDE_EFFECTS
    if SCOPES[path] is Scope.READ:
        assert no_side_effects
    elif SCOPES[path] is Scope.WRITE:
        assert not no_side_effects


@pytest.mark.parametrize("path", WRITES)
def test_every_write_can_be_sent_again(path: str) -> None:
    """X1: the request of every write has a request_id, and its answer says whether it was stored."""
    method = METHODS[path]
    assert (
        method.input_type.fields_by_name["request_id"].type
        == method.input_type.fields_by_name["request_id"].TYPE_STRING
    )
    assert method.output_type.fields_by_name["replayed"].type == method.output_type.fields_by_name["replayed"].TYPE_BOOL


def test_there_are_writes_in_each_service_of_people() -> None:
    """X1: the walk above meets the writes of the identity, events and devices services."""
    assert {path.split("/")[1] for path in WRITES} >= {
        "onefold.v1.IdentityService",
        "onefold.v1.EventsService",
        "onefold.v1.DevicesService",
        "onefold.v1.ActivationService",
    }


def hours(name: str) -> int:
    """A limit that is a time, in hours."""
    seconds: float = getattr(limits, name).total_seconds()
    return int(seconds // 3600)


# Limit, proto, and what must stand in that proto's comments.
LIMITS = [
    ("MESSAGE_BYTES", "error_reason.proto", f"{limits.MESSAGE_BYTES // 2**20} MiB"),
    ("EMAIL_BYTES", "profile.proto", f"at most {limits.EMAIL_BYTES} bytes"),
    ("USER_ID_CHARACTERS", "profile.proto", f"1 to {limits.USER_ID_CHARACTERS} printable characters"),
    (
        "USER_ID_WITH_PLACEHOLDER_BYTES",
        "identity_service.proto",
        f"user_id may then be up to {limits.USER_ID_WITH_PLACEHOLDER_BYTES} bytes",
    ),
    ("ANONYMOUS_ID_BYTES", "event.proto", f"client-made id: 1 to {limits.ANONYMOUS_ID_BYTES} bytes"),
    ("ANONYMOUS_ID_BYTES", "identity_service.proto", f"visitor's id: 1 to {limits.ANONYMOUS_ID_BYTES} bytes"),
    ("NAME_BYTES", "event.proto", f"What happened: 1 to {limits.NAME_BYTES} bytes"),
    ("NAME_BYTES", "device.proto", f"Which app, as the push provider knows it: 1 to {limits.NAME_BYTES} bytes"),
    ("EVENT_ID_CHARACTERS", "event.proto", f"1 to {limits.EVENT_ID_CHARACTERS} printable characters"),
    *(
        ("REQUEST_ID_CHARACTERS", file, f"1 to {limits.REQUEST_ID_CHARACTERS} printable characters, unique")
        for file in (
            "identity_service.proto",
            "events_service.proto",
            "devices_service.proto",
            "activation_service.proto",
        )
    ),
    ("TOKEN_BYTES", "device.proto", f"1 to {limits.TOKEN_BYTES:,} bytes"),
    ("EVENT_DATA_BYTES", "event.proto", f"at most {limits.EVENT_DATA_BYTES // 1000} kB as JSON text"),
    ("DEVICE_FIELDS_BYTES", "device.proto", f"at most {limits.DEVICE_FIELDS_BYTES // 1000} kB as JSON text"),
    ("DATA_FIELDS_BYTES", "identity_service.proto", f"at most {limits.DATA_FIELDS_BYTES // 10**6} MB as JSON text"),
    ("DATA_FIELDS_BYTES", "profile.proto", f"at most {limits.DATA_FIELDS_BYTES // 10**6} MB as JSON text"),
    ("DATA_DEPTH", "event.proto", f"{limits.DATA_DEPTH} levels deep"),
    ("DATA_DEPTH", "identity_service.proto", f"{limits.DATA_DEPTH} levels deep"),
    ("DATA_KEYS_PER_OBJECT", "event.proto", f"{limits.DATA_KEYS_PER_OBJECT} keys in one object"),
    ("DATA_KEYS_PER_OBJECT", "identity_service.proto", f"{limits.DATA_KEYS_PER_OBJECT} keys in one object"),
    ("EVENT_ITEMS", "event.proto", f"1 to {limits.EVENT_ITEMS} items"),
    ("ITEM_ID_BYTES", "event.proto", f"as the shop knows it: 1 to {limits.ITEM_ID_BYTES} bytes"),
    ("ITEM_NAME_BYTES", "event.proto", f"the shop calls it: 1 to {limits.ITEM_NAME_BYTES} bytes"),
    ("BATCH_EVENTS", "events_service.proto", f"At most {limits.BATCH_EVENTS:,}."),
    ("STREAM_BATCHES", "events_service.proto", f"At most {limits.STREAM_BATCHES} batches of a stream wait"),
    (
        "STREAM_WRITE_SECONDS",
        "events_service.proto",
        f"reads no answers for {limits.STREAM_WRITE_SECONDS:.0f} seconds",
    ),
    ("BATCH_PROFILES", "identity_service.proto", f"At most {limits.BATCH_PROFILES:,}."),
    ("FILTER_NAMES", "events_service.proto", f"at most {limits.FILTER_NAMES}."),
    *(
        (name, file, text)
        for file in ("events_service.proto", "devices_service.proto")
        for name, text in (
            ("PAGE_SIZE_DEFAULT", f"default {limits.PAGE_SIZE_DEFAULT};"),
            ("PAGE_SIZE_MAX", f"over {limits.PAGE_SIZE_MAX} counts as {limits.PAGE_SIZE_MAX}"),
            ("PAGE_BYTES", f"ends at {limits.PAGE_BYTES // 2**20} MiB of data"),
        )
    ),
    ("DEVICES_PER_PROFILE", "devices_service.proto", f"At most {limits.DEVICES_PER_PROFILE} devices a profile"),
    ("CRITERIA_PER_PROJECT", "activation_service.proto", f"at most {limits.CRITERIA_PER_PROJECT} criteria"),
    ("CRITERION_BYTES", "criterion.proto", f"{limits.CRITERION_BYTES // 1000} kB as JSON text"),
    ("EVALUATED_EVENTS", "activation_service.proto", f"at most {limits.EVALUATED_EVENTS:,} events"),
    ("REPLAY_ITEMS", "activation_service.proto", f"At most {limits.REPLAY_ITEMS:,}."),
    ("DEVICE_ID_BYTES", "consent.proto", f"calls the device: at most {limits.DEVICE_ID_BYTES} bytes"),
    ("CONSENT_LIFETIME", "activation_service.proto", "no profile was made, after a year"),
    ("VISITOR_EVENTS", "activation_service.proto", f"the newest {limits.VISITOR_EVENTS:,}"),
    ("REPORTED_EVENTS", "criterion.proto", f"in their order: at most {limits.REPORTED_EVENTS}."),
    ("EVENT_AHEAD", "event.proto", f"at most {hours('EVENT_AHEAD')} hours ahead"),
    ("ANONYMOUS_LIFETIME", "events_service.proto", f"gone {limits.ANONYMOUS_LIFETIME.days} days after its event_time"),
    ("ANONYMOUS_LIFETIME", "error_reason.proto", f"{limits.ANONYMOUS_LIFETIME.days} days or more in the past"),
    ("LINK_GRACE", "identity_service.proto", f"during the next {limits.LINK_GRACE.seconds // 60} minutes"),
    ("BACKFILL_AGE", "event.proto", f"more than {limits.BACKFILL_AGE.seconds // 60} minutes old"),
    ("EVENT_ID_LIFETIME", "event.proto", f"for {limits.EVENT_ID_LIFETIME.days} days"),
    (
        "STREAM_WRITE_SECONDS",
        "error_reason.proto",
        f"read nothing from it for {limits.STREAM_WRITE_SECONDS:.0f} seconds",
    ),
    ("REQUEST_ID_LIFETIME", "identity_service.proto", f"again for {hours('REQUEST_ID_LIFETIME')} hours"),
    ("TRIGGER_AGE", "events_service.proto", f"within {hours('TRIGGER_AGE')} hours before its anonymous_id was linked"),
    ("TRIGGER_LIFETIME", "events_service.proto", f"Kept for {limits.TRIGGER_LIFETIME.days} days"),
    ("TRIGGER_PAGE_EVENTS", "events_service.proto", f"at most {limits.TRIGGER_PAGE_EVENTS} triggers"),
    ("TRIGGER_IDLE_SECONDS", "events_service.proto", f"at least every {limits.TRIGGER_IDLE_SECONDS:.0f} seconds"),
    ("RATE_MAX_PER_SECOND", "projects_service.proto", f"no limit; at most {limits.RATE_MAX_PER_SECOND:,}"),
    *(
        (name, file, text)
        for file in ("error_reason.proto", "item_error.proto")
        for name, text in (
            ("ERROR_FIELDS_BYTES", f"as far as they fit into {limits.ERROR_FIELDS_BYTES // 1000} kB"),
            ("ERROR_TEXT_BYTES", f"ends after {limits.ERROR_TEXT_BYTES} bytes"),
        )
    ),
    ("ACTIVITY_LOOK_ROWS", "events_service.proto", f"at most {limits.ACTIVITY_LOOK_ROWS:,} entries of each kind"),
    ("ACTIVITY_COUNT_EVENTS", "activity.proto", f"still has {limits.ACTIVITY_COUNT_EVENTS:,} events or more"),
]


@pytest.mark.parametrize(("limit", "file", "text"), LIMITS, ids=[f"{limit}-{file}" for limit, file, _ in LIMITS])
def test_the_protos_state_the_limits(limit: str, file: str, text: str) -> None:
    """X5: a caller reads in the proto the very limit that the server enforces."""
    assert text in comments(file)


def test_no_limit_is_left_out() -> None:
    """X5: every limit of the code stands in the table above."""
    known = {name for name in vars(limits) if name.isupper()}
    assert known == {limit for limit, _, _ in LIMITS} | OF_THE_TRANSPORT


# SPEC's own numbers, so that a limit cannot be changed in code and proto together without a word.
CONTRACT = {
    "MESSAGE_BYTES": 4 * 2**20,
    "EVENT_DATA_BYTES": 100_000,
    "DATA_DEPTH": 16,
    "DATA_KEYS_PER_OBJECT": 512,
    "ANONYMOUS_ID_BYTES": 256,
    "NAME_BYTES": 100,
    "DATA_FIELDS_BYTES": 1_000_000,
    "USER_ID_CHARACTERS": 52,
    "USER_ID_WITH_PLACEHOLDER_BYTES": 256,
    "EVENT_ID_CHARACTERS": 128,
    "BATCH_EVENTS": 1_000,
    "PAGE_SIZE_MAX": 500,
    "DEVICES_PER_PROFILE": 500,
}


def test_the_limits_are_those_of_the_contract() -> None:
    """X5, I2, I8, A9, E3, E4, E8, D6: the numbers are the contract's."""
    assert {name: getattr(limits, name) for name in CONTRACT} == CONTRACT
    assert limits.EVENT_AHEAD.total_seconds() == 24 * 3600
    assert limits.ANONYMOUS_LIFETIME.days == 30
    assert limits.LINK_GRACE.total_seconds() == limits.BACKFILL_AGE.total_seconds() == 300
    assert limits.EVENT_ID_LIFETIME.days == 35
    assert limits.REQUEST_ID_LIFETIME.total_seconds() == 24 * 3600
    assert limits.TRIGGER_AGE.total_seconds() == 72 * 3600
