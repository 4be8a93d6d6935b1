"""The service against a model of it: ONEFOLD_MODEL_EXAMPLES and ONEFOLD_MODEL_STEPS make it look further."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from conftest import MakeProject
from model.calls import Surroundings
from model.machine import Onefold
from onefold.workflows import disabling, moving
from support.world import World


@pytest.mark.timeout(900)
async def test_the_service_does_what_the_model_does(
    make_project: MakeProject, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS "The checker", layer 1: whatever is called, worked off, crashed or stolen, every read is right at once."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 1)
    monkeypatch.setattr(disabling, "CHUNK_COPIES", 1)
    around = Surroundings(asyncio.get_running_loop(), make_project, world)
    machine = type("Machine", (Onefold,), {"around": around})
    wanted = settings(
        max_examples=int(os.environ.get("ONEFOLD_MODEL_EXAMPLES", "200")),
        stateful_step_count=int(os.environ.get("ONEFOLD_MODEL_STEPS", "30")),
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        # It is slow by its nature.
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, machine, settings=wanted)
    print(f"{around.example_count} examples, {around.step_count} steps, {around.crash_count} crashes")  # noqa: T201  how far it looked, for pytest -s
