"""The pool of connections, and the only places where a transaction begins and ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, TypeAlias, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from onefold import failpoints
from onefold.db.errors import LOST_CONNECTION, LostRaceError, lock_timeout, pool_busy, translate, unavailable
from onefold.db.queries import Connection
from onefold.errors import OnefoldError
from onefold.telemetry import tracing

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], Awaitable[T]]

# A straggler is a transaction that began before a merge committed and ends after it. None lives longer than this, which
# is what lets a merge be closed at all.
TRANSACTION_TIMEOUT_SECONDS: Final = 15
_COMMIT_SECONDS: Final = 5.0
# For how long a write that found no room on the disk stands for those to come.
_FULL_SECONDS: Final = 10.0
_ATTEMPTS: Final = 5
# What is to be done once the transaction being run has committed.
_after: ContextVar[list[Callable[[], None]]] = ContextVar("onefold_after_commit")

_POSTGRESQL: Final = {"db.system.name": "postgresql"}
_SHARED_SETTINGS = {
    "timezone": "UTC",
    "synchronous_commit": "on",
    "jit": "off",
    # Every statement is known and short: planning it once per connection is enough.
    "plan_cache_mode": "force_generic_plan",
    # And every one has its index: a plan that was made while a table was small must not scan it when it has grown.
    "enable_seqscan": "off",
    # A lost client must not leave its locks behind.
    "idle_in_transaction_session_timeout": "15s",
}
SERVER_SETTINGS: Final = {
    **_SHARED_SETTINGS,
    "application_name": "onefold server",
    "statement_timeout": "5s",
    "lock_timeout": "1s",
    "transaction_timeout": f"{TRANSACTION_TIMEOUT_SECONDS}s",
}
WORKER_SETTINGS: Final = {
    **_SHARED_SETTINGS,
    "application_name": "onefold worker",
    "statement_timeout": "30s",
    "lock_timeout": "2s",
    "transaction_timeout": "60s",
}


class Database:
    """A pool of connections to one PostgreSQL.

    `transact` and `read` run a function that is given a connection; they may run it again from the start, so it must
    keep no state of its own. Errors of the driver come out as OnefoldError, without the driver's text.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], acquire_seconds: float) -> None:
        self._pool = pool
        self._acquire_seconds = acquire_seconds
        self._finishing: set[asyncio.Task[None]] = set()
        # For the metrics: who waits for a connection, how often a race was lost, and who wants to know every wait.
        self.waiting = 0
        self.lost_races = 0
        self.on_acquire: Callable[[float], None] | None = None
        self._full_until = 0.0

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        settings: dict[str, str] | None = None,
        connections: int = 10,
        acquire_seconds: float = 2.0,
    ) -> Database:
        """Opens a pool of at most `connections`. Raises OnefoldError (UNAVAILABLE) if PostgreSQL is away."""
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=min(2, connections),
                max_size=connections,
                # Prepared once, kept for good: the statements are the ones in the .sql files.
                max_cached_statement_lifetime=0,
                statement_cache_size=512,
                server_settings=dict(settings or SERVER_SETTINGS),
                timeout=5.0,
                command_timeout=60.0,
                # Nothing here outlives its transaction (no session locks, cursors or settings), so a connection needs
                # no cleaning round trip when it goes back.
                reset=_keep_as_it_is,
            )
        except (*LOST_CONNECTION, asyncpg.PostgresError, TimeoutError) as error:
            raise translate(error) or unavailable() from None
        return cls(pool, acquire_seconds)

    async def transact(self, work: Work[T]) -> T:
        """Runs `work` in a READ COMMITTED transaction and returns its result once that is committed.

        A LostRaceError from `work` runs it again from the start, at most 5 times in all. If the caller is cancelled
        while the COMMIT is under way, the COMMIT goes on to its end: no connection goes back in an unknown state.
        """
        for _ in range(_ATTEMPTS):
            try:
                with tracing.span("transaction", **_POSTGRESQL):
                    return await self._transact_once(work)
            except LostRaceError:
                self.lost_races += 1
        raise lock_timeout()

    async def read(self, work: Work[T], *, snapshot: bool = False) -> T:
        """Runs `work`, which only reads, and returns its result. A connection that proves to be lost is replaced once.

        With `snapshot`, all statements of `work` see one moment (REPEATABLE READ); without, each sees its own.
        """
        try:
            return await self._read_once(work, snapshot=snapshot)
        except LOST_CONNECTION:
            # PostgreSQL was restarted under an idle pool: every pooled connection fails once.
            try:
                return await self._read_once(work, snapshot=snapshot)
            except Exception as error:
                raise _translated(error) from None
        except asyncpg.PostgresError as error:
            raise _translated(error) from None

    @property
    def is_full(self) -> bool:
        """Whether a write found no room on PostgreSQL's disk within the last 10 s."""
        return time.monotonic() < self._full_until

    async def maintain(self, work: Work[T]) -> T:
        """Runs `work` on a connection outside of any transaction, for work that makes its own (partitions)."""
        try:
            return await self._read_once(work, snapshot=False)
        except Exception as error:
            raise _translated(error) from None

    def connections(self) -> tuple[int, int, int]:
        """How many connections are in use, idle, and allowed."""
        size, idle = self._pool.get_size(), self._pool.get_idle_size()
        return size - idle, idle, self._pool.get_max_size()

    async def close(self) -> None:
        """Lets running commits end, then closes every connection."""
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=_COMMIT_SECONDS)
        try:
            await asyncio.wait_for(self._pool.close(), 5.0)
        except TimeoutError:
            self._pool.terminate()

    async def _acquire(self) -> PoolConnectionProxy[asyncpg.Record]:
        began = time.perf_counter()
        self.waiting += 1
        try:
            return await self._pool.acquire(timeout=self._acquire_seconds)
        except TimeoutError:
            raise pool_busy() from None
        finally:
            self.waiting -= 1
            if self.on_acquire is not None:
                self.on_acquire(time.perf_counter() - began)

    async def _release(self, connection: PoolConnectionProxy[asyncpg.Record]) -> None:
        # What was done on the connection has its own outcome, whatever becomes of it now.
        with contextlib.suppress(*LOST_CONNECTION, asyncpg.PostgresError):
            await self._pool.release(connection)

    async def _begin(self) -> PoolConnectionProxy[asyncpg.Record]:
        # A stale connection shows at its first statement; nothing was done on it yet, so the next one may serve.
        for attempt in range(3):
            connection = await self._acquire()
            try:
                await connection.execute("BEGIN")
            except BaseException as error:
                await self._release(connection)
                if attempt == 2 or not isinstance(error, LOST_CONNECTION):
                    raise
            else:
                return connection
        raise unavailable()

    async def _transact_once(self, work: Work[T]) -> T:
        connection: PoolConnectionProxy[asyncpg.Record] | None = None
        try:
            connection = await self._begin()
            after: list[Callable[[], None]] = []
            _after.set(after)
            try:
                if failpoints.hook is not None:
                    await failpoints.hook(failpoints.BEGIN, connection)
                result = await work(connection)
                if failpoints.hook is not None:
                    await failpoints.hook(failpoints.COMMIT, connection)
            except BaseException:
                await self._roll_back(connection)
                raise
            committing, connection = connection, None
            finish = asyncio.ensure_future(self._commit(committing))
            self._finishing.add(finish)
            finish.add_done_callback(self._finishing.discard)
            await asyncio.shield(finish)
            if failpoints.hook is not None:
                await failpoints.hook(failpoints.COMMITTED, None)
            for act in after:
                act()
            return result
        except (LostRaceError, OnefoldError):
            raise
        except Exception as error:
            if isinstance(error, asyncpg.DiskFullError):
                self._full_until = time.monotonic() + _FULL_SECONDS
            raise _translated(error) from None
        finally:
            if connection is not None:
                await self._release(connection)

    async def _commit(self, connection: PoolConnectionProxy[asyncpg.Record]) -> None:
        try:
            await asyncio.wait_for(connection.execute("COMMIT"), _COMMIT_SECONDS)
        except TimeoutError:
            connection.terminate()
            raise unavailable() from None
        finally:
            await self._release(connection)

    async def _roll_back(self, connection: PoolConnectionProxy[asyncpg.Record]) -> None:
        try:
            await asyncio.wait_for(connection.execute("ROLLBACK"), 2.0)
        except (*LOST_CONNECTION, asyncpg.PostgresError, TimeoutError):
            # PostgreSQL rolls back by itself when the session ends.
            connection.terminate()

    async def _read_once(self, work: Work[T], *, snapshot: bool) -> T:
        with tracing.span("read", **_POSTGRESQL):
            return await self._read_on(await self._acquire(), work, snapshot=snapshot)

    async def _read_on(self, connection: PoolConnectionProxy[asyncpg.Record], work: Work[T], *, snapshot: bool) -> T:
        try:
            if not snapshot:
                try:
                    return await work(connection)
                except asyncio.CancelledError:
                    # asyncpg prepares a statement without a Sync. Stopped behind that, PostgreSQL is in a transaction
                    # of which asyncpg knows nothing, and whose beginning would be the now() of the next one.
                    await self._roll_back(connection)
                    raise
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                result = await work(connection)
            except BaseException:
                await self._roll_back(connection)
                raise
            await connection.execute("COMMIT")
            return result
        finally:
            await self._release(connection)


def after_commit(act: Callable[[], None]) -> None:
    """Has something counted once the transaction being run has committed; never if it is rolled back."""
    _after.get().append(act)


async def _keep_as_it_is(_connection: object) -> None:
    return


def _translated(error: Exception) -> Exception:
    if isinstance(error, OnefoldError):
        return error
    return translate(error) or error
