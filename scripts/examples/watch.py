"""Watches triggers from where it was the last time: python watch.py HOST:PORT API_KEY CURSOR_FILE COUNT."""

import asyncio
import sys
from pathlib import Path

from onefold.client import connect, watch_triggers
from onefold.v1.events_service_pb2 import TRIGGER_START_OLDEST, WatchTriggersRequest


async def main(target: str, api_key: str, cursor_file: str, count: str) -> None:
    kept = Path(cursor_file)
    request = WatchTriggersRequest(at=TRIGGER_START_OLDEST)
    if kept.exists():
        request.cursor = kept.read_text()
    seen = 0
    async with connect(target, api_key) as onefold:
        async for message in watch_triggers(onefold, request):
            for trigger in message.triggers:
                print(trigger.event.name)
                seen += 1
            # After the work, and best in the same transaction as what it led to.
            kept.write_text(message.cursor)
            if seen >= int(count):
                return


asyncio.run(main(*sys.argv[1:]))
