"""The pure rules of events: what is accepted when, whom an event may create, and when two tellings are the same."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from os import urandom
from typing import Any
from uuid import UUID

import orjson
import pytest

from onefold.callers import IdentifierType
from onefold.errors import Kind, Reason
from onefold.events.ingest import event_id_at
from onefold.events.rules import (
    Arrival,
    EventKind,
    call_of,
    check_time,
    is_associated,
    is_backfilled,
    is_expired,
)
from onefold.identity.naming import Named
from onefold.rpc.payload import Payload
from onefold.v1 import event_pb2

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
COMMERCE = {EventKind.PURCHASE, EventKind.CART_UPDATE}
PERSON = Named("person@example.com", None)


def payload(text: str) -> Payload:
    """A payload as the checks leave it."""
    return Payload(orjson.loads(text), text)


ARRIVAL = Arrival(PERSON, None, "Viewed", EventKind.CUSTOM, payload("{}"), "e1", None)


def test_kinds_are_those_of_the_protos() -> None:
    """E1: every published kind is known under its own number, and UNSPECIFIED is the only one besides."""
    published = {name.removeprefix("EVENT_KIND_"): number for name, number in event_pb2.EventKind.items()}
    assert published == {"UNSPECIFIED": 0, **{kind.name: kind.value for kind in EventKind}}


@pytest.mark.parametrize("kind", EventKind)
@pytest.mark.parametrize("project_type", IdentifierType)
def test_who_may_create_a_profile(project_type: IdentifierType, kind: EventKind) -> None:
    """I5, I6, I7: any event creates outside EMAIL projects; in them only purchases and carts do, or prefer user_id."""
    arrival = replace(ARRIVAL, kind=kind, prefer_user_id=True)
    call = call_of(project_type, arrival)
    assert call.creates == (project_type is not IdentifierType.EMAIL or kind in COMMERCE)
    if project_type is IdentifierType.EMAIL:
        assert call.prefer_user_id == (kind in COMMERCE)
    assert not call_of(project_type, replace(arrival, prefer_user_id=False)).prefer_user_id


@pytest.mark.parametrize("wish", [False, True])
def test_update_existing_only_is_passed_on(wish: bool) -> None:
    """I14: an event that must not create a profile says so to whoever would create it."""
    assert call_of(IdentifierType.USER_ID, replace(ARRIVAL, update_existing_only=wish)).update_existing_only == wish


@pytest.mark.parametrize(
    ("named", "event_time", "reason"),
    [
        (PERSON, None, None),
        (None, None, None),
        (PERSON, NOW + timedelta(hours=24), None),
        (PERSON, NOW + timedelta(hours=24) + INSTANT, Reason.FIELDS_INVALID),
        (None, NOW + timedelta(hours=24), None),
        (None, NOW + timedelta(hours=24) + INSTANT, Reason.FIELDS_INVALID),
        (None, NOW - timedelta(days=30) + INSTANT, None),
        (None, NOW - timedelta(days=30), Reason.EVENT_EXPIRED),
        (None, NOW - timedelta(days=31), Reason.EVENT_EXPIRED),
        (PERSON, NOW - timedelta(days=30), None),
        (PERSON, datetime(1970, 1, 1, tzinfo=UTC), None),
    ],
)
def test_when_a_time_is_refused(named: Named | None, event_time: datetime | None, reason: Reason | None) -> None:
    """E1, E5, A2: 24 hours ahead is the most, 30 days old is too old for a visitor, and no age is for a person."""
    error = check_time(replace(ARRIVAL, named=named, anonymous_id="x", event_time=event_time), NOW)
    if reason is None:
        assert error is None
    else:
        assert error is not None
        assert (error.kind, error.reason) == (Kind.INVALID_ARGUMENT, reason)
        assert [violation.field for violation in error.violations] == ["event_time"]


def test_an_invite_is_never_too_old() -> None:
    """E5, E6: the 30 days are a visitor's; what was sent to an address is kept whenever it happened."""
    invite = replace(ARRIVAL, named=None, recipient="person@example.com", event_time=NOW - timedelta(days=31))
    assert check_time(invite, NOW) is None


@pytest.mark.parametrize("wish", [False, True])
def test_the_wish_not_to_trigger_is_no_part_of_the_body(wish: bool) -> None:
    """E3, E5: an event told again with another suppress_triggers is the same event."""
    assert replace(ARRIVAL, suppress_triggers=wish).body_hash() == ARRIVAL.body_hash()


@pytest.mark.parametrize(
    ("age", "expired"),
    [
        (timedelta(days=30) - INSTANT, False),
        (timedelta(days=30), True),
        (timedelta(days=30) + INSTANT, True),
        (-timedelta(hours=24), False),
    ],
)
def test_thirty_days_are_sharp(age: timedelta, expired: bool) -> None:
    """A2, F34: an anonymous event is over at exactly 30 days, not a microsecond earlier."""
    assert is_expired(NOW - age, NOW) is expired


@pytest.mark.parametrize(
    ("age", "backfilled"),
    [(timedelta(minutes=5), False), (timedelta(minutes=5) + INSTANT, True), (-timedelta(hours=1), False)],
)
def test_five_minutes_make_a_backfill(age: timedelta, backfilled: bool) -> None:
    """E5: an event is backfilled when it was older than 5 minutes at receipt."""
    assert is_backfilled(NOW - age, NOW) is backfilled


@pytest.mark.parametrize(
    ("received", "associated"),
    [
        (-timedelta(days=3), True),
        (timedelta(minutes=4, seconds=59), True),
        (timedelta(minutes=5), True),
        (timedelta(minutes=5) + INSTANT, False),
        (timedelta(minutes=5, seconds=1), False),
    ],
)
def test_the_grace_ends_after_five_minutes(received: timedelta, associated: bool) -> None:
    """A3, A5, F33: an event belongs to the person if it was received up to 5 minutes after the link."""
    assert is_associated(NOW + received, NOW + timedelta(minutes=5)) is associated


@pytest.mark.parametrize(
    "change",
    [
        {"named": Named("other@example.com", None)},
        {"named": Named("person@example.com", "u1")},
        {"named": Named(None, "person@example.com")},
        {"named": None, "anonymous_id": "x"},
        {"anonymous_id": "x"},
        {"name": "Clicked"},
        {"kind": EventKind.PAGE},
        {"event_time": NOW},
        {"payload": payload('{"a":1}')},
        {"payload": payload('{"a":null}')},
    ],
    ids=str,
)
def test_another_body_has_another_hash(change: dict[str, Any]) -> None:
    """E3, F61: whatever of the body differs, the two are told apart."""
    assert replace(ARRIVAL, **change).body_hash() != ARRIVAL.body_hash()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"a":1,"b":[1,{"c":2,"d":3}]}', '{ "b": [1, {"d": 3, "c": 2}], "a": 1 }'),
        ('{"name":"\\u00e9"}', '{"name":"é"}'),
    ],
)
def test_the_same_body_has_the_same_hash(first: str, second: str) -> None:
    """E3, F60: key order, spaces and escapes of the JSON text do not make another body."""
    hashes = {replace(ARRIVAL, payload=payload(text)).body_hash() for text in (first, second)}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('{"a":[1,2]}', '{"a":[2,1]}'),
        ('{"a":"1"}', '{"a":1}'),
        ('{"a":true}', '{"a":1}'),
        ('{"a":9007199254740993}', '{"a":9007199254740992}'),
        ('{"a":36893488147419103233}', '{"a":36893488147419103232}'),
    ],
)
def test_other_data_has_another_hash(first: str, second: str) -> None:
    """F61, F67: order in lists, types, and every digit of an integer that JSON text keeps make another body."""
    hashes = {replace(ARRIVAL, payload=payload(text)).body_hash() for text in (first, second)}
    assert len(hashes) == 2


def test_ids_made_by_the_server_are_uuids_in_order() -> None:
    """E3: a made id is a UUIDv7 of its moment, ids of one batch keep its order, and no two are equal."""
    ids = [UUID(event_id_at(NOW, position, urandom(8).hex())) for position in range(1_000)]
    assert {each.version for each in ids} == {7}
    assert {each.int >> 80 for each in ids} == {int(NOW.timestamp() * 1_000)}
    assert sorted(ids) == ids
    assert UUID(event_id_at(NOW + timedelta(milliseconds=1), 0, "0" * 16)) > ids[-1]
    assert event_id_at(NOW, 0, urandom(8).hex()) != event_id_at(NOW, 0, urandom(8).hex())
