"""What a registration does to a profile's copy of a device."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.devices.rules import Copy, Platform, Registration, register
from onefold.errors import Kind, OnefoldError, Reason
from onefold.identity.rules import Outcome
from onefold.v1 import device_pb2

STORED = Copy(Platform.FCM, "shop", '{"model": "one", "tags": [1]}', True)
KEYS = st.sampled_from(["model", "os", "tags"])
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text("ab", max_size=2), st.lists(st.integers(0, 2)))
FIELDS = st.dictionaries(KEYS, VALUES)


def registration(platform: Platform = Platform.FCM, application: str = "shop", **fields: Any) -> Registration:
    return Registration("token", platform, application, fields)


def test_the_platforms_are_those_of_the_api() -> None:
    """D1: the numbers in the table are the numbers in the proto, so neither can be read as another platform."""
    told = {name.removeprefix("PLATFORM_"): number for name, number in device_pb2.Platform.items() if number}
    assert told == {platform.name: platform.value for platform in Platform}


@pytest.mark.parametrize("platform", Platform)
def test_a_new_copy_is_enabled(platform: Platform) -> None:
    """D1, D2: a first registration makes an enabled copy of just what was told."""
    copy, outcome = register(None, registration(platform, "shop", model="one"), 0)
    assert outcome is Outcome.CREATED
    assert (copy.platform, copy.application_name, copy.endpoint_enabled) == (platform, "shop", True)
    assert orjson.loads(copy.data_fields) == {"model": "one"}


@pytest.mark.parametrize(
    ("again", "fields", "outcome"),
    [
        (registration(), {"model": "one", "tags": [1]}, Outcome.UNCHANGED),
        (registration(model="one"), {"model": "one", "tags": [1]}, Outcome.UNCHANGED),
        (registration(model="two"), {"model": "two", "tags": [1]}, Outcome.UPDATED),
        (registration(tags={"a": 1}), {"model": "one", "tags": {"a": 1}}, Outcome.UPDATED),
        (registration(os=None), {"model": "one", "tags": [1], "os": None}, Outcome.UPDATED),
        (registration(application="other"), {"model": "one", "tags": [1]}, Outcome.UPDATED),
        (registration(Platform.APNS), {"model": "one", "tags": [1]}, Outcome.UPDATED),
    ],
)
def test_again_updates_and_merges(again: Registration, fields: dict[str, Any], outcome: Outcome) -> None:
    """D1: registering again replaces platform and application, and merges the data fields key by key."""
    copy, told = register(STORED, again, 0)
    assert told is outcome
    assert (copy.platform, copy.application_name) == (again.platform, again.application_name)
    assert orjson.loads(copy.data_fields) == fields


def test_a_browser_token_needs_no_application() -> None:
    """D2: told without an application, a new browser token gets the default and one that is there keeps its own."""
    anonymous = registration(Platform.WEB, "")
    new, _ = register(None, anonymous, 0)
    assert new.application_name == "web"
    named, _ = register(new, registration(Platform.WEB, "shop"), 0)
    assert register(named, anonymous, 0) == (named, Outcome.UNCHANGED)


def test_again_enables() -> None:
    """D1: registering a copy that is off switches it on, and says that something changed."""
    off = Copy(STORED.platform, STORED.application_name, STORED.data_fields, False)
    copy, outcome = register(off, registration(), 0)
    assert copy == STORED
    assert outcome is Outcome.UPDATED


@settings(deadline=None, max_examples=100)
@given(tellings=st.lists(FIELDS, min_size=1, max_size=4), enabled=st.booleans())
def test_the_last_telling_of_each_key_stays(tellings: list[dict[str, Any]], enabled: bool) -> None:
    """D1: after any sequence of registrations the fields are the later top-level keys over the earlier ones."""
    copy: Copy | None = None
    expected: dict[str, Any] = {}
    for fields in tellings:
        if copy is not None:
            copy = Copy(copy.platform, copy.application_name, copy.data_fields, enabled)
        copy, _ = register(copy, registration(**fields), 0)
        expected |= fields
    assert copy is not None
    assert orjson.loads(copy.data_fields) == expected
    assert copy.endpoint_enabled
    # The same telling once more is no change.
    assert register(copy, registration(**tellings[-1]), 0) == (copy, Outcome.UNCHANGED)


@pytest.mark.parametrize(("held", "accepted"), [(0, True), (499, True), (500, False), (501, False)])
@pytest.mark.parametrize(("platform", "sort"), [(Platform.APNS, "500 devices"), (Platform.WEB, "500 browser tokens")])
def test_the_limit_is_500(platform: Platform, sort: str, held: int, accepted: bool) -> None:
    """D6: the 500th of a sort is taken, the 501st refused, naming the limit; one that is held already is always
    taken."""
    stored, _ = register(None, registration(platform), 0)
    assert register(stored, registration(platform, model="two"), held)[1] is Outcome.UPDATED
    if accepted:
        assert register(None, registration(platform), held)[1] is Outcome.CREATED
        return
    with pytest.raises(OnefoldError, match=sort) as refused:
        register(None, registration(platform), held)
    assert refused.value.kind is Kind.RESOURCE_EXHAUSTED
    assert refused.value.reason is Reason.DEVICE_LIMIT
    assert dict(refused.value.metadata) == {"limit": "500"}
