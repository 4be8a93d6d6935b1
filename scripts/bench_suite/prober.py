"""Calls that come all the time, from a process of their own: `python -m bench_suite.prober ADDRESS KEY --ready-fd N`.

It writes and reads one profile in turn, and prints a line whenever the two begin to succeed or to fail: the seconds of
the clock that all processes of a machine share, and OK or the code that a call came back with.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from typing import Any, Final

import grpc

from onefold.v1.identity_service_pb2 import GetProfileRequest, UpdateProfileRequest
from onefold.v1.identity_service_pb2_grpc import IdentityServiceStub
from onefold.v1.profile_pb2 import Identifiers

_CALL_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.01
_PERSON: Final = Identifiers(email="probe@example.com")


async def _run(address: str, key: str, ready_fd: int) -> None:
    metadata = (("authorization", f"Bearer {key}"),)
    state = ""
    async with grpc.aio.insecure_channel(address) as channel:
        untyped: Any = channel
        identity: Any = IdentityServiceStub(untyped)
        while True:
            try:
                for call, request in (
                    (identity.UpdateProfile, UpdateProfileRequest(identifiers=_PERSON, data_fields_json="{}")),
                    (identity.GetProfile, GetProfileRequest(identifiers=_PERSON)),
                ):
                    await call(request, metadata=metadata, timeout=_CALL_SECONDS)
                now = "OK"
            except grpc.aio.AioRpcError as error:
                now = error.code().name
            if now != state:
                print(f"{time.monotonic():.3f} {now}", flush=True)
                if not state:
                    os.write(ready_fd, b"ready\n")
                state = now
            await asyncio.sleep(_PAUSE_SECONDS)


def main() -> None:
    """Reads the command line, and calls until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("key")
    parser.add_argument("--ready-fd", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(_run(options.address, options.key, options.ready_fd))


if __name__ == "__main__":
    main()
