"""Products in fp8 through `torch._scaled_mm`: a frozen weight held in float8_e4m3fn, one scale for each of its rows.

Activations, and in the backward their gradients, are quantised in rows as they come. The weight is never merged with an
adapter, and of other precision than fp8 there is no copy of it. The backward's product needs the weight transposed in
memory, which costs a passing copy of its bytes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mova_engine.backend import Backend
from mova_engine.errors import MovaError
from mova_engine.ops import requirements
from mova_engine.ops.linear_impl import adapter_gradients
from mova_engine.ops.reference import quantize_rows_reference

Quantize = Callable[..., tuple[Tensor, Tensor]]
_FP8 = torch.float8_e4m3fn
# cuBLASLt's fp8 products take sizes that are multiples of this.
MULTIPLE = 16


def scaled_mm_check(backend: Backend) -> str | None:
    """Whether this torch and device multiply fp8 with a scale for each row."""
    absent = backend.unavailable()
    if absent is not None:
        return absent
    try:
        one = torch.ones(MULTIPLE, MULTIPLE, device=backend.device()).to(_FP8)
        scale = torch.ones(MULTIPLE, 1, device=backend.device())
        torch._scaled_mm(one, one.t(), scale, scale.t(), out_dtype=torch.bfloat16)
    except RuntimeError as error:
        return f"torch {torch.__version__} has no fp8 product here: {str(error).splitlines()[0]}"
    return None


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        quantize: Quantize,
        x: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scale: float,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        out = scaled_product(*quantize(rows), weight.t(), weight_scale, bias, x.dtype)
        ctx.save_for_backward(weight, weight_scale)
        ctx.quantize, ctx.scale, ctx.shape, ctx.adapter = quantize, scale, x.shape, None
        if lora_a is not None and lora_b is not None:
            u = rows @ lora_a.t()
            out.addmm_(u, lora_b.t(), alpha=scale)
            ctx.save_for_backward(weight, weight_scale, x, lora_a, lora_b, u)
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, weight_scale, *adapter = ctx.saved_tensors
        g = g.flatten(0, -2)
        dx = da = db = None
        if ctx.needs_input_grad[1]:
            transposed = weight.t().contiguous().t()
            ones = torch.ones_like(weight_scale[:1]).expand(weight.shape[1])
            values, scale = ctx.quantize(g, weight_scale)
            dx = scaled_product(values, scale, transposed, ones, None, g.dtype)
        if adapter:
            x, lora_a, lora_b, u = adapter
            dx, da, db = adapter_gradients(ctx, x.flatten(0, -2), g, lora_a, lora_b, u, dx)
        dx = None if dx is None else dx.view(ctx.shape)
        return None, dx, None, None, g.sum(0) if ctx.needs_input_grad[4] else None, da, db, None


def scaled_product(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """(values * scale) (weight * weight_scale) + bias; values [n, k], weight [k, m] with adjacent rows."""
    if values.numel() == 0:
        return torch.zeros(len(values), weight.shape[1], dtype=dtype, device=values.device)
    columns = weight_scale.contiguous().unsqueeze(0)
    return torch._scaled_mm(values, weight, scale, columns, bias=bias, out_dtype=dtype)


def checked(
    quantize: Quantize,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    scale: float,
) -> Tensor:
    """`fp8_linear` with rows quantised by `quantize`, its inputs looked at."""
    requirements.linear("fp8_linear", x, weight, bias)
    requirements.same_dtype("fp8_linear", (torch.bfloat16,), x=x, bias=bias)
    requirements.same_device("fp8_linear", x=x, weight_scale=weight_scale)
    if weight.dtype != _FP8 or weight_scale.shape != weight.shape[:1] or weight_scale.dtype != torch.float32:
        found = f"{weight.dtype}, {list(weight_scale.shape)} {weight_scale.dtype}"
        raise MovaError(
            f"fp8_linear: weight must be float8_e4m3fn and weight_scale a float32 scale for each row, got {found}"
        )
    if any(size % MULTIPLE for size in weight.shape):
        raise MovaError(
            f"fp8_linear: the weight's sizes must be multiples of {MULTIPLE}, got {list(weight.shape)}; "
            "keep this layer in bfloat16"
        )
    if (lora_a is None) != (lora_b is None):
        raise MovaError("fp8_linear: lora_a and lora_b go together")
    if lora_a is not None and lora_b is not None:
        requirements.adapter("fp8_linear", x, weight.shape, lora_a, lora_b)
    return _Fp8Linear.apply(quantize, x, weight, weight_scale, bias, lora_a, lora_b, scale)


def scaled_mm(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """`fp8_linear` by torch's fp8 product, rows quantised by torch's own operations. x bfloat16."""
    return checked(quantize_rows_reference, x, weight, weight_scale, bias, lora_a, lora_b, scale)


def scaled_mm_triton(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """`fp8_linear` by torch's fp8 product, rows quantised by one Triton kernel. x bfloat16."""
    from mova_kernels.quantize_rows.triton import quantize_rows

    return checked(quantize_rows, x, weight, weight_scale, bias, lora_a, lora_b, scale)
