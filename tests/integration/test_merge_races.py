"""Merges, links, undos, late events and half-done moves in every order: a plain model says what reads must show."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import grpc
import pytest

from onefold.config import Settings
from onefold.db.queries import Connection
from onefold.intents import store as intents
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_ALREADY_LINKED,
    LINK_OUTCOME_LINKED,
    LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE,
    MERGE_OUTCOME_MERGED,
    MERGE_OUTCOME_SAME_PROFILE,
    UNDO_OUTCOME_ALREADY_UNDONE,
    UNDO_OUTCOME_UNDONE,
)
from onefold.v1.profile_pb2 import Identifiers
from onefold.workflows import moving
from support.client import Client, email, failure, read_failure
from support.holding import held, until_waiting
from support.merging import fields, identify, merge, profile, put, undo
from support.world import World

_GRACE: Final = timedelta(minutes=5)
_REDIRECT: Final = timedelta(minutes=5)
_ANONYMOUS: Final = timedelta(days=30)
_UNDO: Final = timedelta(days=30)
_WAITS: Final = [timedelta(minutes=2), timedelta(minutes=6), timedelta(days=16)]


@dataclass
class Told:
    """An event as the model knows it: its place in a timeline, whose it is, and the merges by which it got there."""

    name: str
    time: timedelta
    # A profile's id, or an anonymous_id while it is nobody's.
    owner: str
    path: list[str]


@dataclass
class Entry:
    """A merge as the model knows it."""

    merge_id: str
    source: str
    target: str
    is_link: bool
    time: timedelta
    # The source's own email, for a merge of profiles.
    name: str = ""
    undone: bool = False


@dataclass
class Link:
    """Whose an anonymous_id is, since when, and by which merges."""

    owner: str
    path: list[str]
    grace_end: timedelta


@dataclass
class Model:
    """What SPEC says, in dictionaries."""

    clock: timedelta = timedelta(0)
    # Who is there, by profile_id; and the email that is theirs.
    alive: dict[str, str] = field(default_factory=dict)
    # Emails that a merge left: whom they lead to, until when, and by which merges.
    redirects: dict[str, tuple[str, timedelta, list[str]]] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    events: list[Told] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def resolve(self, name: str) -> str | None:
        """Whom an email leads to."""
        for profile_id, own in self.alive.items():
            if own == name:
                return profile_id
        left = self.redirects.get(name)
        return left[0] if left and self.clock < left[1] else None

    def track_anonymous(self, anonymous_id: str, name: str) -> None:
        """A3 A5: within the grace an event follows its id."""
        link = self.links.get(anonymous_id)
        if link and self.clock <= link.grace_end:
            self.events.append(Told(name, self.clock, link.owner, list(link.path)))
        else:
            self.events.append(Told(name, self.clock, anonymous_id, []))

    def link(self, anonymous_id: str, profile_id: str, merge_id: str) -> None:
        """A2 A3: everything that the id has and that is not dead belongs to the person."""
        self.links[anonymous_id] = Link(profile_id, [merge_id], self.clock + _GRACE)
        self.entries.append(Entry(merge_id, anonymous_id, profile_id, True, self.clock))
        for event in self.events:
            if event.owner == anonymous_id and self.clock < event.time + _ANONYMOUS:
                event.owner = profile_id
                event.path.append(merge_id)

    def merge(self, source: str, target: str, merge_id: str) -> None:
        """I16 I17: everything of the source is the target's, and its names lead there."""
        name = self.alive.pop(source)
        self.entries.append(Entry(merge_id, source, target, False, self.clock, name))
        for event in self.events:
            if event.owner == source:
                event.owner = target
                event.path.append(merge_id)
        for link in self.links.values():
            if link.owner == source:
                link.owner = target
                link.path.append(merge_id)
        for left, (owner, end, path) in self.redirects.items():
            if owner == source:
                self.redirects[left] = (target, end, [*path, merge_id])
        self.redirects[name] = (target, self.clock + _REDIRECT, [merge_id])

    def refusal(self, entry: Entry) -> str:
        """Why an undo is refused: too late, a later merge took the target away, or the name is somebody else's."""
        if self.clock >= entry.time + _UNDO:
            return "MERGE_NOT_UNDOABLE"
        if any(later.source == entry.target and not later.undone for later in self.entries[self._after(entry) :]):
            return "MERGE_BUILT_ON"
        left = self.redirects.get(entry.name)
        left_by_others = left is not None and left[2][0] != entry.merge_id and self.clock < left[1]
        if not entry.is_link and (entry.name in self.alive.values() or left_by_others):
            return "SOURCE_IDENTIFIER_TAKEN"
        return ""

    def _after(self, entry: Entry) -> int:
        return self.entries.index(entry) + 1

    def undo(self, entry: Entry) -> None:
        """I19: what came by the merge goes back to where it came from."""
        entry.undone = True
        for event in self.events:
            if entry.merge_id in event.path:
                event.owner = entry.source
                del event.path[event.path.index(entry.merge_id) :]
        if entry.is_link:
            del self.links[entry.source]
            return
        self.alive[entry.source] = entry.name
        self.redirects.pop(entry.name, None)
        for link in self.links.values():
            if entry.merge_id in link.path:
                link.owner = entry.source
                del link.path[link.path.index(entry.merge_id) :]
        for left, (_, end, path) in list(self.redirects.items()):
            if entry.merge_id in path:
                self.redirects[left] = (entry.source, end, path[: path.index(entry.merge_id)])

    def timeline(self, owner: str) -> list[str]:
        """The names of an owner's events, newest first; a visitor's are gone when they are 30 days old."""
        return [
            event.name
            for event in reversed(self.events)
            if event.owner == owner and (owner in self.alive or self.clock < event.time + _ANONYMOUS)
        ]


@dataclass
class Walk:
    """A random walk over the API, with the worker stepped in between, checked against the model after every step."""

    client: Client
    world: World
    chance: random.Random
    model: Model = field(default_factory=Model)
    log: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=lambda: [f"{letter}@example.com" for letter in "abcd"])
    anonymous_ids: list[str] = field(default_factory=lambda: ["x", "y", "z"])
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def begin(self) -> None:
        """Makes the people, each with an event of their own."""
        for name in self.names:
            self.model.alive[await put(self.client, email(name))] = name
            await self.track(name)

    async def step(self) -> None:
        """One random step."""
        steps: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (3, lambda: self.track(self.chance.choice(self.names))),
            (4, lambda: self.track_anonymous(self.chance.choice(self.anonymous_ids))),
            (4, lambda: self.identify(self.chance.choice(self.anonymous_ids), self.chance.choice(self.names))),
            (4, lambda: self.merge(*self.chance.sample(self.names, 2))),
            (5, self.again),
            (6, self.undo),
            (6, self.work),
            (1, self.settle),
            (2, lambda: self.wait(self.chance.choice(_WAITS))),
            (1, lambda: self.put(self.chance.choice(self.names))),
        ]
        weights = [weight for weight, _ in steps]
        [(_, run)] = self.chance.choices(steps, weights)
        await run()

    async def put(self, name: str) -> None:
        self.log.append(f"put {name}")
        profile_id = await put(self.client, email(name))
        owner = self.model.resolve(name)
        if owner is None:
            # The name is free again, and somebody new arises under it.
            assert profile_id not in {entry.source for entry in self.model.entries} | self.model.alive.keys()
            self.model.alive[profile_id] = name
        else:
            assert profile_id == owner

    async def track(self, name: str) -> None:
        number = next(self.numbers)
        owner = self.model.resolve(name)
        self.log.append(f"track {name} e{number}")
        if owner is None:
            await failure(self.client.track(identifiers=email(name), name=f"e{number}"))
            return
        await self.client.track(identifiers=email(name), name=f"e{number}")
        self.model.events.append(Told(f"e{number}", self.model.clock, owner, []))

    async def track_anonymous(self, anonymous_id: str) -> None:
        number = next(self.numbers)
        self.log.append(f"track {anonymous_id} e{number}")
        await self.client.track(anonymous_id=anonymous_id, name=f"e{number}")
        self.model.track_anonymous(anonymous_id, f"e{number}")

    async def identify(self, anonymous_id: str, name: str) -> None:
        owner = self.model.resolve(name)
        if owner is None:
            return
        self.log.append(f"identify {name} {anonymous_id}")
        link = await identify(self.client, email(name), anonymous_id)
        standing = self.model.links.get(anonymous_id)
        if standing is None:
            assert link.outcome == LINK_OUTCOME_LINKED
            self.model.link(anonymous_id, owner, link.merge_id)
        elif standing.owner == owner:
            assert link.outcome == LINK_OUTCOME_ALREADY_LINKED
        else:
            assert link.outcome == LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE

    async def merge(self, source_name: str, target_name: str) -> None:
        source, target = self.model.resolve(source_name), self.model.resolve(target_name)
        if source is None or target is None:
            return
        self.log.append(f"merge {source_name} {target_name}")
        merged = await merge(self.client, email(source_name), email(target_name))
        assert merged.survivor.profile_id == target
        if source == target:
            assert merged.outcome == MERGE_OUTCOME_SAME_PROFILE
        else:
            assert merged.outcome == MERGE_OUTCOME_MERGED
            self.model.merge(source, target, merged.merge.merge_id)

    async def undo(self) -> None:
        if not self.model.entries:
            return
        entry = self.chance.choice(self.model.entries[-4:])
        number = self.model.entries.index(entry)
        self.log.append(f"undo #{number} {'link' if entry.is_link else 'merge'} {entry.name or entry.source}")
        refusal = "" if entry.undone else self.model.refusal(entry)
        if refusal:
            assert (await failure(undo(self.client, entry.merge_id))).reason == refusal
            return
        undone = await undo(self.client, entry.merge_id)
        if entry.undone:
            assert undone.outcome == UNDO_OUTCOME_ALREADY_UNDONE
        else:
            assert undone.outcome == UNDO_OUTCOME_UNDONE
            self.model.undo(entry)

    async def again(self) -> None:
        """Merges or links once more what was undone, which meets whatever the undo has left to be moved."""
        undone = [entry for entry in self.model.entries[-4:] if entry.undone]
        if not undone:
            return
        entry = self.chance.choice(undone)
        target = self.model.alive.get(entry.target)
        if target is None:
            return
        if entry.is_link:
            await self.identify(entry.source, target)
        else:
            await self.merge(entry.name, target)

    async def work(self) -> None:
        """A worker takes some intent, does a chunk or two, and gives it back."""
        due = await self.world.due(self.client.project_id)
        if not due:
            return
        lease = await self.world.take(self.client.project_id, self.chance.choice(due))
        assert lease is not None
        position, count = None, self.chance.randint(1, 3)
        self.log.append(f"work {count}")
        for _ in range(count):
            position = await self.world.chunk(lease, position)
            if position is None:
                return
            await self.check()
        await self.world.database.transact(lambda connection: intents.release(connection, lease))

    async def settle(self) -> None:
        self.log.append("settle")
        await self.world.settle(self.client.project_id)
        self.model.clock += timedelta(seconds=17)

    async def wait(self, by: timedelta) -> None:
        self.log.append(f"wait {by}")
        await self.world.pass_time(self.client.project_id, by)
        self.model.clock += by

    async def check(self) -> None:
        """Compares every timeline, in small pages and in one, with the model's."""
        for profile_id in self.model.alive:
            expected = self.model.timeline(profile_id)
            for page_size in (2, 500):
                assert await self.client.names(profile_id=profile_id, page_size=page_size) == expected
        for anonymous_id in self.anonymous_ids:
            assert await self.client.names(anonymous_id=anonymous_id, page_size=2) == self.model.timeline(anonymous_id)
        for name in self.names:
            owner = self.model.resolve(name)
            if owner is not None:
                assert await self.client.names(identifiers=email(name)) == self.model.timeline(owner)


@pytest.mark.parametrize("seed", range(8))
async def test_every_timeline_is_right_after_every_step(
    email_project: Client, world: World, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """I16 I17 I19 A2 A3 A4 A5 E8 F36 F39 F46: merges, links, undos, late events, half-done moves, in any order."""
    monkeypatch.setattr(moving, "CHUNK_EVENTS", 2)
    walk = Walk(email_project, world, random.Random(seed))
    await walk.begin()
    try:
        for _ in range(30):
            await walk.step()
            await walk.check()
        await walk.settle()
        await walk.settle()
        await walk.check()
        assert await world.open_intents(email_project.project_id) == 0
        assert await world.value("SELECT count(*) FROM moves WHERE project_id = $1", email_project.project_id) == 0
    except BaseException as error:
        error.add_note("The walk was: " + "; ".join(walk.log))
        raise


# --- together --------------------------------------------------------------------------------------------------------

A, B, C, D = (email(f"{letter}@example.com") for letter in "abcd")


async def test_merged_both_ways_at_once(email_project: Client, world: World) -> None:
    """F35: one of the two wins, the other says SAME_PROFILE with the same survivor, and neither fails."""
    c = email_project
    for number in range(15):
        one, other = email(f"a{number}@example.com"), email(f"b{number}@example.com")
        for who in (one, other):
            await put(c, who)
            await c.track(identifiers=who, name="own")
        answers = await asyncio.gather(merge(c, one, other), merge(c, other, one))
        assert sorted(answer.outcome for answer in answers) == [MERGE_OUTCOME_MERGED, MERGE_OUTCOME_SAME_PROFILE]
        [survivor] = {answer.survivor.profile_id for answer in answers}
        for who in (one, other):
            assert (await profile(c, who)).profile_id == survivor
            assert await c.names(identifiers=who) == ["own", "own"]
    assert await world.value("SELECT count(*) FROM merges WHERE project_id = $1", c.project_id) == 15


@pytest.mark.parametrize("order", list(itertools.permutations([(A, B), (B, C), (C, D)])))
async def test_a_chain_in_any_order_ends_at_its_last(
    email_project: Client, order: tuple[tuple[Identifiers, Identifiers], ...]
) -> None:
    """F36 F37: everybody resolves to the last, and the merge that closes a circle is a no-op naming the survivor."""
    c = email_project
    last = ""
    for who in (A, B, C, D):
        last = await put(c, who)
        await c.track(identifiers=who, name=who.email[0])
    for source, target in order:
        assert (await merge(c, source, target)).outcome == MERGE_OUTCOME_MERGED
    for source, target in itertools.permutations((A, B, C, D), 2):
        closing = await merge(c, source, target)
        assert (closing.outcome, closing.survivor.profile_id) == (MERGE_OUTCOME_SAME_PROFILE, last)
    for who in (A, B, C, D):
        assert await c.names(identifiers=who) == ["d", "c", "b", "a"]


async def test_a_circle_at_once(email_project: Client) -> None:
    """F35 F36 F37: of four merges that make a circle three happen and one is a no-op, whatever their order."""
    c = email_project
    for number in range(5):
        ring = [email(f"{letter}{number}@example.com") for letter in "abcd"]
        for who in ring:
            await put(c, who)
            await c.track(identifiers=who, name="own")
        answers = await asyncio.gather(*(merge(c, ring[n], ring[(n + 1) % 4]) for n in range(4)))
        assert sorted(answer.outcome for answer in answers) == [*[MERGE_OUTCOME_MERGED] * 3, MERGE_OUTCOME_SAME_PROFILE]
        [survivor] = {(await profile(c, who)).profile_id for who in ring}
        assert await c.names(profile_id=survivor) == ["own"] * 4


@pytest.mark.parametrize(("first", "value"), [("update", "of b"), ("merge", "of a")])
async def test_an_update_of_the_source_during_the_merge(
    email_project: Client, settings: Settings, world: World, first: str, value: str
) -> None:
    """F38: before the merge it is the source's and the target's value wins; after it, it is the target's newest."""
    c = email_project
    source_id = await put(c, A)
    target_id = await put(c, B, '{"both":"of b"}')
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "merge": lambda: merge(c, A, B),
        "update": lambda: put(c, A, '{"both":"of a","only":"of a"}'),
    }
    hold = "SELECT FROM profiles WHERE project_id = $1 AND profile_id = $2 FOR UPDATE"
    tasks = []
    async with held(settings, hold, c.project_id, UUID(source_id)):
        for count, name in enumerate([first, *(calls.keys() - {first})], start=1):
            tasks.append(asyncio.ensure_future(calls[name]()))
            await until_waiting(world, count)
    await asyncio.gather(*tasks)
    assert await fields(c, A) == await fields(c, B) == {"both": value, "only": "of a"}
    assert await put(c, A, '{"both":"newest"}') == target_id
    assert await fields(c, B) == {"both": "newest", "only": "of a"}


async def test_events_beside_a_merge(email_project: Client, world: World) -> None:
    """F32 F38 E8: whatever is told of source, target and visitor while they are merged is the target's, once."""
    c = email_project
    for number in range(5):
        one, other, visitor = email(f"a{number}@example.com"), email(f"b{number}@example.com"), f"x{number}"
        for who in (one, other):
            await put(c, who)
        await identify(c, one, visitor)
        subjects: list[dict[str, Any]] = [{"identifiers": one}, {"identifiers": other}, {"anonymous_id": visitor}]
        told = [c.track(name=f"e{n}", **subjects[n % 3]) for n in range(12)]
        await asyncio.gather(*told[:6], merge(c, one, other), *told[6:])
        for _ in range(2):
            for who in (one, other):
                assert sorted(await c.names(identifiers=who)) == sorted(f"e{n}" for n in range(12))
            assert await c.names(anonymous_id=visitor) == []
            await world.work_off(c.project_id)


async def test_undone_twice_at_once_beside_new_events(email_project: Client, world: World) -> None:
    """F46: one undo wins, the other says so, and each event stays with whom its answer named."""
    c = email_project
    for number in range(5):
        one, other = email(f"a{number}@example.com"), email(f"b{number}@example.com")
        ids = [await put(c, who) for who in (one, other)]
        merged = await merge(c, one, other)
        first, second, *told = await asyncio.gather(
            undo(c, merged.merge.merge_id),
            undo(c, merged.merge.merge_id),
            *(c.track(identifiers=one, name=f"e{n}") for n in range(4)),
        )
        assert {first.outcome, second.outcome} == {UNDO_OUTCOME_UNDONE, UNDO_OUTCOME_ALREADY_UNDONE}
        for _ in range(2):
            for profile_id in ids:
                expected = [f"e{n}" for n, result in enumerate(told) if result.profile_id == profile_id]
                assert sorted(await c.names(profile_id=profile_id)) == expected
            await world.settle(c.project_id)


async def test_an_undo_beside_the_merge_that_would_build_on_it(email_project: Client) -> None:
    """F46 I19: either the undo comes first and only the target goes on, or it is refused naming the merge."""
    c = email_project
    for number in range(8):
        people = [email(f"{letter}{number}@example.com") for letter in "abc"]
        for who in people:
            await put(c, who)
            await c.track(identifiers=who, name=who.email[0])
        merged = await merge(c, people[0], people[1])
        undone, later = await asyncio.gather(
            undo(c, merged.merge.merge_id), merge(c, people[1], people[2]), return_exceptions=True
        )
        assert not isinstance(later, BaseException)
        assert later.outcome == MERGE_OUTCOME_MERGED
        if isinstance(undone, grpc.aio.AioRpcError):
            told = read_failure(undone)
            assert (told.reason, told.metadata) == ("MERGE_BUILT_ON", {"merge_id": later.merge.merge_id})
            assert await c.names(identifiers=people[0]) == ["c", "b", "a"]
        else:
            assert await c.names(identifiers=people[0]) == ["a"]
        assert (await profile(c, people[1])).profile_id == later.survivor.profile_id


@pytest.mark.parametrize("kind", ["link", "merge"])
async def test_undone_while_a_chunk_is_being_moved(email_project: Client, world: World, kind: str) -> None:
    """I19 F46: an undo that meets a worker in the middle of a chunk waits for it, and neither fails.

    The chunk has its intent when the undo begins; it then moves its rows and counts them.
    """
    c = email_project
    await put(c, A)
    if kind == "link":
        await c.track(anonymous_id="x", name="one")
        merge_id = (await identify(c, B, "x")).merge_id
    else:
        await c.track(identifiers=A, name="one")
        await put(c, B)
        merge_id = (await merge(c, A, B)).merge.merge_id
    [intent_id] = await world.due(c.project_id)
    lease = await world.take(c.project_id, intent_id)
    assert lease is not None
    tasks: list[asyncio.Task[Any]] = []

    async def chunk(connection: Connection) -> None:
        await intents.renew(connection, lease)
        tasks.append(asyncio.create_task(undo(c, merge_id)))
        await until_waiting(world, 1)
        await moving.move_chunk(connection, lease, None)

    await world.database.transact(chunk)
    assert (await tasks[0]).outcome == UNDO_OUTCOME_UNDONE
    for _ in range(2):
        assert await c.names(identifiers=B) == []
        subject = {"anonymous_id": "x"} if kind == "link" else {"identifiers": A}
        assert await c.names(**subject) == ["one"]
        await world.settle(c.project_id)


async def test_a_link_undone_beside_late_events(email_project: Client, world: World) -> None:
    """F32 I19: an event of the id told while its link is undone is the visitor's when both have returned, once."""
    c = email_project
    for number in range(5):
        visitor = f"x{number}"
        link = await identify(c, A, visitor)
        told = [c.track(anonymous_id=visitor, name=f"e{n}") for n in range(8)]
        await asyncio.gather(*told[:4], undo(c, link.merge_id), *told[4:])
        for _ in range(2):
            assert sorted(await c.names(anonymous_id=visitor)) == [f"e{n}" for n in range(8)]
            assert await c.names(identifiers=A) == []
            await world.work_off(c.project_id)
