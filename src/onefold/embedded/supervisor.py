"""Keeping a handful of children running until somebody asks to stop: one thread, one loop, no event loop."""

import contextlib
import math
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Final, Protocol

_DEATHS_MAX: Final = 5
_DEATHS_WINDOW_SECONDS: Final = 60.0
_FIRST_DELAY_SECONDS: Final = 0.1
# A terminal or a wrapper may deliver one Ctrl-C twice; only a later one means "at once".
_SECOND_REQUEST_AFTER_SECONDS: Final = 2.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequestedError(Exception):
    """Somebody asked this process to stop (SIGINT, SIGTERM or SIGHUP)."""


class DiesTooOftenError(Exception):
    """A child ended five times within a minute; the text is one line that names it."""


class Running(Protocol):
    """A child process that was started."""

    def poll(self) -> int | None:
        """The exit status if it has ended (negative: the signal that ended it), otherwise None."""

    def stop(self) -> None:
        """End it and wait for its end; nothing happens when it has ended already."""


@dataclass
class RestartBudget:
    """How long to wait before a dead child is started again, and when to give up; times are in seconds."""

    deaths: deque[float] = field(default_factory=deque)

    def delay_after_death(self, now: float) -> float | None:
        """Note a death and return the wait before the next start: 0.1, 0.2, 0.4, 0.8; None at the fifth in a minute."""
        self.deaths.append(now)
        while self.deaths[0] <= now - _DEATHS_WINDOW_SECONDS:
            self.deaths.popleft()
        if len(self.deaths) >= _DEATHS_MAX:
            return None
        return _FIRST_DELAY_SECONDS * float(2 ** (len(self.deaths) - 1))


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted rather than end the process, and a child's end wakes `wait`.

    A second request, at least 2 seconds later, ends the process on the spot; the kernel then tells every child.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> "StopSignals":
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._previous_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            # Under nohup the end of the terminal is meant to be survived.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._request)
        # The default handler would not wake anything.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        os.close(self._wake_read)
        os.close(self._wake_write)

    def check(self) -> None:
        """Raise StopRequestedError if a request to stop has come."""
        if self._requested_at is not None:
            raise StopRequestedError

    def wait(self, descriptors: Sequence[int], timeout_seconds: float | None) -> None:
        """Block until a signal comes (a child's end is one), a descriptor is readable, or the time is over."""
        select.select([self._wake_read, *descriptors], [], [], timeout_seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_read, 4096):
                pass

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
        elif now - self._requested_at > _SECOND_REQUEST_AFTER_SECONDS:
            os._exit(128 + number)


@dataclass
class _Member:
    name: str
    start: Callable[[], Running]
    running: Running
    budget: RestartBudget = field(default_factory=RestartBudget)
    restart_at: float | None = None


class Supervisor:
    """Starts children in the order they are added, restarts those that end, and stops them in the opposite order."""

    def __init__(self, signals: StopSignals, report: Callable[[str], None]) -> None:
        """`report` gets one line for each child that ended and is started again."""
        self._signals = signals
        self._report = report
        self._members: list[_Member] = []

    def add(self, name: str, start: Callable[[], Running]) -> None:
        """Start a child now, and again whenever it ends while `watch` runs."""
        self._signals.check()
        self._members.append(_Member(name, start, start()))

    def watch(
        self,
        *,
        restart: bool = True,
        until: Callable[[], bool] = lambda: False,
        descriptors: Callable[[], Sequence[int]] = tuple,
        timeout_seconds: float | None = None,
    ) -> None:
        """Watch the children until the condition holds or the time is over.

        The condition is looked at whenever a child ends and whenever one of the `descriptors` is readable. With
        `restart` false, ended children are left to the condition. Raises StopRequestedError when asked to stop,
        DiesTooOftenError, and whatever starting a child again raises.
        """
        deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            self._signals.check()
            if restart:
                self._restart_ended()
            if until() or time.monotonic() >= deadline:
                return
            due = min([deadline, *(member.restart_at for member in self._members if member.restart_at is not None)])
            wait = None if due == math.inf else max(0.0, due - time.monotonic())
            self._signals.wait(descriptors(), wait)

    def stop(self) -> None:
        """Stop every child, the last added first, each after the one before it has ended."""
        while self._members:
            self._members.pop().running.stop()

    def _restart_ended(self) -> None:
        for member in self._members:
            now = time.monotonic()
            if member.restart_at is not None:
                if now >= member.restart_at:
                    member.restart_at = None
                    member.running = member.start()
                continue
            status = member.running.poll()
            if status is None:
                continue
            delay = member.budget.delay_after_death(now)
            if delay is None:
                raise DiesTooOftenError(
                    f"the {member.name} ended {_DEATHS_MAX} times within {_DEATHS_WINDOW_SECONDS:.0f} s, "
                    f"at last with {describe(status)}"
                )
            self._report(f"the {member.name} ended with {describe(status)} and is started again")
            member.restart_at = now + delay


def describe(status: int) -> str:
    """An exit status in words: `status 1`, or `signal SIGKILL`."""
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"
