"""The video tower's self-attention in 8 bits or sparse, in all but the first steps, checked before it is used.

In the first step of each expert every layer's attention is computed both ways, on the tensors of the run: the exact
result is used, and one that is off by more than its slack ends the run. So what a kernel makes wrong on some GPU, or of
some model's large channels, is said by name rather than seen in the clip.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mova_engine.backend import Backend
from mova_engine.errors import MovaError
from mova_engine.models.mova import Mova
from mova_engine.ops.choice import choose_operator
from mova_engine.ops.declarations import REFERENCE, resolve
from mova_engine.ops.lossy import Grid, deviation
from mova_engine.ops.lossy_table import LOSSY
from mova_engine.ops.registry import ThisMachine

# The share of the steps, from the first on, in which attention is exact: they lay out picture and sound.
EXACT_SHARE = 0.15
_OPERATOR = LOSSY["lossy_attention"]


def check_attention(name: str, backend: Backend) -> None:
    """MovaError with the reason for an implementation that is not known or cannot serve on a device."""
    if name == REFERENCE:
        raise MovaError(f"--attention {name} is exact attention: leave --attention out")
    choose_operator(_OPERATOR, ThisMachine(backend), name, training=False, dtypes=())


@dataclass
class LossyAttention:
    """An implementation of `lossy_attention` by name, for one run. exact_steps: of the first steps, at least 1; None:
    15 % of them. slack: the most that it may be off (`ops.lossy.deviation`). worst: the most that was found.
    """

    name: str
    exact_steps: int | None = None
    slack: float = _OPERATOR.slack
    worst: float = 0.0
    function: Callable[..., Tensor] = field(init=False, repr=False)
    # Whether no evaluation by the expert has been begun. Of the one that is running: whether results are used, and
    # whether they are checked.
    _fresh: bool = field(default=True, init=False)
    _used: bool = field(default=False, init=False)
    _checked: bool = field(default=False, init=False)
    _step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        found = next((i for i in _OPERATOR.implementations if i.name == self.name), None)
        if found is None:
            known = ", ".join(i.name for i in _OPERATOR.implementations)
            raise MovaError(f"unknown attention '{self.name}'. Known: {known}")
        if self.exact_steps is not None and self.exact_steps < 1:
            raise MovaError(f"exact steps must be at least 1, in which it is checked, got {self.exact_steps}")
        self.function = resolve(found.target)

    def words(self) -> str:
        """What is printed after a run."""
        return f"attention {self.name}: off by {100 * self.worst:.2f} % at most where it was checked"

    def enter(self, step: int, steps: int) -> None:
        """Begin an evaluation at the noise level of a step."""
        exact = self.exact_steps or max(1, math.ceil(EXACT_SHARE * steps))
        # In each clip anew: none may depend on those before it.
        self._checked, self._fresh = self._fresh, False
        self._used, self._step = step >= exact and not self._checked, step

    @contextmanager
    def in_place(self, mova: Mova, grid: Grid) -> Iterator[None]:
        """Within the block, which is one expert's, the video experts' self-attention goes through this. grid: tokens of
        a clip.
        """
        self._fresh = True
        towers = [tower for tower in (mova.video_dit, mova.video_dit_2) if tower is not None]
        # A ModuleList does not say what it holds.
        layers: list[tuple[int, Any]] = [
            (i, block.self_attn) for tower in towers for i, block in enumerate(tower.blocks)
        ]
        before = [module.attention for _, module in layers]
        try:
            for layer, module in layers:
                module.attention = self._of_layer(layer, module.attention, grid)
            yield
        finally:
            for (_, module), attention in zip(layers, before, strict=True):
                module.attention = attention

    def _of_layer(self, layer: int, exact: Callable[..., Tensor], grid: Grid) -> Callable[..., Tensor]:
        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self._used:
                return self.function(q, k, v, grid=grid)
            result = exact(q, k, v)
            if self._checked:
                self._check(layer, self.function(q, k, v, grid=grid), result)
            return result

        return attention

    def _check(self, layer: int, found: Tensor, exact: Tensor) -> None:
        error = deviation(found, exact)
        self.worst = max(self.worst, error)
        if not error <= self.slack:
            b, s, h, e = exact.shape
            raise MovaError(
                f"attention {self.name} is off by {100 * error:.3g} % in layer {layer + 1} in step {self._step + 1}, "
                f"on {exact.device} with {b} x {s} tokens, {h} heads of {e}; at most {100 * self.slack:g} % is "
                "allowed: leave --attention out, or take another"
            )
