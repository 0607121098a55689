"""What operators must move and compute at the least: bytes of the operators on rows, FLOPs of matrix products."""

from typing import Any

from torch import Tensor

# Passes over the activations (reads plus writes of a [b, s, d] tensor), forward and backward, with and without a gate.
# The backward reads what the derivative needs and each cotangent once and writes each gradient once; where a gradient
# is the cotangent itself, as the residual's is, it needs no pass.
_PASSES = {
    "rms_norm": ((2, 3), (2, 3)),
    "rms_norm_rope": ((2, 3), (2, 3)),
    "norm_modulate": ((2, 3), (2, 3)),
    "layer_norm": ((2, 3), (2, 3)),
    "gate_residual": ((3, 3), (3, 0)),  # dy = gate dout; y for the gate's gradient
    "gate_residual_norm": ((4, 6), (4, 4)),  # without a gate dx and dy are one tensor
    "gate_residual_norm_modulate": ((4, 6), (4, 4)),
}


def bytes_moved(operator: str, inputs: dict[str, Any]) -> tuple[int, int]:
    """(forward, backward) bytes of one call on activations `x`; (0, 0) for an operator that is not one on rows."""
    if operator not in _PASSES:
        return 0, 0
    x = inputs["x"]
    forward, backward = _PASSES[operator][inputs.get("gate", x) is None]
    one = x.numel() * x.element_size()
    return forward * one, backward * one


def flops(operator: str, inputs: dict[str, Any]) -> tuple[int, int]:
    """(forward, backward) FLOPs of the matrix products in one call; (0, 0) for operators without any.

    By `mova_engine.predict.flops`: a backward is twice the forward (attention's recomputed scores are not model FLOPs),
    and three times the adapter's forward stands for all of its work.
    """
    if operator in ("linear_gelu", "lora_linear"):
        rows, (o, i) = inputs["x"].numel() // inputs["x"].shape[-1], inputs["weight"].shape
        adapter = 2 * rows * (i + o) * inputs["lora_a"].shape[0] if operator == "lora_linear" else 0
        forward = 2 * rows * i * o + adapter
        return forward, 2 * forward
    if operator in ("attention", "attention_lse"):
        q, k = inputs["q"], inputs["k"]
        forward = 4 * q.numel() * k.shape[1]
        return forward, 2 * forward
    return _attention_backward(inputs) if operator == "attention_backward" else (0, 0)


def _attention_backward(inputs: dict[str, Tensor]) -> tuple[int, int]:
    """Called as a forward of its own: dv, dp, dq and dk."""
    return 8 * inputs["q"].numel() * inputs["k"].shape[1], 0
