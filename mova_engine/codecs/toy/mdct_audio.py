"""Embedded audio codec: 128 low MDCT coefficients for every 960 samples, no weights and nothing to download.

At 48 kHz that is 50 latents a second and the band up to 3200 Hz, 25 Hz to a coefficient. The modified discrete cosine
transform is computed as rotations across the borders between frames, then one product with a DCT-IV matrix. Its window
is the sine window of 1920 samples, except at the clip's two ends, where nothing is rotated (edge windows): N frames
cover exactly N * 960 samples. Rotations and DCT-IV are orthonormal, so are the 128 rows kept: encode(decode(z)) = z.

Sources: Princen, Johnson, Bradley, "Subband/transform coding using filter bank designs based on time domain aliasing
cancellation", ICASSP 1987; the factorisation: Malvar, "Signal Processing with Lapped Transforms", 1992.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mova_engine.codecs.interface import check_audio, check_latents, fingerprint
from mova_engine.codecs.toy.latent_stats import LatentStats

# Typical size of a coefficient: sound at rms 0.1 whose power lies in the kept band gives 0.1 * sqrt(960 / 128).
_SCALE = 0.25


def dct4_matrix(size: int, rows: int) -> Tensor:
    """First `rows` rows of the orthonormal DCT-IV, float64 [rows, size]: sqrt(2/size) cos(pi (k+1/2)(n+1/2) / size)."""
    k = torch.arange(rows, dtype=torch.float64)[:, None] + 0.5
    n = torch.arange(size, dtype=torch.float64)[None, :] + 0.5
    return math.sqrt(2 / size) * torch.cos(math.pi * k * n / size)


class MdctAudioCodec:
    """AudioCodec by the MDCT: encode(decode(z)) = z to 1e-5; decode(encode(x)) keeps what lies below 3200 Hz.

    `stats` scales the latents further (see `fitted`); without it every channel is divided by 0.25.
    """

    name = "mdct"
    weights = None
    channels = 128
    sample_rate = 48000
    hop = 960

    def __init__(self, state: Mapping[str, Any] | None = None, device: torch.device | str | None = None) -> None:
        self.stats = LatentStats.from_state(state, self.channels)
        self.device = torch.device(device or "cpu")
        matrix = dct4_matrix(self.hop, self.channels)
        # Rounded here: not every device knows float64.
        self._encode = (matrix.T / _SCALE).contiguous().float().to(self.device)
        self._decode = (matrix * _SCALE).float().to(self.device)
        # Angle of the sine window at half a frame of samples to the right of a border.
        half = self.hop // 2
        angle = math.pi / 2 * (torch.arange(half, dtype=torch.float64) + 0.5 + half) / self.hop
        self._sin, self._cos = angle.sin().float().to(self.device), angle.cos().float().to(self.device)

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """Audio [b, 1, n] -> latents [b, 128, ceil(n/960)], float32; zeros pad the end. MovaError on other shapes."""
        check_audio(audio)
        audio = functional.pad(audio.to(self.device, torch.float32), (0, -audio.shape[-1] % self.hop))
        frames = audio.view(audio.shape[0], -1, self.hop)
        return self.stats.normalise((self._rotate(frames, self._cos) @ self._encode).transpose(1, 2))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, 128, t] -> audio [b, 1, t * 960], float32, not clamped. MovaError on other shapes."""
        check_latents(latents, self.channels, "t")
        latents = self.stats.denormalise(latents.to(self.device, torch.float32))
        return self._rotate(latents.transpose(1, 2) @ self._decode, -self._cos).reshape(latents.shape[0], 1, -1)

    def fitted(
        self, audios: Iterable[Tensor], *, target: float = 0.6, floor: float = 0.5, centre: bool = False
    ) -> "MdctAudioCodec":
        """Return a codec scaled to `audios`, an iterable of [b, 1, n]; for the rule see `LatentStats.fit`.

        Not centred by default: the sign of a coefficient is the phase of the sound, which averages to nothing.
        """
        latents = (self.stats.denormalise(self.encode(audio)) for audio in audios)
        stats = LatentStats.fit(latents, target=target, floor=floor, centre=centre)
        return MdctAudioCodec(stats.state(), self.device)

    def state(self) -> dict[str, Any]:
        """Fitted mean and std per channel; empty when unfitted."""
        return self.stats.state()

    def fingerprint(self) -> str:
        """Changes with the transform, its scale and the fitted statistics."""
        return fingerprint("mdct-audio", {"version": 1, "scale": _SCALE, "state": self.state()})

    def _rotate(self, frames: Tensor, cos: Tensor) -> Tensor:
        """Rotate each sample right of a border with its mirror image left of it; with -cos, rotate back.

        The DCT-IV basis is even about a frame's left end and odd about its right end, hence the two signs.
        """
        half = self.hop // 2
        left = frames[:, :-1, half:].flip(-1)
        right = frames[:, 1:, :half]
        out = frames.clone()
        out[:, :-1, half:] = (self._sin * left - cos * right).flip(-1)
        out[:, 1:, :half] = self._sin * right + cos * left
        return out
