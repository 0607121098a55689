"""A candidate of a comparison: one way to do a job, with its check and its timing in this process."""

import gc
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from mova_engine.backend import Backend
from mova_engine.bench.peak_memory import peak_above_gradients
from mova_engine.bench.timing import stopwatch
from mova_engine.bench.workloads import SEED, PreparedWork, Tensors, Workload, convert
from mova_engine.errors import MovaError
from mova_engine.ops import OpTable

# Seconds that a turn lasts at least.
_TURN = 0.1
Draw = Callable[[Workload], Tensors]


@dataclass(frozen=True)
class Side:
    """One way to do a job: its operators, its dtype; compiled: through torch.compile.

    remake: builds the same side in another process, where it is to have one of its own; None where it is not.
    """

    name: str
    ops: OpTable
    dtype: torch.dtype
    compiled: bool = False
    remake: Callable[[], "Side"] | None = None

    def work(self, job: Workload, tensors: Tensors, source: torch.dtype) -> PreparedWork:
        """The job's work on tensors that were drawn in dtype `source`."""
        work = job.work(self.ops, convert(tensors, source, self.dtype))
        return replace(work, forward=torch.compile(work.forward)) if self.compiled else work


def drawn_once(backend: Backend, dtype: torch.dtype) -> Draw:
    """Draws a job's tensors, the same in every process; the last job's are kept, so that sides share their memory."""
    last: list[tuple[Workload, Tensors]] = []

    def draw(job: Workload) -> Tensors:
        if not last or last[0][0] is not job:
            last.clear()
            generator = torch.Generator(backend.device()).manual_seed(SEED)
            last.append((job, job.draw(generator, backend.device(), dtype)))
        return last[0][1]

    return draw


class Here:
    """A side at work in this process."""

    def __init__(self, side: Side, backend: Backend, draw: Draw, source: torch.dtype) -> None:
        self.side, self.backend, self._draw, self._source = side, backend, draw, source

    def begin(self, job: Workload) -> None:
        """Make ready for `job`: what follows is about it."""
        self._job = job
        self._work = self.side.work(job, self._draw(job), self._source)

    def results(self) -> Tensors:
        """Outputs and gradients, on the CPU."""
        if not self.side.compiled:
            return self._work.results()
        try:
            return self._work.results()
        except MovaError:
            raise
        except Exception as error:  # whatever the compiler raises: it is not ours to list
            raise MovaError(
                f"torch.compile does not work for {self._job.name} here ({' '.join(str(error).split())[:200]}); "
                "leave --compile out"
            ) from None

    def run(self) -> float:
        """One turn; seconds of a run. Short work is done again until the turn has lasted, and the median counts: its
        first run would tell how soon threads and caches come back from another process's turn.
        """
        timed = stopwatch(self._work.run, self.backend)
        first, times = timed(), []
        if first >= _TURN:
            return first
        while sum(times) < _TURN:
            times.append(timed())
        return statistics.median(times)

    def memory(self) -> Mapping[str, int | None]:
        """Peak bytes of living tensors above weights and gradients; the device allocator's peak, where it tells."""
        if self.side.compiled:
            return {"peak_live_bytes": None, "allocator_peak_bytes": None}
        work, backend = self._work, self.backend
        live = peak_above_gradients(work.once, lambda: work.gradients().values())
        work.clear()
        allocator = None
        if backend.name != "cpu":
            gc.collect()
            backend.reset_peak_memory()
            before = backend.memory_allocated()
            work.run()
            backend.synchronize()
            allocator = backend.peak_memory() - before
        return {"peak_live_bytes": live, "allocator_peak_bytes": allocator}
