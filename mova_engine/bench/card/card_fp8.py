"""Trained layers with fp8 products at MOVA's shapes, beside the same layers in the run's dtype."""

from typing import Any

import torch
from torch import Tensor

from mova_engine.bench.card.card_context import CardContext, LeftOut
from mova_engine.bench.card.card_operators import Rows, figures
from mova_engine.bench.passes import flops
from mova_engine.bench.workloads import SEED
from mova_engine.config.fp8 import FP8_TRAINED, Fp8Settings
from mova_engine.errors import MovaError
from mova_engine.models.fp8_products import COMPARED, Fp8Products
from mova_engine.ops import OPERATORS, REFERENCE, OpTable, bind

PLAIN = "in its own dtype"


def time_fp8_layer(context: CardContext, unit: str) -> Rows:
    """The layer `unit` of a video block, forward and backward: in bfloat16, and with fp8 products. Shares are of the
    dtype's own peak. First it is compared as a run compares it (`models.fp8_products`); what is off by more than the
    default slack gets no figure.
    """
    table = bind(context.backend, dtypes=(context.dtype,))
    chosen = next(choice.implementation for choice in table.choices if choice.operator == FP8_TRAINED)
    if chosen == REFERENCE and not context.rehearsed:
        raise LeftOut("this card has no fp8 products")
    video, tokens = context.config.video, context.config.clip.video_tokens
    i, o = {
        "attention": (video.dim, video.dim),
        "up": (video.dim, video.ffn_dim),
        "down": (video.ffn_dim, video.dim),
    }[unit]
    inputs = _inputs(context, tokens, i, o)
    off, computed = _deviations(table, inputs), flops(FP8_TRAINED, inputs)
    functions = {PLAIN: _plain, chosen: table.fp8_trained_linear}
    peaks = {PLAIN: context.backend.peak_flops(context.dtype), chosen: context.hardware.peak.get("fp8")}
    rows: Rows = []
    for name, function in functions.items():
        row = {"operator": f"{unit} layer", "case": f"{tokens}x{i}x{o}", "implementation": name}
        row |= figures(context, OPERATORS[FP8_TRAINED], function, inputs, True, (0, 0), computed, peaks[name])
        rows.append(row | ({} if name == PLAIN else {"off": off}))
        context.clear()
    return rows


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _inputs(context: CardContext, tokens: int, i: int, o: int) -> dict[str, Any]:
    source = torch.Generator(context.device).manual_seed(SEED)

    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=source, device=context.device) * scale).to(context.dtype)

    return {"x": drawn(1, tokens, i), "weight": drawn(o, i, scale=i**-0.5), "bias": drawn(o)}


def _deviations(table: OpTable, inputs: dict[str, Any]) -> dict[str, float]:
    """How far the fp8 layer is off. Raises MovaError where that is more than the slack."""
    products, slack = Fp8Products(), Fp8Settings().slack
    products.comparing = True
    x, weight, bias = (inputs[name].detach().requires_grad_() for name in ("x", "weight", "bias"))
    out = products.product(table, x, weight, bias)
    out.backward(torch.randn_like(out))
    assert products.deviations is not None, "the backward has compared"
    found = dict(zip(COMPARED, products.deviations.tolist(), strict=True))
    if not max(found.values()) <= slack:
        told = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        raise MovaError(f"wrong: fp8 products are off by {told}, allowed {slack}; no speed is reported")
    return found
