"""Combines several adapters into one: `mova lora combine`."""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Sequence

from torch import Tensor

from mova_engine.adapters.form import BASE, Adapter, LowRank, listed
from mova_engine.adapters.inspection import update_norm
from mova_engine.adapters.low_rank import together, truncated
from mova_engine.errors import MovaError


def combine(stack: Sequence[tuple[Adapter, float]], rank: int | None = None) -> tuple[Adapter, float]:
    """Return (one adapter equal to the weighted sum of the stack, its relative error).

    rank: the highest rank of a layer, to which the sum is approximated; None: ranks add up, and the error is 0. Raises
    MovaError for DoRA, whose changes do not add up, and for layers of different sizes.
    """
    names = sorted({name for adapter, _ in stack for name in adapter.names})
    layers: dict[str, LowRank] = {}
    deltas: dict[str, Tensor] = {}
    lost: list[float] = []
    whole: list[float] = []
    for name in names:
        pairs = [(adapter.layers[name], strength) for adapter, strength in stack if name in adapter.layers]
        if any(pair.magnitude is not None for pair, _ in pairs):
            raise MovaError(f"{name} has a DoRA magnitude: such adapters are merged, not combined")
        if len({pair.weight_shape for pair, _ in pairs}) > 1:
            raise MovaError(f"the adapters are of different models: they have {name} in several sizes")
        if pairs:
            exact = together(pairs)
            layers[name], less = (exact, 0.0) if rank is None else truncated(exact, rank)
            whole.append(update_norm(exact))
            lost.append(less)
        for adapter, strength in stack:
            if name in adapter.deltas:
                change = adapter.deltas[name].float() * strength
                if name in deltas and deltas[name].shape != change.shape:
                    raise MovaError(f"the adapters are of different models: they have {name} in several sizes")
                deltas[name] = deltas[name] + change if name in deltas else change
    bases = {adapter.metadata[BASE] for adapter, _ in stack if BASE in adapter.metadata}
    if len(bases) > 1:
        raise MovaError(f"the adapters were trained on different models, by their metadata{listed(sorted(bases), ':')}")
    error = math.hypot(*lost, 0.0) / math.hypot(*whole, 0.0) if any(whole) else 0.0
    return Adapter(layers, deltas, {BASE: next(iter(bases))} if bases else {}), error
