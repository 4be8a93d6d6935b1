"""The file: JSON lines. A head, the sections of rows, and an end that says how many and with which hash.

{"onefold_export":1,"project_id":"shop","project":{...},"columns":{"profiles":["profile_id",...],...},...}
{"section":"profiles"}
{"profile_id":"...",...}
{"end":{"rows":{"profiles":1,...},"sha256":"..."}}
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from onefold.errors import OnefoldError, Reason, failed_precondition

FORMAT: Final = 1
_HEAD: Final = b'{"onefold_export":'
_SECTION: Final = b'{"section":"'
_END: Final = b'{"end":{'
# No row is longer: a profile's data fields are the largest thing there is, and other columns are small beside it.
_LINE_BYTES: Final = 64 * 1024 * 1024
_BLOCK_BYTES: Final = 4 * 1024 * 1024
_REPORT_BYTES: Final = 16 * 1024 * 1024

Told = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one table: where in the file they begin and end, and how many there are."""

    name: str
    start: int
    end: int
    rows: int


class Head(BaseModel):
    """What the first line says: the project and its settings, under which name and secret identifiers were hashed, and
    the columns of each table."""

    model_config = ConfigDict(strict=True, frozen=True)

    project_id: str
    project: dict[str, Any]
    forget_name: str
    forget_proof: str | None
    columns: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that is whole: what its end says of it is true."""

    path: Path
    head: Head
    sections: list[Section]
    sha256: bytes


def check(path: Path, told: Told = lambda _: None) -> Checked:
    """Reads a file from its beginning to its end, without keeping it. Raises OnefoldError with one line if it is not
    exactly what an export wrote. `told` hears how many bytes are read."""
    try:
        with path.open("rb") as file:
            return _check(path, file, told)
    except OSError as error:
        raise wrong(path, error.strerror or "cannot be read") from None


def _check(path: Path, file: BinaryIO, told: Told) -> Checked:
    line = file.readline(_LINE_BYTES)
    if not line.startswith(_HEAD):
        raise wrong(path, "is no export of onefold")
    head = _parsed(path, line, 1)
    if head["onefold_export"] != FORMAT:
        raise wrong(path, "was written by a newer version of onefold: import it with that one")
    digest = hashlib.sha256(line)
    sections: list[Section] = []
    name, start, number, first = "", 0, 1, 1
    position = reported = len(line)
    while line := file.readline(_LINE_BYTES):
        number += 1
        if not line.endswith(b"\n"):
            raise wrong(path, f"is cut off in line {number}")
        if line.startswith((_SECTION, _END)):
            if name:
                sections.append(Section(name, start, position, number - first - 1))
            if line.startswith(_END):
                _check_end(path, _parsed(path, line, number)["end"], sections, digest.hexdigest())
                if file.read(1):
                    raise wrong(path, f"goes on behind its end in line {number}")
                return Checked(path, _read_head(path, head), sections, digest.digest())
            name, start, first = str(_parsed(path, line, number)["section"]), position + len(line), number
        digest.update(line)
        position += len(line)
        if position - reported >= _REPORT_BYTES:
            told(position)
            reported = position
    raise wrong(path, f"is cut off behind line {number}")


def _read_head(path: Path, head: dict[str, Any]) -> Head:
    try:
        return Head.model_validate(head)
    except ValidationError:
        # Its hash is right, so somebody has made it by hand.
        raise wrong(path, "has a first line that no export wrote") from None


def _check_end(path: Path, end: Any, sections: list[Section], sha256: str) -> None:
    try:
        counts, told = dict(end["rows"]), end["sha256"]
    except (KeyError, TypeError, ValueError):
        raise wrong(path, "has an end that no export wrote") from None
    for section in sections:
        if counts.get(section.name) != section.rows:
            raise wrong(
                path, f"has {section.rows} rows of {section.name} where its end says {counts.get(section.name)}"
            )
    if told != sha256:
        raise wrong(path, "was changed after it was written: its hash is another than its end says")


def blocks(path: Path, section: Section, offset: int) -> Iterator[tuple[bytes, int]]:
    """The lines of a section from a place in the file on, some megabytes at a time, each with where it ends."""
    with path.open("rb") as file:
        file.seek(offset)
        while offset < section.end:
            block = file.read(min(_BLOCK_BYTES, section.end - offset))
            if not block.endswith(b"\n"):
                block += file.readline(_LINE_BYTES)
            offset += len(block)
            yield block, offset


class Writer:
    """Writes a file under another name first, so that a file with the right name is always a whole one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unfinished = path.with_name(path.name + ".unfinished")
        self._digest = hashlib.sha256()
        self._counts: dict[str, int] = {}
        self._name = ""
        self.bytes = 0
        try:
            # It holds what people did: for the one who exports alone.
            descriptor = os.open(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            raise wrong(path, f"cannot be written: {error.strerror}") from None
        self._file = os.fdopen(descriptor, "wb")

    def head(self, head: Head) -> None:
        """The first line."""
        self._write(orjson.dumps({"onefold_export": FORMAT, **head.model_dump()}) + b"\n")

    def section(self, name: str) -> None:
        """Begins the rows of a table."""
        self._write(_SECTION + name.encode() + b'"}\n')
        self._name = name
        self._counts[name] = 0

    def rows(self, lines: bytes) -> None:
        """Rows, or parts of rows, as they come."""
        self._counts[self._name] += lines.count(b"\n")
        self._write(lines)

    def finish(self) -> dict[str, int]:
        """The last line; and the file has its name. Returns how many rows of each table it has."""
        end = {"end": {"rows": self._counts, "sha256": self._digest.hexdigest()}}
        self._write(orjson.dumps(end) + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.replace(self._path)
        return self._counts

    def drop(self) -> None:
        """Leaves nothing behind; nothing happens to a file that is finished."""
        if not self._file.closed:
            self._file.close()
            self._unfinished.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self.bytes += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise wrong(self._path, f"cannot be written: {error.strerror}") from None


def wrong(path: Path, what: str) -> OnefoldError:
    """What is wrong with a file, in one line."""
    return failed_precondition(Reason.INTERNAL, f"{path} {what}.")


def _parsed(path: Path, line: bytes, number: int) -> dict[str, Any]:
    try:
        parsed = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise wrong(path, f"has a line {number} that no export wrote") from None
    if not isinstance(parsed, dict):
        raise wrong(path, f"has a line {number} that no export wrote")
    return parsed
