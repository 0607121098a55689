"""Merge of partial attentions by their log-sum-exp, in Triton; forward only."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.rows import DTYPES
from mova_kernels.triton_rows import grid_of, launch, opaque, tiles_of


@triton.jit
def merge_lse_fwd_kernel(
    outs, lses, out, lse, n, b, s, h, e, LOOP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Every p-th row tile of one head of a sample: `lse = logsumexp_i(lse_i)`, `out = sum_i exp(lse_i - lse) out_i`.

    Outputs are stored as [b, s, h, e], log-sum-exps as [b, h, s].
    """
    sample, rows = tl.program_id(1).to(tl.int64), tl.arange(0, ROWS)
    batch, head = sample // h, sample % h
    shard = tl.cast(b, tl.int64) * s * h
    begin, end, step = tiles_of(s, ROWS, LOOP)
    for tile in range(begin, end, step):
        first = tl.cast(tile, tl.int64) * ROWS
        inside = first + rows < s
        place = sample * s + first
        largest = tl.full((ROWS,), float("-inf"), tl.float32)
        for i in range(n):
            largest = tl.maximum(largest, tl.load(lses + i * shard + place + rows, inside, float("-inf")))
        # Where every shard is empty nothing may be subtracted: -inf - -inf is NaN.
        pivot = tl.where(largest == float("-inf"), 0.0, largest)
        weights = tl.zeros((ROWS,), tl.float32)
        for i in range(n):
            weights += tl.exp(tl.load(lses + i * shard + place + rows, inside, float("-inf")) - pivot)
        merged = pivot + tl.log(weights)
        tl.store(lse + place + rows, merged, inside)
        pivot = tl.where(weights == 0.0, 0.0, merged)
        row = ((batch * s + first) * h + head) * e
        for start in range(0, e, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < e)[None, :]
            value = tl.zeros((ROWS, COLS), tl.float32)
            for i in range(n):
                weight = tl.exp(tl.load(lses + i * shard + place + rows, inside, float("-inf")) - pivot)[:, None]
                part = outs + i * shard * e + row + rows[:, None] * (h * e) + cols[None, :]
                part = tl.load(part, mask, 0.0).to(tl.float32)
                # 0 * NaN is NaN: what an empty shard holds must not matter.
                value += tl.where(weight > 0.0, weight * part, 0.0)
            tl.store(out + row + rows[:, None] * (h * e) + cols[None, :], value, mask)


@opaque("merge_lse")
def merge_lse_fwd(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """(out [b, s, h, e], lse [b, h, s])."""
    n, b, s, h, e = outs.shape
    out, lse = outs.new_empty(outs.shape[1:]), lses.new_empty(lses.shape[1:])
    grid = grid_of(merge_lse_fwd_kernel, outs, b * h, s)
    launch(merge_lse_fwd_kernel, grid, outs.contiguous(), lses.contiguous(), out, lse, n, b, s, h, e)
    return out, lse


def merge_lse(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Combine attentions over disjoint sets of keys: outs [n, b, s, h, e] in float32, bfloat16 or float16 and lses
    [n, b, h, s] in float32 -> ([b, s, h, e], [b, h, s]).

    A shard without keys has lse = -inf and weight 0. Forward only: asking for a gradient raises. Raises ValueError or
    TypeError for inputs of other shapes, dtypes or devices.
    """
    if outs.dim() != 5 or lses.shape != (*outs.shape[:2], outs.shape[3], outs.shape[2]):
        shapes = f"{list(outs.shape)} and {list(lses.shape)}"
        raise ValueError(f"merge_lse: outs must be [n, b, s, h, e] and lses [n, b, h, s], got {shapes}")
    if outs.dtype not in DTYPES or lses.dtype != torch.float32:
        known = ", ".join(map(str, DTYPES))
        raise TypeError(f"merge_lse: outs is {outs.dtype}, of {known}; lses is {lses.dtype} and must be float32")
    if outs.device != lses.device:
        raise ValueError(f"merge_lse: outs is on {outs.device}, lses on {lses.device}")
    return merge_lse_fwd(outs, lses)
