"""What the model says, compared with what the API and, when all work is done, the tables say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import grpc

from model.entities import Names, Person
from model.model import Model
from onefold.identity.links import subject_id
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.devices_service_pb2 import ListDevicesRequest, ListTokenHoldersRequest
from onefold.v1.identity_service_pb2 import (
    BatchGetProfilesRequest,
    GetProfileRequest,
    LookupProfilesRequest,
    PersonName,
)
from onefold.v1.profile_pb2 import Identifiers
from support.client import Client, read_failure
from support.world import World


@dataclass
class Reads:
    """Every read of one project."""

    client: Client
    model: Model
    names: list[Names]
    anonymous_ids: list[str]
    tokens: list[str]
    turn: int = 0
    # The anonymous ids that anything was told of, "" for what was told of a person.
    used: set[str] = field(default_factory=set)

    async def compare(self) -> None:
        """All reads at once; for what nothing was ever told of, there is nothing to read."""
        model, live = self.model, self.model.live()
        self.used |= {event.anonymous_id for event in model.events} | {merge.anonymous_id for merge in model.merges}
        self.turn += 1
        subjects: list[Person | str] = [*(live if self.used else []), *sorted(self.used & {*self.anonymous_ids})]
        await asyncio.gather(
            self._everybody(),
            self._one_name(),
            # In small pages for one after the other, and else in one.
            *(self._timeline(who, 3 if n == self.turn % len(subjects) else 100) for n, who in enumerate(subjects)),
            # The devices of one person after the other; the holders tell of them all.
            *(self._devices(person) for person in live[self.turn % max(len(live), 1) :][:1] if model.operation),
            *(self._holders(token) for token in self.tokens if model.operation),
        )

    async def _everybody(self) -> None:
        """Every identifier leads to whom the model says, and who was merged away or erased is nobody."""
        expected = [(PersonName(identifiers=said(names)), self.model.find(names)) for names in self.names]
        for each in self.model.people:
            expected.append((PersonName(profile_id=each.profile_id), each if each in self.model.live() else None))
        request = BatchGetProfilesRequest(people=[who for who, _ in expected], data_format=DATA_FORMAT_JSON)
        answer = await self.client.identity.BatchGetProfiles(request)
        for (who, person), result in zip(expected, answer.results, strict=True):
            assert result.HasField("profile") == (person is not None), (who, person, result)
            if person is not None:
                self._profile(result.profile, person)

    async def _one_name(self) -> None:
        """GetProfile or LookupProfiles for one identifier after the other; the batch above reads them all."""
        names = self.names[self.turn % len(self.names)]
        [key] = names.items()
        person, holders = self.model.find(names), self.model.holders(key)
        if self.turn // len(self.names) % 2:
            wanted = LookupProfilesRequest(email=key[1]) if key[0] == "email" else LookupProfilesRequest(user_id=key[1])
            found = await self.client.identity.LookupProfiles(wanted)
            expected = sorted({*holders, *self.model.heirs(key)}, key=lambda each: each.age)
            assert [each.profile_id for each in found.profiles] == [each.profile_id for each in expected], names
            return
        try:
            answer = await self.client.identity.GetProfile(
                GetProfileRequest(identifiers=said(names), data_format=DATA_FORMAT_JSON)
            )
        except grpc.aio.AioRpcError as error:
            assert person is None and read_failure(error).reason == "PROFILE_NOT_FOUND", (names, error)
        else:
            assert person is not None, (names, answer)
            self._profile(answer.profile, person)
            is_ambiguous = self.model.type == "EMAIL" and key[0] == "user_id" and len(holders) > 1
            assert answer.user_id_holder_count == (len(holders) if is_ambiguous else 0), (names, answer)

    @staticmethod
    def _profile(profile: Any, person: Person) -> None:
        got = profile.profile_id, profile.identifiers, json.loads(profile.data_fields_json), profile.is_unknown
        assert got == (person.profile_id, said(person.names), person.fields, person.is_unknown)

    async def _timeline(self, subject: Person | str, page_size: int) -> None:
        """Each event is listed once, with its owner and where it came from, newest first, whatever the pages."""
        owner = subject.profile_id if isinstance(subject, Person) else ""
        who: dict[str, Any] = {"profile_id": owner} if isinstance(subject, Person) else {"anonymous_id": subject}
        events = await self.client.timeline(page_size=page_size, data_format=DATA_FORMAT_JSON, **who)
        got = sorted(
            (e.event_id, e.anonymous_id, e.profile_id, e.was_anonymous, "isUnknownUser" in e.data_json) for e in events
        )
        expected = [
            (e.event_id, e.anonymous_id, owner, owner != "" and isinstance(e.home, str), e.tells_of_merge)
            for e in self.model.timeline(subject)
        ]
        assert got == sorted(expected), subject
        times = [e.event_time.ToMicroseconds() for e in events]
        assert times == sorted(times, reverse=True)

    async def _devices(self, person: Person) -> None:
        answer = await self.client.devices.ListDevices(ListDevicesRequest(profile_id=person.profile_id))
        assert {each.token: each.endpoint_enabled for each in answer.devices} == self.model.devices(person), person

    async def _holders(self, token: str) -> None:
        answer = await self.client.devices.ListTokenHolders(ListTokenHoldersRequest(token=token))
        got = {each.device.profile_id: each.device.endpoint_enabled for each in answer.holders}
        held = [(person.profile_id, self.model.devices(person)) for person in self.model.live()]
        assert got == {profile_id: devices[token] for profile_id, devices in held if token in devices}, token

    async def compare_tables(self, world: World) -> None:
        """When all work is done, the rows themselves lie with their owners, and what was erased is nowhere."""
        project_id = self.client.project_id
        rows = await world.fetch("SELECT profile_id::text, event_id FROM events WHERE project_id = $1", project_id)
        people = self.model.live()
        assert sorted(map(tuple, rows)) == sorted(
            (person.profile_id, event.event_id) for person in people for event in self.model.timeline(person)
        )
        rows = await world.fetch(
            "SELECT subject_id, event_id FROM anonymous_events WHERE project_id = $1 "
            "AND event_time > now() - interval '30 days'",
            project_id,
        )
        assert sorted(map(tuple, rows)) == sorted(
            (subject_id(project_id, each), event.event_id)
            for each in self.anonymous_ids
            for event in self.model.timeline(each)
        )
        rows = await world.fetch("SELECT event_id FROM event_ids WHERE project_id = $1", project_id)
        erased = {event_id for event_id, event in self.model.event_ids.items() if event not in self.model.events}
        assert not erased & {row["event_id"] for row in rows}


def said(names: Names) -> Identifiers:
    """Names as a message."""
    return Identifiers(email=names.get("email", ""), user_id=names.get("user_id", ""))
