"""Row sharding as seen by the codecs. `Rows` is the single-process no-op; `distributed.decoder_rows` implements it for
processes that decode one clip together.

A shard is a contiguous range of latent rows, and of the pixel rows that they decode to.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class Rows:
    """Interface, and the no-op: this process decodes all rows."""

    # Processes that decode a clip together.
    size = 1
    # Latent rows of each of them.
    lengths: Sequence[int] = ()

    def take(self, x: Tensor) -> Tensor:
        """This process's rows of x [..., h, w] -> [..., n, w]."""
        return x

    def widened(self, x: Tensor) -> Tensor:
        """x [..., n, w] with a halo: one row each from the processes above and below, where they exist."""
        return x

    def narrowed(self, x: Tensor) -> Tensor:
        """x as `widened` returned it, with any number of channels, without the halo rows."""
        return x


ALL_ROWS = Rows()


@contextmanager
def convolutions_on(rows: Rows, *modules: nn.Module) -> Iterator[None]:
    """Within the block, convolutions in `modules` whose kernel has 3 rows see their neighbours' nearest ones.

    Each is given [..., h, w] of own rows and returns own rows, as if all of them had been there: it computes on the
    widened rows, and what it makes of its zero padding beyond them is dropped. Stride 1 along the rows.
    """

    def before(module: nn.Module, inputs: tuple) -> tuple:
        return tuple(rows.widened(x) if isinstance(x, Tensor) else x for x in inputs)

    def after(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return rows.narrowed(output)

    hooks = []
    try:
        for part in (part for module in modules for part in module.modules()):
            if isinstance(part, nn.Conv2d | nn.Conv3d) and part.kernel_size[-2] == 3:
                hooks += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
        yield
    finally:
        for hook in hooks:
            hook.remove()
