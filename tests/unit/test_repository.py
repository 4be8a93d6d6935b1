"""What the repository promises about itself: its layout, its locks, and what never stands in it."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "scripts" / "requirements"
LOCKS = sorted(path.name for path in REQUIREMENTS.glob("*.txt"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
TOP_LEVEL = {"pyproject.toml", "README.md", "protos", "src", "tests", "scripts", "docker-compose.yml"}
# Put together from halves, so that this file does not hold what it looks for.
FORBIDDEN = re.compile(
    "|".join(
        [
            r"py" + r"pi\.org",
            r"python" + r"hosted\.org",
            r"npm" + r"js\.(?:org|com)",
            r"deb" + r"ian\.org",
            r"docker" + r"\.io",
            r"gh" + r"cr\.io",
            r"proxy\.go" + r"lang",
            r"(?<![\w.~-])/ho" + r"me/\w",
            r"(?<![\w.~-])/ro" + r"ot/\w",
            r"(?<![\w.~-])/Us" + r"ers/\w",
            r"(?<![\w.~-])/wo" + r"rk/\w",
        ]
    )
)


@pytest.fixture(scope="module")
def repository_files() -> list[str]:
    """Every file that is in the repository or would be by `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()})


def pins(lock: str) -> Iterator[tuple[str, Version, Marker | None, int]]:
    """The packages of a lock: name, version, marker and number of hashes."""
    text = (REQUIREMENTS / lock).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        entry = line.split("#")[0].strip()
        if not entry:
            continue
        requirement = Requirement(entry.split(" --hash=")[0].strip())
        [specifier] = requirement.specifier
        assert specifier.operator == "==", entry
        hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}(?= |$)", entry)
        assert len(hashes) == entry.count("--hash="), entry
        yield canonicalize_name(requirement.name), Version(specifier.version), requirement.marker, len(hashes)


def third_party_imports(folder: Path) -> set[str]:
    """The top-level modules from elsewhere that the Python files of a folder import."""
    own = {"onefold"} | {path.stem for path in (ROOT / "tests").rglob("*")} | {"tests"}
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] not in own | sys.stdlib_module_names}


def test_top_level_holds_the_known_names_only(repository_files: list[str]) -> None:
    """The top level holds pyproject.toml, README.md, protos, src, tests, scripts, docker-compose.yml and dotfiles."""
    top = {name.split("/")[0] for name in repository_files}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_no_registry_and_no_machine_is_named(repository_files: list[str]) -> None:
    """No file names a package registry, or a folder of the machine that it was written on."""
    found = []
    for name in repository_files:
        text = (ROOT / name).read_text(errors="replace")
        found += [f"{name}: {match[0]}" for match in FORBIDDEN.finditer(text)]
        # The folder of this checkout: only where it is long enough not to be an ordinary word.
        if len(ROOT.parts) > 2 and str(ROOT) in text:
            found.append(f"{name}: {ROOT}")
    assert found == []


def test_scripts_can_be_run(repository_files: list[str]) -> None:
    """Every file with a #! line under scripts and .ci is executable, and no other file is."""
    for name in repository_files:
        path = ROOT / name
        if name.startswith((".ci/", "scripts/")):
            assert path.read_bytes().startswith(b"#!") == bool(path.stat().st_mode & 0o100), name


def test_the_locks_are_there() -> None:
    """There is a lock for development, the image, its build, the fuzzer, the generator, and uv."""
    assert LOCKS == ["build.txt", "dev.txt", "fuzz.txt", "gen.txt", "server.txt", "uv.txt"]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_a_hash(lock: str) -> None:
    """Every package of a lock is pinned to one version and carries a hash at least."""
    packages = list(pins(lock))
    assert packages
    assert [name for name, _, _, hashes in packages if not hashes] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_hold_no_address(lock: str) -> None:
    """A lock names no index and no address, so that it serves any mirror."""
    text = (REQUIREMENTS / lock).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(-i|--index-url|--extra-index-url|-f|--find-links|--trusted-host)\b", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("dev.txt", [*PROJECT["dependencies"], *(name for extra in EXTRAS.values() for name in extra)]),
        ("server.txt", [*PROJECT["dependencies"], *EXTRAS["server"], *EXTRAS["otel"]]),
    ],
)
def test_locks_satisfy_pyproject(lock: str, wanted: list[str]) -> None:
    """What pyproject.toml asks for is in the lock, in a version that it allows: otherwise run scripts/lock."""
    locked = {name: version for name, version, marker, _ in pins(lock) if marker is None or marker.evaluate()}
    for requirement in map(Requirement, wanted):
        if requirement.marker is None or requirement.marker.evaluate():
            name = canonicalize_name(requirement.name)
            assert name in locked, name
            assert requirement.specifier.contains(locked[name], prereleases=True), f"{requirement}: {locked[name]}"


@pytest.mark.parametrize("lock", ["server.txt", "fuzz.txt"])
def test_the_image_and_the_fuzzer_run_what_was_tested(lock: str) -> None:
    """Every pin of the image's lock, and of the fuzzer's but for itself, is the pin of the development lock."""
    tested = {(name, version) for name, version, _, _ in pins("dev.txt")}
    assert {(name, version) for name, version, _, _ in pins(lock) if name != "atheris"} <= tested


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("src", ["server", "embedded", "otel"]), ("tests", list(EXTRAS)), ("scripts", list(EXTRAS))],
)
def test_imports_are_declared(folder: str, extras: list[str]) -> None:
    """Every package that the code imports is declared in pyproject.toml, not just there by chance."""
    wanted = [*PROJECT["dependencies"], *(name for extra in extras for name in EXTRAS[extra])]
    declared: set[str] = {canonicalize_name(Requirement(text).name) for text in wanted}
    if folder == "scripts":
        # The fuzzer runs in an environment of its own.
        declared |= {canonicalize_name(name) for name, _, _, _ in pins("fuzz.txt")}
    # namespace packages belong to several distributions: one that is declared is enough
    providers = packages_distributions()
    missing = {
        name
        for name in third_party_imports(ROOT / folder)
        if not declared & {canonicalize_name(provider) for provider in providers.get(name.split(".")[0], [name])}
    }
    assert missing == set()
