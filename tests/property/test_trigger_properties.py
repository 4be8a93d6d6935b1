"""However transactions overlap, a reader behind the fence skips no trigger and sees each once, in the same order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.triggers.rules import Fence, advance

_WRITERS: Final = 4


@dataclass
class _Database:
    """What PostgreSQL does with the outbox: numbers at once, rows at commit, a lock from before the first number on."""

    last_number: int = 0
    open: dict[int, tuple[str, list[int]]] = field(default_factory=dict)
    committed: list[int] = field(default_factory=list)
    begun: int = 0

    def write(self, writer: int) -> None:
        if writer not in self.open:
            self.begun += 1
            self.open[writer] = (f"{writer}/{self.begun}", [])
        self.last_number += 1
        self.open[writer][1].append(self.last_number)

    def end(self, writer: int, *, commit: bool) -> None:
        _, numbers = self.open.pop(writer, ("", []))
        if commit:
            self.committed += numbers

    def newest(self) -> int:
        return max(self.committed, default=0)

    def writers(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.open.values())


_steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "commit", "roll back", "newest", "writers", "read", "crash"]),
        st.integers(0, _WRITERS - 1),
        st.integers(1, 3),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=500)
@given(_steps)
def test_a_reader_misses_nothing(steps: list[tuple[str, int, int]]) -> None:
    """E10, F12: with writers that overlap at will, roll back and are cut off by a crash that takes back the numbers of
    those that had not committed, with other steps between the two halves of a look, and with pages of any size, the
    reader sees every committed trigger once and in order."""
    database = _Database()
    fence: Fence | None = None
    newest: int | None = None
    seen: list[int] = []
    position = 0

    def read(count: int) -> None:
        nonlocal position
        if fence is None or fence.decided is None:
            return
        rows = sorted(number for number in database.committed if position < number <= fence.decided)[:count]
        seen.extend(rows)
        position = rows[-1] if len(rows) == count else max(position, fence.decided)

    for step, writer, count in steps:
        match step:
            case "write":
                database.write(writer)
            case "commit" | "roll back":
                database.end(writer, commit=step == "commit")
            case "newest":
                newest = database.newest()
            case "writers" if newest is not None:
                fence, newest = advance(fence, newest, database.writers()), None
            case "read":
                read(count)
            case "crash":
                database.open.clear()
                database.last_number = database.newest()
    for each in range(_WRITERS):
        database.end(each, commit=True)
    for _ in range(2):
        fence = advance(fence, database.newest(), database.writers())
    read(len(database.committed) + 1)
    assert seen == sorted(database.committed)
