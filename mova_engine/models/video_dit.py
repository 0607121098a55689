"""The video tower: Wan's DiT over latents with first-frame condition (Wan team, 2025; Peebles & Xie, 2023)."""

import math

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.config.model import VideoDiTConfig
from mova_engine.errors import MovaError
from mova_engine.models.context_parallel import Sharding
from mova_engine.models.layers import Rope
from mova_engine.models.rope import Times, video_rope
from mova_engine.models.tower import Tower
from mova_engine.ops import OpTable


class VideoDiT(Tower):
    """[b, in_dim, t, h, w] latents with condition -> [b, out_dim, t, h, w]. One of the two experts."""

    def __init__(
        self,
        config: VideoDiTConfig,
        ops: OpTable,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        t, h, w = config.patch_size
        embedding = nn.Conv3d(config.in_dim, config.dim, (t, h, w), stride=(t, h, w), **factory)
        super().__init__(config, ops, ops.video_attention, embedding, math.prod(config.patch_size), **factory)

    def patchify(self, latents: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """[b, c, t, h, w] -> patches [b, (t h w), (c pt ph pw)], frame-major."""
        if latents.ndim != 5 or latents.shape[1] != self.config.in_dim:
            raise MovaError(
                f"video input must be [batch, {self.config.in_dim}, frames, height, width], got {list(latents.shape)}"
            )
        pt, ph, pw = self.config.patch_size
        sizes = list(latents.shape[2:])
        if any(size % patch for size, patch in zip(sizes, (pt, ph, pw), strict=True)):
            raise MovaError(
                f"video latents of {sizes} (frames, height, width) are not a multiple of the patch {[pt, ph, pw]}"
            )
        t, h, w = sizes[0] // pt, sizes[1] // ph, sizes[2] // pw
        b, c = latents.shape[:2]
        # b c t pt h ph w pw -> b t h w c pt ph pw
        patches = latents.reshape(b, c, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
        return patches.reshape(b, t * h * w, c * pt * ph * pw), (t, h, w)

    def unpatchify(self, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        """[b, (t h w), (pt ph pw c)] -> [b, c, t, h, w]; the channel runs fastest within a patch."""
        (t, h, w), (pt, ph, pw) = grid, self.config.patch_size
        b, c = patches.shape[0], patches.shape[-1] // (pt * ph * pw)
        # b t h w pt ph pw c -> b c t pt h ph w pw
        latents = patches.reshape(b, t, h, w, pt, ph, pw, c).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return latents.reshape(b, c, t * pt, h * ph, w * pw)

    def rope(self, grid: tuple[int, ...], device: torch.device, times: Times = None) -> Rope:
        return self.tables.get(video_rope, grid, self.config.head_dim, device, times)

    def own_latents(self, shape: tuple[int, ...], sharding: Sharding, device: torch.device) -> Tensor | None:
        """1 where a latent of [b, c, t, h, w] belongs to the sharding's own tokens and 0 elsewhere, float32
        [1, 1, t, h, w]; None where all do.
        """
        if sharding.size == 1:
            return None
        grid = tuple(size // patch for size, patch in zip(shape[2:], self.config.patch_size, strict=True))
        tokens = math.prod(grid)
        own = sharding.unshard(sharding.shard(torch.ones(1, tokens, 1, device=device)), tokens)
        return self.unpatchify(own.expand(1, tokens, self.head.head.out_features), grid)[:, :1]
