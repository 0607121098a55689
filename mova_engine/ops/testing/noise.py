"""The noise model: the error that a correct implementation may have, for every element of a result.

The variance of an element's error is the sum of three parts:
- rounding once to the result's dtype: step^2 / 12, with `step` the distance between neighbouring numbers there;
- the error of the reference in that dtype beyond this rounding, in the element's row or in half of all rows;
- the error of float32 arithmetic: `FLOAT32` roundings of the row's size, and as many of every input, so that
cancellation
  in a difference of large numbers is allowed for.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps
FLOAT32 = 32.0
# A row below this fraction of the largest number is only rounding error after cancellation (softmax over one key).
_VANISHED = 1e-10
_SHORTEST = 8


@dataclass(frozen=True)
class Noise:
    """The noise model of one tensor. All fields have the tensor's shape (at least one axis) and are float64.

    truth: the exact result. weight: 0 where the truth is not finite, else 1. variance: of an element's error. moved:
    the part of float32 arithmetic in its standard deviation. forms: the errors of the reference and of its variants
    with other permitted roundings, each with the variance that the other forms predict. The size of the errors in units
    of these variances tells how much correct implementations differ.
    """

    truth: Tensor
    weight: Tensor
    variance: Tensor
    moved: Tensor
    forms: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def of(truth: Tensor, nudged: Tensor, made: list[Tensor], largest: float) -> "Noise":
        """Build the model of a tensor.

        truth, nudged: results in float64, of the inputs and of inputs perturbed by float32's rounding. made: results of
        the reference in the tested dtype, first as it is, then with other permitted roundings. largest: the largest
        absolute value of all results.
        """
        dtype = made[0].dtype
        truth, nudged, *others = (_lined(x.detach().to(torch.float64)) for x in (truth, nudged, *made))
        weight = truth.isfinite().double()
        keep = weight.bool() & nudged.isfinite()
        value = truth.where(weight.bool(), 0)
        size = EPS32 * value.square().where(keep, 0).mean(-1, keepdim=True).sqrt()
        moved = FLOAT32 * torch.hypot((nudged - truth).where(keep, 0), size)
        errors = [(x - truth).where(keep, 0) for x in others]
        info = torch.finfo(dtype)
        step = torch.exp2(value.abs().clamp(min=info.tiny).log2().floor()) * info.eps
        least = step.square() / 12
        rest = [_row_mean(e.square() - least, weight) for e in errors]
        vanished = _row_mean(value.square(), weight) <= (_VANISHED * largest) ** 2
        least = least + _row_mean(moved.square(), weight) + vanished * (4 * EPS32 * largest) ** 2
        parts = [least + _typical([*rest[:i], *rest[i + 1 :]] or rest) for i in range(len(rest))]
        return Noise(truth, weight, least + _typical(rest), moved, tuple(zip(errors, parts, strict=True)))

    @property
    def row(self) -> int:
        return self.truth.shape[-1]

    def error(self, found: Tensor) -> Tensor:
        """found - truth, float64; 0 where the truth is not finite."""
        return (_lined(found.detach().to(self.truth.device, torch.float64)) - self.truth).where(self.weight.bool(), 0)

    def rows(self, error: Tensor, variance: Tensor | None = None) -> Tensor:
        """Root mean square error of each row (last axis), in units of its noise."""
        variance = self.variance if variance is None else variance
        return (_row_mean(error.square(), self.weight) / _row_mean(variance, self.weight).clamp(min=1e-300)).sqrt()

    def worst(self, error: Tensor) -> float:
        """The largest error of an element, in units of its noise plus the reference's own error."""
        usual = self.variance + self.forms[0][0].square()
        return float((error.square() / usual).max()) ** 0.5

    @cached_property
    def apart(self) -> tuple[float, float]:
        """The largest row error and the largest element error of one form of the reference against the others."""
        rows = max(float(self.rows(e, variance).max()) for e, variance in self.forms)
        return rows, max(float((e.square() / variance).max()) ** 0.5 for e, variance in self.forms[1:] or self.forms)

    def lines(self, error: Tensor) -> dict[str, tuple[Tensor, float, float]]:
        """The systematic errors along each axis and of the whole tensor, in units of their standard deviation by
        chance.

        Returns name -> (z of every line, root mean square and maximum of z of one form of the reference against the
        others), for "slope along AXIS" and "mean along AXIS".
        """
        found = {}
        for name, line, apart in self._lines:
            for kind, z, usual in zip(("slope", "mean"), line.of(error), apart, strict=True):
                found[f"{kind} along {name}"] = z, *usual
        return found

    @cached_property
    def _lines(self) -> list[tuple[str, "_Lines", list[tuple[float, float]]]]:
        """The lines along each axis, and the reference forms' own z along them. Independent of the tested error."""
        axes = [(f"axis {i}", (i,)) for i, n in enumerate(self.truth.shape) if _SHORTEST <= n < self.truth.numel()]
        found = []
        for name, dims in (*axes, ("all", tuple(range(self.truth.dim())))):
            apart = []
            for theirs in zip(*(self._along(variance, dims).of(e) for e, variance in self.forms), strict=True):
                usual = max(float(z.square().mean()) ** 0.5 for z in theirs)
                apart.append((usual, max(float(z.abs().max()) for z in theirs)))
            found.append((name, self._along(self.variance, dims), apart))
        return found

    def _along(self, variance: Tensor, dims: tuple[int, ...]) -> "_Lines":
        truth, inverse = self.truth.where(self.weight.bool(), 0), self.weight / variance
        count, moved = self.weight.sum(dims).clamp(min=1), self.moved.square().sum(dims)
        power, weighted = truth.square().sum(dims), truth * inverse
        pull = (truth * weighted).sum(dims).clamp(min=1e-300)
        slope = pull * (1 / pull + moved / power.clamp(min=1e-300)).sqrt()
        chance = ((variance * self.weight).sum(dims) / count**2 + moved / count).sqrt().clamp(min=1e-300)
        return _Lines(dims, weighted, slope, count * chance, power > 0)


class _Lines(NamedTuple):
    """Lines of a tensor along `dims`. weighted: truth / variance. slope, mean: standard deviations by chance of the sum
    of an error times `weighted`, and of the sum of an error. sloped: the lines whose truth is not zero.
    """

    dims: tuple[int, ...]
    weighted: Tensor
    slope: Tensor
    mean: Tensor
    sloped: Tensor

    def of(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """(slope against the truth, mean) of the errors along `dims`, in units of their standard deviation by
        chance.
        """
        slope = (error * self.weighted).sum(self.dims) / self.slope
        return slope.where(self.sloped, 0), error.sum(self.dims) / self.mean


def _typical(rest: list[Tensor]) -> Tensor:
    """The largest excess variance of several results for each row, but at least the median over all rows."""
    largest = torch.stack(rest).amax(0).clamp(min=0)
    return largest.clamp(min=float(largest.median()) if largest.numel() else 0)


def _lined(x: Tensor) -> Tensor:
    return x.reshape(1) if x.dim() == 0 else x


def _row_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1)
