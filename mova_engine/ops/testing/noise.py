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
        weighted, lines = self._lines
        found = {}
        product = error * weighted
        for name, line, apart in lines:
            for kind, z, usual in zip(("slope", "mean"), line.of(error, product), apart, strict=True):
                found[f"{kind} along {name}"] = z, *usual
        return found

    @cached_property
    def _lines(self) -> tuple[Tensor, list[tuple[str, "_Lines", list[tuple[float, float]]]]]:
        """The truth over the variance; the lines along each axis, and the reference forms' own z along them.
        Independent of the tested error.
        """
        # The tensor's own variance and those of all forms at once, on an axis in front: many small tensors are judged.
        errors = torch.stack([e for e, _ in self.forms])
        variance = torch.stack([self.variance, *(variance for _, variance in self.forms)])
        truth = self.truth.where(self.weight.bool(), 0)
        weighted = truth * self.weight / variance
        pull, chance, product = truth * weighted, variance * self.weight, errors * weighted[1:]
        power, moved = truth.square(), self.moved.square()
        axes = [(f"axis {i}", (i,)) for i, n in enumerate(self.truth.shape) if _SHORTEST <= n < self.truth.numel()]
        found = []
        for name, dims in (*axes, ("all", tuple(range(self.truth.dim())))):
            behind = tuple(i + 1 for i in dims)
            lines = _Lines.of_sums(
                dims, self.weight.sum(dims), power.sum(dims), moved.sum(dims), pull.sum(behind), chance.sum(behind)
            )
            theirs = _Lines(behind, lines.slope[1:], lines.mean[1:], lines.sloped).of(errors, product)
            apart = [(float(_size(z).max()), float(z.abs().max())) for z in theirs]
            found.append((name, _Lines(dims, lines.slope[0], lines.mean[0], lines.sloped), apart))
        return weighted[0], found


def _size(z: Tensor) -> Tensor:
    """The root mean square of each form's z."""
    return z.square().flatten(1).mean(1).sqrt() if z.dim() > 1 else z.abs()


class _Lines(NamedTuple):
    """Lines of a tensor along `dims`. slope, mean: standard deviations by chance of the sum of an error times the truth
    over the variance, and of the sum of an error. sloped: the lines whose truth is not zero.
    """

    dims: tuple[int, ...]
    slope: Tensor
    mean: Tensor
    sloped: Tensor

    @staticmethod
    def of_sums(
        dims: tuple[int, ...], count: Tensor, power: Tensor, moved: Tensor, pull: Tensor, chance: Tensor
    ) -> "_Lines":
        """Build the lines from sums along them: of the weights, of the squares of the truth and of `moved`, of truth^2
        over variance, and of the variance.
        """
        count, pull = count.clamp(min=1), pull.clamp(min=1e-300)
        slope = pull * (1 / pull + moved / power.clamp(min=1e-300)).sqrt()
        mean = count * (chance / count**2 + moved / count).sqrt().clamp(min=1e-300)
        return _Lines(dims, slope, mean, power > 0)

    def of(self, error: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        """(slope against the truth, mean) of the errors along `dims`, in units of their standard deviation by chance.
        product: the errors times the truth over the variance.
        """
        slope = product.sum(self.dims) / self.slope
        return slope.where(self.sloped, 0), error.sum(self.dims) / self.mean


def _typical(rest: list[Tensor]) -> Tensor:
    """The largest excess variance of several results for each row, but at least the median over all rows."""
    largest = torch.stack(rest).amax(0).clamp(min=0)
    return largest.clamp(min=float(largest.median()) if largest.numel() else 0)


def _lined(x: Tensor) -> Tensor:
    return x.reshape(1) if x.dim() == 0 else x


def _row_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1)
