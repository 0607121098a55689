"""Which process is slower than the others, and in what: the phases of a step, compared over all processes.

Each process measures the steps after which a row of metrics is due. The times are sent when such a step has ended and
read at the next one, so that no process waits for them: a row has the times of the step that the row before it ended.
"""

import socket
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.backend import Backend
from mova_engine.distributed.collectives import Group, time_sharding
from mova_engine.distributed.phase_clock import EXCHANGE, PhaseClock
from mova_engine.distributed.processes import Processes

# Phases by the stages that a step reports of itself, in the order in which they are exchanged.
PHASES = {"reading clips": "data", "forward and backward": "forward_backward", "update": "optimizer"}
NAMES = (*PHASES.values(), EXCHANGE)
WORDS = {"data": "data", "forward_backward": "forward and backward", "optimizer": "gradients and optimizer"}
# A process is a straggler if it takes so many times the median of a phase, and the excess is such a share of a step.
LEAST_RATIO, LEAST_SHARE = 1.2, 0.05


@dataclass(frozen=True)
class Straggler:
    """The slowest process. ratio: its seconds in `phase` to the median over all processes."""

    rank: int
    phase: str
    ratio: float

    def words(self, step: int, hosts: Sequence[str]) -> str:
        """In a line. hosts: by rank."""
        return (
            f"straggler: rank {self.rank} ({hosts[self.rank]}) is {self.ratio:.1f} x the median in "
            f"{WORDS[self.phase]} (step {step})"
        )


def find_straggler(times: Sequence[dict[str, float]]) -> Straggler | None:
    """times: seconds of each phase, by rank. None where no process stands out."""
    step = statistics.median(sum(each.values()) for each in times)
    found: tuple[float, Straggler] | None = None
    for phase in WORDS:
        seconds = [each[phase] for each in times]
        # Of two processes the faster one is the measure.
        middle, most = statistics.median_low(seconds), max(seconds)
        excess = most - middle
        if excess < LEAST_SHARE * step or most < LEAST_RATIO * middle or (found is not None and excess <= found[0]):
            continue
        found = excess, Straggler(seconds.index(most), phase, most / max(middle, 1e-9))
    return None if found is None else found[1]


class StragglerWatch:
    """Measures steps in all processes of a run, and compares. A with-block; in a run of one process it does nothing."""

    def __init__(self, processes: Processes, model: nn.Module, backend: Backend) -> None:
        """Collective. model: whose FSDP2 exchanges are measured."""
        self._processes = processes
        self._clock = PhaseClock(backend, processes.launch.local_rank) if processes.launch.world > 1 else None
        self._hosts = processes.all_gather_object(socket.gethostname()) if self._clock is not None else []
        # The step whose times are on their way, and what waits for them.
        self._sent: tuple[int, Callable[[], Tensor]] | None = None
        # Rank and phase that stood out the time before.
        self._stood_out: tuple[int, str] | None = None
        if self._clock is not None and backend.device().type == "cpu":
            time_sharding(model, self._clock)

    def begin(self, due: bool, at: Callable[[str], None]) -> Callable[[str], None]:
        """A step begins. due: a row of metrics is due after it. Returns what is to be called with the step's stages, in
        place of `at`.
        """
        clock = self._clock
        if clock is None or not due:
            return at
        clock.begin()

        def told(stage: str) -> None:
            at(stage)
            if (phase := PHASES.get(stage.partition(": ")[2])) is not None:
                clock.phase(phase)

        return told

    def end(self, step: int, due: bool) -> tuple[dict[str, float], str | None]:
        """Step number `step` (from 1) has ended. Where a row is due: what it is to have of the times that were sent
        last, and a line on the straggler if there is one, and the same as the time before: a single step is slowed by
        chance too. Collective, where `due`.
        """
        if self._clock is None or not due:
            return {}, None
        self._clock.end()
        before, sent = self._take(), self._clock.seconds()
        # On a device that has not come to the step's end, a process has no times: all of them then leave them out.
        own = [-1.0] * len(NAMES) if sent is None else [max(sent.get(name, 0.0), 0.0) for name in NAMES]
        group, world = self._processes.cpu_group, self._processes.launch.world
        x, sizes = torch.tensor(own, dtype=torch.float64), [len(NAMES)] * world
        self._sent = step, group.all_to_all(x.repeat(world), sizes, sizes)
        return before

    def __enter__(self) -> "StragglerWatch":
        Group.clock = self._clock
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        Group.clock = None
        if kind is None:
            # What was sent must arrive before the group is closed.
            self._take()

    def _take(self) -> tuple[dict[str, float], str | None]:
        if self._sent is None:
            return {}, None
        (step, finish), self._sent = self._sent, None
        rows = finish().view(-1, len(NAMES)).tolist()
        if any(min(row) < 0 for row in rows):
            return {}, None
        times = [dict(zip(NAMES, row, strict=True)) for row in rows]
        values = {f"seconds/{name}/median": statistics.median(each[name] for each in times) for name in NAMES}
        values |= {f"seconds/{name}/most": max(each[name] for each in times) for name in NAMES}
        found = find_straggler(times)
        before, self._stood_out = self._stood_out, None if found is None else (found.rank, found.phase)
        if found is None:
            return values, None
        values |= {"straggler/rank": float(found.rank), "straggler/ratio": found.ratio}
        return values, found.words(step, self._hosts) if before == self._stood_out else None
