"""Rows of a matrix in chunks, for work that needs wider numbers on the way than its result has."""

import torch

# Elements of a chunk: few beside a weight, many beside what a call costs. On a CPU, where a call costs little, so few
# that what they are on the way stays in a core's second cache.
_AT_ONCE, _IN_CACHE = 1 << 22, 1 << 18


def row_chunks(rows: int, width: int, *, cached: torch.device | None = None) -> list[slice]:
    """Slices that cover `rows` rows of `width` elements. cached: the device, where several operations read a chunk."""
    most = _IN_CACHE if cached is not None and cached.type == "cpu" else _AT_ONCE
    step = max(1, min(most, _AT_ONCE) // max(1, width))
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]
