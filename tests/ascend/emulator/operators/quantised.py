"""Rows quantised to int8, and products of int8 numbers."""

import torch
from torch import Tensor

# By torch's numbers of dtypes, as torch_npu's schema has them.
DTYPES = {5: torch.float16, 15: torch.bfloat16}


def dynamic_quant(x: Tensor, **options) -> tuple[Tensor, Tensor]:
    """Rows as int8, and a scale for each: `max|row| / 127`."""
    assert not any(options.values()), options
    scale = x.float().abs().amax(-1) / 127
    # What hardware makes of a row of zeros is not documented: its values are zero here.
    return torch.round(x.float() / scale.unsqueeze(-1)).nan_to_num(0).to(torch.int8), scale


def quant_matmul(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    pertoken_scale: Tensor,
    bias: Tensor | None = None,
    output_dtype: int,
    **options,
) -> Tensor:
    """`x1 x2` in integers, times the scales of its rows and columns, plus bias; rounded once."""
    assert not any(options.values()), options
    sums = (x1.double() @ x2.double()).float() * scale.float() * pertoken_scale.unsqueeze(1)
    return (sums if bias is None else sums + bias.float()).to(DTYPES[output_dtype])


OPERATORS = {"npu::npu_dynamic_quant": dynamic_quant, "npu::npu_quant_matmul": quant_matmul}
