"""Linear layers of frozen weights held in NF4, int8 and GGUF blocks: what checks inputs, and which kernels compute."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.backend import Backend
from mova_engine.errors import MovaError
from mova_engine.ops import requirements
from mova_engine.ops.dequantised_linear import Dequantise, Product, dequantised_linear
from mova_engine.ops.gguf import dequantise_gguf, gguf_kind
from mova_engine.ops.int8 import dequantise_int8, quantise_int8
from mova_engine.ops.nf4 import BLOCK, DYNAMIC_MAP, NESTED_BLOCK, VALUES, dequantise_nf4
from mova_engine.ops.row_chunks import product_chunks

# cuBLASLt's products of int8 numbers take sizes that are multiples of this, and no fewer rows.
_MULTIPLE, _LEAST_ROWS = 8, 17


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


def nf4_checked(
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
    return nf4_checked(dequantise_nf4, x, weight, absmax, nested_absmax, nested_offset, bias, lora_a, lora_b, scale)


def _native(
    weight: Tensor, absmax: Tensor, nested_absmax: Tensor | None, nested_offset: Tensor | None, dtype: torch.dtype
) -> Tensor:
    from mova_kernels.cpu.ops import dequantise_nf4 as dequantise

    values, scale_values = torch.tensor(VALUES), torch.tensor(DYNAMIC_MAP)
    return dequantise(weight, absmax, nested_absmax, nested_offset, values, scale_values, dtype)


def nf4_native(
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
    """`nf4_linear` with the weight looked up by the engine's kernel for CPUs. float32 and bfloat16."""
    return nf4_checked(_native, x, weight, absmax, nested_absmax, nested_offset, bias, lora_a, lora_b, scale)


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


def _int8(
    product: Product,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    scale: float,
) -> Tensor:
    """`int8_linear` by a product of rows, its inputs looked at. The gradient of x is by the dequantised weight."""
    name = "int8_linear"
    _matrix(name, weight, torch.int8, "[o, i]")
    _expect(name, "weight_scale", weight_scale, torch.float32, weight.shape[:1])
    shape = weight.shape[0], weight.shape[1]
    _checked(name, x, shape, bias, lora_a, lora_b, weight=weight, weight_scale=weight_scale)
    return dequantised_linear(dequantise_int8, (weight, weight_scale), x, bias, lora_a, lora_b, scale, product)


def _rounded_product(rows: Tensor, bias: Tensor | None, weight: Tensor, weight_scale: Tensor) -> Tensor:
    values = torch.empty_like(rows)
    for part in product_chunks(*rows.shape):
        values[part] = dequantise_int8(*quantise_int8(rows[part]), rows.dtype)
    return F.linear(values, dequantise_int8(weight, weight_scale, rows.dtype), bias)


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
    return _int8(_rounded_product, x, weight, weight_scale, bias, lora_a, lora_b, scale)


def _integer_product(rows: Tensor, bias: Tensor | None, weight: Tensor, weight_scale: Tensor) -> Tensor:
    """The sums are exact; they are scaled, and rounded once to the dtype of the rows. Some rows at a time, since on the
    way they are wider: quantising takes 12 bytes for each of their numbers.
    """
    out = torch.empty(len(rows), len(weight), dtype=rows.dtype, device=rows.device)
    for part in product_chunks(len(rows), max(weight.shape)):
        values, scale = quantise_int8(rows[part])
        if len(values) < _LEAST_ROWS:
            values = F.pad(values, (0, 0, 0, _LEAST_ROWS - len(values)))
        sums = torch._int_mm(values, weight.t())[: len(scale)]
        scaled = (sums * scale.unsqueeze(1)).mul_(weight_scale)
        out[part] = scaled if bias is None else scaled.add_(bias)
    return out


def int8_int_mm(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """`int8_linear` by torch's product of int8 numbers: cuBLASLt's on CUDA, oneDNN's on a CPU.

    The weight's sizes must be multiples of 8.
    """
    if any(size % _MULTIPLE for size in weight.shape):
        raise MovaError(
            f"int8_linear: the weight's sizes must be multiples of {_MULTIPLE}, got {list(weight.shape)}; "
            "keep this layer in bfloat16"
        )
    return _int8(_integer_product, x, weight, weight_scale, bias, lora_a, lora_b, scale)


def _npu_product(rows: Tensor, bias: Tensor | None, weight: Tensor, weight_scale: Tensor) -> Tensor:
    from mova_kernels.npu.linear import WIDEST_ROW, int8_product, quantise_rows

    if 0 in (len(rows), len(weight)):
        return rows.new_zeros(len(rows), len(weight))
    if rows.shape[1] <= WIDEST_ROW:
        return int8_product(*quantise_rows(rows), weight, weight_scale, bias, rows.dtype)
    out = torch.empty(len(rows), len(weight), dtype=rows.dtype, device=rows.device)
    for part in product_chunks(len(rows), max(weight.shape)):
        out[part] = int8_product(*quantise_int8(rows[part]), weight, weight_scale, bias, rows.dtype)
    return out


def int8_npu(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """`int8_linear` by torch_npu's product of int8 numbers. bfloat16 and float16.

    Rows wider than 11264, which its quantisation does not take, are quantised by PyTorch's operations.
    """
    requirements.same_dtype("int8_linear", requirements.HALVES, x=x)
    return _int8(_npu_product, x, weight, weight_scale, bias, lora_a, lora_b, scale)


def int_mm_check(backend: Backend) -> str | None:
    """Whether this torch and device multiply int8 numbers, and rightly."""
    absent = backend.unavailable()
    if absent is not None:
        return absent
    # Sums of extremes: on CPUs without VNNI oneDNN adds pairs of products in 16 bits, which they leave.
    most = torch.full((32, 32), 127, dtype=torch.int8, device=backend.device())
    try:
        exact = all(bool((torch._int_mm(most, w.t()) == 32 * 127 * int(w[0, 0])).all()) for w in (most, -most))
    except RuntimeError as error:
        return f"torch {torch.__version__} has no product of int8 numbers here: {str(error).splitlines()[0]}"
    return None if exact else f"torch {torch.__version__}'s product of int8 numbers is wrong here: sums leave 16 bits"
