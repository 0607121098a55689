"""Decoding one clip in several processes: each decodes a contiguous range of latent rows.

Before every convolution whose kernel reads neighbouring rows, a process exchanges its outermost rows with its
neighbours (a halo exchange). No row is decoded twice and no seam is blended: the pictures equal those of one process,
up to the rounding of a convolution over a different number of rows.
"""

import torch
from torch import Tensor

from mova_engine.codecs.row_sharding import Rows
from mova_engine.config.mesh import lengths_of
from mova_engine.distributed.collectives import Group


class SharedRows(Rows):
    """This rank's range of `total` latent rows. With fewer rows than ranks, the last ranks have none."""

    def __init__(self, group: Group, total: int) -> None:
        self.group, self.size = group, group.size
        self.lengths = lengths_of(total, group.size)
        self.own = self.lengths[group.rank]
        below = group.rank + 1 < group.size and self.lengths[group.rank + 1] > 0
        self._above, self._below = group.rank > 0 and self.own > 0, below

    def take(self, x: Tensor) -> Tensor:
        return x.narrow(-2, sum(self.lengths[: self.group.rank]), self.own)

    def widened(self, x: Tensor) -> Tensor:
        if not (self._above or self._below):
            return x
        above, below = self.group.neighbours(
            x.narrow(-2, 0, 1) if self._above else None, x.narrow(-2, x.shape[-2] - 1, 1) if self._below else None
        )
        return torch.cat([part for part in (above, x, below) if part is not None], -2)

    def narrowed(self, x: Tensor) -> Tensor:
        return x.narrow(-2, int(self._above), x.shape[-2] - self._above - self._below)
