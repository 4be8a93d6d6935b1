"""What a driver's error means to a caller. The driver's own text holds values of rows, and never leaves this module."""

from __future__ import annotations

import asyncpg

from onefold.errors import Kind, OnefoldError, Reason, exhausted

# A connection that is gone. asyncpg raises whichever of these meets the loss first.
LOST_CONNECTION = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    OSError,
)
_CONTENDED = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_OVERRUN = (asyncpg.QueryCanceledError,)
# Full, read-only, out of connections: the statement is fine, the server is not.
_REFUSED_BY_SERVER = (
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresSystemError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)


class LostRaceError(Exception):
    """Another transaction committed what this one was about to write. Running it again from the start sees that."""


def unavailable() -> OnefoldError:
    """PostgreSQL cannot do the work now; whether a commit under way succeeded is unknown."""
    return OnefoldError(
        Kind.UNAVAILABLE,
        Reason.DATABASE_UNAVAILABLE,
        "The database cannot be reached or refuses the call. Send it again with the same request_id or event_id.",
        retry_after_seconds=1.0,
    )


def lock_timeout() -> OnefoldError:
    """Somebody else held what the call needed for longer than it may wait. Nothing happened."""
    return OnefoldError(
        Kind.UNAVAILABLE,
        Reason.LOCK_TIMEOUT,
        "Another call held the same person, token or request_id for too long. Send it again.",
        retry_after_seconds=0.2,
    )


def pool_busy() -> OnefoldError:
    """No connection became free in time. Nothing happened."""
    error = exhausted(
        Reason.POOL_BUSY, "The server has more work than database connections. Send the call again later."
    )
    error.retry_after_seconds = 1.0
    return error


def translate(error: BaseException) -> OnefoldError | None:
    """The caller's view of a driver's error; None for what is no failure of PostgreSQL (a fault of ours)."""
    if isinstance(error, _CONTENDED):
        return lock_timeout()
    # transaction_timeout ends the session, statement_timeout the statement: either way the call took too long.
    if isinstance(error, _OVERRUN) or type(error).__name__ == "TransactionTimeoutError":
        return unavailable()
    if isinstance(error, LOST_CONNECTION + _REFUSED_BY_SERVER):
        return unavailable()
    return None
