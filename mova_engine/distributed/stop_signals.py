"""Signals to a run. Training: SIGTERM, SIGHUP and Ctrl-C make it save a checkpoint and stop, SIGUSR1 save one and
continue. Sampling: the first three end it where it is (`ended_at_once`).

A signal may arrive at any moment, in any of the processes. Before training's first step there is nothing to save, and
the run ends at once. Later a signal is only noted, and after each step all processes agree on what any of them was
asked.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mova_engine.errors import MovaError

# Exit status by convention: 128 + the signal's number.
INTERRUPTED = 128
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVE = signal.SIGUSR1
# What a process may be asked to do, see `StopRequest.wanted`, but for nothing; greater numbers win.
ASKED = (1, *sorted(1 + number for number in STOPS))
# A terminal, a batch system and a launcher may all send a signal: those within this many seconds are one request.
SAME_REQUEST_S = 1.0


class Stopped(SystemExit):
    """Raised by the signal handler if there is nothing to finish. Its code is the process's exit status."""


class StopRequest:
    """A with-block in which the first stop signal only sets `signal`. A second one, at least a second later, has its
    usual effect.

    Outside the main thread, which alone gets signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        # Whether the processes have agreed to stop; to save a checkpoint and continue.
        self.agreed = self.save = False
        self._save_wanted = self._save_told = False
        self._at_once = self._over = False
        # When this process got its first signal. `signal` may be set earlier, by the other processes.
        self._asked_at: float | None = None
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after Ctrl-C, 129 after SIGHUP."""
        if self.signal is None:
            raise MovaError("no stop was requested")
        return INTERRUPTED + self.signal

    def wanted(self) -> int:
        """What this process was asked to do, as a number: 0: nothing, 1: save a checkpoint, 1 + signal: stop.

        The maximum over all processes is what the run does (`agree`). It is one of `ASKED`.
        """
        self._save_told = self._save_wanted
        return int(self._save_told) if self.signal is None else 1 + self.signal

    def agree(self, number: int) -> bool:
        """Set `agreed`, `signal` and `save` from the maximum of `wanted` over all processes; return whether to stop.

        A signal that arrived after the call of `wanted` counts the next time, in all processes. What was agreed on
        stays so: `save` until a checkpoint is saved (`take_save`).
        """
        if self._save_told:
            self._save_wanted = self._save_told = False
        self.save |= number == 1
        if number > 1:
            self.signal, self.agreed = number - 1, True
        return self.agreed

    def take_save(self) -> bool:
        """Whether a checkpoint is to be saved; the request is then met."""
        asked, self.save = self.save, False
        return asked

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A with-block in which nothing needs to be finished: a stop signal, also an earlier one, raises `Stopped`."""
        self._at_once = True
        try:
            self.raise_if_asked()
            yield
            # `Stopped` may have been raised where Python ignores exceptions, as in a finalizer.
            self.raise_if_asked()
        finally:
            self._at_once = False

    def over(self) -> None:
        """Ignore signals from now on: everything is done and saved."""
        self._over = True

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread only. A trainer in another thread leaves them to its program.
        if threading.current_thread() is threading.main_thread():
            for number in (*STOPS, SAVE):
                # Under nohup, SIGHUP is ignored; keep it ignored.
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def raise_if_asked(self) -> None:
        """Raise `Stopped` if a stop was requested: for work in small pieces, of which the handler's own may be lost."""
        if self.signal is not None:
            raise Stopped(self.exit_code)

    def _receive(self, number: int, frame: object) -> None:
        if self._over:
            return
        if number == SAVE:
            self._save_wanted = True
            return
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            self.signal = self.signal or number
            if self._at_once:
                raise Stopped(self.exit_code)
        elif now - self._asked_at >= SAME_REQUEST_S:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextmanager
def ended_at_once(left: Callable[[], str]) -> Iterator[StopRequest]:
    """A with-block that the first stop signal ends where it is, by `Stopped`, with one line on stderr. left: what the
    line says of what there is then.
    """
    with StopRequest() as stop:
        try:
            with stop.at_once():
                yield stop
        except Stopped:
            # What is left to do is short: a second signal must not cut it.
            stop.over()
            sys.stderr.write(f"stopped by {signal.Signals(stop.exit_code - INTERRUPTED).name}: {left()}\n")
            raise
