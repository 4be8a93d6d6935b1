"""TLS: who may connect, and certificates that are replaced while the server runs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from onefold.client import Tls, UnknownOutcomeError, connect, connect_sync
from onefold.config import Settings
from onefold.server import serve
from onefold.v1.projects_service_pb2 import GetProjectRequest
from support.client import Client
from support.probes import eventually
from support.processes import run

HOST = "127.0.0.1"


class Certificate:
    """The files of a server, signed by a CA of our own."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key, self.client_ca = (
            folder / name for name in ("server.pem", "key.pem", "clients.pem")
        )
        self.ca = trustme.CA()
        self.renew(self.ca)

    def renew(self, ca: trustme.CA) -> None:
        """Puts a certificate of a CA in place of the one that is there, file by file."""
        self.ca = ca
        made = ca.issue_cert(HOST)
        self.key.write_bytes(made.private_key_pem.bytes())
        self.certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))

    def settings(self, settings: Settings) -> Settings:
        """Settings of a server with these files."""
        files: dict[str, Any] = {"tls_certificate_file": self.certificate, "tls_key_file": self.key}
        if self.client_ca.exists():
            files["tls_client_ca_file"] = self.client_ca
        return settings.model_copy(update=files)


@pytest.fixture
def files(tmp_path: Path) -> Certificate:
    """Certificate and key of a server on this machine."""
    return Certificate(tmp_path)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """A real server in this process; gives its HOST:PORT."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    task = asyncio.create_task(serve(settings, on_ready=ready.set_result, stop=stop))

    def ended(task: asyncio.Task[None]) -> None:
        # A server that cannot start fails the test at once, instead of being waited for.
        if not ready.done():
            ready.set_exception(task.exception() or AssertionError("the server ended"))

    try:
        task.add_done_callback(ended)
        yield await ready
    finally:
        stop.set()
        await asyncio.wait([task])


def roots(ca: trustme.CA) -> bytes:
    """A CA's certificate."""
    return ca.cert_pem.bytes()


async def project_id(address: str, project: Client, tls: Tls | None) -> str:
    """Calls over a connection of its own; the project that the server found."""
    async with connect(address, project.key, tls=tls, call_seconds=10) as client:
        return (await client.projects.GetProject(GetProjectRequest())).project.project_id


async def refused(call: Awaitable[object]) -> bool:
    """Whether a call found nobody to talk to."""
    with pytest.raises(UnknownOutcomeError) as raised:
        await call
    return raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_calls_go_over_tls_alone(settings: Settings, files: Certificate, hybrid_project: Client) -> None:
    """P6: with a certificate the server takes calls of callers who trust it, from both clients, and none in plaintext
    nor of those who trust somebody else."""
    async with serving(files.settings(settings)) as address:
        tls = Tls(roots(files.ca))
        assert await project_id(address, hybrid_project, tls) == hybrid_project.project_id
        with connect_sync(address, hybrid_project.key, tls=tls) as client:
            answer = await asyncio.to_thread(client.projects.GetProject, GetProjectRequest())
        assert answer.project.project_id == hybrid_project.project_id
        assert all(
            await asyncio.gather(
                refused(project_id(address, hybrid_project, None)),
                refused(project_id(address, hybrid_project, Tls(roots(trustme.CA())))),
            )
        )


async def test_callers_prove_themselves(settings: Settings, files: Certificate, hybrid_project: Client) -> None:
    """P6: with a client CA, callers need a certificate of it: none, or one of another CA, is not let in."""
    clients = trustme.CA()
    files.client_ca.write_bytes(roots(clients))

    def of(ca: trustme.CA) -> Tls:
        made = ca.issue_cert("shop.example.com")
        return Tls(roots(files.ca), made.private_key_pem.bytes(), b"".join(pem.bytes() for pem in made.cert_chain_pems))

    async with serving(files.settings(settings)) as address:
        assert await project_id(address, hybrid_project, of(clients)) == hybrid_project.project_id
        assert all(
            await asyncio.gather(
                refused(project_id(address, hybrid_project, Tls(roots(files.ca)))),
                refused(project_id(address, hybrid_project, of(trustme.CA()))),
            )
        )


def shown(address: str) -> str:
    """The certificate that the server shows to a new connection."""
    host, port = address.split(":")
    # Not http: gRPC ends connections that do not speak HTTP/2.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        with context.wrap_socket(plain) as secured:
            return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True) or b"")


async def test_a_certificate_is_replaced_without_a_restart(
    settings: Settings, files: Certificate, hybrid_project: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """P6: new files count from the next connection on while connections that are there go on; broken ones change
    nothing and are told in one line, until good ones come."""
    old, new = files.ca, trustme.CA()
    async with serving(files.settings(settings)) as address:
        async with connect(address, hybrid_project.key, tls=Tls(roots(old))) as there:
            await there.projects.GetProject(GetProjectRequest())
            files.renew(new)
            assert await project_id(address, hybrid_project, Tls(roots(new))) == hybrid_project.project_id
            await there.projects.GetProject(GetProjectRequest())
        reloaded = await asyncio.to_thread(shown, address)
        capfd.readouterr()

        good_key = files.key.read_bytes()
        told = []
        for break_it in (
            lambda: files.key.write_bytes(b"no key"),
            lambda: files.key.write_bytes(trustme.CA().issue_cert(HOST).private_key_pem.bytes()),
            lambda: files.key.unlink(),
        ):
            break_it()
            for _ in range(3):
                assert await asyncio.to_thread(shown, address) == reloaded
            told.append(capfd.readouterr())
        for written in told:
            [line] = (written.out + written.err).splitlines()
            assert "certificate not reloaded" in line
            assert "PRIVATE KEY" not in line

        files.key.write_bytes(good_key)
        files.renew(old)

        async def shows_the_old_one() -> bool:
            return await asyncio.to_thread(shown, address) == files.certificate.read_text()

        await eventually(shows_the_old_one)


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (lambda files: files.certificate.unlink(), "server.pem: No such file"),
        (lambda files: files.certificate.write_bytes(b""), "PEM"),
        (lambda files: files.key.write_bytes(trustme.CA().issue_cert(HOST).private_key_pem.bytes()), "belong together"),
        (lambda files: files.client_ca.write_bytes(b"nothing"), "PEM"),
    ],
    ids=["missing", "empty", "another key", "client CA"],
)
async def test_files_that_cannot_be_used(settings: Settings, files: Certificate, broken: Any, text: str) -> None:
    """X2: a server with TLS files that are missing or wrong does not start, and one sentence says why."""
    broken(files)
    with pytest.raises(Exception, match=r"^The TLS files cannot be used: ") as raised:
        async with serving(files.settings(settings)):
            pass
    assert text in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_health_is_asked_over_tls(settings: Settings, files: Certificate) -> None:
    """X2: `onefold health` asks a server with a certificate, and one that wants ours, and says so when it may not."""
    clients = trustme.CA()
    files.client_ca.write_bytes(roots(clients))
    ours, ca = files.client_ca.with_name("ours.pem"), files.client_ca.with_name("ca.pem")
    made = clients.issue_cert("probe.example.com")
    made.private_key_and_cert_chain_pem.write_to_path(str(ours))
    ca.write_bytes(roots(files.ca))
    async with serving(files.settings(settings)) as address:
        asked = ["health", "--target", address, "--tls-ca", str(ca)]
        with_ours = [*asked, "--tls-certificate", str(ours), "--tls-key", str(ours)]
        good, bad = await asyncio.gather(asyncio.to_thread(run, *with_ours), asyncio.to_thread(run, *asked))
    assert (good.returncode, good.stdout.split()[0]) == (0, "SERVING"), good.stderr
    assert (bad.returncode, bad.stderr) == (1, f"onefold: {address} does not answer: UNAVAILABLE\n")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_refuses_plaintext_in_one_line(workers: str) -> None:
    """X2: `onefold serve` on all addresses without TLS says in one line what to do, before it asks for a database."""
    nowhere = {
        "ONEFOLD_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "ONEFOLD_REDIS_URL": "redis://127.0.0.1:1/0",
    }
    done = run("serve", "--host", "0.0.0.0", "--workers", workers, **nowhere)
    assert done.returncode != 0
    [line] = done.stderr.splitlines()
    assert line.startswith("onefold: ONEFOLD_ALLOW_PLAINTEXT: ")
    assert "onefold_tls_certificate_file" in line.lower()
    assert "--allow-plaintext" in line
