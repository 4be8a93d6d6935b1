"""When an event is accepted, whom it may create, and what makes two tellings of it the same. Pure."""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from onefold.callers import IdentifierType
from onefold.clock import to_microseconds
from onefold.errors import OnefoldError, Reason, Violation, invalid
from onefold.identity.naming import Named
from onefold.identity.rules import Call, SignupSource
from onefold.limits import ANONYMOUS_LIFETIME, BACKFILL_AGE, EVENT_AHEAD
from onefold.rpc.payload import Payload


class EventKind(enum.IntEnum):
    """What sort of thing happened; the numbers are those in the protos and in the tables."""

    CUSTOM = 1
    PAGE = 2
    SCREEN = 3
    PURCHASE = 4
    CART_UPDATE = 5
    PUSH_OPEN = 6
    IN_APP_OPEN = 7
    IN_APP_CLICK = 8
    IN_APP_DELIVERY = 9
    IN_APP_CLOSE = 10
    WEB_PUSH_CLICK = 11


# Where the items of an event are in its data, as clients know them. In an EMAIL project only these kinds create the
# profile they name (I5).
ITEMS_FIELDS: Final = {EventKind.PURCHASE: "shoppingCartItems", EventKind.CART_UPDATE: "updatedShoppingCartItems"}
TOTAL_FIELD: Final = "total"
# The data field of a profile that holds its cart.
CART_FIELD: Final = "shoppingCartItems"


# Not frozen: made once an event, and freezing takes 1.5 microseconds each time.
@dataclass(slots=True)
class Arrival:
    """An event of a request, checked: a person's with `named`, else a visitor's with `anonymous_id`, else an invite.

    Id and time may be left to the server.
    """

    named: Named | None
    anonymous_id: str | None
    name: str
    kind: EventKind
    payload: Payload
    event_id: str | None
    event_time: datetime | None
    prefer_user_id: bool = False
    update_existing_only: bool = False
    # Of an invite: the address in its data that it was sent to, lower-cased.
    recipient: str | None = None
    suppress_triggers: bool = False

    def body_hash(self) -> bytes:
        """16 bytes, equal for the same body: whose it is, what, when as given, and the data in any key order.

        Whom an invite was sent to is part of its data. Whether the event may trigger is not part of the body.
        """
        body = [
            [self.named.email, self.named.user_id] if self.named else None,
            self.anonymous_id,
            self.name,
            int(self.kind),
            to_microseconds(self.event_time) if self.event_time else None,
        ]
        return hashlib.blake2b(orjson.dumps(body) + self.payload.canonical(), digest_size=16).digest()


class EventRow(NamedTuple):
    """An event to store: a person's when profile_id is set, an invite when recipient is, else a visitor's.

    It begins with the columns of the table events, in the order in which they are copied.
    """

    project_id: str
    profile_id: UUID | None
    event_time: datetime
    event_id: str
    receive_time: datetime
    kind: EventKind
    name: str
    anonymous_id: str | None
    data: str
    suppress_triggers: bool
    was_anonymous: bool
    # Of a late event of a linked id: its subject, the ledger entry that counts it, and when it was linked.
    origin_id: UUID | None
    merge_id: UUID | None
    link_time: datetime | None
    recipient: str | None


def call_of(project_type: IdentifierType, arrival: Arrival) -> Call:
    """What the event may do with a person it does not find (I5, I6, I7)."""
    commerce = arrival.kind in ITEMS_FIELDS
    return _call(
        commerce or project_type is not IdentifierType.EMAIL,
        may_take_user_id(arrival),
        arrival.update_existing_only,
    )


@cache
def _call(creates: bool, prefer_user_id: bool, update_existing_only: bool) -> Call:
    # There are eight of them, and every event asks for its own twice.
    return Call(
        SignupSource.EVENT,
        creates=creates,
        prefer_user_id=prefer_user_id,
        update_existing_only=update_existing_only,
    )


def may_take_user_id(arrival: Arrival) -> bool:
    """Whether the event may make a person of a user_id alone where the email identifies (I8)."""
    return arrival.prefer_user_id and arrival.kind in ITEMS_FIELDS


def changes_cart(arrival: Arrival) -> bool:
    """Whether the event may change the cart of the person it names (E7)."""
    return arrival.kind in ITEMS_FIELDS and arrival.named is not None


def cart_after(arrival: Arrival) -> list[Any]:
    """What is in the cart after a purchase or a cart update (E7). An update that tells no items empties it."""
    items = arrival.payload.value.get(ITEMS_FIELDS[EventKind.CART_UPDATE])
    return items if arrival.kind is EventKind.CART_UPDATE and isinstance(items, list) else []


def is_newer_cart(event_time: datetime, cart_event_time: datetime | None) -> bool:
    """Whether an event changes a cart that stands as of another one: of two of one moment the one told later counts."""
    return cart_event_time is None or event_time >= cart_event_time


def check_time(arrival: Arrival, now: datetime) -> OnefoldError | None:
    """Why an event's time is refused at `now` (the database's clock); None if it is not (E1, A2)."""
    if arrival.event_time is None:
        return None
    if arrival.event_time > now + EVENT_AHEAD:
        return invalid([Violation("event_time", "lies more than 24 hours ahead")])
    if arrival.named is None and arrival.recipient is None and is_expired(arrival.event_time, now):
        return invalid(
            [Violation("event_time", "lies 30 days or more in the past, and the event has no person")],
            Reason.EVENT_EXPIRED,
        )
    return None


def is_expired(event_time: datetime, now: datetime) -> bool:
    """Whether an anonymous event has had its 30 days (A2)."""
    return event_time <= now - ANONYMOUS_LIFETIME


def is_backfilled(event_time: datetime, receive_time: datetime) -> bool:
    """Whether an event was more than 5 minutes old when it arrived (E5)."""
    return receive_time - event_time > BACKFILL_AGE


def is_associated(receive_time: datetime, grace_end_time: datetime) -> bool:
    """Whether an anonymous event is the person's its id is linked to: received before the grace ended (A3, A5)."""
    return receive_time <= grace_end_time
