"""`--debug nan`: where in a step the first value arises that is not finite.

A step whose loss or gradient is not finite is run again, with the same clips, noise and weights, under three kinds of
observation, which cost much and therefore exist in this second run only:

    forward     hooks on every module, and a torch dispatch mode on every operator: the innermost module whose result
                is not finite, and in it the first operator with finite inputs whose result is not
    backward    hooks on the nodes of autograd's graph: the first node that makes a gradient that is not finite of
                finite ones. In the forward, every node was marked with its module.
    before      weights and inputs that are not finite to begin with

Operators may give infinite values that nothing uses, such as the log-sum-exp of no keys. Therefore an operator counts
only if the result of its module is not finite either, or if the backward of that module is the first to fail: the
attention of torch for CPUs makes finite values of keys that are NaN, but not finite gradients. All processes run the
whole step, so that their exchanges match, and compare what they have found; the earliest counts, and an operator that
has only received a value from another process comes after one that has made it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch.nn as nn
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mova_engine.distributed.fsdp import local_rows

# The key of a graph node's metadata under which its module's name is kept.
MODULE = "mova_module"
# Operators whose results are not computed from their inputs: new memory, and constants such as a mask's.
_FACTORIES = ("empty", "new_empty", "full", "new_full", "fill", "scalar_tensor", "masked_fill", "zero")
# Operators whose results are not there yet when they return.
_UNDER_WAY = ("c10d::", "_c10d_functional::", "fsdp::")
# Parts of the names of operators that bring values from other processes.
_EXCHANGES = ("tokens_to_heads", "heads_to_tokens", "ring_attention", "shared_query_attention")
# The ranks that a message names.
_SHOWN = 8


@dataclass(frozen=True, order=True)
class NonfiniteValue:
    """The first value that is not finite in one process. Ordered by when it arose.

    micro_batch: of the step. stage: 0 before, 1 forward, 2 backward. place: number of the module or graph node in the
    order of the run. received: brought by an exchange. text: what and where, in words.
    """

    micro_batch: int
    stage: int
    place: int
    received: bool
    text: str = field(compare=False)


def summary(found: Sequence[NonfiniteValue | None]) -> str | None:
    """In words the earliest of the processes' findings, by rank, and the ranks that have it; None without any."""
    present = [each for each in found if each is not None]
    if not present:
        return None
    first = min(present)
    ranks = [rank for rank, each in enumerate(found) if each is not None and each.text == first.text]
    if not ranks or len(found) == 1:
        return first.text
    shown = ", ".join(map(str, ranks[:_SHOWN])) + (", ..." if len(ranks) > _SHOWN else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}: {first.text}"


def described(x: Tensor) -> str:
    """A tensor's shape, dtype, range of finite values and number of others: `[2, 75, 64] float32 in -3.1..2.9`."""
    shape = f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}"
    values = x.detach()
    finite = values.isfinite()
    count = values.numel() - int(finite.sum())
    good = values[finite].float()
    span = f" in {float(good.min()):.3g}..{float(good.max()):.3g}" if good.numel() else ""
    if not count:
        return shape + span
    nans = int(values.isnan().sum())
    return f"{shape}{span}, {nans} NaN and {count - nans} infinite of {values.numel()}"


def unsound(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first of named tensors that holds a value that is not finite, in words; None if there is none."""
    for name, x in tensors:
        if not _finite(x):
            return f"{name} is not finite before the step: {described(x)}"
    return None


class NonfiniteTrace:
    """Observes runs of a model's forward and backward, and remembers the first value that is not finite.

    with trace.observed():
        trace.begin(0)
        loss = ...
        trace.check_loss(loss)
        loss.backward()
    trace.finding
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.micro_batch, self._place = 0, 0
        # What was found in modules whose result was finite all the same, by their names.
        self._dropped: dict[str, NonfiniteValue] = {}
        self.finding: NonfiniteValue | None = None
        self._names = {id(module): name for name, module in model.named_modules()}
        # Modules that are being run, innermost last, each with what was found in it and is not confirmed yet.
        self._running: list[tuple[str, list[NonfiniteValue]]] = []

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Within the block everything is observed."""
        hooks = []
        for module in self.model.modules():
            hooks.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            hooks.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            with _Operators(self):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def begin(self, micro_batch: int) -> None:
        """A forward begins: that of micro-batch `micro_batch` of the step."""
        self.micro_batch, self._running = micro_batch, [("", [])]

    def check_loss(self, loss: Tensor) -> None:
        """The forward's end: what was found outside of the modules is confirmed if the loss is not finite."""
        self._mark(loss)
        if self.finding is None and not _finite(loss):
            waiting = self._running[0][1]
            self.finding = waiting[0] if waiting else self._found(1, "the loss is not finite, of finite outputs")
        # From now on operators run in the backward, whose nodes are observed.
        self._running = []

    def operator(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Called for each operator of the forward, by its name in torch's dispatcher."""
        if self.finding is not None or not self._running or _base(name) in _FACTORIES or name.startswith(_UNDER_WAY):
            return
        bad = next((x for x in outputs if not _finite(x)), None)
        if bad is None:
            return
        # An operator in place has changed its input by now.
        inputs = [x for x in inputs if not any(x is y for y in outputs)]
        weights = self._weights(inputs)
        odd = [x for x in inputs if not _finite(x)]
        if any(id(x) not in weights for x in odd):
            return
        module, waiting = self._running[-1]
        parts = ", ".join(f"{weights.get(id(x), 'input')} {described(x)}" for x in inputs)
        where = f"in {module or 'the model, outside of its layers'}"
        text = f"forward, {where}, operator {name}: {parts} -> {described(bad)}"
        waiting.append(self._found(1, text, any(part in name for part in _EXCHANGES)))

    def _found(self, stage: int, text: str, received: bool = False) -> NonfiniteValue:
        return NonfiniteValue(self.micro_batch, stage, self._place, received, text)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._running:
            return
        # What was computed before it, outside of any module, belongs to the one around it.
        self._mark((args, kwargs))
        self._running.append((self._names[id(module)], []))

    def _leave(self, module: nn.Module, args: Any, outputs: Any) -> None:
        if not self._running:
            return
        self._mark(outputs)
        name, waiting = self._running.pop()
        self._place += 1
        tensors = _tensors(outputs)
        if self.finding is not None:
            return
        if all(map(_finite, tensors)):
            if waiting:
                self._dropped.setdefault(name, waiting[0])
            return
        inputs = _tensors(args)
        if waiting:
            self.finding = waiting[0]
        elif all(map(_finite, inputs)) and not self._running[-1][1]:
            bad = next(x for x in tensors if not _finite(x))
            parts = ", ".join(map(described, inputs))
            self.finding = self._found(1, f"forward, in {name}: {parts} -> {described(bad)}")

    def _mark(self, outputs: Any) -> None:
        """Mark the graph's nodes behind `outputs` that are not marked yet with the module that runs, and hook them."""
        name = self._running[-1][0] if self._running else ""
        ahead = [x.grad_fn for x in _tensors(outputs) if x.grad_fn is not None]
        while ahead:
            node = ahead.pop()
            metadata: Any = node.metadata
            # That of a weight's gradient outlives the graph, and computes nothing.
            if MODULE in metadata or node.name().endswith("AccumulateGrad"):
                continue
            metadata[MODULE] = name
            node.register_hook(self._node_hook(name, node.name()))
            ahead += [each for each, _ in node.next_functions if each is not None]

    def _node_hook(self, module: str, node: str) -> Any:
        def hook(made: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> None:
            self._place += 1
            if self.finding is not None:
                return
            inputs, outputs = _tensors(list(given)), _tensors(list(made))
            if all(map(_finite, outputs)) or not all(map(_finite, inputs)):
                return
            if module in self._dropped:
                self.finding = self._dropped[module]
                return
            bad = next(x for x in outputs if not _finite(x))
            parts = ", ".join(map(described, inputs))
            where = f"in {module or 'the model, outside of its layers'}"
            received = any(part in node for part in ("AllToAll", "Ring", "SharedQuery", "PostBackward"))
            self.finding = self._found(
                2, f"backward, {where}, of {node}: gradient {parts} -> {described(bad)}", received
            )

        return hook

    def _weights(self, tensors: Sequence[Tensor]) -> dict[int, str]:
        """The names of those that are weights, or views of them, by id."""
        odd = {x.untyped_storage().data_ptr(): id(x) for x in tensors if not _finite(x)}
        if not odd:
            return {}
        found = {}
        for name, parameter in self.model.named_parameters():
            local = local_rows(parameter)
            if local.numel() and (key := odd.get(local.untyped_storage().data_ptr())) is not None:
                found[key] = f"weight {name}"
        return found


class _Operators(TorchDispatchMode):
    """Tells a trace of every operator."""

    def __init__(self, trace: NonfiniteTrace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        inputs = _tensors((args, kwargs))
        # A mode does not see what it calls itself, such as `isfinite`.
        self._trace.operator(func.name(), inputs, _tensors(outputs))
        return outputs


def _base(name: str) -> str:
    """`aten::new_empty.default` -> "new_empty"; `aten::fill_.Scalar` -> "fill"."""
    return name.partition("::")[2].partition(".")[0].removesuffix("_").removesuffix("_like").removesuffix("_strided")


def _tensors(values: Any) -> list[Tensor]:
    """The floating tensors with elements in a nest of containers."""
    leaves = pytree.tree_leaves(values)
    floating = [local_rows(x) for x in leaves if isinstance(x, Tensor) and x.is_floating_point() and not x.is_meta]
    return [x for x in floating if x.numel()]


def _finite(x: Tensor) -> bool:
    return bool(x.detach().isfinite().all())
