"""What a run says of itself while it works: units done, throughput of each step, time left."""

import time
from collections.abc import Callable

from mova_engine.curation.unit_run import UnitReport
from mova_engine.curation.unit_steps import CUT, DECODE
from mova_engine.errors import counted

# A line at most so often.
_EVERY_S = 10.0


class FilmsProgress:
    """Tells how many films were looked at, for as long as that lasts. say: takes the lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """So many of all were."""
        if time.monotonic() - self._said > _EVERY_S:
            self._said = time.monotonic()
            self._say(f"[{done}/{total}] films looked at")


class CurationProgress:
    """Counts units of a run. total: units; fresh: those of them that are still to be cut."""

    def __init__(self, total: int, fresh: int, say: Callable[[str], None]) -> None:
        self._total, self._fresh, self._say = total, fresh, say
        self._begun = self._said = time.monotonic()
        self._done = self._failed = self._clips = self._alive = self._cut = 0
        self._film = 0.0
        self._seconds: dict[str, float] = {}
        self._measured: dict[str, int] = {}

    def add(self, report: UnitReport | None) -> None:
        """A unit has ended; None: it failed."""
        self._done += 1
        if report is None:
            self._failed += 1
        else:
            self._clips += report.clips
            self._alive += report.alive
            self._cut += CUT in report.seconds
            self._film += report.film if CUT in report.seconds else 0.0
            for step, seconds in report.seconds.items():
                self._seconds[step] = self._seconds.get(step, 0.0) + seconds
                self._measured[step] = self._measured.get(step, 0) + report.measured[step]
        if time.monotonic() - self._said > _EVERY_S or self._done == self._total:
            self._said = time.monotonic()
            self._say(self.line())

    def line(self) -> str:
        """[120/3400] 19.8 h of film cut, 8934 clips, 2210 not dropped, 3 units failed; cut 41x, desync 0.8 clips/s of a
        worker; 2:10:00 left
        """
        told = [f"{self._film / 3600:.3g} h of film cut", counted(self._clips, "clip"), f"{self._alive} not dropped"]
        told += [f"{counted(self._failed, 'unit')} failed"] if self._failed else []
        rates = [self._rate(step) for step in self._seconds if step != DECODE]
        speed = f"; {', '.join(rates)} of a worker" if rates else ""
        return f"[{self._done}/{self._total}] {', '.join(told)}{speed}; {_clock(self._left())} left"

    def _rate(self, step: str) -> str:
        seconds = max(self._seconds[step], 1e-9)
        if step == CUT:
            return f"cut {self._film / seconds:.3g}x real time"
        return f"{step} {self._measured[step] / seconds:.2g} clips/s"

    def _left(self) -> float:
        """Seconds: what was cut before only needs a look, so that the units to be cut are what counts."""
        elapsed = time.monotonic() - self._begun
        if self._fresh > self._cut and self._cut:
            return elapsed / self._cut * (self._fresh - self._cut)
        return elapsed / max(self._done, 1) * (self._total - self._done)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
