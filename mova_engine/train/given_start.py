"""Clips whose beginning is given clean, so that a model learns to go on from it: the windows of long clips."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mova_engine.backend.host_copies import to_device
from mova_engine.config.model import ClipConfig
from mova_engine.inference.given_clip import Window, kept_audio_latents, kept_latent_frames


class SeenNoise(NamedTuple):
    """What the network sees of a modality: latents, and timesteps with their index, as `Modality` takes them."""

    latents: Tensor
    timestep: Tensor
    index: tuple[int, ...] | None = None


@dataclass(frozen=True)
class GivenPositions:
    """The beginning of one modality. positions: of each latent frame or audio latent, whether it belongs to the
    beginning. clips: bool [b], of each clip of the batch, whether its beginning is given.
    """

    positions: tuple[bool, ...]
    clips: Tensor

    def shown(self, noise: SeenNoise, clean: Tensor) -> SeenNoise:
        """The input with the given beginnings clean, at timestep 0. clean: the clips' latents."""
        where = self._given(clean.device).view(len(clean), 1, -1, *[1] * (clean.ndim - 3))
        beginnings = noise.timestep.masked_fill(to_device(self.clips, noise.timestep.device), 0.0)
        return SeenNoise(
            torch.where(where, clean, noise.latents),
            torch.stack([noise.timestep, beginnings], 1),
            tuple(int(given) for given in self.positions),
        )

    def counted(self, factors: Tensor | None, first: int = 0) -> Tensor:
        """Factors [b, p] of the loss of the positions from `first` on: 0 for what is given, so much more for the rest
        of such a clip that its own loss is a mean over that. factors [b]: of whole clips; None: all 1.
        """
        left = (~self._given(self.clips.device if factors is None else factors.device))[:, first:].float()
        left = left / left.mean(1, keepdim=True)
        return left if factors is None else left * factors[:, None]

    def _given(self, device: torch.device) -> Tensor:
        """[b, p]: whether a position of a clip is given."""
        return to_device(self.clips, device)[:, None] & to_device(torch.tensor(self.positions), device)


@dataclass(frozen=True)
class GivenStart:
    """The beginnings of both modalities: those that `mova sample --extend` gives a window."""

    video: GivenPositions
    audio: GivenPositions

    @classmethod
    def of(cls, clip: ClipConfig, frames: int, clips: Tensor) -> "GivenStart":
        """frames: pictures of a beginning. clips: as of `GivenPositions`."""
        rest = Window.after(frames, clip)
        return cls(
            GivenPositions(kept_latent_frames(rest, clip), clips), GivenPositions(kept_audio_latents(rest, clip), clips)
        )
