"""Bringing the schema up to date, and saying how far it is."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from onefold.commands.common import as_json_option, fail, lines, run, settings


@click.command()
@click.option("--status", "show_status", is_flag=True, help="Say how each migration stands, and do nothing.")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would be run, and run nothing.")
@as_json_option
def migrate(show_status: bool, dry_run: bool, as_json: bool) -> None:
    """Bring the database's schema up to date; with --status, exit status 1 unless it is."""
    if show_status and dry_run:
        raise click.UsageError("Give --status or --dry-run.")
    if as_json and not show_status:
        raise click.UsageError("--json goes with --status.")
    if show_status:
        _show_status(as_json=as_json)
    elif dry_run:
        _show_pending()
    else:
        _migrate()


def _migrate() -> None:
    from onefold.db.migrate import State, standing
    from onefold.db.migrate import migrate as apply

    url = settings().database_url
    applied = run(
        lambda: apply(
            url,
            on_applied=lambda name: click.echo(f"applied {name}"),
            on_waiting=lambda: click.echo("another process is migrating: waiting for it", err=True),
        )
    )
    if not applied:
        newer = [each.name for each in run(lambda: standing(url)) if each.state is State.NEWER]
        click.echo(f"up to date; a newer version has applied {', '.join(newer)}" if newer else "up to date")


def _show_status(*, as_json: bool) -> None:
    from onefold.db.migrate import State, standing

    url = settings().database_url
    found = run(lambda: standing(url))
    columns = {"name": "migration", "state": "state", "apply_time": "applied at"}
    lines([asdict(each) for each in found], columns, as_json=as_json)
    sys.exit(0 if all(each.state in (State.APPLIED, State.NEWER) for each in found) else 1)


def _show_pending() -> None:
    from onefold.db.migrate import State, migrations, standing

    url = settings().database_url
    states = {each.name: each.state for each in run(lambda: standing(url))}
    changed = [name for name, state in states.items() if state is State.CHANGED]
    if changed:
        fail(f"Migration {changed[0]} was changed after it had been applied.")
    pending = [migration for migration in migrations() if states[migration.name] is State.PENDING]
    for migration in pending:
        click.echo(f"-- {migration.name}\n{migration.sql.rstrip()}\n")
    if not pending:
        click.echo("up to date")
