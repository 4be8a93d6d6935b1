"""The first page of a timeline: of a long one, and while a merge is open."""

from __future__ import annotations

from statistics import median
from typing import Final

from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.events_service_pb2 import ListEventsRequest
from onefold.v1.identity_service_pb2 import MergeProfilesRequest, UpdateProfileRequest
from onefold.v1.profile_pb2 import Identifiers

from .client import Stage
from .figure import Figure
from .seed import EVENTS, person_events
from .stage import PROJECT, NotMeasuredError

_MANY: Final = 5_000_000
_FEW: Final = 50_000
_PAGE: Final = 50
_ROUNDS: Final = 200
_WARM_UP_ROUNDS: Final = 20
_WHILE_MOVING_ROUNDS: Final = 5_000

# A timeline has neighbours. Without them the statistics are those of no service that is in use.
_OTHERS = """
INSERT INTO events (project_id, profile_id, event_time, event_id, receive_time, kind, name, data)
SELECT $1, md5((number % 20000)::text)::uuid, now() - interval '20 days' * (1 - number / 200000.0),
    uuidv7()::text, now(), 2, 'page viewed', '{"path": "/"}'
FROM generate_series(1, 200000) AS number
"""


async def timeline(stage: Stage) -> list[Figure]:
    """p50 of ListEvents' first page of 50.

    Of a person with 5,000,000 events over one with 50,000; and of a person with 50,000 into whom one with 1,000,000 is
    being merged over one with as many and no merge. The latter at the moment that the merge has begun, and again while
    the worker moves the events; the slower of the two counts. Whatever is compared takes turns, call by call.
    """
    people = {name: await _person(stage, name) for name in ("long", "short", "target", "source")}
    for name, events in (("short", _FEW), ("target", _FEW), ("source", EVENTS)):
        await person_events(stage, people[name], events)
    await stage.database.execute(_OTHERS, PROJECT)
    await person_events(stage, people["long"], _MANY)
    await stage.fresh("events")

    long, short = await _pages(stage, people["long"], people["short"], _ROUNDS)
    note = f"p50 of {_ROUNDS} first pages of {_PAGE} with {_MANY:,} events, floor: with {_FEW:,}"
    figures = [Figure("timeline_flatness", long, "ms", short, note)]

    answer = await stage.identity.MergeProfiles(
        MergeProfilesRequest(source=_named("source"), target=_named("target"), allow_known_source=True),
        metadata=stage.metadata,
    )
    begun = await _pages(stage, people["target"], people["short"], _ROUNDS)
    with stage.working():
        moving = await _pages(stage, people["target"], people["short"], _WHILE_MOVING_ROUNDS, answer.merge.merge_id)
        await stage.settle()
    slower, floor = max(begun, moving, key=lambda pair: pair[0] / pair[1])
    note = (
        f"p50 of first pages of {_PAGE}, {EVENTS:,} events being merged into {_FEW:,}: before the first is moved "
        f"{begun[0]:.2f} ms over {begun[1]:.2f}, while they are moved {moving[0]:.2f} ms over {moving[1]:.2f}; "
        "floor: no merge"
    )
    return [*figures, Figure("timeline_merge_flatness", slower, "ms", floor, note)]


async def _person(stage: Stage, name: str) -> str:
    answer = await stage.identity.UpdateProfile(UpdateProfileRequest(identifiers=_named(name)), metadata=stage.metadata)
    return answer.profile.profile_id


def _named(name: str) -> Identifiers:
    return Identifiers(email=f"timeline-{name}@example.com")


async def _pages(
    stage: Stage, profile_id: str, floor_profile_id: str, rounds: int, until_moved: str = ""
) -> tuple[float, float]:
    """p50 of the first page of two people, in ms; with a merge, for as long as it has events to move."""
    times: dict[str, list[float]] = {profile_id: [], floor_profile_id: []}
    for number in range(_WARM_UP_ROUNDS + rounds):
        for each in times if number % 2 else reversed(times):
            request = ListEventsRequest(profile_id=each, page_size=_PAGE, data_format=DATA_FORMAT_JSON)
            taken = await stage.milliseconds(stage.events.ListEvents, request)
            if number >= _WARM_UP_ROUNDS:
                times[each].append(taken)
        if until_moved and number % 20 == 0 and await _moved(stage, until_moved) == EVENTS:
            break
    if until_moved and len(times[profile_id]) < _WARM_UP_ROUNDS:
        raise NotMeasuredError("the events were moved before a page could be read")
    return median(times[profile_id]), median(times[floor_profile_id])


async def _moved(stage: Stage, merge_id: str) -> int:
    count: int = await stage.database.fetchval(
        "SELECT moved_event_count FROM merges WHERE project_id = $1 AND merge_id = $2", PROJECT, merge_id
    )
    return count
