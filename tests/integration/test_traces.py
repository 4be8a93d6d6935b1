"""Spans of a real server and a real worker: one trace from the call to the last chunk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from onefold.config import Settings
from onefold.telemetry import tracing
from onefold.v1.event_pb2 import NewEvent
from onefold.v1.events_service_pb2 import TrackRequest
from onefold.v1.identity_service_pb2 import GetProfileRequest, IdentifyRequest
from support.client import Client, email, failure
from support.probes import eventually
from support.watched import Watched, watching
from support.world import World

CANARY = "canary-7f3a"
# As in test_worker.py: arq's and redis' own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@pytest_asyncio.fixture(scope="module")
async def watched(settings: Settings) -> AsyncIterator[Watched]:
    """A server and a worker for all tests of this file."""
    async with watching(settings) as both:
        yield both


TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """The spans that end while the test runs, by the SDK's own exporter."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.use(None)
    provider.shutdown()


def in_trace(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    """Those of the caller's trace."""
    return [span for span in spans.get_finished_spans() if f"{span.context.trace_id:032x}" == TRACE]


def path(span: ReadableSpan, spans: list[ReadableSpan]) -> list[str]:
    """The names from the outermost span that is known to this one."""
    above = {each.context.span_id: each for each in spans}
    names = [span.name]
    while span.parent is not None and span.parent.span_id in above:
        span = above[span.parent.span_id]
        names.insert(0, span.name)
    return names


async def test_one_trace_from_the_call_to_the_workers_chunk(watched: Watched, spans: InMemorySpanExporter) -> None:
    """A3: call, transaction, and the chunks that a worker does for it later are spans of the caller's trace."""
    client = await watched.client("traced")
    await client.events.Track(TrackRequest(event=NewEvent(anonymous_id=CANARY, name="Viewed")))
    await client.identity.Identify(
        IdentifyRequest(identifiers=email(f"{CANARY}@example.com"), anonymous_id=CANARY),
        metadata=(("traceparent", PARENT),),
    )

    async def worked() -> bool:
        return any(span.name == "work MOVE" for span in in_trace(spans))

    await eventually(worked)
    found = in_trace(spans)
    paths = [path(span, found) for span in found]
    call = "onefold.v1.IdentityService/Identify"
    assert [call] in paths
    assert [call, "transaction"] in paths
    assert [call, "transaction", "work MOVE"] in paths
    assert [call, "transaction", "work MOVE", "chunk MOVE", "transaction"] in paths
    [root] = [span for span in found if span.name == call]
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == "b7ad6b7169203331"
    assert root.attributes is not None
    assert root.attributes["rpc.grpc.status_code"] == 0
    assert root.attributes["onefold.project_id"] == client.project_id
    everything = "".join(span.to_json() for span in spans.get_finished_spans())
    assert CANARY not in everything
    assert client.key not in everything


async def test_a_failed_call_says_so_in_its_span(watched: Watched, spans: InMemorySpanExporter) -> None:
    """X2: the span of a call that is refused has its code and its reason, and no text."""
    client = await watched.client("refused")
    metadata = (("traceparent", PARENT),)
    await failure(
        client.identity.GetProfile(GetProfileRequest(identifiers=email(f"{CANARY}@example.com")), metadata=metadata)
    )
    [span] = [span for span in in_trace(spans) if span.name.endswith("/GetProfile")]
    assert span.attributes is not None
    assert (span.attributes["rpc.grpc.status_code"], span.attributes["onefold.reason"]) == (5, "PROFILE_NOT_FOUND")
    assert not span.status.is_ok
    assert CANARY not in span.to_json()


async def test_calls_that_share_a_commit_are_linked_to_it(watched: Watched, spans: InMemorySpanExporter) -> None:
    """X3: the transaction of a batch is in a trace of its own, which names the calls it answers."""
    client = await watched.client("linked")
    await client.events.Track(
        TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed")), metadata=(("traceparent", PARENT),)
    )

    def named() -> list[ReadableSpan]:
        return [span for span in spans.get_finished_spans() if span.name == "batch"]

    async def ended() -> bool:
        return bool(named())

    await eventually(ended)
    [batch] = named()
    assert [f"{link.context.trace_id:032x}" for link in batch.links] == [TRACE]
    assert ["batch", "transaction"] in [
        path(span, list(spans.get_finished_spans())) for span in spans.get_finished_spans()
    ]


@pytest.mark.parametrize(
    "given", ["", "00-zz", f"00-{'0' * 32}-{'0' * 16}-01", f"01-{TRACE}-b7ad6b7169203331-01-x", "x" * 4000]
)
async def test_a_traceparent_that_is_none_harms_nothing(
    watched: Watched, spans: InMemorySpanExporter, given: str
) -> None:
    """F65: whatever stands there, the call is answered, in a trace of its own."""
    client = await watched.client("strange")
    await client.events.Track(
        TrackRequest(event=NewEvent(anonymous_id="x", name="Viewed")), metadata=(("traceparent", given),)
    )
    [span] = [span for span in spans.get_finished_spans() if span.name.endswith("/Track")]
    assert span.parent is None


async def test_without_tracing_an_intent_keeps_nothing(email_project: Client, world: World) -> None:
    """F42: what a caller sends as traceparent is stored nowhere unless somebody traces."""
    await email_project.identity.Identify(
        IdentifyRequest(identifiers=email("a@example.com"), anonymous_id="x"), metadata=(("traceparent", PARENT),)
    )
    rows = await world.fetch("SELECT trace_parent FROM intents WHERE project_id = $1", email_project.project_id)
    assert [row["trace_parent"] for row in rows] == [None]
