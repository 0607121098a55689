"""A real training step on the CPU beside its rehearsal: `python real_step.py RECIPE_JSON [WORLD]` prints both peaks.

Three counts of the real step: of the tracker on real tensors; of `bench.peak_memory`, which knows nothing of it; and of
torch's allocator, as its profiler reports every allocation, also those within an operation.
"""

import json
import sys
from contextlib import contextmanager

import torch

from mova_engine.backend import get_backend
from mova_engine.bench.peak_memory import LiveTensors
from mova_engine.config.recipes import TRAIN
from mova_engine.distributed.processes import read_launch, start_processes
from mova_engine.ops import DTYPES, bind
from mova_engine.rehearsal.memory_tracker import MemoryTracker
from mova_engine.train import dry_run
from mova_engine.train.assembly import mesh_of
from mova_engine.train.model_setup import model_config


class RealStage:
    """What `dry_run` builds on, with tensors that have data."""

    def __init__(self) -> None:
        self.backend, self.tracker, self.host = get_backend("cpu"), MemoryTracker("cpu"), MemoryTracker("cpu")

    @contextmanager
    def play(self, part):
        with self.tracker:
            yield


def allocated(profile) -> int:
    """Most bytes above those at the start that the allocator had handed out."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main() -> None:
    torch.set_num_threads(1)
    config = TRAIN.fill(json.loads(sys.argv[1]), "the test")
    launch = read_launch()
    shape = mesh_of(config, launch.world)
    stage = RealStage()
    processes = start_processes(stage.backend, launch, shape)
    ops = processes.operators(bind(stage.backend, dtypes=(DTYPES[config.dtype],)))
    torch.autograd.set_multithreading_enabled(False)
    updater, batches, build = dry_run._built(stage, config, model_config(config), ops, processes)
    with torch.no_grad():
        for weight in updater.weights.tensors():
            weight.normal_(0, 0.02)
        batch = next(batches)
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.normal_()
    updater.weights.renew_copies()
    step = [0]

    def again():
        step[0] += 1
        updater.step(step[0], updater.prepared(step[0], batches, build))
        updater.weights.zero_grad()

    again()
    stage.tracker.forget()
    with stage.tracker:
        again()
    found = {"tracker": stage.tracker.peak().bytes}
    before = sum(stage.tracker.now().values())
    with LiveTensors() as live:
        again()
    found["live"] = before + live.peak()
    peaks = []
    # Where an exchange waits for the other process, on a busy machine, the next ones' buffers pile up: the step in
    # which the fewest did is taken.
    for _ in range(4 if launch.world > 1 else 1):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            again()
        peaks.append(before + allocated(profile))
    found["allocator"] = min(peaks)
    if launch.rank == 0:
        print(f"peaks: {peaks}", file=sys.stderr)
    if launch.rank == 0:
        print("real: " + json.dumps(found))
    processes.close()


if __name__ == "__main__":
    main()
