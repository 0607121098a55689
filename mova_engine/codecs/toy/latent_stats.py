"""Mean and scale per latent channel: given by a checkpoint, or fitted to a data set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mova_engine.errors import MovaError


@dataclass(frozen=True)
class LatentStats:
    """normalised = (x - mean) / std, per channel (axis 1). The trainer and the sampler must use the same one."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise MovaError(f"latent statistics: {len(self.mean)} means but {len(self.std)} standard deviations")
        # The comparison is also false for NaN.
        if not all(value > 0 for value in self.std):
            raise MovaError("latent statistics: every standard deviation must be positive")

    @classmethod
    def identity(cls, channels: int) -> "LatentStats":
        """Zero mean and unit scale."""
        return cls((0.0,) * channels, (1.0,) * channels)

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None, channels: int) -> "LatentStats":
        """Read what `state` wrote; None or an empty mapping is the identity. MovaError on another channel count."""
        if not state:
            return cls.identity(channels)
        unknown = set(state) - {"mean", "std"}
        if unknown or not {"mean", "std"} <= set(state):
            raise MovaError(f"latent statistics need 'mean' and 'std', got {sorted(state)}")
        stats = cls(tuple(float(v) for v in state["mean"]), tuple(float(v) for v in state["std"]))
        if len(stats.mean) != channels:
            raise MovaError(f"latent statistics are for {len(stats.mean)} channels, the codec has {channels}")
        return stats

    @classmethod
    def fit(
        cls, latents: Iterable[Tensor], *, target: float = 1.0, floor: float = 0.5, centre: bool = True
    ) -> "LatentStats":
        """Fit to `latents`, an iterable of [b, c, ...]; a generator over a data set will do, only sums are kept.

        The divisor is max(std, floor * largest std) / target: the channel of largest scale gets standard deviation
        `target`; the floor keeps near-silent channels from being amplified to the same scale.
        centre=False keeps the mean at zero, for channels whose sign carries no information.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in latents:
            x = batch.detach().to("cpu", torch.float64).movedim(1, 0).flatten(1)
            total, squares = total + x.sum(1), squares + x.square().sum(1)
            count += x.shape[1]
        if count == 0:
            raise MovaError("cannot fit latent statistics: the data set gave no latents")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        if not std.isfinite().all():
            raise MovaError("cannot fit latent statistics: the latents hold NaN or infinity")
        if std.max() == 0:
            raise MovaError("cannot fit latent statistics: the latents are constant (silent or blank clips?)")
        divisor = std.clamp_min(floor * float(std.max())).clamp_min(1e-6 * float(std.max())) / target
        return cls(tuple(mean.tolist() if centre else [0.0] * len(std)), tuple(divisor.tolist()))

    def state(self) -> dict[str, list[float]]:
        """JSON-able form; empty for the identity."""
        if self == self.identity(len(self.mean)):
            return {}
        return {"mean": list(self.mean), "std": list(self.std)}

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / std; x is [b, c, ...]."""
        mean, std = self._columns(x)
        return (x - mean) / std

    def denormalise(self, x: Tensor) -> Tensor:
        """Inverse of `normalise`: x * std + mean."""
        mean, std = self._columns(x)
        return x * std + mean

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return x.new_tensor(self.mean).view(shape), x.new_tensor(self.std).view(shape)


# The released video VAE's (Wan2.1) statistics; a checkpoint's own config.json wins over them.
WAN_STATS = LatentStats(
    mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    std=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916),
    ),
)
