"""Signals to a run: SIGTERM, SIGHUP and Ctrl-C ask it to stop with a checkpoint, SIGUSR1 to save one and go on.

They may come at any moment and to any of the processes. Before the first step there is nothing to save, so the run
ends where it is; from then on a signal is noted, and all processes agree after each step on what was asked of any.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mova_engine.errors import MovaError

# Exit status by convention: 128 + the signal's number.
INTERRUPTED = 128
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAVE = signal.SIGUSR1
# A terminal, a batch system and a launcher may all send the same request: what comes within so many seconds is one.
SAME_REQUEST_S = 1.0


class Stopped(SystemExit):
    """Raised by the signal itself where there is nothing to finish; its code is the process's exit status."""


class StopRequest:
    """Within its block the first stop signal only sets `signal`; a second one, a second later, acts as ever.

    In a thread other than the main one, which gets no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        # Whether the processes have agreed to save a checkpoint and go on.
        self.save = False
        self._save_wanted = self._save_told = False
        self._at_once = self._over = False
        # When this process itself was asked first; it may learn from the others, before, that it is to stop.
        self._asked_at: float | None = None
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after Ctrl-C, 129 after SIGHUP."""
        if self.signal is None:
            raise MovaError("no stop was requested")
        return INTERRUPTED + self.signal

    def wanted(self) -> int:
        """What was asked of this process, as a number of which the largest counts: 0 nothing, 1 a checkpoint, more a
        stop.
        """
        self._save_told = self._save_wanted
        return int(self._save_told) if self.signal is None else 1 + self.signal

    def agree(self, number: int) -> bool:
        """Take the largest `wanted` of all processes; returns whether it is a stop.

        A signal that came after `wanted` was asked stays noted: it counts the next time, in all processes.
        """
        if self._save_told:
            self._save_wanted = self._save_told = False
        self.save = number == 1
        if number > 1:
            self.signal = number - 1
        return number > 1

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing needs to be finished: a stop signal raises `Stopped`, also one that came before."""
        self._at_once = True
        try:
            self._raise_if_asked()
            yield
            # One that was raised where Python drops exceptions, as in a finalizer.
            self._raise_if_asked()
        finally:
            self._at_once = False

    def over(self) -> None:
        """All is done and saved: signals have no effect any more on how the run ends."""
        self._over = True

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread alone; a trainer in another thread leaves them to its program.
        if threading.current_thread() is threading.main_thread():
            for number in (*STOPS, SAVE):
                # nohup sets SIGHUP aside; who started the program with it wants it to live on.
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _raise_if_asked(self) -> None:
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
