"""The shopping cart that a profile keeps: what the purchases and cart updates of a batch make of it (E7).

The newest event by event_time decides, so that a past that is filled in later does not bring an old cart back. Rows are
held, and their data fields read, for people whose cart may change; a batch without such events costs nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson

from onefold.db.errors import LostRaceError
from onefold.db.queries import Connection
from onefold.errors import OnefoldError
from onefold.events.rules import CART_FIELD, Arrival, cart_after, changes_cart, is_newer_cart
from onefold.events.store import queries
from onefold.identity.naming import Named
from onefold.identity.rules import Directory, Outcome, Person, VacatedError, updated_fields


@dataclass(slots=True)
class _Standing:
    """A profile's data fields as JSON text, and the event that its cart stands as of."""

    data_fields: str = "{}"
    cart_event_time: datetime | None = None
    # What this batch made of them, if anything.
    fields_changed: bool = False
    time_changed: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What an event does to the cart: when it happened, and the data fields after it (None if they stay)."""

    event_time: datetime
    data_fields: str | None


class Carts:
    """The carts of the people of a batch, changed event by event in the order of the request."""

    def __init__(self, standing: dict[Person, _Standing]) -> None:
        self._standing = standing

    @classmethod
    async def hold(
        cls, connection: Connection, project_id: str, directory: Directory, arrivals: Sequence[Arrival]
    ) -> Carts:
        """Holds the profiles whose carts may change, until the end of the transaction.

        LostRaceError if the identifiers of one are no longer those that it was found by.
        """
        shopping = _people(directory, [arrival.named for arrival in arrivals if changes_cart(arrival)])
        if not shopping:
            return cls({})
        # Whoever may get another identifier is held by the same statement: rows are locked once, in one order.
        renamed = _people(
            directory, [each.named for each in arrivals if each.named and each.named.email and each.named.user_id]
        )
        people = {person.profile_id: person for person in [*shopping, *renamed]}
        rows = await queries.hold_carts.fetch(
            connection,
            shopping_ids=[person.profile_id for person in shopping],
            project_id=project_id,
            profile_ids=list(people),
        )
        found = {row["profile_id"]: row for row in rows}
        for profile_id, person in people.items():
            row = found.get(profile_id)
            if row is None or (row["email"], row["user_id"]) != (person.stored_email, person.stored_user_id):
                raise LostRaceError
        standing = {}
        for person in shopping:
            row = found[person.profile_id]
            standing[person] = _Standing(row["data_fields"], row["cart_event_time"])
        return cls(standing)

    def plan(self, directory: Directory, arrival: Arrival, now: datetime) -> Change | None:
        """What an event would do to its person's cart; None if it leaves it alone. Nothing has changed yet.

        Raises DATA_FIELDS_LIMIT, IDENTIFIERS_CONFLICT and VacatedError.
        """
        if not changes_cart(arrival) or arrival.named is None:
            return None
        person = directory.find(arrival.named)
        standing = _Standing()
        if person is not None:
            if person not in self._standing and not person.is_new:
                # An earlier event gave the person the identifier that this one uses: it must be looked up anew.
                raise VacatedError
            standing = self._standing.get(person, standing)
        event_time = arrival.event_time or now
        if not is_newer_cart(event_time, standing.cart_event_time):
            return None
        cart = cart_after(arrival)
        if not cart and CART_FIELD not in orjson.loads(standing.data_fields):
            # Nothing to empty: whoever never had a cart gets none by buying.
            return Change(event_time, None)
        return Change(event_time, updated_fields(standing.data_fields, {CART_FIELD: cart}, nested=False))

    def apply(self, person: Person, change: Change, outcome: Outcome) -> Outcome:
        """Makes a planned change; returns what has become of the profile, which `outcome` says for its identifiers."""
        standing = self._standing.setdefault(person, _Standing())
        standing.cart_event_time, standing.time_changed = change.event_time, True
        if change.data_fields is None:
            return outcome
        standing.data_fields, standing.fields_changed = change.data_fields, True
        return Outcome.UPDATED if outcome is Outcome.UNCHANGED else outcome

    async def write(self, connection: Connection, project_id: str) -> None:
        """Writes the carts that have changed. New people must have been written before."""
        changed = [(person, standing) for person, standing in self._standing.items() if standing.time_changed]
        if changed:
            await queries.set_carts.execute(
                connection,
                profile_ids=[person.profile_id for person, _ in changed],
                cart_event_times=[standing.cart_event_time for _, standing in changed],
                data_fields=[standing.data_fields if standing.fields_changed else None for _, standing in changed],
                project_id=project_id,
            )


def _people(directory: Directory, names: Sequence[Named | None]) -> list[Person]:
    """Those of the people named who are there, each once."""
    people: dict[Person, None] = {}
    for named in names:
        try:
            person = directory.find(named) if named is not None else None
        except OnefoldError:
            # Two people's identifiers: the event is refused when its turn comes.
            continue
        if person is not None:
            people[person] = None
    return list(people)
