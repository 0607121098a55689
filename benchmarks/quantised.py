"""Linear layers with quantised weights: what quantising and dequantising take, and each layer beside a plain one.

    python -m benchmarks.quantised --out benchmarks/results/quantised.json

Forms run in turns in one process; a ratio is the median over pairs with its 95% interval. Values are compared first.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench.timing import interleave, median_ratio, stopwatch
from mova_engine.files.results import write_result
from mova_engine.models.weight_formats import FORMATS, WEIGHT
from mova_engine.ops import bind
from mova_engine.ops.int8 import dequantise_int8, quantise_int8
from mova_engine.ops.nf4 import DYNAMIC_MAP, VALUES, dequantise_nf4, quantise_nf4
from mova_engine.ops.reference import quantize_rows_reference
from mova_kernels.cpu import isa, isas, use_isa
from mova_kernels.cpu.ops import dequantise_nf4 as kernel

Forms = dict[str, Callable[[], Tensor]]
_NONE = {"bias": None, "lora_a": None, "lora_b": None, "scale": 1.0}
# The feed-forward of the video tower; a layer of the audio tower, for a tenth of its tokens.
_WEIGHT, _TOKENS, _LAYER = (5120, 13824), 512, (1536, 8960)


def compared(forms: Forms, slower: str, faster: str, rounds: int) -> dict[str, Any]:
    """Median seconds of two forms in turns, and how many times faster the second is."""
    backend = get_backend("cpu")
    times = interleave({name: stopwatch(forms[name], backend) for name in (slower, faster)}, rounds=rounds)
    ratio = median_ratio(times[slower], times[faster])
    print(f"    {faster} beside {slower}: {ratio.text()}", flush=True)
    return {"seconds": {n: statistics.median(t) for n, t in times.items()}, "times_faster": asdict(ratio)}


def dequantising(rounds: int) -> list[dict[str, Any]]:
    """NF4 with scales in 8 bits to bfloat16: the kernel beside PyTorch's look-up, by threads and instruction set."""
    held = quantise_nf4(torch.randn(*_WEIGHT, generator=torch.Generator().manual_seed(0)) * 0.02)
    maps = torch.tensor(VALUES), torch.tensor(DYNAMIC_MAP)
    forms: Forms = {
        "look-up": lambda: dequantise_nf4(*held, torch.bfloat16),
        "native": lambda: kernel(*held, *maps, torch.bfloat16),
    }
    rows, best, threads = [], isa(), torch.get_num_threads()
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        for which in isas():
            use_isa(which)
            if not torch.equal(forms["look-up"](), forms["native"]()):
                raise SystemExit(f"error: the kernel of {which} does not give the look-up's numbers")
            print(f"dequantise NF4 {list(_WEIGHT)}, {count} threads, {which}")
            row = compared(forms, "look-up", "native", rounds)
            speed = {n: round(_WEIGHT[0] * _WEIGHT[1] / s / 1e6) for n, s in row["seconds"].items()}
            print(f"    million weights per second: {speed}")
            rows.append({"threads": count, "instructions": which, "million_per_second": speed, **row})
    use_isa(best)
    torch.set_num_threads(threads)
    return rows


def quantising(rounds: int) -> list[dict[str, Any]]:
    """A weight in bfloat16 to each format: NF4 by the kernel beside PyTorch's search; rows of 8 bits in a few rows at a
    time beside the whole weight; by threads.
    """
    weight = (torch.randn(*_WEIGHT, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    whole = {"int8": quantise_int8, "fp8": quantize_rows_reference}
    pairs: dict[str, tuple[str, str, Forms]] = {
        name: ("whole", "rows", {"whole": partial(_whole, function, weight), "rows": partial(_held, name, weight)})
        for name, function in whole.items()
    }
    pairs["nf4"] = ("search", "native", {"search": partial(_searched, weight), "native": partial(_held, "nf4", weight)})
    rows, threads = [], torch.get_num_threads()
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        for name, (slower, faster, forms) in pairs.items():
            if not torch.equal(forms[slower](), forms[faster]()):
                raise SystemExit(f"error: {faster} does not give {slower}'s {name}")
            print(f"quantise {list(_WEIGHT)} to {name}, {count} threads")
            row = compared(forms, slower, faster, rounds)
            speed = {n: round(_WEIGHT[0] * _WEIGHT[1] / s / 1e6) for n, s in row["seconds"].items()}
            print(f"    million weights per second: {speed}")
            rows.append({"format": name, "threads": count, "million_per_second": speed, **row})
    torch.set_num_threads(threads)
    return rows


def _held(name: str, weight: Tensor) -> Tensor:
    quantise = FORMATS[name].quantise
    assert quantise is not None
    return quantise(weight)[WEIGHT].view(torch.uint8)


def _whole(quantise: Callable[[Tensor], tuple[Tensor, Tensor]], weight: Tensor) -> Tensor:
    return quantise(weight)[0].view(torch.uint8)


def _searched(weight: Tensor) -> Tensor:
    """NF4 as where the kernel for CPUs was not built."""
    with patch("mova_kernels.cpu.unavailable", lambda: "left out"):
        return quantise_nf4(weight).weight


def layers(rounds: int) -> dict[str, Any]:
    """Layers beside plain ones of the same shape, forward."""
    i, o = _LAYER
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, _TOKENS, i, generator=generator), torch.randn(o, i, generator=generator) * i**-0.5
    nf4, (values, scale), half = quantise_nf4(weight), quantise_int8(weight), x.bfloat16()
    plain, looked = bind(get_backend("cpu")), bind(get_backend("cpu"), {"nf4_linear": "dequantise"})
    forms: Forms = {
        "float32": partial(torch.nn.functional.linear, x, weight),
        "bfloat16": partial(torch.nn.functional.linear, half, weight.bfloat16()),
        "nf4 native": lambda: plain.nf4_linear(half, *nf4, **_NONE),
        "nf4 look-up": lambda: looked.nf4_linear(half, *nf4, **_NONE),
        "int8": lambda: plain.int8_linear(half, values, scale, **_NONE),
        "int8 float32": lambda: plain.int8_linear(x, values, scale, **_NONE),
    }
    of_nf4 = torch.nn.functional.linear(x, dequantise_nf4(*nf4, torch.float32))
    of_int8 = torch.nn.functional.linear(x, dequantise_int8(values, scale, torch.float32))
    for name, expected in {n: of_nf4 if "nf4" in n else of_int8 for n in forms if " " in n or n == "int8"}.items():
        error = float((forms[name]().float() - expected).norm() / expected.norm())
        if error > 0.02:  # of which the rounding of inputs to 8 bits is half
            raise SystemExit(f"error: {name} is off by {error:.3f}")
    print(f"layer of {_TOKENS} tokens, {i} to {o}")
    pairs = {
        "nf4 beside bfloat16": ("bfloat16", "nf4 native"),
        "nf4 native beside look-up": ("nf4 look-up", "nf4 native"),
        "int8 beside bfloat16": ("bfloat16", "int8"),
        "int8 beside float32": ("float32", "int8 float32"),
    }
    return {name: compared(forms, *of, rounds) for name, of in pairs.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", choices=("quantise", "dequantise", "layers"), help="default: all")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    backend = get_backend("cpu")
    backend.prepare()
    parts = {"quantise": quantising, "dequantise": dequantising, "layers": layers}
    measured = {name: part(args.rounds) for name, part in parts.items() if args.only in (None, name)}
    write_result(args.out, "quantised", circumstances(backend), **measured)
