"""Ask runs of several processes to stop at random moments, and see that each does and leaves a checkpoint.

    python tests/distributed/stop.py --times 200 --processes 2 4
    python tests/distributed/stop.py --times 10 --processes 2 --torchrun

The runs would train for ever. SIGTERM, SIGINT or SIGHUP is sent to one of the processes or to all of them, within a
second of the run's first step: in the middle of a step, while the processes agree, or while a checkpoint is written.
All of them must return the signal's exit status, the checkpoint of the last step must be there and whole, no row of
metrics may be missing or double, and the next run must go on from it. Runs with shared weights take turns with runs
in which every process has all of them.

The processes are forked once and serve all runs, so that a stop costs a run's start and a few steps. --torchrun starts
each run by torchrun instead and signals that, at any moment from the launch on; before the first step there is nothing
to save.
"""

import argparse
import os
import random
import re
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# The script's own folder would hide the package of its name.
sys.path.remove(str(Path(__file__).resolve().parent))

from distributed.kill import LOOK, start, steps_done
from distributed.world import World
from safetensors.torch import load_file

from mova_engine.data.synthetic.bounce import generate
from mova_engine.distributed.stop_signals import STOPS
from mova_engine.train.metrics import read_metrics
from mova_engine.train.training_state import checkpoints_of

ENDLESS = 1_000_000
EVERY = 4
# Seconds within which a stop must be obeyed: a few steps and a checkpoint on a busy machine.
PATIENCE = 120


def check_what_is_left(out: Path, said: str) -> int:
    """The last step; AssertionError where it has no whole checkpoint or where rows of metrics are not one a step."""
    found = re.search(r"stopped by request after step (\d+) .*the same command goes on from (\S+)", said)
    assert found, f"no word of a stop:\n{said}"
    step, folder = int(found[1]), Path(found[2])
    assert checkpoints_of(out)[-1] == (step, folder), f"step {step} was left, but {checkpoints_of(out)} are there"
    for file in folder.rglob("*.safetensors"):
        load_file(file)
    rows = [row["step"] for row in read_metrics(out / "metrics.jsonl")]
    assert rows == list(range(1, step + 1)), f"rows of metrics: {rows}, steps: {step}"
    return step


def stop_once(world: World, pids: list[int], clips: Path, out: Path, shared: bool, chance: random.Random) -> str:
    """Train, send a signal, check; returns what happened in a line."""
    number, before = chance.choice(STOPS), steps_done(out)
    everybody = chance.random() < 0.5
    told = pids if everybody else [chance.choice(pids)]
    sent = []

    def send() -> None:
        until = time.monotonic() + PATIENCE
        while steps_done(out) <= before and time.monotonic() < until:
            time.sleep(LOOK)
        time.sleep(chance.uniform(0, 1))
        for pid in told:
            os.kill(pid, number)
            time.sleep(chance.choice((0, 0, 0.02)))
        sent.append(time.monotonic())

    thread = threading.Thread(target=send)
    thread.start()
    parallel = {"shard": shared, "context_parallel": 2}
    found = world.train(clips, out, steps=ENDLESS, every=EVERY, batch=1, parallel=parallel)
    took = time.monotonic() - sent[0]
    thread.join()
    assert [status for status, _ in found] == [128 + number] * world.size, f"statuses: {found}"
    step = check_what_is_left(out, found[0][1])
    assert before == 0 or f"after step {before}" in found[0][1], f"did not go on from step {before}:\n{found[0][1]}"
    who = "all" if everybody else f"rank {pids.index(told[0])}"
    how = "shared" if shared else "whole"
    return f"{signal.Signals(number).name} to {who}, {how} weights: step {step} saved {took:.1f} s after"


def stop_launched(clips: Path, out: Path, processes: int, chance: random.Random) -> str:
    """The same with torchrun, which hands SIGTERM and SIGINT on: in start-up, or after the first step."""
    number, before = chance.choice((signal.SIGTERM, signal.SIGINT)), steps_done(out)
    launcher = start(clips, out, processes, ENDLESS)
    began = time.monotonic()
    if chance.random() < 0.7:
        until = began + PATIENCE
        while steps_done(out) <= before and time.monotonic() < until:
            time.sleep(LOOK)
        time.sleep(chance.uniform(0, 1))
    else:
        time.sleep(chance.uniform(1, 10))
    delay = time.monotonic() - began
    launcher.send_signal(number)
    said, _ = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode != 0, said
    after = steps_done(out)
    if after > before:
        assert check_what_is_left(out, said) == after, said
    left = f"step {after} saved" if after > before else "no step was taken"
    return f"{signal.Signals(number).name} to torchrun {delay:.1f} s after its start: {left}"


def main(argv: list[str] | None = None) -> int:
    """Returns 0; AssertionError or TimeoutError for a stop that was not obeyed or left nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="how many stops of each number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--torchrun", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        clips = Path(folder) / "clips"
        generate(clips, 8, seed=3)
        for processes in args.processes:
            chance = random.Random(f"{args.seed}/{processes}")
            world = None if args.torchrun else World(processes)
            pids = [] if world is None else world.run("process_id")
            began = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            for time_ in range(1, args.times + 1):
                if world is None:
                    line = stop_launched(clips, Path(folder) / f"run-{processes}", processes, chance)
                else:
                    shared = time_ % 2 == 0
                    # A new folder now and then: rows and checkpoints are read again after every stop.
                    out = Path(folder) / f"run-{processes}-{time_ // 20}-{shared}"
                    line = stop_once(world, pids, clips, out, shared, chance)
                sys.stdout.write(f"{processes} processes, {time_}: {line}\n")
                sys.stdout.flush()
            if world is not None:
                world.close()
            took = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - began
            sys.stdout.write(
                f"{processes} processes: {args.times} stops, all obeyed, each left a checkpoint of its last step, "
                f"where it took one; {took / args.times:.1f} s of CPU time each\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
