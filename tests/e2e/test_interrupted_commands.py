"""Commands as processes of their own, where the process is what matters: Ctrl-C, a kill, a reader that goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from onefold.config import Settings
from support.client import Client, email
from support.commands import invoke, invoked
from support.merging import put
from support.probes import eventually, held
from support.processes import environment, run
from support.world import World

A = email("a@example.com")


@pytest.fixture
def told(settings: Settings) -> dict[str, str]:
    """The environment of a command on the tests' servers."""
    return {"ONEFOLD_DATABASE_URL": settings.database_url, "ONEFOLD_REDIS_URL": settings.redis_url}


def started(*arguments: str, **settings: str) -> subprocess.Popen[str]:
    """A command that runs."""
    return subprocess.Popen(
        [sys.executable, "-m", "onefold", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**settings),
    )


async def waiting(world: World, query: str) -> bool:
    """Whether a statement like this waits for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1"
    return bool(await world.value(sql, query))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_an_import_that_is_stopped(
    told: dict[str, str],
    settings: Settings,
    email_project: Client,
    world: World,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """X2, X3: an import that is stopped in its midst, by Ctrl-C or by force, shows nothing of the project; run again it
    goes on. Ctrl-C is one line that says so, with the status that shells give it."""
    await put(email_project, A)
    await email_project.track(identifiers=A, name="seen")
    file, name = tmp_path / "file", f"stopped-{number.name.lower()}"
    assert (await invoked("export", email_project.project_id, str(file), **told)).exit_code == 0
    # Whoever wants to bring in events waits; the profiles are in by then.
    async with held(settings.database_url, ("LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE", ())):
        process = started("import", str(file), "--project", name, **told)

        async def waits() -> bool:
            return await waiting(world, "%INTO events%")

        await eventually(waits)
        process.send_signal(number)
        _, said = await asyncio.to_thread(process.communicate, timeout=30)
    if number is signal.SIGINT:
        assert process.returncode == 130
        [line] = said.splitlines()
        assert "run the same command again" in line
        assert f"--discard {name}" in line
    assert await world.value("SELECT count(*) FROM profiles WHERE project_id = $1", name) == 1
    assert await world.value("SELECT count(*) FROM projects WHERE project_id = $1", name) == 0

    async def gone() -> bool:
        # PostgreSQL notices that the client is gone when it next looks.
        return (await invoked("import", str(file), "--project", name, **told)).exit_code == 0

    await eventually(gone)
    again = tmp_path / "again"
    assert (await invoked("export", name, str(again), **told)).exit_code == 0
    assert file.read_bytes().splitlines()[1:-1] == again.read_bytes().splitlines()[1:-1]


async def test_an_export_that_is_stopped(
    told: dict[str, str], settings: Settings, email_project: Client, world: World, tmp_path: Path
) -> None:
    """X2: an export that Ctrl-C stops leaves no file, not even half of one, and the one of yesterday as it was."""
    await put(email_project, A)
    file = tmp_path / "file"
    file.write_text("yesterday's")
    async with held(settings.database_url, ("LOCK TABLE events IN ACCESS EXCLUSIVE MODE", ())):
        process = started("export", email_project.project_id, str(file), **told)

        async def waits() -> bool:
            return await waiting(world, "%row_to_json%")

        await eventually(waits)
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.to_thread(process.communicate, timeout=30)
    assert (process.returncode, said) == (130, "onefold: stopped\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "yesterday's"


async def test_a_reader_that_goes_away(told: dict[str, str], world: World) -> None:
    """X2: a listing whose reader has read enough, as head does, ends without a traceback."""
    ids = [uuid4() for _ in range(3_000)]
    await world.fetch(
        "INSERT INTO intents (project_id, intent_id, kind, due_time) "
        "SELECT 'listed', unnest($1::uuid[]), 'UNHEARD_OF', '2099-01-01' RETURNING 1",
        ids,
    )
    try:
        process = started("intents", "list", "--json", "--limit", "10000", **told)
        assert process.stdout is not None
        # More than a pipe holds is still to come when it is closed.
        assert await asyncio.to_thread(process.stdout.readline)
        process.stdout.close()
        assert process.stderr is not None
        said = await asyncio.to_thread(process.stderr.read)
        assert await asyncio.to_thread(process.wait, 30) in (0, 1)
        assert said == ""
    finally:
        await world.fetch("DELETE FROM intents WHERE project_id = 'listed' RETURNING 1")


def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """X2: dev with a data folder that cannot be made says which, in one line."""
    (tmp_path / "file").touch()
    done = invoke("dev", "--port", "0", "--data-dir", str(tmp_path / "file" / "data"))
    assert (done.exit_code, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert str(tmp_path / "file" / "data") in line


def test_help_imports_no_library(tmp_path: Path) -> None:
    """X2: --help needs nothing but click, so that it answers at once."""
    code = (
        "import sys\nfrom onefold.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), cwd=os.sep
    )
    loaded = set(eval(done.stdout.splitlines()[-1]))
    assert not loaded & {"asyncpg", "pydantic", "pydantic_settings", "grpc", "structlog", "rich", "orjson", "uvloop"}


def test_commands_say_what_they_are(tmp_path: Path) -> None:
    """X2: the program itself lists every command with one line."""
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "work", "migrate", "config", "project", "key", "intents", "export", "import", "health"):
        assert any(line.strip().startswith(f"{command} ") for line in done.stdout.splitlines()), command
