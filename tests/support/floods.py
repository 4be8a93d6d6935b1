"""What a hostile client sends over one connection: bounded floods, over loopback only.

The frames of HTTP/2 (RFC 9113) are made by hand: a library would keep to the server's limits, and would take longer to
make a flood than the server to bear it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Final

SECONDS: Final = 10.0
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_HEADERS: Final = 4
CANCEL: Final = (8).to_bytes(4, "big")
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Frames that are sent at a time, between which the answers are read.
_PART: Final = 200


def frame(kind: int, stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    """One frame."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def field(name: str, value: str) -> bytes:
    """A header that no table remembers (RFC 7541, 6.2.2)."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data, size, length = text.encode(), len(text), b""
    if size < 127:
        return bytes([size]) + data
    size -= 127
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return b"\x7f" + length + bytes([size]) + data


class Connection:
    """A connection that sends whatever it wants to, and reads only to keep the other side's buffers empty."""

    def __init__(self, address: str, key: str | None = None) -> None:
        host, port = address.split(":")
        assert host == "127.0.0.1"
        self._socket = socket.create_connection((host, int(port)), timeout=SECONDS)
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": "/onefold.v1.EventsService/ListEvents",
            ":authority": address,
            "content-type": "application/grpc",
            "te": "trailers",
            **({"authorization": f"Bearer {key}"} if key else {}),
        }
        self.fields = b"".join(field(name, value) for name, value in fields.items())
        self.open = True

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes as they are, unless the server has hung up."""
        try:
            self._socket.settimeout(SECONDS)
            if self.open:
                self._socket.sendall(data)
        except OSError:
            self.open = False
        self.read(0.0)

    def send_all(self, frames: Iterator[bytes]) -> None:
        """Sends frames, until there are no more or the server hangs up."""
        part = []
        for each in frames:
            part.append(each)
            if len(part) == _PART:
                self.send(b"".join(part))
                part.clear()
            if not self.open:
                return
        self.send(b"".join(part))

    def read(self, seconds: float) -> None:
        """Reads what is there, or comes within the time."""
        # 0 makes it a socket that does not wait at all, which is what is meant.
        self._socket.settimeout(seconds)
        end = time.monotonic() + SECONDS
        try:
            while self.open and time.monotonic() < end:
                self.open = bool(self._socket.recv(65_536))
        except (BlockingIOError, TimeoutError):
            pass
        except OSError:
            self.open = False


def _begun(address: str, key: str | None) -> Connection:
    connection = Connection(address, key)
    connection.send(PREFACE + frame(SETTINGS, 0))
    return connection


def streams(address: str, key: str | None) -> list[Connection]:
    """10,000 calls on one connection that are never finished."""
    connection = _begun(address, key)
    connection.send_all(frame(HEADERS, 2 * n + 1, connection.fields, END_HEADERS) for n in range(10_000))
    return [connection]


def resets(address: str, key: str | None) -> list[Connection]:
    """10,000 calls that are taken back at once."""
    connection = _begun(address, key)
    connection.send_all(
        frame(HEADERS, 2 * n + 1, connection.fields, END_HEADERS) + frame(RST_STREAM, 2 * n + 1, CANCEL)
        for n in range(10_000)
    )
    return [connection]


def pings(address: str, key: str | None) -> list[Connection]:
    """10,000 pings."""
    connection = _begun(address, key)
    connection.send_all(frame(PING, 0, b"12345678") for _ in range(10_000))
    return [connection]


def settings(address: str, key: str | None) -> list[Connection]:
    """10,000 changes of a setting, each of which the server has to acknowledge."""
    connection = _begun(address, key)
    window = (4).to_bytes(2, "big") + (65_535).to_bytes(4, "big")
    connection.send_all(frame(SETTINGS, 0, window) for _ in range(10_000))
    return [connection]


def headers(address: str, key: str | None) -> list[Connection]:
    """Headers without an end: 64 MB in one call."""
    connection = _begun(address, key)
    note = field("x-note", "x" * 16_000)
    connection.send(frame(HEADERS, 1, connection.fields))
    connection.send_all(frame(CONTINUATION, 1, note) for _ in range(4_000))
    return [connection]


def strangers(address: str, key: str | None) -> list[Connection]:
    """200 connections that say nothing, or something else than HTTP/2."""
    connections = [Connection(address, key) for _ in range(200)]
    for connection in connections[::2]:
        connection.send(b"GET / HTTP/1.1\r\nhost: example.com\r\n\r\n" * 20)
    return connections


FLOODS: Final = {flood.__name__: flood for flood in (streams, resets, pings, settings, headers, strangers)}
