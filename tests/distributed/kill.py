"""Kill a process of a run at random times, again and again, and see that nothing is lost.

    python tests/distributed/kill.py --times 20 --processes 4 --during step
    python tests/distributed/kill.py --times 20 --processes 4 --during checkpoint

A run whose clips and weights are shared is started by torchrun; one of its processes is killed (SIGKILL) in the middle
of a step, or while a checkpoint is being written; all of its processes must end soon; the same command must go on from
the last complete checkpoint. A kill that came when the checkpoint was complete does not count. Finally weights, average
and moments must be those of a run that nobody disturbed, bit for bit, and so must every loss.
"""

import argparse
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distributed.world import free_port

from mova_engine.data.synthetic.bounce import generate
from mova_engine.train.metrics import read_metrics
from mova_engine.train.training_state import checkpoints_of

# Seconds within which all processes must be gone after one was killed: torchrun gives the others 30.
PATIENCE = 90
EVERY = 5
# Seconds between looks at a run's folder.
LOOK = 0.005


def start(
    clips: Path, out: Path, processes: int, steps: int, launch: Sequence[str] = (), log: TextIO | None = None
) -> subprocess.Popen:
    """Start a run. launch: more options of torchrun's. log: where its output goes; default: a pipe."""
    command = run_command(
        ["--nproc-per-node", str(processes), "--master-port", str(free_port()), *launch], clips, out, steps
    )
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE if log is None else log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_command(launch: Sequence[str], clips: Path, out: Path, steps: int) -> list[str]:
    """The command of a run under torchrun with the options `launch`: two processes share each of a step's two clips."""
    settings = {
        "data": clips, "out": out, "device": "cpu", "steps": steps, "loader.batch": 1, "global-batch-size": 2,
        "loader.num-fit-clips": 4, "checkpoint.every": EVERY, "log.every": 1, "validation.every": 0, "optim.ema": 0.9,
        "parallel.context-parallel": 2, "parallel.timeout": 120,
    }  # fmt: skip
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", "mova_engine.train", "--recipe", "nano"]
    return [*command, "--parallel.shard", "--log.no-tensorboard", *options]


def trainers(launcher: subprocess.Popen) -> list[int]:
    """The run's processes: children of the launcher."""
    listed = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(number) for number in listed]


@dataclass(frozen=True)
class Moment:
    """When to kill: within `longest` seconds of the beginning of a step, or of a checkpoint."""

    checkpoint: bool
    longest: float


class Killed(NamedTuple):
    """What happened, in a line, and whether it happened in the middle of what it was meant for."""

    line: str
    hit: bool


def wait_for(condition, launcher: subprocess.Popen) -> bool:
    """Until the condition holds; False where the run ended before."""
    while not condition():
        if launcher.poll() is not None:
            return False
        time.sleep(LOOK)
    return True


def steps_done(out: Path) -> int:
    rows = out / "metrics.jsonl"
    return max((row["step"] for row in read_metrics(rows)), default=0) if rows.exists() else 0


def being_written(out: Path) -> list[int]:
    """Steps whose checkpoint is half written."""
    return [int(path.name[6:-4]) for path in (out / "checkpoints").glob(".step-*.new")]


def seconds_of_a_save(launcher: subprocess.Popen, out: Path) -> float:
    """Watch a run to its end; the median time for which a checkpoint of it was under way."""
    found, since = [], None
    while launcher.poll() is None:
        if bool(being_written(out)) != (since is not None):
            now = time.monotonic()
            if since is not None:
                found.append(now - since)
            since = None if since is not None else now
        time.sleep(LOOK)
    return statistics.median(found)


def kill_once(clips: Path, out: Path, processes: int, steps: int, moment: Moment, chance: random.Random) -> Killed:
    """Start, kill, wait. AssertionError for what must not be."""
    before, complete = steps_done(out), checkpoints_of(out)
    launcher = start(clips, out, processes, steps)
    target = before + chance.randint(1, EVERY)
    if moment.checkpoint:
        alive = wait_for(lambda: any(step > before for step in being_written(out)), launcher)
    else:
        alive = wait_for(lambda: steps_done(out) >= target, launcher)
    begun = being_written(out) if moment.checkpoint else []
    time.sleep(chance.uniform(0, moment.longest))
    if not alive:
        raise AssertionError(f"the run ended before it could be killed:\n{launcher.communicate()[0]}")
    victim = chance.randrange(processes)
    os.kill(trainers(launcher)[victim], signal.SIGKILL)
    killed = time.monotonic()
    said, _ = launcher.communicate(timeout=PATIENCE)
    took = time.monotonic() - killed
    assert launcher.returncode != 0, "the run ended well though one of its processes was killed"
    went_on = [str(folder) for _, folder in complete[-1:]]
    assert re.findall(r"going on from (\S+) after", said) == went_on, f"expected to go on from {went_on}:\n{said}"
    left = checkpoints_of(out)
    assert left[-1:] >= complete[-1:], f"{complete[-1]} was complete and is gone"
    for _, folder in left:
        for file in folder.rglob("*.safetensors"):
            load_file(file)
    # Those who are left may remove what is half written themselves.
    half = any(step not in dict(left) for step in begun)
    name = f"rank {victim} on "
    said_so = "named" if name in said else "NOT NAMED: " + " | ".join(re.findall(r"^.*error: .*$", said, re.MULTILINE))
    return Killed(
        f"rank {victim} killed after step {steps_done(out)}{', a checkpoint half written' if half else ''}; "
        f"all ended in {took:.0f} s, {said_so}; complete: {[step for step, _ in left]}",
        half or not moment.checkpoint,
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
    # A kill costs EVERY steps at most, and so does one that came when the checkpoint was complete.
    steps = EVERY * ((2 if args.during == "checkpoint" else 1) * args.times + 2)
    with tempfile.TemporaryDirectory() as folder:
        clips, whole, broken = (Path(folder) / name for name in ("clips", "whole", "broken"))
        generate(clips, 8, seed=3)
        undisturbed = start(clips, whole, args.processes, steps)
        save = seconds_of_a_save(undisturbed, whole)
        said, _ = undisturbed.communicate()
        assert "done:" in said, said
        rows = read_metrics(whole / "metrics.jsonl")
        step = statistics.median(row["seconds/step"] for row in rows)
        sys.stdout.write(f"undisturbed: a step takes {step:.2f} s, a checkpoint {save:.2f} s\n")
        moment = Moment(True, save) if args.during == "checkpoint" else Moment(False, step)
        hits = tries = 0
        while hits < args.times:
            tries += 1
            killed = kill_once(clips, broken, args.processes, steps, moment, chance)
            hits += killed.hit
            sys.stdout.write(f"{hits if killed.hit else 'too late'}: {killed.line}\n")
            sys.stdout.flush()
        said, _ = start(clips, broken, args.processes, steps).communicate()
        last = f"checkpoints/step-{steps:06d}"
        lost = not (
            losses(whole) == losses(broken) and len(losses(whole)) == steps and same(whole / last, broken / last)
        )
        found = "NOT THE SAME" if lost else "the same bit for bit"
        sys.stdout.write(f"{steps} steps, {tries} kills, {hits} of them in the middle of a {args.during}: {found}\n")
    return int(lost)


if __name__ == "__main__":
    sys.exit(main())
