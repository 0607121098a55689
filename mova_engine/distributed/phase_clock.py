"""Times of the phases of a training step in one process, and of its waits for other processes.

On a CPU they are read from the host's clock. On an accelerator events are recorded on the stream that computes, and
read when they have completed: nothing waits for the device. The processes of a step wait for each other in every
exchange, so that the slowest makes all of them equally slow; only without the waits do the phases tell it from the
others. Exchanges of `Group` are taken out of their phase everywhere, those of FSDP2 on a CPU alone: on an accelerator
they run on streams of their own, beside the computation.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mova_engine.backend import Backend

# The phase in which the waits for other processes are counted.
EXCHANGE = "exchange"


class PhaseClock:
    """The clock of one process's steps on device `index` of `backend`. Only steps that are begun with `begin` are
    measured.
    """

    def __init__(self, backend: Backend, index: int = 0) -> None:
        self._backend, self._device = backend, backend.device(index)
        self._running = False
        # (Phase, its beginning), and (phase, beginning and end of an exchange in it), of the step that is measured.
        self._phases: list[tuple[str, Any]] = []
        self._exchanges: list[tuple[str, Any, Any]] = []

    def begin(self) -> None:
        """A step that is to be measured begins, with no phase."""
        self._running, self._phases, self._exchanges = True, [], []

    def phase(self, name: str) -> None:
        """The phase `name` begins, and the one before it ends. One name may occur several times."""
        if self._running:
            self._phases.append((name, self._mark()))

    def end(self) -> None:
        """The step ends."""
        if self._running:
            self._phases.append(("", self._mark()))
            self._running = False

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """A with-block that waits for other processes."""
        if not self._running or not self._phases:
            yield
            return
        phase, began = self._phases[-1][0], self._mark()
        try:
            yield
        finally:
            self._exchanges.append((phase, began, self._mark()))

    def seconds(self) -> dict[str, float] | None:
        """Seconds of each phase of the step measured last, exchanges in a phase of their own. None if there is none, or
        if the device has not come to its end.
        """
        if self._running or not self._phases or not self._backend.has_passed(self._phases[-1][1]):
            return None
        found: dict[str, float] = {EXCHANGE: 0.0}
        for (name, began), (_, ended) in zip(self._phases, self._phases[1:], strict=False):
            found[name] = found.get(name, 0.0) + self._between(began, ended)
        for name, began, ended in self._exchanges:
            waited = self._between(began, ended)
            found[name] -= waited
            found[EXCHANGE] += waited
        return found

    def _mark(self) -> Any:
        return self._backend.time_mark(self._device)

    def _between(self, began: Any, ended: Any) -> float:
        return self._backend.seconds_between(began, ended)
