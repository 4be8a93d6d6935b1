"""Projects and their keys, for whoever may reach the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onefold.commands.common import TYPES, as_json_option, lines, with_database
from onefold.limits import RATE_MAX_PER_SECOND

if TYPE_CHECKING:
    from onefold.callers import Project
    from onefold.projects.store import ApiKeyRow

_REGIONS = click.Choice(["US", "EU"], case_sensitive=False)
_SWITCHES = {
    "event_merging_enabled": "Identify associates a visitor's events with the person.",
    "triggers_enabled": "Keep triggers for WatchTriggers.",
    "server_side_activation": "Workers make unknown profiles of visitors who match a criterion.",
    "require_consent": "An unknown profile needs consent.",
}


@click.group()
def project() -> None:
    """Projects."""


@project.command("create")
@click.argument("project_id")
@click.option("--type", "project_type", type=TYPES, required=True, help="What names a person in it; for good.")
@click.option("--region", type=_REGIONS, default="US", show_default=True)
def project_create(project_id: str, project_type: str, region: str) -> None:
    """Make a project; prints its first key, which holds every scope."""
    from onefold.callers import IdentifierType, Region
    from onefold.projects.bootstrap import create_project

    click.echo(
        with_database(
            lambda database: create_project(
                database, project_id, IdentifierType(project_type.upper()), Region(region.upper())
            )
        )
    )


@project.command("list")
@as_json_option
def project_list(as_json: bool) -> None:
    """List all projects, by their ids."""
    from onefold.projects.bootstrap import all_projects

    _print_projects(with_database(all_projects), as_json=as_json)


@project.command("show")
@click.argument("project_id")
@as_json_option
def project_show(project_id: str, as_json: bool) -> None:
    """Show one project with its settings."""
    from onefold.projects.bootstrap import find_project

    _print_one(with_database(lambda database: find_project(database, project_id)), as_json=as_json)


@project.command("update")
@click.argument("project_id")
@click.option("--region", type=_REGIONS, help="Where the data is to be kept.")
@click.option(
    "--max-calls-per-second",
    type=click.IntRange(0, RATE_MAX_PER_SECOND),
    help="To one process of a server; 0: any number.",
)
@click.option("--max-events-per-second", type=click.IntRange(0, RATE_MAX_PER_SECOND), help="The same of events.")
@as_json_option
def project_update(project_id: str, region: str | None, as_json: bool, **told: bool | int) -> None:
    """Change a project's settings; those not named stay. Servers know within 10 seconds."""
    from onefold.callers import Region
    from onefold.projects.bootstrap import change_project

    changes = {name: value for name, value in told.items() if value is not None}
    if not changes and region is None:
        raise click.UsageError("Say what to change.")
    new_region = Region(region.upper()) if region else None
    _print_one(
        with_database(lambda database: change_project(database, project_id, new_region, changes)), as_json=as_json
    )


for _name, _help in _SWITCHES.items():
    _flag = _name.removesuffix("_enabled").replace("_", "-")
    project_update.params.append(click.Option([f"--{_flag}/--no-{_flag}", _name], default=None, help=_help))


@click.group()
def key() -> None:
    """API keys."""


@key.command("create")
@click.argument("project_id")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["READ", "WRITE", "ADMIN"], case_sensitive=False),
    default=["READ", "WRITE"],
    show_default=True,
    help="May be given several times.",
)
@click.option("--name", default="", help="What the key is for.")
def key_create(project_id: str, scopes: tuple[str, ...], name: str) -> None:
    """Make a key of a project; prints it."""
    from onefold.callers import Scope
    from onefold.projects.bootstrap import create_key

    wanted = frozenset(Scope(scope.upper()) for scope in scopes)
    click.echo(with_database(lambda database: create_key(database, project_id, wanted, name)))


@key.command("list")
@click.argument("project_id")
@as_json_option
def key_list(project_id: str, as_json: bool) -> None:
    """List a project's keys, the ended ones too; their secrets are kept nowhere."""
    from onefold.projects.bootstrap import all_keys

    rows = [_key_row(each) for each in with_database(lambda database: all_keys(database, project_id))]
    columns = {
        "key_id": "key",
        "scopes": "scopes",
        "display_name": "name",
        "create_time": "made",
        "expire_time": "expires",
        "revoke_time": "revoked",
    }
    lines(rows, columns, as_json=as_json, otherwise="no keys")


@key.command("revoke")
@click.argument("project_id")
@click.argument("key_id")
def key_revoke(project_id: str, key_id: str) -> None:
    """End a key, named by what `key list` shows. Every server refuses it within 10 seconds."""
    from onefold.projects.bootstrap import revoke_key

    row = with_database(lambda database: revoke_key(database, project_id, key_id))
    click.echo(f"revoked {row.key_id}")


def _project_row(each: Project) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "project_id": each.project_id,
        "identifier_type": str(each.identifier_type),
        "region": str(each.region),
        **asdict(each.settings),
        "create_time": each.create_time,
        "update_time": each.update_time,
    }


def _key_row(each: ApiKeyRow) -> dict[str, Any]:
    return {
        "key_id": each.key_id,
        "scopes": sorted(map(str, each.scopes)),
        "display_name": each.display_name,
        "create_time": each.create_time,
        "expire_time": each.expire_time,
        "revoke_time": each.revoke_time,
    }


def _print_projects(projects: list[Project], *, as_json: bool) -> None:
    columns = {
        "project_id": "project",
        "identifier_type": "type",
        "region": "region",
        "event_merging_enabled": "merging",
        "triggers_enabled": "triggers",
        "server_side_activation": "activation",
        "require_consent": "consent",
        "create_time": "made",
    }
    lines([_project_row(each) for each in projects], columns, as_json=as_json, otherwise="no projects")


def _print_one(found: Project, *, as_json: bool) -> None:
    row = _project_row(found)
    if as_json:
        lines([row], {}, as_json=True)
    else:
        pairs = [{"name": name, "value": value} for name, value in row.items()]
        lines(pairs, {"name": "what", "value": "value"}, as_json=False)
