"""Measures single operators: every implementation that the device can run is checked, then timed interleaved."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mova_engine.backend import Backend
from mova_engine.bench.bandwidth import copy_bandwidth
from mova_engine.bench.baseline import NAME, load_baseline
from mova_engine.bench.passes import bytes_moved, flops
from mova_engine.bench.timing import Timing, interleave, stopwatch
from mova_engine.errors import MovaError, suggest
from mova_engine.ops import OPERATORS, REFERENCE, Operator, bind_operator, refusal, torch_dtypes
from mova_engine.ops.testing.cases import Case, cases_of
from mova_engine.ops.testing.verify import SEED, verify

if TYPE_CHECKING:
    # What makes commands of settings is not installed on every machine that measures.
    from mova_engine.bench.settings import OperatorsConfig

# Elements of the largest activation that a device measures in reasonable time.
_LARGEST = {"cpu": 1 << 24}
_ANY = 1 << 40
_ROUNDS = 200


def run(settings: "OperatorsConfig", backend: Backend, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per operator, case and implementation: forward and backward seconds, and the ratio to the reference."""
    check_operators(settings.op)
    names = settings.op or tuple(OPERATORS)
    baseline = {} if settings.baseline == "none" else load_baseline(settings.baseline)
    bandwidth = copy_bandwidth(backend)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    largest = _LARGEST.get(backend.name, _ANY)
    rows = []
    for operator in (OPERATORS[name] for name in names):
        if operator.name in baseline:
            _check_baseline(operator, baseline[operator.name], backend)
        for case in cases_of(operator):
            if case.size != "bench":
                continue
            if case.elements > largest:
                print(f"{operator.name:28} {case.name:16} left out: too large for this device")
                continue
            functions = candidates(operator, case, backend, dtype, baseline, settings.compile)
            rows += _case_rows(operator, case, functions, backend, dtype, settings.seconds, bandwidth)
    return rows


def check_operators(names: Iterable[str]) -> None:
    """MovaError for a name that is no operator's."""
    for name in names:
        if name not in OPERATORS:
            raise MovaError(f"unknown operator '{name}'.{suggest(name, OPERATORS)}")


def candidates(
    operator: Operator,
    case: Case,
    backend: Backend,
    dtype: torch.dtype,
    baseline: Mapping[str, Callable],
    compiled: bool,
) -> dict[str, Callable]:
    """The implementations of the operator that run on this device, the reference first. Raises MovaError if one is
    wrong on this case.
    """
    functions: dict[str, Callable] = {}
    for name in reversed(operator.choices()):
        entry = next((i for i in operator.implementations if i.name == name), None)
        if entry and dtype not in torch_dtypes(entry):
            continue
        # Not tried in vain: that takes seconds.
        if entry and not entry.automatic and not compiled:
            continue
        if entry and refusal(operator, entry, backend, entry.differentiable, (dtype,)):
            continue
        if entry and not entry.automatic:
            # Else the shapes of earlier cases would make of it a program for any shape.
            torch.compiler.reset()
        function, _ = bind_operator(operator, backend, name, training=False, dtypes=(dtype,))
        try:
            _require_right(operator, function, name, case, backend, dtype)
        except Exception as error:  # whatever a compiler raises: it is not ours to list
            if entry is None or entry.automatic:
                raise
            print(f"{operator.name:28} {case.name:16} {name}: no figure: {' '.join(str(error).split())[:120]}")
            continue
        functions[name] = function
    if operator.name in baseline:
        functions[NAME] = baseline[operator.name]
    return functions


def _has_gradient(operator: Operator, name: str) -> bool:
    """Whether the operator and its implementation `name` (or the reference, or the baseline) have gradients."""
    entry = next((i for i in operator.implementations if i.name == name), None)
    return bool(operator.differentiable) and (entry is None or entry.differentiable)


def _require_right(
    operator: Operator, function: Callable, name: str, case: Case, backend: Backend, dtype: torch.dtype
) -> None:
    findings = verify(operator, function, case, backend.device(), dtype, _has_gradient(operator, name))
    wrong = [f.tensor for f in findings if not f.passed]
    if wrong:
        raise MovaError(f"{operator.name} '{name}' is wrong on {case.name} ({', '.join(wrong)}): no speed is reported")


def _check_baseline(operator: Operator, function: Callable, backend: Backend) -> None:
    """Check the baseline in float32 only: in half precision the published formulation rounds after each of its
    operations, and exceeds the error bounds of operators. float32 shows that it computes the same function.
    """
    for case in cases_of(operator):
        if case.size == "test":
            _require_right(operator, function, NAME, case, backend, torch.float32)


def _case_rows(
    operator: Operator,
    case: Case,
    functions: Mapping[str, Callable],
    backend: Backend,
    dtype: torch.dtype,
    seconds: float,
    bandwidth: float,
) -> list[dict[str, Any]]:
    inputs = case.make(torch.Generator().manual_seed(SEED), backend.device(), dtype)
    forward = {name: stopwatch(partial(function, **inputs), backend) for name, function in functions.items()}
    timed = {"forward": interleave(forward, rounds=_ROUNDS, seconds=seconds)}
    trained = {name: function for name, function in functions.items() if _has_gradient(operator, name)}
    if trained:
        both = {name: stopwatch(forward_backward(operator, f, inputs), backend) for name, f in trained.items()}
        timed["forward_backward"] = interleave(both, rounds=_ROUNDS, seconds=seconds)
    moved, computed = bytes_moved(operator.name, inputs), flops(operator.name, inputs)
    rows = []
    for name in functions:
        row: dict[str, Any] = {"operator": operator.name, "case": case.name, "implementation": name}
        for index, (direction, times) in enumerate(timed.items()):
            if name not in times:
                continue
            median = Timing.of(times[name]).median
            row[f"{direction}_s"] = median
            row[f"{direction}_speedup"] = Timing.of(times[REFERENCE]).median / median
            if any(moved):
                row[f"{direction}_bytes_per_s"] = sum(moved[: index + 1]) / median
                row[f"{direction}_of_copy_bandwidth"] = row[f"{direction}_bytes_per_s"] / bandwidth
            if any(computed):
                row[f"{direction}_flop_per_s"] = sum(computed[: index + 1]) / median
        rows.append(row)
        print(_line(row))
    return rows


def forward_backward(
    operator: Operator, function: Callable, inputs: dict[str, Any]
) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A function that runs one forward and its gradients, which it returns."""
    leaves = {
        name: inputs[name].detach().requires_grad_() for name in operator.differentiable if inputs[name] is not None
    }
    outputs = function(**inputs | leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [torch.ones_like(x) for x in outputs]

    def run_both() -> tuple[torch.Tensor, ...]:
        outs = function(**inputs | leaves)
        return torch.autograd.grad(
            outs, list(leaves.values()), cotangents if isinstance(outs, tuple) else cotangents[0]
        )

    return run_both


def _line(row: dict[str, Any]) -> str:
    text = f"{row['operator']:28} {row['case']:16} {row['implementation']:12} forward {row['forward_s'] * 1e3:9.3f} ms"
    if "forward_of_copy_bandwidth" in row:
        text += f" ({row['forward_of_copy_bandwidth']:4.0%} of copy)"
    if "forward_backward_s" in row:
        text += f"  forward+backward {row['forward_backward_s'] * 1e3:9.3f} ms (x{row['forward_backward_speedup']:.2f})"
    return text
