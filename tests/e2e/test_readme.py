"""The README's commands, as a newcomer types them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def _blocks() -> list[tuple[str, str]]:
    """The sh and json blocks from "Try it" to "Errors and retries", in order, but for the one that starts it all."""
    part = _README.split("## Try it", 1)[1].split("## Errors and retries", 1)[0]
    found = re.findall(r"```(sh|json)\n(.*?)```", part, re.DOTALL)
    return [(language, text) for language, text in found if "scripts/dev" not in text]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A service started as the README says, but on a free port and with nothing kept."""
    command = [
        sys.executable,
        "-m",
        "onefold",
        "dev",
        "--ephemeral",
        "--json",
        "--port",
        "0",
        "--project-type",
        "EMAIL",
    ]
    environment = {**os.environ, "ONEFOLD_DEV_API_KEY": "dev"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield ready["grpc"]
        process.terminate()


def _assert_within(expected: Any, found: Any, path: str = "") -> None:
    """Everything that the README shows is in the answer; the answer may say more."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{path}.{key} is not in the answer"
            _assert_within(value, found[key], f"{path}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            _assert_within(one, other, f"{path}[{index}]")
    else:
        assert found == expected, path


def test_every_call_in_the_readme_answers_as_it_says(address: str) -> None:
    """A3 D3 I16 I18 I19 I20 U1 U3 U4 U5: every story of the README works line by line, in the order shown."""
    blocks = _blocks()
    functions = blocks[0][1].replace(".venv/bin/grpcurl", shlex.quote(str(Path(sys.executable).parent / "grpcurl")))
    shown = 0
    answer = ""
    for language, text in blocks[1:]:
        if language == "json":
            _assert_within(json.loads(text), json.loads(answer))
            shown += 1
            continue
        for line in text.strip().splitlines():
            run = subprocess.run(
                ["bash", "-c", f"{functions}\n{line}"],
                capture_output=True,
                text=True,
                timeout=30,
                env={**os.environ, "ONEFOLD": address},
                check=False,
            )
            assert run.returncode == 0, f"{line}\n{run.stderr}"
            answer = run.stdout
    assert shown >= 5


def test_the_python_example_runs(address: str, tmp_path: Path) -> None:
    """A1 X2: the example of the client prints a visitor's event, and the reason of a read that finds nobody."""
    [example] = re.findall(r"```python\n(.*?)```", _README, re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example.replace("127.0.0.1:50051", address), encoding="utf-8")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout.splitlines()) == (0, ["Viewed Pizza", "PROFILE_NOT_FOUND"]), run.stderr


def test_the_go_example_is_that_of_the_whole_program() -> None:
    """A3: what the README shows in Go stands in the program whose names are compared with the protos."""
    [example] = re.findall(r"```go\n(.*?)```", _README, re.DOTALL)
    program = (_ROOT / "scripts" / "examples" / "visitor.go").read_text(encoding="utf-8")
    shown = [line.strip() for line in example.splitlines() if line.strip()]
    assert len(shown) > 10
    assert "\n".join(shown) in "\n".join(line.strip() for line in program.splitlines() if line.strip())


def test_the_table_of_limits_is_true() -> None:
    """X5: the limits that the README states are those that the code enforces."""
    check = [sys.executable, str(_ROOT / "scripts" / "lib" / "limits.py"), "--check"]
    run = subprocess.run(check, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
