"""Coverage-guided fuzzing of the parts that read what callers send, with atheris.

Each target is a function of bytes that must return, whatever they are: an input for which it raises is a finding. The
targets run one after the other, each in a process of its own, which ends at its first finding.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import atheris

_IN_CHILD = sys.argv[1:2] == ["--target"]

with atheris.instrument_imports(include=["onefold"]) if _IN_CHILD else contextlib.nullcontext():
    import orjson
    from google.protobuf.message import DecodeError
    from google.protobuf.struct_pb2 import Struct

    from onefold.activation.messages import read_tree
    from onefold.activation.rules import CompiledCriterion, Event, evaluate
    from onefold.activation.store import decode_tree
    from onefold.callers import IdentifierType, Project, ProjectSettings, Region
    from onefold.clock import to_microseconds
    from onefold.errors import OnefoldError
    from onefold.events.messages import read_batch
    from onefold.identity.rules import fold_ascii, generated_placeholder, name_person
    from onefold.limits import DATA_DEPTH, DATA_KEYS_PER_OBJECT, EVENT_DATA_BYTES
    from onefold.rpc.checks import Checker
    from onefold.rpc.paging import make_token, moment_part, read_token, text_part
    from onefold.rpc.payload import Payload, read_json, read_struct, write_struct
    from onefold.rpc.status import to_item_error, to_status
    from onefold.triggers.rules import make_cursor, read_cursor
    from onefold.v1.criterion_pb2 import CriterionNode
    from onefold.v1.event_pb2 import NewEvent
    from onefold.v1.events_service_pb2 import ListEventsRequest

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PROJECTS = [
    Project("shop", identifier_type, Region.US, ProjectSettings(), NOW, NOW) for identifier_type in IdentifierType
]
LISTING = ListEventsRequest(anonymous_id="x")


def check_error(error: OnefoldError) -> None:
    """An error fits into the trailers of a call, and a thousand of them into an answer."""
    [(_, data)] = to_status(error).trailing_metadata
    assert len(data) < 6_000, len(data)
    assert to_item_error(error).ByteSize() < 4_000


def check_payload(payload: Payload) -> None:
    """What was accepted is the JSON that is stored, within the limits, and has one canonical form."""
    assert len(payload.text.encode()) <= EVENT_DATA_BYTES
    assert orjson.loads(payload.text) == payload.value
    assert isinstance(json.loads(payload.text), dict)
    payload.canonical()
    waiting = [(payload.value, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            assert depth <= DATA_DEPTH and len(value) <= DATA_KEYS_PER_OBJECT
            assert not any("\0" in key for key in value)
            waiting += [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            assert depth <= DATA_DEPTH
            waiting += [(each, depth + 1) for each in value]
        elif isinstance(value, str):
            assert "\0" not in value


def json_text(data: bytes) -> None:
    """Data as JSON text."""
    checker = Checker()
    payload = read_json(checker, "data_json", data.decode(errors="ignore"), max_bytes=EVENT_DATA_BYTES)
    if not checker.violations:
        check_payload(payload)


def struct(data: bytes) -> None:
    """Data as a Struct, and back."""
    with contextlib.suppress(DecodeError):
        checker = Checker()
        payload = read_struct(checker, "data", Struct.FromString(data), max_bytes=EVENT_DATA_BYTES)
        if not checker.violations:
            check_payload(payload)
            again = Struct()
            write_struct(again, payload.value)
            assert read_struct(checker, "data", again, max_bytes=EVENT_DATA_BYTES).value == payload.value


def event(data: bytes) -> None:
    """An event as one of a batch, in a project of each type."""
    try:
        message = NewEvent.FromString(data)
    except DecodeError:
        return
    for project in PROJECTS:
        [read] = read_batch(project, [message])
        if isinstance(read, OnefoldError):
            check_error(read)
        else:
            check_payload(read.payload)


def identifiers(data: bytes) -> None:
    """An email and a user_id, as a project of each type reads them."""
    email, _, user_id = data.decode(errors="ignore").partition("\n")
    for project in PROJECTS:
        named, violations = name_person(project.identifier_type, email, user_id, prefix="identifiers")
        assert (named is None) == bool(violations)
        if named is None:
            continue
        if named.email is not None:
            assert named.email == fold_ascii(named.email) and named.email.count("@") >= 1
            assert named.email.isprintable() and named.email.strip() == named.email
        if named.user_id is not None:
            assert named.user_id == user_id and user_id.isprintable() and len(user_id) <= 52
            placeholder = generated_placeholder(user_id)
            assert name_person(IdentifierType.EMAIL, placeholder, "", prefix="")[1] == []


def tokens(data: bytes) -> None:
    """Page tokens and cursors."""
    text = data.decode(errors="ignore")
    try:
        key = read_token(LISTING, text, moment_part, text_part)
        if key is not None:
            assert (
                read_token(LISTING, make_token(LISTING, [to_microseconds(key[0]), key[1]]), moment_part, text_part)
                == key
            )
    except OnefoldError as error:
        check_error(error)
    try:
        assert 0 <= read_cursor("shop", text) < 2**63
    except OnefoldError as error:
        check_error(error)


def criterion(data: bytes) -> None:
    """A criterion, from the message to its evaluation."""
    try:
        message = CriterionNode.FromString(data)
    except DecodeError:
        return
    checker = Checker()
    text = read_tree(checker, "root", message)
    if not checker.violations:
        compiled = CompiledCriterion("id", decode_tree(text))
        seen = Event("1", "customEvent", "Viewed", {"a": [{"b": 1}, "x", None], "n": 1.5})
        evaluate([compiled], [seen], {"plan": "gold"})


def condition(data: bytes) -> None:
    """A condition made of texts, evaluated on data: what bytes of a message seldom come to."""
    provider = atheris.FuzzedDataProvider(data)
    message = CriterionNode()
    message.leaf.data_type = provider.ConsumeIntInRange(0, 5)
    for _ in range(provider.ConsumeIntInRange(1, 3)):
        made = getattr(message.leaf.query, provider.PickValueInList(["and", "or", "not"])).nodes.add().condition
        made.field = provider.PickValueInList(["a", "a.b", "n", "eventName", provider.ConsumeUnicodeNoSurrogates(12)])
        made.comparator = provider.ConsumeIntInRange(0, 11)
        made.field_type = provider.ConsumeIntInRange(0, 7)
        made.values.extend(provider.ConsumeUnicodeNoSurrogates(30) for _ in range(provider.ConsumeIntInRange(0, 2)))
    criterion(message.SerializeToString())


# By name: the function, and what to begin with.
TARGETS = {
    "json_text": (json_text, [b'{"a":[1,1.5,true,null,"x\\u0041"],"b":{"c":{}}}', b'{"a":12345678901234567890.5e-3}']),
    "struct": (
        struct,
        [bytes.fromhex("0a0d0a0161120811000000000000f03f"), bytes.fromhex("0a0a0a01611205320322011a00")],
    ),
    "event": (
        event,
        [
            NewEvent(anonymous_id="x", name="n", data_json='{"a":1}', event_id="e").SerializeToString(),
            NewEvent(name="n", data_json='{"recipient":"a@example.com"}', kind=4, total=1.5).SerializeToString(),
        ],
    ),
    "identifiers": (identifiers, [b"a.b+c@example.com\nuser-1", "\u00e9@b\u00fccher.example\nid".encode()]),
    "tokens": (tokens, [make_token(LISTING, [1, "e"]).encode(), make_cursor("shop", 7).encode()]),
    "criterion": (criterion, [bytes.fromhex("220c08021208220608a16110011a0178")]),
    "condition": (condition, [bytes(range(64))]),
}


def main() -> int:
    """Runs the targets; exit status 1 if one of them found something."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together (default: 10)")
    arguments = parser.parse_args()
    for name in arguments.targets:
        if name not in TARGETS:
            parser.error(f"no target {name}; there are {', '.join(TARGETS)}")
    names = arguments.targets or list(TARGETS)
    seconds = max(1, round(arguments.minutes * 60 / len(names)))
    bad = [name for name in names if not _run(name, seconds)]
    print(f"fuzz found something: {', '.join(bad)}" if bad else "fuzz found nothing", flush=True)
    return bool(bad)


def _run(name: str, seconds: int) -> bool:
    """Runs one target in a process of its own; whether it found nothing."""
    corpus, findings = Path(".fuzz/corpus", name), Path(".fuzz/findings")
    corpus.mkdir(parents=True, exist_ok=True)
    findings.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name][1]):
        corpus.joinpath(f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={findings}/{name}-",
        *["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", "-print_final_stats=1", "-verbosity=0"],
    ]
    done = subprocess.run(
        [sys.executable, __file__, "--target", name, str(corpus), *options], capture_output=True, text=True, check=False
    )
    counted = re.search(r"number_of_executed_units:\s*(\d+)", done.stderr)
    print(f"{name:<12} {int(counted[1]) if counted else 0:>12,} inputs in {seconds} s  ", end="")
    print("ok" if done.returncode == 0 else f"FOUND, in {findings}\n{done.stderr[-4_000:]}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    if _IN_CHILD:
        atheris.Setup([sys.argv[0], *sys.argv[3:]], TARGETS[sys.argv[2]][0])
        atheris.Fuzz()
    else:
        sys.exit(main())
