"""Workloads: parts of the model that run with different operators on the same tensors, and the check of results."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import OpTable

SEED = 2026
Tensors = dict[str, Tensor]
# Relative errors within which correct implementations agree, outputs and gradients (root mean square over the tensor).
AGREED = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 2e-2}
# Where the references themselves make a larger error, this multiple of it: a whole network's outputs average many
# roundings, the gradient of one small vector may be lucky on one side only.
SLACK = {"out": 2.0, "grad": 4.0}
# A tensor is measured against at least this fraction of the largest of its kind: the gradient of a key's bias, say,
# is what is left of terms that cancel.
FLOOR = 1e-4


class _Boundary(torch.autograd.Function):
    """Identity on an input of a workload, whose backward stores the incoming gradient in a slot.

    A leaf tensor would accumulate it instead, and copy a gradient that two inputs share, which the model itself does
    not do.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, slots: Tensors) -> Tensor:
        ctx.name, ctx.slots = name, slots
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.slots[ctx.name] = gradient
        return None, None, None


@dataclass
class PreparedWork:
    """Forward, and backward with fixed cotangents, of some part of the model.

    forward(inputs) returns the outputs. inputs: tensors whose gradients would flow on, were the rest of the model
    there; parameters: those that accumulate theirs. Without either it is inference. collected: called after a backward,
    returns gradients that do not stay with the parameters.
    """

    forward: Callable[[Tensors], tuple[Tensor, ...]]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    collected: Callable[[], Tensors] | None = None
    _arrived: Tensors = field(default_factory=dict)
    _cotangents: list[Tensor] = field(default_factory=list)

    def run(self) -> None:
        """Run once and drop the results. This is what is timed."""
        self.once()
        self.clear()

    def once(self) -> tuple[Tensor, ...]:
        """Run once; return the outputs, and keep the gradients until `clear`."""
        if not self.inputs and not self.parameters:
            with torch.no_grad():
                return self.forward({})
        entered = {name: _Boundary.apply(x, name, self._arrived) for name, x in self._leaves().items()}
        outputs = self.forward(entered)
        if not self._cotangents:
            generator = torch.Generator().manual_seed(SEED)
            self._cotangents = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
        torch.autograd.backward(outputs, self._cotangents)
        return tuple(x.detach() for x in outputs)

    def gradients(self) -> Tensors:
        """Gradients of the last `once`."""
        found = {name: x.grad for name, x in self.parameters.items() if x.grad is not None} | self._arrived
        return {f"grad.{name}": x for name, x in (found | (self.collected() if self.collected else {})).items()}

    def results(self) -> Tensors:
        """Outputs and gradients of a run, on the CPU."""
        self.clear()
        found = {f"out{i}": x for i, x in enumerate(self.once())} | self.gradients()
        found = {name: x.detach().to("cpu", copy=True) for name, x in found.items()}
        self.clear()
        return found

    def clear(self) -> None:
        """Drop the gradients."""
        self._arrived.clear()
        for x in self.parameters.values():
            x.grad = None

    def _leaves(self) -> Tensors:
        return {name: x.detach().requires_grad_() for name, x in self.inputs.items()}


@dataclass(frozen=True)
class Workload:
    """What to measure: its tensors, and the work with them; at the measured size and at one for the check.

    draw(generator, device, dtype): named inputs and parameters. work(ops, tensors): the work of one side; sides share
    the tensors' memory. model_flops and hardware_flops by the conventions of `mova_engine.predict.flops` (0: not
    counted). moved: bytes that fused operators must read and write at least (0: matrix products dominate). facts: of
    the result.
    recipe: the function that `remakable` marks, and its arguments; by it another process gets the job.
    """

    name: str
    draw: Callable[[torch.Generator, torch.device, torch.dtype], Tensors]
    work: Callable[[OpTable, Tensors], PreparedWork]
    model_flops: int = 0
    hardware_flops: int = 0
    moved: int = 0
    facts: dict = field(default_factory=dict)
    recipe: partial | None = None

    def __reduce__(self) -> tuple:
        return self.recipe, ()


def remakable(make: Callable[..., Workload]) -> Callable[..., Workload]:
    """Decorator of a function that makes jobs, by which another process can make the same job."""

    @wraps(make)
    def made(*args: object, **keywords: object) -> Workload:
        return replace(make(*args, **keywords), recipe=partial(made, *args, **keywords))

    return made


def convert(tensors: Tensors, source: torch.dtype, target: torch.dtype) -> Tensors:
    """Convert the tensors of dtype `source` to `target`; for float64 all floating tensors (tables, modulations)."""
    every = target == torch.float64
    return {
        name: x.to(target) if x.is_floating_point() and (every or x.dtype == source) else x
        for name, x in tensors.items()
    }


def draw_parameters(module: nn.Module, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensors:
    """Draw values for every parameter of a module (which may be on the meta device), so that outputs are neither zero
    nor very large.
    """
    return {name: draw_parameter(name, p.shape, generator).to(device, dtype) for name, p in module.named_parameters()}


def draw_parameter(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw values for one parameter, float32 on the generator's device."""
    x = torch.randn(shape, generator=generator, device=generator.device)
    if len(shape) > 1:
        return x * shape[1:].numel() ** -0.5
    return x * 0.1 + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def with_parameters(module: nn.Module, tensors: Tensors) -> dict[str, nn.Parameter]:
    """Give a module (on the meta device) the tensors as its parameters, without a copy; returns them by name."""
    wanted = dict(module.named_parameters())
    module.load_state_dict(
        {name: nn.Parameter(tensors[name].detach(), requires_grad=p.requires_grad) for name, p in wanted.items()},
        assign=True,
    )
    return dict(module.named_parameters())


def relative_error(found: Tensor, truth: Tensor, floor: float = 0.0) -> float:
    """|found - truth| / |truth| in the 2-norm, the divisor at least `floor`; infinite where it cannot be compared."""
    if found.shape != truth.shape or not bool(found.isfinite().all()):
        return float("inf")
    # Truth may be on the CPU, where the device has no float64.
    difference = (found.to(truth.device).double() - truth.double()).norm()
    size = float(truth.double().norm())
    return float(difference) / max(size, floor, torch.finfo(torch.float64).tiny)


def judge(found: Tensors, truth: Tensors, own: Tensors, dtype: torch.dtype) -> tuple[str, float, float]:
    """The worst tensor of one side: (name, its error, the error allowed), errors relative to float64's `truth`.

    Allowed is `AGREED`, or `SLACK` times the error that the references make in the same dtype (`own`), if larger.
    """
    if found.keys() != truth.keys():
        return ", ".join(sorted(found.keys() ^ truth.keys())), float("inf"), 0.0
    worst = ("nothing", 0.0, AGREED[dtype])
    floors = {kind: FLOOR * max(_norms(truth, kind), default=0.0) for kind in ("out", "grad")}
    for name, x in truth.items():
        kind = "grad" if name.startswith("grad.") else "out"
        error = relative_error(found[name], x, floors[kind])
        allowed = max(AGREED[dtype], SLACK[kind] * relative_error(own[name], x, floors[kind]))
        if error / allowed >= worst[1] / worst[2]:
            worst = (name, error, allowed)
    return worst


def _norms(tensors: Tensors, kind: str) -> Iterable[float]:
    return (float(x.double().norm()) for name, x in tensors.items() if name.startswith(kind))


def require_agreement(job: str, side: str, worst: tuple[str, float, float]) -> None:
    """MovaError where a side's worst tensor is beyond what is allowed: it gets no figure."""
    name, error, allowed = worst
    if not error <= allowed:
        raise MovaError(
            f"{job}: '{side}' is wrong ({name} is off by {error:.1e} of its size, allowed {allowed:.1e}): "
            "no speed is reported"
        )
