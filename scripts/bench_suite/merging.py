"""Merging and undoing."""

from __future__ import annotations

import time
from statistics import median
from typing import Final

from onefold.v1.identity_service_pb2 import (
    MergeProfilesRequest,
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
