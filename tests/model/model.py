"""What onefold promises, as a few plain objects: the oracle of the state machine.

Nothing moves here. A person who was merged points to the one who took everything, and undoing the merge removes the
pointer. An event keeps its home, and a device's copy its holder: whose they are follows from walking the pointers. So
the model cannot make the mistakes that moving rows can make.

Written from SPEC.md, the comments of the protos and README's decisions. Times are seconds on a clock of its own.
"""

from __future__ import annotations

from copy import deepcopy
from math import inf
from typing import TypeVar

from model.entities import Event, Key, Linked, Merge, Merged, Names, Person, Redirect, Refused, Undone, Wrote

K = TypeVar("K")
V = TypeVar("V")

MINUTES_5, DAYS_30, DAYS_35 = 300.0, 30 * 86_400.0, 35 * 86_400.0


class Model:
    """One project."""

    def __init__(self, project_type: str) -> None:
        self.type = project_type
        self.now = 0.0
        self.people: list[Person] = []
        self.events: list[Event] = []
        self.event_ids: dict[str, Event] = {}
        self.merges: list[Merge] = []
        self.redirects: list[Redirect] = []
        # The identifiers that are blocked, and by which call.
        self.forgotten: dict[Key, int] = {}
        self.forget_count = self.operation = 0

    # --- who is who --------------------------------------------------------------------------------------------------

    def is_exclusive(self, key: Key) -> bool:
        """P2: whether it belongs to one person only."""
        return self.type in (key[0].upper(), "HYBRID")

    def live(self) -> list[Person]:
        """Everybody whom reads show, oldest first."""
        return [person for person in self.people if person.into is None and not person.is_gone]

    def parts(self, person: Person) -> list[Person]:
        """A person, and everybody who was merged into them."""
        return [part for part in self.people if part.survivor is person]

    def holders(self, key: Key) -> list[Person]:
        """Those whose own identifier it is, oldest first."""
        return [person for person in self.live() if key in person.names.items()]

    def heirs(self, key: Key) -> list[Person]:
        """I17: those to whom a merge left it, and whose time is not over, oldest first."""
        heirs = {each.person.survivor for each in self.redirects if each.key == key and self.now < each.end_time}
        return [person for person in self.people if person in heirs]

    def leads_to(self, key: Key) -> Person | None:
        """Whom one identifier names (I10: the oldest of several)."""
        return next(iter(self.holders(key) + self.heirs(key)), None)

    def find(self, names: Names) -> Person | None:
        """P3, I3: whom a request names."""
        by = {key[0]: self.leads_to(key) for key in names.items()}
        if self.type != "HYBRID":
            return by["email"] if self.type == "EMAIL" and "email" in by else by["user_id"]
        if len({*by.values()} - {None}) > 1:
            raise Refused("IDENTIFIERS_CONFLICT")
        return by.get("user_id") or by.get("email")

    def refuse_forgotten(self, names: Names) -> None:
        """I20, F42: a forgotten identifier does not come back."""
        if names.items() & self.forgotten.keys():
            raise Refused("FORGOTTEN")

    def get(self, names: Names) -> Person:
        """Whom a write names that creates nobody."""
        self.refuse_forgotten(names)
        person = self.find(names)
        if person is None:
            raise Refused("PROFILE_NOT_FOUND")
        return person

    def own(self, person: Person, key: Key) -> None:
        """Makes an identifier a person's own, whoever it was left to."""
        person.names[key[0]] = key[1]
        left = [each for each in self.redirects if each.key == key]
        freed = [each for each in left if self.is_exclusive(key) or each.person.survivor is person]
        self.redirects = [each for each in self.redirects if each not in freed]

    def create(self, names: Names) -> Person:
        """A new person."""
        person = Person(len(self.people))
        self.people.append(person)
        for key in names.items():
            self.own(person, key)
        return person

    def place(self, names: Names, *, creates: bool = True, placeholder: str = "") -> tuple[Person, Wrote]:
        """I3 to I7: the person that a write names, created if need be; `placeholder` for prefer_user_id (I8)."""
        self.refuse_forgotten(names)
        person = self.find(names)
        if person is None:
            if self.type == "EMAIL" and "email" not in names:
                creates, names = creates and placeholder != "", {**names, "email": placeholder}
            if not creates:
                raise Refused("PROFILE_NOT_FOUND")
            self.refuse_forgotten(names)
            if self.type == "EMAIL" and self.leads_to(("email", names["email"])):
                raise Refused("PLACEHOLDER_TAKEN")
            return self.create(names), Wrote.CREATED
        self.refuse_another(person, names)
        outcome = Wrote.UNCHANGED
        for key in names.items() - person.names.items():
            # What a merge left to this very person found them, and takes the place of nothing (I17).
            if self.holders(key) or self.leads_to(key) is not person:
                self.name(person, key)
                outcome = Wrote.UPDATED
        return person, outcome

    def refuse_another(self, person: Person, names: Names) -> None:
        """I3: in a HYBRID project, whoever is found by email may be known under another user_id."""
        user_id = names.get("user_id", "")
        is_another = person.names.get("user_id", user_id) != user_id != ""
        if self.type == "HYBRID" and is_another and not self.heirs(("user_id", user_id)):
            raise Refused("IDENTIFIERS_CONFLICT")

    def name(self, person: Person, key: Key) -> None:
        """Gives a person a name. U5: another user_id makes a visitor known, or a real email where that identifies."""
        self.own(person, key)
        if key[0] == "user_id" or (self.is_exclusive(key) and not is_placeholder(key[1])):
            person.is_unknown = False

    # --- profiles ----------------------------------------------------------------------------------------------------

    def update(self, names: Names, fields: dict[str, int], placeholder: str = "") -> tuple[Person, Wrote]:
        """I4: an upsert; what is absent survives."""
        person, outcome = self.place(names, placeholder=placeholder)
        if fields.items() - person.fields.items():
            person.fields |= fields
            outcome = Wrote.CREATED if outcome == Wrote.CREATED else Wrote.UPDATED
        return person, outcome

    def rename(self, names: Names, key: Key) -> tuple[Person, Wrote]:
        """I12: another email or user_id for the same profile."""
        self.refuse_forgotten(names)
        person = self.get(names) if self.type == "EMAIL" else self.find(names)
        self.refuse_forgotten(dict([key]))
        if self.is_exclusive(key) and self.leads_to(key) not in (None, person):
            raise Refused("IDENTIFIER_TAKEN")
        outcome = Wrote.CREATED if person is None else Wrote.UNCHANGED if key in person.names.items() else Wrote.UPDATED
        person = person or self.create(names)
        if key not in person.names.items():
            self.name(person, key)
        return person, outcome

    def visit(self, user_id: str, fields: dict[str, int], placeholder: str) -> tuple[Person, Wrote, Event | None]:
        """U3: a visitor's profile, and the event that tells of it; None if the visitor turned out to be somebody."""
        names: Names = {"user_id": user_id}
        self.refuse_forgotten(names)
        person = self.find(names)
        if person is None:
            person, outcome = self.update(names, fields, placeholder)
            person.is_visitors = person.is_unknown = True
            self.events.append(Event(person, "unknownSession", "", self.now, self.now))
            return person, outcome, self.events[-1]
        if names.items() <= person.names.items() and not person.is_visitors:
            raise Refused("IDENTIFIER_TAKEN")
        sessions = [event for event in self.events if event.home is person and event.body == "unknownSession"]
        return person, Wrote.UNCHANGED, sessions[0] if names.items() <= person.names.items() else None

    def delete(self, names: Names) -> tuple[Person, set[str]]:
        """I20: a person goes, and nothing is blocked; who, and the ids of everything erased."""
        person = self.get(names)
        return person, self.erase(person)

    def forget(self, names: Names) -> tuple[bool, int, set[str]]:
        """I20: a person goes, and every name that is known to have been theirs is blocked.

        Returns whether there was one, how many names are blocked, and the ids of everything erased.
        """
        person, keys, erased = self.find(names), {*names.items()}, set()
        # A name that a merge left, and whose time is over, is nobody's.
        self.redirects = [each for each in self.redirects if each.key not in keys or self.now < each.end_time]
        if person is not None:
            keys |= {*person.names.items(), *(each.key for each in self.redirects if each.person.survivor is person)}
            erased = self.erase(person)
        keys = {key for key in keys if self.is_exclusive(key)}
        self.forget_count += 1
        self.forgotten = {**dict.fromkeys(keys, self.forget_count), **self.forgotten}
        return person is not None, len(keys), erased

    def unforget(self, names: Names) -> tuple[int]:
        """I20: unblocks what was forgotten together, and restores nothing; how many names."""
        calls = {self.forgotten[key] for key in names.items() & self.forgotten.keys()}
        keys = [key for key, call in self.forgotten.items() if call in calls]
        self.forgotten = {key: call for key, call in self.forgotten.items() if call not in calls}
        return (len(keys),)

    def erase(self, person: Person) -> set[str]:
        """Takes a person out, with everything that has become part of them; the profile and anonymous ids of it."""
        parts = self.parts(person)
        links = {merge.anonymous_id for merge in self.merges if merge.is_link and merge.target in parts}
        self.events = [each for each in self.events if self.owner(each) is not person and each.home not in links]
        self.redirects = [each for each in self.redirects if each.person not in parts]
        for merge in self.merges:
            merge.is_erased |= merge.target in parts
        for part in parts:
            part.is_gone = True
        return links | {part.profile_id for part in parts}

    def drop_redirects(self) -> None:
        """Retention: whose a name has been is remembered until a month after it ceased to lead there."""
        self.redirects = [each for each in self.redirects if self.now < each.end_time + DAYS_30]

    # --- events ------------------------------------------------------------------------------------------------------

    def link(self, anonymous_id: str) -> Merge | None:
        """A4: the one link of an anonymous_id."""
        return next((each for each in self.merges if each.is_link and each.anonymous_id == anonymous_id), None)

    def owner(self, event: Event) -> Person | None:
        """Whose an event is (A3, A5, I16)."""
        if isinstance(event.home, Person):
            return event.home.survivor
        link = self.link(event.home)
        if link and event.receive_time <= link.time + MINUTES_5 and event.event_time > link.time - DAYS_30:
            return link.target.survivor
        return None

    def timeline(self, subject: Person | str) -> list[Event]:
        """E8, A2: what reads show of a person, or of an anonymous_id."""
        if isinstance(subject, Person):
            return [event for event in self.events if self.owner(event) is subject]
        nobodys = [event for event in self.events if event.home == subject and self.owner(event) is None]
        return [event for event in nobodys if event.event_time > self.now - DAYS_30]

    def track(self, event: Event, names: Names, *, creates: bool, erased_is_known: bool) -> tuple[Event | None, Wrote]:
        """E1 to E3, A1, A2, A6: the event stored, None for a duplicate, and what became of the profile.

        The event_id of an erased event is free once a worker has been there; `erased_is_known` says that none has.
        """
        self.refuse_forgotten(names)
        known = self.event_ids.get(event.event_id)
        if known and self.now < known.receive_time + DAYS_35 and (known in self.events or erased_is_known):
            if known.body != event.body:
                raise Refused("EVENT_ID_REUSED")
            return None, Wrote.UNCHANGED if names else Wrote.UNSPECIFIED
        outcome = Wrote.UNSPECIFIED
        if names:
            event.home, outcome = self.place(names, creates=creates or self.type != "EMAIL")
        elif event.event_time <= self.now - DAYS_30:
            raise Refused("EVENT_EXPIRED")
        self.events.append(event)
        if event.event_id:
            self.event_ids[event.event_id] = event
        return event, outcome

    def identify(self, names: Names, anonymous_id: str, fields: dict[str, int]) -> tuple[Person, Wrote, Linked, Merge]:
        """I15, A3, A4: writes the profile and links the id to it; whom, both outcomes, and the link that stands."""
        self.refuse_forgotten(names)
        person, link, learned = self.find(names), self.link(anonymous_id), None
        unknown = link.target.survivor if link else None
        if unknown and unknown.is_unknown and person is not unknown:
            # U5: the id stands for a visitor, who turns out to be this person.
            if person is not None:
                self.refuse_another(person, names)
            if person or "email" in names or self.type != "EMAIL":
                _, _, learned = self.unite(unknown, person, names)
        person, outcome = self.update(names, fields)
        if learned is not None:
            return person, Wrote.UPDATED, Linked.LINKED, learned
        if link is None:
            self.merges.append(Merge(person, self.now, person, person, anonymous_id=anonymous_id))
            return person, outcome, Linked.LINKED, self.merges[-1]
        is_theirs = link.target.survivor is person
        return person, outcome, Linked.ALREADY_LINKED if is_theirs else Linked.REFUSED_LINKED_ELSEWHERE, link

    # --- merging -----------------------------------------------------------------------------------------------------

    def merge(self, source_names: Names, target_names: Names, allow_known: bool) -> tuple[Merged, Person, Merge | None]:
        """I16, I17: outcome, survivor, and the ledger's entry."""
        self.refuse_forgotten(target_names)
        source, target = self.get(source_names), self.find(target_names)
        if source is target:
            return Merged.SAME_PROFILE, source, None
        if not (source.is_unknown or allow_known):
            raise Refused("KNOWN_SOURCE")
        return self.unite(source, target, target_names)

    def unite(self, source: Person, target: Person | None, target_names: Names) -> tuple[Merged, Person, Merge]:
        """Makes two people one, or renames one in place."""
        survivor, end_time = target or source, inf if source.is_unknown else self.now + MINUTES_5
        before, left = deepcopy(survivor), {*source.names.items()}
        if target is None:
            if self.type == "HYBRID" and source.is_unknown and "user_id" not in target_names:
                del source.names["user_id"]
            source.is_unknown = False
            for key in target_names.items():
                self.own(source, key)
        else:
            target.fields = {**source.fields, **target.fields}
            source.into = target
            for key in source.names.items():
                # A visitor's temporary id and a placeholder name nobody.
                is_real = not (source.is_unknown if key[0] == "user_id" else is_placeholder(key[1]))
                if key[0] not in target.names and is_real:
                    self.own(target, key)
        merge = Merge(survivor, self.now, before, deepcopy(survivor), source)
        self.merges.append(merge)
        self.redirects += [Redirect(key, survivor, merge, end_time) for key in left]
        # An identifier leads to a person once: as their own, or for as long as any merge has left it to them.
        for key in left | {each.key for each in self.redirects}:
            theirs = [each for each in self.redirects if each.key == key and each.person.survivor is survivor]
            kept = [] if key in survivor.names.items() else sorted(theirs, key=lambda each: each.end_time)[-1:]
            self.redirects = [each for each in self.redirects if each not in theirs or each in kept]
        return Merged.MERGED if target else Merged.CONVERTED, survivor, merge

    def undo(self, merge: Merge) -> tuple[Undone]:
        """I19: takes a merge back."""
        if merge.is_undone:
            return (Undone.ALREADY_UNDONE,)
        if merge.is_erased or self.now >= merge.time + DAYS_30:
            raise Refused("MERGE_NOT_UNDOABLE")
        later = self.merges[self.merges.index(merge) + 1 :]
        if any(each.source is merge.target and not each.is_undone for each in later):
            raise Refused("MERGE_BUILT_ON")
        if merge.source is not None:
            self.restore(merge, merge.source)
        merge.is_undone = True
        return (Undone.UNDONE,)

    def restore(self, merge: Merge, source: Person) -> None:
        """Source and target as they were; what changed since keeps its newer value on the target."""
        target, before, after = merge.target, merge.before, merge.after
        names = undo_changes(before.names, after.names, target.names)
        wanted = {*source.names.items()} if source is not target else names.items() - target.names.items()
        others = [each for each in self.redirects if each.merge is not merge]
        for key in wanted - (target.names.items() - names.items()):
            is_left = any(each.key == key and self.now < each.end_time for each in others)
            if self.is_exclusive(key) and (self.holders(key) or is_left or key in self.forgotten):
                raise Refused("SOURCE_IDENTIFIER_TAKEN")
        self.redirects, target.names = others, names
        if source is target:
            target.is_unknown = before.is_unknown and names == before.names
        else:
            target.fields = undo_changes(before.fields, after.fields, target.fields)
            source.into = None
        for key in wanted:
            self.own(source, key)

    # --- devices -----------------------------------------------------------------------------------------------------

    def devices(self, person: Person) -> dict[str, bool]:
        """D6, D7: a person's devices, and whether they are on: of several copies the newest operation decides."""
        copies = [(copy, token) for part in self.parts(person) for token, copy in part.devices.items()]
        return {token: is_on for (_, is_on), token in sorted(copies)}

    def register(self, names: Names, token: str, is_exclusive: bool) -> tuple[Person, Wrote, Wrote]:
        """D1, D5: enables the profile's copy, perhaps as the only one; what that did to profile and copy."""
        person, outcome = self.place(names)
        was_on = self.devices(person).get(token)
        if is_exclusive:
            self.switch_off(self.people, token)
        self.operation += 1
        person.devices[token] = self.operation, True
        return person, outcome, {None: Wrote.CREATED, False: Wrote.UPDATED, True: Wrote.UNCHANGED}[was_on]

    def disable(self, names: Names | None, token: str) -> tuple[Wrote]:
        """D3, D4: one person's copy, or everybody's; what that did."""
        people, copies = self.people, [True for person in self.live() if token in self.devices(person)]
        if names is not None:
            person = self.get(names)
            people = self.parts(person)
            copies = [is_on for held, is_on in self.devices(person).items() if held == token]
        if not copies:
            raise Refused("DEVICE_NOT_FOUND")
        self.switch_off(people, token)
        return (Wrote.UPDATED if any(copies) else Wrote.UNCHANGED,)

    def switch_off(self, people: list[Person], token: str) -> None:
        """Switches off copies; those of people who were merged away too, so that no undo brings one back on."""
        self.operation += 1
        for person in people:
            if token in person.devices:
                person.devices[token] = self.operation, False


def is_placeholder(email: str) -> bool:
    """I9: whether an email stands in for one that is not known."""
    return email.endswith("@placeholder.email")


def undo_changes(before: dict[K, V], after: dict[K, V], now: dict[K, V]) -> dict[K, V]:
    """What is left of `now` when what turned `before` into `after` is undone: what changed since stays."""
    back = {key: value for key, value in before.items() if now.get(key) == after.get(key)}
    return {**back, **{key: value for key, value in now.items() if value != after.get(key)}}
