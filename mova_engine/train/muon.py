"""Muon: momentum of whole matrices, orthogonalised, for the weights of hidden layers; AdamW for all others.

Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: momentum with Nesterov's look
ahead, brought near its orthogonal factor by five Newton-Schulz steps (`ops.newton_schulz`). As in "Muon is scalable for
LLM training" (Liu et al., 2025, arXiv 2502.16982) a weight decays as AdamW's does, and its update is scaled by
0.2 sqrt(max(rows, columns)), which gives it the size of AdamW's usual updates: learning rate and weight decay of one
serve the other.

    m = momentum m + (1 - momentum) g;  u = newton_schulz(momentum m + (1 - momentum) g)
    w = w (1 - lr wd) - lr 0.2 sqrt(max(r, c)) u

The momentum follows every gradient. With `every` of 2 half of the matrices move in each step, in turns, twice as far:
half the Newton-Schulz steps, which are what Muon costs small models, for updates that hardly change from one step to
the next.

Where processes share the weights, each holds its rows of the momentum, and orthogonalises some whole matrices for all:
`distributed.whole_matrices`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mova_engine.distributed.collectives import Group
from mova_engine.distributed.fsdp import LocalShard
from mova_engine.distributed.whole_matrices import WholeMatrices
from mova_engine.memory.quantised import within_layers
from mova_engine.ops.newton_schulz import at_once
from mova_engine.ops.optimizer_impl import WithoutCompiler

# The name of a weight's momentum in the state.
MOMENTUM = "momentum"
# Root mean square of AdamW's usual updates as a share of the learning rate; an orthogonal matrix has elements of
# 1 / sqrt(max(rows, columns)).
_SIZE = 0.2


def is_hidden_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether Muon updates a weight, by its dotted name and shape: matrices of blocks and of the bridge's conditioners,
    and adapters of these. Embeddings of patches, text and time, modulations, norms, biases and the head are AdamW's.
    """
    return len(shape) == 2 and within_layers(name) and ".adaln." not in name


class _Matrix(NamedTuple):
    """A weight that moves in this step. direction: its momentum with Nesterov's look ahead. shape: of the whole
    weight, of which this process may hold some rows.
    """

    weight: Tensor
    direction: Tensor
    shape: tuple[int, ...]


class Muon(WithoutCompiler):
    """Muon over matrices. A step changes the gradients."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        pieces: Iterable[LocalShard],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        every: int,
        orthogonalise: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        group: Group,
    ) -> None:
        """params: groups of float32 tensors. pieces: of the same tensors, in any order. orthogonalise: of matrices
        [n, r, c] in `dtype`, of the same shape. group: of the ranks over which the rows of each matrix are divided.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.shapes = {piece.tensor: piece.shape for piece in pieces}
        self.momentum, self.every = momentum, every
        self.orthogonalise, self.dtype, self.group = orthogonalise, dtype, group

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the matrices that have a gradient and whose turn it is."""
        for group in self.param_groups:
            rate = group["lr"] * self.every
            moving = sorted(self._moving(group), key=lambda matrix: matrix.shape)
            for shape, same in groupby(moving, key=lambda matrix: matrix.shape):
                for weights, updates in self._orthogonal(list(same)):
                    torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
                    torch._foreach_add_(weights, updates, alpha=-rate * _SIZE * math.sqrt(max(shape)))

    def _moving(self, group: dict[str, Any]) -> list[_Matrix]:
        """Bring the momentum of all matrices of a group that have a gradient up to date; return those that move."""
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return []
        states = [self.state[p] for p in weights]
        for p, state in zip(weights, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state[MOMENTUM] = torch.zeros_like(p)
            state["step"] += 1
        gradients, moments = [p.grad for p in weights], [state[MOMENTUM] for state in states]
        torch._foreach_lerp_(moments, gradients, 1 - self.momentum)
        turns = [int(state["step"]) + place for place, state in enumerate(states)]
        moving = [i for i, turn in enumerate(turns) if turn % self.every == 0]
        if not moving:
            return []
        directions = [gradients[i] for i in moving]
        torch._foreach_lerp_(directions, [moments[i] for i in moving], self.momentum)
        return [_Matrix(weights[i], d, self.shapes[weights[i]]) for i, d in zip(moving, directions, strict=True)]

    def _orthogonal(self, matrices: list[_Matrix]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Yield some of these matrices of one shape, and their orthogonal updates. Those of the next ones are on their
        way meanwhile.
        """
        group, shape = self.group, matrices[0].shape
        device = group.device if group.size > 1 else matrices[0].weight.device
        most = at_once(shape, device) * group.size
        parts = [matrices[first : first + most] for first in range(0, len(matrices), most)]

        def gathered(part: list[_Matrix]) -> tuple[WholeMatrices, Callable[[], Tensor]]:
            exchange = WholeMatrices(len(part), shape, group)
            return exchange, exchange.gather([matrix.direction.to(device, self.dtype) for matrix in part])

        coming = gathered(parts[0])
        for part, following in zip(parts, [*parts[1:], None], strict=True):
            exchange, wait = coming
            whole = wait()
            if following is not None:
                coming = gathered(following)
            updates = exchange.scatter(self.orthogonalise(whole) if len(whole) else whole)
            weights = [matrix.weight for matrix in part]
            yield weights, [x.to(w.device, w.dtype) for x, w in zip(updates, weights, strict=True)]


class Joined(WithoutCompiler):
    """Optimizers of different weights as one, with the groups and states of all."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._join()

    def _join(self) -> None:
        """Groups and states are the parts' own, not copies."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            self.state.update(part.state)
            part.state = self.state

    def step(self, closure: None = None) -> None:
        """One step of each."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer's: `state_dict()` numbers the weights of all parts in their order."""
        groups, first = iter(state_dict["param_groups"]), 0
        for part in self.parts:
            own = [dict(next(groups)) for _ in part.param_groups]
            count = sum(len(group["params"]) for group in own)
            for group in own:
                group["params"] = [index - first for index in group["params"]]
            state = {i - first: x for i, x in state_dict["state"].items() if first <= i < first + count}
            part.load_state_dict({"state": state, "param_groups": own})
            first += count
        self.state.clear()
        self._join()
