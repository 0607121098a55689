"""NF4: weights in 4 bits, a scale for each 64 of them (Dettmers et al., "QLoRA", 2023), in bitsandbytes' layout.

A weight [o, i] is stored as uint8 [o, i / 2]: two codes a byte, that of the even input in the high half. A code names
one of 16 values, quantiles of a normal distribution; the value times the scale of its block is the weight. A block are
64 consecutive inputs of one output, so that i must be a multiple of 64. The scales, absmax [o, i / 64], are float32, or
8-bit themselves ("double quantisation"): codes of a 256-entry signed dynamic map (Dettmers et al., "8-bit Optimizers
via Block-wise Quantization", 2022), times a float32 scale for each 256 of them, plus one offset.

bitsandbytes keeps the codes as [o * i / 2, 1], and absmax flat: views of these.
"""

import struct
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops.row_chunks import row_chunks

# Inputs that share a scale, and scales that share one.
BLOCK, NESTED_BLOCK = 64, 256
# The values of the 16 codes.
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# As large as a scale must be for its inverse to be finite.
_TINY = 1e-38


def _float32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


def _dynamic_map() -> tuple[float, ...]:
    """The values of the 256 codes of a scale, in ascending order: for each of 7 decades, the middles of equal parts of
    [0.1, 1], twice as many as in the decade below; their negatives, zero and one.

    bitsandbytes has them of `torch.linspace`, whose last bits differ with the CPU's instruction set: these are those of
    CPUs with AVX2 or newer.
    """
    found = [0.0, 1.0]
    for decade in range(7):
        count = 2**decade
        step = _float32(_float32(1.0 - _float32(0.1)) / count)
        # From both ends, a fused multiplication and addition each.
        low = [_float32(_float32(0.1) + step * k) for k in range((count + 1) // 2)]
        high = [_float32(1.0 - step * (count - k)) for k in range((count + 1) // 2, count + 1)]
        edges = low + high
        for a, b in pairwise(edges):
            value = _float32(_float32(10.0 ** (decade - 6)) * _float32(_float32(a + b) / 2))
            found += (value, -value)
    return tuple(sorted(found))


DYNAMIC_MAP = _dynamic_map()


class Nf4(NamedTuple):
    """A weight [o, i] in NF4: the arguments of `nf4_linear` that say it.

    weight uint8 [o, i / 2]; absmax [o, i / 64], float32 with nested_* None, or uint8 with nested_absmax float32
    [ceil(o * i / 64 / 256)] and nested_offset float32 [].
    """

    weight: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None = None
    nested_offset: Tensor | None = None


@torch.no_grad()
def quantise_nf4(weight: Tensor, double: bool = True) -> Nf4:
    """A weight [o, i] of any floating dtype in NF4, computed in float32 on its device. i must be a multiple of 64.

    double: scales in 8 bits. A code is that of the nearest of the 16 values, between two equally near ones the lower.
    Codes and scales are bitsandbytes' to the bit. With `double` their offset, a mean over all scales, is its where the
    sum is taken in the same order (on one kind of device, by one version of torch), and then a scale's code is the one
    that its GPU kernels take; its kernels for CPUs take a neighbour for one scale in 700.

    The engine's kernel for CPUs finds the codes where it was built and takes the dtype: the same bits, many times
    faster than PyTorch's operations.
    """
    if weight.dim() != 2 or weight.shape[1] % BLOCK:
        raise MovaError(f"NF4 takes weights [o, i] with i a multiple of {BLOCK}, got {list(weight.shape)}")
    codes, absmax = (_native if _serves(weight) else _searched)(weight, _middles(VALUES, weight.device))
    if not double:
        return Nf4(codes, absmax)
    offset = absmax.flatten().mean()
    scales = absmax.flatten() - offset
    padded = torch.nn.functional.pad(scales, (0, -len(scales) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    nested = padded.abs().amax(-1)
    found = _nearest(padded, nested.unsqueeze(-1), _middles(DYNAMIC_MAP, weight.device))
    return Nf4(codes, found.flatten()[: len(scales)].view_as(absmax), nested, offset)


def _serves(weight: Tensor) -> bool:
    """Whether the kernel for CPUs can quantise a weight."""
    from mova_kernels.cpu import unavailable

    return weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16) and unavailable() is None


def _native(weight: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    from mova_kernels.cpu.ops import quantise_nf4 as kernel

    return kernel(weight, bounds, _TINY)


def _searched(weight: Tensor, bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [o, i / 2] and the largest magnitude of each block [o, i / 64], by PyTorch's operations."""
    o, i = weight.shape
    codes = torch.empty(o, i // 2, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(o, i // BLOCK, dtype=torch.float32, device=weight.device)
    for rows in row_chunks(o, i, cached=weight.device):
        blocks = weight[rows].float().unflatten(1, (-1, BLOCK))
        absmax[rows] = blocks.abs().amax(-1)
        found = _nearest(blocks, absmax[rows].unsqueeze(-1), bounds).flatten(1)
        codes[rows] = found[:, ::2] * 16 + found[:, 1::2]
    return codes, absmax


def _middles(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Between each two neighbouring values, in float32."""
    of = torch.tensor(values, dtype=torch.float32).to(device)
    return (of[:-1] + of[1:]) / 2


def _nearest(x: Tensor, largest: Tensor, bounds: Tensor) -> Tensor:
    """Codes uint8 of x / largest."""
    scaled = (x * (1.0 / largest.clamp(min=_TINY))).clamp(-1, 1)
    return torch.bucketize(scaled, bounds, out_int32=True).to(torch.uint8)


def dequantise_nf4(
    weight: Tensor, absmax: Tensor, nested_absmax: Tensor | None, nested_offset: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The weight [o, i] in `dtype`: computed in float32 (float64 for scales of it) and rounded once. See `Nf4`."""
    o, i = len(weight), 2 * weight.shape[1]
    scales = _scales(absmax, nested_absmax, nested_offset)
    pairs = torch.tensor([(VALUES[c // 16], VALUES[c % 16]) for c in range(256)], dtype=torch.float32)
    pairs = pairs.to(weight.device, scales.dtype)
    out = torch.empty(o, i, dtype=dtype, device=weight.device)
    for rows in row_chunks(o, i):
        values = torch.nn.functional.embedding(weight[rows].int(), pairs).view(-1, i // BLOCK, BLOCK)
        out[rows] = (values * scales[rows].unsqueeze(-1)).flatten(1)
    return out


def _scales(absmax: Tensor, nested_absmax: Tensor | None, nested_offset: Tensor | None) -> Tensor:
    """Of the blocks [o, i / 64], in floating point."""
    if nested_absmax is None or nested_offset is None:
        return absmax
    decoded = torch.tensor(DYNAMIC_MAP, dtype=torch.float32).to(absmax.device, nested_absmax.dtype).unsqueeze(1)
    values = torch.nn.functional.embedding(absmax.flatten().int(), decoded).flatten()
    each = nested_absmax.repeat_interleave(NESTED_BLOCK)[: len(values)]
    return (values * each + nested_offset).view_as(absmax)
