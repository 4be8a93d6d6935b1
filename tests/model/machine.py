"""The machine: calls of the real services, chunks of the workers' work, crashes, thefts of leases, and time, at random.

Nobody hears the doorbell here: workers find their work as the sweep does. Hypothesis is synchronous, so the machine
lives in a thread of its own and hands its calls to the loop that the server runs on.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.calls import Calls, Run, Surroundings, reason_of
from model.entities import Event, Key, Names, Wrote
from model.model import Model
from model.reads import Reads, said
from onefold.failpoints import COMMIT, COMMITTED
from onefold.intents.store import Lease, LeaseLostError
from onefold.v1.activation_service_pb2 import CreateUnknownProfileRequest
from onefold.v1.device_pb2 import PLATFORM_FCM, NewDevice
from onefold.v1.devices_service_pb2 import DisableDeviceRequest, RegisterDeviceRequest
from onefold.v1.event_pb2 import EVENT_KIND_CUSTOM, EVENT_KIND_PURCHASE, NewEvent
from onefold.v1.events_service_pb2 import BatchTrackRequest, TrackRequest
from onefold.v1.identity_service_pb2 import (
    BatchUpdateProfilesRequest,
    DeleteProfileRequest,
    ForgetProfileRequest,
    IdentifyRequest,
    MergeProfilesRequest,
    ProfileUpdate,
    UndoMergeRequest,
    UnforgetProfileRequest,
    UpdateEmailRequest,
    UpdateProfileRequest,
    UpdateUserIdRequest,
)
from onefold.workflows.retention import keep_partitions, purge
from onefold.workflows.run import Ran, run_intent
from support.client import Client, timestamp
from support.crashing import KilledError, Place, crash_at
from support.placeholders import short_placeholder
from support.traces import rows_of

# Small pools, so that collisions are the rule. A placeholder is an email like any other, so one that may be generated
# is among them.
VISITOR = "6f0a3a52-91a5-4b0c-8f0b-1f2e3d4c5b6a"
USER_IDS = ["u1", "u2", "u3", VISITOR]
EMAILS = ["a@example.com", "b@example.com", "c@example.com", short_placeholder("u1")]
ANONYMOUS_IDS = ["x", "y", "z"]
TOKENS = ["t1", "t2"]
HOUR, DAY = 3_600.0, 86_400.0
# No sum of the short ones comes near 5 minutes from below: what a slow machine adds does not change an outcome.
PASSES = {"40 s": 40.0, "5 min 1 s": 301.0, "2 days": 2 * DAY, "31 days": 31 * DAY}

# Which of the two identifiers are given, and the two.
Who = tuple[str, str, str]
WHO = st.tuples(
    st.sampled_from(["email", "user_id", "email", "user_id", "both"]),
    st.sampled_from(EMAILS),
    st.sampled_from(USER_IDS),
)
FIELDS = st.dictionaries(st.sampled_from(["plan", "size"]), st.integers(1, 3), max_size=2)
Update = tuple[Who, dict[str, int], bool]
UPDATE = st.tuples(WHO, FIELDS, st.booleans())
SOMETIMES = st.sampled_from([False, False, False, True])
# Where a server or a worker ends: before or after its commit, or at some statement.
PLACES = st.sampled_from([COMMIT, COMMITTED, *range(1, 16)])


@dataclass(eq=False)
class Held:
    """A lease that some worker believes to have, and how far it is."""

    lease: Lease
    position: Any = None


class Onefold(RuleBasedStateMachine):
    """One project, called and worked on at random."""

    around: Surroundings

    @initialize(
        project_type=st.sampled_from(["EMAIL", "USER_ID", "HYBRID"]), updates=st.lists(UPDATE, min_size=2, max_size=5)
    )
    def begin(self, project_type: str, updates: list[Update]) -> None:
        async def make() -> Client:
            return await self.around.make_project(project_type)

        client = self.around.do(make())
        names: list[Names] = [{"user_id": user_id} for user_id in USER_IDS]
        if project_type != "USER_ID":
            names += [{"email": email} for email in EMAILS]
        self.model = Model(project_type)
        self.calls = Calls(self.around, client, self.model)
        self.reads = Reads(client, self.model, names, ANONYMOUS_IDS, TOKENS)
        self.project_id = client.project_id
        self.world = self.around.world
        self.told: list[tuple[NewEvent, Run]] = []
        # Work that is due, all that ever was, and what workers are at.
        self.due: list[UUID] = []
        self.seen: list[UUID] = []
        self.held: list[Held] = []
        # Whether nothing can have changed since the reads were last compared.
        self.is_read = False
        self.around.example_count += 1
        self.update(updates)

    # --- calls -------------------------------------------------------------------------------------------------------

    @rule(updates=st.lists(UPDATE, min_size=1, max_size=3))
    def update(self, updates: list[Update]) -> None:
        """I4, I13: one profile, or a batch, which does what its updates would have done one by one."""
        made = (self.make_update(self.names(who), fields, prefers) for who, fields, prefers in updates)
        items, runs = zip(*made, strict=True)
        if len(items) == 1:
            self.calls.write(UpdateProfileRequest(**items[0]), self.calls.written, *runs)
        else:
            request = BatchUpdateProfilesRequest(updates=[ProfileUpdate(**item) for item in items])
            self.calls.write(request, self.calls.written, *runs)

    @rule(fields=FIELDS)
    def visit(self, fields: dict[str, int]) -> None:
        """U3: a visitor gets a profile."""
        request = CreateUnknownProfileRequest(user_id=VISITOR, data_fields_json=json.dumps(fields))
        placeholder = short_placeholder(VISITOR)
        self.calls.write(request, self.calls.visited, lambda _: self.model.visit(VISITOR, fields, placeholder))

    @rule(who=WHO, anonymous_id=st.sampled_from(ANONYMOUS_IDS), fields=FIELDS)
    def identify(self, who: Who, anonymous_id: str, fields: dict[str, int]) -> None:
        """I15."""
        names = self.names(who)
        request = IdentifyRequest(
            identifiers=said(names), data_fields_json=json.dumps(fields), anonymous_id=anonymous_id
        )
        self.calls.write(request, self.calls.identified, lambda _: self.model.identify(names, anonymous_id, fields))

    @rule(data=st.data(), count=st.integers(1, 4))
    def track(self, data: st.DataObject, count: int) -> None:
        """E1, E4: one event, or a batch, which does what its events would have done one by one."""
        events, runs = zip(*(self.draw_event(data) for _ in range(count)), strict=True)
        request = TrackRequest(event=events[0]) if count == 1 else BatchTrackRequest(events=events)
        self.calls.write(request, self.calls.tracked, *runs)

    @precondition(lambda self: self.model.live())
    @rule(data=st.data(), others=st.one_of(st.none(), st.none(), st.none(), st.tuples(WHO, WHO)), is_cautious=SOMETIMES)
    def merge(self, data: st.DataObject, others: tuple[Who, Who] | None, is_cautious: bool) -> None:
        """I16: two people who are there, the latest most of all, each by one of their names; or any names."""
        names = [self.names(who) for who in others or ()]
        people = self.model.live()[::-1]
        for label in ["source", "target"] if others is None else []:
            person = people[data.draw(st.integers(0, len(people) - 1), label)]
            people = [each for each in people if each is not person] or people
            kinds = sorted(person.names.keys() - ({"email"} if self.model.type == "USER_ID" else set()))
            kind = kinds[data.draw(st.integers(0, len(kinds) - 1), "kind")]
            names.append({kind: person.names[kind]})
        source, target = names
        request = MergeProfilesRequest(source=said(source), target=said(target), allow_known_source=not is_cautious)
        self.calls.write(request, self.calls.merged, lambda _: self.model.merge(source, target, not is_cautious))

    @precondition(lambda self: self.model.merges)
    @rule(data=st.data(), is_any=SOMETIMES)
    def undo(self, data: st.DataObject, is_any: bool) -> None:
        """I19: of a merge or association that stands, the latest most of all, or of any."""
        merges = [each for each in self.model.merges if not each.is_undone and not is_any] or self.model.merges
        merge = merges[-1 - data.draw(st.integers(0, len(merges) - 1), "merge")]
        request = UndoMergeRequest(merge_id=merge.merge_id)
        self.calls.write(request, self.calls.undone, lambda _: self.model.undo(merge))

    @precondition(lambda self: len(self.model.live()) > 1)
    @rule(what=st.sampled_from(["forget", "delete", "unforget"]), who=WHO)
    def erase(self, what: str, who: Who) -> None:
        """I20: forgetting, deleting, or letting back in: one rule, so that people live long enough to be merged."""
        names = self.names(who)
        if what == "delete":
            delete = DeleteProfileRequest(identifiers=said(names))
            self.calls.write(delete, self.calls.deleted, lambda _: self.model.delete(names))
            return
        if self.model.type != "HYBRID":
            # P3: by what identifies.
            names = {"email": who[1]} if self.model.type == "EMAIL" else {"user_id": who[2]}
        if what == "forget":
            forget = ForgetProfileRequest(identifiers=said(names))
            self.calls.write(forget, self.calls.forgotten, lambda _: self.model.forget(names))
        else:
            unforget = UnforgetProfileRequest(identifiers=said(names))
            self.calls.write(unforget, self.calls.unforgotten, lambda _: self.model.unforget(names))

    @rule(who=WHO, new=st.sampled_from([*EMAILS, *USER_IDS]))
    def rename(self, who: Who, new: str) -> None:
        """I12: another email or user_id."""
        names = self.names(who)
        key: Key = ("email", new) if "@" in new else ("user_id", new)
        request: Any = UpdateUserIdRequest(identifiers=said(names), new_user_id=new)
        if "@" in new:
            request = UpdateEmailRequest(identifiers=said(names), new_email=new)
        self.calls.write(request, self.calls.written, lambda _: self.model.rename(names, key))

    @rule(who=WHO, token=st.sampled_from(TOKENS), is_exclusive=SOMETIMES)
    def register(self, who: Who, token: str, is_exclusive: bool) -> None:
        """D1, D5: signing in."""
        names = self.names(who)
        device = NewDevice(token=token, platform=PLATFORM_FCM, application_name="app")
        request = RegisterDeviceRequest(identifiers=said(names), device=device, exclusive=is_exclusive)
        self.calls.write(request, self.calls.registered, lambda _: self.model.register(names, token, is_exclusive))

    @precondition(lambda self: self.model.operation)
    @rule(who=WHO, token=st.sampled_from(TOKENS), is_for_all=st.booleans())
    def disable(self, who: Who, token: str, is_for_all: bool) -> None:
        """D3: signing one person out, or everybody."""
        names = None if is_for_all else self.names(who)
        request = DisableDeviceRequest(token=token, identifiers=said(names) if names else None)
        self.calls.write(request, self.calls.disabled, lambda _: self.model.disable(names, token))

    @precondition(lambda self: self.calls.sent)
    @rule(data=st.data(), is_other=SOMETIMES)
    def send_again(self, data: st.DataObject, is_other: bool) -> None:
        """X1: an earlier request verbatim, or its request_id for another request."""
        request_id = data.draw(st.sampled_from([*self.calls.sent][::-1]), "request_id")
        sent = self.calls.sent[request_id]
        if not is_other:
            self.calls.write(sent.request, sent.check, *sent.runs)
        elif self.model.now < sent.end_time:
            names = said({"email": "other@example.com", "user_id": "other"})
            other = UpdateEmailRequest(identifiers=names, new_email="new@example.com", request_id=request_id)
            assert reason_of(self.calls.send(other)) == "REQUEST_ID_REUSED"

    @precondition(lambda self: self.calls.crash is None)
    @rule(place=PLACES)
    def crash(self, place: Place) -> None:
        """F1, F2, F3: the server that is sent the next write ends in the midst of it, and the caller sends it again."""
        self.calls.crash = place
        self.is_read = True

    # --- the workers, and time ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.due or self.held)
    @rule(data=st.data(), chunks=st.sampled_from([0, 1, 1, 2]), crash=st.one_of(st.none(), st.none(), PLACES))
    def work(self, data: st.DataObject, chunks: int, crash: Place | None) -> None:
        """F4: some chunks of what is due, or of what a worker is at, whose lease may be over; it may die in one."""
        index = data.draw(st.integers(0, len(self.held) + len(self.due) - 1), "intent")
        held = self.held[index] if index < len(self.held) else self.take(self.due[index - len(self.held)])
        for _ in range(chunks):
            self.chunk(held)
        if crash is not None:
            self.chunk(held, crash)

    @precondition(lambda self: self.due)
    @rule(data=st.data(), chunks=st.integers(0, 1), others_chunks=st.integers(1, 2))
    def freeze(self, data: st.DataObject, chunks: int, others_chunks: int) -> None:
        """F5: a worker sleeps past its lease, another one goes on, and the first wakes up."""
        mine = self.take(self.due[data.draw(st.integers(0, len(self.due) - 1), "intent")])
        for _ in range(chunks):
            self.chunk(mine)
        self.pass_seconds(40.0)
        if mine in self.held:
            other = self.take(mine.lease.intent.intent_id)
            for _ in range(others_chunks):
                self.chunk(other)
            self.chunk(mine)

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def work_twice(self, data: st.DataObject) -> None:
        """F6, F10: two jobs together for something that is due, or that was and may be done by now."""
        intents = self.due or self.seen
        intent_id = intents[data.draw(st.integers(0, len(intents) - 1), "intent")]

        async def both() -> list[Ran]:
            jobs = (run_intent(self.world.database, self.project_id, intent_id) for _ in range(2))
            return list(await asyncio.gather(*jobs))

        assert set(self.around.do(both())) - {Ran.NOTHING} == ({Ran.ENDED} if self.due else set())

    @rule(seconds=st.sampled_from(sorted(PASSES)), is_cleaned=st.booleans())
    def pass_time(self, seconds: str, is_cleaned: bool) -> None:
        """Time passes, and what is over may be dropped (A2)."""
        self.pass_seconds(PASSES[seconds])
        if is_cleaned:
            self.around.do(keep_partitions(self.world.database))
            self.around.do(purge(self.world.database))
            self.model.drop_redirects()

    # --- what must hold after every step -----------------------------------------------------------------------------

    @invariant()
    def reads_are_right(self) -> None:
        """Every read agrees with the model, however far the workers are."""
        if hasattr(self, "model"):
            self.around.step_count += 1
        if hasattr(self, "model") and not self.is_read:
            self.around.do(self.reads.compare())
            self.due = self.around.do(self.world.due(self.project_id))
            self.seen += [intent_id for intent_id in self.due if intent_id not in self.seen]
        self.is_read = False

    def teardown(self) -> None:
        """In the end all work is done, and every row lies with its owner."""
        if hasattr(self, "model") and sys.exc_info()[0] is None:
            for _ in range(3):
                # Leases end, and with the second pass what waits for stragglers.
                if self.around.do(self.world.open_intents(self.project_id)):
                    self.pass_seconds(40.0)
                    self.around.do(self.world.work_off(self.project_id))
            assert self.around.do(self.world.open_intents(self.project_id)) == 0
            self.around.do(self.reads.compare())
            self.around.do(self.reads.compare_tables(self.world))

    # --- how ---------------------------------------------------------------------------------------------------------

    def names(self, who: Who) -> Names:
        """The names that a request gives: USER_ID projects name nobody by email alone (P3)."""
        how, email, user_id = who
        names: Names = {} if how == "user_id" else {"email": email}
        return names if how == "email" and self.model.type != "USER_ID" else {**names, "user_id": user_id}

    def make_update(self, names: Names, fields: dict[str, int], prefers_user_id: bool) -> tuple[dict[str, Any], Run]:
        """The fields of an update, and what it does to the model."""
        placeholder = short_placeholder(names.get("user_id", "")) if prefers_user_id else ""
        item = {"identifiers": said(names), "data_fields_json": json.dumps(fields), "prefer_user_id": prefers_user_id}
        return item, lambda _: self.model.update(names, fields, placeholder)

    def draw_event(self, data: st.DataObject) -> tuple[NewEvent, Run]:
        """An event, which may have been told before, and what it does to the model."""
        is_again: bool = data.draw(SOMETIMES, "again")
        if is_again and self.told:
            return self.told[data.draw(st.integers(0, len(self.told) - 1), "which")]
        anonymous_id: str = data.draw(st.sampled_from(["", *ANONYMOUS_IDS]), "anonymous_id")
        names = self.names(data.draw(WHO, "who")) if not anonymous_id or data.draw(SOMETIMES, "both") else {}
        is_purchase = data.draw(SOMETIMES, "purchase")
        event_id = data.draw(st.sampled_from(["", "", "e1", "e2", "e3"]), "event_id")
        # One with an id has no time of its own, so that the same can be told again at any time.
        ages = [0.0, 0.0, 0.0, HOUR, 29 * DAY, 31 * DAY]
        age = 0.0 if event_id else data.draw(st.sampled_from(ages), "age")
        new = NewEvent(
            identifiers=said(names) if names else None,
            anonymous_id=anonymous_id,
            name="seen",
            kind=EVENT_KIND_PURCHASE if is_purchase else EVENT_KIND_CUSTOM,
            event_id=event_id,
        )
        if age:
            new.event_time.CopyFrom(timestamp(self.around.do(self.world.now()) - timedelta(seconds=age)))

        def run(answer: Any) -> tuple[Event | None, Wrote]:
            reason = reason_of(answer)
            event = Event(anonymous_id, new, anonymous_id, self.model.now - age, self.model.now, event_id)
            is_known = answer.result.duplicate if not reason else reason == "EVENT_ID_REUSED"
            return self.model.track(event, names, creates=is_purchase, erased_is_known=is_known)

        if event_id:
            self.told.append((new, run))
        return new, run

    def take(self, intent_id: UUID) -> Held:
        """A worker takes an intent that is due; a second one cannot have it then (F6)."""
        lease = self.around.do(self.world.take(self.project_id, intent_id))
        assert lease is not None
        assert self.around.do(self.world.take(self.project_id, intent_id)) is None
        self.held.append(Held(lease))
        return self.held[-1]

    def chunk(self, held: Held, crash: Place | None = None) -> None:
        """One chunk, unless the worker has ended. Without its lease, or killed before its commit, it writes nothing."""
        if held not in self.held:
            return
        select = "SELECT lease_token FROM intents WHERE project_id = $1 AND intent_id = $2"
        token = self.around.do(self.world.value(select, self.project_id, held.lease.intent.intent_id))
        is_lost = token != held.lease.token
        if not is_lost and crash is None:
            held.position = self.around.do(self.world.chunk(held.lease, held.position))
            if held.position is None:
                self.held.remove(held)
            return
        before = self.around.do(rows_of(self.world, self.project_id))
        with crash_at(crash or COMMITTED) as crashed:
            try:
                held.position = self.around.do(self.world.chunk(held.lease, held.position))
            except LeaseLostError:
                assert is_lost
            except KilledError:
                self.around.crash_count += 1
        is_written = not is_lost and crashed.place in ("", COMMITTED)
        assert (self.around.do(rows_of(self.world, self.project_id)) == before) is not is_written
        if is_lost or crashed.place or held.position is None:
            self.held.remove(held)

    def pass_seconds(self, seconds: float) -> None:
        """Lets time pass for the service and the model."""
        self.around.do(self.world.pass_time(self.project_id, timedelta(seconds=seconds)))
        self.model.now += seconds
