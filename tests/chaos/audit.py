"""The audit: what the log says must be true, compared with the API and with the tables themselves."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
from collections import defaultdict
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any, Final

import asyncpg

from chaos.calls import ANSWERS, REQUESTS, Callers, insist, pages
from chaos.entities import GONE, Alternative, Person
from chaos.log import Entry, body_of, canary_of, event_time_of
from chaos.model import Model
from chaos.places import Findings, Place, Stored, bystanders, find_canaries, fingerprints, micros_of
from chaos.reads import names
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.devices_service_pb2 import ListDevicesRequest
from onefold.v1.events_service_pb2 import ListEventsRequest
from onefold.v1.identity_service_pb2 import GetProfileRequest

REPLAYS: Final = 1_000
_AT_A_TIME: Final = 8
_STORED: Final = """
SELECT event_id, profile_id, anonymous_id, receive_time, event_time, name, data FROM events WHERE project_id = $1
UNION ALL
SELECT event_id, NULL, anonymous_id, receive_time, event_time, name, data FROM anonymous_events WHERE project_id = $1
"""


class Audit:
    """One audit. `model` is brought to the one state that the database shows where the log leaves two."""

    def __init__(
        self, place: Place, model: Model, header: Entry, callers: Callers, log_offsets: Mapping[str, int] | None = None
    ) -> None:
        self.place, self.model, self.header, self.callers = place, model, header, callers
        # Where in the processes' logs the part begins that is looked at.
        self.log_offsets = log_offsets or {}
        self.findings = Findings()
        self.unknown_effective = 0
        self.replays = 0
        self.stored: dict[str, list[Stored]] = defaultdict(list)
        self.profiles: dict[str, Any] = {}
        self.profile_ids: dict[str, str] = {}
        self.stored_for: dict[str, set[str]] = defaultdict(set)

    async def run(self, replay_seed: int, *, replays: int = REPLAYS) -> Findings:
        """Everything, on a system that has come to rest. The last thing is to send so many earlier requests again."""
        self.connection: asyncpg.Connection[Any] = await asyncpg.connect(self.place.database_url)
        try:
            await self._look_for_rest()
            await self._load()
            self._settle_visitors()
            self._settle_duels()
            self._settle_alternatives()
            self._check_events()
            self._check_unknown()
            await self._check_people()
            await self._check_bystanders()
            await self._check_canaries()
            await self._replay(replay_seed, replays)
            self._read_logs()
        finally:
            await self.connection.close()
        for what in self.model.wrong_reads:
            self.findings.add("wrong_reads", what)
        for what in self.model.wrong_answers:
            self.findings.add("wrong_answers", what)
        for event_id in self.model.doubled_meanwhile:
            self.findings.add("doubled", f"{event_id} was stored twice for a while")
        return self.findings

    # --- what is there -----------------------------------------------------------------------------------------------

    async def _look_for_rest(self) -> None:
        for table, condition in (("intents", "true"), ("moves", "true"), ("token_disables", "finish_time IS NULL")):
            rows = await self.connection.fetch(
                f"SELECT t::text AS row FROM {table} AS t WHERE project_id = $1 AND {condition}", self.header["project"]
            )
            for row in rows:
                self.findings.add("stuck", f"{table}: {row['row'][:300]}")

    async def _load(self) -> None:
        project = self.header["project"]
        for row in await self.connection.fetch(_STORED, project):
            profile_id = str(row["profile_id"]) if row["profile_id"] else None
            stored = Stored(
                profile_id,
                row["anonymous_id"],
                micros_of(row["receive_time"]),
                micros_of(row["event_time"]),
                row["name"],
                json.loads(row["data"]),
            )
            self.stored[row["event_id"]].append(stored)
            if profile_id:
                self.stored_for[profile_id].add(row["event_id"])
        rows = await self.connection.fetch(
            "SELECT profile_id, email, user_id, data_fields FROM profiles WHERE project_id = $1", project
        )
        self.profiles = {str(row["profile_id"]): row for row in rows}
        named = {name: str(row["profile_id"]) for row in rows for name in (row["email"], row["user_id"]) if name}
        for name, person in self.model.people.items():
            self.profile_ids[name] = person.profile_id or named.get(name, "")
        self.names = {profile_id: name for name, profile_id in self.profile_ids.items() if profile_id}
        self.links = {
            row["value"]: (str(row["profile_id"]), micros_of(row["grace_end_time"]))
            for row in await self.connection.fetch(
                "SELECT value, profile_id, grace_end_time FROM identifiers WHERE project_id = $1 AND kind = 3", project
            )
        }

    # --- what the log leaves open ------------------------------------------------------------------------------------

    def _settle_visitors(self) -> None:
        """A visitor who may have been linked by a call of unknown outcome: the database says whether."""
        for visitor_id, visitor in self.model.visitors.items():
            if visitor.winner is None and visitor.candidates and visitor_id in self.links:
                profile_id, grace_end = self.links[visitor_id]
                name = self.names.get(profile_id, profile_id)
                if name not in visitor.candidates:
                    self.findings.add("misattributed", f"{visitor_id} is {name}'s, who never asked for it")
                visitor.winner, visitor.grace_end = name, grace_end
                self.model.linked_to[name].add(visitor_id)

    def _settle_duels(self) -> None:
        for pair, duel in self.model.duels.items():
            there = [name for name in duel.names if self.profile_ids.get(name) in self.profiles]
            if len(there) == 2:
                if duel.merged_count or duel.survivors:
                    self.findings.add("wrong_answers", f"{pair} was merged, and both are there")
                continue
            [survivor] = there or [duel.names[0]]
            [source] = [name for name in duel.names if name != survivor]
            self.model.person(source).into = survivor
            self.model.parts_of[survivor].add(source)
            if duel.survivors - {self.profile_ids[survivor]}:
                self.findings.add("wrong_answers", f"{pair} has another survivor than an answer said")
            if duel.merged_count > 1 or (not duel.merged_count and not duel.unknown_count):
                self.findings.add("wrong_answers", f"{pair} was merged {duel.merged_count} times")

    def _settle_alternatives(self) -> None:
        """An operation that took effect or did not: wholly the one or wholly the other."""
        for alternative in self.model.alternatives:
            without = self._distance(alternative)
            before = self._swap(alternative)
            if self._distance(alternative) < without:
                self.unknown_effective += 1
            else:
                self._swap(Alternative(alternative.operation, before))
        self.model.alternatives.clear()

    def _swap(self, alternative: Alternative) -> dict[str, Person]:
        """Puts people in the place of those of the same name; returns the latter."""
        before = {name: self.model.people[name] for name in alternative.people}
        self.model.people.update(alternative.people)
        for name in before:
            self.model.parts_of[name] = {part for part, each in self.model.people.items() if each.into == name}
        return before

    def _distance(self, alternative: Alternative) -> int:
        """How much of the database contradicts the people as the model has them now."""
        distance = 0
        for name in alternative.people:
            person = self.model.person(name)
            is_there = self.profile_ids[name] in self.profiles
            should = person.exists and person.into is None and not person.is_forgotten
            distance += 10 * (is_there != should)
            if should and is_there:
                distance += len(self.model.required(name) ^ self.stored_for[self.profile_ids[name]])
                fields = json.loads(self.profiles[self.profile_ids[name]]["data_fields"])
                distance += sum(fields.get(key) != value for key, value in person.fields.items())
                distance += len(fields.keys() - person.fields.keys() - {"canary"})
        return distance

    def _check_unknown(self) -> None:
        """Calls that stored events, and of which nobody knows whether they did: all of the events or none."""
        for operation, begun in self.model.unknown.items():
            if begun["do"] == "track":
                own = [each for each, _ in begun["events"] if self.model.events[each].operation == operation]
                own = [each for each in own if self.model.events[each].acked == inf]
                there = [each for each in own if each in self.stored]
                self.unknown_effective += bool(there)
                if len(there) not in (0, len(own)) and not begun.get("beside_forget"):
                    self.findings.add("halves", f"operation {operation} stored {len(there)} of {len(own)} events")
            elif begun["do"] == "identify":
                self.unknown_effective += self.model.visitors[begun["x"]].winner == begun["who"]

    # --- events ------------------------------------------------------------------------------------------------------

    def _check_events(self) -> None:
        for event_id, event in self.model.events.items():
            rows = self.stored.get(event_id, [])
            receive_time = rows[0].receive_time if rows else event.receive_time
            owner = self.model.owner(event, receive_time, {})
            if owner == GONE:
                # A call about a visitor that was frozen on its way may tell the same id anew, as that of somebody else.
                if rows and not (event.home.startswith("x:") and self.model.visitors[event.home[2:]].has_stragglers):
                    self.findings.add("resurrected", f"{event_id} of {event.home} is there, who was forgotten")
                continue
            if not rows:
                if event.acked != inf:
                    self.findings.add("lost", f"{event_id} of {event.home}, owner {owner}")
                continue
            if len(rows) > 1:
                self.findings.add("doubled", f"{event_id} lies with {[row.profile_id for row in rows]}")
            if event.is_refused and event.acked == inf:
                self.findings.add("refused_stored", event_id)
            expected = self.profile_ids.get(owner, "") if owner is not None else None
            for row in rows:
                if row.profile_id != expected:
                    actual = self.names.get(row.profile_id, row.profile_id) if row.profile_id else None
                    self.findings.add("misattributed", f"{event_id} of {event.home} is {actual}'s, not {owner}'s")
                self._check_body(event_id, event.home, row)
                if event.acked != inf and row.receive_time != event.receive_time:
                    self.findings.add("corrupted", f"{event_id} has another receive_time than was answered")
        for event_id in self.stored.keys() - self.model.events.keys():
            if not event_id.startswith("bystander"):
                self.findings.add("invented", event_id)

    def _check_body(self, event_id: str, home: str, row: Stored) -> None:
        told = event_time_of(event_id, self.header["epoch"])
        moment = row.receive_time if told is None else told
        anonymous_id = home[2:] if home.startswith("x:") else None
        same = (row.name, row.data, row.event_time, row.anonymous_id) == (
            "did",
            body_of(event_id, home),
            moment,
            anonymous_id,
        )
        if not same:
            self.findings.add("corrupted", f"{event_id} of {home}: {row}")

    # --- people ------------------------------------------------------------------------------------------------------

    async def _check_people(self) -> None:
        at_a_time = asyncio.Semaphore(_AT_A_TIME)

        async def check(name: str) -> None:
            async with at_a_time:
                await self._check_person(name)

        await asyncio.gather(*(check(name) for name in self.model.people))

    async def _check_person(self, name: str) -> None:
        person, profile_id = self.model.person(name), self.profile_ids[name]
        if person.into is not None or person.is_forgotten:
            if profile_id in self.profiles:
                kind = "resurrected" if person.is_forgotten else "lost"
                self.findings.add(kind, f"{name} is there, and should be gone or merged into {person.into}")
            if person.is_forgotten:
                answer = await self._get(name)
                if answer.message is not None:
                    self.findings.add("resurrected", f"{name} can be read")
            return
        if not person.exists and profile_id not in self.profiles:
            return
        if profile_id not in self.profiles:
            self.findings.add("lost", f"the profile of {name}")
            return
        answer = await self._get(name)
        if answer.message is None or answer.message.profile.profile_id != profile_id:
            self.findings.add("lost", f"{name} cannot be read: {answer.reason}")
            return
        self._check_fields(name, json.loads(answer.message.profile.data_fields_json))
        request = ListEventsRequest(identifiers=names(name), page_size=500, data_format=DATA_FORMAT_JSON)
        found = await pages(self.callers, "ListEvents", request)
        shown = [event.event_id for page in found or [] for event in page.events]
        if found is None or len(shown) != len(set(shown)) or set(shown) != self.stored_for[profile_id]:
            self.findings.add(
                "misattributed", f"{name} by the API: {len(shown)}, {len(self.stored_for[profile_id])} stored"
            )
        if not self.model.is_tangled(name):
            await self._check_devices(name)

    async def _get(self, name: str) -> Any:
        request = GetProfileRequest(identifiers=names(name), data_format=DATA_FORMAT_JSON)
        return await insist(self.callers, "GetProfile", request)

    def _check_fields(self, name: str, fields: dict[str, Any]) -> None:
        person = self.model.person(name)
        fields.pop("canary", None)
        # Of the updates whose outcome is unknown each took effect or did not; they are the last of their fields.
        expected = dict(person.fields)
        for maybe in person.maybe_fields:
            if all(fields.get(key) == value for key, value in maybe.items()):
                self.unknown_effective += 1
                expected.update(maybe)
        if fields != expected and not name.startswith("duel"):
            self.findings.add("corrupted", f"{name} has fields {fields}, not {expected}")

    async def _check_devices(self, name: str) -> None:
        found = await pages(self.callers, "ListDevices", ListDevicesRequest(identifiers=names(name), page_size=500))
        shown = {device.token: device.endpoint_enabled for page in found or [] for device in page.devices}
        for token in self.model.device_operations(name).keys() | shown.keys():
            states = self.model.device_states(name, token)
            if shown.get(token) in states:
                continue
            what = f"{token} of {name} is {shown.get(token)}, not {states}"
            match shown.get(token):
                case True:
                    self.findings.add("disables_ineffective", what)
                case False:
                    self.findings.add("wrongly_off", what)
                case None:
                    self.findings.add("lost", what)

    # --- everybody else ----------------------------------------------------------------------------------------------

    async def _check_bystanders(self) -> None:
        if await bystanders(self.connection, self.header) != self.header["bystanders"]:
            self.findings.add("bystanders_changed", "somebody whom nobody wrote to has changed")

    async def _check_canaries(self) -> None:
        """Of people who were forgotten nothing may be left."""
        gone = set()
        for name in self.model.people:
            if self.model.survivor(name).is_forgotten:
                gone.add(canary_of(f"p:{name}"))
                gone |= {
                    canary_of(f"x:{each}")
                    for each in self.model.linked_to[name]
                    if not self.model.visitors[each].has_stragglers
                }
        for where in await find_canaries(gone, self.connection, self.place):
            self.findings.add("canaries", where)

    # --- once more ---------------------------------------------------------------------------------------------------

    async def _replay(self, seed: int, count: int) -> None:
        """Earlier requests, sent again as they were: each is answered as it was, and nothing changes."""
        chosen = [each for each in self.header["acknowledged"] if not self._is_about_gone(each[0])]
        random.Random(seed).shuffle(chosen)
        before = await fingerprints(self.connection)
        at_a_time = asyncio.Semaphore(_AT_A_TIME)

        async def again(begun: Entry, ended: Entry) -> None:
            async with at_a_time:
                await self._send_again(begun, ended)

        await asyncio.gather(*(again(*each) for each in chosen[:count]))
        self.replays = len(chosen[:count])
        after = await fingerprints(self.connection)
        for table, fingerprint in before.items():
            if after[table] != fingerprint:
                self.findings.add("replay_changes", table)

    def _is_about_gone(self, begun: Entry) -> bool:
        homes = [home for _, home in begun.get("events", [])]
        homes += [f"p:{begun[key]}" for key in ("who", "source", "target") if begun.get(key)]
        homes += [f"x:{begun['x']}"] if "x" in begun else []
        for home in homes:
            name: str | None = home[2:]
            if home.startswith("x:"):
                name = self.model.visitors[home[2:]].winner
            if name is not None and self.model.survivor(name).is_forgotten:
                return True
        return False

    async def _send_again(self, begun: Entry, ended: Entry) -> None:
        method, body = begun["call"]
        answer = await insist(self.callers, method, REQUESTS[method].FromString(base64.b64decode(body)))
        if answer.message is None:
            self.findings.add("replays_wrong", f"{method} ({begun['op']}) was answered {answer.reason or 'not at all'}")
        elif method in ANSWERS:
            first = ANSWERS[method].FromString(base64.b64decode(ended["raw"]))
            first.replayed = True
            if answer.message != first:
                self.findings.add("replays_wrong", f"{method} ({begun['op']}) was answered otherwise than before")
        else:
            results = [answer.message.result] if method == "Track" else [each.result for each in answer.message.results]
            told = [(result.receive_time.ToMicroseconds(), result.duplicate) for result in results]
            if told != [(receive_time, True) for receive_time, *_ in ended["results"]]:
                self.findings.add("replays_wrong", f"{method} ({begun['op']}) stored something anew")

    def _read_logs(self) -> None:
        for log in self.place.logs:
            text = Path(log).read_bytes()[self.log_offsets.get(log, 0) :].decode(errors="replace")
            for kind, pattern in (("deadlocks", "deadlock detected"), ("broken_calls", "call broke")):
                for found in re.finditer(pattern, text):
                    self.findings.add(kind, f"{Path(log).name}: {text[found.start() : found.start() + 900]}")
