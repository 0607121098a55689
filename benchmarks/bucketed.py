"""`python -m benchmarks.bucketed RUN`: sync of a nano run with buckets, in each of them.

    mova train --recipe nano --processes 2 --loader.batch 4 --buckets.sizes 64x48 48x64 --buckets.frames 33 49 \\
        --out runs/buckets
    python -m benchmarks.bucketed runs/buckets --out benchmarks/results/bucketed-nano.json

RUN: the folder of a finished run. For each of its buckets held-out clips of that size and length are written, sampled
and measured as `make nano` does; the same clips' own sound and picture stand beside, and the run's latest loss on
held-out clips. `sheet.png` in the work folder shows pictures of four samples of each bucket.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.config.buckets import BucketSettings
from mova_engine.config.model import ClipConfig, get_preset
from mova_engine.data.synthetic.bounce import Scene, generate
from mova_engine.files.results import write_result
from mova_engine.scores.bounce_events import read_streams
from mova_engine.scores.bounce_sync import format_report, measure, plain
from mova_engine.train.metrics import METRICS, read_metrics
from mova_engine.train.run_folder import CONFIG

_SHOWN, _PICTURES, _GAP = 4, 8, 4


def shapes_of(run: Path) -> tuple[ClipConfig, ...]:
    """The buckets' sizes and lengths, from the run's configuration."""
    import yaml

    settings = yaml.safe_load((run / CONFIG).read_text())["buckets"]
    return BucketSettings(tuple(settings["sizes"]), frames=tuple(settings["frames"])).shapes(get_preset("nano").clip)


def in_bucket(run: Path, shape: ClipConfig, clips: int, folder: Path) -> dict[str, Any]:
    """Sample `clips` held-out captions and first frames of a bucket into `folder`, and measure them."""
    given, made = folder / "heldout", folder / "generated"
    if not given.exists():
        generate(given, clips, seed=1, split="heldout", scenes=[Scene(shape.width, shape.height, shape.frames)])
    command = ["sample", "--checkpoint", str(run), "--prompts", str(given), "--processes", "2", "--overwrite"]
    for name in ("width", "height", "frames"):
        command += [f"--clip.{name}", str(getattr(shape, name))]
    subprocess.run([sys.executable, "-m", "mova_engine", *command, "--out", str(made)], check=True)
    found = measure(made)
    sys.stdout.write(f"{folder.name}\n{format_report(found)}\n")
    return {"sampled": plain(found), "heldout_clips": plain(measure(given))}


def strip(path: Path, width: int) -> np.ndarray:
    """Pictures of a clip at equal distances, uint8 [h, width, 3], white at the right."""
    frames = read_streams(path)[0]
    chosen = np.concatenate([frames[i] for i in np.linspace(0, len(frames) - 1, _PICTURES).round().astype(int)], 1)
    right = width - chosen.shape[1]
    return np.pad(chosen, ((0, _GAP), (0, right), (0, 0)), constant_values=255)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--work", type=Path, default=Path("runs/bucketed"))
    args = parser.parse_args()
    shapes = shapes_of(args.run)
    names = [f"{shape.width}x{shape.height}x{shape.frames}" for shape in shapes]
    buckets = {
        name: in_bucket(args.run, shape, args.clips, args.work / name)
        for name, shape in zip(names, shapes, strict=True)
    }
    strips = [
        strip(path, _PICTURES * max(shape.width for shape in shapes))
        for name in names
        for path in sorted((args.work / name / "generated").glob("*.mp4"))[:_SHOWN]
    ]
    Image.fromarray(np.concatenate(strips)).save(args.work / "sheet.png")
    rows = read_metrics(args.run / METRICS)
    last = {key: value for row in rows for key, value in row.items() if key.startswith(("heldout/", "epoch"))}
    facts = {"steps": rows[-1]["step"], "last": last, "buckets": buckets}
    write_result(args.out, "bucketed", circumstances(get_backend("cpu")), **facts)
    f1 = {name: found["sampled"]["own_sound"]["within_84_ms"]["f1"]["value"] for name, found in buckets.items()}
    sys.stdout.write(json.dumps(f1) + f"; {args.work / 'sheet.png'}\n")
