"""The gRPC server, from its first line to its last."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from onefold.activation.service import ActivationService
from onefold.activity.service import ActivityCalls
from onefold.config import Settings
from onefold.db.health import HEALTH_SECONDS, problem
from onefold.db.migrate import require_schema
from onefold.db.pool import SERVER_SETTINGS, Database
from onefold.devices.service import DevicesService
from onefold.events.batcher import Batcher
from onefold.events.service import EventsService
from onefold.forgetting.service import ForgetCalls
from onefold.identity.service import IdentityService
from onefold.intents.doorbell import DOORBELL_SERVICE, Doorbell
from onefold.limits import CONNECTION_STREAMS, MESSAGE_BYTES, METADATA_BYTES
from onefold.merges.learning import learn_who
from onefold.merges.service import MergeCalls
from onefold.ports import cannot_listen, require_free
from onefold.projects.keys import Authenticator
from onefold.projects.service import ProjectsService
from onefold.projects.store import forget_secret
from onefold.rpc.boundary import Boundary, Bounds, required_scopes
from onefold.rpc.rates import Rates
from onefold.rpc.reflection import Reflection
from onefold.rpc.transport import TlsFiles, server_credentials
from onefold.stopping import stop_on_signals
from onefold.telemetry.calls import prepare
from onefold.telemetry.http import Readiness, SidePort
from onefold.telemetry.state import StateMetrics
from onefold.triggers.service import TriggerCalls
from onefold.v1 import (
    activation_service_pb2,
    activation_service_pb2_grpc,
    devices_service_pb2,
    devices_service_pb2_grpc,
    events_service_pb2,
    events_service_pb2_grpc,
    identity_service_pb2,
    identity_service_pb2_grpc,
    projects_service_pb2,
    projects_service_pb2_grpc,
)

_log = structlog.get_logger()


class Identity(IdentityService, MergeCalls, ForgetCalls):
    """The whole IdentityService: profiles, merging, forgetting."""

    def __init__(self, database: Database, doorbell: Doorbell) -> None:
        IdentityService.__init__(self, database, doorbell, learn_who)
        MergeCalls.__init__(self, database, doorbell)
        ForgetCalls.__init__(self, database, doorbell)


class Events(EventsService, ActivityCalls, TriggerCalls):
    """The whole EventsService: events, the activity log, triggers."""

    def __init__(self, database: Database, batcher: Batcher, *, stream_batches: int) -> None:
        EventsService.__init__(self, database, batcher, stream_batches=stream_batches)
        ActivityCalls.__init__(self, database)
        TriggerCalls.__init__(self, database)


FILES: Final = [
    activation_service_pb2.DESCRIPTOR,
    devices_service_pb2.DESCRIPTOR,
    events_service_pb2.DESCRIPTOR,
    identity_service_pb2.DESCRIPTOR,
    projects_service_pb2.DESCRIPTOR,
]
# By method, how many events a request brings: they count towards its project's limit.
EVENT_COUNTS: Final[dict[str, Callable[[Any], int]]] = {
    "/onefold.v1.EventsService/Track": lambda request: 1,
    "/onefold.v1.EventsService/BatchTrack": lambda request: len(request.events),
    "/onefold.v1.EventsService/TrackStream": lambda request: len(request.events),
    "/onefold.v1.ActivationService/Replay": lambda request: sum(item.HasField("event") for item in request.items),
}
_OPTIONS: Final = [
    # A little more than a message may have, so that it is we who refuse one that is too large, and say why.
    ("grpc.max_receive_message_length", 2 * MESSAGE_BYTES),
    ("grpc.max_metadata_size", METADATA_BYTES),
    # Of headers a little larger gRPC would refuse some and take others.
    ("grpc.absolute_max_metadata_size", METADATA_BYTES),
    # Of one connection, so that none can take all places that there are. A client waits with more by itself.
    ("grpc.max_concurrent_streams", CONNECTION_STREAMS),
    # Clients of ours ask every 60 s whether we are there. Who asks all the time is hung up on.
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    ("grpc.http2.max_ping_strikes", 2),
    # A caller who vanished without a word is noticed, and gives back the places of its streams.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Who connects and says nothing holds a descriptor.
    ("grpc.server_handshake_timeout_ms", 20_000),
    # Long-lived clients find new servers.
    ("grpc.max_connection_age_ms", 30 * 60 * 1_000),
    ("grpc.max_connection_age_grace_ms", 60 * 1_000),
]
_LAME_DUCK_SECONDS: Final = 0.3


class _Unregistered:
    """Adds services to a server without registering each of their methods with it.

    grpc.aio keeps a future waiting for the next call of every registered method, and one for all others; for each call
    it waits on all of them anew. With 40 methods that was a tenth of a small call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Nothing: the generic handlers are asked for the method."""


async def serve(
    settings: Settings,
    *,
    on_ready: Callable[[str], None],
    on_http: Callable[[str], None] = lambda _: None,
    stop: asyncio.Event | None = None,
    shared_port: bool = False,
) -> None:
    """Serves until SIGTERM or SIGINT, or until `stop` is set. Calls `on_ready` with "HOST:PORT" when calls can come.

    Before that it calls `on_http` with the side port's, if there is one.

    With `shared_port`, other processes of this user may listen on the port too; connections are spread over them.

    Raises OnefoldError when it cannot start: PostgreSQL is away, its schema is too old, the port is taken, the TLS
    files are not good.
    """
    stop = stop or stop_on_signals()
    credentials = _credentials(settings)
    database = await Database.connect(
        settings.database_url,
        settings=SERVER_SETTINGS,
        connections=settings.server_connections,
        acquire_seconds=settings.acquire_seconds,
    )
    doorbell = Doorbell(settings.redis_url)
    batcher = Batcher(database)
    readiness = Readiness()
    state = StateMetrics(database, readiness, role="server", doorbell=doorbell, batcher=batcher)
    side_port = SidePort(readiness, state.page)
    try:
        await require_schema(database)
        secret = settings.forget_secret
        authenticator = Authenticator(
            database,
            secret.get_secret_value().encode() if secret else await database.read(forget_secret),
            frozenset(refused.casefold() for refused in settings.refused_ids),
        )
        bounds = Bounds(
            settings.concurrent_calls,
            settings.concurrent_streams,
            settings.stream_write_seconds,
            settings.stream_key_check_seconds,
        )
        boundary = Boundary(authenticator, required_scopes(FILES), bounds, Rates(EVENT_COUNTS))
        server = grpc.aio.server(
            interceptors=[boundary],
            options=[*_OPTIONS, ("grpc.so_reuseport", int(shared_port))],
            # Far more than the boundary takes, which says why it refuses one: this is for what passes it by.
            maximum_concurrent_rpcs=2 * (settings.concurrent_calls + settings.concurrent_streams),
        )
        methods: Any = _Unregistered(server)
        identity_service_pb2_grpc.add_IdentityServiceServicer_to_server(Identity(database, doorbell), methods)
        events_service_pb2_grpc.add_EventsServiceServicer_to_server(
            Events(database, batcher, stream_batches=settings.server_connections // 2), methods
        )
        devices_service_pb2_grpc.add_DevicesServiceServicer_to_server(DevicesService(database, doorbell), methods)
        activation_service_pb2_grpc.add_ActivationServiceServicer_to_server(
            ActivationService(database, doorbell), methods
        )
        projects_service_pb2_grpc.add_ProjectsServiceServicer_to_server(
            ProjectsService(database, authenticator), methods
        )
        names = [service.full_name for file in FILES for service in file.services_by_name.values()]
        servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, methods)
        server.add_generic_rpc_handlers(tuple(Reflection([*names, health.SERVICE_NAME]).handlers()))
        port = _listen(server, settings, credentials, shared_port=shared_port)

        if settings.http_port is not None:
            prepare(FILES)
            on_http(await side_port.start(settings.http_host, settings.http_port))
        await doorbell.start()
        await batcher.start()
        await server.start()
        watch = asyncio.create_task(_watch_health(servicer, database, doorbell, readiness, ["", *names]))
        # What the start has made stays for good. To look through it again and again took a tenth of a batch's time.
        gc.collect()
        gc.freeze()
        on_ready(f"{settings.host}:{port}")
        await stop.wait()

        # Out of the load balancers first, then no new calls, then the running ones end.
        watch.cancel()
        readiness.problem = "stopping"
        await servicer.enter_graceful_shutdown()
        boundary.stop()
        # gRPC alone would cancel calls that are on their way; for a moment they are told to go elsewhere instead.
        await asyncio.sleep(min(_LAME_DUCK_SECONDS, settings.drain_seconds))
        await server.stop(settings.drain_seconds)
    finally:
        await side_port.stop()
        await batcher.stop()
        await doorbell.stop()
        await database.close()


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """What the server proves itself with; None for plaintext."""
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    return server_credentials(
        TlsFiles(settings.tls_certificate_file, settings.tls_key_file, settings.tls_client_ca_file)
    )


def _listen(
    server: grpc.aio.Server, settings: Settings, credentials: grpc.ServerCredentials | None, *, shared_port: bool
) -> int:
    if not shared_port:
        # Before gRPC tries, which would print lines of its own about a port that is taken.
        require_free(settings.host, settings.port)
    try:
        if credentials is not None:
            return server.add_secure_port(f"{settings.host}:{settings.port}", credentials)
        return server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError:
        raise cannot_listen(settings.host, settings.port) from None


async def _watch_health(
    servicer: health.aio.HealthServicer, database: Database, doorbell: Doorbell, readiness: Readiness, names: list[str]
) -> None:
    """Reports SERVING while PostgreSQL takes writes and has our schema, else NOT_SERVING. Redis does
    not count, for no call needs it.

    Whether the last bells were heard is reported under a name of its own, which no load balancer asks for.
    """
    known: bool | None = None
    while True:
        await servicer.set(DOORBELL_SERVICE, _health_status(not doorbell.degraded))
        readiness.problem = await problem(database)
        serving = readiness.problem is None
        if serving is not known:
            for name in names:
                await servicer.set(name, _health_status(serving))
            if known is not None:
                _log.warning("health changed", serving=serving, problem=readiness.problem)
            known = serving
        await asyncio.sleep(HEALTH_SECONDS)


def _health_status(good: bool) -> int:
    return health_pb2.HealthCheckResponse.SERVING if good else health_pb2.HealthCheckResponse.NOT_SERVING
