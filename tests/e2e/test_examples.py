"""The programs under scripts/examples, as somebody who copies them runs them."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pool import Default

from onefold.server import FILES
from onefold.v1.projects_service_pb2 import UpdateProjectRequest
from support.client import Client, email
from support.merging import put
from support.processes import environment

EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"
A = email("a@example.com")


async def run(name: str, *arguments: str) -> list[str]:
    """What an example prints; it must end well."""
    program = [sys.executable, str(EXAMPLES / name)] if name.endswith(".py") else [str(EXAMPLES / name)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = await asyncio.to_thread(
        subprocess.run,
        [*program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment(PATH=path),
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout).splitlines()


def test_every_example_is_tried() -> None:
    """X2: no example stands there that nothing tries."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES.iterdir() if f'"{path.name}"' not in source] == []


async def test_a_visitor(address: str, email_project: Client) -> None:
    """A3: what a visitor did is the person's once it is known who that is, data and all."""
    assert await run("visitor.py", address, email_project.key) == [
        "before: PROFILE_NOT_FOUND",
        "after: Viewed Pizza ['basil']",
    ]


async def test_streams(address: str, email_project: Client, tmp_path: Path) -> None:
    """E4, E10: many events are sent and acknowledged; triggers are watched on from where an earlier run ended."""
    sent = await run("stream.py", address, email_project.key)
    assert sent == [f"batch {number}: 100 stored" for number in range(1, 11)]
    assert len(await email_project.names(anonymous_id="example-2")) == 1_000

    await email_project.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=True))
    await put(email_project, A)
    arguments = ("watch.py", address, email_project.key, str(tmp_path / "cursor"))
    for name in ("first", "second"):
        await email_project.track(identifiers=A, name=name)
        assert await run(*arguments, "1") == [name]


async def test_devices(address: str, email_project: Client) -> None:
    """D3: with grpcurl, too, one call switches a phone off for both who share it."""
    told = await run("devices.sh", address, email_project.key)
    assert [line.strip(' ",') for line in told] == ['endpointEnabled": false'] * 2


def test_the_names_in_go() -> None:
    """P6: every service, method, message and field that the Go example names is in the protos."""
    text = (EXAMPLES / "visitor.go").read_text(encoding="utf-8")
    services: dict[str, Any] = {service.name: service for file in FILES for service in file.services_by_name.values()}
    clients = dict(re.findall(r"(\w+) := pb\.New(\w+)Client\(", text))
    assert set(clients.values()) <= set(services)
    calls = [(variable, method) for variable in clients for method in re.findall(rf"\b{variable}\.(\w+)\(", text)]
    assert len(calls) == 3
    for variable, method in calls:
        assert method in services[clients[variable]].methods_by_name
    messages = re.findall(r"&pb\.(\w+)\{(?=([^{}]*))", text)
    assert len(messages) > 5
    for name, fields in messages:
        message_name, _, of_oneof = name.partition("_")
        message = Default().FindMessageTypeByName(f"onefold.v1.{message_name}")
        told = [of_oneof] if of_oneof else []
        told += re.findall(r"(\w+): ", fields) if not of_oneof else []
        go_names = {"".join(part.capitalize() for part in field.name.split("_")) for field in message.fields}
        go_names |= {"".join(part.capitalize() for part in oneof.name.split("_")) for oneof in message.oneofs}
        assert set(told) <= go_names, name
