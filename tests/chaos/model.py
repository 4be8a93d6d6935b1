"""What must be true by the clients' log, whatever the order in which concurrent operations took effect.

The order is known where it matters, because of who does what:

- **One's own.** Each client owns people and visitors on whom nobody else acts in a way that depends on order, and does
  one thing at a time to them: its part of the log is their history. An operation whose outcome stayed unknown is the
  last on those it touches ("frozen"), so that there are two possible states, with it and without.
- **Shared visitors.** Everybody tracks for them and everybody tries to link them to a person of its own. The answers
  tell who won, the receive_time in each event's answer says on which side of the grace it lies, and where the events
  are follows from these two alone. If the only candidates stayed unknown, the database may say who it was; then all
  of the visitor's events must agree.
- **Shared people.** Everybody tracks for them and writes a field of its own; nobody merges them.
- **Shared event ids.** The same event is told by several; it is stored once.
- **Shared tokens.** A copy belongs to a client's own person, whose registrations and disables are in order. A disable
  for everybody is compared with the last of them by their times: before, after, or, if they overlap, either.
- **Duels.** Two people whom several clients merge into each other. One merge wins; everything is the survivor's.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator
from math import inf

from chaos.entities import (
    ALREADY_LINKED,
    GONE,
    LINKED,
    MERGED,
    REFUSED_ELSEWHERE,
    SAME_PROFILE,
    Alternative,
    DeviceOperation,
    Duel,
    Event,
    Merge,
    Person,
    Visitor,
)
from chaos.log import Entry


class Model:
    """The state that the log's entries amount to; fed with them in order."""

    def __init__(self) -> None:
        self.people: dict[str, Person] = {}
        self.visitors: dict[str, Visitor] = defaultdict(Visitor)
        self.events: dict[str, Event] = {}
        self.events_of: dict[str, list[str]] = defaultdict(list)
        self.linked_to: dict[str, set[str]] = defaultdict(set)
        self.parts_of: dict[str, set[str]] = defaultdict(set)
        # Disables for everybody, by token.
        self.disables: dict[str, list[DeviceOperation]] = defaultdict(list)
        self.merges: dict[str, Merge] = {}
        self.alternatives: list[Alternative] = []
        self.duels: dict[str, Duel] = {}
        # Operations of which nobody knows whether they took effect, as they began.
        self.unknown: dict[int, Entry] = {}
        self.begun: dict[int, Entry] = {}
        self.counts: dict[str, int] = defaultdict(int)
        self.refused: dict[str, int] = defaultdict(int)
        # What an answer said that cannot be true.
        self.wrong_answers: list[str] = []
        # What reads showed that cannot be true, and events that were found stored twice while the clients ran.
        self.wrong_reads: list[str] = []
        self.doubled_meanwhile: set[str] = set()

    def person(self, name: str) -> Person:
        """A person, whether anything is known or not."""
        return self.people.setdefault(name, Person(name))

    # --- the log -----------------------------------------------------------------------------------------------------

    def feed(self, entry: Entry) -> None:
        """Any entry of the log."""
        if "end" in entry:
            self.end(entry)
        elif "op" in entry:
            self.begin(entry)
        elif entry["do"] == "wrong":
            self.wrong_reads.append(entry["what"])
        elif entry["do"] == "doubled":
            self.doubled_meanwhile.update(entry["events"])

    def begin(self, entry: Entry) -> None:
        """An operation is about to be sent."""
        self.begun[entry["op"]] = entry
        self.counts["operations"] += 1
        match entry["do"]:
            case "track":
                for event_id, home in entry["events"]:
                    if event_id not in self.events:
                        self.events[event_id] = Event(home, entry["op"])
                        self.events_of[home].append(event_id)
            case "identify":
                self.visitors[entry["x"]].candidates.add(entry["who"])
            case "disable" if entry["who"] is None:
                self.disables[entry["token"]].append(DeviceOperation(False, entry["t"], inf))
            case "register" | "disable":
                operation = DeviceOperation(entry["do"] == "register", entry["t"], inf)
                self.person(entry["who"]).devices.setdefault(entry["token"], []).append(operation)
            case "duel":
                self.duels.setdefault(entry["pair"], Duel((entry["a"], entry["b"])))

    def end(self, entry: Entry) -> None:
        """An operation was answered, or given up."""
        begun = self.begun.pop(entry["op"])
        outcome = entry["end"]
        if entry.get("stragglers") and begun["do"] == "track":
            for home in {home for _, home in begun["events"] if home.startswith("x:")}:
                self.visitors[home[2:]].has_stragglers = True
        if outcome == "refused":
            self.refused[entry["reason"]] += 1
            self._refuse(begun, entry["reason"])
        elif outcome == "unknown":
            self.counts["unknown"] += 1
            self.unknown[entry["op"]] = begun
            self._leave_open(begun)
        else:
            self.counts["acked"] += len(begun["events"]) if begun["do"] == "track" else 1
            self._apply(begun, entry)

    def _refuse(self, begun: Entry, reason: str) -> None:
        expected: set[str] = set()
        match begun["do"]:
            case "track":
                for event_id, _ in begun["events"]:
                    if self.events[event_id].operation == begun["op"]:
                        self.events[event_id].is_refused = True
                # Only one who is being forgotten is refused.
                if begun.get("beside_forget"):
                    expected = {"FORGOTTEN"}
            case "identify":
                self._settle_candidate(begun)
            case "register" | "disable":
                operations = (
                    self.disables[begun["token"]]
                    if begun["who"] is None
                    else self.person(begun["who"]).devices[begun["token"]]
                )
                operations[:] = [each for each in operations if each.begun != begun["t"]]
                expected = {"DEVICE_NOT_FOUND"} if begun["do"] == "disable" else set()
        if reason not in expected:
            self.wrong_answers.append(f"{begun['do']} was refused: {reason} ({begun['op']})")

    def _leave_open(self, begun: Entry) -> None:
        """What may or may not have happened."""
        match begun["do"]:
            case "track":
                for _, home in begun["events"]:
                    if home.startswith("p:") and not home.startswith("p:shared"):
                        self.person(home[2:]).is_frozen = True
            case "update":
                self.person(begun["who"]).maybe_fields.append(begun["fields"])
                self.person(begun["who"]).is_frozen = True
            case "identify":
                self.person(begun["who"]).maybe_fields.append(begun["fields"])
                self.person(begun["who"]).is_frozen = True
                self.visitors[begun["x"]].has_stragglers = True
            case "merge" | "undo" | "forget":
                names = [begun[key] for key in ("source", "target", "who") if key in begun]
                people = self.people
                self.people = {**people, **{name: copy.deepcopy(self.person(name)) for name in names}}
                self._change(begun)
                after = {name: self.people[name] for name in names}
                self.people = people
                self._reindex(names)
                self.alternatives.append(Alternative(begun["op"], after))
                for name in names:
                    self.person(name).is_frozen = True
            case "duel":
                self.duels[begun["pair"]].unknown_count += 1
            case "register" | "disable" if begun["who"] is not None:
                self.person(begun["who"]).is_frozen = True

    def _apply(self, begun: Entry, entry: Entry) -> None:
        match begun["do"]:
            case "track":
                self._store(begun, entry)
            case "update" | "identify":
                person = self.person(begun["who"])
                person.exists = True
                person.profile_id = person.profile_id or entry["profile_id"]
                if entry["profile_id"] != person.profile_id:
                    self.wrong_answers.append(f"{begun['who']} became another profile ({begun['op']})")
                person.fields.update(begun["fields"])
                if begun["do"] == "identify":
                    self._link(begun, entry)
            case "register" | "disable":
                operations = (
                    self.disables[begun["token"]]
                    if begun["who"] is None
                    else self.person(begun["who"]).devices[begun["token"]]
                )
                for operation in operations:
                    if operation.begun == begun["t"]:
                        operation.ended = entry["t"]
            case "merge" | "undo" | "forget":
                if begun["do"] == "merge":
                    if entry["outcome"] != MERGED:
                        self.wrong_answers.append(f"a merge had outcome {entry['outcome']} ({begun['op']})")
                    source, target = self.person(begun["source"]), self.person(begun["target"])
                    before = dict(target.fields)
                    self._change(begun)
                    self.merges[entry["merge_id"]] = Merge(source.name, target.name, before, dict(target.fields))
                else:
                    self._change(begun)
            case "duel":
                duel = self.duels[begun["pair"]]
                duel.survivors.add(entry["survivor"])
                duel.merged_count += entry["outcome"] == MERGED
                if entry["outcome"] not in (MERGED, SAME_PROFILE):
                    self.wrong_answers.append(f"a duel had outcome {entry['outcome']} ({begun['op']})")

    def _store(self, begun: Entry, entry: Entry) -> None:
        shared_id = begun.get("shared_ids", False)
        for (event_id, home), (receive_time, profile_id, duplicate, reason) in zip(
            begun["events"], entry["results"], strict=True
        ):
            event = self.events[event_id]
            if reason:
                event.is_refused |= event.operation == begun["op"] and not entry["stragglers"]
                if reason != "FORGOTTEN" or not begun.get("beside_forget"):
                    self.wrong_answers.append(f"{event_id} was refused: {reason} ({begun['op']})")
                continue
            if event.acked != inf and receive_time != event.receive_time:
                self.wrong_answers.append(f"{event_id} has two receive times ({begun['op']})")
            event.acked, event.receive_time = min(event.acked, entry["t"]), receive_time
            event.is_refused = False
            if duplicate and not shared_id and not entry["stragglers"]:
                self.wrong_answers.append(f"{event_id} was told once and is a duplicate ({begun['op']})")
            if home.startswith("p:"):
                person = self.person(home[2:])
                person.exists = True
                person.profile_id = person.profile_id or profile_id
                if profile_id != person.profile_id and not home.startswith("p:duel"):
                    self.wrong_answers.append(f"{home} got another profile ({begun['op']})")

    def _link(self, begun: Entry, entry: Entry) -> None:
        visitor, who = self.visitors[begun["x"]], begun["who"]
        self._settle_candidate(begun)
        outcome = entry["outcome"]
        if outcome in (LINKED, ALREADY_LINKED):
            if visitor.winner is not None and self.survivor(visitor.winner).name != who:
                self.wrong_answers.append(f"{begun['x']} has two owners ({begun['op']})")
            if visitor.winner is None:
                visitor.winner, visitor.linked, visitor.grace_end = who, entry["t"], entry["grace_end"]
                self.linked_to[who].add(begun["x"])
            elif outcome == LINKED:
                self.wrong_answers.append(f"{begun['x']} was linked twice ({begun['op']})")
        elif outcome != REFUSED_ELSEWHERE or (visitor.winner and self.survivor(visitor.winner).name == who):
            self.wrong_answers.append(f"identify had link outcome {outcome} ({begun['op']})")

    def _settle_candidate(self, begun: Entry) -> None:
        """The call is over; its person is a candidate only if another call of theirs is open."""
        still_open = [*self.begun.values(), *self.unknown.values()]
        if not any(
            each["do"] == "identify" and each["x"] == begun["x"] and each["who"] == begun["who"] for each in still_open
        ):
            self.visitors[begun["x"]].candidates.discard(begun["who"])

    def _change(self, begun: Entry) -> None:
        if begun["do"] == "forget":
            self.person(begun["who"]).is_forgotten = True
            return
        source, target = self.person(begun["source"]), self.person(begun["target"])
        if begun["do"] == "merge":
            source.into = target.name
            target.fields = {**source.fields, **target.fields}
            self.parts_of[target.name].add(source.name)
        else:
            merge = self.merges[begun["merge_id"]]
            source.into = None
            self.parts_of[target.name].discard(source.name)
            back = {key: value for key, value in merge.before.items() if target.fields.get(key) == merge.after.get(key)}
            since = {key: value for key, value in target.fields.items() if value != merge.after.get(key)}
            target.fields = {**back, **since}
            source.was_undone = target.was_undone = True

    def _reindex(self, names: Iterable[str]) -> None:
        for name in names:
            self.parts_of[name] = {part for part in self.people if self.people[part].into == name}

    # --- what must be true -------------------------------------------------------------------------------------------

    def survivor(self, name: str) -> Person:
        """Who a person is by now."""
        person = self.person(name)
        while person.into is not None:
            person = self.person(person.into)
        return person

    def owner(self, event: Event, receive_time: int, linked: dict[str, tuple[str, int]]) -> str | None:
        """Whose an event is: a person's name, None for a visitor's that is nobody's, GONE.

        `linked` says of visitors whose winner nobody was told who it is and until when events follow.
        """
        name = event.home[2:]
        if event.home.startswith("x:"):
            visitor = self.visitors[name]
            winner, grace_end = visitor.winner, visitor.grace_end
            if winner is None and name in linked:
                winner, grace_end = linked[name]
            if winner is None or receive_time > grace_end:
                return None
            name = winner
        survivor = self.survivor(name)
        return GONE if survivor.is_forgotten else survivor.name

    def homes(self, name: str) -> Iterator[str]:
        """Everything whose events are a person's: the names merged into it, and the visitors linked to those."""
        yield f"p:{name}"
        yield from (f"x:{each}" for each in self.linked_to[name])
        for part in self.parts_of[name]:
            yield from self.homes(part)

    def required(self, name: str) -> set[str]:
        """The events that a read which begins now must show of a person."""
        return {
            event_id
            for home in self.homes(name)
            for event_id in self.events_of[home]
            if self.events[event_id].acked != inf and self._in_grace(home, self.events[event_id])
        }

    def allowed(self, name: str) -> set[str]:
        """The events that a read which has just ended may have shown of a person."""
        homes = [
            *self.homes(name),
            *(f"x:{each}" for each, visitor in self.visitors.items() if name in visitor.candidates),
        ]
        return {
            event_id
            for home in homes
            for event_id in self.events_of[home]
            if self.events[event_id].acked == inf or self._in_grace(home, self.events[event_id])
        }

    def _in_grace(self, home: str, event: Event) -> bool:
        if home.startswith("p:"):
            return True
        visitor = self.visitors[home[2:]]
        return visitor.winner is None or event.receive_time <= visitor.grace_end

    def device_operations(self, name: str) -> dict[str, list[DeviceOperation]]:
        """What was done to a person's copies, those of the people merged into it included, by token, in order."""
        found: dict[str, list[DeviceOperation]] = defaultdict(list)
        for part in (name, *self._all_parts(name)):
            for token, operations in self.person(part).devices.items():
                found[token] += operations
        return {
            token: sorted(operations, key=lambda each: each.begun) for token, operations in found.items() if operations
        }

    def is_tangled(self, name: str) -> bool:
        """Whether a merge that a person took part in was undone: whose its devices are then, other tests say."""
        return any(self.person(each).was_undone for each in (name, *self._all_parts(name)))

    def _all_parts(self, name: str) -> Iterator[str]:
        for part in self.parts_of[name]:
            yield part
            yield from self._all_parts(part)

    def device_states(
        self, name: str, token: str, read_begun: float = inf, read_ended: float = inf
    ) -> set[bool | None]:
        """What a read between two times may show of a person's copy: on, off, not there."""
        operations = self.device_operations(name).get(token, [])
        states: set[bool | None] = set()
        if all(each.ended == inf for each in operations):
            states.add(None)
        # The last operation that is known to have taken effect decides, or any that came later and may have.
        for operation in reversed(operations):
            if not operation.is_registration:
                states.add(False)
            else:
                states |= self._after(operation, token, read_begun, read_ended)
            if operation.ended != inf:
                break
        return states

    def _after(
        self, registration: DeviceOperation, token: str, read_begun: float, read_ended: float
    ) -> set[bool | None]:
        later = [each for each in self.disables[token] if each.ended > registration.begun and each.begun < read_ended]
        if any(each.begun > registration.ended and each.ended < read_begun for each in later):
            return {False}
        return {True, False} if later else {True}
