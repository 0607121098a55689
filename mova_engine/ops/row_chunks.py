"""Rows of a matrix in chunks, for work that needs wider numbers on the way than its result has."""

import torch

# Elements of a chunk: few beside a weight, many beside what a call costs. On a CPU, where a call costs little, so few
# that what they are on the way stays in its caches.
_AT_ONCE, _IN_CACHE = 1 << 22, 1 << 20
# Of activations: enough rows to occupy a matrix product on a GPU, which are some tenths of a GB in float32.
_PRODUCT = 1 << 25


def row_chunks(rows: int, width: int, *, cached: torch.device | None = None) -> list[slice]:
    """Slices that cover `rows` rows of `width` elements. cached: the device, where several operations read a chunk."""
    most = _IN_CACHE if cached is not None and cached.type == "cpu" else _AT_ONCE
    step = max(1, min(most, _AT_ONCE) // max(1, width))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def product_chunks(rows: int, width: int) -> list[slice]:
    """Slices that cover `rows` rows of activations, of which each is multiplied by a matrix at once. width: of the
    wider of what goes in and what comes out.
    """
    step = max(1, _PRODUCT // max(1, width))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
