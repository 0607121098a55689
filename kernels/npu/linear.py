"""The feed-forward's first half; products of int8 numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x W^T + b)` in the tanh form by `npu_gelu`; torch_npu's `fast_gelu` is another function."""
    return torch.ops.npu.npu_gelu(F.linear(x, weight, bias), approximate="tanh")


# Documented of the 910B series: the widest rows that `npu_dynamic_quant` takes.
WIDEST_ROW = 11264


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x [n, d] bfloat16 or float16, d at most WIDEST_ROW, as int8 with a scale each: ([n, d], [n] float32)."""
    return torch.ops.npu.npu_dynamic_quant(x)


def int8_product(
    values: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`(values * scale) (weight * weight_scale)^T + bias` in bfloat16 or float16, the dtype of bias, by one operator.

    values int8 [n, i], scale float32 [n], weight int8 [o, i], weight_scale float32 [o]; i and o at most 65535.
    """
    return torch.ops.npu.npu_quant_matmul(
        values, weight.t(), weight_scale, pertoken_scale=scale, bias=bias, output_dtype=dtype
    )
