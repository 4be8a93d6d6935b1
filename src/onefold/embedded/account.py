"""Which operating-system account an embedded server runs as.

PostgreSQL refuses to run as root, so a root process starts its servers as an unprivileged account. An ordinary user
starts them as itself.
"""

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NAME = "nobody"
_FALLBACK_ID = 65534  # what "nobody" is on systems whose account list lacks the name


@dataclass(frozen=True)
class Account:
    """An account by its numbers; `switch` says whether a child has to change to it from ours."""

    uid: int
    gid: int
    name: str
    switch: bool

    def can_read(self, path: Path) -> bool:
        """Whether the permission bits of the path itself let this account read it (and enter it, for a folder).

        Access lists are not consulted: a wrong no only costs a copy or a clear error.
        """
        status = path.stat()
        needed = 0o5 if stat.S_ISDIR(status.st_mode) or status.st_mode & 0o111 else 0o4
        return self._granted(status) & needed == needed

    def barrier(self, path: Path) -> Path | None:
        """The topmost folder on the way to the path that this account may not enter, or None when there is none."""
        for folder in _from_the_top(path.parent):
            if not self._granted(folder.stat()) & 0o1:
                return folder
        return None

    def _granted(self, status: os.stat_result) -> int:
        if status.st_uid == self.uid:
            return status.st_mode >> 6 & 0o7
        if status.st_gid == self.gid:
            return status.st_mode >> 3 & 0o7
        return status.st_mode & 0o7


def server_account() -> Account:
    """The account for embedded servers: our own, or an unprivileged one when we are root."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), _own_name(), switch=False)
    try:
        entry = pwd.getpwnam(_NAME)
    except KeyError:
        return Account(_FALLBACK_ID, _FALLBACK_ID, _NAME, switch=True)
    return Account(entry.pw_uid, entry.pw_gid, _NAME, switch=True)


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # containers often run under a number without a name
        return str(os.geteuid())


def _from_the_top(folder: Path) -> Iterator[Path]:
    yield from reversed(folder.parents)
    yield folder
