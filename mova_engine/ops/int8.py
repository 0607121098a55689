"""Weights in int8 with a scale for each output row, and activations with one for each token, as they come."""

import torch
from torch import Tensor

from mova_engine.ops.row_chunks import row_chunks

LARGEST = 127


def quantise_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x [.., d] as int8 with a scale each: (values [.., d], scale [..] float32); `values * scale` is nearly x.

    `scale = max|row| / 127`, `values = round(x / scale)`, a half to the even neighbour, so that no value is -128. In
    float32 for every dtype; without a gradient.
    """
    x = x.detach().float()
    # A row of zeros has values of zero, whatever its scale.
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.round(x / scale).to(torch.int8), scale.squeeze(-1)


def dequantise_int8(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight * weight_scale` in `dtype`: int8 [n, d] with a float32 scale [n] of each row; rounded once."""
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for rows in row_chunks(weight.shape[0], weight.shape[1]):
        out[rows] = weight[rows] * weight_scale[rows].unsqueeze(1)
    return out
