"""The checker itself: a short run with everything in it, audits of what it left, and the mutants that it must find."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from chaos.directed import SCENARIOS, Theatre, opened_small
from chaos.mutants import MUTANTS
from chaos.run import PROJECT, WRONG, Opened, audit, chaos, data_of, is_right, opened
from support.folders import reachable_folder

SEED = 20261122
MINUTES = 1.0
# Others may use the machine at the same time; what is waited for ends by itself.
PATIENCE_SECONDS = 600


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """Where the run's log is kept."""
    with reachable_folder() as folder:
        yield folder / "clients.jsonl"


@pytest_asyncio.fixture(scope="module")
async def result(kept: Path) -> dict[str, Any]:
    """A short run's result."""
    return await chaos(MINUTES, SEED, kept)


@pytest_asyncio.fixture(scope="module")
async def left(result: dict[str, Any], kept: Path) -> AsyncIterator[Opened]:
    """What the run left, running again."""
    async with opened(data_of(kept)) as running:
        yield running


@pytest.mark.timeout(PATIENCE_SECONDS)
def test_faults_under_load_lose_double_and_move_nothing(result: dict[str, Any]) -> None:
    """F1, F2, F3, F4, F5, F7, F8, F9, F12, F13, F14, F20, F23, F32, F35, F43, X1, X3, X4: while servers and workers are
    killed, frozen and started with a wrong clock, PostgreSQL and Valkey stopped and answers to COMMIT lost, every
    acknowledged write is there once, with whom it belongs to, in every read and after a restart."""
    assert result["problems"] == []
    assert {kind: result[kind] for kind in WRONG} == dict.fromkeys(WRONG, 0)
    assert is_right(result)
    assert result["acked"] > 500
    assert result["reads"] > 50
    assert result["replays"] > 100
    assert len(result["faults"]) >= 3


# What somebody might do to the tables, and what the audit then calls it.
FALSIFIED = {
    "lost": "DELETE FROM events WHERE (profile_id, event_id) = ($2, $3) AND project_id = $1",
    "doubled": "INSERT INTO anonymous_events "
    "(project_id, subject_id, event_time, event_id, receive_time, kind, name, anonymous_id, data) "
    "SELECT project_id, profile_id, event_time, event_id, receive_time, kind, name, 'x', data "
    "FROM events WHERE (profile_id, event_id) = ($2, $3) AND project_id = $1",
    "misattributed": "UPDATE events SET profile_id = (SELECT profile_id FROM profiles WHERE project_id = $1 "
    "AND profile_id <> $2 ORDER BY 1 LIMIT 1) WHERE (profile_id, event_id) = ($2, $3) AND project_id = $1",
    "corrupted": "UPDATE events SET data = '{}' WHERE (profile_id, event_id) = ($2, $3) AND project_id = $1",
}


@pytest.mark.timeout(PATIENCE_SECONDS)
@pytest.mark.parametrize("kind", FALSIFIED)
async def test_one_event_changed_by_hand_turns_the_audit_red(kind: str, left: Opened, kept: Path) -> None:
    """X3: the audit of a kept log finds nothing wrong, and one event that is deleted, doubled, moved or changed by hand
    is found and called what it is."""
    _, whole, _ = await audit(left, kept, SEED, replays=0)
    assert whole.examples == []
    connection: asyncpg.Connection[Any] = await asyncpg.connect(left.place.database_url)
    try:
        event = await connection.fetchrow(
            "SELECT * FROM events WHERE project_id = $1 AND event_id LIKE 'e%' ORDER BY event_id LIMIT 1", PROJECT
        )
        assert event is not None
        await connection.execute(FALSIFIED[kind], PROJECT, event["profile_id"], event["event_id"])
        _, found, _ = await audit(left, kept, SEED, replays=0)
        assert found.counts[kind] >= 1
        assert any(event["event_id"] in example for example in found.examples)
        # As it was, for the next audit.
        for table in ("events", "anonymous_events"):
            await connection.execute(
                f"DELETE FROM {table} WHERE project_id = $1 AND event_id = $2", PROJECT, event["event_id"]
            )
        values = ", ".join(f"${number}" for number in range(1, len(event) + 1))
        await connection.execute(f"INSERT INTO events ({', '.join(event.keys())}) VALUES ({values})", *event.values())
    finally:
        await connection.close()


@pytest_asyncio.fixture(scope="module")
async def theatre() -> AsyncIterator[Theatre]:
    """One server and one worker, which scenarios replace by mutants."""
    with reachable_folder() as folder:
        async with opened_small(folder) as running:
            yield Theatre(running)


# First all without a bug, so that no process is started more often than it must be.
@pytest.mark.timeout(PATIENCE_SECONDS)
@pytest.mark.parametrize("mutated", [False, True], ids=["whole", "mutated"])
async def test_every_mutant_is_found(mutated: bool, theatre: Theatre) -> None:
    """F1, F5, F6, F7, F14, F35, F48, D4: each of eight deliberate bugs turns the checker red, and the same scenario
    without it finds nothing."""
    assert SCENARIOS.keys() == MUTANTS.keys()
    results = [await theatre.play(name, mutated=mutated) for name in SCENARIOS]
    assert {result["mutant"]: result["found"] for result in results} == dict.fromkeys(MUTANTS, mutated), [
        result["problems"] for result in results
    ]
