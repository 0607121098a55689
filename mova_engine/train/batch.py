"""Batches of latents on the device, as the training step takes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mova_engine.backend.host_copies import to_device
from mova_engine.config.model import ClipConfig


@dataclass(frozen=True)
class LatentBatch:
    """The latents and text features of a batch of clips, float32, on the device.

    audio [b, 128, l]; text [b, n, d]; empty_text [1, n, d]: features of the empty prompt; video and image (latents of
    [first frame, zeros...]) [b, 16, t, h, w], None if only the audio tower is trained. ids: the clips' ids.
    audio_factors [b]: weights of the clips' audio losses, 0 for a clip without sound; None: all 1.
    """

    audio: Tensor
    text: Tensor
    empty_text: Tensor
    video: Tensor | None = None
    image: Tensor | None = None
    ids: tuple[str, ...] = ()
    audio_factors: Tensor | None = None

    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, without the batch dimension, of the noise that a step needs: audio, then video if there is one."""
        latents = (self.audio,) if self.video is None else (self.audio, self.video)
        return tuple(tuple(x.shape[1:]) for x in latents)

    def shape(self, clip: ClipConfig) -> ClipConfig:
        """The clips' own shape: `clip`, the run's, with the size of these latents in its place."""
        if self.video is None:
            return clip
        (stride, height, width), latents = clip.video_stride, self.video.shape[2:]
        frames = (latents[0] - 1) * stride + 1
        return replace(clip, frames=frames, height=latents[1] * height, width=latents[2] * width)

    def context(self, drop: Tensor) -> Tensor:
        """The text features [b, n, d], replaced by those of the empty prompt where `drop` (bool [b]) is set."""
        if not drop.any():
            return self.text
        return torch.where(to_device(drop, self.text.device).view(-1, 1, 1), self.empty_text, self.text)


# A `BatchBuilder`, or a function with its arguments.
BuildBatch = Callable[..., LatentBatch]


class BatchBuilder:
    """Converts the loader's batches into `LatentBatch`es on the device."""

    def __init__(self, empty_text: Tensor, device: torch.device, audio_only: bool) -> None:
        self.device, self.audio_only = device, audio_only
        self.empty_text = empty_text.unsqueeze(0).to(device)

    def __call__(self, batch: Mapping[str, Any], audio_factors: Tensor | None = None) -> LatentBatch:
        """batch: as of `LatentDataset.batch`. audio_factors [b]: as of `LatentBatch`, on the CPU."""

        def move(name: str) -> Tensor:
            return batch[name].to(self.device, non_blocking=True)

        return LatentBatch(
            audio=move("audio_latents"),
            text=move("text"),
            empty_text=self.empty_text,
            video=None if self.audio_only else move("video_latents"),
            image=None if self.audio_only else move("image_latents"),
            ids=tuple(batch["id"]),
            audio_factors=None if audio_factors is None else audio_factors.to(self.device),
        )
