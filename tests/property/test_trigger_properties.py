"""However transactions overlap, a reader behind the fence skips no trigger and sees each once, in the same order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.triggers.rules import Fence, advance


@dataclass
class _World:
    """What PostgreSQL does with the outbox (numbers at once, rows at commit, a lock from before a transaction's first
    number until after its commit is seen), and one reader."""

    last_number: int = 0
    open: dict[int, list[int]] = field(default_factory=dict)
    committed: list[int] = field(default_factory=list)
    fence: Fence | None = None
    newest: int | None = None
    seen: list[int] = field(default_factory=list)
    position: int = 0

    def write(self, writer: int) -> None:
        """A transaction records a trigger."""
        self.last_number += 1
        self.open.setdefault(writer, []).append(self.last_number)

    def end(self, writer: int, *, commit: bool = True) -> None:
        """It ends."""
        numbers = self.open.pop(writer, [])
        if commit:
            self.committed += numbers

    def crash(self) -> None:
        """PostgreSQL loses what was not committed, and hands those numbers out again."""
        self.open.clear()
        self.last_number = max(self.committed, default=0)

    def look_at_newest(self) -> None:
        """The first half of a look."""
        self.newest = max(self.committed, default=0)

    def look_at_writers(self, page: int = 1_000) -> None:
        """The second half, and the reader reads a page of what it may."""
        if self.newest is None:
            return
        self.fence = advance(self.fence, self.newest, frozenset(map(str, self.open)))
        self.newest = None
        if self.fence.decided is not None:
            found = sorted(each for each in self.committed if self.position < each <= self.fence.decided)[:page]
            self.seen += found
            self.position = found[-1] if len(found) == page else max(self.position, self.fence.decided)

    def check(self) -> None:
        """All that were committed have been seen, once, in the order of their numbers."""
        for writer in list(self.open):
            self.end(writer)
        for _ in range(2):
            self.look_at_newest()
            self.look_at_writers()
        assert self.seen == sorted(self.committed)


def _orders(lengths: tuple[int, ...], places: tuple[int, ...] | None = None) -> Iterator[dict[int, int]]:
    """Every way to put sequences of these lengths one into another: which of them is at each place."""
    places = tuple(range(sum(lengths))) if places is None else places
    if not lengths:
        yield {}
        return
    for taken in combinations(places, lengths[0]):
        rest = tuple(place for place in places if place not in taken)
        for order in _orders(lengths[1:], rest):
            yield {**dict.fromkeys(taken, len(lengths)), **order}


def test_every_order_of_three_transactions_and_two_looks() -> None:
    """E10: in each of the 18,900 orders in which three transactions can record a trigger and commit, while a reader
    looks twice, in two halves each, no trigger is skipped and none is seen twice."""
    count = 0
    for order in _orders((2, 2, 2, 4)):
        count += 1
        world = _World()
        looks = 0
        for _, who in sorted(order.items()):
            if who == 1:
                (world.look_at_newest, world.look_at_writers)[looks % 2]()
                looks += 1
            elif who in world.open:
                world.end(who)
            else:
                world.write(who)
        world.check()
    assert count == 18_900


_steps = st.lists(
    st.tuples(st.sampled_from(["write", "commit", "look", "write", "roll back", "crash"]), st.integers(0, 2)),
    min_size=10,
    max_size=60,
)


@settings(deadline=None, max_examples=200)
@given(_steps, st.integers(1, 3))
def test_a_reader_misses_nothing(steps: Iterable[tuple[str, int]], page: int) -> None:
    """E10, F12: also with transactions of any length that come one after the other, that roll back, or that a crash
    cuts off and whose numbers come again, and with pages that do not hold all there is."""
    world = _World()
    begun = 0
    names: dict[int, int] = {}
    for step, writer in steps:
        match step:
            case "write":
                if writer not in names:
                    begun += 1
                    names[writer] = begun
                world.write(names[writer])
            case "commit" | "roll back":
                world.end(names.pop(writer, 0), commit=step == "commit")
            case "look":
                world.look_at_newest()
                world.look_at_writers(page)
            case "crash" if writer == 0:
                world.crash()
                names.clear()
    world.check()
