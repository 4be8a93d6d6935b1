"""Taking a project out as a file, and bringing such a file in."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from onefold.commands.common import run, settings
from onefold.commands.progress import progress

_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("project_id")
@click.argument("file", type=_FILE)
@click.option(
    "--wait",
    "wait_seconds",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds to wait for workers to end what they do for the project.",
)
def export(project_id: str, file: Path, wait_seconds: float) -> None:
    """Write a project to FILE as JSON lines: everything but its API keys and triggers.

    One moment of the project, checked by counts and a hash when it is imported. Nobody should call the project
    meanwhile, and a worker must have done what there is to do. FILE holds what people did: only you may read it.
    """
    from onefold.transfer.exporting import export_project

    told: set[int] = set()

    def waiting(left: int) -> None:
        if not told:
            click.echo(f"waiting for workers: {left} things to do", err=True)
        told.add(left)

    own = settings()
    with progress("export", None) as on_bytes:
        counts = run(
            lambda: export_project(
                own, project_id, file, wait_seconds=wait_seconds, on_waiting=waiting, on_bytes=on_bytes
            )
        )
    click.echo(f"exported {_summary(counts)}")


@click.command("import")
@click.argument("file", type=_FILE, required=False)
@click.option("--project", "project_id", help="The id to import it under. Default: the one in the file.")
@click.option("--drop-forgotten", is_flag=True, help="Leave out which identifiers are forgotten: they may come back.")
@click.option("--discard", "discarded_id", metavar="PROJECT", help="Remove what an interrupted import has brought in.")
def import_file(file: Path | None, project_id: str | None, drop_forgotten: bool, discarded_id: str | None) -> None:
    """Bring in a project that export wrote to FILE; prints a first key, which holds every scope.

    FILE is checked before anything is written, and the project is there when all of it is. Interrupted, run it again:
    it goes on where it was.
    """
    if (file is None) == (discarded_id is None):
        raise click.UsageError("Name a FILE, or --discard a project.")
    own = settings()
    if discarded_id is not None:
        from onefold.transfer.importing import discard_import

        project_to_discard = discarded_id
        click.echo(f"removed {run(lambda: discard_import(own, project_to_discard)):,} rows")
        return
    assert file is not None  # just checked
    _import(file, project_id, drop_forgotten=drop_forgotten)


def _import(path: Path, project_id: str | None, *, drop_forgotten: bool) -> None:
    from onefold.commands.common import plainly
    from onefold.transfer.file import check
    from onefold.transfer.importing import import_project

    own = settings()
    size = path.stat().st_size if path.is_file() else 0
    with progress("check", size) as on_bytes:
        checked = plainly(lambda: check(path, on_bytes))
    with progress("import", size) as on_bytes:
        key = run(
            lambda: import_project(
                own, checked, project_id=project_id, drop_forgotten=drop_forgotten, on_bytes=on_bytes
            ),
            stopped=f"stopped; run the same command again to go on, or: onefold import --discard "
            f"{project_id or checked.head.project_id}",
        )
    counts = {section.name: section.rows for section in checked.sections}
    click.echo(f"imported {_summary(counts)}", err=True)
    click.echo(key)


def _summary(counts: dict[str, int]) -> str:
    told = [f"{rows:,} {name.replace('_', ' ')}" for name, rows in counts.items() if rows]
    return ", ".join(told) or "a project without a row"
