"""References of linear layers whose frozen weight is quantised, with a low-rank adapter or without.

`x W^T + b + scale * (x A^T) B^T`, W [o, i] being the weight that the stored numbers stand for, rounded once to x's
dtype. x [b, s, i]; bias [o] or None; lora_a [r, i] and lora_b [o, r], or both None. The weight has no gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.ops.gguf import dequantise_gguf
from mova_engine.ops.int8 import dequantise_int8, quantise_int8
from mova_engine.ops.nf4 import dequantise_nf4
from mova_engine.ops.reference import adapted, up


def nf4_linear_reference(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """A linear layer whose weight is held in NF4 (Dettmers et al., 2023).

    weight uint8 [o, i / 2] and absmax [o, i / 64]: float32 with nested_* None, or uint8 with nested_absmax float32
    [ceil(o * i / 64 / 256)] and nested_offset float32 []: see `ops.nf4`.
    """
    wide = dequantise_nf4(weight, absmax, nested_absmax, nested_offset, x.dtype)
    return adapted(F.linear(x, wide, bias), x, lora_a, lora_b, scale)


def gguf_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    kind: str,
    scale: float,
) -> Tensor:
    """A linear layer whose weight is held in the blocks of a GGUF file: uint8 [o, bytes of a row].

    kind: "Q8_0", "Q4_K", ...: see `ops.gguf`.
    """
    return adapted(F.linear(x, dequantise_gguf(weight, kind, x.dtype), bias), x, lora_a, lora_b, scale)


class _Int8Product(torch.autograd.Function):
    """x W^T with x quantised in rows; dx = g W with W in x's dtype, as if quantisation had derivative one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, weight_scale)
        ctx.dtype, wide = x.dtype, up(x).dtype
        values, scale = quantise_int8(x)
        return values.to(wide) @ weight.to(wide).T * scale.to(wide).unsqueeze(-1) * weight_scale.to(wide)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, weight_scale = ctx.saved_tensors
        return (g.to(ctx.dtype) @ dequantise_int8(weight, weight_scale, ctx.dtype)), None, None


def int8_linear_reference(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """A linear layer whose weight is held in int8, its inputs quantised in rows as they come (W8A8, dynamic).

    `q(x) (weight * weight_scale)^T + b + scale * (x A^T) B^T`, q being `quantise_int8`. weight int8 [o, i],
    weight_scale [o] float32. The gradient of x takes q's derivative for one, and the weight in x's dtype: what arrives
    is not quantised (W8A16). The adapter is given x itself.
    """
    y = _Int8Product.apply(x, weight, weight_scale)
    y = (y if bias is None else y + bias.to(y.dtype)).to(x.dtype)
    return adapted(y, x, lora_a, lora_b, scale)


class _QuantisedRows(torch.autograd.Function):
    """x [.., i] as quantisation leaves it; its gradient as it comes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return dequantise_int8(*quantise_int8(x.flatten(0, -2)), x.dtype).view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


def int8_linear_rounded(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """`int8_linear_reference` with quantised inputs and weight each rounded to x's dtype before their product: what
    devices without a product of int8 numbers make.
    """
    y = F.linear(_QuantisedRows.apply(x), dequantise_int8(weight, weight_scale, x.dtype), bias)
    return adapted(y, x, lora_a, lora_b, scale)


INT8_LINEAR_ROUNDED = (int8_linear_rounded,)
