"""The trainer in several processes: the same run on one and on four."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
from distributed.checks import trained
from distributed.runs import run_shared
from distributed.world import free_port

from mova_engine.config.diffusion import GIVEN
from mova_engine.train.metrics import read_metrics

STEPS = 2


def start(clips: Path, out: Path, processes: int, *settings: str) -> subprocess.CompletedProcess:
    launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(free_port()), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else []), "mova_engine.train", "--recipe", "nano"]
    common = f"--data {clips} --out {out} --device cpu --steps {STEPS} --loader.num-fit-clips 4"
    common += " --log.every 1 --log.no-tensorboard"
    validation = ["--validation.every", str(STEPS), "--validation.data"] + [str(clips), "--validation.samples", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *common.split(), *validation, *settings],
        cwd=out.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )


def losses(out: Path) -> list[tuple[float, ...]]:
    names = ("loss", "loss/video", "loss/audio", "grad_norm", "heldout/video", "heldout/audio")
    return [tuple(row[name] for name in names if name in row) for row in read_metrics(out / "metrics.jsonl")]


def agree(found: Path, expected: Path) -> bool:
    ours, theirs = losses(found), losses(expected)
    return len(theirs) == STEPS + 1 and all(a == pytest.approx(b, rel=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_four_processes_train_as_one_does(worlds, clips, tmp_path):
    """Two clips at a time, each shared by two processes; data, noise and noise levels are one process's."""
    common = {"data": str(clips), "steps": STEPS}
    assert trained(out=str(tmp_path / "alone"), batch=4, context_parallel=1, **common) == 0
    found = worlds(4).run("trained", out=str(tmp_path / "together"), batch=2, context_parallel=2, **common)
    assert found == [0] * 4
    assert agree(tmp_path / "together", tmp_path / "alone")
    assert (tmp_path / "together" / "checkpoints" / f"step-{STEPS:06d}" / "model_index.json").is_file()


SHARED = {"context_parallel": 2}
MASKED = [
    (2, {}),
    pytest.param(4, SHARED, marks=pytest.mark.slow),
    pytest.param(4, {**SHARED, "shard": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("world", "parallel"), MASKED)
def test_masked_clips_count_alike_however_the_clips_are_divided(worlds, clips, tmp_path, world, parallel):
    """Silent clips among the others: one process takes four clips at once, two groups of processes one each, twice."""
    shutil.copytree(clips, tmp_path / "clips", ignore=shutil.ignore_patterns("cache"))
    for path in sorted((tmp_path / "clips").glob("*.mp4"))[::2]:
        without_sound(path)

    def losses_of(size: int, out: str, **settings) -> list[list[float]]:
        settings["loader"] = {"silent_audio": "mask", **settings.get("loader", {})}
        settings["diffusion"] = dict.fromkeys(GIVEN, 0.0)
        given = {"clips": str(tmp_path / "clips"), "out": str(tmp_path / out), "steps": 2, **settings}
        found = worlds(size).run("run_shared", **given) if size > 1 else [run_shared(**given)]
        assert [status for status, _ in found] == [0] * size, found
        names = ("loss", "loss/video", "loss/audio", "grad_norm", "heard")
        return [[row[name] for name in names] for row in read_metrics(tmp_path / out / "metrics.jsonl")]

    alone = losses_of(1, "alone", batch=4)
    together = losses_of(world, "together", batch=1, global_batch_size=4, parallel=parallel)
    assert len(alone) == 2 and all(0 < row[-1] < 1 for row in alone)
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in zip(together, alone, strict=True))


def without_sound(path: Path) -> None:
    """Take the sound track off a film."""
    bare = path.with_suffix(".bare.mp4")
    with av.open(str(path)) as source, av.open(str(bare), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    bare.replace(path)


def test_processes_exchange_nothing_between_steps(worlds, clips, tmp_path):
    """What they were asked for by signals, and whether the step is finite, goes with its losses and gradients."""
    settings = {"clips": str(clips), "steps": 3, "batch": 2}
    for parallel, each in (({}, 2), ({"shard": True}, 5)):
        out = tmp_path / f"run-{each}"
        for within, between in worlds(2).run("exchanges_between_steps", out=str(out), parallel=parallel, **settings):
            # Losses, and whole gradients in one bucket; or the norm of sharded ones, and that of three components.
            assert between == [0, 0] and within == [each] * 3


def test_a_mesh_that_does_not_fit_is_refused_by_the_first_process(worlds, clips, tmp_path):
    said = worlds(2).run("refused_training", data=str(clips), out=str(tmp_path / "run"), context_parallel=3)
    assert said[0].startswith("mesh: context_parallel 3 does not divide the 2 processes")
    assert said[1] == f"rank 1: {said[0]}", "without a launcher it does not hear the first"
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.slow
def test_as_a_user_starts_it(clips, tmp_path):
    alone = start(clips, tmp_path / "alone", 1, "--loader.batch", "4")
    assert alone.returncode == 0, alone.stderr[-2000:]
    settings = ["--loader.batch", "2", "--parallel.context-parallel", "2", "--memory.checkpointing", "selective"]
    together = start(clips, tmp_path / "together", 4, *settings)
    assert together.returncode == 0, together.stderr[-2000:]
    # The first process alone speaks.
    assert together.stdout.count("done: ") == 1 and "4 processes: dp_shard 2 x ulysses 2" in together.stdout
    assert agree(tmp_path / "together", tmp_path / "alone")
    refused = start(clips, tmp_path / "run", 2, "--parallel.context-parallel", "3")
    assert refused.returncode != 0
    assert refused.stderr.count("error: mesh: context_parallel 3 does not divide the 2 processes") == 1
