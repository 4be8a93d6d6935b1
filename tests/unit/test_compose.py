"""docker-compose.yml and its Dockerfile have the form that the parts of the service need of them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from onefold.config import Settings
from onefold.limits import CALL_MAX_SECONDS

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {"migrate": "migrate", "server": "serve", "worker": "work"}
DOCKERFILE = (ROOT / "scripts" / "Dockerfile").read_text()


def test_it_runs_the_five_parts() -> None:
    """The file starts a database, a queue, the migrations, a server and a worker, and nothing else unless asked to."""
    assert {name for name, definition in SERVICES.items() if "profiles" not in definition} == {
        "postgres",
        "valkey",
        *OURS,
    }


def test_the_observability_profile_watches_server_and_worker() -> None:
    """The profile adds a Prometheus that scrapes the ports on which server and worker tell their metrics, and a Grafana
    that shows them; both are pinned, say whether they are well, and read files that are there."""
    watching = {name: each for name, each in SERVICES.items() if each.get("profiles") == ["observability"]}
    assert set(watching) == {"prometheus", "grafana"}
    for definition in watching.values():
        assert re.fullmatch(r"[a-z/]+:v?[0-9]+\.[0-9]+\.[0-9]+", definition["image"])
        assert definition["healthcheck"]["test"][0] == "CMD"
        files = [volume for volume in definition["volumes"] if volume.startswith("./")]
        assert files
        for volume in files:
            source, _, mode = volume.split(":")
            assert (ROOT / source).is_file()
            assert mode == "ro"
    [scraped] = yaml.safe_load((ROOT / "scripts/observability/prometheus.yml").read_text())["scrape_configs"]
    [targets] = scraped["static_configs"]
    for target in targets["targets"]:
        name, port = target.split(":")
        environment = SERVICES[name]["environment"]
        assert (environment["ONEFOLD_HTTP_HOST"], environment["ONEFOLD_HTTP_PORT"]) == ("0.0.0.0", port)
    assert {target.split(":")[0] for target in targets["targets"]} == {"server", "worker"}
    # Nobody but the other containers reaches what needs no key.
    assert "ports" not in watching["prometheus"]
    assert [port.split(":-")[1][:10] for port in watching["grafana"]["ports"]] == ["127.0.0.1:"]


@pytest.mark.parametrize(("service", "command"), OURS.items())
def test_our_services_run_commands_of_onefold(service: str, command: str) -> None:
    """Each of our services runs one command of onefold, from the image that the Dockerfile makes."""
    definition = SERVICES[service]
    assert definition["command"][0] == command
    assert "entrypoint" not in definition
    build = definition["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    assert 'ENTRYPOINT ["onefold"]' in DOCKERFILE


@pytest.mark.parametrize("service", OURS)
def test_our_services_find_the_others_by_name(service: str) -> None:
    """Each of our services reaches PostgreSQL and Valkey under the names that the file gives them."""
    environment = SERVICES[service]["environment"]
    assert re.fullmatch(r"postgresql://onefold@postgres:5432/onefold", environment["ONEFOLD_DATABASE_URL"])
    assert environment["ONEFOLD_REDIS_URL"].startswith("redis://valkey:")
    assert environment["PGPASSWORD"] == SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]


def test_migrations_wait_for_a_healthy_database() -> None:
    """The migrations start once PostgreSQL is healthy, and run once."""
    migrate = SERVICES["migrate"]
    assert migrate["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert SERVICES["postgres"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert migrate["restart"] == "no"


@pytest.mark.parametrize("service", ["server", "worker"])
def test_server_and_worker_wait_for_the_migrations(service: str) -> None:
    """The server and the worker start on a migrated database only, and come back if they end."""
    assert SERVICES[service]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert SERVICES[service]["restart"] == "unless-stopped"


def test_dependencies_are_services() -> None:
    """Whatever a service depends on stands in the same file, and can be waited for."""
    for definition in SERVICES.values():
        for name, dependency in definition.get("depends_on", {}).items():
            assert name in SERVICES
            if dependency["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]


def test_data_is_on_named_volumes() -> None:
    """PostgreSQL's and Valkey's data outlive their containers, and every volume declared is used."""
    used = [
        volume.split(":")
        for definition in SERVICES.values()
        for volume in definition.get("volumes", [])
        if not volume.startswith("./")
    ]
    assert {name for name, _ in used} == set(COMPOSE["volumes"])
    # The image of 18 moved its data: a volume at the folder of earlier ones would stay empty.
    assert ["postgres-data", "/var/lib/postgresql"] in used
    assert ["valkey-data", "/data"] in used


def test_valkey_loses_no_job() -> None:
    """Valkey writes its data to disk, and refuses writes when it is full rather than drop jobs."""
    command = SERVICES["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options == {"--appendonly": "yes", "--maxmemory-policy": "noeviction"}


def test_the_servers_are_the_ones_the_tests_use() -> None:
    """The images are of the major versions that the embedded servers have."""
    assert SERVICES["postgres"]["image"].split(":")[1].split(".")[0] == "18"
    assert SERVICES["valkey"]["image"].split(":")[1].split(".")[0] == "9"


def test_the_server_answers_at_its_published_port() -> None:
    """The published port is the one that the server listens on and that its health check asks."""
    server = SERVICES["server"]
    assert server["command"] == ["serve", "--host", "0.0.0.0", "--port", "50051", "--allow-plaintext"]
    [published] = server["ports"]
    assert published == "${ONEFOLD_PUBLISH:-127.0.0.1:50051}:50051"
    assert server["healthcheck"]["test"] == ["CMD", "onefold", "health", "--target", "127.0.0.1:50051"]
    assert "EXPOSE 50051" in DOCKERFILE


def test_no_secret_stands_in_the_file() -> None:
    """Every password comes from the environment, and its default says that it is for one machine only."""
    for definition in SERVICES.values():
        for name, value in definition.get("environment", {}).items():
            if "PASSWORD" in name:
                assert value == "${POSTGRES_PASSWORD:-onefold-on-this-machine-only}"
            assert not re.search(r"://[^/@]*:[^/@]*@", value)


def test_the_image_is_locked_and_unprivileged() -> None:
    """The image installs only packages whose hashes are pinned, and runs as an ordinary user."""
    assert (ROOT / "scripts" / "requirements" / "server.txt").is_file()
    for install in re.findall(r"pip\b[^&\n]* install ([^&\n\\]*)", DOCKERFILE):
        assert "--require-hashes" in install or "--no-index" in install
    final = DOCKERFILE.split("\nFROM ")[-1]
    assert re.search(r"^USER [1-9]\d*$", final, re.MULTILINE)


@pytest.mark.parametrize("service", OURS)
def test_our_services_have_no_rights_that_they_do_not_need(service: str) -> None:
    """Each of our services runs on a file system that it cannot write, without a capability, and gets none later."""
    definition = SERVICES[service]
    assert definition["read_only"] is True
    assert definition["cap_drop"] == ["ALL"]
    # Python and gRPC want a place for what they throw away again.
    assert definition["tmpfs"] == ["/tmp"]


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_gains_rights(service: str) -> None:
    """No program in any container becomes more than it was started as."""
    assert SERVICES[service]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize(("service", "seconds"), [("server", CALL_MAX_SECONDS), ("worker", 10.0)])
def test_stopping_takes_no_process_by_surprise(service: str, seconds: float) -> None:
    """F18, F19: containers wait for longer than the longest call, and than a worker takes to end, before they kill."""
    grace = float(SERVICES[service]["stop_grace_period"].removesuffix("s"))
    assert grace > seconds
    assert grace > Settings.model_fields["drain_seconds"].default
