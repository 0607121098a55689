"""SIGTERM and Ctrl-C as a request to stop after the current step."""

import signal
import threading

from mova_engine.errors import MovaError

# Exit status by convention: 128 + the signal's number.
INTERRUPTED = 128


class StopRequest:
    """Within its block the first SIGTERM or SIGINT only sets `signal`; a second one acts as ever."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after Ctrl-C."""
        if self.signal is None:
            raise MovaError("no stop was requested")
        return INTERRUPTED + self.signal

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread alone; a trainer in another thread leaves them to its program.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: object) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
