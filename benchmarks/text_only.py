"""`python -m benchmarks.text_only RUN`: clips from words alone, without a first frame, and how many are one
solid colour.

    python -m benchmarks.text_only runs/any0 --out benchmarks/results/text-only-nano.json

RUN: a model of nano or nano-any, which were trained with first frames alone. It is sampled with every caption of
colour and tempo in turn. Counted are the clips that `mova sample` marks as one solid colour, and those without a ball,
by what `mova nano sync` sees. `sheet.png` in the folder of samples shows a first, a middle and a last picture of each.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.data.synthetic.bounce import COLOURS, TEMPI, Bounce
from mova_engine.files.results import write_result
from mova_engine.scores.bounce_events import observe, read_streams
from mova_engine.scores.bounce_sync import measure, plain

_COLUMNS, _GAP = 8, 4


def sheet(paths: list[Path]) -> Image.Image:
    """Three pictures of each clip, eight clips a row."""
    tiles: list[np.ndarray] = []
    for path in paths:
        frames = read_streams(path)[0]
        chosen = np.concatenate([frames[i] for i in (0, len(frames) // 2, len(frames) - 1)], 1)
        tiles.append(np.pad(chosen, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255))
    rows = [np.concatenate(tiles[i : i + _COLUMNS], 1) for i in range(0, len(tiles), _COLUMNS)]
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--work", type=Path, default=Path("runs/text-only"))
    args = parser.parse_args()
    captions = [Bounce(colour, tempo, 0.0, 0.0).caption for tempo in TEMPI for colour in COLOURS]
    args.work.mkdir(parents=True, exist_ok=True)
    prompts = args.work / "prompts.txt"
    prompts.write_text("\n".join(captions) + "\n")
    folder = args.work / "clips"
    command = ["sample", "--checkpoint", str(args.run), "--prompts", str(prompts), "--count", str(args.clips)]
    command += ["--out", str(folder), "--overwrite"]
    subprocess.run([sys.executable, "-m", "mova_engine", *command], check=True)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    paths = [folder / row["video_path"] for row in rows]
    sheet(paths).save(args.work / "sheet.png")
    facts = {
        "clips": len(rows),
        "solid": sum(bool(row.get("solid_colour")) for row in rows),
        "without_a_ball": sum(observe(path).colour is None for path in paths),
        "sync": json.loads(json.dumps(measure(folder), default=plain)),
    }
    write_result(args.out, "text-only", circumstances(get_backend("cpu")), **facts)
    told = {name: facts[name] for name in ("clips", "solid", "without_a_ball")}
    sys.stdout.write(f"{told}; {args.work / 'sheet.png'}\n")
