"""onefold's command line with a deliberate bug: `python -m chaos.mutants NAME serve ...`.

Production code knows nothing of this. A bug is built in before anything of onefold but the module in question is
imported, in this process alone; one that has no place to go any more, because the code has changed, fails at once.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable
from typing import Any, Final


def rewrite(statement: str, pattern: str, replacement: str) -> None:
    """Changes a named statement while its .sql file is read."""
    from onefold.db import queries

    parse = queries._parse

    def parse_changed(name: str, body: str) -> queries.Query:
        if name == statement:
            body, count = re.subn(pattern, replacement, body, flags=re.DOTALL)
            if not count:
                raise RuntimeError(f"{statement} is not what the mutant expects")
        return parse(name, body)

    queries._parse = parse_changed


def skip_intent() -> None:
    """The effect is committed, and nobody is told to do the work."""
    from onefold.intents import store

    async def add(connection: object, intent: object) -> None:
        return None

    store.add = add


def ring_before_commit() -> None:
    """The bell is rung when the intent is written, not when it is committed: the worker finds nothing to do."""
    from onefold.intents import store
    from onefold.intents.doorbell import Doorbell

    made: list[Doorbell] = []
    start, ring, add = Doorbell.start, Doorbell.ring, store.add

    async def start_and_remember(self: Doorbell) -> None:
        made.append(self)
        await start(self)

    async def add_and_ring(connection: Any, intent: store.Intent) -> None:
        await add(connection, intent)
        ring(made[0], intent)

    setattr(Doorbell, "start", start_and_remember)  # noqa: B010 - a method is not assigned otherwise
    setattr(Doorbell, "ring", lambda self, intent: None)  # noqa: B010
    store.add = add_and_ring


def no_lease_check() -> None:
    """A chunk does not ask whether its worker still has the lease."""
    for statement in ("renew_lease", "finish_intent", "postpone_intent", "note_progress", "release_lease"):
        rewrite(statement, "lease_token = :lease_token", "(lease_token = :lease_token OR true)")


def copy_without_delete() -> None:
    """A visitor's events are put into the person's timeline and stay where they were."""
    rewrite(
        "subject_to_profile",
        r"DELETE FROM anonymous_events\n(.*?)    RETURNING\n(.*?)\n\),",
        r"SELECT\n\2\n    FROM anonymous_events\n\1),",
    )


def unsorted_locks() -> None:
    """Event ids are claimed in the order in which the caller names them."""
    rewrite("claim_event_ids", "ORDER BY new.event_id", "")


def no_re_ring() -> None:
    """Nobody looks for intents whose bell was lost."""
    from onefold import worker
    from onefold.config import Settings
    from onefold.db.pool import Database

    async def never(settings: Settings, database: Database) -> None:
        await asyncio.Event().wait()

    worker._sweep_forever = never


def early_answer() -> None:
    """A call is answered when its COMMIT was sent, not when it was carried out."""
    from onefold.db.pool import Database

    commit = Database._commit
    committing: set[asyncio.Task[None]] = set()

    async def commit_later(self: Database, connection: Any) -> None:
        task = asyncio.create_task(commit(self, connection))
        committing.add(task)
        task.add_done_callback(committing.discard)

    setattr(Database, "_commit", commit_later)  # noqa: B010


def fan_out_without_order() -> None:
    """A disable's worker switches off copies that were registered after the disable, too."""
    rewrite(
        "disable_chunk",
        r"AND devices\.operation_number < \(SELECT disable\.operation_number FROM disable\)",
        "",
    )


# By name: the bug, and which process has it.
MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "skip-intent": (skip_intent, "server0"),
    "ring-before-commit": (ring_before_commit, "server0"),
    "no-lease-check": (no_lease_check, "worker0"),
    "copy-without-delete": (copy_without_delete, "worker0"),
    "unsorted-locks": (unsorted_locks, "server0"),
    "no-re-ring": (no_re_ring, "worker0"),
    "early-answer": (early_answer, "server0"),
    "fan-out-without-order": (fan_out_without_order, "worker0"),
}


if __name__ == "__main__":
    MUTANTS[sys.argv.pop(1)][0]()

    from onefold.cli import main

    main()
