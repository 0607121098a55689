"""`python -m benchmarks.directions RUN...`: clicks and bounces where one of the two is given, and in long clips.

    python -m benchmarks.directions runs/any0 runs/any1 runs/any2 --out benchmarks/results/nano-any.json

RUN: a model that `mova train --recipe nano-any --seed N --out RUN` left. All are sampled on the first one's held-out
clips: as a whole, with their pictures given (the video tower passed in each step, in one of four, once), with their
sound given, and as clips of three windows. Each is scored as `mova nano sync` does; windows of long clips one by one.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.data.media.decode import probe
from mova_engine.files.results import write_result
from mova_engine.inference.sample_folder import SHEET
from mova_engine.scores.bounce_events import Events, observe
from mova_engine.scores.bounce_sync import TOLERANCES_MS, match, measure, plain, score

WAYS = {
    "joint": (),
    "sound for pictures, exact": ("--given", "video"),
    "sound for pictures, one of 4": ("--given", "video", "--video-passes", "4"),
    "sound for pictures, once": ("--given", "video", "--video-passes", "once"),
    "pictures for sound": ("--given", "audio"),
}
# Of long clips: windows, frames of one, frames that two share.
_WINDOWS, _FRAMES, _OVERLAP, _FPS = 3, 33, 9, 24
_LENGTH = _FRAMES + (_WINDOWS - 1) * (_FRAMES - _OVERLAP)


def sample(run: Path, heldout: Path, out: Path, *words: str, go_on: bool) -> float | None:
    """Make a clip for each held-out one; returns the seconds that it took, start-up included; None: go_on, and they
    are there.
    """
    if go_on and (out / SHEET).exists():
        return None
    command = ["sample", "--checkpoint", str(run), "--prompts", str(heldout), "--out", str(out), "--overwrite", *words]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mova_engine", *command], check=True)
    return time.perf_counter() - started


def windows(folder: Path) -> list[dict[str, Any]]:
    """The scores of each window of long clips: of what happens after the frames that it shares with the one before."""
    clips = [observe(path) for path in sorted(folder.glob("*.mp4"))]
    found = []
    for number in range(_WINDOWS):
        begin = 0 if number == 0 else _FRAMES + (number - 1) * (_FRAMES - _OVERLAP)
        end = _FRAMES + number * (_FRAMES - _OVERLAP)
        found.append(score([within(clip, begin / _FPS, end / _FPS) for clip in clips]))
    return found


def within(events: Events, begin: float, end: float) -> Events:
    """The events of a stretch of time, in seconds. A click belongs where its bounce does: pairs are not cut apart."""
    bounces = tuple(time for time in events.bounces if begin <= time < end)
    places = list(events.clicks)
    for bounce, click in match(events.bounces, events.clicks, TOLERANCES_MS[-1] / 1000):
        places[click] = events.bounces[bounce]
    kept = [index for index, time in enumerate(places) if begin <= time < end]
    clicks, pitches = (tuple(values[index] for index in kept) for values in (events.clicks, events.pitches))
    return replace(events, bounces=bounces, clicks=clicks, pitches=pitches)


def f1(report: dict[str, Any]) -> float:
    """The share within 84 ms."""
    return plain_report(report)["own_sound"]["within_84_ms"]["f1"]["value"]


def plain_report(report: dict[str, Any]) -> dict[str, Any]:
    """A report as JSON holds it."""
    return json.loads(json.dumps(report, default=plain))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/directions"))
    parser.add_argument("--go-on", action="store_true", help="take the clips that an earlier run left in --work")
    args = parser.parse_args()
    heldout, rows = args.runs[0] / "heldout", []
    for number, run in enumerate(args.runs):
        ways: dict[str, Any] = {}
        for name, words in WAYS.items():
            folder = args.work / str(number) / name.replace(" ", "-").replace(",", "")
            seconds = sample(run, heldout, folder, *words, go_on=args.go_on)
            ways[name] = {"seconds": seconds, "sync": plain_report(measure(folder))}
        folder = args.work / str(number) / "long"
        sample(run, heldout, folder, "--seconds", str(_LENGTH / _FPS), "--overlap", str(_OVERLAP), go_on=args.go_on)
        assert abs(probe(next(folder.glob("*.mp4"))).duration - _LENGTH / _FPS) < 0.5 / _FPS
        rows.append({"ways": ways, "windows": [plain_report(each) for each in windows(folder)]})
    means = {name: float(np.mean([f1(row["ways"][name]["sync"]) for row in rows])) for name in WAYS}
    means |= {
        f"window {number + 1} of {_WINDOWS}": float(np.mean([f1(row["windows"][number]) for row in rows]))
        for number in range(_WINDOWS)
    }
    write_result(args.out, "directions", circumstances(get_backend("cpu")), means=means, runs=rows)
    for name, value in means.items():
        sys.stdout.write(f"{name}: F1 {value:.3f}\n")
