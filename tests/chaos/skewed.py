"""onefold's command line in a process whose clock is an hour ahead.

The operating system's clock cannot be set for one process, so Python's is: every library that asks for the time of day
by time.time(), arq among them, gets the wrong one.
"""

from __future__ import annotations

import time

_right, _right_ns = time.time, time.time_ns
time.time = lambda: _right() + 3600.0
time.time_ns = lambda: _right_ns() + 3_600_000_000_000

from onefold.cli import main  # noqa: E402 - after the clock was set, for whoever imports the function

if __name__ == "__main__":
    main()
