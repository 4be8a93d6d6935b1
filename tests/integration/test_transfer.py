"""Taking a project out as a file and bringing it in: there again under another id, and on another database."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import SecretStr

from onefold.callers import IdentifierType, Region
from onefold.config import Settings
from onefold.errors import OnefoldError
from onefold.projects.bootstrap import create_project, ensure_project
from onefold.transfer import file as transfer_file
from onefold.transfer.exporting import export_project
from onefold.transfer.file import check
from onefold.transfer.importing import discard_import, import_project
from onefold.transfer.tables import LEFT_OUT, TABLES
from onefold.v1.activation_service_pb2 import ListCriteriaRequest, RecordConsentRequest
from onefold.v1.data_format_pb2 import DATA_FORMAT_JSON
from onefold.v1.event_pb2 import EVENT_KIND_PURCHASE, CommerceItem
from onefold.v1.events_service_pb2 import TRIGGER_START_OLDEST, ListActivityRequest, WatchTriggersRequest
from onefold.v1.identity_service_pb2 import (
    LINK_OUTCOME_LINKED,
    LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE,
    ForgetProfileRequest,
    UpdateProfileRequest,
)
from onefold.v1.projects_service_pb2 import GetProjectRequest, UpdateProjectRequest
from support.client import Client, email, failure, first_answer
from support.criteria import make_criterion, named
from support.merging import devices, disable, fields, identify, merge, put, register, undo
from support.places import Place, place
from support.probes import rows_of
from support.watching import watching
from support.world import World

A, B, C, D, E = (email(f"{name}@example.com") for name in "abcde")
# Numbers that no double holds, and a line's end between tokens.
TELLING = '{"big": 1152921504606846977,\n "huge": 1e300, "text": "a\\nb \\"quoted\\" \\\\ \u00e9"}'


@pytest_asyncio.fixture(scope="module")
async def here(settings: Settings) -> AsyncIterator[Place]:
    """Where the project is made."""
    async with place(settings, "transfer_here") as found:
        yield found


@pytest_asyncio.fixture(scope="module")
async def there(settings: Settings) -> AsyncIterator[Place]:
    """Where it is brought to."""
    async with place(settings, "transfer_there") as found:
        yield found


@dataclass
class Story:
    """A project with something in every table that goes along, and what is needed to ask for it."""

    client: Client
    merge_id: str = ""
    cursor: str = ""


@pytest_asyncio.fixture(scope="module")
async def story(here: Place) -> Story:
    """One for all tests of this file; none of them changes it."""
    key = await ensure_project(here.settings.database_url, project_id="origin", identifier_type="EMAIL", api_key=None)
    client = here.client("origin", key)
    told = Story(client)
    await client.projects.UpdateProject(UpdateProjectRequest(triggers_enabled=True, server_side_activation=True))
    await make_criterion(client, named("Never", minMatch=9))
    for who, data in ((A, '{"plan":"gold","n":1152921504606846977}'), (B, '{"from":"b"}'), (C, "{}"), (D, "{}")):
        await put(client, who, data)
    await client.identity.UpdateProfile(UpdateProfileRequest(identifiers=C, data_fields_json="{}", request_id="r1"))
    await client.track(identifiers=A, name="own", event_id="once", data_json=TELLING)
    await client.track(
        identifiers=A, name="bought", kind=EVENT_KIND_PURCHASE, total=5, items=[CommerceItem(id="1", name="Pizza")]
    )
    for visitor in ("x", "y", "z"):
        await client.track(anonymous_id=visitor, name=f"by {visitor}", data_json=TELLING)
        await client.activation.RecordConsent(RecordConsentRequest(anonymous_id=visitor))
    await client.track(name="invite", data_json='{"recipient": "someone@example.com"}')
    await identify(client, A, "x")
    await identify(client, B, "z")
    await register(client, A, "shared")
    await register(client, B, "shared")
    await disable(client, "shared")
    await register(client, A, "own")
    await here.world.settle("origin")
    told.merge_id = (await merge(client, B, A)).merge.merge_id
    await client.identity.ForgetProfile(ForgetProfileRequest(identifiers=D))
    await here.world.settle("origin")
    async with watching(client, at=TRIGGER_START_OLDEST) as watch:
        told.cursor = (await watch.next()).cursor
    return told


@pytest_asyncio.fixture(scope="module")
async def exported(here: Place, story: Story, folder: Path) -> Path:
    """The file."""
    path = folder / "origin.jsonl"
    await export_project(here.settings, "origin", path, wait_seconds=0)
    return path


async def bring(place: Place, path: Path, project_id: str) -> Client:
    """Imports a file; gives stubs with the key that came of it."""
    return place.client(project_id, await import_project(place.settings, check(path), project_id=project_id))


def body(path: Path) -> tuple[dict[str, Any], list[bytes], dict[str, int]]:
    """A file apart from the id of its project: the head without it, the rows, and what the end counts."""
    head, *rows, end = path.read_bytes().splitlines()
    parsed = json.loads(head)
    del parsed["project_id"]
    return parsed, rows, json.loads(end)["end"]["rows"]


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("elsewhere", "project_id"), [(False, "copy-here"), (True, "origin"), (True, "copy-there")])
async def test_a_round_trip(
    here: Place, there: Place, story: Story, exported: Path, folder: Path, elsewhere: bool, project_id: str
) -> None:
    """X3: what is exported, imported and exported again is the same, byte by byte apart from the project's id."""
    target = there if elsewhere else here
    before = await rows_of(here.world, "origin")
    client = await bring(target, exported, project_id)
    assert await rows_of(here.world, "origin") == before
    again = folder / f"{project_id}-{elsewhere}.jsonl"
    await export_project(target.settings, project_id, again, wait_seconds=0)
    assert body(again) == body(exported)
    await assert_is_alive(client, target.world, story)


async def assert_is_alive(client: Client, world: World, story: Story) -> None:
    """The copy goes on as the project would have: reads, links, dedupe, undo, devices, what is forgotten."""
    assert sorted(await client.names(identifiers=A)) == ["bought", "by x", "by z", "own"]
    assert (await fields(client, A))["n"] == 1152921504606846977
    [own] = [
        event for event in await client.timeline(identifiers=A, data_format=DATA_FORMAT_JSON) if event.name == "own"
    ]
    assert json.loads(own.data_json) == json.loads(TELLING)
    assert "1152921504606846977" in own.data_json
    assert await client.names(recipient="someone@example.com") == ["invite"]
    # E3: an id of before is a duplicate. A4, A3: a link of before holds, and a visitor of before can be linked.
    assert (await client.track(identifiers=A, name="own", event_id="once", data_json=TELLING)).duplicate
    assert (await identify(client, C, "x")).outcome == LINK_OUTCOME_REFUSED_LINKED_ELSEWHERE
    assert (await identify(client, C, "y")).outcome == LINK_OUTCOME_LINKED
    assert await client.names(identifiers=C) == ["by y"]
    # X1: an answer of before is given again. F42: what was forgotten stays so.
    request = UpdateProfileRequest(identifiers=C, data_fields_json="{}", request_id="r1")
    assert (await client.identity.UpdateProfile(request)).replayed
    refused = await failure(client.identity.UpdateProfile(UpdateProfileRequest(identifiers=D)))
    assert refused.reason == "FORGOTTEN"
    # D3: a disable comes after every registration of before.
    assert await devices(client, A) == {"own": True, "shared": False}
    await disable(client, "own")
    assert await devices(client, A) == {"own": False, "shared": False}
    # I19: a merge of before can be undone, and takes the link of its source along.
    await undo(client, story.merge_id)
    await world.settle(client.project_id)
    assert await client.names(identifiers=B) == ["by z"]
    assert await fields(client, B) == {"from": "b"}
    assert (await client.projects.GetProject(GetProjectRequest())).project.triggers_enabled
    assert len((await client.activation.ListCriteria(ListCriteriaRequest())).criteria) == 1
    assert len((await client.events.ListActivity(ListActivityRequest())).activities) > 5
    # E10: a cursor of before is refused rather than skip what is told from now on.
    ended = await failure(first_answer(client.events.WatchTriggers(WatchTriggersRequest(cursor=story.cursor))))
    assert ended.reason in {"CURSOR_EXPIRED", "CURSOR_INVALID"}


async def test_every_table_is_thought_of(here: Place, story: Story, exported: Path) -> None:
    """X3: whatever belongs to a project goes along or is named as left behind, and the story above has all of it."""
    tables = await here.world.fetch(
        "SELECT c.table_name FROM information_schema.columns AS c "
        "JOIN pg_class AS r ON r.relname = c.table_name AND NOT r.relispartition "
        "WHERE c.table_schema = 'public' AND c.column_name = 'project_id'"
    )
    assert {row[0] for row in tables} == {table.name for table in TABLES} | set(LEFT_OUT)
    counts = body(exported)[2]
    assert {name for name, rows in counts.items() if rows} == {table.name for table in TABLES}


async def test_a_file_of_an_older_schema(there: Place, story: Story, exported: Path, folder: Path) -> None:
    """X3: a column that the file does not know takes its default; one that the database does not know is refused."""
    head, *rows, _ = exported.read_bytes().splitlines(keepends=True)
    parsed = json.loads(head)
    parsed["columns"]["events"].remove("suppress_triggers")
    older = written(folder / "older.jsonl", parsed, rows)
    client = await bring(there, older, "older")
    assert len(await client.names(identifiers=A)) == 4
    parsed["columns"]["events"].append("of_tomorrow")
    newer = written(folder / "newer.jsonl", parsed, rows)
    with pytest.raises(OnefoldError, match="newer"):
        await import_project(there.settings, check(newer), project_id="newer")
    assert not any((await rows_of(there.world, "newer")).values())


# --- what is wrong ----------------------------------------------------------------------------------------------------


def written(path: Path, head: dict[str, Any], rows: list[bytes]) -> Path:
    """A file made by hand, with the end that it should have."""
    lines = [json.dumps(head, separators=(",", ":")).encode() + b"\n", *rows]
    counts: dict[str, int] = {}
    for line in rows:
        if line.startswith(b'{"section"'):
            name = json.loads(line)["section"]
            counts[name] = 0
        else:
            counts[name] += 1
    sha256 = hashlib.sha256(b"".join(lines)).hexdigest()
    end = json.dumps({"end": {"rows": counts, "sha256": sha256}}, separators=(",", ":")).encode() + b"\n"
    path.write_bytes(b"".join([*lines, end]))
    return path


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: b"", "no export"),
        (lambda data: b"PK\x03\x04" + bytes(1000), "no export"),
        (lambda data: b'{"some": "json"}\n', "no export"),
        (lambda data: data.replace(b'{"onefold_export":1,', b'{"onefold_export":2,', 1), "newer"),
        (lambda data: data[: len(data) // 2], "cut off"),
        (lambda data: data[: data.rindex(b'{"end"')], "cut off"),
        (lambda data: data[:-3], "cut off"),
        (lambda data: data.replace(b"by x", b"by q", 1), "changed"),
        (lambda data: data.replace(b'"plan"', b'"plam"', 1), "changed"),
        (lambda data: without_a_row(data), "rows"),
        (lambda data: data + b"{}\n", "behind its end"),
        (lambda data: data[:40] + b"\x00" + data[41:], "line 1"),
    ],
    ids=[
        "empty",
        "binary",
        "json",
        "format",
        "half",
        "no end",
        "last bytes",
        "a name",
        "a field",
        "a row",
        "more",
        "head",
    ],
)
async def test_a_file_that_is_not_whole(
    there: Place, exported: Path, folder: Path, spoil: Callable[[bytes], bytes], told: str
) -> None:
    """X2: a file that is cut, changed or something else is refused in one line that says which, before any row of it
    is written."""
    path = folder / "spoilt.jsonl"
    path.write_bytes(spoil(exported.read_bytes()))
    with pytest.raises(OnefoldError) as refused:
        await import_project(there.settings, check(path), project_id="spoilt")
    assert told in refused.value.message
    assert "\n" not in refused.value.message
    assert not any((await rows_of(there.world, "spoilt")).values())


@pytest.mark.parametrize("field", ["project_id", "project", "forget_name", "forget_proof", "columns"])
def test_a_first_line_made_by_hand(exported: Path, folder: Path, field: str) -> None:
    """X2: a first line that lacks something, or has something else in its place, is refused in one line, though the
    hash is right."""
    head, *rows, _ = exported.read_bytes().splitlines(keepends=True)
    parsed = json.loads(head)
    assert check(written(folder / "by-hand.jsonl", parsed, rows)).head.model_dump()[field] == parsed.pop(field)
    for wrong in (parsed, {**parsed, field: 7}, {**parsed, field: ["x"]}):
        with pytest.raises(OnefoldError, match="a first line that no export wrote"):
            check(written(folder / "by-hand.jsonl", wrong, rows))


def without_a_row(data: bytes) -> bytes:
    """The file without one of its profiles."""
    lines = data.splitlines(keepends=True)
    del lines[lines.index(b'{"section":"profiles"}\n') + 1]
    return b"".join(lines)


async def test_rows_that_somebody_made_up(there: Place, exported: Path, folder: Path) -> None:
    """X2: rows that cannot be stored, under a hash that is right, are one line; nothing of them is visible."""
    head, *rows, _ = exported.read_bytes().splitlines(keepends=True)
    at = rows.index(b'{"section":"events"}\n') + 1
    rows[at] = rows[at].replace(b'"event_time":"2', b'"event_time":"x2')
    path = written(folder / "made-up.jsonl", json.loads(head), rows)
    with pytest.raises(OnefoldError, match="events that cannot be stored"):
        await import_project(there.settings, check(path), project_id="made-up")
    assert await there.world.value("SELECT count(*) FROM projects WHERE project_id = 'made-up'") == 0
    assert await discard_import(there.settings, "made-up") > 0
    assert not any((await rows_of(there.world, "made-up")).values())


async def test_another_secret(there: Place, exported: Path) -> None:
    """I20: hashes that mean nothing here are refused, or left out when that is asked for; never kept in silence."""
    other = there.settings.model_copy(update={"forget_secret": SecretStr("another secret than that")})
    with pytest.raises(OnefoldError, match="ONEFOLD_FORGET_SECRET"):
        await import_project(other, check(exported), project_id="unhashed")
    assert not any((await rows_of(there.world, "unhashed")).values())
    await import_project(other, check(exported), project_id="unhashed", drop_forgotten=True)
    assert (await rows_of(there.world, "unhashed"))["forgotten"] == []


# --- interrupted ------------------------------------------------------------------------------------------------------


async def test_an_interrupted_import(
    there: Place, story: Story, exported: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X3: an import that is interrupted at any place shows nothing, and goes on where it was when it is run again.

    Meanwhile nobody makes a project of that id, and no other file or process takes the place.
    """
    # As small as can be, so that there is a place between any two rows.
    monkeypatch.setattr(transfer_file, "_BLOCK_BYTES", 1)
    file = check(exported)
    places = 0

    def interrupt(_: int) -> None:
        nonlocal places
        places += 1
        if places % 4 == 0:
            raise KeyboardInterrupt

    runs = 0
    while True:
        runs += 1
        try:
            key = await import_project(there.settings, file, project_id="broken", on_bytes=interrupt)
            break
        except KeyboardInterrupt:
            pass
        if runs == 1:
            assert await there.world.value("SELECT count(*) FROM projects WHERE project_id = 'broken'") == 0
            with pytest.raises(OnefoldError, match="already"):
                await create_project(there.world.database, "broken", IdentifierType.EMAIL, Region.US)
            head, *rows, _ = exported.read_bytes().splitlines(keepends=True)
            other = written(folder / "other.jsonl", {**json.loads(head), "forget_name": "another"}, rows)
            with pytest.raises(OnefoldError, match="--discard"):
                await import_project(there.settings, check(other), project_id="broken", drop_forgotten=True)
    assert runs > 5
    assert places == sum(section.rows for section in file.sections)
    again = folder / "broken.jsonl"
    await export_project(there.settings, "broken", again, wait_seconds=0)
    assert body(again) == body(exported)
    assert len(await there.client("broken", key).names(identifiers=A)) == 4
    with pytest.raises(OnefoldError, match="already"):
        await import_project(there.settings, file, project_id="broken")


async def test_two_imports_at_once(there: Place, exported: Path) -> None:
    """X2: of two processes that import one project at once, one does it and the other says so."""
    file = check(exported)
    results = await asyncio.gather(
        *(import_project(there.settings, file, project_id="twice") for _ in range(2)), return_exceptions=True
    )
    [refused] = [result for result in results if isinstance(result, OnefoldError)]
    assert "running" in refused.message or "already" in refused.message
    assert sum(isinstance(result, str) for result in results) == 1


async def test_an_export_while_work_is_left(here: Place, story: Story, folder: Path) -> None:
    """X3: while workers have something to do an export refuses and says what helps; no file, not even half of one."""
    key = await ensure_project(here.settings.database_url, project_id="busy", identifier_type="EMAIL", api_key=None)
    client = here.client("busy", key)
    await put(client, A)
    await client.track(anonymous_id="x", name="n")
    await identify(client, A, "x")
    path = folder / "busy" / "out.jsonl"
    path.parent.mkdir()
    with pytest.raises(OnefoldError, match="onefold intents list --project busy"):
        await export_project(here.settings, "busy", path, wait_seconds=0)
    assert list(path.parent.iterdir()) == []
    await here.world.settle("busy")
    await export_project(here.settings, "busy", path, wait_seconds=0)
    assert [each.name for each in path.parent.iterdir()] == ["out.jsonl"]
    with pytest.raises(OnefoldError, match="nowhere"):
        await export_project(here.settings, "nowhere", path, wait_seconds=0)
