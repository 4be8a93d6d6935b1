"""The commands that keep running, `dev`, `serve` and `work`, and the one that asks whether they do."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onefold.commands.common import TYPES, fail, plainly, run, say_ready, settings, warn_of_unknown_settings

if TYPE_CHECKING:
    from onefold.config import Settings

_HTTP_PORT = "Answer /metrics, /livez and /readyz here; 0 takes any free port. Default: nowhere."
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--port", default=50051, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free port.")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Default: a per-user data folder.")
@click.option("--ephemeral", is_flag=True, help="Keep nothing: a private folder, removed at the end.")
@click.option("--project", default="default", show_default=True, help="The project to make.")
@click.option("--project-type", type=TYPES, default="HYBRID", show_default=True, help="What names a person in it.")
@click.option("--api-key", envvar="ONEFOLD_DEV_API_KEY", help="The key to accept. Default: one made once and kept.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line when ready.")
def dev(
    port: int,
    data_dir: Path | None,
    ephemeral: bool,
    project: str,
    project_type: str,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Run the whole service here: PostgreSQL, Valkey, server and worker."""
    from onefold.dev import DevOptions, run_dev

    warn_of_unknown_settings()
    options = DevOptions(
        port=port,
        data_dir=data_dir,
        ephemeral=ephemeral,
        json=as_json,
        project=project,
        project_type=project_type.upper(),
        api_key=api_key,
    )
    sys.exit(plainly(lambda: run_dev(options)))


@click.command()
@click.option("--host", help="Address to listen on. Default: 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Default: 50051; 0 takes any free port.")
@click.option("--workers", type=click.IntRange(1, 64), help="Processes that share the port. Default: 1.")
@click.option("--allow-plaintext", is_flag=True, help="Listen beyond loopback without TLS, as behind a proxy.")
@click.option("--http-port", type=click.IntRange(0, 65535), help=_HTTP_PORT)
@click.option("--shared-port", is_flag=True, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
def serve(
    host: str | None,
    port: int | None,
    workers: int | None,
    allow_plaintext: bool,
    http_port: int | None,
    shared_port: bool,
    ready_fd: int | None,
) -> None:
    """Run the gRPC server."""
    if ready_fd is None:
        # A parent process that starts this one has said so already.
        warn_of_unknown_settings()
    own = settings(
        host=host, port=port, server_processes=workers, http_port=http_port, allow_plaintext=allow_plaintext or None
    )
    http: list[str] = []
    count = own.server_processes

    def on_ready(address: str) -> None:
        several = ready_fd is None and count > 1
        said = f"serving on {address} ({count} processes)" if several else f"ready {address}"
        say_ready(ready_fd, " ".join([said, *http]))

    if count > 1:
        from onefold.processes import serve_processes

        sys.exit(plainly(lambda: serve_processes(own, on_ready=on_ready)))

    from onefold.server import serve as serve_here

    _observe("server", own)
    on_http = partial(_note_http, http)
    run(lambda: serve_here(own, on_ready=on_ready, on_http=on_http, shared_port=shared_port))


@click.command()
@click.option("--http-port", type=click.IntRange(0, 65535), help=_HTTP_PORT)
@click.option("--ready-fd", type=int, hidden=True)
def work(http_port: int | None, ready_fd: int | None) -> None:
    """Run a worker."""
    from onefold.worker import work as work_here

    if ready_fd is None:
        warn_of_unknown_settings()
    own = settings(http_port=http_port)
    http: list[str] = []

    def on_ready() -> None:
        say_ready(ready_fd, " ".join(["ready", *http]))

    _observe("worker", own)
    run(lambda: work_here(own, on_ready=on_ready, on_http=partial(_note_http, http)))


@click.command()
@click.option("--target", default="127.0.0.1:50051", show_default=True, help="HOST:PORT of a server.")
@click.option("--timeout", "seconds", default=3.0, show_default=True, help="Seconds to wait.")
@click.option("--tls-ca", type=_FILE, help="Ask over TLS; PEM file of who signed the server's certificate.")
@click.option("--tls-certificate", type=_FILE, help="Our certificate, for a server that asks for one (PEM).")
@click.option("--tls-key", type=_FILE, help="Its key (PEM).")
@click.option("--tls-name", help="The name in the server's certificate, if it is not the target's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def health(
    target: str,
    seconds: float,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_name: str | None,
    as_json: bool,
) -> None:
    """Ask a server whether it serves; exit status 0 if it does."""
    import json

    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    def ask(service: str) -> str:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def open_channel() -> grpc.Channel:
        if tls_ca is None:
            return grpc.insecure_channel(target)
        ca, key, certificate = (path.read_bytes() if path else None for path in (tls_ca, tls_key, tls_certificate))
        named = [("grpc.ssl_target_name_override", tls_name)] if tls_name else []
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate), named)

    with open_channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            status, doorbell = ask(""), ask("onefold.doorbell")
        except grpc.RpcError as error:
            fail(f"{target} does not answer: {error.code().name}")
    degraded = doorbell != "SERVING"
    if as_json:
        click.echo(json.dumps({"target": target, "status": status, "degraded": degraded}))
    else:
        click.echo(f"{status} (degraded: Redis takes no bells, work begins up to 10 s later)" if degraded else status)
    sys.exit(0 if status == "SERVING" else 1)


def _observe(role: str, own: Settings) -> None:
    """Sets up log lines and traces of a process that runs until it is told to stop."""
    from onefold.logs import configure
    from onefold.telemetry import tracing

    configure(own.log_level, own.log_ok_share)
    tracing.configure(role)


def _note_http(http: list[str], address: str) -> None:
    http += ["http", address]
