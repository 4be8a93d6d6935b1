"""Calls from a process of its own: `python -m bench_suite.loader ADDRESS METHOD FILE --key KEY --calls N ...`.

FILE holds requests, ready to be sent, each behind gRPC's own prefix (a zero byte and four bytes of length); they are
sent in turn, so the process spends its time on the calls and not on making them. With --streams the method takes a
stream and answers each message: as many streams as calls would be in flight. It prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import grpc
import uvloop

_CONNECTIONS: Final = 8
_CALL_SECONDS: Final = 30.0


def framed(message: bytes) -> bytes:
    """A message behind gRPC's prefix."""
    return b"\0" + struct.pack(">I", len(message)) + message


def _messages(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        end = position + 5 + struct.unpack_from(">I", data, position + 1)[0]
        yield data[position + 5 : end]
        position = end


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    requests = islice(cycle(list(_messages(options.file.read_bytes()))), options.calls)
    metadata = (("authorization", f"Bearer {options.key}"),)
    milliseconds: list[float] = []
    failures: dict[str, int] = {}
    count = min(_CONNECTIONS, options.in_flight)
    channels = [
        grpc.aio.insecure_channel(options.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    begin, computed = time.perf_counter(), time.process_time()
    due = begin

    async def call_on(channel: grpc.aio.Channel) -> None:
        nonlocal due
        call = channel.unary_unary(options.method)
        for request in requests:
            started = time.perf_counter()
            if options.rate:
                # The calls of all share one clock. One that begins late counts from when it was due.
                started = due = due + 1 / options.rate
                await asyncio.sleep(due - time.perf_counter())
            try:
                await call(request, metadata=metadata, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                failures[error.code().name] = failures.get(error.code().name, 0) + 1
            else:
                milliseconds.append((time.perf_counter() - started) * 1_000)

    async def stream_on(channel: grpc.aio.Channel, mine: list[bytes]) -> None:
        stream = channel.stream_stream(options.method)(metadata=metadata)

        async def send() -> None:
            for request in mine:
                await stream.write(request)
            await stream.done_writing()

        sending = asyncio.create_task(send())
        answers = [answer async for answer in stream]
        await sending
        if len(answers) != len(mine):
            failures["UNANSWERED"] = failures.get("UNANSWERED", 0) + len(mine) - len(answers)

    if options.streams:
        every = list(requests)
        work = [
            stream_on(channels[number % count], every[number :: options.in_flight])
            for number in range(options.in_flight)
        ]
    else:
        work = [call_on(channels[number % count]) for number in range(options.in_flight)]
    await asyncio.gather(*work)
    measured = {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - computed}
    await asyncio.gather(*(channel.close() for channel in channels))
    return {**measured, "failures": failures, "milliseconds": milliseconds}


def main() -> None:
    """Reads the command line, makes the calls, prints what became of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("method")
    parser.add_argument("file", type=Path)
    parser.add_argument("--key", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--streams", action="store_true")
    parser.add_argument("--rate", type=float, default=0.0, help="calls per second; default: as many as go")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(_run(parser.parse_args()))))


if __name__ == "__main__":
    main()
