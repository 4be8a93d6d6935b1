"""Folders for servers that may run as another user than the tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A new folder that any user can pass through (pytest's own are closed to others); removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="onefold-test-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
