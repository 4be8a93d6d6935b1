"""Taking a port: for one server alone, or for several processes that share it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from onefold.errors import Kind, OnefoldError, Reason


def require_free(host: str, port: int) -> int:
    """The port's number, also for 0, which takes any. Raises OnefoldError if another program has it."""
    try:
        with socket.create_server((host, port)) as probe:
            number: int = probe.getsockname()[1]
            return number
    except OSError:
        raise cannot_listen(host, port) from None


@contextmanager
def held(host: str, port: int) -> Iterator[int]:
    """Keeps a port for processes of this user that listen with SO_REUSEPORT; gives its number.

    Raises OnefoldError if another program has the port, also one that shares it among processes of its own.
    """
    number = require_free(host, port)
    with socket.socket() as holder:
        # It never listens, so no connection comes here. SO_REUSEADDR admits a port on which old connections linger.
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            holder.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            holder.bind((host, number))
        except OSError:
            raise cannot_listen(host, number) from None
        # Kept on, it would also admit a server that wants the port for itself.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield number


def cannot_listen(host: str, port: int) -> OnefoldError:
    """The error of a port that another program has, or an address that is not this machine's."""
    return OnefoldError(
        Kind.UNAVAILABLE, Reason.INTERNAL, f"Cannot listen on {host}:{port}: is another program using the port?"
    )
