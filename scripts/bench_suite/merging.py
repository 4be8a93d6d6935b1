"""Merging, undoing, and updating many profiles at once."""

from __future__ import annotations

import itertools
import time
from statistics import median
from typing import Final

from onefold.v1.identity_service_pb2 import (
    BatchUpdateProfilesRequest,
    MergeProfilesRequest,
    ProfileUpdate,
    UndoMergeRequest,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import Identifiers

from .client import Stage
from .figure import Figure
from .seed import EVENTS, person_events
from .stage import PROJECT

_FEW_EVENTS: Final = 10
_ROUNDS: Final = 40
_WARM_UP_ROUNDS: Final = 5
_BATCH: Final = 1_000
_BATCHES: Final = 12

_numbers = itertools.count(1)

# What somebody would write who knew that all of them are new and that nobody else writes.
_BY_HAND = """
WITH new AS (
    INSERT INTO profiles (project_id, profile_id, email, data_fields, signup_source)
    SELECT $1, uuidv7(), address, fields, 1
    FROM unnest($2::text [], $3::json []) AS person (address, fields)
    RETURNING profile_id, email
)

INSERT INTO identifiers (project_id, kind, value, profile_id, exclusive)
SELECT $1, 1, email, profile_id, true FROM new
"""


async def flatness(stage: Stage) -> list[Figure]:
    """p50 of MergeProfiles, and of UndoMerge, for a source with 1,000,000 events over p50 for one with 10.

    The two take turns; each merge is undone at once. The worker is frozen, so the events lie where they were, and what
    it would have had to do is deleted behind the service's back after every round.
    """
    sizes = {True: EVENTS, False: _FEW_EVENTS}
    people = {}
    for big, events in sizes.items():
        source, target = f"source-{events}@example.com", f"target-{events}@example.com"
        for address in (source, target):
            answer = await stage.identity.UpdateProfile(
                UpdateProfileRequest(identifiers=Identifiers(email=address), data_fields_json='{"plan":"gold"}'),
                metadata=stage.metadata,
            )
            if address == source:
                await person_events(stage, answer.profile.profile_id, events)
        people[big] = (Identifiers(email=source), Identifiers(email=target))
    await stage.fresh("events")
    merges: dict[bool, list[float]] = {True: [], False: []}
    undos: dict[bool, list[float]] = {True: [], False: []}
    for number in range(_WARM_UP_ROUNDS + _ROUNDS):
        for big in (True, False) if number % 2 else (False, True):
            source_person, target_person = people[big]
            merge = MergeProfilesRequest(source=source_person, target=target_person, allow_known_source=True)
            begin = time.perf_counter()
            answer_to_merge = await stage.identity.MergeProfiles(merge, metadata=stage.metadata)
            between = time.perf_counter()
            await stage.identity.UndoMerge(
                UndoMergeRequest(merge_id=answer_to_merge.merge.merge_id), metadata=stage.metadata
            )
            end = time.perf_counter()
            if number >= _WARM_UP_ROUNDS:
                merges[big].append((between - begin) * 1_000)
                undos[big].append((end - between) * 1_000)
        for table in ("moves", "intents", "merges"):
            await stage.database.execute(f"DELETE FROM {table} WHERE project_id = $1", PROJECT)
    note = f"p50 of {_ROUNDS} calls for a source with {EVENTS:,} events, floor: as many for one with {_FEW_EVENTS}"
    return [
        Figure("merge_flatness", median(merges[True]), "ms", median(merges[False]), note),
        Figure("undo_flatness", median(undos[True]), "ms", median(undos[False]), note),
    ]


async def batch_update(stage: Stage) -> list[Figure]:
    """Profiles/s through BatchUpdateProfiles(1,000 new) over one INSERT of the same rows by hand. They take turns."""
    by_call, by_hand = [], []
    fields = '{"firstName":"Ada","plan":"gold","visits":12}'
    for number in range(_BATCHES + 2):
        if number == 2:
            # After two rounds to warm up: the plans of a service in use know how large its tables are.
            await stage.fresh("profiles", "identifiers")
            by_call, by_hand = [], []
        for turn in range(2):
            addresses = [f"batch-{next(_numbers)}@example.com" for _ in range(_BATCH)]
            begin = time.perf_counter()
            if turn == number % 2:
                await stage.identity.BatchUpdateProfiles(
                    BatchUpdateProfilesRequest(
                        updates=[
                            ProfileUpdate(identifiers=Identifiers(email=address), data_fields_json=fields)
                            for address in addresses
                        ]
                    ),
                    metadata=stage.metadata,
                )
                by_call.append(_BATCH / (time.perf_counter() - begin))
            else:
                await stage.database.execute(_BY_HAND, PROJECT, addresses, [fields] * _BATCH)
                by_hand.append(_BATCH / (time.perf_counter() - begin))
    note = f"medians of {_BATCHES} batches of {_BATCH:,}, the client's own work included; floor: one INSERT"
    return [Figure("batch_update_ratio", median(by_call), "profiles/s", median(by_hand), note)]
