"""Writes the table of limits in README.md from what the code enforces; with --check it only compares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from onefold import limits, logs
from onefold.activation import criteria
from onefold.telemetry import http

_README: Final = Path(__file__).resolve().parents[2] / "README.md"
_BEGIN: Final = "## Limits\n\n"
_END: Final = "\n## "


def _size(count: int) -> str:
    """A number of bytes as people write it: binary units where they divide it, else decimal ones."""
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10), ("MB", 1_000_000), ("kB", 1_000)):
        if count % size == 0:
            return f"{count // size:,} {unit}"
    return f"{count:,} bytes"


def table() -> str:
    """The table, in Markdown."""
    identifiers = (
        f"{limits.EMAIL_BYTES} bytes / {limits.USER_ID_CHARACTERS} characters / {limits.ANONYMOUS_ID_BYTES} bytes"
    )
    criterion = f"{criteria.CRITERION_NODES} nodes, {criteria.CRITERION_DEPTH} levels, {_size(limits.CRITERION_BYTES)}"
    rates = "`max_calls_per_second`, `max_events_per_second` of UpdateProject, for each server process"
    rows = {
        "message / metadata": f"{_size(limits.MESSAGE_BYTES)} / {_size(limits.METADATA_BYTES)}",
        "event data": f"{_size(limits.EVENT_DATA_BYTES)} as JSON text",
        "data fields of a profile / of a device": f"{_size(limits.DATA_FIELDS_BYTES)} / "
        f"{_size(limits.DEVICE_FIELDS_BYTES)} as JSON text",
        "depth of data / keys in one object": f"{limits.DATA_DEPTH} levels / {limits.DATA_KEYS_PER_OBJECT}",
        "email / user_id / anonymous_id": identifiers,
        "event name, application name, key name": f"{limits.NAME_BYTES} bytes",
        "event_id / request_id": f"{limits.EVENT_ID_CHARACTERS} / {limits.REQUEST_ID_CHARACTERS} characters",
        "how long they are known": f"{limits.EVENT_ID_LIFETIME.days} days / "
        f"{limits.REQUEST_ID_LIFETIME.days * 24} hours",
        "device token": f"{limits.TOKEN_BYTES:,} bytes",
        "events / profiles in a batch": f"{limits.BATCH_EVENTS:,} / {limits.BATCH_PROFILES:,}",
        "page": f"{limits.PAGE_SIZE_MAX} rows and {_size(limits.PAGE_BYTES)}",
        "batches of a stream that wait to be stored": f"{limits.STREAM_BATCHES}",
        "items of a purchase or cart": f"{limits.EVENT_ITEMS}",
        "devices of a profile": f"{limits.DEVICES_PER_PROFILE}, and {limits.DEVICES_PER_PROFILE} browser tokens",
        "criteria of a project / size of one": f"{limits.CRITERIA_PER_PROJECT} / {criterion}",
        "items of a Replay / events to evaluate": f"{limits.REPLAY_ITEMS:,} / {limits.EVALUATED_EVENTS:,}",
        "event_time": f"1970 to {limits.EVENT_AHEAD.days * 24} hours ahead",
        "anonymous events": f"{limits.ANONYMOUS_LIFETIME.days} days",
        "triggers, and their cursors": f"{limits.TRIGGER_LIFETIME.days} days",
        "consent of a visitor without a profile": f"{limits.CONSENT_LIFETIME.days} days",
        "grace of a link": f"{limits.LINK_GRACE.seconds // 60} minutes",
        "a call": f"{limits.CALL_DEFAULT_SECONDS:g} s by default, {limits.CALL_MAX_SECONDS:g} s at most",
        "a stream": f"no end of its own; ended when its caller reads nothing for {limits.STREAM_WRITE_SECONDS:g} s",
        "calls and streams on one connection": f"{limits.CONNECTION_STREAMS:,} at a time",
        "calls, events of a project": f"{rates}; none by default",
        "wrong fields that one error lists": f"{_size(limits.ERROR_FIELDS_BYTES)}, "
        f"{limits.ERROR_TEXT_BYTES} bytes of a path",
        "side port": f"{http.CONNECTIONS} connections (the oldest goes), a request of {_size(http.REQUEST_BYTES)}",
        "log lines that wait for a reader of stderr": f"{_size(logs.WAITING_BYTES)}, then dropped and counted",
    }
    return "".join(f"| {what} | {limit} |\n" for what, limit in {"what": "limit", "---": "---", **rows}.items())


def main() -> int:
    """Writes or compares; returns the exit status."""
    text = _README.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    old, _, after = rest.partition(_END)
    if old == table():
        return 0
    if "--check" in sys.argv[1:]:
        print("README.md: the table of limits is not what the code has; run scripts/gen-limits", file=sys.stderr)
        return 1
    _README.write_text(f"{before}{_BEGIN}{table()}{_END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
