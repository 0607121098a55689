"""`mova bench operators --choose`: the fastest of the implementations that may serve each operator on this device.

An implementation is judged on the operator's test cases before it is timed, and at the timed shapes its results must
agree with those of the first. What is timed are MOVA's shapes: forward and backward for training, forward for sampling,
in turns. What gains less than 3% over the declared order is left as declared. The file is written anew after each
operator; a run that was cut short goes on where it stopped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mova_engine.backend import NAMES, Backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench.operators import check_operators, forward_backward
from mova_engine.bench.timing import EMULATED, Timing, interleave, stopwatch
from mova_engine.errors import MovaError
from mova_engine.files.results import check_result, write_result
from mova_engine.ops import OPERATORS, Operator, inputs, resolve
from mova_engine.ops.choice import candidates
from mova_engine.ops.declarations import Implementation
from mova_engine.ops.measured_choices import KIND, choices_file, mismatch, purpose_of, read_file, versions
from mova_engine.ops.registry import ThisMachine, dtype_names
from mova_engine.ops.testing.cases import Case, cases_of
from mova_engine.ops.testing.verify import SEED, verify
from mova_kernels.measured_tables import FOLDER

if TYPE_CHECKING:
    # What makes commands of settings is not installed on every machine that measures.
    from mova_engine.bench.settings import OperatorsConfig

# Elements of the largest activation that a CPU, or an emulated device, measures in reasonable time; other devices
# measure the shapes beyond it, but for those of the 720p clip.
_SMALL, _LEFT_OUT = 1 << 24, "720p"
_ROUNDS = 200
# A gain over the declared order below which that is kept.
_GAIN = 1.03
# The most by which two implementations may differ at the timed shape: root mean square error, relative.
_APART = 0.02
# (width, hidden width) of bench-mid's video tower and of MOVA's, of whose layers optimizers are given the weights.
_LAYERS = {True: (768, 3072), False: (5120, 13824)}
# A function that does an operator's work once and returns its results.
Work = Callable[[], Any]


def run(settings: "OperatorsConfig", backend: Backend, dtype: torch.dtype) -> list[dict[str, Any]]:
    """`choose` with the settings of the command."""
    return choose(settings.op, settings.seconds, backend, dtype)


def choose(names: Sequence[str], seconds: float, backend: Backend, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Measure, print and write the choices; one row for each operator and purpose. names: operators that are measured
    even where they were before; none: all that were not. seconds: for each shape.
    """
    check_operators(names)
    path, rows = choices_file(backend), []
    path.parent.mkdir(parents=True, exist_ok=True)
    check_result(path, FOLDER)
    found: dict[str, Any] = {}
    mark = {"mark": EMULATED} if backend.emulated() else {}
    for said in mark.values():
        print(said)
    if path.exists():
        content = read_file(path)
        reason = mismatch(content, backend)
        print(f"{path}: {f'written anew: {reason}' if reason else 'added to'}")
        found = {} if reason else content["choices"]
    for name in names or OPERATORS:
        operator, judged = OPERATORS[name], {}
        for measured in operator.called_in or dtype_names((dtype,)):
            # Optimizers and clipping are of training alone.
            for training in (True, False) if operator.kind == "function" else (True,):
                known = found.setdefault(measured, {}).setdefault(purpose_of(training), {})
                if name in known and not names:
                    print(f"{name:28} {purpose_of(training):8} {known[name]['implementation']}: measured before")
                    continue
                row = _choose(operator, measured, training, seconds, backend, judged)
                if row is None:
                    continue
                rows.append(row)
                known[name] = {key: row[key] for key in ("implementation", "declared", "seconds")}
                facts = circumstances(backend)
                write_result(path, KIND, facts, option=FOLDER, versions=versions(backend), choices=found, **mark)
    print(f"written: {path}" if rows else "nothing was left to measure, and nothing was written")
    return rows


def _choose(
    operator: Operator,
    dtype: str,
    training: bool,
    seconds: float,
    backend: Backend,
    judged: dict[str, str | None],
) -> dict[str, Any] | None:
    """The row of an operator; None where fewer than two implementations may serve. judged: the reason against each
    implementation that was looked at, None for none; it is added to.
    """
    serving = candidates(operator, ThisMachine(backend), training, (dtype,))
    if len(serving) < 2:
        return None
    kind, functions = getattr(torch, dtype), {}
    for entry in serving:
        if entry.name not in judged:
            judged[entry.name] = _wrong(operator, entry, backend.device(), kind)
        if judged[entry.name] is None:
            functions[entry.name] = resolve(entry.target)
        else:
            print(f"{operator.name:28} {purpose_of(training):8} {entry.name}: not timed: {judged[entry.name]}")
    totals = dict.fromkeys(functions, 0.0)
    for shape in _shapes(operator, backend):
        works = _agreeing(operator, shape, functions, training, backend, kind)
        watches = {name: stopwatch(work, backend) for name, work in works.items()}
        times = interleave(watches, rounds=_ROUNDS, seconds=seconds) if watches else {}
        for name in totals:
            totals[name] += Timing.of(times[name]).median if name in times else math.inf
    totals = {name: total for name, total in totals.items() if 0 < total < math.inf}
    if len(totals) < 2:
        return None
    declared, fastest = next(iter(totals)), min(totals, key=totals.__getitem__)
    chosen = fastest if totals[declared] > _GAIN * totals[fastest] else declared
    shown = ", ".join(f"{name} {total * 1e3:.3f} ms" for name, total in sorted(totals.items(), key=lambda x: x[1]))
    print(f"{operator.name:28} {purpose_of(training):8} {chosen} (declared: {declared}): {shown}", flush=True)
    row = {"operator": operator.name, "dtype": dtype, "purpose": purpose_of(training)}
    return row | {"implementation": chosen, "declared": declared, "seconds": totals}


def _wrong(operator: Operator, entry: Implementation, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an implementation is not right on the operator's test cases; None when it is."""
    function, gradients = resolve(entry.target), entry.differentiable and bool(operator.differentiable)
    for case in cases_of(operator):
        if case.size != "test":
            continue
        try:
            found = verify(operator, function, case, device, dtype, gradients)
        except (RuntimeError, ValueError, MovaError) as error:
            return f"fails on {case.name}: {_first(error)}"
        wrong = [deviation.tensor for deviation in found if not deviation.passed]
        if wrong:
            return f"is wrong on {case.name} ({', '.join(wrong)})"
    return None


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _shapes(operator: Operator, backend: Backend) -> list[Case]:
    """What an operator is timed on: on a CPU and an emulated device small shapes."""
    small = backend.emulated() or backend.name == NAMES[0]
    if operator.kind != "function":
        width, hidden = _LAYERS[small]
        sizes = (*[(width, width)] * 8, (hidden, width), (width, hidden))
        make = inputs.adamw(shapes=sizes) if operator.kind == "optimizer" else inputs.gradients(3.0, shapes=sizes)
        return [Case("layer", make, "bench")]
    named = [case for case in cases_of(operator) if case.size == "bench"]
    return [case for case in named if (case.elements <= _SMALL) == small and not case.name.startswith(_LEFT_OUT)]


def _agreeing(
    operator: Operator,
    shape: Case,
    functions: Mapping[str, Callable[..., Any]],
    training: bool,
    backend: Backend,
    dtype: torch.dtype,
) -> dict[str, Work]:
    """The work of each implementation at a shape. One that fails there, or does not give what the first does, is left
    out, and the reason printed.
    """
    works: dict[str, Work] = {}
    first: list[Tensor] = []
    for name, function in functions.items():
        given = shape.make(torch.Generator(backend.device()).manual_seed(SEED), backend.device(), dtype)
        try:
            work = _WORKS[operator.kind](operator, function, given, training)
            results = [x for x in tree_leaves(work()) if isinstance(x, Tensor)]
            first = first or [x.clone() for x in results]
            apart = max((_difference(a, b) for a, b in zip(first, results, strict=True)), default=0.0)
        except (RuntimeError, ValueError, MovaError) as error:
            print(f"{operator.name:28} {shape.name:16} {name}: not timed: {_first(error)}")
            continue
        if apart <= _APART:
            works[name] = work
        else:
            print(
                f"{operator.name:28} {shape.name:16} {name}: not timed: differs by {apart:.1%} from {next(iter(works))}"
            )
    return works


def _difference(one: Tensor, other: Tensor) -> float:
    """Root mean square difference of two tensors, relative to the first; infinite for what is not finite."""
    one, other = one.float(), other.float()
    apart = (one - other).square().mean().sqrt() / one.square().mean().sqrt().clamp_min(1e-30)
    return float(apart) if bool(apart.isfinite()) else math.inf


def _function(operator: Operator, function: Callable[..., Any], given: dict[str, Any], training: bool) -> Work:
    if training and operator.differentiable:
        return forward_backward(operator, function, given)
    return partial(torch.no_grad()(function), **given)


def _step(operator: Operator, factory: Callable[..., Any], given: dict[str, Any], training: bool) -> Work:
    optimizer = factory(given["params"], **given["options"])
    for parameter, gradient in zip(given["params"], given["grads"][0], strict=True):
        parameter.grad = gradient

    def step() -> list[Tensor]:
        optimizer.step()
        return given["params"]

    return step


def _inplace(operator: Operator, function: Callable[..., Any], given: dict[str, Any], training: bool) -> Work:
    return partial(function, **given)


_WORKS = {"function": _function, "optimizer": _step, "inplace": _inplace}
