"""Inference by MindIE-SD (`mindiesd` on PyPI): its fused modulation of a LayerNorm, which has no gradient.

Shapes as in `norms`. The operator wants shift and scale in x's dtype, and half precision would round them: so it is
given all in float32.
"""

import torch
from torch import Tensor

from mova_kernels.npu.norms import gate_residual


def unavailable() -> str | None:
    """Why MindIE-SD cannot serve; None when it can. Importing it loads its operators."""
    try:
        import mindiesd  # noqa: F401
    except Exception as error:  # a package that it does not declare, another version of CANN
        return f"mindiesd does not import ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return None if hasattr(torch.ops.mindiesd, "adaln") else "this mindiesd has no operator adaln"


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """`layer_norm(x) * (1 + scale) + shift` by one kernel."""
    return torch.ops.mindiesd.adaln(x.detach().float(), scale.float(), shift.float(), None, None, eps).to(x.dtype)


def gate_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its modulated LayerNorm."""
    r = gate_residual(x, y, gate)
    return r, norm_modulate(r, shift, scale, eps=eps)
