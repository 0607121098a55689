"""`python -m benchmarks.compiled_blocks`: a video block while sampling, as it is and through torch.compile.

    python -m benchmarks.compiled_blocks --out benchmarks/results/compiled-blocks.json

One block of the video tower without gradients, four ways in turns in this process: the engine's operators, and the
references in PyTorch, each plain and compiled. Each way must agree with the references in float64 before it is timed.
The blocks of both experts go through the compiled function, and are counted: one compilation serves all of them.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench.timing import interleave, median_ratio, stopwatch
from mova_engine.config.model import get_preset
from mova_engine.files.results import write_result
from mova_engine.models.layers import ResidualStream
from mova_engine.models.video_dit import VideoDiT
from mova_engine.ops import DTYPES, bind
from mova_engine.ops.lossy import deviation

# Blocks of each expert that go through one compiled function.
_BLOCKS = 2


def measure(model: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Median seconds of each way, ratios to the engine's plain one, seconds of compiling, and how many graphs."""
    backend, config = get_backend("cpu"), get_preset(model)
    video, (t, h, w) = config.video, config.clip.latent_shape
    grid = t, h // video.patch_size[1], w // video.patch_size[2]
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    short = type(video)(**{**asdict(video), "num_layers": _BLOCKS, "patch_size": tuple(video.patch_size)})
    x, t_mod = tensor(1, grid[0] * grid[1] * grid[2], video.dim), tensor(1, 6, video.dim) * 0.1
    context = tensor(1, config.text_tokens, video.dim)
    weights: dict[str, Tensor] = {}
    ways: dict[str, Callable[[], Tensor]] = {}
    found: dict[str, Any] = {}

    def expert(kind: str | None, numbers: torch.dtype) -> VideoDiT:
        tower = VideoDiT(short, bind(backend, kind, training=False, dtypes=(dtype,)), dtype=torch.float32)
        for name, parameter in tower.named_parameters():
            if name not in weights:
                weights[name] = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
            parameter.data.copy_(weights[name])
        return tower.to(numbers).requires_grad_(False)

    def call(run: Callable[..., ResidualStream], tower: VideoDiT, block: int, numbers: torch.dtype) -> Tensor:
        rope = tuple(table for table in tower.rope(grid, torch.device("cpu")))
        stream = run(tower.blocks[block], ResidualStream(x.to(numbers)), t_mod, context.to(numbers), rope)
        return stream.settle(tower.ops)

    def plain(block: Any, *args: Any) -> ResidualStream:
        return block(*args)

    with torch.no_grad():
        truth = call(plain, expert("reference", torch.float64), 0, torch.float64)
        for kind, label in ((None, "operators"), ("reference", "references")):
            experts = [expert(kind, dtype), expert(kind, dtype)]
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            compiled, began = torch.compile(plain, fullgraph=True), time.perf_counter()
            for tower in experts:
                for block in range(_BLOCKS):
                    call(compiled, tower, block, dtype)
            seconds = time.perf_counter() - began
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            found[label] = {"compile_seconds": seconds, "graphs": graphs, "blocks": 2 * _BLOCKS}
            for how, run in (("plain", plain), ("compiled", compiled)):
                ways[f"{label}, {how}"] = lambda run=run, tower=experts[0]: call(run, tower, 0, dtype)
        for name, way in ways.items():
            error = deviation(way().unsqueeze(2), truth.unsqueeze(2))
            if not error < (1e-5 if dtype == torch.float32 else 2e-2):
                raise SystemExit(f"{name} is off by {error:.2g}: no figure")
        times = interleave({name: stopwatch(way, backend) for name, way in ways.items()}, rounds=rounds)
    base = times["operators, plain"]
    return {
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": x.shape[1],
        "seconds": {name: sorted(each)[len(each) // 2] for name, each in times.items()},
        "times_faster": {name: asdict(median_ratio(base, each)) for name, each in times.items()},
        "compiling": found,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["nano", "bench-mid"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(model, dtype, args.rounds) for model in args.models for dtype in DTYPES.values()]
    write_result(args.out, "compiled-blocks", circumstances(get_backend("cpu")), rows=rows)
    for row in rows:
        sys.stdout.write(f"{row['model']} {row['dtype']}: {row['times_faster']} {row['compiling']}\n")
