"""The embedded PostgreSQL and Valkey: real servers, started, killed and found again."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
from arq.connections import RedisSettings

from onefold.embedded import EmbeddedError, EmbeddedPostgres, EmbeddedValkey, programs
from onefold.embedded.account import server_account
from onefold.embedded.supervisor import RestartBudget

AS_ROOT = os.geteuid() == 0
SOURCE = Path(__file__).resolve().parents[2] / "src"


def eventually(holds: Callable[[], bool], seconds: float = 15) -> None:
    """Return as soon as the condition holds; fail when it does not within the time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether no process has this id any more, a zombie counting as gone."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_for_end(pid: int) -> None:
    """Return when the process has ended; fail when it does not end in time."""
    eventually(lambda: is_gone(pid))


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A new folder that the servers' account can reach, which pytest's own temporary folders are not for root."""
    folder = Path(tempfile.mkdtemp(prefix="onefold-test-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def started() -> Iterator[list[EmbeddedPostgres | EmbeddedValkey]]:
    """Servers put in here are stopped at the end of the test, however it ends."""
    servers: list[EmbeddedPostgres | EmbeddedValkey] = []
    yield servers
    for server in servers:
        server.stop()


async def query(server: EmbeddedPostgres, text: str) -> object:
    connection = await asyncpg.connect(server.url())
    try:
        return await connection.fetchval(text)
    finally:
        await connection.close()


def run_python(script: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a Python process of its own that can import onefold."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
    )


# Starts both servers, leaves a mark in each, reports their process ids and waits for its end.
START_BOTH = """
    import os, sys, threading
    from pathlib import Path
    from onefold.embedded import EmbeddedPostgres, EmbeddedValkey
    import asyncio, asyncpg, redis

    async def mark(url):
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE mark AS SELECT 42 AS value")
        await connection.close()

    postgres = EmbeddedPostgres.start(Path(sys.argv[1]))
    valkey = EmbeddedValkey.start(Path(sys.argv[1]))
    asyncio.run(mark(postgres.url()))
    redis.Redis.from_url(valkey.url).set("mark", "42")
    print(postgres.pid, valkey.pid, flush=True)
    if sys.argv[2:] == ["wait"]:
        threading.Event().wait()
"""


async def test_data_is_there_again_after_stop_and_start(
    data_dir: Path, started: list[EmbeddedPostgres | EmbeddedValkey]
) -> None:
    """What was written before a stop is read after the next start, at the same addresses."""
    postgres, valkey = EmbeddedPostgres.start(data_dir), EmbeddedValkey.start(data_dir)
    started += [postgres, valkey]
    await query(postgres, "CREATE TABLE mark AS SELECT 42 AS value")
    with redis.Redis.from_url(valkey.url) as client:
        client.set("mark", "42")
    for server in (valkey, postgres):
        assert server.poll() is None
        server.stop()
        server.stop()
        assert server.poll() == 0
    again, valkey_again = EmbeddedPostgres.start(data_dir), EmbeddedValkey.start(data_dir)
    started += [again, valkey_again]
    assert (again.url(), valkey_again.url) == (postgres.url(), valkey.url)
    assert await query(again, "SELECT value FROM mark") == 42
    with redis.Redis.from_url(valkey_again.url) as client:
        assert client.get("mark") == b"42"


async def test_postgres_is_set_up_as_promised(
    data_dir: Path, started: list[EmbeddedPostgres | EmbeddedValkey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is UTF-8 with the builtin locale, durable, closed to the network and ignorant of our environment."""
    monkeypatch.setenv("ONEFOLD_DEV_API_KEY", "secret")
    monkeypatch.setenv("PGOPTIONS", "-c jit=on")
    postgres = EmbeddedPostgres.start(data_dir, settings={"max_connections": "37"})
    started.append(postgres)
    row = "SELECT concat_ws(' ', pg_encoding_to_char(encoding), datlocprovider, datlocale) FROM pg_database "
    assert await query(postgres, row + "WHERE datname = 'onefold'") == "UTF8 b C.UTF-8"
    expected = {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "max_connections": "37",
        "log_parameter_max_length": "0",
        "TimeZone": "UTC",
    }
    shown = {name: await query(postgres, f"SHOW {name}") for name in expected}
    assert shown == expected
    process = psutil.Process(postgres.pid)
    assert [c for c in process.net_connections() if c.family.name != "AF_UNIX"] == []
    assert "ONEFOLD_DEV_API_KEY" not in process.environ()
    assert (data_dir / "postgres").stat().st_mode & 0o777 == 0o700
    assert process.uids().real == server_account().uid != 0


async def test_valkey_is_set_up_as_promised(data_dir: Path, started: list[EmbeddedPostgres | EmbeddedValkey]) -> None:
    """Valkey keeps what it is given, evicts nothing, and is reached through its socket alone, by arq too."""
    valkey = EmbeddedValkey.start(data_dir)
    started.append(valkey)
    expected = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "port": "0"}
    with redis.Redis.from_url(valkey.url) as client:
        assert {name: client.config_get(name)[name] for name in expected} == expected
    process = psutil.Process(valkey.pid)
    assert [c for c in process.net_connections() if c.family.name != "AF_UNIX"] == []
    assert process.uids().real == server_account().uid != 0
    socket_path = RedisSettings.from_dsn(valkey.url).unix_socket_path
    assert socket_path is not None
    assert Path(socket_path).parent.stat().st_mode & 0o777 == 0o700


async def test_committed_rows_survive_every_way_of_ending_postgres(
    data_dir: Path, started: list[EmbeddedPostgres | EmbeddedValkey]
) -> None:
    """An immediate stop and a SIGKILL lose no committed row, and the next start in the same process just works."""
    postgres = EmbeddedPostgres.start(data_dir)
    started.append(postgres)
    await query(postgres, "CREATE TABLE mark (value int)")
    await query(postgres, "INSERT INTO mark VALUES (1)")
    postgres.stop(mode="immediate")
    postgres = EmbeddedPostgres.start(data_dir)
    started.append(postgres)
    await query(postgres, "INSERT INTO mark VALUES (2)")
    os.kill(postgres.pid, signal.SIGKILL)
    eventually(lambda: postgres.poll() == -signal.SIGKILL)
    postgres = EmbeddedPostgres.start(data_dir)
    started.append(postgres)
    assert await query(postgres, "SELECT sum(value) FROM mark") == 3


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM], ids=lambda ending: ending.name)
async def test_servers_end_cleanly_with_the_process_that_started_them(
    data_dir: Path, started: list[EmbeddedPostgres | EmbeddedValkey], ending: signal.Signals
) -> None:
    """When the starting process is killed, both servers shut down cleanly, and a start at that very moment succeeds."""
    parent = run_python(START_BOTH, str(data_dir), "wait")
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    backends = [child.pid for child in psutil.Process(pids[0]).children(recursive=True)]
    parent.send_signal(ending)
    parent.communicate()
    postgres, valkey = EmbeddedPostgres.start(data_dir), EmbeddedValkey.start(data_dir)
    started += [postgres, valkey]
    assert all(is_gone(pid) for pid in [*pids, *backends])
    assert await query(postgres, "SELECT value FROM mark") == 42
    with redis.Redis.from_url(valkey.url) as client:
        assert client.get("mark") == b"42"
    log = (data_dir / "postgres.log").read_text()
    assert "database system is shut down" in log
    assert "was not properly shut down" not in log
    assert "Valkey is now ready to exit" in (data_dir / "valkey.log").read_text()


def test_servers_end_with_a_process_that_forgets_to_stop_them(data_dir: Path) -> None:
    """A starting process that simply returns leaves no server behind."""
    parent = run_python(START_BOTH, str(data_dir))
    out, _ = parent.communicate(timeout=60)
    for pid in out.split():
        wait_for_end(int(pid))


@pytest.mark.parametrize("server", [EmbeddedPostgres, EmbeddedValkey])
def test_a_folder_in_use_is_refused(data_dir: Path, server: type[EmbeddedPostgres | EmbeddedValkey]) -> None:
    """A second start on the same folder fails at once, in one line with the folder and the process that uses it."""
    parent = run_python(START_BOTH, str(data_dir), "wait")
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    try:
        before = time.monotonic()
        with pytest.raises(EmbeddedError) as refusal:
            server.start(data_dir)
        assert time.monotonic() - before < 2
        assert str(data_dir) in str(refusal.value)
        assert str(parent.pid) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    finally:
        parent.kill()
        parent.communicate()
        for pid in pids:
            wait_for_end(pid)


async def test_leftovers_of_a_killed_server_do_not_stop_the_next(
    data_dir: Path, started: list[EmbeddedPostgres | EmbeddedValkey]
) -> None:
    """A stale postmaster.pid and socket lock whose process id is in use again, and a half-made cluster, are removed."""
    (data_dir / "postgres.new").mkdir()
    (data_dir / "postgres.new" / "PG_VERSION").write_text("18\n")
    postgres = EmbeddedPostgres.start(data_dir, durable=False)
    postgres.stop()
    cluster = data_dir / "postgres"
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (cluster / name).write_text(f"1\n{cluster}\n1\n5432\n{cluster}\n\n1 1\nready   \n")
    (cluster / ".s.PGSQL.5432").touch()
    postgres = EmbeddedPostgres.start(data_dir, durable=False)
    started.append(postgres)
    assert await query(postgres, "SELECT 1") == 1
    assert not (data_dir / "postgres.new").exists()


@pytest.mark.parametrize("name", ["long-" * 30, "with space, and ünï"], ids=["long", "needs escaping"])
async def test_any_folder_name_will_do(
    data_dir: Path, started: list[EmbeddedPostgres | EmbeddedValkey], name: str
) -> None:
    """Sockets of a folder with a long or awkward name are in a short private folder, kept over a crash and removed."""
    folder = data_dir / name
    postgres, valkey = EmbeddedPostgres.start(folder, durable=False), EmbeddedValkey.start(folder)
    started += [postgres, valkey]
    assert await query(postgres, "SELECT 1") == 1
    socket_path = Path(str(RedisSettings.from_dsn(valkey.url).unix_socket_path))
    with redis.Redis.from_url(valkey.url) as client:
        assert client.ping()
    assert len(os.fsencode(socket_path)) < 100
    assert socket_path.parent.stat().st_mode & 0o777 == 0o700
    os.kill(valkey.pid, signal.SIGKILL)
    eventually(lambda: valkey.poll() is not None)
    again = EmbeddedValkey.start(folder)
    started.append(again)
    assert again.url == valkey.url
    again.stop()
    postgres.stop()
    assert not socket_path.parent.exists()


def test_an_ordinary_user_can_start_them(data_dir: Path) -> None:
    """A process without any privilege starts both servers in its own folder and under its own account."""
    folder = data_dir / "mine"
    folder.mkdir(mode=0o700)
    script = """
        import os, sys
        from pathlib import Path
        from onefold.embedded import EmbeddedPostgres, EmbeddedValkey
        import encodings.idna, subprocess  # what is needed later: the interpreter may be closed to the user

        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        servers = [EmbeddedValkey.start(Path(sys.argv[1])), EmbeddedPostgres.start(Path(sys.argv[1]), durable=False)]
        assert all(os.stat(f"/proc/{server.pid}").st_uid == os.getuid() for server in servers)
        for server in servers:
            server.stop()
        assert all(server.poll() == 0 for server in servers)
        print("done")
    """
    if AS_ROOT:
        os.chown(folder, 65534, 65534)
    out, err = run_python(script, str(folder)).communicate(timeout=60)
    assert (out, err) == ("done\n", "")
    assert not (folder / "postgres" / "postmaster.pid").exists()


@pytest.mark.skipif(not AS_ROOT, reason="only root starts servers under another account")
class TestAsRoot:
    def test_a_closed_folder_on_the_way_is_named(self, data_dir: Path) -> None:
        """A data folder below one that the servers' account cannot enter is refused in one line that names it."""
        (data_dir / "closed").mkdir(mode=0o700)
        with pytest.raises(EmbeddedError, match=f"cannot enter {data_dir / 'closed'}: ") as refusal:
            EmbeddedPostgres.start(data_dir / "closed" / "data")
        assert "\n" not in str(refusal.value)

    async def test_programs_that_the_account_cannot_reach_are_copied_once(
        self,
        data_dir: Path,
        started: list[EmbeddedPostgres | EmbeddedValkey],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Programs in a place closed to the account are run from a copy that only root can change, made once."""
        copies = data_dir / "copies"
        monkeypatch.setattr(programs, "_COPIES", copies)
        monkeypatch.setattr(programs, "_is_open", lambda *_: False)
        old_umask = os.umask(0o077)
        try:
            for _ in range(2):
                postgres, valkey = EmbeddedPostgres.start(data_dir, durable=False), EmbeddedValkey.start(data_dir)
                started += [postgres, valkey]
                assert await query(postgres, "SELECT 1") == 1
                assert all(copies in Path(psutil.Process(s.pid).exe()).parents for s in (postgres, valkey))
                valkey.stop()
                postgres.stop()
        finally:
            os.umask(old_umask)
        assert len(list(copies.iterdir())) == 2
        assert all(entry.stat().st_uid == 0 and not entry.stat().st_mode & 0o022 for entry in copies.rglob("*"))

    def test_data_of_another_account_is_refused(self, data_dir: Path) -> None:
        """A cluster that belongs to another account is left alone, with one line that says whose it has to be."""
        (data_dir / "postgres").mkdir()
        with pytest.raises(EmbeddedError, match="does not belong to nobody"):
            EmbeddedPostgres.start(data_dir)


def test_data_of_another_version_is_refused(data_dir: Path) -> None:
    """A cluster made by another major version is left alone, with one line that names both versions."""
    EmbeddedPostgres.start(data_dir, durable=False).stop()
    (data_dir / "postgres" / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedError, match="made by PostgreSQL 16, this is PostgreSQL 18"):
        EmbeddedPostgres.start(data_dir)


def test_a_failing_server_says_why_in_one_line(data_dir: Path) -> None:
    """When the server refuses its settings, the error has its own last words and where the log is."""
    with pytest.raises(EmbeddedError) as failure:
        EmbeddedPostgres.start(data_dir, durable=False, settings={"shared_buffers": "plenty"})
    assert 'invalid value for parameter "shared_buffers"' in str(failure.value) or "plenty" in str(failure.value)
    assert str(data_dir / "postgres.log") in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_start_outside_the_main_thread_is_refused(data_dir: Path) -> None:
    """A server started by another thread would die with that thread, so it is not started."""
    errors: list[Exception] = []

    def start() -> None:
        try:
            EmbeddedValkey.start(data_dir)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_importing_the_package_imports_no_grpc() -> None:
    """The package can be used before grpc is initialised, because it does not import it."""
    script = "import sys, onefold.embedded; print([name for name in sys.modules if name.startswith('grpc')])"
    assert run_python(script).communicate(timeout=30)[0] == "[]\n"


def test_restarts_are_delayed_longer_each_time_and_end_at_the_fifth_in_a_minute() -> None:
    """A child starts again after 0.1, 0.2, 0.4 and 0.8 s, and is given up at the fifth death within a minute."""
    budget = RestartBudget()
    assert [budget.delay_after_death(now) for now in (0, 1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.8, None]
    budget = RestartBudget()
    assert [budget.delay_after_death(now) for now in (0, 20, 40, 59, 60, 200)] == [0.1, 0.2, 0.4, 0.8, 0.8, 0.1]
