"""Output conversion: networks that predict the clean latents instead of the velocity. Schedule and sampler see
velocities.

A network narrower than its latents' channels cannot pass the noise through, which predicting `noise - x` needs;
predicting x0 spares it that (compare Salimans & Ho, 2022).
"""

from dataclasses import dataclass

from torch import Tensor

from mova_engine.errors import MovaError, suggest

KINDS = ("velocity", "x0")


@dataclass(frozen=True)
class Prediction:
    """kind: what the network's output means. sigma_floor bounds the division by sigma, and so the loss's weight
    1/sigma^2.
    """

    kind: str = "velocity"
    sigma_floor: float = 0.25

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MovaError(f"unknown prediction '{self.kind}'.{suggest(self.kind, KINDS)} Known: {', '.join(KINDS)}")
        if self.sigma_floor <= 0:
            raise MovaError(f"sigma_floor must be positive, got {self.sigma_floor}")

    def velocity(self, output: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The network's output as a velocity: itself, or `(x_t - x0) / max(sigma, floor)`. sigma [b] or [1]."""
        return output if self.kind == "velocity" else self._from_x0(output, noisy, sigma)

    def target(self, x: Tensor, noise: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """What `velocity` should be: `noise - x`; below the floor the x0 form's own velocity for the clean x."""
        return noise - x if self.kind == "velocity" else self._from_x0(x, noisy, sigma)

    def _from_x0(self, x0: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.to(x0.device, x0.dtype).clamp(min=self.sigma_floor).view(-1, *[1] * (x0.ndim - 1))
        return (noisy.to(x0.dtype) - x0) / sigma
