"""Which rows of a picture this process decodes. Codecs ask a `Rows`; here is the one that leaves nothing out, and a
layer further down has the one that shares a clip among processes.

Rows are latents' rows, or the pictures' rows that they become: a share is a run of whole latent rows, whatever the
resolution at the time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn


class Rows:
    """All rows are this process's own."""

    # Processes that decode a clip together.
    size = 1
    # Latent rows of each of them.
    lengths: Sequence[int] = ()

    def take(self, x: Tensor) -> Tensor:
        """Own rows of [..., h, w] that has all of them."""
        return x

    def widened(self, x: Tensor) -> Tensor:
        """Own rows [..., n, w] with the nearest row of the process above and of the one below, where there are such."""
        return x

    def narrowed(self, x: Tensor) -> Tensor:
        """What `widened` gave, of the same or of another number of channels, without the neighbours' rows."""
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
