"""The commands that keep running, `dev`, `serve` and `work`, and the one that asks whether they do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from onefold.commands.common import TYPES, fail, plainly, run, say_ready, settings, warn_of_unknown_settings


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
@click.option("--shared-port", is_flag=True, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
def serve(host: str | None, port: int | None, workers: int | None, shared_port: bool, ready_fd: int | None) -> None:
    """Run the gRPC server."""
    from onefold.logs import configure

    if ready_fd is None:
        # A parent process that starts this one has said so already.
        warn_of_unknown_settings()
    own = settings(host=host, port=port, server_processes=workers)
    configure()
    count = own.server_processes

    def on_ready(address: str) -> None:
        several = ready_fd is None and count > 1
        say_ready(ready_fd, f"serving on {address} ({count} processes)" if several else f"ready {address}")

    if count > 1:
        from onefold.processes import serve_processes

        sys.exit(plainly(lambda: serve_processes(own, on_ready=on_ready)))

    from onefold.server import serve as serve_here

    run(lambda: serve_here(own, on_ready=on_ready, shared_port=shared_port))


@click.command()
@click.option("--ready-fd", type=int, hidden=True)
def work(ready_fd: int | None) -> None:
    """Run a worker."""
    from onefold.logs import configure
    from onefold.worker import work as work_here

    if ready_fd is None:
        warn_of_unknown_settings()
    own = settings()
    configure()
    run(lambda: work_here(own, on_ready=lambda: say_ready(ready_fd, "ready")))


@click.command()
@click.option("--target", default="127.0.0.1:50051", show_default=True, help="HOST:PORT of a server.")
@click.option("--timeout", "seconds", default=3.0, show_default=True, help="Seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def health(target: str, seconds: float, as_json: bool) -> None:
    """Ask a server whether it serves; exit status 0 if it does."""
    import json

    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    def ask(service: str) -> str:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    with grpc.insecure_channel(target) as channel:
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
