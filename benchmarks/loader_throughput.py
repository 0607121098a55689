"""`python -m benchmarks.loader_throughput`: how fast clips come, and whether a training step waits for them.

Decoding: the loader's reading of clips beside two loops over PyAV that decode as many pictures and as much sound, and
look at neither times nor damage. The bare one has FFmpeg's fastest conversion to RGB; the other converts colours as the
loader does, exactly, so that it tells what of the difference that is. All in two processes, in turns, in wall time and
in CPU time of all processes, which a busy machine changes less. First it is checked that all see as many pictures of
the same clips.

Cached latents: nano trains from a cache that is read from disk, one row of metrics a step. Reported is how long the
step waited for its micro-batch, beside the time that preparing one takes, and how many steps found theirs prepared:
what these waited is their turn on a busy machine.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import torch
from rich.console import Console

from benchmarks.process_tree import cpu_and_memory
from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import ClipConfig
from mova_engine.config.recipes import load_config
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.frames import frame_pixels
from mova_engine.data.media.write import write_mp4
from mova_engine.data.synthetic.bounce import generate
from mova_engine.errors import MovaError, run_cli
from mova_engine.files.results import check_result, write_result
from mova_engine.train import trainer
from mova_engine.train.metrics import read_metrics
from mova_engine.train.micro_batch import MicroBatch, Preparer
from mova_engine.train.prefetch import Prefetch
from mova_engine.train.trainer import Trainer

PROCESSES = 2
SHAPE = ClipConfig(frames=49, height=352, width=640)
# A step that waits longer is counted: for its micro-batch, or for its turn on a busy machine.
NOTICED_S = 1e-3


def write_clips(folder: Path, count: int) -> list[Path]:
    """Clips of moving noise in large patches with sound, of the shape that is read."""
    paths = []
    for number in range(count):
        drawn = np.random.default_rng(number)
        patches = np.kron(drawn.integers(0, 255, (11, 20, 3), np.uint8), np.ones((32, 32, 1), np.uint8))
        pictures = np.stack([np.roll(patches, 4 * step, 1) for step in range(SHAPE.frames + 24)])
        sound = 0.1 * drawn.standard_normal(len(pictures) * 2000).astype(np.float32)
        paths.append(folder / f"{number}.mp4")
        write_mp4(paths[-1], pictures, sound, fps=24, sample_rate=48000)
    return paths


def bare(path: Path) -> int:
    """A PyAV loop over a clip's pictures and its sound; returns how many pictures it has seen."""
    return _loop(path, lambda frame: frame.to_ndarray(format="rgb24"))


def exact(path: Path) -> int:
    """The same loop with the loader's conversion of colours."""
    return _loop(path, lambda frame: frame_pixels(frame, path, SHAPE.height, SHAPE.width, 1.0))


def _loop(path: Path, convert: Callable[[av.VideoFrame], np.ndarray]) -> int:
    pictures = samples = 0
    with av.open(str(path)) as container:
        for frame in container.decode(video=0, audio=0):
            if isinstance(frame, av.VideoFrame):
                pictures += 1
                convert(frame)
            else:
                samples += frame.to_ndarray().shape[1]
            if pictures >= SHAPE.frames and samples >= SHAPE.duration * SHAPE.sample_rate:
                break
    return min(pictures, SHAPE.frames)


def loaded(path: Path) -> int:
    """The loader's reading of it."""
    return len(read_clip(path, SHAPE).pictures)


def decoding(folder: Path, count: int, pairs: int) -> dict[str, Any]:
    """Clips a second of each, in turns."""
    paths = write_clips(folder, count)
    rates: dict[str, list[float]] = {"bare": [], "exact": [], "loader": []}
    seconds: dict[str, list[float]] = {name: [] for name in rates}
    with ProcessPoolExecutor(PROCESSES) as processes, ThreadPoolExecutor(PROCESSES) as threads:

        def run(way: Callable[[Path], int], pool: Any) -> tuple[float, float]:
            begin, cpu = time.perf_counter(), cpu_and_memory()[0]
            if list(pool.map(way, paths)) != [SHAPE.frames] * count:
                raise MovaError("the clips that are read are not those that were written: no speed is reported")
            return count / (time.perf_counter() - begin), (cpu_and_memory()[0] - cpu) / count

        sides = (("bare", bare, processes), ("exact", exact, processes), ("loader", loaded, threads))
        for _, way, pool in sides:
            run(way, pool)  # starts processes
        for pair in range(pairs):
            for name, way, pool in sides[:: 1 if pair % 2 else -1]:
                rate, took = run(way, pool)
                rates[name].append(rate)
                seconds[name].append(took)
    ratios = {
        name: [ours / theirs for ours, theirs in zip(rates["loader"], rates[name], strict=True)]
        for name in ("bare", "exact")
    }
    return {
        "clips": count,
        "processes": PROCESSES,
        "frames": SHAPE.frames,
        "height": SHAPE.height,
        "width": SHAPE.width,
        **{f"{name}_clips_per_s": statistics.median(each) for name, each in rates.items()},
        **{f"{name}_cpu_s_per_clip": statistics.median(each) for name, each in seconds.items()},
        **{
            f"cpu_ratio_to_{name}": statistics.median(
                theirs / ours for ours, theirs in zip(seconds["loader"], seconds[name], strict=True)
            )
            for name in ("bare", "exact")
        },
        **{f"ratio_to_{name}": statistics.median(each) for name, each in ratios.items()},
        **{f"ratios_to_{name}": [round(ratio, 3) for ratio in each] for name, each in ratios.items()},
    }


def waiting(folder: Path, clips: int, steps: int) -> dict[str, Any]:
    """The waits of a run on cached latents that are not in memory."""
    generate(folder / "clips", clips, seed=1)
    config = load_config(
        "nano",
        data=folder / "clips",
        out=folder / "run",
        steps=steps,
        device="cpu",
        loader={"num_fit_clips": 4, "preload": False},
        validation={"every": 0},
        log={"every": 1, "tensorboard": False},
    )
    seen: list[Any] = []
    prepared: list[bool] = []

    class Kept(Trainer):
        def _train(self, parts: Any, *rest: Any) -> int:
            seen.append(parts)
            return super()._train(parts, *rest)

    class Watched(Prefetch):
        def __next__(self) -> MicroBatch:
            prepared.append(bool(self._ready))
            return super().__next__()

    with patch.object(trainer, "Prefetch", Watched):
        if Kept(config, Console(quiet=True)).run():
            raise MovaError("the run was stopped: nothing is reported")
    rows = read_metrics(folder / "run" / "metrics.jsonl")
    # The first step begins before anything is there.
    waits = [row["seconds/data"] for row in rows][1:]
    return {
        "steps": len(waits),
        "step_ms": 1e3 * statistics.median(row["seconds/step"] for row in rows[1:]),
        "prepare_ms": 1e3 * _preparing(seen[0], steps),
        "wait_ms_median": 1e3 * statistics.median(waits),
        "wait_ms_worst": 1e3 * max(waits),
        "steps_that_waited": sum(wait > NOTICED_S for wait in waits),
        "steps_that_found_it_prepared": sum(prepared[1 : len(rows)]),
    }


def _preparing(parts: Any, batches: int) -> float:
    """Median seconds to prepare a micro-batch, when nothing else runs."""
    prepare = Preparer(parts.config, 1, MeshShape(), 0, parts.build)
    taken: list[float] = []
    begin = time.perf_counter()
    for number, batch in enumerate(islice(parts.loader, batches)):
        prepare(number, batch)
        taken.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    return statistics.median(taken)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loader-throughput.json")
    given = parser.parse_args(argv)
    check_result(given.out, "--out")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"of": "decoding", **decoding(Path(folder), given.clips, given.pairs)},
            {"of": "cached latents", **waiting(Path(folder), 64, given.steps)},
        ]
    write_result(given.out, "loader throughput", circumstances(get_backend("cpu")), option="--out", rows=rows)
    for row in rows:
        print(row)
    return 0


if __name__ == "__main__":
    run_cli(main)
