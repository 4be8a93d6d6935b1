"""Reading single profiles: calls that come at the same time share a statement.

One statement is in flight for each project and kind of question; while it is, the next one gathers. It begins after
whoever asks by it came, so it sees everything that was committed before.

PostgreSQL answers before the next call of a busy server has been read, so the time of a statement gathers few. In
company the next statement therefore waits for the calls that are being read. Alone, a call does not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar
from uuid import UUID

from onefold.callers import Project
from onefold.db.pool import Database
from onefold.db.queries import Connection
from onefold.errors import OnefoldError
from onefold.identity import store
from onefold.identity.naming import Named
from onefold.rpc.gathering import come_together

# A profile may have 1 MB, and all those of a statement are in memory at once.
_BATCH_PROFILES: Final = 32

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class ProfileReader:
    """Reads profiles by their identifiers or ids."""

    def __init__(self, database: Database) -> None:
        self._by_name = Shared(database, store.find_profiles)
        self._by_id = Shared(database, store.get_profiles)

    async def by_name(self, project: Project, named: Named) -> tuple[store.Profile | None, int]:
        """A person's profile, and how many hold an identifier that several may. Raises IDENTIFIERS_CONFLICT."""
        return await self._by_name.ask(project, named)

    async def by_id(self, project: Project, profile_id: UUID) -> store.Profile | None:
        """The profile of an id."""
        return await self._by_id.ask(project, profile_id)


class Shared(Generic[Question, Answer]):
    """Puts the questions of calls to `read`, many at a time; it returns their answers in order, or their errors."""

    def __init__(
        self,
        database: Database,
        read: Callable[[Connection, Project, Sequence[Question]], Awaitable[Sequence[Answer | OnefoldError]]],
    ) -> None:
        self._database = database
        self._read = read
        # By project, while one of its statements is in flight.
        self._waiting: dict[str, list[tuple[Question, asyncio.Future[Answer]]]] = {}
        self._readers: set[asyncio.Task[None]] = set()
        # Whether calls have come together of late.
        self._company = False

    async def ask(self, project: Project, question: Question) -> Answer:
        """The answer to one question. Raises its error, or what a read raises."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(project.project_id)
        if waiting is not None:
            waiting.append((question, answer))
        else:
            self._waiting[project.project_id] = [(question, answer)]
            # A task of its own: the read goes on if the call that began it is cancelled.
            reader = asyncio.create_task(self._answer_all(project), name="profile reader")
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
        return await answer

    async def _answer_all(self, project: Project) -> None:
        """Works until nobody of the project waits."""
        waiting = self._waiting[project.project_id]
        try:
            while waiting:
                if self._company:
                    await come_together(waiting, _BATCH_PROFILES)
                batch = [(question, answer) for question, answer in waiting[:_BATCH_PROFILES] if not answer.done()]
                del waiting[:_BATCH_PROFILES]
                if batch:
                    await self._answer(project, batch)
                self._company = len(batch) > 1 or bool(waiting)
        finally:
            # Whatever ends this task, nobody waits for it any longer.
            del self._waiting[project.project_id]
            for _, answer in waiting:
                answer.cancel()

    async def _answer(self, project: Project, batch: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        results: Sequence[Answer | Exception]
        try:
            questions = [question for question, _ in batch]
            results = await self._database.read(lambda connection: self._read(connection, project, questions))
        except OnefoldError as error:
            results = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:
                # A fault that one of them brought must not hit the others.
                for each in batch:
                    await self._answer(project, [each])
                return
            results = [error]
        for (_, answer), result in zip(batch, results, strict=True):
            if answer.done():
                # Its call has ended.
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
