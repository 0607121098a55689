"""Every implementation of an operator at MOVA's shapes; and what is chosen by measurement, for later runs to read."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mova_engine.bench.card.card_context import CardContext, LeftOut, first_line
from mova_engine.bench.choose_operators import choose
from mova_engine.bench.operators import forward_backward
from mova_engine.bench.passes import bytes_moved, flops
from mova_engine.bench.timing import interleave, stopwatch
from mova_engine.bench.workloads import AGREED, relative_error
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, REFERENCE, Operator, bind_operator, refusal, torch_dtypes
from mova_engine.ops.testing.cases import Case, cases_of
from mova_engine.ops.testing.verify import SEED
from mova_kernels import tune

# Cases of CPUs; what is smaller than MOVA's is for rehearsals.
_SMALL_CASES = ("1280x768", "8192x1536", "1280x768x3072", "1280x6")
_COMPILED = "compile"
# Seconds for each case and direction; and the share of an attention's time at the peak beyond which it is left out.
_SECONDS, _LONGEST = 0.4, 1.0
_ROUNDS, _LEAST = 100, 3
# Rows that are compared with the reference in float64.
_ROWS = 64
# Operators for which a rehearsal chooses; seconds for each shape of a choice.
_CHOSEN, _CHOICE_SECONDS = ("rms_norm", "adamw"), 0.3
Rows = list[dict[str, Any]]


def choose_implementations(context: CardContext, unit: str) -> Rows:
    """What `mova bench operators --choose` does for the operator `unit`, written where later processes read it."""
    if context.rehearsed and unit not in _CHOSEN:
        raise LeftOut(f"a rehearsal chooses for {' and '.join(_CHOSEN)}")
    rows = choose((unit,), 0.01 if context.rehearsed else _CHOICE_SECONDS, context.backend, context.dtype)
    if not rows:
        raise LeftOut("fewer than two implementations may serve here")
    return rows


def choose_tiles(context: CardContext, unit: str) -> Rows:
    """The tiles of the Triton kernel `unit`, written where this suite's later processes look for them."""
    reason = tune.unavailable()
    if context.rehearsed or reason is not None:
        raise LeftOut(reason or "a rehearsal measures no tiles")
    from triton.testing import do_bench

    from mova_kernels.triton_tiles import architecture, table_file

    arguments = tune.arguments(["--only", unit])
    name = context.backend.describe()
    tune.tune(arguments, context.device, name, partial(do_bench, warmup=5, rep=20, return_mode="median"))
    return [{"kernel": unit, "table": Path(table_file(architecture(context.device))).name}]


def time_operator(context: CardContext, unit: str) -> Rows:
    """A row for each implementation of the operator `unit` and each shape: forward, forward and backward, as shares of
    the copy bandwidth or of the peak. Before it is timed, some rows of its result are compared with the reference in
    float64; what is wrong gets no figure. An implementation that fails has a row with the reason.
    """
    operator = OPERATORS[unit]
    small = [case for case in cases_of(operator) if case.size == "bench" and case.name.startswith(_SMALL_CASES)]
    cases = [case for case in cases_of(operator) if case.size == "bench" and case not in small]
    found: Rows = []
    for case in small[:1] if context.rehearsed else cases:
        try:
            found += _timed_case(context, operator, case)
        except torch.OutOfMemoryError:
            found.append({"operator": unit, "case": case.name, "left_out": "its inputs do not fit the card's memory"})
        context.clear()
    if not found:
        raise LeftOut("nothing but the reference runs here")
    return found


def _timed_case(context: CardContext, operator: Operator, case: Case) -> Rows:
    backend, dtype = context.backend, context.dtype
    row: dict[str, Any] = {"operator": operator.name, "case": case.name}
    inputs = case.make(torch.Generator(context.device).manual_seed(SEED), context.device, dtype)
    computed, moved = flops(operator.name, inputs), bytes_moved(operator.name, inputs)
    peak = backend.peak_flops(dtype)
    if peak and sum(computed) / peak > _LONGEST:
        return [row | {"left_out": f"{sum(computed) / 1e12:.0f} TFLOP take too long for a slice"}]
    rows: Rows = []
    for name in operator.choices():
        entry = next((each for each in operator.implementations if each.name == name), None)
        if name in (_COMPILED, REFERENCE) or entry is None or dtype not in torch_dtypes(entry):
            continue
        if refusal(operator, entry, backend, entry.differentiable, (dtype,)):
            continue
        one = row | {"implementation": name}
        try:
            function, _ = bind_operator(operator, backend, name, training=False, dtypes=(dtype,))
            one["check"] = _rows_agree(context, operator, function, inputs)
            one |= figures(context, operator, function, inputs, entry.differentiable, moved, computed, peak)
        except MovaError as error:
            one |= {"passed": False, "failed": str(error)}
        except torch.OutOfMemoryError:
            one["left_out"] = "does not fit the card's memory"
        except Exception as error:  # what a kernel or its compiler raises: the others are measured all the same
            one |= {"passed": False, "failed": first_line(error)}
        rows.append(one)
        context.clear()
    return rows


def _rows_agree(
    context: CardContext, operator: Operator, function: Callable[..., Any], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Compare some rows of a result, the first and the last among them, with the reference's in float64. Raises
    MovaError where they differ.

    In all operators that are timed a row of the result depends on one row of `x` or `q` alone, and on all of the rest.
    """
    lead = "q" if "q" in inputs else "x"
    count = inputs[lead].shape[1]
    index = torch.linspace(0, count - 1, min(_ROWS, count)).round().long().unique()
    place = context.device if context.backend.float64 else torch.device("cpu")
    chosen = {name: _exact(_rows_of(name, x, count, index, lead), place) for name, x in inputs.items()}
    truth, found = operator.reference(**chosen), function(**inputs)
    pairs = zip(_tuple(found), _tuple(truth), strict=True)
    error = max(relative_error(_rows_of("", x, count, index, lead), y) for x, y in pairs)
    allowed = AGREED[context.dtype]
    if not error <= allowed:
        raise MovaError(
            f"wrong: rows are off by {error:.1e} of their size, allowed {allowed:.1e}; no speed is reported"
        )
    return {"rows": len(index), "error": error, "allowed": allowed}


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _rows_of(name: str, x: Any, count: int, index: Tensor, lead: str) -> Any:
    """Of a tensor that has `count` rows those of `index`; keys and values, and what has no rows, as they are."""
    if not isinstance(x, Tensor) or (lead == "q" and name in ("k", "v")):
        return x
    # The rows' dimension is the second of activations, the first of tables and the last of log-sum-exps.
    dim = next((d for d in (1, 0, x.dim() - 1) if 0 <= d < x.dim() and x.shape[d] == count), None)
    return x if dim is None else x.index_select(dim, index.to(x.device))


def _exact(x: Any, place: torch.device) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to(place, torch.float64) if x.is_floating_point() else x.to(place)


def figures(
    context: CardContext,
    operator: Operator,
    function: Callable[..., Any],
    inputs: dict[str, Any],
    trained: bool,
    moved: tuple[int, int],
    computed: tuple[int, int],
    peak: float | None,
) -> dict[str, Any]:
    """Seconds of a function with the operator's signature, forward and, if `trained`, backward, and what they come to:
    moved, computed: (forward, backward) bytes and FLOPs of a call. peak: FLOP/s.
    """
    least = 1 if context.rehearsed else _LEAST

    def median(run: Callable[[], object]) -> float:
        times = interleave({"": stopwatch(run, context.backend)}, rounds=_ROUNDS, seconds=_SECONDS, least=least)[""]
        return sorted(times)[len(times) // 2]

    with torch.no_grad():
        seconds = {"forward": median(lambda: function(**inputs))}
    if trained and operator.differentiable:
        both = median(forward_backward(operator, function, inputs))
        seconds |= {"backward": max(both - seconds["forward"], 0.0), "forward_backward": both}
    figures: dict[str, Any] = {f"{name}_s": value for name, value in seconds.items()}
    for index, name in enumerate(("forward", "backward")):
        if not seconds.get(name):
            continue
        if moved[index]:
            figures[f"{name}_of_copy_bandwidth"] = moved[index] / seconds[name] / context.bandwidth
        if computed[index]:
            figures[f"{name}_flop_per_s"] = computed[index] / seconds[name]
            figures[f"{name}_of_peak"] = computed[index] / seconds[name] / peak if peak else None
    return figures
