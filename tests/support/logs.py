"""Reading the activity log, page after page, and saying in short what stands in it."""

from __future__ import annotations

from typing import Any

from onefold.v1.activity_pb2 import Activity
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.events_service_pb2 import ListActivityRequest
from support.client import Client


async def log(client: Client, page_size: int = 500, **request: Any) -> list[Activity]:
    """All entries that a request lists, page after page, newest first."""
    found: list[Activity] = []
    token = ""
    while True:
        page = await client.events.ListActivity(
            ListActivityRequest(page_size=page_size, page_token=token, data_format=DATA_FORMAT_JSON, **request)
        )
        assert len(page.activities) <= page_size
        found += page.activities
        token = page.next_page_token
        if not token:
            return found


def short(activity: Activity) -> str:
    """What an entry is about, in a word or two."""
    match activity.WhichOneof("activity"):
        case "event":
            return activity.event.name
        case "anonymous_data_merged":
            merged = activity.anonymous_data_merged
            return f"linked {merged.anonymous_id} {merged.event_count}" + (" undone" * merged.HasField("undo_time"))
        case "profile_created":
            return "created"
        case "profile_merged":
            return "merged" + (" undone" * activity.profile_merged.HasField("undo_time"))
        case "profile_forgotten":
            return "forgotten" if activity.profile_forgotten.identifiers_blocked else "deleted"
        case "device_registered":
            return f"registered {activity.device_registered.token}"
        case "device_disabled":
            disabled = activity.device_disabled
            return f"disabled {disabled.token}" + (" for all" * disabled.for_all_holders)
        case _:
            raise AssertionError("an entry without anything in it")


async def shorts(client: Client, **request: Any) -> list[str]:
    """The same of everything that a request lists, newest first."""
    return [short(activity) for activity in await log(client, **request)]
