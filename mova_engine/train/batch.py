"""Batches of latents: what the towers see of clips, on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentBatch:
    """Clips as the towers see them, on the device, float32.

    audio [b, 128, l]; text [b, n, d] and empty_text (the empty prompt's features) [1, n, d]; video and image (latents
    of [first frame, zeros...]) [b, 16, t, h, w], None where only the audio tower is trained. ids: the clips' names.
    audio_factors [b]: of each clip's audio loss, 0 where it has no sound that is to be learned; None: 1.
    """

    audio: Tensor
    text: Tensor
    empty_text: Tensor
    video: Tensor | None = None
    image: Tensor | None = None
    ids: tuple[str, ...] = ()
    audio_factors: Tensor | None = None

    def noise_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes, without the batch, of the noise that a step needs: audio, then video where there is one."""
        latents = (self.audio,) if self.video is None else (self.audio, self.video)
        return tuple(tuple(x.shape[1:]) for x in latents)

    def context(self, drop: Tensor) -> Tensor:
        """The text with the empty prompt's where `drop` [b] says so."""
        if not drop.any():
            return self.text
        return torch.where(drop.to(self.text.device).view(-1, 1, 1), self.empty_text, self.text)


class BatchBuilder:
    """Turns the loader's batches into what the step takes, on the device."""

    def __init__(self, empty_text: Tensor, device: torch.device, audio_only: bool) -> None:
        self.device, self.audio_only = device, audio_only
        self.empty_text = empty_text.unsqueeze(0).to(device)

    def __call__(self, batch: dict, audio_factors: Tensor | None = None) -> LatentBatch:
        """audio_factors [b]: on the CPU, as of `LatentBatch`."""

        def move(name: str) -> Tensor | None:
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
