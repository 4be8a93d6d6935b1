"""The command line. Each command imports what it needs when it runs, so that --help costs nothing."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from uuid import UUID

    from onefold.config import Settings
    from onefold.db.pool import Database

T = TypeVar("T")

_HTTP_PORT = "Answer /metrics, /livez and /readyz here; 0 takes any free port. Default: nowhere."
_TYPES = click.Choice(["EMAIL", "USER_ID", "HYBRID"], case_sensitive=False)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="onefold")
def main() -> None:
    """onefold keeps one true profile per person."""


@main.command()
@click.option("--port", default=50051, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free port.")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Default: a per-user data folder.")
@click.option("--ephemeral", is_flag=True, help="Keep nothing: a private folder, removed at the end.")
@click.option("--project", default="default", show_default=True, help="The project to make.")
@click.option("--project-type", type=_TYPES, default="HYBRID", show_default=True, help="What names a person in it.")
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

    options = DevOptions(
        port=port,
        data_dir=data_dir,
        ephemeral=ephemeral,
        json=as_json,
        project=project,
        project_type=project_type.upper(),
        api_key=api_key,
    )
    sys.exit(_plainly(lambda: run_dev(options)))


@main.command()
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
    settings = _settings(
        host=host, port=port, server_processes=workers, http_port=http_port, allow_plaintext=allow_plaintext or None
    )
    http: list[str] = []
    count = settings.server_processes

    def on_ready(address: str) -> None:
        several = ready_fd is None and count > 1
        said = f"serving on {address} ({count} processes)" if several else f"ready {address}"
        _say_ready(ready_fd, " ".join([said, *http]))

    if count > 1:
        from onefold.processes import serve_processes

        sys.exit(_plainly(lambda: serve_processes(settings, on_ready=on_ready)))

    from onefold.server import serve as run

    _observe("server", settings)
    on_http = partial(_note_http, http)
    _run(lambda: run(settings, on_ready=on_ready, on_http=on_http, shared_port=shared_port))


@main.command()
@click.option("--http-port", type=click.IntRange(0, 65535), help=_HTTP_PORT)
@click.option("--ready-fd", type=int, hidden=True)
def work(http_port: int | None, ready_fd: int | None) -> None:
    """Run a worker."""
    from onefold.worker import work as run

    settings = _settings(http_port=http_port)
    http: list[str] = []
    _observe("worker", settings)
    _run(
        lambda: run(
            settings,
            on_ready=lambda: _say_ready(ready_fd, " ".join(["ready", *http])),
            on_http=partial(_note_http, http),
        )
    )


@main.command()
def migrate() -> None:
    """Bring the database's schema up to date."""
    from onefold.db.migrate import migrate as run

    applied = _run(lambda: run(_settings().database_url))
    click.echo("\n".join(f"applied {name}" for name in applied) or "up to date")


@main.group()
def project() -> None:
    """Projects."""


@project.command("create")
@click.argument("project_id")
@click.option("--type", "project_type", type=_TYPES, required=True, help="What names a person in it; for good.")
@click.option("--region", type=click.Choice(["US", "EU"], case_sensitive=False), default="US", show_default=True)
def project_create(project_id: str, project_type: str, region: str) -> None:
    """Make a project; prints its first key, which holds every scope."""
    from onefold.callers import IdentifierType, Region
    from onefold.projects.bootstrap import create_project

    click.echo(
        _with_database(
            lambda database: create_project(
                database, project_id, IdentifierType(project_type.upper()), Region(region.upper())
            )
        )
    )


@main.group()
def key() -> None:
    """API keys."""


@key.command("create")
@click.argument("project_id")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["READ", "WRITE", "ADMIN"], case_sensitive=False),
    default=["READ", "WRITE"],
    show_default=True,
    help="May be given several times.",
)
@click.option("--name", default="", help="What the key is for.")
def key_create(project_id: str, scopes: tuple[str, ...], name: str) -> None:
    """Make a key of a project; prints it."""
    from onefold.callers import Scope
    from onefold.projects.bootstrap import create_key

    wanted = frozenset(Scope(scope.upper()) for scope in scopes)
    click.echo(_with_database(lambda database: create_key(database, project_id, wanted, name)))


@main.group()
def intents() -> None:
    """Work that commits left to the workers."""


@intents.command("list")
@click.option("--project", "project_id", help="Only of this project.")
@click.option("--stuck", "stuck_only", is_flag=True, help="Only those that the workers gave up.")
@click.option(
    "--limit", "count", default=100, show_default=True, type=click.IntRange(1, 10_000), help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def intents_list(project_id: str | None, stuck_only: bool, count: int, as_json: bool) -> None:
    """List open intents, the oldest first: state, attempts, and why the last one failed."""
    from dataclasses import asdict

    import orjson

    from onefold.intents.store import ListedIntent, list_intents

    def line(intent: ListedIntent) -> str:
        if as_json:
            return orjson.dumps(asdict(intent), default=str).decode()
        return (
            f"{intent.project_id:<20} {intent.intent_id} {intent.kind:<8} {intent.state:<8} "
            f"{intent.attempt_count:>2} tries  since {intent.create_time:%Y-%m-%d %H:%M:%S}  {intent.last_error or ''}"
        ).rstrip()

    async def act(database: Database) -> str:
        listed = await database.read(
            lambda connection: list_intents(connection, project_id, stuck_only=stuck_only, count=count)
        )
        return "\n".join(map(line, listed))

    text = _with_database(act)
    if text or not as_json:
        click.echo(text or "nothing to do")


@intents.command("retry")
@click.argument("intent_ids", nargs=-1, type=click.UUID)
@click.option("--project", "project_id", help="Only of this project.")
@click.option("--all", "everything", is_flag=True, help="All that are stuck.")
def intents_retry(intent_ids: tuple[UUID, ...], project_id: str | None, everything: bool) -> None:
    """Let stuck intents begin anew; prints how many."""
    from onefold.intents.store import retry

    if bool(intent_ids) == everything:
        raise click.UsageError("Name intents, or give --all.")

    async def act(database: Database) -> str:
        named = None if everything else intent_ids
        return str(await database.transact(lambda connection: retry(connection, project_id, named)))

    click.echo(_with_database(act))


@main.command()
@click.option("--target", default="127.0.0.1:50051", show_default=True, help="HOST:PORT of a server.")
@click.option("--timeout", "seconds", default=3.0, show_default=True, help="Seconds to wait.")
@click.option("--tls-ca", type=_FILE, help="Ask over TLS; PEM file of who signed the server's certificate.")
@click.option("--tls-certificate", type=_FILE, help="Our certificate, for a server that asks for one (PEM).")
@click.option("--tls-key", type=_FILE, help="Its key (PEM).")
@click.option("--tls-name", help="The name in the server's certificate, if it is not the target's.")
def health(
    target: str,
    seconds: float,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_name: str | None,
) -> None:
    """Ask a server whether it serves; exit status 0 if it does."""
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
            _fail(f"{target} does not answer: {error.code().name}")
    click.echo(
        status if doorbell == "SERVING" else f"{status} (degraded: Redis takes no bells, work begins up to 10 s later)"
    )
    sys.exit(0 if status == "SERVING" else 1)


def _observe(role: str, settings: Settings) -> None:
    """Sets up log lines and traces of a process that runs until it is told to stop."""
    from onefold.logs import configure
    from onefold.telemetry import tracing

    configure(settings.log_level, settings.log_ok_share)
    tracing.configure(role)


def _note_http(http: list[str], address: str) -> None:
    http += ["http", address]


def _settings(**flags: object) -> Settings:
    from pydantic import ValidationError

    from onefold.config import Settings

    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        problems = "; ".join(
            f"ONEFOLD_{str(problem['loc'][0]).upper()}: {problem['msg'].lower()}" for problem in error.errors()
        )
        _fail(problems)


def _with_database(action: Callable[[Any], Coroutine[Any, Any, str]]) -> str:
    from onefold.db.pool import Database

    async def act() -> str:
        database = await Database.connect(_settings().database_url, connections=2)
        try:
            return await action(database)
        finally:
            await database.close()

    return _run(act)


def _run(main_function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    import uvloop

    def act() -> T:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main_function())

    return _plainly(act)


def _plainly(act: Callable[[], T]) -> T:
    """Runs a command; what goes wrong is one line on stderr and exit status 1, without a traceback."""
    from onefold.errors import OnefoldError

    try:
        return act()
    except OnefoldError as error:
        details = "; ".join(f"{violation.field} {violation.description}" for violation in error.violations)
        _fail(details or error.message)


def _say_ready(ready_fd: int | None, line: str) -> None:
    if ready_fd is None:
        click.echo(line, err=True)
        return
    # The parent waits for this line on a pipe of its own: logs cannot get into it.
    with os.fdopen(ready_fd, "w") as pipe:
        pipe.write(line + "\n")


def _fail(message: str) -> NoReturn:
    click.echo(f"onefold: {message}", err=True)
    sys.exit(1)
