"""A visitor becomes a person: python visitor.py HOST:PORT API_KEY."""

import asyncio
import sys

from onefold.client import NotFoundError, connect, load_data, new_event, pages
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.events_service_pb2 import ListEventsRequest, TrackRequest
from onefold.v1.identity_service_pb2 import GetProfileRequest, IdentifyRequest
from onefold.v1.profile_pb2 import Identifiers

ADA = Identifiers(email="ada.visitor@example.com")


async def main(target: str, api_key: str) -> None:
    async with connect(target, api_key) as onefold:
        event = new_event("Viewed Pizza", anonymous_id="example-1", data={"size": "large", "toppings": ["basil"]})
        await onefold.events.Track(TrackRequest(event=event))
        try:
            await onefold.identity.GetProfile(GetProfileRequest(identifiers=ADA))
        except NotFoundError as error:
            print(f"before: {error.reason}")
        await onefold.identity.Identify(IdentifyRequest(identifiers=ADA, anonymous_id="example-1"))
        request = ListEventsRequest(identifiers=ADA, data_format=DATA_FORMAT_JSON)
        async for found in pages(onefold.events.ListEvents, request):
            print(f"after: {found.name} {load_data(found)['toppings']}")


asyncio.run(main(*sys.argv[1:]))
