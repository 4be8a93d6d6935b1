"""The seeded clients: each does one thing after the other, over small pools of ids, so that collisions are the rule."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from chaos.calls import Journal, insist
from chaos.log import Entry, body_of, canary_of, event_time_of
from chaos.reads import Reader
from onefold.v1.device_pb2 import PLATFORM_APNS, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, TrackRequest, TrackStreamRequest
from onefold.v1.identity_service_pb2 import (
    ForgetProfileRequest,
    IdentifyRequest,
    MergeProfilesRequest,
    UndoMergeRequest,
    UpdateProfileRequest,
)
from onefold.v1.profile_pb2 import Identifiers

PEOPLE: Final = 5
SHARED_PEOPLE: Final = 3
SHARED_TOKENS: Final = 5
_VISITORS_SECONDS: Final = 15.0
_DUEL_SECONDS: Final = 20.0


def identifiers(name: str) -> Identifiers:
    """How a person is named: some by email, some by user_id."""
    return Identifiers(email=name) if "@" in name else Identifiers(user_id=name)


def new_event(event_id: str, home: str, epoch: int) -> NewEvent:
    """The event of an id, always the same."""
    event = NewEvent(event_id=event_id, name="did", data_json=json.dumps(body_of(event_id, home)))
    moment = event_time_of(event_id, epoch)
    if moment is not None:
        event.event_time.FromMicroseconds(moment)
    if home.startswith("x:"):
        event.anonymous_id = home[2:]
    else:
        event.identifiers.CopyFrom(identifiers(home[2:]))
    return event


def micros(timestamp: Any) -> int:
    """A moment as an answer has it, in microseconds since 1970."""
    return int(timestamp.ToMicroseconds())


@dataclass
class Owned:
    """A person of a client's own, and who of the visitors linked to it is the client's own too."""

    name: str
    visitors: list[str] = field(default_factory=list)
    # Whether anything of it is shared with others, or was merged back and forth: such a one is not forgotten.
    is_entangled: bool = False


class ChaosClient:
    """One client."""

    def __init__(self, number: int, journal: Journal, reader: Reader, seed: int, epoch: int) -> None:
        self.number = number
        self.journal, self.model, self.callers = journal, journal.model, journal.callers
        self.reader = reader
        self.random = random.Random(f"{seed}-{number}")
        self.epoch = epoch
        self.count = 0
        self.people: list[Owned] = []
        self.visitors: list[str] = []
        self.undoable: list[tuple[str, str, str]] = []
        self.dueled = -1
        self.counter = 0
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
        names, weights = list(actions), list(actions.values())
        while self.journal.running:
            await self.fill()
            if len(self.people) < 2:
                # Nobody could be made: it is over, or nothing answers.
                await asyncio.sleep(0.1)
                continue
            await self.random.choices(names, weights)[0]()
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

    def request_id(self) -> str:
        self.count += 1
        return f"r{self.number}-{self.count}"

    # --- events ------------------------------------------------------------------------------------------------------

    def events(self, home: str, most: int) -> list[tuple[str, str]]:
        """New events for a person or a visitor."""
        self.count += 1
        many = self.random.choice([1, 1, self.random.randint(2, most), most])
        return [(f"e{self.number}-{self.count}-{each}", home) for each in range(many)]

    async def track(self, events: list[tuple[str, str]], **entry: Any) -> bool:
        """Tells events: one by Track, several by BatchTrack."""
        messages = [new_event(event_id, home, self.epoch) for event_id, home in events]
        if len(events) == 1:
            return await self.journal.call(
                "track",
                self.number,
                "Track",
                TrackRequest(event=messages[0]),
                lambda answer: {"results": [_result(answer.result)]},
                events=events,
                **entry,
            )
        return await self.journal.call(
            "track", self.number, "BatchTrack", BatchTrackRequest(events=messages), _results, events=events, **entry
        )

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
        """Several batches on a stream; what was not acknowledged when it broke is sent again."""
        home = self.random.choice([f"x:{self.shared_visitor()}", f"p:shared{self.random.randrange(SHARED_PEOPLE)}"])
        batches = [self.events(home, 20) for _ in range(self.random.randint(2, 6))]
        begun = [self.journal.begin("track", self.number, events=batch, stream=True) for batch in batches]
        requests = [
            TrackStreamRequest(sequence=number, events=[new_event(*event, self.epoch) for event in batch])
            for number, batch in enumerate(batches, 1)
        ]
        acknowledged = 0
        try:
            call = self.callers.next().events.TrackStream(timeout=10.0)
            for request in requests:
                await call.write(request)
            await call.done_writing()
            while (answer := await call.read()) is not grpc.aio.EOF:
                self.journal.end(begun[acknowledged], "ok", stragglers=False, **_results(answer))
                acknowledged += 1
        except grpc.aio.AioRpcError:
            # The rest is told by calls, with the same ids.
            pass
        except asyncio.InvalidStateError:
            # The stream ended under a write.
            pass
        for entry, request in list(zip(begun, requests, strict=True))[acknowledged:]:
            answer = await insist(self.callers, "BatchTrack", BatchTrackRequest(events=request.events))
            if answer.message is None:
                self.journal.end(entry, "unknown", stragglers=True)
            else:
                self.journal.end(entry, "ok", stragglers=True, **_results(answer.message))

    # --- people ------------------------------------------------------------------------------------------------------

    async def write(self, name: str, fields: dict[str, int]) -> bool:
        """UpdateProfile."""
        request = UpdateProfileRequest(
            identifiers=identifiers(name),
            data_fields_json=json.dumps({"canary": canary_of(f"p:{name}"), **fields}),
            request_id=self.request_id(),
        )
        return await self.journal.call(
            "update",
            self.number,
            "UpdateProfile",
            request,
            lambda answer: {"profile_id": answer.profile.profile_id},
            who=name,
            fields=fields,
        )

    def _field(self) -> dict[str, int]:
        self.counter += 1
        return {f"k{self.random.randrange(4)}": self.counter}

    async def update(self) -> None:
        await self.write(self.someone().name, self._field())

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

    async def identify_as(self, name: str, visitor: str) -> bool:
        """Identify."""
        fields = self._field()
        request = IdentifyRequest(
            identifiers=identifiers(name),
            data_fields_json=json.dumps(fields),
            anonymous_id=visitor,
            request_id=self.request_id(),
        )
        return await self.journal.call(
            "identify",
            self.number,
            "Identify",
            request,
            lambda answer: {
                "profile_id": answer.profile.profile_id,
                "outcome": answer.link.outcome,
                "grace_end": micros(answer.link.grace_end_time),
            },
            who=name,
            x=visitor,
            fields=fields,
        )

    async def merge(self) -> None:
        source, target = self.random.sample(self.people, 2)
        request = MergeProfilesRequest(
            source=identifiers(source.name),
            target=identifiers(target.name),
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
        request = ForgetProfileRequest(identifiers=identifiers(owned.name), request_id=self.request_id())
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
            source=identifiers(pair[0]),
            target=identifiers(pair[1]),
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

    async def register_for(self, name: str, token: str) -> bool:
        """RegisterDevice."""
        device = NewDevice(
            token=token,
            platform=PLATFORM_APNS,
            application_name="app",
            data_fields_json=json.dumps({"of": canary_of(f"p:{name}")}),
        )
        request = RegisterDeviceRequest(identifiers=identifiers(name), device=device, request_id=self.request_id())
        return await self.journal.call(
            "register", self.number, "RegisterDevice", request, lambda answer: {}, who=name, token=token
        )

    async def disable(self) -> None:
        """Switches a token off for one person."""
        owned = self.someone()
        tokens = list(self.model.device_operations(owned.name))
        if tokens:
            await self.disable_for(owned.name, self.random.choice(tokens))

    async def disable_everywhere(self) -> None:
        """Switches a shared token off for everybody."""
        await self.disable_for(None, self.shared_token())

    async def disable_for(self, name: str | None, token: str) -> bool:
        """DisableDevice."""
        request = DisableDeviceRequest(token=token, request_id=self.request_id())
        if name is not None:
            request.identifiers.CopyFrom(identifiers(name))
        return await self.journal.call(
            "disable", self.number, "DisableDevice", request, lambda answer: {}, who=name, token=token
        )

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


def _result(result: Any, reason: str = "") -> tuple[int, str, bool, str]:
    return micros(result.receive_time), result.profile_id, result.duplicate, reason


def _results(answer: Any) -> Entry:
    """What became of the events of a batch: each has a result or a reason."""
    return {"results": [_result(each.result, each.error.reason) for each in answer.results]}
