"""Counts passes over activations: tensors read and written outside matrix products and attention.

The dispatcher shows each operator's inputs and outputs, which is what an operator must move at least once; the
allocator shows what it makes besides. Only together do they bound what a fused operator does inside.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mova_engine.ops import Operator, inputs

# What a matrix unit computes: its operands are the product's own traffic.
_PRODUCTS = (
    *("mm", "addmm", "bmm", "baddbmm", "linear", "convolution", "mkldnn_linear"),
    *("_scaled_dot_product", "attention"),
)
_GELU = ("gelu", "bias_gelu")
# What makes a tensor and neither reads nor writes one; `copy_` writes its first and does not read it.
_MAKING = ("empty", "new_empty")


@dataclass
class PassCounter(TorchDispatchMode):
    """Sums, over every operator run under it, the bytes of tensors of at least `smallest` elements.

    `moved` read and written outside products, attention and GELU, by operator; `gelu` those of GELU; `outputs` bytes
    of the fresh outputs of all but products and attention, to be compared with what was allocated.
    """

    smallest: int
    moved: dict[str, int] = field(default_factory=dict)
    gelu: int = 0
    outputs: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        arguments = func._schema.arguments
        inputs = {t.data_ptr(): t for t in tree_leaves((args, kwargs)) if self._counts(t)}
        storages = {t.untyped_storage().data_ptr() for t in inputs.values()}
        made = [
            t for t in tree_leaves(result) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in storages
        ]
        fresh = [t for t in made if self._counts(t)]
        written = [
            value
            for argument, value in zip(arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and self._counts(value)
        ]
        name = func._schema.name.split("::")[1]
        if name.startswith(_PRODUCTS):
            return result
        if not made and not written:
            return result  # a view
        self.outputs += sum(t.numel() * t.element_size() for t in fresh)
        if name.startswith(_MAKING):
            return result
        if name == "copy_" and self._counts(args[0]):
            inputs.pop(args[0].data_ptr(), None)
        moved = sum(t.numel() * t.element_size() for t in (*inputs.values(), *fresh, *written))
        if name.startswith(_GELU):
            self.gelu += moved
        elif moved:
            self.moved[name] = self.moved.get(name, 0) + moved
        return result

    def _counts(self, value) -> bool:
        return isinstance(value, Tensor) and value.numel() >= self.smallest


def operator_passes(
    operator: Operator, function: Callable, device: torch.device, gate: bool = True, training: bool = True
) -> tuple[float, float]:
    """(forward, backward) passes over its activations that one call of an operator on rows makes in bfloat16.

    Vectors and tables count as nothing: at MOVA's sizes they are far smaller than activations.
    """
    build = (
        inputs.rms_norm_rope(interleaved=True) if operator.name == "rms_norm_rope" else getattr(inputs, operator.name)
    )
    arguments = build(inputs.Maker(torch.Generator().manual_seed(0), device, torch.bfloat16), 1, 96, 256, 64)
    if not gate:
        arguments["gate"] = None
    x = arguments["x"]
    leaves = [arguments[name] for name in operator.differentiable if arguments[name] is not None]
    for leaf in leaves if training else ():
        leaf.requires_grad_()
    with PassCounter(x.numel() // 2) as forward:
        outputs = function(**arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [torch.ones_like(y) for y in outputs]
    with PassCounter(x.numel() // 2) as backward:
        if training:
            torch.autograd.grad(outputs, leaves, cotangents)
    one = x.numel() * x.element_size()
    return tuple((sum(counter.moved.values()) + counter.gelu) / one for counter in (forward, backward))


def allocated(run: Callable[[], object], smallest: int) -> int:
    """Bytes of the allocations of at least `smallest` bytes during `run` on the CPU, outside products and attention."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    products = [
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in events
        if event.name().split("::")[-1].startswith(_PRODUCTS)
    ]
    return sum(
        event.nbytes()
        for event in events
        if event.name() == "[memory]"
        and event.nbytes() >= smallest
        and not any(start <= event.start_ns() <= end for start, end in products)
    )
