"""The formats in which a linear layer holds its frozen weight: which tensors that are, and which operator computes.

A format is one row here. Everything that holds, writes, reads or streams quantised weights goes by these rows; the
layouts of files are in `checkpoints.quantised_files`, and which layers take a format is in `memory.quantised`.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import OpTable
from mova_engine.ops.gguf import dequantise_gguf, gguf_kind
from mova_engine.ops.int8 import dequantise_int8, quantise_int8
from mova_engine.ops.nf4 import BLOCK, NESTED_BLOCK, dequantise_nf4, quantise_nf4
from mova_engine.ops.reference import quantize_rows_reference
from mova_engine.ops.row_chunks import row_chunks

# A tensor's dtype and shape.
Spec = tuple[torch.dtype, tuple[int, ...]]
Held = Mapping[str, Tensor]
# What a layer adds to its product: bias, A, B, and the adapter's scale.
Extras = tuple[Tensor | None, Tensor | None, Tensor | None, float]

WEIGHT, SCALE = "weight", "weight_scale"
ABSMAX, NESTED_ABSMAX, NESTED_OFFSET = "weight_absmax", "weight_nested_absmax", "weight_nested_offset"


@dataclass(frozen=True)
class WeightFormat:
    """One format of a weight [o, i].

    multiples: o and i must be multiples of these. tensors: from (o, i) to what is held, by its name in the layer, the
    weight first. product: the operator's call, from the table, what is held, x [b, s, i] and the extras.
    dequantise: from what is held to the weight float32 [o, i]. quantise: from a weight [o, i] of any floating dtype to
    what is held; None: the format is read only. dtypes: that activations may have; None: any.
    """

    name: str
    multiples: tuple[int, int]
    tensors: Callable[[int, int], dict[str, Spec]]
    product: Callable[[OpTable, Held, Tensor, Extras], Tensor]
    dequantise: Callable[[Held], Tensor]
    quantise: Callable[[Tensor], dict[str, Tensor]] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None

    def fits(self, o: int, i: int) -> bool:
        """Whether a weight [o, i] can be held so."""
        return o % self.multiples[0] == 0 and i % self.multiples[1] == 0

    def bytes(self, o: int, i: int) -> int:
        """Of all that is held of a weight [o, i]."""
        return sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in self.tensors(o, i).values())

    def absent(self, o: int, i: int) -> dict[str, Tensor]:
        """What is held of a weight [o, i], on the meta device."""
        specs = self.tensors(o, i)
        return {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape) in specs.items()}


def _rows(dtype: torch.dtype, o: int, i: int) -> dict[str, Spec]:
    return {WEIGHT: (dtype, (o, i)), SCALE: (torch.float32, (o,))}


def _quantised_rows(quantise: Callable[[Tensor], tuple[Tensor, Tensor]], weight: Tensor) -> dict[str, Tensor]:
    """A weight [o, i] with a scale for each row, a few rows at a time: in a CPU's caches, faster than whole."""
    chunks = row_chunks(*weight.shape, cached=weight.device)
    values, scales = zip(*(quantise(weight[rows]) for rows in chunks), strict=True)
    return {WEIGHT: torch.cat(values), SCALE: torch.cat([each.flatten() for each in scales])}


def _fp8_product(ops: OpTable, held: Held, x: Tensor, extras: Extras) -> Tensor:
    *more, scale = extras
    return ops.fp8_linear(x, held[WEIGHT], held[SCALE], *more, scale=scale)


def _int8_product(ops: OpTable, held: Held, x: Tensor, extras: Extras) -> Tensor:
    *more, scale = extras
    return ops.int8_linear(x, held[WEIGHT], held[SCALE], *more, scale=scale)


def _nf4_tensors(double: bool, o: int, i: int) -> dict[str, Spec]:
    blocks = o * i // BLOCK
    kind = torch.uint8 if double else torch.float32
    specs: dict[str, Spec] = {WEIGHT: (torch.uint8, (o, i // 2)), ABSMAX: (kind, (o, i // BLOCK))}
    if double:
        specs |= {NESTED_ABSMAX: (torch.float32, (-(-blocks // NESTED_BLOCK),)), NESTED_OFFSET: (torch.float32, ())}
    return specs


def _nf4(double: bool, weight: Tensor) -> dict[str, Tensor]:
    found = zip((WEIGHT, ABSMAX, NESTED_ABSMAX, NESTED_OFFSET), quantise_nf4(weight, double), strict=True)
    return {name: tensor for name, tensor in found if tensor is not None}


def _nf4_parts(held: Held) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    return held[WEIGHT], held[ABSMAX], held.get(NESTED_ABSMAX), held.get(NESTED_OFFSET)


def _nf4_product(ops: OpTable, held: Held, x: Tensor, extras: Extras) -> Tensor:
    *more, scale = extras
    return ops.nf4_linear(x, *_nf4_parts(held), *more, scale=scale)


def _nf4_format(name: str, double: bool) -> WeightFormat:
    return WeightFormat(
        name,
        (1, BLOCK),
        partial(_nf4_tensors, double),
        _nf4_product,
        lambda held: dequantise_nf4(*_nf4_parts(held), torch.float32),
        partial(_nf4, double),
    )


FP8 = WeightFormat(
    "fp8",
    # The fp8 products of GPUs take sizes that are multiples of 16.
    (16, 16),
    partial(_rows, torch.float8_e4m3fn),
    _fp8_product,
    lambda held: held[WEIGHT].float() * held[SCALE].unsqueeze(1),
    partial(_quantised_rows, quantize_rows_reference),
    (torch.bfloat16,),
)
INT8 = WeightFormat(
    "int8",
    (1, 1),
    partial(_rows, torch.int8),
    _int8_product,
    lambda held: dequantise_int8(held[WEIGHT], held[SCALE], torch.float32),
    partial(_quantised_rows, quantise_int8),
)
NF4 = _nf4_format("nf4", double=True)
# Scales in float32: what bitsandbytes writes without double quantisation. Never written here.
NF4_PLAIN_SCALES = _nf4_format("nf4 with float32 scales", double=False)


def _gguf_product(kind: str, ops: OpTable, held: Held, x: Tensor, extras: Extras) -> Tensor:
    *more, scale = extras
    return ops.gguf_linear(x, held[WEIGHT], *more, kind=kind, scale=scale)


@cache
def gguf_format(kind: str) -> WeightFormat:
    """The blocks of GGUF files that ggml calls `kind`, as "Q4_K": read only. MovaError for an unknown one."""
    block = gguf_kind(kind)
    return WeightFormat(
        kind,
        (1, block.values),
        lambda o, i: {WEIGHT: (torch.uint8, (o, i // block.values * block.size))},
        partial(_gguf_product, kind),
        lambda held: dequantise_gguf(held[WEIGHT], kind, torch.float32),
    )


# The formats that weights are brought into, by the names that settings have.
FORMATS = {each.name: each for each in (FP8, INT8, NF4)}


def computes_in(name: str, dtype: torch.dtype) -> bool:
    """Whether activations may have a dtype beside weights in the named format. Formats that are read only take any."""
    takes = FORMATS[name].dtypes if name in FORMATS else None
    return takes is None or dtype in takes


def known_format(name: str) -> WeightFormat:
    """The format of a setting. MovaError for an unknown name."""
    if name not in FORMATS:
        raise MovaError(f"unknown format of weights '{name}'. Known: {', '.join(FORMATS)}")
    return FORMATS[name]
