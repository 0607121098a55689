"""Output conversion: networks that predict the clean latents instead of the velocity. Schedule and sampler see
velocities.

A network narrower than its latents' channels cannot pass the noise through, which predicting `noise - x` needs;
predicting x0 spares it that (compare Salimans & Ho, 2022).
"""

from typing import Self

from torch import Tensor

from mova_engine.backend.host_copies import to_device
from mova_engine.config.diffusion import DiffusionSettings, PredictionConfig
from mova_engine.errors import MovaError


class Prediction(PredictionConfig):
    """How to read the network's output, and what its loss compares."""

    @classmethod
    def of(cls, settings: DiffusionSettings) -> Self:
        """The run's."""
        return cls(settings.prediction_type, settings.sigma_floor)

    def velocity(self, output: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The network's output as the velocity to integrate: itself, or `(x_t - x0) / sigma`. sigma [b] or [1].

        An Euler step from sigma to 0 along it ends at x0. Raises MovaError for x0 at sigma 0, where no step begins.
        """
        if self.kind == "velocity":
            return output
        if not (sigma > 0).all():
            raise MovaError("an x0 network has no velocity at sigma 0: steps must begin at positive noise levels")
        return _from_x0(output, noisy, sigma)

    def compared(self, output: Tensor, x: Tensor, noise: Tensor, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What a mean squared error compares, of the output and of the clean x: velocities, or, for x0, both as
        `(x_t - x0) / max(sigma, sigma_floor)`. sigma [b].
        """
        if self.kind == "velocity":
            return output, noise - x
        bounded = sigma.clamp(min=self.sigma_floor)
        return _from_x0(output, noisy, bounded), _from_x0(x, noisy, bounded)


def _from_x0(x0: Tensor, noisy: Tensor, divisor: Tensor) -> Tensor:
    divisor = to_device(divisor, x0.device, x0.dtype).view(-1, *[1] * (x0.ndim - 1))
    return (noisy.to(x0.dtype) - x0) / divisor
