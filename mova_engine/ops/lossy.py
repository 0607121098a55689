"""Attention in 8 bits: the published maths in PyTorch, adapters to packages, and how far a result is off.

Shapes as in `reference.attention_reference`: q, k, v [b, s, h, e], a softmax over all keys, no mask. grid: tokens of a
clip along (t, h, w), for those that need it.
"""

import importlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import requirements
from mova_engine.ops.attention_impl import adjacent, no_keys

Grid = tuple[int, int, int]
# Tokens that share a scale, of queries and of keys, as SageAttention publishes them.
QUERY_BLOCK, KEY_BLOCK = 128, 64
# Of sparse attention: tokens of a block, and the share of blocks that is left out.
SPARSE_BLOCK, SPARSITY = 128, 0.5
# Of queries for which scores are held at once.
_ROWS = 4 * QUERY_BLOCK
_INT8, _FP8 = 127.0, torch.finfo(torch.float8_e4m3fn).max
_LEAST = 1e-12


def smoothed(k: Tensor) -> Tensor:
    """Keys without their mean over all tokens: every query's scores change by one number, which a softmax does not see,
    and channels that are large for all keys no longer decide the scale (Zhang et al., 2024, SageAttention).
    """
    return (k.float() - k.float().mean(1, keepdim=True)).to(k.dtype)


def quantised_blocks(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """x [b, s, h, e] rounded to int8 with a scale for each `block` tokens of a head: the integers, and the scales
    [b, s, h, 1], float32 both.
    """
    count = x.shape[1]
    padded = F.pad(x.float(), (0, 0, 0, 0, 0, -count % block)).unflatten(1, (-1, block))
    scale = padded.abs().amax((2, 4), keepdim=True).clamp(min=_LEAST) / _INT8
    whole = (padded / scale).round().flatten(1, 2)[:, :count]
    return whole, scale.expand(*padded.shape[:-1], 1).flatten(1, 2)[:, :count]


def int8(q: Tensor, k: Tensor, v: Tensor, grid: Grid | None = None) -> Tensor:
    """`softmax(Q K^T / sqrt(e)) V` with Q and K, smoothed, in int8, V and the weights as they are (Zhang et al., 2024).

    The products of integers are exact: float32 holds sums of 127^2 over 1,040 channels. On every device, and for being
    compared with, not for speed.
    """
    requirements.attention("lossy_attention", q, k, v)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_keys(q)[0]
    (whole_q, scale_q), (whole_k, scale_k) = quantised_blocks(q, QUERY_BLOCK), quantised_blocks(smoothed(k), KEY_BLOCK)
    keys, factor_k, values = whole_k.permute(0, 2, 3, 1), scale_k.permute(0, 2, 3, 1), v.float().transpose(1, 2)
    parts = []
    for rows, scale in zip(whole_q.split(_ROWS, 1), scale_q.split(_ROWS, 1), strict=True):
        scores = rows.transpose(1, 2) @ keys * (scale.transpose(1, 2) * factor_k * q.shape[-1] ** -0.5)
        parts.append((scores.softmax(-1) @ values).transpose(1, 2))
    return torch.cat(parts, 1).to(q.dtype)


def sage(q: Tensor, k: Tensor, v: Tensor, grid: Grid | None = None) -> Tensor:
    """By the package sageattention (Zhang et al., 2024, 2025), which itself takes the kernel for the GPU's
    generation.
    """
    requirements.attention("lossy_attention", q, k, v, requirements.HALVES)
    _check_head("sageattn", q, 128)
    try:
        return _function("sageattention", "sageattn")(*adjacent(q, k, v), tensor_layout="NHD", is_causal=False)
    except ValueError as error:
        raise MovaError(f"sageattention cannot serve here: {error}") from error


def flash3_fp8(q: Tensor, k: Tensor, v: Tensor, grid: Grid | None = None) -> Tensor:
    """By flash-attn 3 in fp8 (Shah et al., 2024), with a scale for each clip and head, keys smoothed."""
    requirements.attention("lossy_attention", q, k, v, requirements.HALVES)
    _check_head("flash-attn 3 in fp8", q, 256)
    (q8, scale_q), (k8, scale_k), (v8, scale_v) = (_fp8(x) for x in (q, smoothed(k), v))
    descales = {"q_descale": scale_q, "k_descale": scale_k, "v_descale": scale_v}
    out = _function("flash_attn_interface", "flash_attn_func")(
        q8, k8, v8, softmax_scale=q.shape[-1] ** -0.5, **descales
    )
    # Early builds hand out the log-sum-exp too. Results of fp8 are in bfloat16.
    return (out[0] if isinstance(out, tuple) else out).to(q.dtype)


def rainfusion(q: Tensor, k: Tensor, v: Tensor, grid: Grid | None = None) -> Tensor:
    """By MindIE-SD: sparse self-attention of a video, in which blocks of 128 tokens attend to the half of all blocks
    that matters most to them by their means, the first frame to all (RainFusion, Chen et al., 2025).
    """
    requirements.attention("lossy_attention", q, k, v, requirements.HALVES)
    if grid is None or math.prod(grid) != q.shape[1] or q.shape != k.shape:
        raise MovaError(f"rainfusion is for self-attention over a grid of tokens; got {grid} and {list(q.shape)}")
    function = _function("mindiesd.layers.flash_attn", "sparse_attention")
    # Clip by clip: it chooses blocks by the first clip of a batch alone.
    parts = [
        function(
            *(x[clip : clip + 1].contiguous() for x in (q, k, v)),
            scale=q.shape[-1] ** -0.5,
            head_num=q.shape[2],
            input_layout="BSND",
            sparse_type="rf_v2",
            txt_len=0,
            block_size=SPARSE_BLOCK,
            latent_shape_q=list(grid),
            latent_shape_k=list(grid),
            sparsity=SPARSITY,
        )
        for clip in range(len(q))
    ]
    return torch.cat(parts)


def _fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in e4m3, and the scales [b, h], float32, that give it back."""
    scale = x.float().abs().amax((1, 3), keepdim=True).clamp(min=_LEAST) / _FP8
    return (x.float() / scale).to(torch.float8_e4m3fn), scale[:, 0, :, 0].contiguous()


def deviation(found: Tensor, exact: Tensor) -> float:
    """How far attention's output [b, s, h, e] is off: the root mean square of the difference over that of the exact
    one, of the clip and head where it is largest; infinite where it is not finite.
    """
    if found.shape != exact.shape:
        return float("inf")
    exact = exact.float()
    difference = (found.float() - exact).square().mean((1, 3))
    share = (difference / exact.square().mean((1, 3)).clamp(min=_LEAST)).sqrt().max()
    return float(share) if bool(share.isfinite()) else float("inf")


def _function(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _check_head(what: str, q: Tensor, most: int) -> None:
    if q.shape[-1] > most or q.shape[-1] % 8:
        raise MovaError(
            f"lossy_attention: {what} takes head dims that are multiples of 8 up to {most}, got {q.shape[-1]}"
        )
