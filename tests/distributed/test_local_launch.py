"""`--processes N` starts a command as torchrun does, and ends as its processes end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed.saved import losses, tensors

from mova_engine.config.recipes import TRAIN
from mova_engine.distributed.local_launch import must_start
from mova_engine.errors import MovaError
from mova_engine.train.training_state import checkpoints_of

SMALL = ["--loader.num-fit-clips", "4", "--validation.every", "0", "--log.no-tensorboard", "--log.every", "1"]


def command(clips: Path, out: Path, *words: str) -> list[str]:
    made = ["--data", str(clips), "--out", str(out), "--loader.batch", "2", *SMALL, *words]
    return [sys.executable, "-m", "mova_engine", "train", "--recipe", "nano", "--processes", "2", *made]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}


@pytest.mark.ranks
def test_two_processes_train_as_torchrun_starts_them(clips, tmp_path):
    words = command(clips, tmp_path / "run", "--steps", "2")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 processes" in done.stdout and done.stdout.count("done: 2 steps") == 1
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mova_engine.train"]
    other = [*launcher, *(word.replace(str(tmp_path / "run"), str(tmp_path / "torchrun")) for word in words[4:])]
    subprocess.run(other, env=environment() | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, timeout=600)
    assert losses(tmp_path / "run") == losses(tmp_path / "torchrun")
    first, second = (tensors(tmp_path / name / "checkpoints" / "step-000002") for name in ("run", "torchrun"))
    assert all((first[name] == value).all() for name, value in second.items())


@pytest.mark.ranks
def test_an_error_of_the_processes_is_its_one_line_and_status(clips, tmp_path):
    words = command(tmp_path / "nowhere", tmp_path / "run")
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (2, f"error: {tmp_path / 'nowhere'}: no such folder\n")


@pytest.mark.ranks
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, 2)])
def test_it_ends_as_its_processes_do(clips, tmp_path, number, status):
    """SIGTERM to the command stops all processes after a checkpoint; one that is killed ends the others and is told."""
    words = command(clips, tmp_path / "run", "--steps", "100000")
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("step 3/"):
                break
        ranks = _children(run.pid)
        assert len(ranks) == 2
        os.kill(run.pid if number == signal.SIGTERM else ranks[1], number)
        _, said = run.communicate(timeout=600)
    assert run.returncode == status, said
    if number == signal.SIGTERM:
        assert len(checkpoints_of(tmp_path / "run")) == 1
    else:
        assert "was ended by SIGKILL, and the others with it" in said
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(path.parent.name))
        except FileNotFoundError:
            continue
    return sorted(found)


def test_a_launcher_of_other_processes_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not must_start(4)
    with pytest.raises(MovaError, match="--processes 2, but this is one of 4 that a launcher started: leave it out"):
        must_start(2)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--processes", "0"], "processes must be at least 1, got 0"),
        (["--processes", "2", "--dry-run"], "of which size a --dry-run is, --world-size says"),
    ],
)
def test_what_cannot_be_started_is_refused(words, reason):
    with pytest.raises(MovaError, match=reason):
        TRAIN.parse_both(words)
