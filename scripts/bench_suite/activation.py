"""How fast criteria are evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from onefold.activation.criteria import And, Condition, DataType, Leaf, Node, Or, check
from onefold.activation.rules import CompiledCriterion, Event, evaluate

from .figure import Figure

_EVENTS: Final = 100
_SIZES: Final = (10, 100, 1_000, 10_000)
_ROUNDS: Final = 15
# Events that one measurement evaluates at least, so that the clock's grain does not show.
_EVENTS_A_ROUND: Final = 2_000
_PAGES: Final = 7


def evaluating() -> list[Figure]:
    """Evaluations/s of a tree of ten leaves over 100 events; and what an event costs among 10 to 10,000 of them.

    The tree is not met, so that every leaf is asked of every event and the report says what is missing. It is this
    process's own time, and of the rounds the best one counts, because others use the machine too; sizes and floor take
    turns within a round. The floor of the evaluations is the same question written out in Python, which explains
    nothing.
    """
    criterion = _criterion()
    history = [_event(number) for number in range(max(_SIZES))]
    best = dict.fromkeys((*_SIZES, 0), float("inf"))
    for _ in range(_ROUNDS):
        for size in _SIZES:
            events = history[:size]
            best[size] = min(best[size], _seconds(size, lambda: evaluate([criterion], events, _FIELDS)))  # noqa: B023
        best[0] = min(best[0], _seconds(_EVENTS, lambda: _by_hand(history[:_EVENTS], _FIELDS)))
    each = {size: best[size] / size * 1e6 for size in _SIZES}
    return [
        Figure(
            "evaluations",
            1 / best[_EVENTS],
            "evaluations/s",
            1 / best[0],
            f"ten leaves, {_EVENTS} events, {best[_EVENTS] * 1e3:.2f} ms each; floor: the same written out in Python",
        ),
        Figure(
            "evaluation_flatness",
            max(each.values()),
            "us/event",
            min(each.values()),
            "; ".join(f"{size:,} events: {microseconds:.1f}" for size, microseconds in each.items())
            + "; value and floor: the dearest and the cheapest",
        ),
    ]


def _seconds(events: int, work: Callable[[], Any]) -> float:
    times = max(1, _EVENTS_A_ROUND // events)
    begin = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - begin) / times


_FIELDS: Final[dict[str, Any]] = {"country": "FR", "plan": "free"}


def _event(number: int) -> Event:
    if number % 5:
        data = {"path": f"/products/{number}", "size": ("large", "small")[number % 3 > 0], "seconds": number % 30}
        return Event(str(number), DataType.CUSTOM_EVENT, f"viewed {number % 10}", data)
    items = [{"id": "1", "name": "cola", "price": 2}, {"id": "2", "name": "pizza", "price": 9.5, "quantity": 1}]
    return Event(str(number), DataType.PURCHASE, "purchase", {"total": 11.5, "shoppingCartItems": items})


def _criterion() -> CompiledCriterion:
    pages = tuple(
        Leaf(
            "customEvent",
            And(
                (
                    Condition("eventName", "Equals", (f"viewed {page}",)),
                    Condition("size", "Equals", ("large", "medium")),
                    Condition("seconds", "GreaterThan", ("10",), "long"),
                )
            ),
            min_match=100_000,
        )
        for page in range(_PAGES)
    )
    cheap_pizza = And(
        (
            Condition("shoppingCartItems.name", "Equals", ("pizza",)),
            Condition("shoppingCartItems.price", "LessThan", ("3",), "double"),
        )
    )
    root: Node = Or(
        (
            *pages,
            Leaf("purchase", cheap_pizza),
            Leaf("customEvent", Condition("path", "MatchesRegex", ("^/cart/[a-z]+$",))),
            Leaf("user", Condition("country", "Equals", ("IT",))),
        )
    )
    if check(root):
        raise ValueError("the tree is not fit to be saved")
    return CompiledCriterion("criterion", root)


def _by_hand(events: list[Event], fields: dict[str, Any]) -> bool:
    counts = [0] * (_PAGES + 2)
    for event in events:
        data = event.data
        if event.data_type is DataType.PURCHASE:
            items = data.get("shoppingCartItems") or []
            counts[_PAGES] += any(item.get("name") == "pizza" and item.get("price", 9) < 3 for item in items)
            continue
        for page in range(_PAGES):
            named = event.name == f"viewed {page}" and data.get("size") in ("large", "medium")
            counts[page] += named and data.get("seconds", 0) > 10
        counts[_PAGES + 1] += data.get("path", "").startswith("/cart/")
    return max(counts[:_PAGES]) >= 100_000 or any(counts[_PAGES:]) or fields.get("country") == "IT"
