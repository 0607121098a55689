"""mova encode on Ray: by any number of tasks the same files as without, also where workers die; and what is refused."""

import os
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from data_pipeline.conftest import COUNT
from data_pipeline.test_encode_workers import command, content

from mova_engine.commands.encode import main
from mova_engine.errors import MovaError

# Tells the processes of a Ray of ours from all others.
MARK = "MOVA_TEST_RAY"


def workers_of(mark: str) -> list[int]:
    """Processes of Ray's tasks that encode, by the mark in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0")
            if ours and (process / "cmdline").read_bytes().startswith(b"ray::encode_share"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def clips_in(out: Path) -> list[Path]:
    return list(out.glob("clips/*/*.safetensors"))


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_tasks_of_ray_make_the_same_files_also_where_one_dies(made_clips, tmp_path):
    pytest.importorskip("ray")
    assert subprocess.run(command(made_clips, tmp_path / "alone")).returncode == 0
    expected = content(tmp_path / "alone")
    for tasks in (1, 2, 4):
        out, mark = tmp_path / str(tasks), uuid.uuid4().hex
        started = subprocess.Popen(
            command(made_clips, out, "--ray", "--workers", str(tasks)),
            env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        killed = 0
        while tasks == 2 and not killed and started.poll() is None:
            if clips_in(out) and (found := workers_of(mark)):
                os.kill(found[0], signal.SIGKILL)
                killed = found[0]
            time.sleep(0.01)
        said, _ = started.communicate(timeout=240)
        assert started.returncode == 0 and said.count("clips are in") == tasks
        assert bool(killed) == (tasks == 2)
        # A file that a killed worker was writing has a name of its own, which nothing reads.
        made = {name: data for name, data in content(out).items() if not Path(name).name.startswith(".")}
        assert made == expected and len(clips_in(out)) == COUNT


@pytest.mark.long
def test_the_command_that_was_killed_goes_on(made_clips, tmp_path):
    pytest.importorskip("ray")
    words = command(made_clips, tmp_path / "out", "--ray", "--workers", "2")
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not clips_in(tmp_path / "out") and time.monotonic() < deadline and started.poll() is None:
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 128 + signal.SIGTERM and clips_in(tmp_path / "out")
    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0 and len(clips_in(tmp_path / "out")) == COUNT, again.stderr


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--ray", "--shard", "1/2"], "--ray and --shard both divide the clips"),
        (["--ray-address", "127.0.0.1:1"], "no Ray at 127.0.0.1:1: "),
    ],
)
def test_what_is_refused(clips, tmp_path, more, says):
    pytest.importorskip("ray")
    with pytest.raises(MovaError, match=says) as refused:
        main(["--data", str(clips), "--model", "nano", "--out", str(tmp_path / "out"), *more])
    assert "\n" not in str(refused.value)


def test_without_ray(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MovaError, match="needs the package ray, which is not installed: pip install ray, or --workers"):
        main(["--data", str(clips), "--model", "nano", "--out", str(tmp_path / "out"), "--ray"])
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    pytest.importorskip("ray")
    with pytest.raises(MovaError, match="--ray and torchrun both divide the clips"):
        main(["--data", str(clips), "--model", "nano", "--out", str(tmp_path / "out"), "--ray"])
