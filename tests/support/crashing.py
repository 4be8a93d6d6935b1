"""Processes that end at a named place of the code, as far as a transaction and a caller can tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from onefold import failpoints
from onefold.errors import Kind, OnefoldError, Reason

# A place by its name, or the one that comes by as the so-manieth (the first one is 1).
Place = str | int


class KilledError(OnefoldError):
    """The end of a process, in the midst of what it did. A caller is told that the server is gone, and nothing else."""

    def __init__(self) -> None:
        super().__init__(Kind.UNAVAILABLE, Reason.SERVER_STOPPING, "The server was killed.")


@dataclass
class Crash:
    """Where somebody ended, once it has happened."""

    place: str = ""


@contextmanager
def crash_at(place: Place) -> Iterator[Crash]:
    """Ends the first one in this process that comes by a place during the block. Nobody else may come by."""
    crash, count = Crash(), 0

    async def come_by(name: str, connection: object) -> None:
        nonlocal count
        count += 1
        if not crash.place and place in (name, count):
            crash.place = name
            raise KilledError

    failpoints.hook = come_by
    try:
        yield crash
    finally:
        failpoints.hook = None
