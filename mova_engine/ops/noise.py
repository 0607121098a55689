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
FLOAT32 = 8.0
# Below this share of the largest number a row is nothing but rounding of what cancelled (softmax over one key).
_VANISHED = 1e-10
_SHORTEST = 8


@dataclass(frozen=True)
class Noise:
    """Of one tensor, all in its shape (at least one axis) and float64.

    weight: 0 where the truth is not finite, else 1. variance: of an element's error. moved: what float32 may lose.
    forms: errors of the reference, and of its form with the roundings that it permits.
    """

    truth: Tensor
    weight: Tensor
    variance: Tensor
    moved: Tensor
    forms: tuple[Tensor, ...]

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
        errors = tuple((x - truth).where(keep, 0) for x in others)
        info = torch.finfo(dtype)
        step = torch.exp2(value.abs().clamp(min=info.tiny).log2().floor()) * info.eps
        last = step.square() / 12
        rest = torch.stack([_row_mean(e.square() - last, weight) for e in errors]).amax(0).clamp(min=0)
        rest = rest.clamp(min=float(rest.median()) if rest.numel() else 0)
        variance = last + rest + _row_mean(moved.square(), weight)
        vanished = _row_mean(value.square(), weight) <= (_VANISHED * largest) ** 2
        variance = variance + vanished * (4 * EPS32 * largest) ** 2
        return Noise(truth, weight, variance, moved, errors)

    @property
    def row(self) -> int:
        return self.truth.shape[-1]

    def error(self, found: Tensor) -> Tensor:
        """found - truth where that is a number."""
        return (_lined(found.detach().to(self.truth.device, torch.float64)) - self.truth).where(self.weight.bool(), 0)

    def rows(self, error: Tensor) -> Tensor:
        """Mean squares of whole rows, in units of their noise."""
        return _row_mean(error.square(), self.weight) / _row_mean(self.variance, self.weight).clamp(min=1e-300)

    def worst(self, error: Tensor) -> float:
        """The largest error of an element, in units of its noise; where the reference's own is larger, of that."""
        usual = self.variance + self.forms[0].square()
        return float((error.square() / usual).max()) ** 0.5

    def lines(self, error: Tensor) -> dict[str, tuple[Tensor, float, float]]:
        """What the errors along each axis, and of the whole, have in common, in units of what chance gives.

        {"slope or mean along axis": (z of every line, root mean square and largest z of the reference's own errors)}
        """
        truth = self.truth.where(self.weight.bool(), 0)
        inverse = self.weight / self.variance
        found = {}
        axes = [(f"axis {axis}", (axis,)) for axis, n in enumerate(truth.shape) if n >= _SHORTEST and n < truth.numel()]
        for name, dims in (*axes, ("all", tuple(range(truth.dim())))):
            count = self.weight.sum(dims).clamp(min=1)
            power, moved = truth.square().sum(dims), self.moved.square().sum(dims)
            pull = (truth.square() * inverse).sum(dims)
            slope_noise = (1 / pull.clamp(min=1e-300) + moved / power.clamp(min=1e-300)).sqrt()
            mean_noise = ((self.variance * self.weight).sum(dims) / count**2 + moved / count).sqrt()
            scores: dict[str, list[Tensor]] = {f"slope along {name}": [], f"mean along {name}": []}
            slope, mean = scores.values()
            for e in (error, *self.forms):
                along = (e * truth * inverse).sum(dims) / pull.clamp(min=1e-300)
                slope.append((along / slope_noise).where(power > 0, 0))
                mean.append(e.sum(dims) / count / mean_noise.clamp(min=1e-300))
            for key, (ours, *theirs) in scores.items():
                usual = max(float(z.square().mean()) ** 0.5 for z in theirs)
                found[key] = ours, usual, max(float(z.abs().max()) for z in theirs)
        return found


def _lined(x: Tensor) -> Tensor:
    return x.reshape(1) if x.dim() == 0 else x


def _row_mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1)
