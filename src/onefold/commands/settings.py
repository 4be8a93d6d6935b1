"""Showing what a process would run with."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from onefold.commands.common import as_json_option, fail, lines, warn_of_unknown_settings


@click.command()
@click.option("--host", help="As serve takes it.")
@click.option("--port", type=int, help="As serve takes it.")
@click.option("--workers", type=int, help="As serve takes it.")
@as_json_option
def config(host: str | None, port: int | None, workers: int | None, as_json: bool) -> None:
    """Show every setting, where it came from, and no secret; exit status 1 if one is wrong or missing."""
    from onefold.config import told_settings
    from onefold.setting_files import SettingFileError

    warn_of_unknown_settings()
    flags = {"host": host, "port": port, "server_processes": workers}
    try:
        told = told_settings({name: value for name, value in flags.items() if value is not None})
    except SettingFileError as error:
        fail(str(error))
    columns = {"name": "setting", "value": "value", "origin": "from"}
    lines([asdict(each) for each in told], columns, as_json=as_json)
    wrong = [f"{each.name}: {each.problem}" for each in told if each.problem]
    if wrong:
        click.echo(f"onefold: {'; '.join(wrong)}", err=True)
        sys.exit(1)
