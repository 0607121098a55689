"""Kill a process of a run again and again, and let torchrun restart all of them, in one job (`--max-restarts`).

    python tests/distributed/restart_kills.py --times 20 --processes 4

Clips and weights are shared. At a random moment within the steps after each restart a random rank is killed (SIGKILL).
Nobody starts a command again: torchrun must, and the run must go on from its newest whole checkpoint. Finally losses,
weights, average and moments must be those of a run that nobody disturbed, bit for bit.
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
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from distributed.kill import EVERY, LOOK, losses, same, start, steps_done, trainers

from mova_engine.data.synthetic.bounce import generate
from mova_engine.train.metrics import read_metrics
from mova_engine.train.training_state import checkpoints_of

# Seconds within which torchrun must have started all processes again, and these have taken a step.
PATIENCE = 180


class Restart(NamedTuple):
    """A kill and what it cost. rank: killed. step: the last one done by then. resumed: the step that the run went on
    after. seconds: from the kill until all ranks were started anew, and until the first step was done again.
    """

    rank: int
    step: int
    resumed: int
    seconds: tuple[float, float]


def until(condition, launcher: subprocess.Popen, what: str) -> None:
    """Wait; AssertionError where the run ends or nothing happens."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert launcher.poll() is None, f"torchrun ended before {what}"
        assert time.monotonic() < deadline, f"in {PATIENCE} s not {what}"
        time.sleep(LOOK)


def rewritten(metrics: Path) -> int:
    return metrics.stat().st_mtime_ns if metrics.exists() else 0


def kill_once(launcher: subprocess.Popen, out: Path, processes: int, step_s: float, chance: random.Random) -> Restart:
    """Kill a rank some steps after the newest checkpoint, and wait until the run is that far again."""
    metrics, first = out / "metrics.jsonl", checkpoints_of(out)[-1:]
    target = (first[0][0] if first else 0) + chance.randint(1, 2 * EVERY - 1)
    until(lambda: steps_done(out) >= target, launcher, f"step {target} was done")
    time.sleep(chance.uniform(0, step_s))
    before, rank = trainers(launcher), chance.randrange(processes)
    os.kill(before[rank], signal.SIGKILL)
    began, step = time.monotonic(), steps_done(out)

    def anew() -> bool:
        now = trainers(launcher)
        return len(now) == processes and not set(now) & set(before)

    until(anew, launcher, "all processes were started anew")
    started, written = time.monotonic() - began, rewritten(metrics)
    resumed = checkpoints_of(out)[-1:]
    from_step = resumed[0][0] if resumed else 0
    # The rows after that step are taken out first.
    until(lambda: rewritten(metrics) > written and steps_done(out) > from_step, launcher, "a step was done again")
    return Restart(rank, step, from_step, (started, time.monotonic() - began))


def kill_rounds(folder: Path, times: int, processes: int, seed: int = 0) -> list[Restart]:
    """So many kills in one job. AssertionError for a job that ends otherwise than one that nobody disturbed."""
    chance = random.Random(seed)
    clips, whole, broken = (folder / name for name in ("clips", "whole", "broken"))
    generate(clips, 8, seed=3)
    # A kill finds the run at most two checkpoints on.
    steps = EVERY * (2 * times + 1)
    said, _ = start(clips, whole, processes, steps).communicate()
    assert "done:" in said, said
    step_s = statistics.median(row["seconds/step"] for row in read_metrics(whole / "metrics.jsonl"))
    log = folder / "broken.log"
    with log.open("w") as file:
        launcher = start(clips, broken, processes, steps, ("--max-restarts", str(times)), file)
        try:
            found = []
            for _ in range(times):
                found.append(kill_once(launcher, broken, processes, step_s, chance))
                print(f"{len(found)}: {found[-1]}", flush=True)
            assert launcher.wait(timeout=600) == 0, log.read_text()
        except BaseException:
            os.killpg(launcher.pid, signal.SIGKILL)
            print(log.read_text())
            raise
    text = log.read_text()
    went_on = [int(number) for number in re.findall(r"going on from \S+ after step (\d+)", text)]
    assert went_on == [each.resumed for each in found if each.resumed], text
    named = sum(f"error: rank {each.rank} on " in text for each in found)
    print(f"the dead rank was named in {named} of {times}")
    last = f"checkpoints/step-{steps:06d}"
    assert len(losses(whole)) == steps and losses(whole) == losses(broken), "other losses"
    assert same(whole / last, broken / last), "other weights, average or moments"
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="how many kills")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = kill_rounds(Path(folder), args.times, args.processes, args.seed)
    lost = [each.step - each.resumed for each in found]
    started, back = zip(*(each.seconds for each in found), strict=True)
    print(
        f"{args.times} kills, the same bit for bit; steps lost: {sum(lost) / len(lost):.1f} on average, {max(lost)} "
        f"at most (a checkpoint every {EVERY}); started anew after {min(started):.0f} to {max(started):.0f} s, a step "
        f"done after {min(back):.0f} to {max(back):.0f} s"
    )


if __name__ == "__main__":
    main()
