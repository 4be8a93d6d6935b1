"""Looking at the work that is left, and letting what is stuck begin anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from onefold.commands.common import as_json_option, fail, lines, with_database

if TYPE_CHECKING:
    from onefold.db.pool import Database


@click.group()
def intents() -> None:
    """Work that commits left to the workers."""


@intents.command("list")
@click.option("--project", "project_id", help="Only of this project.")
@click.option("--stuck", "stuck_only", is_flag=True, help="Only those that the workers gave up.")
@click.option(
    "--limit", "count", default=100, show_default=True, type=click.IntRange(1, 10_000), help="At most so many."
)
@as_json_option
def intents_list(project_id: str | None, stuck_only: bool, count: int, as_json: bool) -> None:
    """List open intents, the oldest first: state, attempts, and why the last one failed."""
    from dataclasses import asdict

    import orjson

    from onefold.intents.store import ListedIntent, list_intents

    def line(intent: ListedIntent) -> str:
        if as_json:
            return orjson.dumps(asdict(intent), default=str).decode()
        return (
            f"{intent.project_id:<20} {intent.intent_id} {intent.kind:<8} {intent.state:<8} "
            f"{intent.attempt_count:>2} tries  since {intent.create_time:%Y-%m-%d %H:%M:%S}  {intent.last_error or ''}"
        ).rstrip()

    async def act(database: Database) -> str:
        listed = await database.read(
            lambda connection: list_intents(connection, project_id, stuck_only=stuck_only, count=count)
        )
        return "\n".join(map(line, listed))

    text = with_database(act)
    if text or not as_json:
        click.echo(text or "nothing to do")


@intents.command("show")
@click.argument("intent_id", type=click.UUID)
@as_json_option
def intents_show(intent_id: UUID, as_json: bool) -> None:
    """Show one intent: what it is for, how often it was tried, why it failed, and when it is tried again."""
    from onefold.intents.store import describe

    async def act(database: Database) -> dict[str, Any] | None:
        return await database.read(lambda connection: describe(connection, intent_id))

    found = with_database(act)
    if found is None:
        fail(f"There is no open intent {intent_id}: it is done, or never was.")
    if as_json:
        lines([found], {}, as_json=True)
    else:
        lines(
            [{"name": name, "value": value} for name, value in found.items() if value is not None],
            {"name": "what", "value": "value"},
            as_json=False,
        )


@intents.command("retry")
@click.argument("intent_ids", nargs=-1, type=click.UUID)
@click.option("--project", "project_id", help="Only of this project.")
@click.option("--all", "everything", is_flag=True, help="All that are stuck.")
def intents_retry(intent_ids: tuple[UUID, ...], project_id: str | None, everything: bool) -> None:
    """Let stuck intents begin anew; prints how many."""
    from onefold.intents.store import retry

    if bool(intent_ids) == everything:
        raise click.UsageError("Name intents, or give --all.")

    async def act(database: Database) -> str:
        named = None if everything else intent_ids
        return str(await database.transact(lambda connection: retry(connection, project_id, named)))

    click.echo(with_database(act))
