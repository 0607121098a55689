"""`operators`: every implementation of every operator that the device can run, checked first, then timed."""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from mova_engine.backend import Backend
from mova_engine.bench.timing import measure
from mova_engine.errors import MovaError, suggest
from mova_engine.ops import OPERATORS, REFERENCE, Case, Operator, bind_operator
from mova_engine.ops.verify import SEED, verify

# Elements of the largest activation that a device measures in reasonable time.
_LARGEST = {"cpu": 1 << 24}
_ANY = 1 << 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this suite."""
    parser.add_argument("--op", nargs="*", default=list(OPERATORS), help="operators to measure (default all)")
    parser.add_argument("--compiled", action="store_true", help="also torch.compile of the references: takes minutes")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each figure (default 0.5)")


def run(args: argparse.Namespace, backend: Backend, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row per operator, case and implementation: forward and backward seconds, and the ratio to the reference."""
    for name in args.op:
        if name not in OPERATORS:
            raise MovaError(f"unknown operator '{name}'.{suggest(name, OPERATORS)}")
    rows = []
    for operator in (OPERATORS[name] for name in args.op):
        for case in operator.cases:
            if case.size == "bench" and case.elements <= _LARGEST.get(backend.name, _ANY):
                rows += _case_rows(operator, case, backend, dtype, args.seconds, args.compiled)
    return rows


def _case_rows(
    operator: Operator, case: Case, backend: Backend, dtype: torch.dtype, seconds: float, compiled: bool
) -> list[dict]:
    rows = []
    inputs = case.make(torch.Generator().manual_seed(SEED), backend.device(), dtype)
    for name in reversed(operator.choices()):
        entry = next((i for i in operator.implementations if i.name == name), None)
        if entry and (entry.refusal(backend, training=entry.differentiable) or dtype not in entry.torch_dtypes()):
            continue
        if entry and not entry.automatic:
            if not compiled:
                continue
            # Else the shapes of earlier cases would make of it a program for any shape.
            torch.compiler.reset()
        function, _ = bind_operator(operator, backend, name, training=False)
        gradients = entry is None or entry.differentiable
        findings = verify(operator, function, case, backend.device(), dtype, gradients)
        wrong = [f.tensor for f in findings if not f.passed]
        if wrong:
            raise MovaError(
                f"{operator.name} '{name}' is wrong on {case.name} ({', '.join(wrong)}): no speed is reported"
            )
        forward = measure(lambda f=function: f(**inputs), backend, seconds=seconds)
        row = {"operator": operator.name, "case": case.name, "implementation": name, "forward_s": forward.median}
        if operator.differentiable and gradients:
            row["forward_backward_s"] = measure(_both(operator, function, inputs), backend, seconds=seconds).median
        reference = next((r for r in rows if r["implementation"] == REFERENCE), row)
        row |= {f"{k[:-2]}_speedup": reference[k] / row[k] for k in ("forward_s", "forward_backward_s") if k in row}
        rows.append(row)
        print(_line(row))
    return rows


def _both(operator: Operator, function: Callable, inputs: dict[str, Any]) -> Callable[[], None]:
    leaves = {
        name: inputs[name].detach().requires_grad_() for name in operator.differentiable if inputs[name] is not None
    }
    outputs = function(**inputs | leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    cotangents = [torch.ones_like(x) for x in outputs]

    def run_both() -> None:
        outs = function(**inputs | leaves)
        torch.autograd.grad(outs, list(leaves.values()), cotangents if isinstance(outs, tuple) else cotangents[0])

    return run_both


def _line(row: dict[str, Any]) -> str:
    text = f"{row['operator']:28} {row['case']:16} {row['implementation']:12} forward {row['forward_s'] * 1e3:9.3f} ms"
    if "forward_backward_s" in row:
        text += f"  forward+backward {row['forward_backward_s'] * 1e3:9.3f} ms (x{row['forward_backward_speedup']:.2f})"
    return text
