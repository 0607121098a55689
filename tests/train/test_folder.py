"""A run's folder: one run at a time, nothing of the user's touched, and writing tried before the work."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mova_engine.errors import MovaError
from mova_engine.files.writable import check_writable
from mova_engine.train import run_lock
from mova_engine.train.metrics import check_metrics
from mova_engine.train.run_folder import RunFolder
from mova_engine.train.run_lock import LOCK, STALE_S, RunLock

HOLD = "import sys, time; from mova_engine.train.run_lock import RunLock; from pathlib import Path\n" + (
    "held = RunLock(Path(sys.argv[1]), time.time()); print('held', flush=True); time.sleep(60)"
)


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_leaves_it_free(tmp_path, small, ran):
    config = small(steps=1)
    config.folder.mkdir()
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(config.folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    with pytest.raises(MovaError, match=f"is in use: process {child.pid} on {socket.gethostname()} trains there since"):
        ran(config)
    assert sorted(path.name for path in config.folder.iterdir()) == [LOCK]
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert ran(config).status == 0
    child.stdout.close()


@pytest.mark.parametrize("locks", [True, False])
def test_a_run_on_another_machine_is_told_by_its_signs_of_life(tmp_path, monkeypatch, locks):
    """On a file system whose locks reach one machine only, or that has none."""
    if not locks:
        monkeypatch.setattr(run_lock.fcntl, "lockf", _no_locks)
    (tmp_path / LOCK).write_text('{"host": "elsewhere", "pid": 7, "since": "2026-11-28T00:00:00+00:00"}')
    now = (tmp_path / LOCK).stat().st_mtime
    with pytest.raises(MovaError, match=r"process 7 on elsewhere .*last sign of life 5 s ago"):
        RunLock(tmp_path, now + 5)
    RunLock(tmp_path, now + STALE_S + 1).release()
    RunLock(tmp_path, now).release()


def test_without_locks_a_process_of_this_machine_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock.fcntl, "lockf", _no_locks)
    first = RunLock(tmp_path, time.time())
    with pytest.raises(MovaError, match=f"process {os.getpid()} on "):
        RunLock(tmp_path, time.time())
    first.release()
    RunLock(tmp_path, time.time()).release()


def _no_locks(*args) -> None:
    raise OSError(run_lock.errno.ENOLCK, "No locks available")


def test_a_restarted_run_waits_for_the_lock_of_a_machine_that_is_gone(tmp_path, small, monkeypatch):
    """Where nobody restarts it, a run is refused at once."""
    monkeypatch.setattr(run_lock, "STALE_S", 0.4)
    monkeypatch.setattr(run_lock, "BEAT_S", 0.2)
    monkeypatch.setattr(run_lock, "LOOK_S", 0.02)
    config = small(steps=1)
    config.folder.mkdir()
    held = '{"host": "elsewhere", "pid": 7, "since": "2026-11-28T00:00:00+00:00"}'
    (config.folder / LOCK).write_text(held)
    with pytest.raises(MovaError, match="process 7 on elsewhere trains there"):
        RunFolder(config)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    (config.folder / LOCK).write_text(held)
    RunFolder(config).release()


def test_a_lock_that_is_kept_alive_is_waited_for_in_vain(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "LOOK_S", 0.02)
    (tmp_path / LOCK).write_text('{"host": "elsewhere", "pid": 7, "since": "2026-11-28T00:00:00+00:00"}')
    with pytest.raises(MovaError, match="process 7 on elsewhere trains there"):
        RunLock(tmp_path, (tmp_path / LOCK).stat().st_mtime, 0.1)


def test_a_lock_is_kept_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT_S", 0.01)
    held = RunLock(tmp_path, time.time())
    os.utime(tmp_path / LOCK, (0, 0))
    until = time.monotonic() + 5
    while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / LOCK).stat().st_mtime > 0
    held.release()


def test_a_changed_configuration_of_the_users_stays(small, tmp_path):
    """The run's own makes room for the next one's, until somebody writes to it."""
    path = tmp_path / "run" / "config.yaml"
    for steps in (1, 2):
        RunFolder(small(steps=steps)).release()
        assert f"steps: {steps}" in path.read_text()
    path.write_text(path.read_text() + "# the best of all\n")
    with pytest.raises(MovaError, match="config.yaml was not written by this command, or was changed since"):
        RunFolder(small(steps=3))
    assert "# the best of all" in path.read_text()
    path.rename(path.with_name("best.yaml"))
    RunFolder(small(steps=3)).release()


def test_metrics_of_something_else_are_told_from_a_runs(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    check_metrics(path)
    for text in ('{"epoch": 1}\n', "a diary\n", '{"step": 1}\nthen\n{"step": 2}\n'):
        path.write_text(text)
        with pytest.raises(MovaError, match="is no row of metrics"):
            check_metrics(path)


def test_what_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "deep", "--out")
    assert not any(tmp_path.iterdir())
    (tmp_path / "cat.png").write_text("a picture")
    with pytest.raises(MovaError, match=r"--out .*cat.png is a file, not a folder; give another --out"):
        check_writable(tmp_path / "cat.png", "--out")
    with pytest.raises(MovaError, match=r"cat.png is a file, not a folder"):
        check_writable(tmp_path / "cat.png" / "below", "--out")
    assert (tmp_path / "cat.png").read_text() == "a picture"
    monkeypatch.setattr("mova_engine.files.writable.open", _read_only, raising=False)
    with pytest.raises(MovaError, match="--out .* cannot be written to: Read-only file system; give another --out"):
        check_writable(tmp_path / "folder", "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]


def test_a_folder_that_cannot_be_made_is_told_too(tmp_path):
    with pytest.raises(MovaError, match="cannot be written to: File name too long; give another --out"):
        check_writable(tmp_path / ("x" * 300) / "run", "--out")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(MovaError, match="link is a file, not a folder"):
        check_writable(tmp_path / "link" / "run", "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_looking_makes_and_removes_no_folder(tmp_path, monkeypatch):
    """Else two commands that begin at the same time would each see the other's folder come and go."""

    def refused(path, *args, **kwargs):
        raise AssertionError(path)

    for name in ("mkdir", "rmdir"):
        monkeypatch.setattr(Path, name, refused)
        monkeypatch.setattr(os, name, refused)
    check_writable(tmp_path / "new" / "deep", "--out")
    check_writable(tmp_path, "--out")
    assert not any(tmp_path.iterdir())


def _read_only(*args):
    raise OSError(30, "Read-only file system")
