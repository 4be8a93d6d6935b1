"""What all commands share: their settings, a database, an event loop, and failing in one plain line."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from onefold.config import Settings
    from onefold.db.pool import Database

T = TypeVar("T")

TYPES = click.Choice(["EMAIL", "USER_ID", "HYBRID"], case_sensitive=False)
as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")


def settings(**flags: object) -> Settings:
    """The settings of this command; what is wrong with them is told in one line."""
    from pydantic import ValidationError

    from onefold.config import Settings, problems
    from onefold.setting_files import SettingFileError

    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        fail("; ".join(problems(error)))
    except SettingFileError as error:
        fail(str(error))


def warn_of_unknown_settings() -> None:
    """Says which ONEFOLD_* in the environment are no settings: a misspelt one would change nothing in silence."""
    if not any(name.startswith("ONEFOLD_") for name in os.environ):
        # To know the settings costs a third of a second.
        return
    from onefold.config import unknown_settings

    for name, nearest in unknown_settings(os.environ).items():
        hint = f"; did you mean {nearest}?" if nearest else ""
        click.echo(f"onefold: warning: {name} is no setting{hint}", err=True)


def with_database(action: Callable[[Database], Coroutine[Any, Any, T]]) -> T:
    """Runs something on a small pool of connections."""
    from onefold.db.pool import Database

    async def act() -> T:
        database = await Database.connect(settings().database_url, connections=2)
        try:
            return await action(database)
        finally:
            await database.close()

    return run(act)


def run(main_function: Callable[[], Coroutine[Any, Any, T]], *, stopped: str = "stopped") -> T:
    """Runs a coroutine to its end, plainly."""
    import uvloop

    def act() -> T:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main_function())

    return plainly(act, stopped=stopped)


def plainly(act: Callable[[], T], *, stopped: str = "stopped") -> T:
    """Runs a command; what goes wrong is one line on stderr and exit status 1, without a traceback.

    Ctrl-C is the line `stopped` and the status that shells give it.
    """
    from onefold.errors import OnefoldError

    try:
        return act()
    except OnefoldError as error:
        details = "; ".join(f"{violation.field} {violation.description}" for violation in error.violations)
        fail(details or error.message)
    except Exception as error:
        # An operator's statement may be refused for reasons that a call never meets, such as a missing right. The
        # driver's text may hold values of rows.
        if not type(error).__module__.startswith("asyncpg"):
            raise
        fail(f"PostgreSQL refuses: {type(error).__name__}")
    except KeyboardInterrupt:
        fail(stopped, 128 + signal.SIGINT)


def lines(rows: list[dict[str, Any]], columns: Mapping[str, str], *, as_json: bool, otherwise: str = "") -> None:
    """Prints rows: as JSON with all they have, or for people as aligned columns (a key and its heading each)."""
    if as_json:
        import orjson

        for row in rows:
            click.echo(orjson.dumps(row, default=str).decode())
        return
    if not rows:
        click.echo(otherwise, err=True)
        return
    table = [list(columns.values()), *([_cell(row[key]) for key in columns] for row in rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(columns))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    from datetime import datetime

    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def say_ready(ready_fd: int | None, line: str) -> None:
    """Tells that calls can come: a parent process on the pipe that it gave, people on stderr."""
    if ready_fd is None:
        click.echo(line, err=True)
        return
    # The parent waits for this line on a pipe of its own: logs cannot get into it.
    with os.fdopen(ready_fd, "w") as pipe:
        pipe.write(line + "\n")


def fail(message: str, status: int = 1) -> NoReturn:
    """Ends the command with one line."""
    click.echo(f"onefold: {message}", err=True)
    sys.exit(status)
