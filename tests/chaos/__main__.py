"""`scripts/chaos`: the checker's command line."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from chaos.mutants import MUTANTS

T = TypeVar("T")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--minutes", default=3.0, show_default=True, type=click.FloatRange(0.05, 600), help="How long to break things."
)
@click.option("--seed", default=1, show_default=True, help="Decides what the clients do and what breaks when.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--mutant", type=click.Choice(list(MUTANTS)), help="Build a deliberate bug into onefold.")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the clients' log here, and the data in LOG.data.",
)
@click.option(
    "--audit", "audited", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="Audit a kept log again."
)
def main(minutes: float, seed: int, as_json: bool, mutant: str | None, keep: Path | None, audited: Path | None) -> None:
    """Breaks everything under load, and then asks whether a single acknowledged write was lost.

    Exit status 1 if anything was wrong.
    """
    from chaos.run import audit_again, chaos, is_right

    if mutant is not None:
        from chaos.directed import check_mutants

        [result] = asyncio.run(_until_told(check_mutants([mutant])))
    elif audited is not None:
        result = asyncio.run(_until_told(audit_again(audited.resolve())))
    else:
        result = asyncio.run(_until_told(chaos(minutes, seed, keep.resolve() if keep else None)))
    click.echo(json.dumps(result) if as_json else _summary(result))
    sys.exit(0 if is_right(result) else 1)


async def _until_told(work: Coroutine[Any, Any, T]) -> T:
    """Runs something to its end, or until SIGINT or SIGTERM: then everything that was started is ended first."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise click.exceptions.Exit(130) from None


def _summary(result: dict[str, Any]) -> str:
    lines = []
    for name, value in result.items():
        if name == "problems":
            lines += [f"  ! {problem}" for problem in value]
        else:
            told = ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else value
            lines.append(f"{name:<22} {told}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
