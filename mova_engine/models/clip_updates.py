"""Low-rank updates of a layer that differ between the clips of a batch."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mova_engine.errors import MovaError


class Update(NamedTuple):
    """A low-rank update: `scale * (x A^T) B^T`. a [r, in], b [out, r]."""

    a: Tensor
    b: Tensor
    scale: float


# A layer's product of rows [n, s, in] with an update, None: without any.
Product = Callable[[Tensor, Update | None], Tensor]


class ClipUpdates:
    """Which update each clip of a batch takes in one layer.

    groups: pairs of an update (scale 1, on the host; None: none) and the clips that take it, by their place in the
    batch. Together they name each clip once. Updates are copied to the device when they are first used.
    """

    def __init__(self, groups: Sequence[tuple[Update | None, tuple[int, ...]]]) -> None:
        self._groups = groups
        self._clips = sum(len(clips) for _, clips in groups)
        self._there: dict[int, Update] = {}

    def product(self, x: Tensor, product: Product) -> Tensor:
        """The layer's product of x [n, s, in] for n rows: the batch's clips in order, repeated for each of guidance's
        branches. Each clip is computed as in a batch of those that take the same update.
        """
        repeats, rest = divmod(len(x), self._clips)
        if rest:
            raise MovaError(
                f"clips of one batch have strengths of their own, but a layer works on {len(x)} rows for "
                f"{self._clips} clips: make clips with other strengths in another batch"
            )
        found: Tensor | None = None
        for index, (update, clips) in enumerate(self._groups):
            if len(clips) == self._clips:
                return product(x, self._on(x, index, update))
            rows = [repeat * self._clips + clip for repeat in range(repeats) for clip in clips]
            chosen = torch.tensor(rows, device=x.device)
            part = product(x.index_select(0, chosen), self._on(x, index, update))
            if found is None:
                found = part.new_empty(len(x), *part.shape[1:])
            found.index_copy_(0, chosen, part)
        assert found is not None, "a batch has clips"
        return found

    def _on(self, x: Tensor, index: int, update: Update | None) -> Update | None:
        if update is None:
            return None
        if index not in self._there:
            a, b = (part.to(x.device, x.dtype) for part in (update.a, update.b))
            self._there[index] = Update(a, b, update.scale)
        return self._there[index]
