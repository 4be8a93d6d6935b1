"""Exclusive registrations among merges and undos: who may be reached, however far the workers are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from support.client import Client, email
from support.devices import disable, holders, register
from support.merging import merge, put, undo
from support.world import World

MakeProject = Callable[..., Awaitable[Client]]

# A history of one token, and who may be reached at its end. A+ registers A, A! registers A exclusively, A- disables A's
# copy, *- every copy; A>B merges A into B, undo takes back the latest merge that still stands, undo1 the first. Only
# the order of the steps decides: D5 for A!, D4 for *-, D7 for A>B, and I19 for undo (what happened since still holds).
HISTORIES = {
    # The others are off, and whoever registers afterwards is on beside the one.
    "A+ B+ C!": "C",
    "A! B! C!": "C",
    "A! B! A!": "A",
    "A+ B! A+": "AB",
    "A+ B! A-": "B",
    "A+ B! B-": "",
    "A+ B! *-": "",
    "A+ B! *- A+": "A",
    "A+ A- B! A+ *- B!": "B",
    # A merge takes the newest operation along, and enables nobody whom an exclusive registration switched off.
    "A! A>B": "B",
    "B+ A! A>B": "B",
    "B+ A! B>A": "A",
    "A+ B+ C! A>B": "C",
    "A+ C! A>B": "C",
    "A+ A>B C!": "C",
    "A+ A>B B!": "B",
    "C! A+ B+ A>B": "BC",
    "A+ C! A>C": "C",
    # An undo brings nobody back whom an exclusive registration has switched off, be it before, in or since the merge.
    "A+ A>B C! undo": "C",
    "A+ B+ A>B C! undo": "C",
    "A+ A>B B! undo": "B",
    "A+ B+ A>B B! undo": "B",
    "B+ A! A>B undo": "A",
    "A+ B! A>B undo": "B",
    "A+ B! A>B C! undo": "C",
    "A+ B+ A- A>B C! undo": "C",
    "B+ A+ A- A>B C! undo": "C",
    "A+ A>B C! B+ undo": "BC",
    "A+ B+ A>B B! undo A+": "AB",
    "A! A>B undo B!": "B",
    "A+ A>B B! undo B>A": "A",
    "A+ A>B B>C D! undo undo": "D",
    "A+ B+ C+ A>B B>C C! undo undo": "C",
    # So it does when the earlier of two merges is undone first.
    "A+ C+ A>B C>B undo1 undo": "AC",
    "A+ B+ C+ A>B C>B undo1 undo": "ABC",
    "A+ B+ B- C+ A>B C>B undo1 undo": "AC",
    "A+ C+ A>B B+ C>B undo1 undo": "ABC",
    "A+ C+ A>B C>B D! undo1 undo": "D",
    # What remains merged keeps its copy there, and what somebody else had switched off is not the earlier source's.
    "A+ C+ A>B C>B undo1": "AB",
    "C+ A+ A>B C>B undo1": "AB",
    "A+ C+ C- A>B C>B undo1": "A",
    # A disable since the merge holds for the source, though the target has been registered again since.
    "A+ A>B B- B+ undo": "B",
    "A+ B+ A>B B- B+ undo": "B",
    "A+ A>B B>C C- C+ undo undo": "C",
    "A+ A>B B+ B- undo": "",
    # The same holds for a disable of every copy.
    "A+ B+ *- A-": "",
    "B+ *- A+ A>B undo": "A",
    "B+ A+ A- A>B *- undo": "",
}


async def play(client: Client, world: World, history: str, work_after: set[int]) -> None:
    """Takes the steps, and lets the workers work off what there is after some of them."""
    merges: list[str] = []
    for number, step in enumerate(history.split()):
        who = email(f"{step[0]}@example.com")
        if step in ("undo", "undo1"):
            await undo(client, merges.pop(0 if step == "undo1" else -1))
        elif step == "*-":
            await disable(client)
        elif step[1] == ">":
            merges.append((await merge(client, who, email(f"{step[2]}@example.com"))).merge.merge_id)
        elif step[1] == "-":
            await disable(client, identifiers=who)
        else:
            await register(client, who, exclusive=step[1] == "!")
        if number in work_after:
            await world.settle(client.project_id)


async def reached(client: Client) -> str:
    """The people whose copies are on, in a row."""
    return "".join(sorted(h.identifiers.email[0].upper() for h in await holders(client) if h.device.endpoint_enabled))


@pytest.mark.parametrize("history", HISTORIES)
async def test_who_is_reached_at_the_end(make_project: MakeProject, world: World, history: str) -> None:
    """D5 D4 D7 F51 I19: the order of registrations, disables, merges and undos decides, not when the workers write."""
    steps = len(history.split())
    for work_after in [set(), set(range(steps)), *({number} for number in range(steps - 1))]:
        client = await make_project()
        for letter in "ABCD":
            await put(client, email(f"{letter}@example.com"))
        await play(client, world, history, work_after)
        for _ in range(2):
            assert await reached(client) == HISTORIES[history], f"workers after steps {work_after}"
            await world.settle(client.project_id)
