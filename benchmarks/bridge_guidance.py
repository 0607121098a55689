"""`python -m benchmarks.bridge_guidance WITHOUT WITH`: guidance by the bridge, of models trained without and with
`bridge_dropout`.

    python -m benchmarks.bridge_guidance runs/without runs/with --out benchmarks/results/bridge-guidance-nano.json

WITHOUT, WITH: models of nano-any that were trained alike, both with text_dropout. They are sampled on the first one's
held-out clips, without guidance and with `dual` guidance at several scales of the bridge. Clicks and bounces are scored
as `mova nano sync` does. Of the pictures: the distance from the nearest true clip, of the caption's colour and tempo
and of the first frame's column, over all moments of release, in levels of 255, root mean square over pixels and frames.
"""

import argparse
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.step_cache import Run
from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.checkpoints.locate import find_model
from mova_engine.data.synthetic.bounce import LATEST_FIRST_BOUNCE, TEMPI, Bounce, render_video
from mova_engine.diffusion.guidance import Guidance
from mova_engine.files.results import write_result
from mova_engine.inference.pipeline import load_pipeline
from mova_engine.inference.requests import make_requests, read_prompts
from mova_engine.inference.sample_settings import default_settings
from mova_engine.scores.bounce_events import read_streams
from mova_engine.scores.bounce_sync import plain, score

_TOLERANCES_MS = (21, 84)
# Seconds between moments of release that are tried.
_APART = 1 / 96


@cache
def true_clips(colour: str, tempo: str, column: float) -> np.ndarray:
    """All clips of a colour, tempo and column: uint8 [n, f, h, w, 3]."""
    latest = min(TEMPI[tempo], LATEST_FIRST_BOUNCE - TEMPI[tempo] / 2)
    delays = np.arange(0, latest + _APART, _APART)
    return np.stack([render_video(Bounce(colour, tempo, float(delay), column)) for delay in delays])


def nearest(pictures: np.ndarray, truth: dict[str, Any]) -> float:
    """Root mean square of the difference between pictures uint8 [f, h, w, 3] and the nearest true clip."""
    clips = true_clips(truth["colour"], truth["tempo"], truth["column"])
    return min(float(np.sqrt(np.square(pictures.astype(np.float32) - clip).mean())) for clip in clips)


def studied(run: Path, heldout: Path, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What one model gives, by way."""
    pipeline = load_pipeline(find_model(run), get_backend("cpu"))
    prompts = read_prompts(heldout, pipeline.shape)
    prompts = prompts[: args.clips]
    sampling = Run(pipeline, [request for _, request in make_requests(prompts, len(prompts), 0)], work)
    truths = [json.loads(line) for line in (heldout / "metadata.jsonl").read_text().splitlines()][: len(prompts)]
    plain_settings = default_settings(pipeline.mova.config)
    ways: dict[str, Any] = {}
    for name, guidance in (
        ("no guidance", Guidance("none")),
        *((f"bridge scale {scale:g}", Guidance("dual", 1.0, scale)) for scale in args.scales),
    ):
        folder = name.replace(" ", "-")
        seen, _ = sampling.sample(folder, replace(plain_settings, guidance=guidance))
        pictures = [read_streams(work / folder / clip.name)[0] for clip in seen]
        errors = [nearest(*pair) for pair in zip(pictures, truths, strict=True)]
        report = json.loads(json.dumps(score(seen, tolerances_ms=_TOLERANCES_MS), default=plain))
        ways[name] = {"sync": report, "picture_errors": errors, "picture_error": float(np.median(errors))}
        f1 = [report["own_sound"][f"within_{tolerance}_ms"]["f1"] for tolerance in _TOLERANCES_MS]
        told = ", ".join(f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" for each in f1)
        sys.stdout.write(f"{run.name}, {name}: F1 {told}; pictures {ways[name]['picture_error']:.2f}\n")
        sys.stdout.flush()
    return ways


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("without", type=Path)
    parser.add_argument("with_dropout", type=Path, metavar="with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 1.5, 2.0, 3.0, 5.0])
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--work", type=Path, default=Path("runs/bridge-guidance"))
    args = parser.parse_args()
    heldout = args.without / "heldout"
    found = {
        name: studied(run, heldout, args.work / name, args)
        for name, run in (("without", args.without), ("with", args.with_dropout))
    }
    write_result(args.out, "bridge-guidance", circumstances(get_backend("cpu")), runs=found)
