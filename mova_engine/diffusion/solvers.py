"""Solvers of the sampling equation dx/dsigma = v(x, sigma), from sigma 1 (noise) to 0 (a clean sample).

Flow matching has alpha = 1 - sigma, so that x0 = x - sigma v is the clean sample which a velocity points to.

euler: first order, one evaluation of the model a step; what MOVA was published with.
heun: second order (Karras et al., 2022, algorithm 1): a trial step, then one along the mean of both velocities. Two
    evaluations a step, but one in the last, which ends where no velocity is defined.
unipc: UniPC of order 2 with B2(h) = e^h - 1 (Zhao et al., 2023), in log signal-to-noise, predicting x0. One evaluation
    a step; each also corrects the step before it. Wan's own inference uses it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from mova_engine.config.diffusion import check_solver
from mova_engine.diffusion.schedule import euler_step


class Evaluation(NamedTuple):
    """An evaluation of the model. level: index of its noise level in the list of sigmas. completes: the step that is
    complete when its velocity is known; None: the next state is a trial.
    """

    level: int
    completes: int | None


class Solver(Protocol):
    """Integrates the latents of one modality. One object serves one run."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        """sigmas: noise levels of the steps, descending, and a last one at which the run ends."""
        ...

    def advance(self, x: Tensor, velocity: Tensor) -> Tensor:
        """The state at which the model is evaluated next, or at last the result; called once for each of
        `evaluations`, in their order. x, velocity: the state and the velocity of the evaluation, float32.
        """
        ...

    @staticmethod
    def evaluations(steps: int) -> tuple[Evaluation, ...]:
        """The evaluations of a run of `steps` steps, in order."""
        ...


class Euler:
    """x + velocity * (sigma' - sigma)."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas, self._step = sigmas, 0

    def advance(self, x: Tensor, velocity: Tensor) -> Tensor:
        here, there = self._sigmas[self._step : self._step + 2]
        self._step += 1
        return euler_step(x, velocity, here, there)

    @staticmethod
    def evaluations(steps: int) -> tuple[Evaluation, ...]:
        return tuple(Evaluation(step, step) for step in range(steps))


class Heun:
    """An Euler step to the next noise level, then the step anew along the mean of the velocities at both ends."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas, self._step = sigmas, 0
        # State and velocity at the beginning of a step whose end is being tried.
        self._begun: tuple[Tensor, Tensor] | None = None

    def advance(self, x: Tensor, velocity: Tensor) -> Tensor:
        here, there = self._sigmas[self._step : self._step + 2]
        if self._begun is None and self._step + 2 < len(self._sigmas):
            self._begun = x, velocity
            return euler_step(x, velocity, here, there)
        if self._begun is not None:
            x, first = self._begun
            velocity, self._begun = (first + velocity) / 2, None
        self._step += 1
        return euler_step(x, velocity, here, there)

    @staticmethod
    def evaluations(steps: int) -> tuple[Evaluation, ...]:
        pairs = (each for step in range(steps - 1) for each in (Evaluation(step, None), Evaluation(step + 1, step)))
        return (*pairs, Evaluation(steps - 1, steps - 1))


class UniPC:
    """The multistep predictor and corrector of UniPC-2; the first and the last step predict with order 1."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas, self._step = sigmas, 0
        # Of the step before: the corrected state from which it began; and the clean samples that were predicted at the
        # beginnings of steps, newest last, at most two.
        self._before: Tensor | None = None
        self._clean: list[Tensor] = []

    def advance(self, x: Tensor, velocity: Tensor) -> Tensor:
        step = self._step
        clean = x - self._sigmas[step] * velocity
        if self._before is not None:
            x = self._corrected(step, self._before, clean)
        self._clean = [*self._clean[-1:], clean]
        self._before, self._step = x, step + 1
        return self._predicted(step, x)

    def _order(self, step: int) -> int:
        return 1 if step == 0 or step + 2 == len(self._sigmas) else 2

    def _predicted(self, step: int, x: Tensor) -> Tensor:
        """The state at the end of a step that begins at x."""
        span = _Span(*self._sigmas[step : step + 2])
        predicted = span.first_order(x, self._clean[-1])
        if self._order(step) == 1:
            return predicted
        slope = (self._clean[0] - self._clean[1]) / span.ratio(self._sigmas[step - 1])
        return predicted - span.factor * 0.5 * slope

    def _corrected(self, step: int, before: Tensor, clean: Tensor) -> Tensor:
        """The state at the beginning of `step`, with the clean sample found there: the step that led to it, from the
        state `before`, taken again.
        """
        span, last = _Span(*self._sigmas[step - 1 : step + 1]), self._clean[-1]
        corrected = span.first_order(before, last)
        if self._order(step - 1) == 1:
            return corrected - span.factor * 0.5 * (clean - last)
        ratio = span.ratio(self._sigmas[step - 2])
        old, new = span.corrector(ratio)
        return corrected - span.factor * (old / ratio * (self._clean[0] - last) + new * (clean - last))

    evaluations = staticmethod(Euler.evaluations)


class _Span:
    """The coefficients of one step of UniPC from sigma `here` to `there`, in float64."""

    def __init__(self, here: float, there: float) -> None:
        self._here, self._there = here, there
        self._h = _log_snr(there) - _log_snr(here)
        # alpha B(h), where the paper's B2 of -h is e^-h - 1.
        self.factor = (1 - there) * math.expm1(-self._h)

    def first_order(self, x: Tensor, clean: Tensor) -> Tensor:
        return self._there / self._here * x - self.factor * clean

    def ratio(self, earlier: float) -> float:
        """(lambda(earlier) - lambda(here)) / h, negative; infinite for sigma 1."""
        return (_log_snr(earlier) - _log_snr(self._here)) / self._h

    def corrector(self, ratio: float) -> tuple[float, float]:
        """The solution (old, new) of  old + new = b1,  ratio * old + new = b2  (Zhao et al., 2023, theorem 3.1)."""
        h, b = -self._h, math.expm1(-self._h)
        first = (b / h - 1) / b
        second = 2 * ((b / h - 1) / h - 0.5) / b
        old = (first - second) / (1 - ratio)
        return old, first - old


def _log_snr(sigma: float) -> float:
    """lambda = log(alpha / sigma)."""
    return -math.inf if sigma >= 1 else math.inf if sigma <= 0 else math.log1p(-sigma) - math.log(sigma)


SOLVERS: dict[str, type[Solver]] = {"euler": Euler, "heun": Heun, "unipc": UniPC}


def solver(name: str) -> type[Solver]:
    """The solver of a name. Raises MovaError, with the nearest, for another."""
    check_solver(name)
    return SOLVERS[name]
