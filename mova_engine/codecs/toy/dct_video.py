"""Embedded video codec: low-frequency DCT coefficients of 4x8x8 blocks, no weights and nothing to download.

A block of 4 frames x 8 x 8 pixels x RGB (768 numbers) is turned by fixed orthonormal transforms (colour, then a DCT-II
along time, rows and columns), and 16 coefficients are kept. The first frame has blocks of its own, 1 x 8 x 8, so that a
single image is a video too. Kept rows of an orthonormal matrix stay orthonormal: encode(decode(z)) = z. Encoding and
decoding are one matrix product each.

Colour: luma (R+G+B)/sqrt(3), and two opponents, (R-B)/sqrt(2) and (R-2G+B)/sqrt(6).

Source of the transform: Ahmed, Natarajan, Rao, "Discrete Cosine Transform", IEEE Trans. Computers C-23, 1974.
"""

import math
from collections.abc import Generator, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mova_engine.codecs.interface import check_latents, check_video, fingerprint
from mova_engine.codecs.row_sharding import ALL_ROWS, Rows
from mova_engine.codecs.toy.latent_stats import LatentStats


class Coefficient(NamedTuple):
    """One kept channel: colour axis, order of the cosine along time, rows and columns, and its typical size."""

    colour: int
    time: int
    row: int
    column: int
    scale: float


# Channels 0-6 describe a still block, 7-15 how it moves. Small fast objects need the orders along time: of symmetric
# sets with like PSNR on bouncing balls this one places the ball best (mean error 0.24 rows; 0.57 with spatial detail in
# place of the last three).
# Scales are round figures for their standard deviation (pixels in [-1, 1]) there and in natural video.
_MOVING = (
    Coefficient(0, 0, 0, 0, 5.0),
    Coefficient(0, 0, 0, 1, 2.0),
    Coefficient(0, 0, 1, 0, 2.0),
    Coefficient(0, 0, 0, 2, 1.0),
    Coefficient(0, 0, 2, 0, 1.0),
    Coefficient(1, 0, 0, 0, 2.0),
    Coefficient(2, 0, 0, 0, 2.0),
    Coefficient(0, 1, 0, 0, 1.5),
    Coefficient(0, 1, 0, 1, 1.0),
    Coefficient(0, 1, 1, 0, 1.0),
    Coefficient(1, 1, 0, 0, 1.0),
    Coefficient(2, 1, 0, 0, 1.0),
    Coefficient(0, 2, 0, 0, 1.0),
    Coefficient(0, 2, 0, 1, 0.5),
    Coefficient(0, 2, 1, 0, 0.5),
    Coefficient(0, 3, 0, 0, 0.5),
)
# In the first frame nothing moves: its last nine channels carry finer detail. One frame has half the norm of four equal
# ones, so half the scale makes a still picture give the same value in channels 0-6 throughout.
_FIRST = tuple(c._replace(scale=c.scale / 2) for c in _MOVING[:7]) + (
    Coefficient(0, 0, 1, 1, 0.5),
    Coefficient(0, 0, 1, 2, 0.5),
    Coefficient(0, 0, 2, 1, 0.5),
    Coefficient(1, 0, 0, 1, 0.5),
    Coefficient(1, 0, 1, 0, 0.5),
    Coefficient(1, 0, 1, 1, 0.25),
    Coefficient(2, 0, 0, 1, 0.5),
    Coefficient(2, 0, 1, 0, 0.5),
    Coefficient(2, 0, 1, 1, 0.25),
)


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II, float64 [size, size].

    Row k is sqrt(2/size) cos(pi (2m+1) k / (2 size)), row 0 divided by sqrt 2.
    """
    k = torch.arange(size, dtype=torch.float64)[:, None]
    m = torch.arange(size, dtype=torch.float64)[None, :]
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * (2 * m + 1) * k / (2 * size))
    matrix[0] /= math.sqrt(2)
    return matrix


def _basis(coefficients: tuple[Coefficient, ...], frames: int) -> Tensor:
    """Orthonormal columns [3 * frames * 8 * 8, 16]; pixel order (colour, time, row, column)."""
    colour = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    colour = colour / colour.norm(dim=1, keepdim=True)
    time, space = dct_matrix(frames), dct_matrix(8)
    columns = [
        torch.einsum("c,t,h,w->cthw", colour[k.colour], time[k.time], space[k.row], space[k.column]).flatten()
        for k in coefficients
    ]
    return torch.stack(columns, 1)


class DctVideoCodec:
    """VideoCodec by fixed orthonormal transforms: encode(decode(z)) = z to 1e-5.

    decode(encode(x)) is x without its high frequencies.

    decode does not clamp to [-1, 1]: that would break the round trip for latents no picture has. `stats` normalises the
    latents further (see `fitted`); without it each channel is divided by a fixed typical size.
    """

    name = "dct"
    weights = None
    channels = 16
    stride = (4, 8, 8)

    def __init__(self, state: Mapping[str, Any] | None = None, device: torch.device | str | None = None) -> None:
        self.stats = LatentStats.from_state(state, self.channels)
        self.device = torch.device(device or "cpu")
        self._encode, self._decode = {}, {}
        for frames, kept in ((1, _FIRST), (4, _MOVING)):
            basis = _basis(kept, frames)
            scale = torch.tensor([k.scale for k in kept], dtype=torch.float64)
            # Rounded here: not every device knows float64.
            self._encode[frames] = (basis / scale).float().to(self.device)
            self._decode[frames] = (basis * scale).T.contiguous().float().to(self.device)

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """Video [b, 3, 4n+1, h, w] in [-1, 1] -> latents [b, 16, n+1, h/8, w/8], float32. MovaError on other shapes."""
        check_video(video, self.stride)
        video = video.to(self.device, torch.float32)
        latents = self._analyse(video[:, :, :1], 1)
        if video.shape[2] > 1:
            latents = torch.cat([latents, self._analyse(video[:, :, 1:], 4)], dim=2)
        return self.stats.normalise(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor, rows: Rows = ALL_ROWS) -> Tensor:
        """Latents [b, 16, n+1, h, w] -> video [b, 3, 4n+1, 8h, 8w], float32, not clamped. MovaError on other shapes."""
        check_latents(latents, self.channels, "t h w")
        latents = self.stats.denormalise(rows.take(latents).to(self.device, torch.float32))
        video = self._synthesise(latents[:, :, :1], 1)
        if latents.shape[2] > 1:
            video = torch.cat([video, self._synthesise(latents[:, :, 1:], 4)], dim=2)
        return video

    def decode_frames(self, latents: Tensor, rows: Rows = ALL_ROWS) -> Generator[Tensor, None, None]:
        """All frames of `decode` at once."""
        yield self.decode(latents, rows)

    def fitted(
        self, videos: Iterable[Tensor], *, target: float = 1.0, floor: float = 0.5, centre: bool = True
    ) -> "DctVideoCodec":
        """Return a codec normalised to `videos`, an iterable of [b, 3, f, h, w]; for the rule see `LatentStats.fit`."""
        latents = (self.stats.denormalise(self.encode(video)) for video in videos)
        stats = LatentStats.fit(latents, target=target, floor=floor, centre=centre)
        return DctVideoCodec(stats.state(), self.device)

    def state(self) -> dict[str, Any]:
        """Fitted mean and std per channel; empty when unfitted."""
        return self.stats.state()

    def fingerprint(self) -> str:
        """Changes with the transform, its scales and the fitted statistics."""
        return fingerprint("dct-video", {"version": 1, "kept": [_FIRST, _MOVING], "state": self.state()})

    def _analyse(self, video: Tensor, frames: int) -> Tensor:
        b, c, f, h, w = video.shape
        t, h, w = f // frames, h // 8, w // 8
        # b c t f h i w j -> b t h w c f i j
        blocks = video.reshape(b, c, t, frames, h, 8, w, 8).permute(0, 2, 4, 6, 1, 3, 5, 7)
        coefficients = blocks.reshape(b * t * h * w, c * frames * 64) @ self._encode[frames]
        return coefficients.reshape(b, t, h, w, coefficients.shape[-1]).movedim(-1, 1)

    def _synthesise(self, latents: Tensor, frames: int) -> Tensor:
        blocks = latents.movedim(1, -1) @ self._decode[frames]
        b, t, h, w, _ = blocks.shape
        # b t h w c f i j -> b c t f h i w j
        video = blocks.reshape(b, t, h, w, 3, frames, 8, 8).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return video.reshape(b, 3, t * frames, h * 8, w * 8)
