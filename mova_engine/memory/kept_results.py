"""Contexts of selective checkpointing that count calls of the operators whose results are kept, and of no others.

Torch's own (`create_selective_checkpoint_contexts`) want a recomputation to make no call that the forward did not make.
Where weights are gathered ahead, those of a layer are gathered in the region of another one, and not by both alike.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Operators = frozenset[torch._ops.OpOverload]


class OfOperators(TorchDispatchMode):
    """Counts the calls of operators, so that a recomputation finds the results of the forward's.

    move: what is done with what a result is made of, on its way to `kept` or from there. kept: of both contexts.
    """

    def __init__(self, operators: Operators, move: Callable[[Any], Any], kept: dict[Any, Any]) -> None:
        super().__init__()
        self.operators, self.move, self.kept = operators, move, kept
        self.calls: Counter[torch._ops.OpOverload] = Counter()

    def __enter__(self) -> "OfOperators":
        self.calls.clear()
        return super().__enter__()

    def next_call(self, operator: torch._ops.OpOverload) -> tuple[torch._ops.OpOverload, int]:
        self.calls[operator] += 1
        return operator, self.calls[operator]

    def of_forward(self, call: tuple[torch._ops.OpOverload, int]) -> Any:
        """What is kept of a call of the forward's."""
        if call not in self.kept:
            raise RuntimeError(f"call {call[1]} of {call[0]} is recomputed, and the forward did not make it")
        return self.kept[call]


class _Kept(NamedTuple):
    """A result on the device. version: torch's count of changes."""

    tensor: Tensor
    version: int


class _Keeping(OfOperators):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.operators:
            self.kept[self.next_call(func)] = tree_map_only(Tensor, self.move, result)
        return result


class _Using(OfOperators):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func not in self.operators:
            return func(*args, **(kwargs or {}))
        call = self.next_call(func)
        found = tree_map_only(_Kept, self.move, self.of_forward(call), is_leaf=lambda x: isinstance(x, _Kept))
        # A backward uses it once; what it is used for keeps it from here on.
        del self.kept[call]
        return found


def kept_results(operators: Operators) -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """The contexts of a layer's forward, which keeps the operators' results, and of its recomputation, which takes them
    instead of running the operators: `context_fn` of `torch.utils.checkpoint`.
    """
    kept: dict[tuple[torch._ops.OpOverload, int], Any] = {}
    return _Keeping(operators, _keep, kept), _Using(operators, _use, kept)


def _keep(x: Tensor) -> _Kept:
    # Without the graph that autograd is about to give to the result itself; changes of the result count for both.
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        alone = x.detach()
    return _Kept(alone, alone._version)


def _use(kept: _Kept) -> Tensor:
    if kept.tensor._version != kept.version:
        raise RuntimeError("a result that a checkpointed layer keeps was changed in place")
    return kept.tensor
