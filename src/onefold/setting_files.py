"""Settings that lie in a file, named by ONEFOLD_*_FILE. Apart from all others, for programs that need no more."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

PREFIX: Final = "ONEFOLD_"
# Settings that may be read from a file: those that hold a secret.
FROM_FILES: Final = ("database_url", "redis_url", "forget_secret")


class SettingFileError(Exception):
    """A file that ONEFOLD_*_FILE names gives no setting; the text is one line that says why."""


def environment_name(field: str) -> str:
    """What a setting is called in the environment."""
    return PREFIX + field.upper()


def setting_from_file(field: str) -> str | None:
    """A setting that lies in a file which the environment names; None if it names none. Raises SettingFileError."""
    name = environment_name(field)
    path = os.environ.get(f"{name}_FILE")
    if not path:
        return None
    if os.environ.get(name):
        raise SettingFileError(f"{name} and {name}_FILE are both set: leave one out")
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingFileError(f"{name}_FILE: cannot read {path}: {reason}") from None
