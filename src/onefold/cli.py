"""The command line. Each command imports what it needs when it runs, so that --help costs nothing."""

from __future__ import annotations

import click

from onefold.commands.intents import intents
from onefold.commands.projects import key, project
from onefold.commands.running import dev, health, serve, work
from onefold.commands.schema import migrate
from onefold.commands.settings import config
from onefold.commands.transfer import export, import_file


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="onefold")
def main() -> None:
    """onefold keeps one true profile per person."""


for _command in (dev, serve, work, health, migrate, config, project, key, intents, export, import_file):
    main.add_command(_command)
