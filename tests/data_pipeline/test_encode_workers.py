"""Several processes fill one cache: the same files, byte for byte, however many they are, and after a kill."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from data_pipeline.conftest import CLIP, COUNT

from mova_engine.commands.encode import main
from mova_engine.data import encode_workers
from mova_engine.errors import MovaError

SIZE = ("--clip.frames", "5", "--clip.height", str(CLIP.height), "--clip.width", str(CLIP.width))


def command(clips: Path, out: Path, *more: str) -> list[str]:
    words = ["encode", "--data", str(clips), "--model", "nano", "--dtype", "bfloat16", "--out", str(out), *SIZE, *more]
    return [sys.executable, "-m", "mova_engine", *words]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.long
def test_any_number_of_processes_makes_the_same_files(made_clips, tmp_path):
    made = {}
    for workers in (1, 2, 4):
        out = tmp_path / str(workers)
        done = subprocess.run(command(made_clips, out, "--workers", str(workers)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert sum("clips are in" in line for line in done.stdout.splitlines()) == workers
        made[workers] = content(out)
    assert len([name for name in made[1] if name.startswith("clips/")]) == COUNT
    assert made[1] == made[2] == made[4]
    # Killed when something is there; the same command goes on, and leaves nothing else behind.
    out = tmp_path / "killed"
    started = subprocess.Popen(command(made_clips, out, "--workers", "2"), start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("clips/*/*.safetensors")) and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert list(out.glob("clips/*/*.safetensors"))
    assert subprocess.run(command(made_clips, out, "--workers", "2"), stdout=subprocess.DEVNULL).returncode == 0
    # A file that was being written has a name of its own, which nothing reads.
    assert {name: data for name, data in content(out).items() if not Path(name).name.startswith(".")} == made[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stop_reaches_all_processes(monkeypatch, number):
    """Whoever ends the command alone, as a batch system does, ends those that it has started."""
    program = "import time; time.sleep(60)"
    monkeypatch.setattr(encode_workers, "_command", lambda file: [sys.executable, "-c", program])
    started = list[subprocess.Popen]()
    real = subprocess.Popen

    def start(*words, **options):
        started.append(real(*words, **options))
        if len(started) == 2:
            threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(SystemExit) as ended:
        encode_workers.run_workers(["", ""])
    assert ended.value.code == 128 + number and [each.returncode for each in started] == [-signal.SIGTERM] * 2


def test_workers_are_not_divided_twice(clips, monkeypatch):
    common = ["--data", str(clips), "--model", "nano", "--workers", "2"]
    with pytest.raises(MovaError, match="--workers and --shard both divide the clips"):
        main([*common, "--shard", "1/2"])
    for name, value in (
        ("RANK", "1"),
        ("LOCAL_RANK", "1"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "x"),
        ("MASTER_PORT", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(MovaError, match="--workers and torchrun both divide the clips"):
        main(common)
