"""Verifies an implementation of an operator; used by tests and benchmarks.

The truth is the reference in float64. The noise model (`noise.py`) gives the allowed error of every element: rounding
to the result's dtype, the reference's error in that dtype beyond it, and the unavoidable error of float32 arithmetic.
Five quantities are bounded in units of this noise, over `DRAWS` draws of the inputs: the root mean square error of the
whole tensor, of each row, the error of each element, and the systematic error of whole lines of elements: its slope
against the truth (a wrong factor) and its mean (a wrong offset). Rounding is random and averages out in the last two,
which therefore detect mistakes far below it. Gradients are verified in the same way as outputs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mova_engine.backend import describe_backend
from mova_engine.ops.declarations import Operator
from mova_engine.ops.testing.cases import Case
from mova_engine.ops.testing.noise import EPS32, Noise

SEED = 2026
DRAWS = 3
# If few roundings make up an error (one query has nearly all of a key's weight), correct implementations may differ
# much: by up to this multiple of the difference between the reference's own forms.
APART = 1.5


@dataclass(frozen=True)
class Measure:
    """One bounded quantity, in units of the expected noise."""

    name: str
    found: float
    allowed: float

    @property
    def share(self) -> float:
        """found / allowed; infinity for a NaN."""
        return math.inf if math.isnan(self.found) else self.found / self.allowed


@dataclass(frozen=True)
class Deviation:
    """The deviation of one tensor of a case from the truth. measures: the bounded quantities. note: why the tensor
    cannot be compared at all (wrong shape, not finite, ...), else "".
    """

    tensor: str
    measures: tuple[Measure, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        return not self.note and self.share <= 1

    @property
    def share(self) -> float:
        """The worst measure as a fraction of what is allowed."""
        return max((measure.share for measure in self.measures), default=0.0)

    def __str__(self) -> str:
        over = [f"{m.name} {m.found:.3g} of {m.allowed:.3g}" for m in self.measures if m.share > 1]
        return f"{self.tensor}: {self.note or ', '.join(over) or f'{self.share:.0%} of what is allowed'}"


@dataclass(frozen=True)
class Trial:
    """One draw of a case. inputs: keyword arguments. cotangents: gradients of the outputs. expected, noise: the
    reference's results and their noise model, by tensor name.
    """

    inputs: dict[str, Any]
    cotangents: tuple[Tensor, ...]
    expected: dict[str, Tensor]
    noise: dict[str, Noise]


def verify(
    operator: Operator,
    implementation: Callable[..., Any],
    case: Case,
    device: torch.device,
    dtype: torch.dtype,
    gradients: bool = True,
) -> list[Deviation]:
    """Run an implementation on `DRAWS` draws of a case, and compare every output and gradient with the truth.

    gradients: False: outputs only, for an implementation without a gradient. Returns a Deviation for each tensor.
    """
    if not gradients:
        operator = replace(operator, differentiable=())
    made = trials(operator, case, device, dtype)
    return judge(operator, ((trial, results(operator, implementation, trial)) for trial in made))


def trials(operator: Operator, case: Case, device: torch.device, dtype: torch.dtype) -> Iterator[Trial]:
    """Yield `DRAWS` draws of a case with the reference's results; they can serve several implementations."""
    run = _RUNS[operator.kind]
    forms = (operator.reference, *operator.rounded)
    for draw in range(DRAWS):
        inputs = case.make(torch.Generator().manual_seed(SEED + draw), device, dtype)
        exact = _exact(inputs, device)
        # Drawn in the results' own dtypes, so that rounding them adds no error.
        cotangents = _cotangents(operator, inputs) if operator.differentiable else ()
        truth = run(operator, operator.reference, exact, cotangents)
        nudged = run(operator, operator.reference, _nudged(exact, draw), cotangents)
        made = [run(operator, form, inputs, cotangents) for form in forms]
        noise, largest = {}, max((_largest(x) for x in (*truth.values(), *cotangents)), default=0.0)
        for name in truth:
            others = [results[name].to(truth[name].device) for results in made]
            noise[name] = Noise.of(truth[name], nudged[name], others, largest)
        yield Trial(inputs, cotangents, made[0], noise)


def results(operator: Operator, implementation: Callable[..., Any], trial: Trial) -> dict[str, Tensor]:
    """The outputs and gradients of `implementation` on a trial, by tensor name."""
    return _RUNS[operator.kind](operator, implementation, trial.inputs, trial.cotangents)


def judge(operator: Operator, pairs: Iterable[tuple[Trial, Mapping[str, Tensor]]]) -> list[Deviation]:
    """Compare the results of trials with the truth; returns a Deviation for each tensor."""
    tensors: dict[str, _Accumulated] = {}
    for trial, found in pairs:
        for name, noise in trial.noise.items():
            tensors.setdefault(name, _Accumulated()).add(noise, trial.expected[name], found.get(name), operator.slack)
    return [tensors[name].finding(name, operator.slack) for name in sorted(tensors)]


def _exact(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The inputs in float64; on the CPU if the device has no float64."""
    place = device if describe_backend(device.type).float64 else torch.device("cpu")
    return _mapped(inputs, lambda x: x.to(place).to(torch.float64) if x.is_floating_point() else x.to(place))


def _nudged(exact: dict[str, Any], draw: int) -> dict[str, Any]:
    """The inputs perturbed by float32's rounding: the change of the results is an error that float32 cannot avoid."""
    generator = torch.Generator().manual_seed(SEED - 1 - draw)

    def nudge(x: Tensor) -> Tensor:
        by = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x.device)
        return x * (1 + EPS32 * by) if x.is_floating_point() else x

    return _mapped(exact, nudge)


def _mapped(inputs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The inputs with `change` applied to every tensor, also in lists."""

    def convert(x: Any) -> Any:
        return change(x) if isinstance(x, Tensor) else [convert(y) for y in x] if isinstance(x, list) else x

    return {name: convert(x) for name, x in inputs.items()}


def _run_function(operator: Operator, function: Callable, inputs: dict, cotangents: tuple) -> dict[str, Tensor]:
    """Outputs, and gradients of `sum(cotangent * output)` for every differentiable input."""
    inputs = dict(inputs)
    leaves = {}
    for name in operator.differentiable:
        if inputs[name] is not None:
            # A view of a larger tensor stays one: non-contiguous inputs must arrive as such.
            leaves[name] = inputs[name].detach().requires_grad_()
            inputs[name] = leaves[name]
    outputs = _tuple(function(**inputs))
    results = {f"out{i}": x.detach() for i, x in enumerate(outputs)}
    if not leaves:
        return results
    grads = [c.to(x.device, x.dtype) for x, c in zip(outputs, cotangents, strict=True)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), grads, allow_unused=True)
    return results | {f"grad.{name}": g for name, g in zip(leaves, gradients, strict=True)}


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _cotangents(operator: Operator, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """What arrives at each output in the backward."""
    generator = torch.Generator().manual_seed(SEED + DRAWS)
    with torch.no_grad():
        outputs = _tuple(operator.reference(**inputs))
    return tuple(torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in outputs)


def _run_optimizer(operator: Operator, factory: Callable, inputs: dict, cotangents: tuple) -> dict[str, Tensor]:
    """Parameters after one step per set of gradients."""
    params = [p.detach().clone().requires_grad_() for p in inputs["params"]]
    optimizer = factory(params, **inputs["options"])
    for grads in inputs["grads"]:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
    return {f"param{i}": p.detach() for i, p in enumerate(params)}


def _run_inplace(operator: Operator, function: Callable, inputs: dict, cotangents: tuple) -> dict[str, Tensor]:
    """The returned value, and the tensors that were changed in place."""
    grads = [g.clone() for g in inputs["grads"]]
    result = function(grads, inputs["max_norm"])
    return {"norm": result} | {f"grad{i}": g for i, g in enumerate(grads)}


_RUNS = {"function": _run_function, "optimizer": _run_optimizer, "inplace": _run_inplace}


def _largest(x: Tensor) -> float:
    x = x.detach().to(torch.float32) if x.element_size() == 1 else x.detach()
    return float(x.where(x.isfinite(), 0).abs().max()) if x.numel() else 0.0


@dataclass
class _Accumulated:
    """The errors of one tensor over the draws of a case."""

    rows: list[Tensor] = field(default_factory=list)  # root mean squares, in units of noise
    worst: float = 0.0
    apart: tuple[float, float] = (0.0, 0.0)
    lines: dict[str, list[tuple[Tensor, float, float]]] = field(default_factory=dict)
    elements: int = 0
    row: int = 1
    note: str = ""

    def add(self, noise: Noise, expected: Tensor, found: Tensor | None, slack: float) -> None:
        self.note = self.note or _unlike(noise, expected, found)
        if self.note or found is None or not noise.weight.any():
            return
        error = noise.error(found)
        self.elements, self.row = self.elements + int(noise.weight.sum()), noise.row
        self.rows.append(noise.rows(error).flatten())
        self.worst = max(self.worst, noise.worst(error))
        self.apart = (max(self.apart[0], noise.apart[0]), max(self.apart[1], noise.apart[1]))
        for name, line in noise.lines(error).items():
            self.lines.setdefault(name, []).append(line)

    def finding(self, name: str, slack: float) -> Deviation:
        if self.note or not self.rows:
            return Deviation(name, note=self.note)
        return Deviation(name, tuple(self._measures(slack)))

    def _measures(self, slack: float) -> Iterator[Measure]:
        rows = torch.cat(self.rows)
        # The bounds allow for the random variation of a mean square over few elements.
        yield Measure("rms", float(rows.square().mean()) ** 0.5, slack * (1 + 2 * self.elements**-0.5))
        yield Measure("row", float(rows.max()), slack * max(1 + 6 * self.row**-0.5, APART * self.apart[0]))
        yield Measure("element", self.worst, slack * max(8, APART * self.apart[1]))
        for name, draws in self.lines.items():
            z = torch.cat([x.flatten() for x, *_ in draws])
            usual, worst = max(usual for _, usual, _ in draws), max(worst for *_, worst in draws)
            yield Measure(name, float(z.square().mean()) ** 0.5, slack * max(1, usual) * (1 + 3 * z.numel() ** -0.5))
            yield Measure(f"worst {name}", float(z.abs().max()), slack * max(8, APART * worst))


def _unlike(noise: Noise, expected: Tensor, found: Tensor | None) -> str:
    """Why two tensors cannot be compared (missing, shape, dtype, infinities); "" if they can."""
    if found is None:
        return "missing"
    if found.shape != expected.shape:
        return f"shape {list(found.shape)}, reference {list(expected.shape)}"
    if found.dtype != expected.dtype:
        return f"{found.dtype}, reference {expected.dtype}"
    if found.element_size() == 1:
        # 8-bit results must be equal.
        differ = int((found.view(torch.uint8) != expected.view(torch.uint8)).sum())
        return f"{differ} of {found.numel()} values are not the reference's" if differ else ""
    ours = found.detach().to(noise.truth.device, torch.float64).view_as(noise.truth)
    finite = noise.weight.bool()
    if not torch.equal(ours.where(~finite, 0), noise.truth.where(~finite, 0)):
        return "not the reference's infinities"
    return "" if bool(ours.where(finite, 0).isfinite().all()) else "not finite"
