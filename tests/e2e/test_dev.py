"""`onefold dev` as its user meets it: one command, one tree of processes, nothing left behind and nothing lost."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
import pytest

from onefold import dev
from onefold.embedded import EmbeddedPostgres, EmbeddedValkey

SOURCE = Path(dev.__file__).resolve().parents[1]
GRPCURL = Path(sys.executable).with_name("grpcurl")


def eventually(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Return as soon as the condition holds; fail when it does not within the time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def is_gone(process: psutil.Process) -> bool:
    """Whether the process has ended, a zombie counting as ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(process: psutil.Process) -> None:
    """Return when the process has ended; fail when it does not end in time."""
    eventually(lambda: is_gone(process))


@dataclass
class Service:
    """A running `onefold dev --json`, and what its one line of JSON said."""

    process: subprocess.Popen[str]
    grpc: str
    project: str
    api_key: str
    http: dict[str, str]

    def children(self) -> dict[str, psutil.Process]:
        """The direct children by what they are: postgres, valkey, serve, work."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                program, *arguments = child.cmdline()
            except (psutil.NoSuchProcess, ValueError):  # it has just ended
                continue
            for name in ("postgres", "valkey", "serve", "work"):
                if name in Path(program).name or name in arguments[:3]:
                    found[name] = child
        return found

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def call(self, method: str, **body: object) -> dict[str, object] | None:
        """The answer of the service to one call by grpcurl, or None when it did not succeed."""
        done = subprocess.run(
            [
                *(GRPCURL, "-plaintext", "-max-time", "10", "-H", f"authorization: Bearer {self.api_key}"),
                *("-d", json.dumps(body), self.grpc, f"onefold.v1.{method}"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout) if done.returncode == 0 else None

    def track(self, event_id: str) -> bool:
        """Whether the service has acknowledged an event of visitor abc123."""
        event = {"anonymous_id": "abc123", "name": "visit", "event_id": event_id}
        return self.call("EventsService/Track", event=event) is not None

    def events(self) -> set[str]:
        """The ids of the events of visitor abc123."""
        answer = self.call("EventsService/ListEvents", anonymous_id="abc123")
        assert answer is not None
        return set(re.findall(r'"eventId": "([^"]+)"', json.dumps(answer)))


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "onefold", "dev", *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONEFOLD_")}
    return {**kept, "PYTHONPATH": str(SOURCE), **changes}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A new folder that an unprivileged account can reach, which pytest's own temporary folders are not for root."""
    folder = Path(tempfile.mkdtemp(prefix="onefold-test-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    """Starts `onefold dev --json --port 0` with more arguments; what still runs at the end of the test is stopped."""
    processes: list[subprocess.Popen[str]] = []
    descendants: list[psutil.Process] = []

    def start_service(*arguments: str | Path, **changes: str) -> Service:
        process = subprocess.Popen(
            command("--json", "--port", "0", *arguments), stdout=subprocess.PIPE, text=True, env=environment(**changes)
        )
        processes.append(process)
        ready = json.loads(line(process.stdout))
        assert ready.pop("ready") is True
        service = Service(process, **ready)
        descendants.extend(service.tree())
        return service

    yield start_service
    for process in processes:
        process.terminate()
        process.communicate()
    for descendant in descendants:
        wait_for_end(descendant)


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline()


def failure(*arguments: str | Path, **changes: str) -> str:
    """What a start that must fail with status 1 says on standard error; standard output stays empty."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, check=False, env=environment(**changes)
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


@pytest.mark.parametrize(
    "ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda ending: ending.name
)
def test_every_ending_leaves_no_process_and_loses_no_acknowledged_write(
    data_dir: Path, start: Callable[..., Service], ending: signal.Signals
) -> None:
    """After Ctrl-C, SIGTERM, SIGHUP or SIGKILL nothing runs on; an immediate new start has the key and the events."""
    first = start("--data-dir", data_dir)
    assert first.track("one")
    tree = first.tree()
    assert len(tree) >= 4
    first.process.send_signal(ending)
    rest, _ = first.process.communicate(timeout=60)
    assert rest == ""
    if ending != signal.SIGKILL:
        assert first.process.returncode == 0
        assert all(is_gone(process) for process in tree)
    second = start("--data-dir", data_dir)
    for process in tree:
        wait_for_end(process)
    assert (second.project, second.api_key) == (first.project, first.api_key)
    assert second.events() == {"one"}
    assert "was not properly shut down" not in (data_dir / "postgres.log").read_text()


def test_the_parent_never_loads_grpc(start: Callable[..., Service]) -> None:
    """The process that starts the others has not loaded grpc, which does not survive a fork."""
    service = start("--ephemeral")
    assert "cygrpc" not in Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "cygrpc" in Path(f"/proc/{service.children()['serve'].pid}/maps").read_text()


@pytest.mark.parametrize("victim", ["serve", "work", "valkey", "postgres"])
def test_a_part_that_is_killed_comes_back(start: Callable[..., Service], victim: str) -> None:
    """Whichever part gets SIGKILL is started again, and the service works on at the same address without loss."""
    service = start("--ephemeral")
    assert service.track("one")
    killed = service.children()[victim]
    killed.kill()
    eventually(lambda: service.children().get(victim, killed) != killed)
    eventually(lambda: service.track("two"))
    assert service.events() == {"one", "two"}


def test_a_part_that_dies_again_and_again_ends_it(start: Callable[..., Service], data_dir: Path) -> None:
    """At the fifth death of a part within a minute everything stops, with one line that names the part."""
    service = start("--data-dir", data_dir)
    tree = service.tree()
    for _ in range(5):
        eventually(lambda: "work" in service.children())
        victim = service.children()["work"]
        victim.kill()
        wait_for_end(victim)
    assert service.process.wait(timeout=60) == 1
    assert all(is_gone(process) for process in tree)


def test_the_printed_call_works_as_it_is(data_dir: Path) -> None:
    """The block printed without --json has the address, the project, the key, and a call that can be pasted."""
    path = f"{GRPCURL.parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        command("--port", "0", "--data-dir", data_dir, "--project-type", "user_id"),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(ONEFOLD_DEV_API_KEY="", PATH=path),
    )
    try:
        text = ""
        while "Ctrl-C" not in text:
            more = line(process.stdout)
            assert more
            text += more
        assert re.search(r"address +127\.0\.0\.1:\d+\n +project +default \(user_id\)\n +api key +\S+\n", text)
        call = re.search(r"  grpcurl(.*\\\n)*.*", text)
        assert call is not None
        done = subprocess.run(["bash", "-c", call[0]], capture_output=True, text=True, check=False, env={"PATH": path})
        assert "eventId" in done.stdout, done.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0


def test_servers_of_ones_own_are_used_when_both_are_named(data_dir: Path, start: Callable[..., Service]) -> None:
    """With ONEFOLD_DATABASE_URL and ONEFOLD_REDIS_URL nothing is embedded; an ephemeral folder is removed."""
    postgres, valkey = EmbeddedPostgres.start(data_dir, durable=False), EmbeddedValkey.start(data_dir)
    temporary = data_dir / "temporary"
    temporary.mkdir()
    try:
        service = start(
            "--ephemeral",
            ONEFOLD_DATABASE_URL=postgres.url(),
            ONEFOLD_REDIS_URL=valkey.url,
            TMPDIR=str(temporary),
        )
        assert set(service.children()) == {"serve", "work"}
        assert service.track("one")
        assert len(list(temporary.iterdir())) == 1
        service.process.terminate()
        assert service.process.wait(timeout=60) == 0
        assert list(temporary.iterdir()) == []
    finally:
        valkey.stop()
        postgres.stop()


def test_an_ephemeral_folder_left_by_a_kill_is_removed_by_the_next_start(
    data_dir: Path, start: Callable[..., Service]
) -> None:
    """SIGKILL leaves the temporary folder behind; the next ephemeral start removes it, and none that is in use."""
    killed = start("--ephemeral", TMPDIR=str(data_dir))
    (left,) = data_dir.iterdir()
    tree = killed.tree()
    killed.process.kill()
    for process in tree:
        wait_for_end(process)
    assert left.exists()
    used = start("--ephemeral", TMPDIR=str(data_dir))
    assert not left.exists()
    start("--ephemeral", TMPDIR=str(data_dir))
    assert len(list(data_dir.iterdir())) == 2
    assert used.track("one")


def test_the_key_can_be_given(start: Callable[..., Service]) -> None:
    """A key in ONEFOLD_DEV_API_KEY is the one that opens the project, and is not handed to the children."""
    made = start("--ephemeral")
    service = start("--ephemeral", ONEFOLD_DEV_API_KEY=made.api_key)
    assert service.api_key == made.api_key
    assert service.track("one")
    assert not any("ONEFOLD_DEV_API_KEY" in child.environ() for child in service.children().values())


def test_the_kept_key_is_private(data_dir: Path, start: Callable[..., Service]) -> None:
    """The key made for the project is kept in the data folder for its owner alone."""
    service = start("--data-dir", data_dir)
    kept = data_dir / "api-key-default"
    assert kept.read_text() == service.api_key + "\n"
    assert kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("given", ["ONEFOLD_DATABASE_URL", "ONEFOLD_REDIS_URL"])
def test_one_server_of_ones_own_is_not_enough(given: str) -> None:
    """With only one of the two addresses set nothing starts, and one line names the other."""
    said = failure("--ephemeral", "--port", "0", **{given: "somewhere"})
    assert said.count("\n") == 1
    assert "ONEFOLD_DATABASE_URL" in said
    assert "ONEFOLD_REDIS_URL" in said


def test_an_unreachable_database_is_said_without_its_password(data_dir: Path) -> None:
    """A database that cannot be reached ends the start with one line, in which the password does not occur."""
    said = failure(
        *("--data-dir", data_dir, "--port", "0"),
        ONEFOLD_DATABASE_URL="postgresql://me:secret@127.0.0.1:1/onefold",
        ONEFOLD_REDIS_URL="redis://127.0.0.1:1",
    )
    assert said.count("\n") == 1
    assert "database" in said
    assert "secret" not in said


def test_a_port_in_use_is_refused_before_anything_starts(data_dir: Path) -> None:
    """When the port is taken nothing starts, and one line names it and the option to change it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = failure("--data-dir", data_dir, "--port", str(taken.getsockname()[1]))
    assert said.count("\n") == 1
    assert "--port" in said
    assert not (data_dir / "postgres").exists()


def test_a_data_folder_in_use_is_refused(data_dir: Path, start: Callable[..., Service]) -> None:
    """A second `onefold dev` on the same folder ends at once with one line, and the first runs on."""
    service = start("--data-dir", data_dir)
    said = failure("--data-dir", data_dir, "--port", "0")
    assert said.count("\n") == 1
    assert str(data_dir) in said
    assert service.track("one")


def test_another_type_for_an_existing_project_is_refused(data_dir: Path, start: Callable[..., Service]) -> None:
    """The type of a project is fixed: a start with another one ends with one line and changes nothing."""
    service = start("--data-dir", data_dir)
    service.process.terminate()
    service.process.wait(timeout=60)
    said = failure("--data-dir", data_dir, "--port", "0", "--project-type", "email")
    assert said.count("\n") == 1


def test_a_part_that_cannot_start_shows_the_end_of_its_log(data_dir: Path) -> None:
    """When a part ends before it is ready, the error has its exit status and the last lines of its log."""
    service = dev._Service("worker", ["no-such-command"], environment(), data_dir)
    service.start()
    with pytest.raises(dev.DevError, match=r"the worker ended with status \d+ before it was ready") as error:
        eventually(service.is_ready)
    assert "no-such-command" in str(error.value)
    assert str(data_dir / "worker.log") in str(error.value)
    service.stop()
