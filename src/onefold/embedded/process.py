"""Starting, waiting for and stopping one child process that cannot outlive us."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onefold.embedded.account import Account
from onefold.embedded.errors import EmbeddedError

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.005

# Looked up before any fork: between fork and exec nothing may be loaded. Only Linux has it.
_prctl: Callable[..., int] | None = getattr(ctypes.CDLL(None), "prctl", None)

Child = subprocess.Popen[bytes]


def spawn(
    argv: Sequence[str | Path],
    *,
    death_signal: signal.Signals,
    output: int,
    account: Account | None = None,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
) -> Child:
    """Start a program as a child that gets `death_signal` from the kernel as soon as this process is gone.

    The child leads a session of its own, so that a Ctrl-C in the terminal reaches only us and we decide the order of
    stopping. `output` is the descriptor for both its stdout and stderr. `account` is switched to when it says so;
    `environment` None means ours. Raises EmbeddedError when the program cannot be started, RuntimeError outside
    the main thread: the kernel sends the death signal when the starting *thread* ends.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children must be started from the main thread")
    parent = os.getpid()

    def before_exec() -> None:
        # A shell starts background jobs with SIGINT ignored, which exec would hand on.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # subprocess runs this after it changed the account, and it must be so: changing credentials clears the signal.
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        # If we died between fork and prctl, no signal will ever come.
        if os.getppid() != parent:
            os._exit(1)

    switch = account if account is not None and account.switch else None
    try:
        return subprocess.Popen(  # noqa: S603 (our own arguments, no shell)
            [str(part) for part in argv],
            stdin=stdin,
            stdout=output,
            stderr=output,
            cwd="/" if switch else None,  # our working folder may be closed to the account
            env=None if environment is None else dict(environment),
            pass_fds=tuple(pass_fds),
            start_new_session=True,
            user=switch.uid if switch else None,
            group=switch.gid if switch else None,
            extra_groups=() if switch else None,
            preexec_fn=before_exec,
        )
    except (OSError, subprocess.SubprocessError) as error:
        who = f" as {switch.name}" if switch else ""
        raise EmbeddedError(f"cannot start {argv[0]}{who}: {error}") from error


def wait_until_ready(child: Child, is_ready: Callable[[], bool], *, timeout_seconds: float) -> bool:
    """Block until `is_ready` holds (True), or the child ended or the time is over (False)."""
    deadline = time.monotonic() + timeout_seconds
    while child.poll() is None and time.monotonic() < deadline:
        if is_ready():
            return True
        time.sleep(_POLL_SECONDS)
    return False


def stop(child: Child, *escalation: tuple[signal.Signals, float]) -> None:
    """End the child: send each signal in turn, waiting its seconds for the end, and SIGKILL after the last.

    Returns when the child has ended and was reaped; does nothing when it had ended already.
    """
    for number, seconds in escalation:
        if child.poll() is not None:
            return
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=seconds)
    if child.poll() is None:
        child.kill()
        child.wait()
