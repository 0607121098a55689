"""The verdict on each tensor: what is compared with what, and within which bound."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Bounds on max|ours - recorded| / max|recorded| that hold between correct float32 implementations.
FLOAT32 = 1e-5
GRADIENT = 3e-5
VAE_DECODE = 5e-5
BFLOAT16 = 2e-2
# A gradient's error is measured against at least this fraction of the case's largest gradient.
GRADIENT_FLOOR = 1e-6


@dataclass(frozen=True)
class ParityRow:
    """One tensor's comparison. difference None: the case was not able to produce it, `note` says why."""

    case: str
    tensor: str
    difference: float | None
    bound: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.difference is not None and self.difference <= self.bound


def bound_of(name: str, tensor: Tensor, dtype: torch.dtype) -> float:
    """The bound for a recorded tensor in a run of `dtype`."""
    if not tensor.is_floating_point():
        return 0.0
    if dtype != torch.float32 or tensor.dtype not in (torch.float32, torch.float64):
        return BFLOAT16
    if name.startswith("grad."):
        return GRADIENT
    return VAE_DECODE if "decode" in name else FLOAT32


def difference(ours: Tensor, recorded: Tensor, floor: float = 0.0) -> float:
    """max|ours - recorded| / max(max|recorded|, floor); infinite for another shape or a non-finite value."""
    if ours.shape != recorded.shape:
        return float("inf")
    a, b = ours.detach().to("cpu", torch.float64), recorded.to(torch.float64)
    if not recorded.is_floating_point():
        return float((a - b).abs().max())
    scale = max(float(b.abs().max()), floor)
    worst = float((a - b).abs().max())
    if worst != worst:
        return float("inf")
    return worst / scale if scale > 0 else worst


def judge(
    case: str,
    recorded: Mapping[str, Tensor],
    produced: Mapping[str, Tensor],
    dtype: torch.dtype,
    left_out: Mapping[str, str],
) -> list[ParityRow]:
    """One row for every recorded tensor that is not an input.

    left_out: {pattern: reason} for tensors that a run in this dtype does not judge; they get no row here.
    """
    gradients = [x for name, x in recorded.items() if name.startswith("grad.")]
    floor = GRADIENT_FLOOR * max((float(g.abs().max()) for g in gradients), default=0.0)
    rows = []
    for name, tensor in recorded.items():
        if name.startswith("in.") or any(fnmatch.fnmatch(name, pattern) for pattern in left_out):
            continue
        bound = bound_of(name, tensor, dtype)
        if name not in produced:
            rows.append(ParityRow(case, name, None, bound, "no runner produces this tensor"))
            continue
        ours = produced[name]
        note = "" if ours.shape == tensor.shape else f"shape {list(ours.shape)}, recorded {list(tensor.shape)}"
        rows.append(
            ParityRow(case, name, difference(ours, tensor, floor if name.startswith("grad.") else 0.0), bound, note)
        )
    return rows
