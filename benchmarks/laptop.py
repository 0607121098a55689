"""`python -m benchmarks.laptop CHECKOUT [CHECKOUT]`: how long `make nano` takes from a clone to its result, by part.

    python -m benchmarks.laptop . ../before --seeds 0 1 2 --busy 1 --out benchmarks/results/laptop-nano.json

CHECKOUT: a git checkout, whose commit is cloned into an empty folder, where `make nano` runs. A second one, of an
earlier version, runs once with the first seed, right after this one's first run. --seeds: of the training; each gives
clips of its own too. --busy: one more run, beside so many processes that do nothing but compute. Parts are told by the
lines that the commands print: set-up (packages, native library), writing and encoding clips, training with its
validations and samples, sampling 96 held-out clips, measuring them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.files.results import write_result

# A part ends where a line has one of these words, in this order; the last one ends with the command.
PARTS = (
    ("set-up", ("writing ",)),
    ("writing clips", ("encoding ",)),
    ("encoding clips", ("operators other than",)),
    ("training", ("done: ",)),
    ("sampling", ("nano sync", "bounce_sync")),
    ("measuring", ()),
)
_TAIL = 20


def from_clone(checkout: Path, work: Path, seed: int, busy: int = 0) -> dict[str, Any]:
    """Clone, run `make nano`, and return seconds by part, CPU seconds, and what was found of sync."""
    shutil.rmtree(work, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", checkout.resolve(), work], check=True)
    load, used, began = os.getloadavg()[0], os.times(), time.perf_counter()
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        seconds = _run(["make", "nano", f"ARGS=--seed {seed}"], work, began)
        # Children count when they are waited for: those that only compute are not among them yet.
        now = os.times()
    finally:
        for other in others:
            other.kill()
            other.wait()
    return {
        "commit": _git(checkout, "rev-parse", "--short=12", "HEAD"),
        "seed": seed,
        "busy": busy,
        "load_average_at_start": round(load, 2),
        "seconds": sum(seconds.values()),
        "parts": seconds,
        "cpu_seconds": now.children_user + now.children_system - used.children_user - used.children_system,
        "sync": json.loads((work / "runs/nano/sync.json").read_text())["report"],
    }


def _run(command: Sequence[str], folder: Path, began: float) -> dict[str, float]:
    """Seconds of each part. CalledProcessError, with the last lines, where the command fails."""
    parts, seconds, lines = list(PARTS), {}, []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines = [*lines[-_TAIL:], line]
            if any(word in line for word in parts[0][1]):
                now = time.perf_counter()
                seconds[parts.pop(0)[0]], began = now - began, now
                sys.stdout.write(f"{list(seconds)[-1]}: {list(seconds.values())[-1]:.1f} s\n")
                sys.stdout.flush()
    if process.returncode or len(parts) > 1:
        raise subprocess.CalledProcessError(process.returncode, command, output="".join(lines))
    return {**seconds, parts[0][0]: time.perf_counter() - began}


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


def f1(run: dict[str, Any]) -> float:
    """Of clicks and bounces within 84 ms."""
    return run["sync"]["own_sound"]["within_84_ms"]["f1"]["value"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkouts", type=Path, nargs="+", metavar="CHECKOUT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/laptop"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    plan = [(args.checkouts[0], args.seeds[0], 0)]
    plan += [(checkout, args.seeds[0], 0) for checkout in args.checkouts[1:]]
    plan += [(args.checkouts[0], seed, 0) for seed in args.seeds[1:]]
    plan += [(args.checkouts[0], args.seeds[0], args.busy)] if args.busy else []
    runs = []
    for checkout, seed, busy in plan:
        runs.append(from_clone(checkout, args.work, seed, busy))
        sys.stdout.write(f"{checkout} seed {seed} busy {busy}: {runs[-1]['seconds']:.0f} s, F1 {f1(runs[-1]):.3f}\n")
        sys.stdout.flush()
        own = [run for run in runs if run["commit"] == runs[0]["commit"] and not run["busy"]]
        means = {"f1": float(np.mean([f1(run) for run in own])), "seconds": float(np.mean([r["seconds"] for r in own]))}
        earlier = [run["seconds"] for run in runs if run["commit"] != runs[0]["commit"]]
        means |= {"share_of_earlier": runs[0]["seconds"] / earlier[0]} if earlier else {}
        # Written after each run: one that is stopped leaves what it has.
        write_result(args.out, "laptop", circumstances(get_backend("cpu"), load, 2), means=means, runs=runs)
