"""Weights in the block formats of GGUF files, decoded: what ggml's documentation calls Q8_0, Q4_K and so on.

A weight [o, i] is stored as uint8 [o, bytes of a row], as the file has it: blocks of 32 or 256 consecutive inputs,
each with float16 scales of its own (little-endian). In a K format a block of 256 has parts of 16 or 32 values, whose
scales are small integers times those of the block. A value is `scale * integer`, or `scale * integer - minimum`; all is
computed in float32, as ggml does it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mova_engine.errors import MovaError, suggest
from mova_engine.ops.row_chunks import row_chunks


class GgufKind(NamedTuple):
    """A block format. values: of a block. size: its bytes. decode: blocks uint8 [n, size] -> float32 [n, values].
    scales: first bytes of the float16 numbers in a block.
    """

    values: int
    size: int
    decode: Callable[[Tensor], Tensor]
    scales: tuple[int, ...]


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 number at byte `at` of each block, [n, 1] float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _fields(x: Tensor, width: int, count: int) -> Tensor:
    """Bit fields of `width` bits, the lowest first: x uint8 [n, g, m] -> int32 [n, g * count, m].

    Of each group of m bytes all lowest fields come first, then all second ones.
    """
    shifts = torch.arange(0, width * count, width, device=x.device, dtype=torch.int32)
    fields = x.unsqueeze(2).int() >> shifts.view(1, 1, -1, 1)
    return (fields & (2**width - 1)).flatten(1, 2)


def _signed(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int8).float()


def _q8_0(blocks: Tensor) -> Tensor:
    return _signed(blocks[:, 2:]) * _half(blocks, 0)


def _nibbles(blocks: Tensor, at: int) -> Tensor:
    """The 32 low parts [n, 32] from byte `at` on."""
    return _fields(blocks[:, None, at : at + 16], 4, 2).flatten(1)


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """32 bits of 4 bytes, times 16."""
    return _fields(blocks[:, at : at + 4].unsqueeze(2), 1, 8).flatten(1) * 16


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks, 2) - 8).float()


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks, 4).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks, 6) + _fifth_bits(blocks, 2) - 16).float()


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks, 8) + _fifth_bits(blocks, 4)).float() + _half(blocks, 2)


def _parts(scale: Tensor, values: Tensor, minimum: Tensor | None = None) -> Tensor:
    """`scale * values - minimum` of parts: scale and minimum [n, parts], values [n, 256]."""
    product = scale.unsqueeze(2) * values.reshape(*scale.shape, -1).float()
    return (product if minimum is None else product - minimum.unsqueeze(2)).flatten(1)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, values = blocks[:, :16].int(), _fields(blocks[:, 16:80].unflatten(1, (2, 32)), 2, 4)
    scale, minimum = _half(blocks, 80) * (scales & 15).float(), _half(blocks, 82) * (scales >> 4).float()
    return _parts(scale, values, minimum)


def _q3_k(blocks: Tensor) -> Tensor:
    # A clear bit of the mask stands for -4.
    high = _fields(blocks[:, None, :32], 1, 8)
    values = _fields(blocks[:, 32:96].unflatten(1, (2, 32)), 2, 4) + 4 * high - 4
    low, top = _fields(blocks[:, None, 96:104], 4, 2).flatten(1), _fields(blocks[:, None, 104:108], 2, 4).flatten(1)
    return _parts(_half(blocks, 108) * (low + 16 * top - 32).float(), values)


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minimums of 6 bits each, from 12 bytes. Of the first four each, the low 6 bits of a byte;
    of the last four, the low 4 bits are in the third group of bytes and the high 2 in the others' top bits.
    """
    first, second, third = packed.int().unflatten(1, (3, 4)).unbind(1)
    scale = torch.cat((first & 63, (third & 15) + (first >> 6) * 16), 1)
    minimum = torch.cat((second & 63, (third >> 4) + (second >> 6) * 16), 1)
    return scale.float(), minimum.float()


def _q4_k(blocks: Tensor) -> Tensor:
    scale, minimum = _six_bits(blocks[:, 4:16])
    values = _fields(blocks[:, 16:].unflatten(1, (4, 32)), 4, 2)
    return _parts(_half(blocks, 0) * scale, values, _half(blocks, 2) * minimum)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, minimum = _six_bits(blocks[:, 4:16])
    values = _fields(blocks[:, 48:].unflatten(1, (4, 32)), 4, 2) + 16 * _fields(blocks[:, None, 16:48], 1, 8)
    return _parts(_half(blocks, 0) * scale, values, _half(blocks, 2) * minimum)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, :128].unflatten(1, (2, 64)), 4, 2).flatten(1)
    high = _fields(blocks[:, 128:192].unflatten(1, (2, 32)), 2, 4).flatten(1)
    return _parts(_half(blocks, 208) * _signed(blocks[:, 192:208]), low + 16 * high - 32)


# By ggml's names.
GGUF_KINDS = {
    "Q8_0": GgufKind(32, 34, _q8_0, (0,)),
    "Q5_0": GgufKind(32, 22, _q5_0, (0,)),
    "Q5_1": GgufKind(32, 24, _q5_1, (0, 2)),
    "Q4_0": GgufKind(32, 18, _q4_0, (0,)),
    "Q4_1": GgufKind(32, 20, _q4_1, (0, 2)),
    "Q2_K": GgufKind(256, 84, _q2_k, (80, 82)),
    "Q3_K": GgufKind(256, 110, _q3_k, (108,)),
    "Q4_K": GgufKind(256, 144, _q4_k, (0, 2)),
    "Q5_K": GgufKind(256, 176, _q5_k, (0, 2)),
    "Q6_K": GgufKind(256, 210, _q6_k, (208,)),
}


def gguf_kind(name: str) -> GgufKind:
    """A block format by ggml's name; MovaError for one that is not known."""
    if name not in GGUF_KINDS:
        raise MovaError(f"unknown GGUF format '{name}'.{suggest(name, GGUF_KINDS)} Known: {', '.join(GGUF_KINDS)}")
    return GGUF_KINDS[name]


def dequantise_gguf(weight: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """The weight [o, i] in `dtype` of uint8 [o, bytes of a row]: ggml's float32 values, rounded once.

    MovaError where the format is not known or a row is no whole number of its blocks.
    """
    of = gguf_kind(kind)
    if weight.dim() != 2 or weight.shape[1] % of.size:
        raise MovaError(f"{kind} takes rows of blocks of {of.size} bytes, got {list(weight.shape)}")
    o, blocks = len(weight), weight.shape[1] // of.size
    out = torch.empty(o, blocks * of.values, dtype=dtype, device=weight.device)
    for rows in row_chunks(out.shape[0], out.shape[1]):
        out[rows] = of.decode(weight[rows].reshape(-1, of.size)).view(-1, out.shape[1])
    return out
