"""Whose clock decides."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import onefold

# logs.py writes when a line was said, for whoever reads it.
SOURCES = sorted(
    path
    for path in Path(onefold.__file__).parent.rglob("*.py")
    if path.parent.name != "v1" and path != Path(onefold.__file__).parent / "logs.py"
)
# What tells the time of day by the machine's clock, however it was imported.
WALL_CLOCKS = {"now", "utcnow", "today", "time", "time_ns", "localtime", "gmtime", "fromtimestamp"}
MODULES = {"datetime", "date", "time"}


def wall_clock_calls(tree: ast.AST) -> list[str]:
    """Calls such as datetime.now() and time.time(); bare names count where they were imported from such a module."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in MODULES
        for alias in node.names
        if alias.name in WALL_CLOCKS
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            match node.func:
                case ast.Attribute(value=ast.Name(id=name) | ast.Attribute(attr=name), attr=attribute):
                    if name in MODULES and attribute in WALL_CLOCKS:
                        found.append(f"{name}.{attribute}")
                case ast.Name(id=name) if name in imported:
                    found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_no_process_asks_its_own_clock_for_the_time(path: Path) -> None:
    """F23: retention, leases and order are the database clock's, so a server or worker whose clock is an hour off
    changes none of them; its own clock only measures how long something takes."""
    assert wall_clock_calls(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_search_finds_such_calls() -> None:
    """F23: the search above is not blind."""
    text = "import datetime, time\nfrom time import time as now\nfrom datetime import datetime as d\n"
    text += "datetime.datetime.now()\ntime.time()\nnow()\ntime.monotonic()\n"
    assert sorted(wall_clock_calls(ast.parse(text))) == ["datetime.now", "now", "time.time"]
