"""The data folder of embedded servers: who may use it, what is in it, and which server holds it.

DATA/postgres          the PostgreSQL cluster          DATA/valkey          Valkey's append-only file
DATA/postgres.log      its log                         DATA/valkey.log
DATA/postgres.lock     held while it runs              DATA/valkey.lock
DATA/postgres-socket   only when DATA's path is too long for a socket: a link to a short private folder
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from onefold.embedded.account import Account
from onefold.embedded.errors import EmbeddedError

_LOG_MAX_BYTES = 10 * 1024 * 1024
_SOCKET_PATH_MAX_BYTES = 100
# Percent-escapes are read differently by asyncpg, redis-py and arq; plain paths need none.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
_SHUTDOWN_SECONDS = 15.0
_POLL_SECONDS = 0.02
_TEMPORARY_PREFIX = "onefold-dev-"


def prepare(data_dir: Path, account: Account | None) -> Path:
    """Make the data folder if it is missing and return its real path; refuse one that the account cannot enter.

    Without an account it is for our own files alone. Raises EmbeddedError with one line that names the folder.
    """
    folder = data_dir.expanduser().resolve()
    mode = 0o711 if account and account.switch else 0o700
    try:
        for missing in [path for path in (*reversed(folder.parents), folder) if not path.exists()]:
            missing.mkdir(mode=mode)
            missing.chmod(mode)  # whatever the umask is
    except OSError as error:
        raise EmbeddedError(f"cannot make the data folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise EmbeddedError(f"cannot write to the data folder {folder}: choose another one with --data-dir")
    if account and (barrier := account.barrier(folder / "server")):
        raise EmbeddedError(
            f"as root the servers run as {account.name}, who cannot enter {barrier}: "
            "choose another data folder with --data-dir"
        )
    return folder


@contextlib.contextmanager
def temporary(account: Account | None) -> Iterator[Path]:
    """A data folder in the system's temporary folder that is removed at the end.

    The next call removes one that was left behind by a process that was killed: a living owner holds a lock on it.
    """
    parent = Path(tempfile.gettempdir())
    for path in parent.glob(f"{_TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.geteuid() and (leftover := _try_lock(path)) is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(leftover)
    path, held = _new_locked(parent)
    try:
        if account and account.switch:
            path.chmod(0o711)
        yield prepare(path, account)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def lock(folder: Path, name: str) -> int:
    """Take the lock of one server and return its descriptor, which is to be handed on to that server.

    The lock lasts until the last process with the descriptor has ended, our death included. If the process that
    started the present holder is gone (or is us), the holder is shutting down and is waited for, 15 seconds at
    most; otherwise EmbeddedError at once.
    """
    path = folder / f"{name}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedError(
            f"cannot open {path}: {error.strerror}; start as the user it belongs to, or choose another --data-dir"
        ) from error
    deadline = time.monotonic() + _SHUTDOWN_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            starter = _recorded_pid(descriptor)
            if time.monotonic() > deadline or (starter not in (None, os.getpid()) and _is_alive(starter)):
                os.close(descriptor)
                raise EmbeddedError(
                    f"{folder} is in use by process {starter or 'unknown'}: "
                    "stop it first, or choose another data folder with --data-dir"
                ) from None
            time.sleep(_POLL_SECONDS)
        else:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            return descriptor


def own(path: Path, account: Account) -> None:
    """Make the folder `path` for the account alone (0700); refuse one that belongs to somebody else."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if path.stat().st_uid != account.uid:
            raise EmbeddedError(
                f"{path} does not belong to {account.name}: start as the user it belongs to, "
                "or choose another data folder with --data-dir"
            ) from None
        return
    if account.switch:
        os.chown(path, account.uid, account.gid)


def socket_folder(home: Path, file_name: str, account: Account) -> Path:
    """A private folder for a server's socket: `home` itself, or, when its path is too long or has characters that
    would need escaping in an address, a short one, found again through the link `HOME-socket` by the next start."""
    if len(os.fsencode(home / file_name)) < _SOCKET_PATH_MAX_BYTES and _PLAIN_PATH.fullmatch(str(home)):
        return home
    link = _socket_link(home)
    with contextlib.suppress(OSError):
        earlier = link.readlink()
        status = earlier.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == account.uid and not status.st_mode & 0o077:
            return earlier
    link.unlink(missing_ok=True)
    # Not tempfile's default place: TMPDIR may be long, too.
    short = Path(tempfile.mkdtemp(prefix="onefold-", dir="/tmp"))
    if account.switch:
        os.chown(short, account.uid, account.gid)
    link.symlink_to(short)
    return short


def remove_socket_folder(home: Path) -> None:
    """Remove the short socket folder of a server that has stopped, if it had one."""
    link = _socket_link(home)
    with contextlib.suppress(OSError):
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()


def open_log(path: Path) -> int:
    """Open a log for appending and return the descriptor; one of over 10 MiB is put aside as `NAME.old` first."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_MAX_BYTES:
            path.rename(path.with_name(path.name + ".old"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def last_lines(path: Path, count: int, *, from_byte: int = 0) -> list[str]:
    """The last `count` non-empty lines of a log that were written at or after `from_byte`, from its last 64 KiB."""
    try:
        with path.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(from_byte if from_byte <= end else 0, end - 65536))
            text = log.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


def _new_locked(parent: Path) -> tuple[Path, int]:
    # Between the making and the locking, another process may take the new folder for a leftover: then make another.
    while True:
        path = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=parent))
        with contextlib.suppress(FileNotFoundError):
            held = _try_lock(path)
            if held is not None:
                if path.exists():
                    return path, held
                os.close(held)


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _socket_link(home: Path) -> Path:
    return home.with_name(home.name + "-socket")


def _recorded_pid(descriptor: int) -> int | None:
    text = os.pread(descriptor, 20, 0).strip()
    return int(text) if text.isdigit() else None


def _is_alive(pid: int | None) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")  # killed, but not yet waited for by its own parent
