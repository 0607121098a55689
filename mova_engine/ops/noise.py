"""How far from the truth a right implementation may be, element by element.

The variance of an element's error is the sum of three parts. Rounding once to the result's dtype: step^2 / 12, where
`step` is the distance of the numbers around it. What the reference in that dtype is off by beyond that, in the
element's row or in half of all rows. And what arithmetic in float32 may lose: `FLOAT32` roundings of the row's size,
and as many of every input, so that a difference of large numbers is allowed what it loses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

EPS32 = torch.finfo(torch.float32).eps
FLOAT32 = 32.0
# Below this share of the largest number a row is nothing but rounding of what cancelled (softmax over one key).
_VANISHED = 1e-10
_SHORTEST = 8


@dataclass(frozen=True)
class Noise:
    """Of one tensor, all in its shape (at least one axis) and float64.

    weight: 0 where the truth is not finite, else 1. variance: of an element's error. moved: what float32 may lose.
    forms: errors of the reference, and of its forms with the roundings that it permits, each with the variance that is
    expected from the others: how large it is in units of that tells how far apart right implementations are.
    """

    truth: Tensor
    weight: Tensor
    variance: Tensor
    moved: Tensor
    forms: tuple[tuple[Tensor, Tensor], ...]

    @staticmethod
    def of(truth: Tensor, nudged: Tensor, made: list[Tensor], largest: float) -> "Noise":
        """truth, nudged: results in float64, of the inputs and of inputs off by float32's rounding. made: the
        reference's in the run's dtype, first as it is, then with the roundings that it permits. largest: of all.
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
        """found - truth where that is a number."""
        return (_lined(found.detach().to(self.truth.device, torch.float64)) - self.truth).where(self.weight.bool(), 0)

    def rows(self, error: Tensor, variance: Tensor | None = None) -> Tensor:
        """Root mean squares of whole rows, in units of their noise."""
        variance = self.variance if variance is None else variance
        return (_row_mean(error.square(), self.weight) / _row_mean(variance, self.weight).clamp(min=1e-300)).sqrt()

    def worst(self, error: Tensor) -> float:
        """The largest error of an element, in units of its noise; where the reference's own is larger, of that."""
        usual = self.variance + self.forms[0][0].square()
        return float((error.square() / usual).max()) ** 0.5

    def apart(self) -> tuple[float, float]:
        """The largest row and the largest element that one form shows to the others."""
        rows = max(float(self.rows(e, variance).max()) for e, variance in self.forms)
        return rows, max(float((e.square() / variance).max()) ** 0.5 for e, variance in self.forms[1:] or self.forms)

    def lines(self, error: Tensor) -> dict[str, tuple[Tensor, float, float]]:
        """What the errors along each axis, and of the whole, have in common, in units of what chance gives.

        {"slope or mean along axis": (z of every line, root mean square and largest z that one form shows the others)}
        """
        axes = [(f"axis {i}", (i,)) for i, n in enumerate(self.truth.shape) if _SHORTEST <= n < self.truth.numel()]
        found = {}
        for name, dims in (*axes, ("all", tuple(range(self.truth.dim())))):
            ours = self._line(error, self.variance, dims)
            forms = [self._line(e, variance, dims) for e, variance in self.forms]
            for i, kind in enumerate(("slope", "mean")):
                theirs = [z[i] for z in forms]
                usual = max(float(z.square().mean()) ** 0.5 for z in theirs)
                found[f"{kind} along {name}"] = ours[i], usual, max(float(z.abs().max()) for z in theirs)
        return found

    def _line(self, error: Tensor, variance: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """(slope against the truth, mean) of the errors along `dims`, in units of what chance gives."""
        truth, inverse = self.truth.where(self.weight.bool(), 0), self.weight / variance
        count, moved = self.weight.sum(dims).clamp(min=1), self.moved.square().sum(dims)
        power = truth.square().sum(dims)
        pull = (truth.square() * inverse).sum(dims).clamp(min=1e-300)
        slope = (error * truth * inverse).sum(dims) / pull / (1 / pull + moved / power.clamp(min=1e-300)).sqrt()
        chance = ((variance * self.weight).sum(dims) / count**2 + moved / count).sqrt().clamp(min=1e-300)
        return slope.where(power > 0, 0), error.sum(dims) / count / chance


def _typical(rest: list[Tensor]) -> Tensor:
    """The largest of several rows' excess variance, at least that of half of all rows."""
    largest = torch.stack(rest).amax(0).clamp(min=0)
    return largest.clamp(min=float(largest.median()) if largest.numel() else 0)


def _lined(x: Tensor) -> Tensor:
    return x.reshape(1) if x.dim() == 0 else x


def _row_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1)
