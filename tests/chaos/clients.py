"""The seeded clients: each does one thing after the other, over small pools of ids, so that collisions are the rule."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.calls import Journal
from chaos.log import canary_of
from chaos.operations import Operations
from chaos.reads import Reader, names
from onefold.v1.identity_service_pb2 import (
    ForgetProfileRequest,
    MergeProfilesRequest,
    UndoMergeRequest,
)

PEOPLE: Final = 5
SHARED_PEOPLE: Final = 3
SHARED_TOKENS: Final = 5
_VISITORS_SECONDS: Final = 15.0
_DUEL_SECONDS: Final = 20.0


@dataclass
class Owned:
    """A person of a client's own, and who of the visitors linked to it is the client's own too."""

    name: str
    visitors: list[str] = field(default_factory=list)
    # Whether anything of it is shared with others, or was merged back and forth: such a one is not forgotten.
    is_entangled: bool = False


class ChaosClient(Operations):
    """One client."""

    def __init__(self, number: int, journal: Journal, reader: Reader, seed: int, epoch: int) -> None:
        super().__init__(number, journal, reader, seed, epoch)
        self.people: list[Owned] = []
        self.visitors: list[str] = []
        self.undoable: list[tuple[str, str, str]] = []
        self.dueled = -1
        self.frozen_fields: set[str] = set()

    async def run(self, pause: float) -> None:
        """Does one thing after the other until told to stop."""
        actions: dict[Callable[[], Awaitable[Any]], float] = {
            self.track_person: 22,
            self.track_visitor: 10,
            self.track_shared_visitor: 9,
            self.track_shared_person: 6,
            self.tell_again: 3,
            self.stream: 3,
            self.update: 7,
            self.update_shared: 4,
            self.identify: 5,
            self.identify_shared: 6,
            self.merge: 2.5,
            self.undo: 1.5,
            self.register: 6,
            self.disable: 2,
            self.disable_everywhere: 2,
            self.forget: 1.5,
            self.duel: 3,
            self.read_person: 6,
            self.read_shared: 1,
            self.read_visitor: 2,
            self.read_devices: 3,
            self.read_profile: 4,
        }
        weights = list(actions.values())
        while self.journal.running:
            await self.fill()
            if len(self.people) < 2:
                # Nobody could be made: it is over, or nothing answers.
                await asyncio.sleep(0.1)
                continue
            await self.random.choices(list(actions), weights)[0]()
            await asyncio.sleep(self.random.uniform(0.0, 2 * pause))

    # --- who ---------------------------------------------------------------------------------------------------------

    async def fill(self) -> None:
        """Makes new people in the place of those that are gone or of whom something is unknown."""
        self.people = [each for each in self.people if not self.model.person(each.name).is_frozen]
        while len(self.people) < PEOPLE and self.journal.running:
            canary = f"cn{self.random.getrandbits(48):012x}"
            name = f"{canary}@example.com" if self.random.random() < 0.4 else f"u-{canary}"
            if await self.write(name, {}):
                self.people.append(Owned(name))
        while len(self.visitors) < 3:
            self.visitors.append(f"v-cn{self.random.getrandbits(48):012x}")

    def someone(self) -> Owned:
        return self.random.choice(self.people)

    def shared_visitor(self) -> str:
        slot = int(asyncio.get_running_loop().time() / _VISITORS_SECONDS)
        return f"shared-x{slot}-{self.random.randrange(4)}"

    def shared_token(self) -> str:
        return f"shared-token{self.random.randrange(SHARED_TOKENS)}"

    # --- events ------------------------------------------------------------------------------------------------------

    async def track_person(self) -> None:
        await self.track(self.events(f"p:{self.someone().name}", 40))

    async def track_visitor(self) -> None:
        await self.track(self.events(f"x:{self.random.choice(self._own_visitors())}", 20))

    def _own_visitors(self) -> list[str]:
        return [*self.visitors, *(each for owned in self.people for each in owned.visitors)]

    async def track_shared_visitor(self) -> None:
        await self.track(self.events(f"x:{self.shared_visitor()}", 10))

    async def track_shared_person(self) -> None:
        await self.track(self.events(f"p:shared{self.random.randrange(SHARED_PEOPLE)}", 10))

    async def tell_again(self) -> None:
        """Events whose ids other clients use at the same time, in an order of one's own."""
        slot = int(asyncio.get_running_loop().time() / 2.0)
        ids = [f"same-{slot}-{each}" for each in range(12)]
        self.random.shuffle(ids)
        await self.track([(each, "p:shared0") for each in ids[: self.random.randint(1, 12)]], shared_ids=True)

    async def stream(self) -> None:
        """Several batches on a stream."""
        shared = [f"x:{self.shared_visitor()}", f"p:shared{self.random.randrange(SHARED_PEOPLE)}"]
        await self.stream_to(self.random.choice(shared))

    # --- people ------------------------------------------------------------------------------------------------------

    async def update(self) -> None:
        await self.write(self.someone().name, self.new_field())

    async def update_shared(self) -> None:
        """A field that is this client's alone, of a person that all of them write to."""
        name = f"shared{self.random.randrange(SHARED_PEOPLE)}"
        if name not in self.frozen_fields:
            self.counter += 1
            if not await self.write(name, {f"f{self.number}": self.counter}):
                self.frozen_fields.add(name)

    async def identify(self) -> None:
        """Links a visitor of one's own."""
        owned = self.someone()
        if not self.visitors:
            return
        visitor = self.visitors.pop()
        if await self.identify_as(owned.name, visitor):
            owned.visitors.append(visitor)

    async def identify_shared(self) -> None:
        """Tries to link a visitor whom others try to link too."""
        owned = self.someone()
        owned.is_entangled = True
        await self.identify_as(owned.name, self.shared_visitor())

    async def merge(self) -> None:
        source, target = self.random.sample(self.people, 2)
        request = MergeProfilesRequest(
            source=names(source.name),
            target=names(target.name),
            allow_known_source=True,
            request_id=self.request_id(),
        )
        merged = await self.journal.call(
            "merge",
            self.number,
            "MergeProfiles",
            request,
            lambda answer: {"outcome": answer.outcome, "merge_id": answer.merge.merge_id},
            source=source.name,
            target=target.name,
        )
        if merged:
            self.people.remove(source)
            target.visitors += source.visitors
            target.is_entangled |= source.is_entangled
            self.undoable.append((next(reversed(self.model.merges)), source.name, target.name))

    async def undo(self) -> None:
        """Takes a merge back whose target is still what it was merged into. The source is left alone from then on."""
        targets = {owned.name: owned for owned in self.people}
        self.undoable = [each for each in self.undoable if each[2] in targets]
        if not self.undoable:
            return
        merge_id, source, target = self.undoable.pop(self.random.randrange(len(self.undoable)))
        targets[target].is_entangled = True
        await self.journal.call(
            "undo",
            self.number,
            "UndoMerge",
            UndoMergeRequest(merge_id=merge_id, request_id=self.request_id()),
            lambda answer: {"outcome": answer.outcome},
            merge_id=merge_id,
            source=source,
            target=target,
        )

    async def forget(self) -> None:
        """Forgets a person, sometimes while something of theirs is on its way."""
        free = [owned for owned in self.people if not owned.is_entangled]
        if not free:
            return
        owned = self.random.choice(free)
        request = ForgetProfileRequest(identifiers=names(owned.name), request_id=self.request_id())
        forgetting: Awaitable[bool] = self.journal.call(
            "forget", self.number, "ForgetProfile", request, lambda answer: {}, who=owned.name
        )
        if self.random.random() < 0.5:
            beside = self.track(self.events(f"p:{owned.name}", 5), beside_forget=True)
            await asyncio.gather(forgetting, beside)
        else:
            await forgetting
        self.people.remove(owned)

    async def duel(self) -> None:
        """Merges two people into each other, against others who do it the other way round."""
        slot = int(asyncio.get_running_loop().time() / _DUEL_SECONDS)
        if slot == self.dueled:
            return
        self.dueled = slot
        pair = [f"duel{slot}-a", f"duel{slot}-b"]
        for name in pair:
            if not await self.track(self.events(f"p:{name}", 3)):
                return
        if self.number % 2:
            pair.reverse()
        request = MergeProfilesRequest(
            source=names(pair[0]),
            target=names(pair[1]),
            allow_known_source=True,
            request_id=self.request_id(),
        )
        await self.journal.call(
            "duel",
            self.number,
            "MergeProfiles",
            request,
            lambda answer: {"outcome": answer.outcome, "survivor": answer.survivor.profile_id},
            pair=f"duel{slot}",
            a=f"duel{slot}-a",
            b=f"duel{slot}-b",
        )

    # --- devices -----------------------------------------------------------------------------------------------------

    async def register(self) -> None:
        name = self.someone().name
        token = self.shared_token() if self.random.random() < 0.7 else f"t-{canary_of(f'p:{name}')}"
        await self.register_for(name, token)

    async def disable(self) -> None:
        """Switches a token off for one person."""
        owned = self.someone()
        tokens = list(self.model.device_operations(owned.name))
        if tokens:
            await self.disable_for(owned.name, self.random.choice(tokens))

    async def disable_everywhere(self) -> None:
        """Switches a shared token off for everybody."""
        await self.disable_for(None, self.shared_token())

    # --- reads -------------------------------------------------------------------------------------------------------

    async def read_person(self) -> None:
        await self.reader.person(self.someone().name, self.random.randint(20, 500))

    async def read_shared(self) -> None:
        await self.reader.person(f"shared{self.random.randrange(SHARED_PEOPLE)}", 500)

    async def read_visitor(self) -> None:
        await self.reader.visitor(self.random.choice(self._own_visitors()))

    async def read_devices(self) -> None:
        await self.reader.devices(self.someone().name)

    async def read_profile(self) -> None:
        await self.reader.profile(self.someone().name)
