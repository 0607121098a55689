"""Which steps reuse the video's velocity: a plan of the least error for a wanted speed-up.

A step that runs the video tower serves itself and the steps after it, up to the next that runs it. The sum of the
errors of those served is least over all choices that keep within a number of evaluations; a dynamic programme over the
last step that ran and the evaluations spent finds it (Bellman, 1957), where peers choose greedily or by hand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mova_engine.errors import MovaError

# The share of the steps, from the first on, in which the video tower always runs: they lay out picture and sound.
FIRST = 0.15
# A plan must spare more than rounding.
_SLACK = 1e-9


@dataclass(frozen=True)
class StepPlan:
    """Which steps reuse the video of the step before, and what that costs.

    reused: steps, from 0. steps: of the whole run. evaluations, of: of the video tower, with the plan and without.
    video_error, audio_error: predicted errors of the clean latents over their norm (`step_calibration.calibrate`).
    """

    reused: tuple[int, ...]
    steps: int
    evaluations: int
    of: int
    video_error: float
    audio_error: float

    @property
    def speedup(self) -> float:
        """How many times fewer evaluations of the video tower there are."""
        return self.of / self.evaluations

    def words(self) -> str:
        """What is printed before a run."""
        run = [str(step + 1) for step in range(self.steps) if step not in set(self.reused)]
        return (
            f"step cache: the video tower runs {self.evaluations} of {self.of} times ({self.speedup:.2f} times fewer), "
            f"in steps {', '.join(run)} of {self.steps}; predicted error of the latents: video "
            f"{100 * self.video_error:.2f} %, audio {100 * self.audio_error:.2f} %"
        )


def must_run(first: Sequence[int]) -> list[bool]:
    """Whether each step runs the video tower in every plan: the first steps, the last one, and the first of each phase.

    first: for each step, the first one of its phase (`video_passes.phases`).
    """
    count = len(first)
    early = math.ceil(FIRST * count)
    return [step < early or step == count - 1 or first[step] == step for step in range(count)]


def least_error(
    cost: Sequence[int], forced: Sequence[bool], error: Callable[[int, int], float | None], speedup: float
) -> tuple[int, ...]:
    """The steps to reuse, so that the sum of `error(i, j)`, of step j on the video of step i, is least.

    cost: evaluations of the video tower in each step that runs it. forced: steps that do. error: None where step i
    cannot serve step j. speedup: all evaluations over those that are left, at least. Raises MovaError where so few
    cannot be.
    """
    if not 1 <= speedup < math.inf:
        raise MovaError(f"a speed-up must be at least 1, got {speedup:g}")
    count, total = len(cost), sum(cost)
    budget = math.floor(total / speedup + _SLACK)
    # By the last step that ran and the evaluations spent: the least error, and the step that ran before.
    table: list[dict[int, tuple[float, int]]] = [{} for _ in range(count + 1)]
    table[0] = {cost[0]: (0.0, -1)}
    for step in range(count):
        served = 0.0
        for following in range(step + 1, count + 1):
            for spent, (sofar, _) in table[step].items():
                after = spent + (cost[following] if following < count else 0)
                known = table[following].get(after)
                if known is None or sofar + served < known[0]:
                    table[following][after] = sofar + served, step
            more = error(step, following) if following < count and not forced[following] else None
            if more is None:
                break
            served += more
    fitting = [(sofar, spent) for spent, (sofar, _) in table[count].items() if spent <= budget]
    if not fitting:
        most = total / min(table[count])
        raise MovaError(
            f"the step cache cannot leave out so much: of {total} evaluations of the video tower {min(table[count])} "
            f"must run, and a speed-up of {speedup:g} has {budget}; ask for at most {math.floor(most * 100) / 100:g}"
        )
    _, spent = min(fitting)
    run, step = set[int](), count
    while step > 0:
        before = table[step][spent][1]
        spent -= cost[step] if step < count else 0
        run.add(before)
        step = before
    return tuple(step for step in range(count) if step not in run)
