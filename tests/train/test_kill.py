"""`kill -9` in the middle of a run, as a user's machine would do it: the run goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS, EVERY = 24, 5


def command(clips: Path, out: Path) -> list[str]:
    overrides = {
        "steps": STEPS, "loader.batch": 2, "global-batch-size": 4, "loader.workers": 2, "loader.num-fit-clips": 4,
        "optim.ema": 0.9, "checkpoint.every": EVERY, "log.every": 1, "data": clips, "out": out, "device": "cpu",
        "validation.every": 0,
    }  # fmt: skip
    options = [word for name, value in overrides.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "mova_engine.train", "--loader.no-preload", "--log.no-tensorboard", *options]


def steps_done(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def losses(out: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["loss/video"], row["loss/audio"], row["grad_norm"]) for row in rows]


@pytest.mark.slow
def test_kill_9_and_resume_equals_an_uninterrupted_run_bit_for_bit(clips, tmp_path, repo_root):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(clips, whole), check=True, env=env, cwd=repo_root)
    for stop_at in (8, 13):
        # A group of its own, so that the data workers die with it.
        child = subprocess.Popen(command(clips, broken), env=env, cwd=repo_root, start_new_session=True)
        while steps_done(broken) < stop_at and child.poll() is None:
            time.sleep(0.005)
        os.killpg(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert stop_at <= steps_done(broken) < STEPS
    finished = subprocess.run(command(clips, broken), check=True, env=env, cwd=repo_root, stdout=subprocess.PIPE)
    assert b"going on from" in finished.stdout
    assert losses(broken) == losses(whole) and len(losses(whole)) == STEPS
    for file in ("master", "ema", "optimizer"):
        path = f"checkpoints/step-{STEPS:06d}/training/{file}.safetensors"
        one, other = load_file(broken / path), load_file(whole / path)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_sigterm_to_the_whole_group_saves_and_leaves_with_143(clips, tmp_path, repo_root):
    out = tmp_path / "run"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command(clips, out), env=env, cwd=repo_root, start_new_session=True, stdout=subprocess.PIPE, text=True
    )
    while steps_done(out) < 3 and child.poll() is None:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGTERM)
    said, _ = child.communicate(timeout=60)
    assert child.returncode == 143 and "stopped by request" in said
    saved = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert f"after step {int(saved[-1].removeprefix('step-'))} " in said
