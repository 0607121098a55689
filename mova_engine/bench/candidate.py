"""A candidate of a comparison (operators, dtype, compilation), and its results, timing and memory in this process."""

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

# Minimum seconds of a turn.
_TURN = 0.1
Draw = Callable[[Workload], Tensors]


@dataclass(frozen=True)
class Candidate:
    """One way to do a job: with these operators, in this dtype. compiled: through torch.compile.

    remake: builds the same candidate in its own process; None: it runs in this process.
    """

    name: str
    ops: OpTable
    dtype: torch.dtype
    compiled: bool = False
    remake: Callable[[], "Candidate"] | None = None

    def work(self, job: Workload, tensors: Tensors, source: torch.dtype) -> PreparedWork:
        """The job on tensors that were drawn in dtype `source` and are converted to this candidate's."""
        work = job.work(self.ops, convert(tensors, source, self.dtype))
        return replace(work, forward=torch.compile(work.forward)) if self.compiled else work


def drawn_once(backend: Backend, dtype: torch.dtype) -> Draw:
    """Return a function that draws a job's tensors, the same ones in every process. It keeps those of the last job, so
    that candidates share their memory.
    """
    last: list[tuple[Workload, Tensors]] = []

    def draw(job: Workload) -> Tensors:
        if not last or last[0][0] is not job:
            last.clear()
            generator = torch.Generator(backend.device()).manual_seed(SEED)
            last.append((job, job.draw(generator, backend.device(), dtype)))
        return last[0][1]

    return draw


class InProcessRunner:
    """Runs a candidate in this process."""

    def __init__(self, side: Candidate, backend: Backend, draw: Draw, source: torch.dtype) -> None:
        self.side, self.backend, self._draw, self._source = side, backend, draw, source

    def begin(self, job: Workload) -> None:
        """Prepare `job`, which the other methods then run."""
        self._job = job
        self._work = self.side.work(job, self._draw(job), self._source)

    def results(self) -> Tensors:
        """Run the job; return its outputs and gradients, on the CPU. Raises MovaError if torch.compile fails."""
        if not self.side.compiled:
            return self._work.results()
        try:
            return self._work.results()
        except MovaError:
            raise
        except Exception as error:  # the compiler may raise errors of any class
            raise MovaError(
                f"torch.compile does not work for {self._job.name} here ({' '.join(str(error).split())[:200]}); "
                "leave --compile out"
            ) from None

    def run(self) -> float:
        """Time one turn; return the seconds of a run. A short job is repeated until the turn has lasted _TURN seconds,
        and the median is returned: the first run includes the recovery of threads and caches after another process.
        """
        timed = stopwatch(self._work.run, self.backend)
        first, times = timed(), []
        if first >= _TURN:
            return first
        while sum(times) < _TURN:
            times.append(timed())
        return statistics.median(times)

    def memory(self) -> Mapping[str, int | None]:
        """Peak bytes of live tensors above weights and gradients, and the peak of the device's allocator if it has
        one.
        """
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
