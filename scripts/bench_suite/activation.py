"""How fast criteria are evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
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

    The evaluations are those of EvaluateCriteria. Their tree is not met, so that every leaf is asked of every event
    and the report says what is missing; the floor is the same question written out in Python, which explains nothing.
    The cost of an event is that of counting it as it arrives, as the server does, and of asking at the end whether
    the visitor matches. All of it is this process's own time, and of the rounds the best one counts, because others
    use the machine too; everything that is compared takes turns within a round.
    """
    criterion = _criterion()
    history = [_event(number) for number in range(max(_SIZES))]
    counting = dict.fromkeys(_SIZES, float("inf"))
    explaining = dict.fromkeys(_SIZES, float("inf"))
    by_hand = float("inf")
    for _ in range(_ROUNDS):
        for size in _SIZES:
            events = history[:size]
            counting[size] = min(counting[size], _seconds(size, partial(_count, criterion, events)))
            explaining[size] = min(explaining[size], _seconds(size, partial(evaluate, [criterion], events, _FIELDS)))
        by_hand = min(by_hand, _seconds(_EVENTS, partial(_by_hand, history[:_EVENTS], _FIELDS)))
    each = [counting[size] / size * 1e6 for size in _SIZES]
    return [
        Figure(
            "evaluations",
            1 / explaining[_EVENTS],
            "evaluations/s",
            1 / by_hand,
            f"ten leaves, {_EVENTS} events, {explaining[_EVENTS] * 1e3:.2f} ms each; floor: written out in Python",
        ),
        Figure(
            "evaluation_flatness",
            max(each),
            "us/event",
            min(each),
            f"among {_listed(_SIZES)} events an event costs {_listed(each)} us, the dearest over the cheapest; with "
            f"reports {_listed(explaining[size] / size * 1e6 for size in _SIZES)}",
        ),
    ]


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:,}" if isinstance(number, int) else f"{number:.1f}" for number in numbers)


def _count(criterion: CompiledCriterion, events: list[Event]) -> bool:
    counts = criterion.start()
    for event in events:
        criterion.update(counts, event)
    return criterion.is_match(counts, _FIELDS)


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
