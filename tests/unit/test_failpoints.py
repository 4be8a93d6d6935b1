"""Places where tests stop transactions are nothing but places in production."""

from __future__ import annotations

import re
import subprocess
import sys

from support.processes import SOURCE, environment


def test_nobody_waits_in_production() -> None:
    """X3: no server or worker can be stopped at a place: the hook is None when they begin, and no code sets it."""
    check = "import onefold.server, onefold.worker, onefold.failpoints as f; raise SystemExit(f.hook is not None)"
    assert subprocess.run([sys.executable, "-c", check], env=environment(), check=False, timeout=60).returncode == 0
    sets = re.compile(r"\bfailpoints\.hook\s*=[^=]")
    assert not [path for path in SOURCE.rglob("*.py") if sets.search(path.read_text())]
