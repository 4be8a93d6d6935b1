"""The commands of onefold in this process, where the exit status and the lines are what matters."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from click.testing import CliRunner, Result

from onefold.cli import main


def invoke(*arguments: str, **changes: str) -> Result:
    """A command, without any setting of onefold in its environment but these."""
    cleared: dict[str, Any] = {name: None for name in os.environ if name.startswith("ONEFOLD_")}
    return CliRunner(env=cleared | changes).invoke(main, arguments)


async def invoked(*arguments: str, **changes: str) -> Result:
    """The same from a test whose loop runs: the command has one of its own, so it runs in a thread."""
    return await asyncio.to_thread(invoke, *arguments, **changes)


def refused(result: Result) -> str:
    """The one line that a command failed with, its status being 1 and its output empty."""
    assert (result.exit_code, result.stdout) == (1, ""), (result.stdout, result.stderr, result.exception)
    [line] = result.stderr.splitlines()
    assert line.startswith("onefold: ")
    assert isinstance(result.exception, SystemExit)
    return str(line)
