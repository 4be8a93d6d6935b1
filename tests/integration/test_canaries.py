"""What people tell is told to their project and to nobody else: not to the logs, not to Valkey, not to errors."""

from __future__ import annotations

import secrets
from dataclasses import replace

import grpc
import pytest

from conftest import MakeProject
from onefold.config import Settings
from support.methods import REQUESTS, build, send
from support.owners import learned, made_up
from support.traces import keys_with, tables_with
from support.world import World


@pytest.mark.parametrize("project_type", ["EMAIL", "USER_ID", "HYBRID"])
async def test_no_call_leaves_anything_of_a_person_outside_the_database(
    make_project: MakeProject,
    world: World,
    settings: Settings,
    capfd: pytest.CaptureFixture[str],
    project_type: str,
) -> None:
    """X2, F43: a canary that every method was told wherever text may stand is in the tables, but in no log, no key of
    Valkey, and in no error but those that tell back an id of the caller's; also when the work is done."""
    canary = f"canary{secrets.token_hex(6)}"
    client = await make_project(project_type)
    names = replace(made_up(canary), token=f"{canary}-token")
    codes = set()
    for path, builds in REQUESTS.items():
        for index in range(len(builds)):
            outcome = await send(client.channel, path, client.key, build(path, index, names))
            names = learned(names, path, outcome)
            codes.add(outcome.code)
            # These say which of the caller's own ids was used before.
            if not any(reason in str(outcome.trailers) for reason in ("REQUEST_ID_REUSED", "EVENT_ID_REUSED")):
                assert canary not in outcome.details + str(outcome.trailers), path
        if path == "IdentityService/MergeProfiles":
            assert await tables_with(world, canary) >= {"profiles", "events", "devices", "identifiers"}
            assert await keys_with(settings.redis_url, canary) == []
            await world.settle(client.project_id)
    await world.settle(client.project_id)
    # Most calls did what they were for, and some were refused.
    assert codes >= {grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND}
    assert grpc.StatusCode.INTERNAL not in codes
    assert canary not in "".join(capfd.readouterr())
    assert await keys_with(settings.redis_url, canary) == []
