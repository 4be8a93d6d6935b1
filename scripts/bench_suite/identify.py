"""Identify, and the reads right after it."""

from __future__ import annotations

import itertools
from statistics import median
from typing import Final

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.events_service_pb2 import ListEventsRequest
from onefold.v1.identity_service_pb2 import LINK_OUTCOME_LINKED, IdentifyRequest
from onefold.v1.profile_pb2 import Identifiers

from .client import Stage
from .figure import Figure
from .seed import EVENTS, big_visitors, visitor
from .stage import PROJECT, NotMeasuredError

_BIG_VISITORS: Final = 2
_FEW_EVENTS: Final = 10
_ROUNDS: Final = 100
_WARM_UP_ROUNDS: Final = 5
_PAGE: Final = 500

_people = itertools.count(1)


def identify_request(anonymous_id: str) -> IdentifyRequest:
    """Links a visitor to a person who is not there yet."""
    person = Identifiers(email=f"person-{next(_people)}@example.com")
    return IdentifyRequest(identifiers=person, anonymous_id=anonymous_id, data_fields_json='{"plan":"gold"}')


async def identify_flatness(stage: Stage) -> list[Figure]:
    """p50 of Identify for an anonymous_id with 1,000,000 stored events over p50 for one with 10.

    Two ids of each size take turns, each call for a person who is new. After each round the links are deleted behind
    the service's back, so that few ids give many calls; the worker is frozen, so the events are stored all the while.
    """
    big = await big_visitors(stage, _BIG_VISITORS)
    small = [f"small-{number}" for number in range(_BIG_VISITORS)]
    for anonymous_id in small:
        await visitor(stage, anonymous_id, _FEW_EVENTS)
    await stage.fresh("anonymous_events")
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(_WARM_UP_ROUNDS + _ROUNDS):
        for pair in zip(big, small, strict=True):
            for anonymous_id in pair if number % 2 else reversed(pair):
                taken = await stage.milliseconds(stage.identity.Identify, identify_request(anonymous_id))
                if number >= _WARM_UP_ROUNDS:
                    times[anonymous_id in big].append(taken)
        await _free(stage)
    for anonymous_id in big:
        count = await stage.database.fetchval(
            "SELECT count(*) FROM anonymous_events WHERE anonymous_id = $1", anonymous_id
        )
        if count != EVENTS:
            raise NotMeasuredError(f"{anonymous_id} has {count} events, not {EVENTS}")
    note = f"p50 of {len(times[True])} calls for ids with {EVENTS:,} events, floor: as many for ids with {_FEW_EVENTS}"
    return [Figure("identify_flatness", median(times[True]), "ms", median(times[False]), note)]


async def _free(stage: Stage) -> None:
    """Makes linked visitors nobody's again."""
    for table, condition in (("identifiers", "kind = 3"), ("merges", "true"), ("moves", "true"), ("intents", "true")):
        await stage.database.execute(f"DELETE FROM {table} WHERE project_id = $1 AND {condition}", PROJECT)


async def visible_at_once(stage: Stage) -> list[Figure]:
    """Events of 1,000,000 that ListEvents, called right after Identify and paged to the end, leaves out or repeats.

    The worker moves the events meanwhile: oldest first, while the pages come newest first.
    """
    [anonymous_id] = await big_visitors(stage, 1)
    stage.visitors.remove(anonymous_id)
    await stage.fresh("anonymous_events")
    with stage.working():
        await stage.settle()
        answer = await stage.identity.Identify(identify_request(anonymous_id), metadata=stage.metadata)
        if answer.link.outcome != LINK_OUTCOME_LINKED:
            raise NotMeasuredError("the visitor was linked already")
        seen: set[str] = set()
        listed, token, moved_during = 0, "", set()
        while True:
            page = await stage.events.ListEvents(
                ListEventsRequest(
                    profile_id=answer.profile.profile_id,
                    page_size=_PAGE,
                    page_token=token,
                    data_format=DATA_FORMAT_JSON,
                ),
                metadata=stage.metadata,
                timeout=20,
            )
            listed += len(page.events)
            seen.update(event.event_id for event in page.events if event.anonymous_id == anonymous_id)
            token = page.next_page_token
            if not token:
                break
            if listed % 50_000 == 0:
                moved_during.add(
                    await stage.database.fetchval(
                        "SELECT moved_event_count FROM merges WHERE project_id = $1 AND anonymous_id = $2",
                        PROJECT,
                        anonymous_id,
                    )
                )
        await stage.settle()
    wrong = EVENTS - len(seen) + listed - len(seen)
    note = (
        f"events left out or repeated in {listed // _PAGE:,} pages, floor: the events there are; "
        f"the pages saw {len(moved_during - {0, EVENTS})} stages of the move"
    )
    return [Figure("visible_at_once", wrong, "events", EVENTS, note)]
