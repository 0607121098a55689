"""Lower bounds of an operator's work: bytes moved by operators on rows, FLOPs of matrix products."""

from typing import Any

from torch import Tensor

from mova_engine.ops import OPERATORS

_PRODUCTS = ("linear_gelu", "lora_linear", "fp8_trained_linear")


def bytes_moved(operator: str, inputs: dict[str, Any]) -> tuple[int, int]:
    """(forward, backward) bytes that a fused kernel moves in one call on activations `x`; (0, 0) for operators that do
    not work on rows.
    """
    least = OPERATORS[operator].least
    if least is None or operator in _PRODUCTS:
        return 0, 0
    x = inputs["x"]
    forward, backward = least.of(gate=inputs.get("gate", x) is not None)
    one = x.numel() * x.element_size()
    return int(forward * one), int(backward * one)


def flops(operator: str, inputs: dict[str, Any]) -> tuple[int, int]:
    """(forward, backward) FLOPs of the matrix products in one call; (0, 0) for operators without any.

    By `mova_engine.predict.flops`: a backward is twice the forward (attention's recomputed scores are not model FLOPs),
    and three times the adapter's forward stands for all of its work.
    """
    if operator in _PRODUCTS:
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
    """FLOPs of dv, dp, dq and dk; counted as a forward, because the operator is called by itself."""
    return 8 * inputs["q"].numel() * inputs["k"].shape[1], 0
