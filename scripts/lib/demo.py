"""Plays the stories of the README with grpcurl against a service of its own, and checks every answer.

The stories are data: the table STORIES below. The runner under it starts `onefold dev --ephemeral`, makes the calls one
after the other, prints each with its answer, and ends with status 1 at the first answer that is not the expected one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NoReturn

from onefold.embedded import process

# --- what a story is made of -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A value that is not known before the call: in an answer it is checked by its shape.

    The first value seen under a name is remembered: later answers must have the same, and requests may hold it. Two
    names never stand for one value, save for times. Without a name, any value of the shape will do.
    """

    shape: str
    name: str = ""


def uuid(name: str) -> Known:
    """An id made by the service."""
    return Known("uuid", name)


def moment(name: str = "") -> Known:
    """A time."""
    return Known("time", name)


def api_key(name: str) -> Known:
    """The text of an API key; `name` is also the shell variable that the printed calls use."""
    return Known("key", name)


_SHAPES: Final[Mapping[str, re.Pattern[str]]] = {
    "uuid": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "time": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6}|\.\d{9})?Z"),
    "key": re.compile(r"onefold_[a-z0-9-]+_[0-9a-f]+_[0-9a-f]+"),
    "key id": re.compile(r"[0-9a-f]+"),
}


@dataclass(frozen=True)
class Refused:
    """The answer of a call that must fail: the code, the published reason, and the wrong fields, in order."""

    code: str
    reason: str
    fields: tuple[str, ...] = ()

    def as_answer(self) -> dict[str, Any]:
        """The form in which `Grpcurl.call` gives a failure."""
        return {"code": self.code, "reason": self.reason, "fields": list(self.fields)}


@dataclass(frozen=True)
class Step:
    """One call: what it shows, the method, the request, and the answer that must come, exactly.

    `key` names the API key ("" for none). While the answer contains `wait_while`, the call is made again.
    """

    shows: str
    method: str
    request: dict[str, Any]
    answer: dict[str, Any] | Refused
    key: str = "key"
    wait_while: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Story:
    """A few calls that belong together. No story needs another one."""

    name: str
    title: str
    steps: tuple[Step, ...]


# --- the stories -----------------------------------------------------------------------------------------------------

_PERSON = {"email": "person@example.com"}
_OTHER = {"email": "other@example.com"}
_FIRST = {"name": "page viewed", "kind": "EVENT_KIND_PAGE", "data": {"path": "/menu"}}
_SECOND = {"name": "pizza configured", "kind": "EVENT_KIND_CUSTOM", "data": {"size": "large", "toppings": ["olives"]}}
_OLD = {"name": "advertisement seen", "kind": "EVENT_KIND_CUSTOM", "data": {"campaign": "autumn"}}
_FOURTH = {"name": "pizza ordered", "kind": "EVENT_KIND_CUSTOM", "data": {"price": 12.5}}


def _visitors_event(event: dict[str, Any], name: str) -> dict[str, Any]:
    """An event of abc123 as the person's timeline shows it."""
    times = {"eventTime": moment(f"{name} received"), "receiveTime": moment(f"{name} received")}
    return {
        **event,
        "eventId": uuid(name),
        **times,
        "profileId": uuid("person"),
        "anonymousId": "abc123",
        "wasAnonymous": True,
    }


_TIMELINE = [
    _visitors_event(_SECOND, "second event"),
    _visitors_event(_FIRST, "first event"),
    {**_visitors_event(_OLD, "old event"), "eventTime": moment("two days ago"), "backfilled": True},
]


def _stored(name: str) -> dict[str, Any]:
    """The answer to an anonymous event."""
    return {"result": {"eventId": uuid(name), "receiveTime": moment(f"{name} received")}}


_ANONYMOUS = Story(
    "anonymous",
    "A visitor becomes a person, and brings what they did along",
    (
        Step(
            "A visitor, known by a cookie only, looks at a page.",
            "EventsService/Track",
            {"event": {"anonymous_id": "abc123", **_FIRST}},
            _stored("first event"),
        ),
        Step(
            "The visitor does something that the app has its own name for.",
            "EventsService/Track",
            {"event": {"anonymous_id": "abc123", **_SECOND}},
            _stored("second event"),
        ),
        Step(
            "An event that happened two days ago is told late and keeps its time.",
            "EventsService/Track",
            {"event": {"anonymous_id": "abc123", **_OLD, "event_time": moment("two days ago")}},
            _stored("old event"),
        ),
        Step(
            "The visitor signs in: the profile is made, and abc123 is linked to it.",
            "IdentityService/Identify",
            {"identifiers": _PERSON, "anonymous_id": "abc123", "data_fields": {"firstName": "Mary"}},
            {
                "profile": {
                    "profileId": uuid("person"),
                    "identifiers": _PERSON,
                    "outcome": "WRITE_OUTCOME_CREATED",
                },
                "link": {
                    "outcome": "LINK_OUTCOME_LINKED",
                    "linkTime": moment("link time"),
                    "graceEndTime": moment("grace end"),
                    "mergeId": uuid("merge"),
                },
            },
        ),
        Step(
            "At once all three events are the person's, newest first, and marked as once anonymous.",
            "EventsService/ListEvents",
            {"identifiers": _PERSON},
            {"events": _TIMELINE},
        ),
        Step(
            "Nothing is left under the visitor's id.",
            "EventsService/ListEvents",
            {"anonymous_id": "abc123"},
            {},
        ),
        Step(
            "An event of abc123 that arrives within the five minutes of grace belongs to the person, too.",
            "EventsService/Track",
            {"event": {"anonymous_id": "abc123", **_FOURTH}},
            {
                "result": {
                    "eventId": uuid("fourth event"),
                    "receiveTime": moment("fourth event received"),
                    "profileId": uuid("person"),
                }
            },
        ),
        Step(
            "It is on top of the timeline.",
            "EventsService/ListEvents",
            {"identifiers": _PERSON},
            {"events": [_visitors_event(_FOURTH, "fourth event"), *_TIMELINE]},
        ),
        Step(
            "Identifying the same person again changes nothing and does not prolong the grace.",
            "IdentityService/Identify",
            {"identifiers": _PERSON, "anonymous_id": "abc123"},
            {
                "profile": {
                    "profileId": uuid("person"),
                    "identifiers": _PERSON,
                    "outcome": "WRITE_OUTCOME_UNCHANGED",
                },
                "link": {
                    "outcome": "LINK_OUTCOME_ALREADY_LINKED",
                    "linkTime": moment("link time"),
                    "graceEndTime": moment("grace end"),
                    "mergeId": uuid("merge"),
                },
            },
        ),
        Step(
            "Somebody else cannot take abc123 over; the answer does not say whose it is.",
            "IdentityService/Identify",
            {"identifiers": _OTHER, "anonymous_id": "abc123", "data_fields": {"firstName": "John"}},
            {
                "profile": {
                    "profileId": uuid("other"),
                    "identifiers": _OTHER,
                    "outcome": "WRITE_OUTCOME_CREATED",
                },
                "link": {"outcome": "LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE"},
            },
        ),
        Step(
            "What that call told about the other person is saved all the same.",
            "IdentityService/GetProfile",
            {"identifiers": _OTHER},
            {
                "profile": {
                    "profileId": uuid("other"),
                    "identifiers": _OTHER,
                    "dataFields": {"firstName": "John"},
                    "emailDomain": "example.com",
                    "signupSource": "SIGNUP_SOURCE_IDENTIFY",
                    "signupTime": moment("other's signup"),
                    "profileUpdateTime": moment(),
                    "createTime": moment("other's signup"),
                    "updateTime": moment(),
                }
            },
        ),
        Step(
            "The other person has no events.",
            "EventsService/ListEvents",
            {"identifiers": _OTHER},
            {},
        ),
    ),
)

_SOME_USER = {"user_id": "some-user-id"}
_SOME_USER_NAMED = {"email": "some-user-id+-1073031548@placeholder.email", "userId": "some-user-id"}

_PLACEHOLDER = Story(
    "placeholder",
    "Somebody without an email address in a project that identifies by email",
    (
        Step(
            "A user_id alone does not make a profile where the email identifies.",
            "IdentityService/UpdateProfile",
            {"identifiers": _SOME_USER, "data_fields": {"firstName": "Mary"}},
            Refused("NotFound", "PROFILE_NOT_FOUND"),
        ),
        Step(
            "With prefer_user_id it does: a placeholder stands in for the email.",
            "IdentityService/UpdateProfile",
            {"identifiers": _SOME_USER, "data_fields": {"firstName": "Mary"}, "prefer_user_id": True},
            {
                "profile": {
                    "profileId": uuid("some user"),
                    "identifiers": _SOME_USER_NAMED,
                    "outcome": "WRITE_OUTCOME_CREATED",
                    "emailIsPlaceholder": True,
                }
            },
        ),
        Step(
            "The profile is found by its user_id, and says that its email is a placeholder.",
            "IdentityService/GetProfile",
            {"identifiers": _SOME_USER},
            {
                "profile": {
                    "profileId": uuid("some user"),
                    "identifiers": _SOME_USER_NAMED,
                    "dataFields": {"firstName": "Mary"},
                    "emailDomain": "placeholder.email",
                    "emailIsPlaceholder": True,
                    "signupSource": "SIGNUP_SOURCE_PROFILE_UPDATE",
                    "signupTime": moment("some user's signup"),
                    "profileUpdateTime": moment(),
                    "createTime": moment("some user's signup"),
                    "updateTime": moment(),
                }
            },
        ),
    ),
)

_NESTED = {"email": "nested@example.com"}


def _nested_written(outcome: str) -> dict[str, Any]:
    return {"profile": {"profileId": uuid("nested"), "identifiers": _NESTED, "outcome": f"WRITE_OUTCOME_{outcome}"}}


def _nested_read(data_fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "profile": {
            "profileId": uuid("nested"),
            "identifiers": _NESTED,
            "dataFields": data_fields,
            "emailDomain": "example.com",
            "signupSource": "SIGNUP_SOURCE_PROFILE_UPDATE",
            "signupTime": moment("nested's signup"),
            "profileUpdateTime": moment(),
            "createTime": moment("nested's signup"),
            "updateTime": moment(),
        }
    }


_NESTED_MERGE = Story(
    "nested-merge",
    "An object among the data fields is merged or replaced, as the caller says",
    (
        Step(
            "A profile has one setting.",
            "IdentityService/UpdateProfile",
            {"identifiers": _NESTED, "data_fields": {"mySettings": {"mobile": True}, "city": "Berlin"}},
            _nested_written("CREATED"),
        ),
        Step(
            "With merge_nested_objects a second setting joins the first.",
            "IdentityService/UpdateProfile",
            {
                "identifiers": _NESTED,
                "data_fields": {"mySettings": {"email": True}},
                "merge_nested_objects": True,
            },
            _nested_written("UPDATED"),
        ),
        Step(
            "Both are there, and the field that the update did not name survived.",
            "IdentityService/GetProfile",
            {"identifiers": _NESTED},
            _nested_read({"mySettings": {"mobile": True, "email": True}, "city": "Berlin"}),
        ),
        Step(
            "Without it the object replaces the stored one.",
            "IdentityService/UpdateProfile",
            {"identifiers": _NESTED, "data_fields": {"mySettings": {"email": True}}},
            _nested_written("UPDATED"),
        ),
        Step(
            "Only the given setting is left.",
            "IdentityService/GetProfile",
            {"identifiers": _NESTED},
            _nested_read({"mySettings": {"email": True}, "city": "Berlin"}),
        ),
    ),
)

_TOKEN = "sampleToken123"
_PHONE = {
    "token": _TOKEN,
    "platform": "PLATFORM_APNS",
    "application_name": "Pizza Tracker",
    "data_fields": {"phoneType": "iPhone"},
}


def _register(shows: str, who: str, profile: str, copy: str) -> Step:
    identifiers = {"email": f"{who}@example.com"}
    written = {"profileId": uuid(who), "identifiers": identifiers, "outcome": f"WRITE_OUTCOME_{profile}"}
    return Step(
        shows,
        "DevicesService/RegisterDevice",
        {"identifiers": identifiers, "device": _PHONE},
        {"profile": written, "deviceOutcome": f"WRITE_OUTCOME_{copy}"},
    )


def _holders(shows: str, **enabled: bool) -> Step:
    holders = [
        {
            "identifiers": {"email": f"{who}@example.com"},
            "device": {
                "token": _TOKEN,
                "platform": "PLATFORM_APNS",
                "applicationName": "Pizza Tracker",
                "dataFields": {"phoneType": "iPhone"},
                "endpointEnabled": on,
                "createTime": moment(f"{who}'s registration"),
                "updateTime": moment(),
                "profileId": uuid(who),
            },
        }
        for who, on in enabled.items()
    ]
    return Step(shows, "DevicesService/ListTokenHolders", {"token": _TOKEN}, {"holders": holders})


_SHARED_PHONE = Story(
    "shared-phone",
    "One phone that three people sign in on",
    (
        _register("Ann signs in on the phone.", "ann", "CREATED", "CREATED"),
        _register("Ben signs in on the same phone.", "ben", "CREATED", "CREATED"),
        _register("So does Cleo.", "cleo", "CREATED", "CREATED"),
        _holders("All three can be reached on it.", ann=True, ben=True, cleo=True),
        Step(
            "Ben signs out: with his email only his copy is switched off.",
            "DevicesService/DisableDevice",
            {"token": _TOKEN, "identifiers": {"email": "ben@example.com"}},
            {"outcome": "WRITE_OUTCOME_UPDATED"},
        ),
        _holders("Ben is off, the others are not.", ann=True, ben=False, cleo=True),
        Step(
            "The phone is lost: without identifiers it is switched off for everybody, in one call.",
            "DevicesService/DisableDevice",
            {"token": _TOKEN},
            {
                "outcome": "WRITE_OUTCOME_UPDATED",
                "disable": {
                    "disableId": uuid("disable"),
                    "token": _TOKEN,
                    "state": "DISABLE_STATE_RUNNING",
                    "createTime": moment("disabled"),
                },
            },
        ),
        _holders("At once nobody can be reached on it.", ann=False, ben=False, cleo=False),
        # Ben's copy was off already, so the worker switches off two, whether it comes before this call or after it.
        _register("Ben has found it and signs in again.", "ben", "UNCHANGED", "UPDATED"),
        Step(
            "A worker writes what the disable means to every copy, until it is done.",
            "DevicesService/GetDisable",
            {"disable_id": uuid("disable")},
            {
                "disable": {
                    "disableId": uuid("disable"),
                    "token": _TOKEN,
                    "state": "DISABLE_STATE_DONE",
                    "disabledCount": "2",
                    "createTime": moment("disabled"),
                    "finishTime": moment(),
                }
            },
            wait_while={"disable": {"state": "DISABLE_STATE_RUNNING"}},
        ),
        _holders("Ben signed in after the disable, so he stays on.", ann=False, ben=True, cleo=False),
    ),
)

_BROWSER_TOKEN = "sampleBrowserToken456"
_TABLET = {
    "token": "sampleToken789",
    "platform": "PLATFORM_FCM",
    "application_name": "Pizza Tracker",
}


def _sign_in(shows: str, who: str, profile: str, copy: str, disable: str = "") -> Step:
    """An exclusive registration of the tablet; `disable` names the disable of the others' copies, if there are any."""
    identifiers = {"email": f"{who}@example.com"}
    written = {"profileId": uuid(who), "identifiers": identifiers, "outcome": f"WRITE_OUTCOME_{profile}"}
    answer: dict[str, Any] = {"profile": written, "deviceOutcome": f"WRITE_OUTCOME_{copy}"}
    if disable:
        answer["disable"] = {
            "disableId": uuid(disable),
            "token": _TABLET["token"],
            "state": "DISABLE_STATE_RUNNING",
            "createTime": moment(f"{disable}, time"),
        }
    request = {"identifiers": identifiers, "device": _TABLET, "exclusive": True}
    return Step(shows, "DevicesService/RegisterDevice", request, answer)


def _on_tablet(shows: str, **enabled: bool) -> Step:
    holders = [
        {
            "identifiers": {"email": f"{who}@example.com"},
            "device": {
                "token": _TABLET["token"],
                "platform": "PLATFORM_FCM",
                "applicationName": "Pizza Tracker",
                "dataFields": {},
                "endpointEnabled": on,
                "createTime": moment(f"{who}'s first sign-in"),
                "updateTime": moment(),
                "profileId": uuid(who),
            },
        }
        for who, on in enabled.items()
    ]
    return Step(shows, "DevicesService/ListTokenHolders", {"token": _TABLET["token"]}, {"holders": holders})


_EXCLUSIVE = Story(
    "exclusive",
    "A tablet on which one signs in and the other is signed out by that",
    (
        _sign_in("Dan signs in. He is alone: nobody is to be switched off.", "dan", "CREATED", "CREATED"),
        _sign_in("Eve signs in; the same call switches Dan's copy off.", "eve", "CREATED", "CREATED", "Eve's sign-in"),
        _on_tablet("At once only Eve can be reached.", dan=False, eve=True),
        Step(
            "How far the work on the other copies is, is told as for any disable.",
            "DevicesService/GetDisable",
            {"disable_id": uuid("Eve's sign-in")},
            {
                "disable": {
                    "disableId": uuid("Eve's sign-in"),
                    "token": _TABLET["token"],
                    "state": "DISABLE_STATE_DONE",
                    "disabledCount": "1",
                    "createTime": moment("Eve's sign-in, time"),
                    "finishTime": moment(),
                }
            },
            wait_while={"disable": {"state": "DISABLE_STATE_RUNNING"}},
        ),
        _sign_in("Dan is back.", "dan", "UNCHANGED", "UPDATED", "Dan's sign-in"),
        _on_tablet("Now it is his again.", dan=True, eve=False),
        Step(
            "Eve goes on in a browser, which is registered by its own call.",
            "DevicesService/RegisterBrowserToken",
            {"identifiers": {"email": "eve@example.com"}, "browser_token": _BROWSER_TOKEN},
            {
                "profile": {
                    "profileId": uuid("eve"),
                    "identifiers": {"email": "eve@example.com"},
                    "outcome": "WRITE_OUTCOME_UNCHANGED",
                },
                "deviceOutcome": "WRITE_OUTCOME_CREATED",
            },
        ),
        Step(
            "She has two devices, and is reached on one.",
            "DevicesService/ListDevices",
            {"identifiers": {"email": "eve@example.com"}},
            {
                "devices": [
                    {
                        "token": _BROWSER_TOKEN,
                        "platform": "PLATFORM_WEB",
                        "applicationName": "web",
                        "dataFields": {},
                        "endpointEnabled": True,
                        "createTime": moment("browser registered"),
                        "updateTime": moment("browser registered"),
                        "profileId": uuid("eve"),
                    },
                    {
                        "token": _TABLET["token"],
                        "platform": "PLATFORM_FCM",
                        "applicationName": "Pizza Tracker",
                        "dataFields": {},
                        "endpointEnabled": False,
                        "createTime": moment("eve's first sign-in"),
                        "updateTime": moment("Dan's sign-in, time"),
                        "profileId": uuid("eve"),
                    },
                ]
            },
        ),
    ),
)

_PHONE_WITHOUT_TOKEN = {name: value for name, value in _PHONE.items() if name != "token"}

_ERRORS = Story(
    "errors",
    "What is wrong is said precisely, and all of it at once",
    (
        Step(
            "An email that is none.",
            "IdentityService/UpdateProfile",
            {"identifiers": {"email": "not-an-email"}},
            Refused("InvalidArgument", "FIELDS_INVALID", ("identifiers.email",)),
        ),
        Step(
            "A device without its token.",
            "DevicesService/RegisterDevice",
            {"identifiers": _PERSON, "device": _PHONE_WITHOUT_TOKEN},
            Refused("InvalidArgument", "FIELDS_INVALID", ("device.token",)),
        ),
        Step(
            "Both in one call: every wrong field is named.",
            "DevicesService/RegisterDevice",
            {"identifiers": {"email": "not-an-email"}, "device": _PHONE_WITHOUT_TOKEN},
            Refused("InvalidArgument", "FIELDS_INVALID", ("identifiers.email", "device.token")),
        ),
        Step(
            "A second project, in which the user_id identifies; it comes with a key of its own.",
            "ProjectsService/CreateProject",
            {"project_id": "by-user-id", "identifier_type": "IDENTIFIER_TYPE_USER_ID"},
            {
                "project": {
                    "projectId": "by-user-id",
                    "identifierType": "IDENTIFIER_TYPE_USER_ID",
                    "region": "REGION_US",
                    "identifyingKinds": ["IDENTIFIER_KIND_USER_ID"],
                    "eventMergingEnabled": True,
                    "createTime": moment(),
                    "updateTime": moment(),
                },
                "apiKey": api_key("user_id_key"),
            },
        ),
        Step(
            "There an email names nobody.",
            "IdentityService/UpdateProfile",
            {"identifiers": _PERSON},
            Refused("InvalidArgument", "FIELDS_INVALID", ("identifiers.email",)),
            key="user_id_key",
        ),
        Step(
            "A call without a key.",
            "IdentityService/GetProfile",
            {"identifiers": _PERSON},
            Refused("Unauthenticated", "API_KEY_MISSING"),
            key="",
        ),
        Step(
            "A second key of the first project, for reading only.",
            "ProjectsService/CreateApiKey",
            {"scopes": ["SCOPE_READ"], "display_name": "dashboard"},
            {
                "apiKey": {
                    "keyId": Known("key id", "read key"),
                    "scopes": ["SCOPE_READ"],
                    "displayName": "dashboard",
                    "createTime": moment("key made"),
                },
                "secretText": api_key("read_key"),
            },
        ),
        Step(
            "It may read.",
            "IdentityService/GetProfile",
            {"identifiers": {"email": "nobody@example.com"}},
            Refused("NotFound", "PROFILE_NOT_FOUND"),
            key="read_key",
        ),
        Step(
            "The key is revoked.",
            "ProjectsService/RevokeApiKey",
            {"key_id": Known("key id", "read key")},
            {
                "apiKey": {
                    "keyId": Known("key id", "read key"),
                    "scopes": ["SCOPE_READ"],
                    "displayName": "dashboard",
                    "createTime": moment("key made"),
                    "revokeTime": moment(),
                }
            },
        ),
        Step(
            "From then on it lets nobody in.",
            "IdentityService/GetProfile",
            {"identifiers": {"email": "nobody@example.com"}},
            Refused("Unauthenticated", "API_KEY_INVALID"),
            key="read_key",
        ),
    ),
)

STORIES: Final = (_ANONYMOUS, _PLACEHOLDER, _NESTED_MERGE, _SHARED_PHONE, _EXCLUSIVE, _ERRORS)


# --- comparing -------------------------------------------------------------------------------------------------------


class UnexpectedAnswerError(Exception):
    """An answer is not the expected one; the text says where, what was expected and what came."""


class Memory:
    """The values of the names that the stories use."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = dict(values)
        self._shapes: dict[str, str] = {}

    def keys(self) -> dict[str, str]:
        """The texts of the API keys seen, by the variables of the shell that stand for them."""
        return {name: self.values[name] for name, shape in self._shapes.items() if shape == "key"}

    def fill(self, request: Any) -> Any:
        """A request with the remembered values in place of their names."""
        match request:
            case Known():
                return self.values[request.name]
            case dict():
                return {name: self.fill(value) for name, value in request.items()}
            case list():
                return [self.fill(value) for value in request]
            case _:
                return request

    def compare(self, expected: Any, got: Any, path: str = "") -> None:
        """Raises UnexpectedAnswerError at the first difference; remembers what is seen for the first time."""
        match expected:
            case Known():
                self._compare_known(expected, got, path)
            case dict() if isinstance(got, dict):
                for name in [*expected, *(name for name in got if name not in expected)]:
                    inner = f"{path}.{name}" if path else name
                    if name not in got:
                        _differ(inner, expected[name], "nothing")
                    if name not in expected:
                        _differ(inner, "nothing", got[name])
                    self.compare(expected[name], got[name], inner)
            case list() if isinstance(got, list):
                if len(expected) != len(got):
                    _differ(path, f"{len(expected)} items", f"{len(got)}: {_text(got)}")
                for index, (wanted, value) in enumerate(zip(expected, got, strict=True)):
                    self.compare(wanted, value, f"{path}[{index}]")
            case _ if type(expected) is not type(got) or expected != got:
                _differ(path, expected, got)

    def _compare_known(self, expected: Known, got: Any, path: str) -> None:
        if not isinstance(got, str) or not _SHAPES[expected.shape].fullmatch(got):
            _differ(path, f"a {expected.shape}", got)
        if not expected.name:
            return
        before = self.values.setdefault(expected.name, got)
        if before != got:
            _differ(path, before, got)
        self._shapes[expected.name] = expected.shape
        for name, shape in self._shapes.items():
            if shape == expected.shape != "time" and name != expected.name and self.values[name] == got:
                _differ(path, f"another {shape} than that of {name}", got)


def contains(answer: Any, part: Any) -> bool:
    """Whether an answer has everything that a part of one has. An empty part is in none."""
    if not isinstance(part, dict):
        return bool(answer == part)
    return bool(part) and all(name in answer and contains(answer[name], value) for name, value in part.items())


def _differ(path: str, expected: object, got: object) -> NoReturn:
    raise UnexpectedAnswerError(
        f"{path or 'the answer'} is not as expected\n  expected  {_text(expected)}\n  got       {_text(got)}"
    )


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=lambda known: f"<{known.shape} {known.name}>")


# --- calling ---------------------------------------------------------------------------------------------------------

_CALL_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Grpcurl:
    """grpcurl, and the service that it calls."""

    program: Path
    address: str

    def arguments(self, method: str, request: dict[str, Any], key: str | None) -> list[str]:
        """What grpcurl is called with."""
        authorization = ["-H", f"authorization: Bearer {key}"] if key else []
        return ["-plaintext", *authorization, "-d", _json(request), self.address, f"onefold.v1.{method}"]

    def call(self, method: str, request: dict[str, Any], key: str | None) -> tuple[dict[str, Any], str]:
        """The answer of a call, {"code", "reason", "fields"} if it is refused; and the text to show for it."""
        done = subprocess.run(
            [str(self.program), *self.arguments(method, request, key)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_CALL_SECONDS,
        )
        if done.returncode:
            return read_failure(done.stderr), done.stderr.strip()
        answer: dict[str, Any] = json.loads(done.stdout)
        # grpcurl's own indentation of free-form data is crooked.
        return answer, json.dumps(answer, indent=2, ensure_ascii=False)


def read_failure(text: str) -> dict[str, Any]:
    """What grpcurl prints when a call fails, as {"code", "reason", "fields"}."""
    code = re.search(r"^ +Code: (\w+)$", text, re.MULTILINE)
    if code is None:
        raise UnexpectedAnswerError(f"grpcurl could not make the call: {text.strip()}")
    details = [json.loads(detail) for detail in re.findall(r"^ +\d+\)\t(.*)$", text, re.MULTILINE)]
    return {
        "code": code[1],
        "reason": next((detail["reason"] for detail in details if "reason" in detail), None),
        "fields": [wrong["field"] for detail in details for wrong in detail.get("field_violations", [])],
    }


def command_line(step: Step, request: dict[str, Any]) -> str:
    """The call as it can be pasted into a shell in which `address` and the key's variable are set."""
    authorization = f' -H "authorization: Bearer ${step.key}"' if step.key else ""
    return "\n".join(
        [
            f"grpcurl -plaintext{authorization} \\",
            f"  -d {shlex.quote(_json(request))} \\",
            f'  "$address" onefold.v1.{step.method}',
        ]
    )


def _json(request: dict[str, Any]) -> str:
    return json.dumps(request, ensure_ascii=False)


# --- playing ---------------------------------------------------------------------------------------------------------

_WAIT_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 30.0


class Printer:
    """Writes to standard output; in colours if that is a terminal."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def title(self, text: str) -> None:
        """Says which story begins."""
        print(self._in("1", f"\n== {text} =="))

    def step(self, number: int, text: str) -> None:
        """Says what the next call shows."""
        print(f"\n{self._in('1', f'{number}.')} {text}\n")

    def command(self, text: str) -> None:
        """Shows what to type."""
        print(self._in("36", text))

    def answer(self, text: str, *, refused: bool) -> None:
        """Shows what came back."""
        print(self._in("33" if refused else "32", text), flush=True)

    def _in(self, colour: str, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colours else text


def play(stories: tuple[Story, ...], grpcurl: Grpcurl, key: str, printer: Printer) -> int:
    """Plays stories and returns the number of calls. Raises UnexpectedAnswerError at the first difference."""
    # Whole seconds, which grpcurl writes as they were given.
    two_days_ago = (datetime.now(UTC) - timedelta(days=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    memory = Memory({"key": key, "two days ago": two_days_ago})
    printer.command(f"address={grpcurl.address}\nkey={key}")
    count = 0
    for story in stories:
        printer.title(story.title)
        for step in story.steps:
            count += 1
            known = set(memory.keys())
            _play_step(count, step, grpcurl, memory, printer)
            for name, text in memory.keys().items():
                if name not in known:
                    printer.command(f"{name}={text}")
    return count


def _play_step(number: int, step: Step, grpcurl: Grpcurl, memory: Memory, printer: Printer) -> None:
    request = memory.fill(step.request)
    printer.step(number, step.shows)
    printer.command(command_line(step, request))
    key = memory.values[step.key] if step.key else None
    deadline = time.monotonic() + _WAIT_SECONDS
    answer, text = grpcurl.call(step.method, request, key)
    while contains(answer, step.wait_while) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        answer, text = grpcurl.call(step.method, request, key)
    printer.answer(text, refused="reason" in answer)
    memory.compare(step.answer.as_answer() if isinstance(step.answer, Refused) else step.answer, answer)


@contextmanager
def service() -> Iterator[dict[str, Any]]:
    """A service of our own while the block runs; gives what it says when it is ready."""
    # Nothing of the user's settings: the stories belong into a database that nobody else has.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEFOLD_")}
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = process.spawn(
            [
                *(sys.executable, "-m", "onefold", "dev", "--ephemeral", "--json"),
                *("--port", "0", "--project-type", "EMAIL"),
            ],
            # However we end, the service ends too.
            death_signal=signal.SIGTERM,
            output=writer,
            environment=environment,
        )
    finally:
        os.close(writer)
    try:
        with os.fdopen(reader, encoding="utf-8", errors="replace") as output:
            said = []
            for line in output:
                if line.startswith("{"):
                    yield json.loads(line)
                    return
                said.append(line)
            raise SystemExit(f"demo: the service did not start: {''.join(said).strip()}")
    finally:
        process.stop(child, (signal.SIGTERM, _STOP_SECONDS))


def main() -> int:
    """Plays the stories named on the command line, or all; returns the exit status."""
    names = [story.name for story in STORIES]
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("story", nargs="*", help=f"which to play: {', '.join(names)}; default: all")
    wanted = parser.parse_args().story
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"no such story: {', '.join(unknown)} (there are {', '.join(names)})")
    stories = tuple(story for story in STORIES if not wanted or story.name in wanted)
    # As Ctrl-C does: through the blocks that stop the service.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    printer = Printer(colours=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
    try:
        with service() as ready:
            grpcurl = Grpcurl(Path(sys.executable).with_name("grpcurl"), ready["grpc"])
            count = play(stories, grpcurl, ready["api_key"], printer)
    except UnexpectedAnswerError as error:
        sys.stdout.flush()
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"\n{count} calls, every answer as expected.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
