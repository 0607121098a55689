"""Linear layers of frozen weights held in NF4, int8 and GGUF blocks: what checks inputs, and which kernels compute."""

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import requirements
from mova_engine.ops.dequantised_linear import Dequantise, dequantised_linear
from mova_engine.ops.gguf import dequantise_gguf, gguf_kind
from mova_engine.ops.int8 import dequantise_int8, quantise_int8
from mova_engine.ops.nf4 import BLOCK, NESTED_BLOCK, dequantise_nf4


def _checked(
    operator: str,
    x: Tensor,
    shape: tuple[int, int],
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    **stored: Tensor | None,
) -> None:
    """What all have in common. shape: [o, i] of the weight. stored: on x's device."""
    o, i = shape
    if x.dim() < 2 or x.shape[-1] != i:
        raise MovaError(f"{operator}: x must be [b, s, {i}] for a weight of {[o, i]}, got {list(x.shape)}")
    requirements.same_device(operator, x=x, **stored, bias=bias)
    requirements.same_dtype(operator, requirements.FLOATS, x=x, bias=bias)
    if bias is not None and bias.shape != (o,):
        raise MovaError(f"{operator}: bias must be {[o]}, got {list(bias.shape)}")
    if (lora_a is None) != (lora_b is None):
        raise MovaError(f"{operator}: lora_a and lora_b go together")
    if lora_a is not None and lora_b is not None:
        requirements.adapter(operator, x, shape, lora_a, lora_b)


def _expect(operator: str, name: str, x: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if x is None or x.dtype != dtype or x.shape != shape:
        found = "None" if x is None else f"{list(x.shape)} {x.dtype}"
        raise MovaError(f"{operator}: {name} must be {list(shape)} {dtype}, got {found}")


def _matrix(operator: str, weight: Tensor, dtype: torch.dtype, what: str) -> None:
    if weight.dim() != 2 or weight.dtype != dtype:
        raise MovaError(f"{operator}: weight must be {what} {dtype}, got {list(weight.shape)} {weight.dtype}")


def _nf4(
    dequantise: Dequantise,
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    scale: float,
) -> Tensor:
    """`nf4_linear` by a function that dequantises, its inputs looked at."""
    name = "nf4_linear"
    _matrix(name, weight, torch.uint8, "[o, i / 2]")
    o, i = len(weight), 2 * weight.shape[1]
    if i % BLOCK:
        raise MovaError(
            f"{name}: the weight's inputs must be a multiple of {BLOCK}, got {[o, i]}; keep this layer wide"
        )
    nested = absmax.dtype == torch.uint8
    _expect(name, "absmax", absmax, torch.uint8 if nested else torch.float32, (o, i // BLOCK))
    if nested:
        _expect(name, "nested_absmax", nested_absmax, torch.float32, (-(-absmax.numel() // NESTED_BLOCK),))
        _expect(name, "nested_offset", nested_offset, torch.float32, ())
    elif nested_absmax is not None or nested_offset is not None:
        raise MovaError(f"{name}: nested_absmax and nested_offset belong to an absmax in uint8, got {absmax.dtype}")
    stored = {"weight": weight, "absmax": absmax, "nested_absmax": nested_absmax, "nested_offset": nested_offset}
    _checked(name, x, (o, i), bias, lora_a, lora_b, **stored)
    return dequantised_linear(dequantise, tuple(stored.values()), x, bias, lora_a, lora_b, scale)


def nf4_dequantise(
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
    """`nf4_linear` with the weight looked up by PyTorch's operations."""
    return _nf4(dequantise_nf4, x, weight, absmax, nested_absmax, nested_offset, bias, lora_a, lora_b, scale)


def gguf_dequantise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    kind: str,
    scale: float,
) -> Tensor:
    """`gguf_linear` with the weight decoded by PyTorch's operations."""
    name, of = "gguf_linear", gguf_kind(kind)
    _matrix(name, weight, torch.uint8, "[o, bytes of a row]")
    if weight.shape[1] % of.size:
        raise MovaError(f"{name}: weight must have rows of {kind} blocks of {of.size} bytes, got {list(weight.shape)}")
    shape = len(weight), weight.shape[1] // of.size * of.values
    _checked(name, x, shape, bias, lora_a, lora_b, weight=weight)
    return dequantised_linear(dequantise_gguf, (weight, kind), x, bias, lora_a, lora_b, scale)


def _check_int8(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, lora_a: Tensor | None, lora_b: Tensor | None
) -> None:
    name = "int8_linear"
    _matrix(name, weight, torch.int8, "[o, i]")
    _expect(name, "weight_scale", weight_scale, torch.float32, weight.shape[:1])
    shape = weight.shape[0], weight.shape[1]
    _checked(name, x, shape, bias, lora_a, lora_b, weight=weight, weight_scale=weight_scale)


def _quantised(rows: Tensor) -> Tensor:
    return dequantise_int8(*quantise_int8(rows), rows.dtype)


def int8_dequantise(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """`int8_linear` where there is no product of int8 numbers: quantised rows and weight in x's dtype."""
    _check_int8(x, weight, weight_scale, bias, lora_a, lora_b)
    stored = weight, weight_scale
    return dequantised_linear(dequantise_int8, stored, x, bias, lora_a, lora_b, scale, _quantised)
