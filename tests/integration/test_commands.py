"""What an operator types to see and to change how the service stands: settings, projects, keys, intents, transfer."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import asyncpg
import grpc
import pytest

from onefold.config import Settings
from onefold.v1.identity_service_pb2 import GetProfileRequest
from onefold.v1.projects_service_pb2 import GetProjectRequest
from support.client import Client, email, failure
from support.commands import invoke, invoked, refused
from support.databases import empty_database
from support.merging import put
from support.world import World

A = email("a@example.com")
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
URLS = {
    "ONEFOLD_DATABASE_URL": "postgresql://onefold:sesame@db.example.com/onefold",
    "ONEFOLD_REDIS_URL": "redis://:open@cache.example.com:6379/0",
}


@pytest.fixture
def told(settings: Settings) -> dict[str, str]:
    """The environment of a command on the tests' servers."""
    return {"ONEFOLD_DATABASE_URL": settings.database_url, "ONEFOLD_REDIS_URL": settings.redis_url}


# --- settings ---------------------------------------------------------------------------------------------------------


def shown(*arguments: str, **settings: str) -> dict[str, tuple[str, str]]:
    """What `onefold config` shows: the value and the origin of every setting."""
    done = invoke("config", "--json", *arguments, **settings)
    assert (done.exit_code, done.stderr) == (0, "")
    rows = map(json.loads, done.stdout.splitlines())
    return {row["name"]: (row["value"], row["origin"]) for row in rows}


def test_where_settings_come_from(tmp_path: Path) -> None:
    """X2: a flag wins over the environment, the environment over the default; a secret may lie in a file."""
    secret = tmp_path / "url"
    secret.write_text("redis://cache.example.com:1/0\n")
    environment = {
        "ONEFOLD_DATABASE_URL": URLS["ONEFOLD_DATABASE_URL"],
        "ONEFOLD_REDIS_URL_FILE": str(secret),
        "ONEFOLD_PORT": "1234",
        "ONEFOLD_HOST": "127.0.0.2",
    }
    found = shown("--port", "4321", **environment)
    assert found["ONEFOLD_PORT"] == ("4321", "flag")
    assert found["ONEFOLD_HOST"] == ("127.0.0.2", "environment")
    assert found["ONEFOLD_REDIS_URL"] == ("redis://cache.example.com:1/0", "file")
    assert found["ONEFOLD_SERVER_PROCESSES"] == ("1", "default")
    assert {f"ONEFOLD_{name.upper()}" for name in Settings.model_fields} == set(found)


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("ONEFOLD_DATABASE_URL", "postgresql://me:sesame@h:1/d", "postgresql://me:***@h:1/d"),
        ("ONEFOLD_DATABASE_URL", "postgresql://me:se%40same:@h/d", "postgresql://me:***@h/d"),
        ("ONEFOLD_DATABASE_URL", "postgresql://h/d?user=me&password=sesame", "postgresql://h/d?user=me&password=***"),
        ("ONEFOLD_REDIS_URL", "rediss://:sesame@h/0", "rediss://:***@h/0"),
        ("ONEFOLD_FORGET_SECRET", "sesame sesame sesame", "***"),
    ],
)
def test_no_secret_is_shown(name: str, value: str, seen: str) -> None:
    """X2: config shows no password, wherever in an address it stands, and no secret."""
    settings = {**URLS, name: value}
    assert shown(**settings)[name] == (seen, "environment")
    assert "same" not in invoke("config", **settings).output


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"ONEFOLD_PORT": "sesame"}, "ONEFOLD_PORT"),
        ({"ONEFOLD_DATABASE_URL": "postgresql://me:sesame@h:port/d"}, "ONEFOLD_DATABASE_URL"),
        ({"ONEFOLD_DATABASE_URL": ""}, "ONEFOLD_DATABASE_URL"),
        ({"ONEFOLD_FORGET_SECRET": "sesame"}, "ONEFOLD_FORGET_SECRET"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], wanted: str) -> None:
    """X2: config shows all other settings, names the one that is wrong without its value, and ends with status 1."""
    done = invoke("config", **{**URLS, **settings})
    assert done.exit_code == 1
    assert wanted in done.stderr
    assert "sesame" not in done.output
    assert len(done.stdout.splitlines()) > 10


def test_files_of_secrets(tmp_path: Path) -> None:
    """X2: a file that is named and not there, or beside the setting itself, is told in one line, and not ignored."""
    missing = {"ONEFOLD_DATABASE_URL_FILE": str(tmp_path / "missing"), "ONEFOLD_REDIS_URL": URLS["ONEFOLD_REDIS_URL"]}
    for command in (["config"], ["migrate"], ["project", "list"]):
        line = refused(invoke(*command, **missing))
        assert "ONEFOLD_DATABASE_URL_FILE" in line
        assert "No such file" in line
    both = {**URLS, "ONEFOLD_DATABASE_URL_FILE": str(tmp_path)}
    assert "both" in refused(invoke("config", **both))


@pytest.mark.parametrize("command", [["config"], ["serve"], ["work"], ["dev", "--data-dir", "/dev/null/no-folder"]])
def test_misspelt_settings(command: list[str]) -> None:
    """X2: a name that is no setting is warned about with the nearest one that is; one that means nothing, too."""
    misspelt = {"ONEFOLD_DATABSE_URL": "x", "ONEFOLD_REDIS_URL_FIL": "x", "ONEFOLD_XYZZY": "x"}
    done = invoke(*command, **misspelt, ONEFOLD_DEV_API_KEY="known", ONEFOLD_PUBLISH="known")
    warnings = [line for line in done.stderr.splitlines() if "warning" in line]
    assert [line.partition("; ")[2] for line in warnings] == [
        "did you mean ONEFOLD_DATABASE_URL?",
        "did you mean ONEFOLD_REDIS_URL_FILE?",
        "",
    ]
    assert done.exit_code == 1


async def test_a_role_without_rights(settings: Settings) -> None:
    """X2: what PostgreSQL does not let the role do is one line that says so, without a traceback."""
    async with empty_database(settings.database_url, "forbidden") as url:
        admin = await asyncpg.connect(url)
        await admin.execute("CREATE ROLE powerless LOGIN")
        try:
            address = url.replace("://onefold@", "://powerless@")
            told = {"ONEFOLD_DATABASE_URL": address, "ONEFOLD_REDIS_URL": "redis://127.0.0.1:1"}
            assert "InsufficientPrivilege" in refused(await invoked("migrate", **told))
        finally:
            await admin.execute("DROP ROLE powerless")
            await admin.close()


def test_dev_with_addresses_in_files(tmp_path: Path) -> None:
    """X2: dev takes addresses from files as the others do: one of the two alone is refused, a missing file is named."""
    (tmp_path / "url").write_text("postgresql://h/d")
    one = invoke("dev", "--port", "0", ONEFOLD_DATABASE_URL_FILE=str(tmp_path / "url"))
    assert (one.exit_code, "ONEFOLD_REDIS_URL is not" in one.stderr) == (1, True)
    missing = invoke("dev", "--port", "0", ONEFOLD_DATABASE_URL_FILE=str(tmp_path / "none"))
    assert (missing.exit_code, "No such file" in missing.stderr) == (1, True)


# --- projects and keys ------------------------------------------------------------------------------------------------


async def test_projects(told: dict[str, str]) -> None:
    """P1, P4, P5: an operator makes a project, finds it in the list, changes its settings and sees them."""
    assert (await invoked("project", "create", "seen", "--type", "EMAIL", **told)).exit_code == 0
    listed = await invoked("project", "list", "--json", **told)
    assert "seen" in {json.loads(line)["project_id"] for line in listed.stdout.splitlines()}
    assert "seen" in (await invoked("project", "list", **told)).stdout
    changed = await invoked("project", "update", "seen", "--triggers", "--no-event-merging", "--json", **told)
    limited = await invoked("project", "update", "seen", "--max-calls-per-second", "7", "--json", **told)
    assert json.loads(limited.stdout) == {
        **json.loads(changed.stdout),
        "max_calls_per_second": 7,
        "update_time": json.loads(limited.stdout)["update_time"],
    }
    changed = await invoked("project", "update", "seen", "--max-calls-per-second", "0", "--json", **told)
    assert changed.exit_code == 0
    row = json.loads((await invoked("project", "show", "seen", "--json", **told)).stdout)
    assert row == json.loads(changed.stdout)
    assert (row["triggers_enabled"], row["event_merging_enabled"], row["require_consent"]) == (True, False, False)
    assert (row["identifier_type"], row["region"]) == ("EMAIL", "US")
    assert "triggers_enabled" in (await invoked("project", "show", "seen", **told)).stdout
    assert "EU" in refused(await invoked("project", "update", "seen", "--region", "EU", **told))
    assert (await invoked("project", "update", "seen", **told)).exit_code == 2
    for command in (["show", "nobody"], ["update", "nobody", "--triggers"]):
        assert "nobody" in refused(await invoked("project", *command, **told))


async def test_keys(told: dict[str, str], channel: grpc.aio.Channel) -> None:
    """F74: an operator sees a project's keys without their secrets, and a revoked key opens nothing any more."""
    await invoked("project", "create", "locked", "--type", "EMAIL", **told)
    key = (await invoked("key", "create", "locked", "--name", "for tests", **told)).stdout.strip()
    other = (await invoked("key", "create", "locked", "--scope", "READ", **told)).stdout.strip()
    listed = (await invoked("key", "list", "locked", "--json", **told)).stdout
    assert key.rpartition("_")[2] not in listed
    [row] = [row for row in map(json.loads, listed.splitlines()) if row["display_name"] == "for tests"]
    assert (row["scopes"], row["revoke_time"]) == (["READ", "WRITE"], None)
    revoked = await invoked("key", "revoke", "locked", row["key_id"], **told)
    assert (revoked.exit_code, revoked.stdout) == (0, f"revoked {row['key_id']}\n")
    told_failure = await failure(Client(channel, "locked", key).projects.GetProject(GetProjectRequest()))
    assert told_failure.code == grpc.StatusCode.UNAUTHENTICATED
    assert (await Client(channel, "locked", other).projects.GetProject(GetProjectRequest())).project
    assert "for tests" in (await invoked("key", "list", "locked", **told)).stdout
    assert "no-such" in refused(await invoked("key", "revoke", "locked", "no-such", **told))
    for command in (["list", "nobody"], ["revoke", "nobody", row["key_id"]]):
        assert "nobody" in refused(await invoked("key", *command, **told))


# --- the work that is left --------------------------------------------------------------------------------------------


async def test_one_intent(told: dict[str, str], world: World) -> None:
    """F26: an operator sees of one intent what it is, how often it was tried and why it is stuck, until it is done."""
    intent_id = uuid4()
    await world.fetch(
        "INSERT INTO intents (project_id, intent_id, kind, stuck_time, last_error, attempt_count, due_time) "
        "VALUES ('intents-seen', $1, 'UNHEARD_OF', $2, 'LOCK_TIMEOUT', 12, $2) RETURNING 1",
        intent_id,
        LONG_AGO,
    )
    row = json.loads((await invoked("intents", "show", str(intent_id), "--json", **told)).stdout)
    assert (row["state"], row["kind"], row["attempt_count"], row["last_error"]) == (
        "STUCK",
        "UNHEARD_OF",
        12,
        "LOCK_TIMEOUT",
    )
    plain = (await invoked("intents", "show", str(intent_id), **told)).stdout
    assert "LOCK_TIMEOUT" in plain
    await world.fetch("DELETE FROM intents WHERE project_id = 'intents-seen' RETURNING 1")
    assert "done" in refused(await invoked("intents", "show", str(intent_id), **told))


async def test_health_as_json(address: str) -> None:
    """F8, F18: health says as JSON whether the server serves, and whether the bells are heard."""
    done = await invoked("health", "--target", address, "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["target"], told["status"]) == (0, address, "SERVING")
    assert isinstance(told["degraded"], bool)


# --- transfer ---------------------------------------------------------------------------------------------------------


async def test_export_and_import(
    told: dict[str, str], email_project: Client, channel: grpc.aio.Channel, tmp_path: Path
) -> None:
    """X3: export says what it wrote, import what it brought in and the key of it, and nobody else may read the file."""
    await put(email_project, A)
    file = tmp_path / "project.jsonl"
    exported = await invoked("export", email_project.project_id, str(file), **told)
    assert (exported.exit_code, exported.stdout) == (0, "exported 1 profiles, 1 identifiers\n")
    assert file.stat().st_mode & 0o077 == 0
    imported = await invoked("import", str(file), "--project", "brought-in", **told)
    assert imported.exit_code == 0
    assert "1 profiles" in imported.stderr
    client = Client(channel, "brought-in", imported.stdout.strip())
    assert (await client.identity.GetProfile(GetProfileRequest(identifiers=A))).profile.profile_id
    again = refused(await invoked("import", str(file), "--project", "brought-in", **told))
    assert "--project" in again


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("import {missing}", "No such file"),
        ("import {folder}/foreign", "no export of onefold"),
        ("import --discard nobody", "no unfinished import"),
        ("import {whole} --project No-Name", "project_id"),
        ("export nobody {folder}/out", "no project nobody"),
        ("export {project} {folder}/foreign/out", "cannot be written"),
    ],
)
async def test_transfers_that_are_refused(
    told: dict[str, str], email_project: Client, tmp_path: Path, arguments: str, wanted: str
) -> None:
    """X2: a file that is not there, foreign or not to be written, or a wrong project, is one line and status 1."""
    (tmp_path / "foreign").write_bytes(bytes(range(256)))
    whole = tmp_path / "whole"
    await invoked("export", email_project.project_id, str(whole), **told)
    line = arguments.format(
        missing=tmp_path / "missing", folder=tmp_path, whole=whole, project=email_project.project_id
    )
    assert wanted in refused(await invoked(*line.split(), **told))
    assert {path.name for path in tmp_path.iterdir()} == {"foreign", "whole"}


def test_what_to_import() -> None:
    """X2: import without a file, or with a file and a project to discard, is a wrong use of the command."""
    for arguments in (["import"], ["import", "file", "--discard", "shop"]):
        assert invoke(*arguments, **URLS).exit_code == 2
