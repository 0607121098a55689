"""Measures a job with the engine and the baseline on the same tensors: checks both, then times them interleaved."""

import gc
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mova_engine.backend import Backend, get_backend
from mova_engine.bench.bandwidth import copy_bandwidth
from mova_engine.bench.baseline import NAME, bind_baseline
from mova_engine.bench.candidate import Candidate, InProcessRunner, drawn_once
from mova_engine.bench.subprocess_runner import SubprocessRunner
from mova_engine.bench.timing import Timing, interleave, median_ratio
from mova_engine.bench.workloads import AGREED, Tensors, Workload, convert, judge, relative_error, require_agreement
from mova_engine.errors import MovaError
from mova_engine.ops import DTYPES, REFERENCE, bind

if TYPE_CHECKING:
    # What makes commands of settings is not installed on every machine that measures.
    from mova_engine.bench.settings import ComparedConfig

Workers = Mapping[str, InProcessRunner | SubprocessRunner]
ENGINE, COMPILED = "engine", "compiled"
# What torch.compile is given to fuse; products and attention stay with their kernels.
_FUSIBLE = (
    "rms_norm_rope",
    "rms_norm",
    "norm_modulate",
    "layer_norm",
    "gate_residual",
    "gate_residual_norm",
    "gate_residual_norm_modulate",
    "linear_gelu",
    "lora_linear",
)


def make_sides(
    settings: "ComparedConfig", backend: Backend, dtype: torch.dtype, *, training: bool = True
) -> list[Candidate]:
    """The candidates of a comparison, the engine first."""
    sides = [Candidate(ENGINE, bind(backend, training=training, dtypes=(dtype,)), dtype)]
    if settings.baseline != "none":
        other = DTYPES[settings.baseline_dtype] if settings.baseline_dtype else dtype
        make = partial(_baseline_side, backend.name, settings.baseline, other, training)
        # Two processes would share an accelerator by turns of its own, and hold its memory twice.
        apart = backend.name == "cpu" and not settings.one_process
        sides.append(replace(make(), remake=make if apart else None))
    if settings.compile:
        references = bind(backend, dict.fromkeys(_FUSIBLE, REFERENCE), training=training)
        sides.append(Candidate(COMPILED, references, dtype, compiled=True))
    return sides


def _baseline_side(device: str, target: str, dtype: torch.dtype, training: bool) -> Candidate:
    return Candidate(NAME, bind_baseline(get_backend(device), target, training=training), dtype)


def measure_job(
    job: Workload, small: Workload, sides: list[Candidate], backend: Backend, *, pairs: int, seconds: float
) -> dict[str, Any]:
    """Check every candidate on the job's `small` form against float64, then time all of them on the job itself.

    pairs: of interleaved runs; none begins after `seconds`. Returns the row of the result file. Raises MovaError, and
    measures nothing, if a candidate's results are wrong.
    """
    dtype = sides[0].dtype
    with ExitStack() as processes:
        draw = drawn_once(backend, dtype)
        workers = {
            side.name: processes.enter_context(SubprocessRunner(side, dtype))
            if side.remake
            else InProcessRunner(side, backend, draw, dtype)
            for side in sides
        }
        checks = check_sides(small, workers, dtype, backend)
        for worker in workers.values():
            worker.begin(job)
        checks |= _compare_at_full_size(job, workers)
        bandwidth = copy_bandwidth(backend)
        runs = {name: worker.run for name, worker in workers.items()}
        times = interleave(runs, rounds=pairs, seconds=seconds)
        figures = {side.name: _figures(side, job, Timing.of(times[side.name]), bandwidth, backend) for side in sides}
        for name, worker in workers.items():
            figures[name] |= worker.memory()
    row = {
        "job": job.name,
        **job.facts,
        "dtype": _name(dtype),
        "model_tflop": job.model_flops / 1e12,
        "copy_bytes_per_s": bandwidth,
        "checks": checks,
        "sides": figures,
        "ratios": {side.name: asdict(median_ratio(times[side.name], times[ENGINE])) for side in sides[1:]},
        "times_s": times,
    }
    print_row(row)
    return row


def check_sides(small: Workload, workers: Workers, source: torch.dtype, backend: Backend) -> dict[str, dict[str, Any]]:
    """Compare each candidate with the references in float64; return its worst tensor. Raises MovaError if one is wrong.

    source: the dtype in which the job's tensors are drawn.
    """
    tensors = drawn_once(backend, source)(small)

    def results_of_references(place: Backend, dtype: torch.dtype) -> Tensors:
        moved = {name: x.to(place.device()) for name, x in tensors.items()}
        return small.work(bind(place, REFERENCE), convert(moved, source, dtype)).results()

    truth = results_of_references(backend if backend.float64 else get_backend("cpu"), torch.float64)
    own = {dtype: results_of_references(backend, dtype) for dtype in {w.side.dtype for w in workers.values()}}
    checks = {}
    for name, worker in workers.items():
        worker.begin(small)
        worst = judge(worker.results(), truth, own[worker.side.dtype], worker.side.dtype)
        require_agreement(small.name, name, worst)
        checks[name] = dict(zip(("tensor", "error", "allowed"), worst, strict=True))
    return checks


def _compare_at_full_size(job: Workload, workers: Workers) -> dict[str, dict[str, Any]]:
    """Compare the candidates with each other at the measured size, for which float64 is too expensive: each output, and
    all gradients together.

    Gradients of vectors, which are sums over all rows, are left out: on some devices torch's LayerNorm, which the
    baseline uses, sums those of its bfloat16 weights in bfloat16.
    """
    if len(workers) < 2:
        return {}
    engine = workers[ENGINE]
    ours, checks = engine.results(), {}
    for name, worker in workers.items():
        if worker is engine:
            continue
        theirs = worker.results()
        allowed = 2 * max(AGREED[worker.side.dtype], AGREED[engine.side.dtype])
        errors = {key: relative_error(x, theirs[key]) for key, x in ours.items() if key.startswith("out")}
        errors["the gradients"] = _gradient_difference(ours, theirs)
        worst = max(errors, key=errors.__getitem__)
        require_agreement(job.name, f"{ENGINE}' or '{name}", (worst, errors[worst], allowed))
        checks[f"{ENGINE} beside {name}"] = {"tensor": worst, "error": errors[worst], "allowed": allowed}
    return checks


def _gradient_difference(ours: Tensors, theirs: Tensors) -> float:
    difference = size = 0.0
    for name, x in ours.items():
        if name.startswith("grad.") and x.numel() > x.shape[-1]:
            difference += float((x.double() - theirs[name].double()).square().sum())
            size += float(theirs[name].double().square().sum())
    return (difference / size) ** 0.5 if size else 0.0


def _figures(side: Candidate, job: Workload, timing: Timing, bandwidth: float, backend: Backend) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "dtype": _name(side.dtype),
        "median_s": timing.median,
        "fastest_s": timing.fastest,
        "slowest_s": timing.slowest,
        "runs": timing.runs,
        "own_process": side.remake is not None,
        "operators": {choice.operator: choice.implementation for choice in side.ops.choices},
    }
    if job.model_flops:
        peak = backend.peak_flops(side.dtype)
        figures["flop_per_s"] = job.model_flops / timing.median
        figures["mfu"] = figures["flop_per_s"] / peak if peak else None
        figures["hfu"] = job.hardware_flops / timing.median / peak if peak else None
    if job.moved:
        # The same bytes for every side: those that the work needs, not those that a side happens to move.
        figures["bytes_per_s"] = job.moved / timing.median
        figures["of_copy_bandwidth"] = figures["bytes_per_s"] / bandwidth
    return figures


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def scaled_down(
    run: Callable[[Any], dict], asked: Any, smaller: Callable[[Any], Any], describe: Callable[[Any], dict]
) -> dict[str, Any]:
    """Return run(asked). If the device runs out of memory, try smaller(asked), smaller(smaller(asked)), ...

    The row of a smaller size has an entry "scaled", with the sizes as given by `describe`. Raises MovaError if nothing
    smaller is left.
    """
    size = asked
    while size is not None:
        try:
            row = run(size)
        except torch.OutOfMemoryError:
            row = None
        if row is not None:
            if size is not asked:
                why = "the device ran out of memory"
                row["scaled"] = {"asked": describe(asked), "measured": describe(size), "why": why}
            return row
        # Outside the handler, whose traceback held the failed attempt's tensors.
        gc.collect()
        size = smaller(size)
    raise MovaError("out of memory even at the smallest size: measure a smaller one, or --baseline none")


def print_row(row: dict[str, Any]) -> None:
    """Print a row as text."""
    shape = ", ".join(f"{k} {v}" for k, v in row.items() if isinstance(v, int | str) and k not in ("job", "dtype"))
    print(f"{row['job']} ({shape})")
    for name, f in row["sides"].items():
        text = f"  {name:9} {f['dtype']:9} {f['median_s'] * 1e3:10.2f} ms [{f['fastest_s'] * 1e3:.2f}"
        text += f", {f['slowest_s'] * 1e3:.2f}], {f['runs']} runs"
        if "flop_per_s" in f:
            text += f", {f['flop_per_s'] / 1e9:.0f} GFLOP/s" + (f", MFU {f['mfu']:.1%}" if f["mfu"] else "")
        if "bytes_per_s" in f:
            text += f", {f['bytes_per_s'] / 1e9:.1f} GB/s ({f['of_copy_bandwidth']:.0%} of copy)"
        if f["peak_live_bytes"]:
            text += f", peak {f['peak_live_bytes'] / 1e6:.1f} MB"
        print(text)
    for name, r in row["ratios"].items():
        print(f"  {r['value']:.2f}x [{r['low']:.2f}, {r['high']:.2f}] as fast as {name}, {r['pairs']} pairs", end="")
        peaks = [row["sides"][side]["peak_live_bytes"] for side in (ENGINE, name)]
        print(f"; {peaks[0] / peaks[1]:.0%} of its peak memory" if all(peaks) else "")
