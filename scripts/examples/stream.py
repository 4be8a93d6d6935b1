"""Sends many events, without asyncio, and without losing one when a server goes: python stream.py HOST:PORT API_KEY."""

import sys

from onefold.client import connect_sync, new_event, send_events_sync

target, api_key = sys.argv[1:]
batches = (
    # Your own event_ids, where you have some, make it safe to begin anew with another process, too.
    [new_event("Imported", anonymous_id="example-2", event_id=f"row-{batch}-{row}") for row in range(100)]
    for batch in range(10)
)
with connect_sync(target, api_key) as onefold:
    for answer in send_events_sync(onefold, batches):
        stored = sum(result.HasField("result") for result in answer.results)
        print(f"batch {answer.sequence}: {stored} stored")
