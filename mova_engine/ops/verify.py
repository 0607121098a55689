"""The judgement of an implementation, shared by tests and benchmarks.

Truth is the reference in float64. The reference in the run's own dtype makes some error against it; an implementation
may make `Operator.slack` times as much (root mean square over all draws), or two units in the last place of the
tensor's maximum, whichever is larger. No element may be off by more than `OUTLIER` times the reference's worst. Values
and gradients are judged alike (after the rule of the quack kernels' tests).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mova_engine.backend import describe_backend
from mova_engine.ops.registry import Case, Operator

SEED = 2026
# The largest error of a small tensor is a matter of luck: three draws, judged by their mean square, and a wider
# bound for single elements.
DRAWS = 3
OUTLIER = 8.0


@dataclass(frozen=True)
class Finding:
    """One tensor of one case: rms and max of implementation - truth, what is allowed; note: what else is wrong."""

    tensor: str
    error: float
    allowed: float
    worst: float
    worst_allowed: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return not self.note and self.error <= self.allowed and self.worst <= self.worst_allowed


def verify(
    operator: Operator,
    implementation: Callable[..., Any],
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    gradients: bool = True,
) -> list[Finding]:
    """Run one case through the implementation and judge every output and gradient over `DRAWS` draws of it.

    gradients: False judges the outputs alone, for an implementation without a gradient.
    """
    run = _RUNS[operator.kind]
    if not gradients:
        operator = replace(operator, differentiable=())
    tensors: dict[str, _Errors] = {}
    for draw in range(DRAWS):
        inputs = case.make(torch.Generator().manual_seed(SEED + draw), device, dtype)
        truth = run(operator, operator.reference, _exact(inputs, device), None)
        cotangents = {name: x for name, x in truth.items() if name.startswith("cotangent.")}
        expected = run(operator, operator.reference, inputs, cotangents)
        found = run(operator, implementation, inputs, cotangents)
        largest = max((_largest(x) for x in truth.values()), default=0.0)
        for name in truth.keys() - cotangents.keys():
            tensors.setdefault(name, _Errors()).add(truth[name], expected[name], found.get(name), largest)
    return [tensors[name].finding(name, operator.slack) for name in sorted(tensors)]


def _exact(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The inputs in float64, on the CPU where the device has none."""
    place = device if describe_backend(device.type).float64 else torch.device("cpu")

    def convert(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.to(place).to(torch.float64) if x.is_floating_point() else x.to(place)
        return [convert(y) for y in x] if isinstance(x, list) else x

    return {name: convert(x) for name, x in inputs.items()}


def _run_function(operator: Operator, function: Callable, inputs: dict, cotangents: dict | None) -> dict[str, Tensor]:
    """Outputs, and gradients of `sum(cotangent * output)` for every differentiable input."""
    inputs = dict(inputs)
    leaves = {}
    for name in operator.differentiable:
        if inputs[name] is not None:
            # A view of a larger tensor stays one: non-contiguous inputs must arrive as such.
            leaves[name] = inputs[name].detach().requires_grad_()
            inputs[name] = leaves[name]
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = {f"out{i}": x for i, x in enumerate(outputs)}
    if not leaves:
        return results
    if cotangents is None:
        generator = torch.Generator().manual_seed(SEED + DRAWS)
        cotangents = {
            f"cotangent.{i}": torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            for i, x in enumerate(outputs)
        }
        results |= cotangents
    total = sum((x * c.to(x.device, x.dtype)).sum() for x, c in zip(outputs, cotangents.values(), strict=True))
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return results | {f"grad.{name}": g for name, g in zip(leaves, gradients, strict=True)}


def _run_optimizer(operator: Operator, factory: Callable, inputs: dict, cotangents: dict | None) -> dict[str, Tensor]:
    """Parameters after one step per set of gradients."""
    params = [p.detach().clone().requires_grad_() for p in inputs["params"]]
    optimizer = factory(params, **inputs["options"])
    for grads in inputs["grads"]:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return {f"param{i}": p.detach() for i, p in enumerate(params)}


def _run_inplace(operator: Operator, function: Callable, inputs: dict, cotangents: dict | None) -> dict[str, Tensor]:
    """The returned value, and tensors changed in place."""
    grads = [g.clone() for g in inputs["grads"]]
    result = function(grads, inputs["max_norm"])
    return {"norm": result} | {f"grad{i}": g for i, g in enumerate(grads)}


_RUNS = {"function": _run_function, "optimizer": _run_optimizer, "inplace": _run_inplace}


def _double(x: Tensor) -> Tensor:
    return x.detach().to("cpu", torch.float64)


def _largest(x: Tensor) -> float:
    x = _double(x)
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


@dataclass
class _Errors:
    """What the draws of a case showed of one tensor."""

    squares: float = 0.0
    reference_squares: float = 0.0
    elements: int = 0
    worst: float = 0.0
    reference_worst: float = 0.0
    floor: float = 0.0
    note: str = ""

    def add(self, truth: Tensor, expected: Tensor, found: Tensor | None, largest: float) -> None:
        self.note = self.note or _unlike(truth, expected, found)
        if self.note:
            return
        truth, ours, theirs = (_double(x) for x in (truth, found, expected))
        finite = truth.isfinite()
        if not finite.any():
            return
        # Of 8 bits every one is part of the result: there the reference's values are asked for.
        eps, size = 0.0 if found.element_size() == 1 else torch.finfo(found.dtype).eps, _largest(truth)
        # A tensor that cancels to nothing (the gradient of a softmax over one key) is rounding noise of what cancelled.
        floor = 4 * eps * largest if size <= eps * largest else 2 * eps * size
        self.floor = max(self.floor, floor)
        error, reference_error = (ours - truth)[finite], (theirs - truth)[finite]
        self.squares += float(error.square().sum())
        self.reference_squares += float(reference_error.square().sum())
        self.elements += error.numel()
        self.worst = max(self.worst, float(error.abs().max()))
        self.reference_worst = max(self.reference_worst, float(reference_error.abs().max()))

    def finding(self, name: str, slack: float) -> Finding:
        rms, reference_rms = ((s / max(self.elements, 1)) ** 0.5 for s in (self.squares, self.reference_squares))
        allowed = max(slack * reference_rms, self.floor)
        return Finding(name, rms, allowed, self.worst, max(OUTLIER * self.reference_worst, self.floor), self.note)


def _unlike(truth: Tensor, expected: Tensor | None, found: Tensor | None) -> str:
    """What makes a comparison pointless, in words; empty when nothing does."""
    if found is None:
        return "missing"
    if found.shape != expected.shape:
        return f"shape {list(found.shape)}, reference {list(expected.shape)}"
    if found.dtype != expected.dtype:
        return f"{found.dtype}, reference {expected.dtype}"
    truth, ours = _double(truth), _double(found)
    finite = truth.isfinite()
    if not torch.equal(ours[~finite], truth[~finite]):
        return "not the reference's infinities"
    return "" if bool(ours[finite].isfinite().all()) else "not finite"
