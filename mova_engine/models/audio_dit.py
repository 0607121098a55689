"""The audio tower: the same DiT over a one-dimensional sequence of audio latents."""

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.config.model import AudioDiTConfig
from mova_engine.errors import MovaError
from mova_engine.models.layers import Rope
from mova_engine.models.rope import Times, audio_rope
from mova_engine.models.tower import Tower
from mova_engine.ops import OpTable


class AudioDiT(Tower):
    """[b, in_dim, l] audio latents -> [b, out_dim, l]."""

    def __init__(
        self,
        config: AudioDiTConfig,
        ops: OpTable,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        (patch,) = config.patch_size
        embedding = nn.Conv1d(config.in_dim, config.dim, patch, stride=patch, **factory)
        super().__init__(config, ops, ops.attention, embedding, patch, **factory)

    def patchify(self, latents: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """[b, c, l] -> patches [b, l / patch, c * patch]."""
        if latents.ndim != 3 or latents.shape[1] != self.config.in_dim:
            raise MovaError(f"audio latents must be [batch, {self.config.in_dim}, tokens], got {list(latents.shape)}")
        (patch,) = self.config.patch_size
        if latents.shape[2] % patch:
            raise MovaError(f"{latents.shape[2]} audio latents are not a multiple of the patch {patch}")
        b, c, tokens = latents.shape[0], latents.shape[1], latents.shape[2] // patch
        patches = latents.reshape(b, c, tokens, patch).permute(0, 2, 1, 3)
        return patches.reshape(b, tokens, c * patch), (tokens,)

    def unpatchify(self, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        """[b, s, (patch c)] -> [b, c, s * patch]."""
        b, tokens, width = patches.shape
        c = self.config.out_dim
        return patches.reshape(b, tokens, width // c, c).permute(0, 3, 1, 2).reshape(b, c, tokens * (width // c))

    def rope(self, grid: tuple[int, ...], device: torch.device, times: Times = None) -> Rope:
        return self.tables.get(audio_rope, grid[0], self.config.head_dim, device, times)
