"""Latents that are given to the denoising loop rather than generated: whole modalities, frames, stretches of time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mova_engine.diffusion.schedule import add_noise
from mova_engine.errors import MovaError


@dataclass(frozen=True)
class GivenLatents:
    """Given latents of one modality of a batch of clips.

    latents: float32, video [b, 16, t, h, w] or audio [b, 128, l]; only those of the given positions are read.
    positions: for each latent frame or audio latent, whether it is given.
    clean: the model sees them clean, at timestep 0, as a whole modality of models whose timesteps were independent,
        or that were trained so (`given_video`, `given_audio`, `given_start`). False: it sees them at each step's noise
        level, and they are put back after every step (the replacement method: Song et al., 2021, section 5; Lugmayr et
        al., 2022), which any model takes.
    """

    latents: Tensor
    positions: tuple[bool, ...]
    clean: bool = True

    @classmethod
    def whole(cls, latents: Tensor) -> "GivenLatents":
        """A whole modality, clean."""
        return cls(latents, (True,) * latents.shape[2])

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the modality is left to generate: it is no longer integrated."""
        return self.clean and all(self.positions)

    @property
    def is_start(self) -> bool:
        """Whether it is a beginning: some positions, the first ones, and not all."""
        count = sum(self.positions)
        return 0 < count < len(self.positions) and all(self.positions[:count])

    @property
    def seen(self) -> tuple[bool, ...] | None:
        """The positions that are at timestep 0, as `Modality.given` takes them."""
        return self.positions if self.clean else None

    def check(self, noise: Tensor, name: str) -> None:
        """Raise MovaError unless this fits the latents that are generated."""
        if self.latents.shape != noise.shape:
            raise MovaError(f"given {name} latents are {list(self.latents.shape)}, the clips' {list(noise.shape)}")
        if len(self.positions) != noise.shape[2]:
            raise MovaError(f"given {name}: {len(self.positions)} positions, but the clip has {noise.shape[2]}")

    def put(self, state: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """`state` with the given positions in their place, at noise level `sigma` (0-dimensional), with the noise of
        the clip; at sigma 0 they are the given latents to the bit.
        """
        if self.is_whole:
            return self.latents.float()
        where = torch.tensor(self.positions, device=state.device).view(-1, *[1] * (state.ndim - 3))
        given = self.latents.float()
        if not self.clean:
            given = add_noise(given, noise, sigma.expand(len(given)))
        return torch.where(where, given, state)
