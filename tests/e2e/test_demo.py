"""`scripts/demo` as its user meets it, and the comparison on which its word rests."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.folders import reachable_folder

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "scripts" / "lib" / "demo.py"


def _load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("onefold_demo", DEMO)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


demo = _load()
STEPS = [step for story in demo.STORIES for step in story.steps]


def sample_id(number: int) -> str:
    """An id of the right shape."""
    return f"{number:08x}-0000-7000-8000-000000000000"


def sample_time(number: int) -> str:
    """A time of the right shape."""
    return f"2026-11-20T06:00:{number:02d}Z"


def sample(expected: Any, values: dict[str, str]) -> Any:
    """What was expected, with some value of the right shape wherever one is not known before."""
    match expected:
        case dict():
            return {name: sample(value, values) for name, value in expected.items()}
        case list():
            return [sample(value, values) for value in expected]
        case demo.Known():
            number = len(values)
            text = {
                "uuid": sample_id(number),
                "time": sample_time(number),
                "key": f"onefold_default_a_{number:x}",
                "key id": f"{number:x}",
            }[expected.shape]
            return values.setdefault(expected.name or f"unnamed {number}", text)
        case _:
            return expected


def changed(value: Any) -> Iterator[Any]:
    """The value with one thing in it changed, left out or added, in every possible place."""
    match value:
        case dict():
            yield {**value, "surplus": "x"}
            for name, inner in value.items():
                yield {other: value[other] for other in value if other != name}
                yield from ({**value, name: wrong} for wrong in changed(inner))
        case list():
            yield [*value, "surplus"]
            for index, inner in enumerate(value):
                yield [*value[:index], *value[index + 1 :]]
                yield from ([*value[:index], wrong, *value[index + 1 :]] for wrong in changed(inner))
        case bool():
            yield not value
        case str():
            yield f"{value}!"
        case _:
            yield value + 1


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for the temporary files of what a test starts."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture
def play(temporary: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python with arguments, as the demo is run, to its end."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
            env=environment(temporary),
        )

    return run


def environment(temporary: Path) -> dict[str, str]:
    """Ours, with another place for temporary files, and with settings of somebody's own service."""
    return {
        **os.environ,
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(DEMO.parent),
        "ONEFOLD_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "ONEFOLD_REDIS_URL": "redis://127.0.0.1:1/0",
    }


def test_every_story_goes_as_told(play: Callable[..., subprocess.CompletedProcess[str]], temporary: Path) -> None:
    """A3 A4 I4 I7 I8 D3 D4 X2 P3: each call that the stories make with grpcurl answers exactly as they say; the
    service is one of the demo's own, whatever the environment names, and leaves no file behind."""
    done = play(DEMO)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:]
    assert done.stdout.count("grpcurl -plaintext") == len(STEPS)
    assert done.stdout.endswith(f"\n{len(STEPS)} calls, every answer as expected.\n")
    assert all(story.title in done.stdout for story in demo.STORIES)
    assert "\033" not in done.stdout
    assert list(temporary.iterdir()) == []


def test_the_first_difference_ends_it(play: Callable[..., subprocess.CompletedProcess[str]], temporary: Path) -> None:
    """X2: with one expectation changed, the demo stops at that call with status 1 and says what it expected and got;
    nothing is left behind."""
    done = play(
        "-c",
        "import sys, demo\n"
        "from dataclasses import replace\n"
        "story = demo.STORIES[-1]\n"
        "wrong = replace(story.steps[1], answer=demo.Refused('InvalidArgument', 'FIELDS_INVALID', ('token',)))\n"
        "demo.STORIES = (replace(story, steps=(story.steps[0], wrong, *story.steps[2:])),)\n"
        "sys.argv = ['demo']\n"
        "sys.exit(demo.main())",
    )
    assert done.returncode == 1
    assert done.stderr == "\ndemo: fields[0] is not as expected\n  expected  token\n  got       device.token\n"
    assert done.stdout.count("grpcurl -plaintext") == 2
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL], ids=lambda ending: ending.name)
def test_whatever_ends_it_ends_its_service(temporary: Path, ending: signal.Signals) -> None:
    """A demo that is stopped or killed takes its service along, files included."""
    process = subprocess.Popen(
        [sys.executable, "-u", DEMO], stdout=subprocess.PIPE, text=True, env=environment(temporary)
    )
    assert process.stdout is not None
    while "onefold.v1." not in process.stdout.readline():
        assert process.poll() is None
    assert list(temporary.iterdir()) != []
    process.send_signal(ending)
    process.communicate(timeout=60)
    assert process.returncode != 0
    deadline = time.monotonic() + 30
    while list(temporary.iterdir()):
        assert time.monotonic() < deadline, "the service is still there"
        time.sleep(0.05)


def test_a_story_that_does_not_exist_is_refused(play: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """An unknown story ends the demo with the names of those there are."""
    done = play(DEMO, "no-such-story")
    assert done.returncode == 2
    assert all(story.name in done.stderr for story in demo.STORIES)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.shows)
def test_the_printed_line_is_the_call_that_was_made(step: Any) -> None:
    """Pasted into a shell, the printed line calls grpcurl with the very arguments that the demo used."""
    request = sample(step.request, {})
    shell = "\n".join(
        [
            "grpcurl() { printf '%s\\0' \"$@\"; }",
            "address=127.0.0.1:1",
            f"{step.key or 'unused'}=KEY",
            demo.command_line(step, request),
        ]
    )
    pasted = subprocess.run(["bash", "-uc", shell], capture_output=True, text=True, check=True).stdout
    grpcurl = demo.Grpcurl(Path("grpcurl"), "127.0.0.1:1")
    assert pasted.split("\0")[:-1] == grpcurl.arguments(step.method, request, "KEY" if step.key else None)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.shows)
def test_every_part_of_an_expected_answer_counts(step: Any) -> None:
    """X2: an answer as expected passes; with any one value changed, left out or added it does not."""
    expected = step.answer.as_answer() if isinstance(step.answer, demo.Refused) else step.answer
    answer = sample(expected, {})
    demo.Memory({}).compare(expected, answer)
    for wrong in changed(answer):
        with pytest.raises(demo.UnexpectedAnswerError):
            demo.Memory({}).compare(expected, wrong)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ([demo.uuid("person"), demo.uuid("person")], [sample_id(1), sample_id(2)]),
        ([demo.uuid("person"), demo.uuid("other")], [sample_id(1), sample_id(1)]),
        ([demo.moment("link"), demo.moment("link")], [sample_time(1), sample_time(2)]),
        ([demo.moment()], ["2026-11-22 06:29:39"]),
        ([demo.uuid("person")], [None]),
        ([True], [1]),
        ([1], [1.0]),
        (["2"], [2]),
        ({}, []),
        ([], {}),
    ],
    ids=repr,
)
def test_what_is_not_the_same_is_a_difference(expected: Any, got: Any) -> None:
    """A name stands for one value, two ids never for the same, and a value of another type is another value."""
    with pytest.raises(demo.UnexpectedAnswerError):
        demo.Memory({}).compare(expected, got)


def test_a_name_holds_from_answer_to_answer_and_fills_requests() -> None:
    """What one answer gave under a name is what later requests send and later answers must have."""
    memory = demo.Memory({})
    memory.compare({"id": demo.uuid("disable"), "at": demo.moment("a")}, {"id": sample_id(1), "at": sample_time(1)})
    assert memory.fill({"ids": [demo.uuid("disable")]}) == {"ids": [sample_id(1)]}
    memory.compare([demo.uuid("disable"), demo.moment("b")], [sample_id(1), sample_time(1)])
    with pytest.raises(demo.UnexpectedAnswerError, match=sample_id(1)):
        memory.compare([demo.uuid("disable")], [sample_id(2)])


@pytest.mark.parametrize(
    ("answer", "waits"),
    [({"disable": {"state": "RUNNING", "token": "t"}}, True), ({"disable": {"state": "DONE"}}, False), ({}, False)],
)
def test_a_call_is_made_again_only_while_the_answer_says_so(answer: dict[str, Any], *, waits: bool) -> None:
    """D3: GetDisable is asked again while the disable runs, and any other answer is final."""
    assert demo.contains(answer, {"disable": {"state": "RUNNING"}}) is waits
    assert not demo.contains(answer, {})
