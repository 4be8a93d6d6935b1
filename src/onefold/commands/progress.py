"""How far a long command is: a bar on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

_PLAIN_SECONDS: Final = 5.0
_MEGABYTE: Final = 1_000_000


@contextmanager
def progress(what: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the bytes that are done; on standard error, so that output stays what it is."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total_bytes)
            yield lambda done: bar.update(task, completed=done)
        return
    last = time.monotonic()

    def told(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_SECONDS:
            last = now
            share = f" of {total_bytes / _MEGABYTE:,.0f}" if total_bytes else ""
            click.echo(f"{what}: {done / _MEGABYTE:,.0f}{share} MB", err=True)

    yield told
