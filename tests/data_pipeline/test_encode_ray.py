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
MANY = 60


def processes_of(mark: str, name: bytes = b"") -> list[int]:
    """Processes whose command begins with `name`, by the mark in their environment; Ray names a worker by its task."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0")
            if ours and (process / "cmdline").read_bytes().startswith(name):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def check_none_left(mark: str) -> None:
    """Ray's own processes, and its workers, end with the command or shortly after."""
    deadline = time.monotonic() + 60
    while (left := processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def marked(mark: str) -> dict[str, str]:
    return {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}


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
            env=marked(mark),
            stdout=subprocess.PIPE,
            text=True,
        )
        killed = 0
        while tasks == 2 and not killed and started.poll() is None:
            if clips_in(out) and (found := processes_of(mark, b"ray::encode_share")):
                os.kill(found[0], signal.SIGKILL)
                killed = found[0]
            time.sleep(0.01)
        said, _ = started.communicate(timeout=400)
        check_none_left(mark)
        assert started.returncode == 0 and said.count("clips are in") == tasks
        assert bool(killed) == (tasks == 2)
        # A file that a killed worker was writing has a name of its own, which nothing reads.
        made = {name: data for name, data in content(out).items() if not Path(name).name.startswith(".")}
        assert made == expected and len(clips_in(out)) == COUNT


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_the_command_that_was_stopped_leaves_no_process_and_goes_on(made_clips, tmp_path):
    pytest.importorskip("ray")
    # As many that none of the signals comes too late.
    many = tmp_path / "many"
    many.mkdir()
    for index in range(MANY):
        # An empty box at the end for each round: the same clip in another file is encoded once.
        data = (made_clips / f"{index % COUNT}.mp4").read_bytes() + b"\0\0\0\x08free" * (index // COUNT)
        (many / f"{index}.mp4").write_bytes(data)
        (many / f"{index}.txt").write_text("a clip")
    for number in (signal.SIGTERM, signal.SIGINT):
        out, mark = tmp_path / str(number), uuid.uuid4().hex
        words = command(many, out, "--ray", "--workers", "2")
        started = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=marked(mark)
        )
        deadline = time.monotonic() + 300
        while not clips_in(out) and time.monotonic() < deadline and started.poll() is None:
            time.sleep(0.01)
        started.send_signal(number)
        _, said = started.communicate(timeout=120)
        assert started.returncode == 128 + number and said.count("the same command goes on") == 1, said
        check_none_left(mark)
        assert 0 < len(clips_in(out)) < MANY
    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0 and len(clips_in(out)) == MANY, again.stderr


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
