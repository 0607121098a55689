"""The first-frame condition: mask and image latents, concatenated to the video tower's noisy latents."""

from collections.abc import Iterable

import torch
from torch import Tensor

from mova_engine.errors import MovaError

# One mask channel per picture of a latent frame (temporal stride 4).
MASK_CHANNELS = 4


def first_frame_condition(image_latents: Tensor, last_frame: bool = False, keyframes: Iterable[int] = ()) -> Tensor:
    """[b, 16, t, h, w] normalised latents of [first frame, zeros...] -> [b, 20, t, h, w]: mask, then latents.

    The mask is 1 in latent frame 0 in all four channels; with a given last frame also in channel 3 of the last frame.
    keyframes: indices, from 1 on, of other pictures that are given; each has its own channel and latent frame.
    """
    if image_latents.ndim != 5:
        raise MovaError(
            f"image latents must be [batch, channels, frames, height, width], got {list(image_latents.shape)}"
        )
    b, _, t, h, w = image_latents.shape
    mask = image_latents.new_zeros(b, MASK_CHANNELS, t, h, w)
    mask[:, :, 0] = 1
    if last_frame:
        mask[:, MASK_CHANNELS - 1, -1] = 1
    for index in keyframes:
        if not 0 < index <= MASK_CHANNELS * (t - 1):
            raise MovaError(f"a keyframe must be one of the pictures 1 to {MASK_CHANNELS * (t - 1)}, got {index}")
        mask[:, (index - 1) % MASK_CHANNELS, (index - 1) // MASK_CHANNELS + 1] = 1
    return torch.cat([mask, image_latents], 1)


def video_input(latents: Tensor, condition: Tensor) -> Tensor:
    """[b, 16, t, h, w] noisy latents and [b, 20, t, h, w] condition -> [b, 36, t, h, w]."""
    return torch.cat([latents, condition.to(latents.dtype)], 1)
