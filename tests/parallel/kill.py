"""Kill a process of a run at random times, again and again, and see that nothing is lost.

    python tests/parallel/kill.py --times 20 --processes 4 --during step
    python tests/parallel/kill.py --times 20 --processes 4 --during checkpoint

A run whose clips and weights are shared is started by torchrun; one of its processes is killed (SIGKILL) in the middle
of a step, or while a checkpoint is being written; all of its processes must end soon; the same command must go on from
the last complete checkpoint. Finally weights, average and moments must be those of a run that nobody disturbed, bit for
bit, and so must every loss.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from mova_engine.data.bounce import generate
from mova_engine.train.checkpoints import checkpoints_of
from mova_engine.train.metrics import read_metrics

# Seconds within which all processes must be gone after one was killed: torchrun gives the others 30.
PATIENCE = 90
EVERY = 5


def start(clips: Path, out: Path, processes: int, steps: int) -> subprocess.Popen:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-port", str(port), "-m", "mova_engine.train", "--recipe", "nano", "--parallel.shard"]
    settings = {
        "data": clips, "out": out, "device": "cpu", "steps": steps, "loader.batch": 1, "loader.fit": 4,
        "checkpoint.every": EVERY, "log.every": 1, "validation.every": 0, "optim.ema": 0.9,
        "parallel.context-parallel": 2, "parallel.timeout": 30,
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--log.no-tensorboard", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def trainers(launcher: subprocess.Popen) -> list[int]:
    """The run's processes: children of the launcher."""
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(number) for number in listed]


def wait_for(condition, launcher: subprocess.Popen) -> bool:
    """Until the condition holds; False where the run ended before."""
    while not condition():
        if launcher.poll() is not None:
            return False
        time.sleep(0.001)
    return True


def steps_done(out: Path) -> int:
    rows = out / "metrics.jsonl"
    return max((row["step"] for row in read_metrics(rows)), default=0) if rows.exists() else 0


def being_written(out: Path) -> bool:
    return any((out / "checkpoints").glob(".step-*.new"))


def kill_once(clips: Path, out: Path, processes: int, steps: int, during: str, chance: random.Random) -> str:
    """Start, kill, wait; returns what happened in a line. AssertionError for what must not be."""
    launcher = start(clips, out, processes, steps)
    before = steps_done(out)
    target = before + chance.randint(1, EVERY)
    if during == "checkpoint":
        alive = wait_for(lambda: being_written(out) and steps_done(out) > before, launcher)
        time.sleep(chance.uniform(0, 0.03))
    else:
        alive = wait_for(lambda: steps_done(out) >= target, launcher)
        time.sleep(chance.uniform(0, 0.3))
    if not alive:
        launcher.communicate()
        return "done before it could be killed"
    half = being_written(out)
    victim = chance.randrange(processes)
    os.kill(trainers(launcher)[victim], signal.SIGKILL)
    killed = time.monotonic()
    said, _ = launcher.communicate(timeout=PATIENCE)
    took = time.monotonic() - killed
    assert launcher.returncode != 0, "the run ended well though one of its processes was killed"
    named = f"rank {victim} on " in said
    left = [step for step, _ in checkpoints_of(out)]
    for _, folder in checkpoints_of(out):
        for file in folder.rglob("*.safetensors"):
            load_file(file)
    return (
        f"rank {victim} killed after step {steps_done(out)}{', a checkpoint half written' if half else ''}; "
        f"all ended in {took:.0f} s, {'named' if named else 'NOT NAMED'}; complete: {left}"
    )


def losses(out: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(out / "metrics.jsonl")]


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same bits, the generators' states aside."""
    names = sorted(p.relative_to(one) for p in one.rglob("*.safetensors") if p.stem != "rng")
    if names != sorted(p.relative_to(other) for p in other.rglob("*.safetensors") if p.stem != "rng"):
        return False
    pairs = [(load_file(one / name), load_file(other / name)) for name in names]
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def main(argv: list[str] | None = None) -> int:
    """Returns 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="how many kills")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--during", choices=("step", "checkpoint"), default="step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    chance = random.Random(args.seed)
    # Each start comes a little further than where it was meant to be killed.
    steps = 2 * EVERY * (args.times + 1)
    with tempfile.TemporaryDirectory() as folder:
        clips, whole, broken = (Path(folder) / name for name in ("clips", "whole", "broken"))
        generate(clips, 8, seed=3)
        said, _ = start(clips, whole, args.processes, steps).communicate()
        assert "done:" in said, said
        for time_ in range(args.times):
            line = kill_once(clips, broken, args.processes, steps, args.during, chance)
            sys.stdout.write(f"{time_ + 1}: {line}\n")
            sys.stdout.flush()
        said, _ = start(clips, broken, args.processes, steps).communicate()
        last = f"checkpoints/step-{steps:06d}"
        lost = not (
            losses(whole) == losses(broken) and len(losses(whole)) == steps and same(whole / last, broken / last)
        )
        sys.stdout.write(f"{steps} steps, {args.times} kills: {'NOT THE SAME' if lost else 'the same bit for bit'}\n")
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
