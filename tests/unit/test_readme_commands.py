"""The README's list of commands, compared with the commands that there are."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from onefold.cli import main

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
[BLOCK] = re.findall(r"```text\n(onefold migrate.*?)```", README, re.DOTALL)
LINES = [line for line in BLOCK.splitlines() if line.startswith("onefold ")]


def commands(line: str) -> list[tuple[click.Command, list[str]]]:
    """The commands that a line shows, each with its options."""
    usage = re.split(r"\s{3,}", line.removeprefix("onefold "))[0]
    parts: list[str] = usage.split(" | ") if "[" not in usage else [usage]
    first, *others = parts
    name, *words = first.split()
    command = main.commands[name]
    found = []
    for part in [" ".join(words), *others]:
        picked = command.commands[part.split()[0]] if isinstance(command, click.Group) else command
        found.append((picked, re.findall(r"--[a-z-]+", part)))
    return found


@pytest.mark.parametrize("line", LINES, ids=[" ".join(line.split()[:3]) for line in LINES])
def test_the_commands_are_there(line: str) -> None:
    """X2: every command that the README lists exists, and takes the options that it shows."""
    for command, options in commands(line):
        known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        assert set(options) <= known


def test_no_command_is_left_out() -> None:
    """X2: whatever the command line offers is in the README's list."""
    listed = {line.split()[1] for line in LINES}
    assert listed == set(main.commands) - {"dev"}
