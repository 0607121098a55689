"""`mova eval` among broken files, kills, full disks and other runs: nothing is lost, nothing passed over in silence."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from drawn_scores import PEAK
from scipy.io import wavfile

from mova_engine.errors import MovaError
from mova_engine.evaluation import measured_clips
from mova_engine.evaluation.clip_records import find_clips
from mova_engine.evaluation.evaluation_run import evaluate
from mova_engine.files import atomic
from source_tree import ROOT

RATE = 16000


def sounds(folder, count, seconds=0.05):
    """`count` sounds of noise, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise = np.random.default_rng(i).integers(-9000, 9000, int(seconds * RATE), np.int16)
        wavfile.write(folder / f"{i:03d}.wav", RATE, noise)
    return folder


def measured(folder, out, lines=None, workers=1):
    found = evaluate(folder, out, [PEAK], workers, (lambda _: None) if lines is None else lines.append)
    return {row["clip"]: row for row in found.rows}


def test_what_cannot_be_read_is_a_row_with_its_reason_and_stops_nothing(tmp_path):
    folder, lines = sounds(tmp_path / "clips", 1), []
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(folder / "pipe.wav")
    rows = measured(folder, tmp_path / "out", lines)
    assert list(rows) == ["000.wav", "gone.mp4", "loop.mp4", "pipe.wav"]
    assert rows["000.wav"]["peak"] is not None and rows["gone.mp4"]["sha256"] is None
    assert rows["gone.mp4"]["why_peak"] == "a link to nowhere.mp4, which is not there"
    assert "loop.mp4" in rows["loop.mp4"]["why_peak"]
    assert rows["pipe.wav"]["why_peak"] == "not a file but a pipe, socket or device"
    assert "gone.mp4: a link to nowhere.mp4, which is not there" in lines
    (folder / "nowhere.mp4").write_bytes((folder / "000.wav").read_bytes())
    again = measured(folder, tmp_path / "out")
    assert again["gone.mp4"]["peak"] == rows["000.wav"]["peak"], "no reason is kept of a file that can be read by now"


@pytest.mark.parametrize(
    "change", [{"values": {"peak": "x"}}, {"values": None}, {"reason": 3}, {"seconds": None}, {"evidence": ...}]
)
def test_a_record_that_is_none_is_measured_anew(tmp_path, change):
    folder = sounds(tmp_path / "clips", 1)
    whole = measured(folder, tmp_path / "out")
    (kept,) = (path for path in (tmp_path / "out" / "records").rglob("*.json") if "peak" in path.read_text())
    record = json.loads(kept.read_text()) | change
    kept.write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))
    assert measured(folder, tmp_path / "out") == whole


@pytest.mark.parametrize("left", [0, 40, -30])
def test_evidence_that_a_power_cut_left_in_part_is_one_line(tmp_path, left):
    folder = sounds(tmp_path / "clips", 1)
    measured(folder, tmp_path / "out")
    (kept,) = (tmp_path / "out" / "records").rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:left])
    with pytest.raises(MovaError, match=r"npz is damaged .*delete it to measure its clip anew"):
        measured(folder, tmp_path / "out")


def test_a_file_without_permission_is_a_row(tmp_path, monkeypatch):
    """As root every file can be read: the system's answer is played."""
    folder, opened = sounds(tmp_path / "clips", 2), open

    def refusing(path, *mode):
        if str(path).endswith("001.wav"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *mode)

    monkeypatch.setattr("mova_engine.files.digests.open", refusing, raising=False)
    rows = measured(folder, tmp_path / "out")
    assert rows["001.wav"]["why_peak"] == "cannot be read (Permission denied)" and rows["000.wav"]["peak"] is not None


def test_linked_folders_are_followed_once(tmp_path):
    folder = tmp_path / "clips"
    sounds(tmp_path / "elsewhere", 2)
    folder.mkdir()
    (folder / "set1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert [path.relative_to(folder).as_posix() for path in find_clips(folder)] == ["set1/000.wav", "set1/001.wav"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    folder, scandir = sounds(tmp_path / "clips", 1), os.scandir
    (folder / "locked").mkdir()

    def refusing(place):
        if str(place).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(MovaError, match=r"locked: cannot be read \(Permission denied\)"):
        find_clips(folder)


def test_a_clip_that_is_gone_before_its_end_is_told_and_the_others_are_kept(tmp_path, monkeypatch):
    folder, read_clip, read = sounds(tmp_path / "clips", 3), measured_clips.read_clip, []

    def removing(path):
        read.append(path.name)
        clip = read_clip(path)
        if path.name == "001.wav":
            path.unlink()
        return clip

    monkeypatch.setattr(measured_clips, "read_clip", removing)
    with pytest.raises(MovaError, match=r"001\.wav: changed while it was measured"):
        measured(folder, tmp_path / "out")
    read.clear()
    assert list(measured(folder, tmp_path / "out")) == ["000.wav", "002.wav"] and not read


def test_a_full_disk_ends_the_run_with_one_line_and_what_was_measured_is_kept(tmp_path, monkeypatch):
    folder, out, opened = sounds(tmp_path / "clips", 6), tmp_path / "out", open
    room = 3

    class Full:
        def __init__(self, path, mode):
            self.file = opened(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            nonlocal room
            room -= 1
            if room < 0:
                self.file.write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    monkeypatch.setattr(atomic, "open", Full, raising=False)
    with pytest.raises(MovaError, match="No space left on device"):
        measured(folder, out)
    assert not [path for path in out.rglob("*") if path.name.startswith(".")], "no partial file is left"
    assert not (out / "report.json").exists()
    monkeypatch.undo()
    lines = []
    rows = measured(folder, out, lines)
    assert lines[0] == "1 clip of 6 measured before" and all(row["peak"] is not None for row in rows.values())


def test_two_runs_into_one_folder_are_both_whole(tmp_path):
    folder = sounds(tmp_path / "clips", 8)
    measured(folder, tmp_path / "alone")
    failed = []

    def run():
        try:
            measured(folder, tmp_path / "out", workers=2)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == (tmp_path / "alone" / "scores.parquet").read_bytes()


def test_what_a_killed_process_leaves_before_its_first_record_is_no_user_s_file(tmp_path):
    folder, out = sounds(tmp_path / "clips", 1), tmp_path / "out"
    out.mkdir()
    (out / ".mova_probe.0123456789ab").write_bytes(b"mova")
    assert measured(folder, out)["000.wav"]["peak"] is not None


# A process that makes one run, which imports everything, and then forks a run for each line it reads. That run kills
# itself at the N-th time that it makes, writes, renames or removes something in its folder, in whichever of its threads
# that is: how far it gets does not depend on how fast the machine is.
_RUNS = """
import itertools, os, signal, sys
from pathlib import Path
from mova_engine.evaluation.evaluation_run import evaluate
from mova_engine.scores.score_file import chosen_scores
scores, _ = chosen_scores(["loudness", "sound-quality"])
clips, untouched = map(Path, sys.argv[1:])
evaluate(clips, untouched, scores, 2, lambda _: None)
touches = {"open", "os.mkdir", "os.rename", "os.remove"}
def killed_at(last, place):
    count = itertools.count(1)
    def look(event, of):
        if event in touches and str(of[0]).startswith(place) and of[1] != "r" and next(count) == last:
            os.kill(os.getpid(), signal.SIGKILL)
    return look
for line in sys.stdin:
    last, place = line.strip().split(" ", 1)
    pid = os.fork()
    if not pid:
        try:
            sys.addaudithook(killed_at(int(last), place))
            evaluate(clips, Path(place), scores, 2, lambda _: None)
            os._exit(0)
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.mark.long
def test_killed_at_any_moment_a_run_goes_on_to_the_same_table(tmp_path):
    """Twenty times kill -9, then a run that may end: its table is, byte for byte, that of a run that nobody touched."""
    folder = sounds(tmp_path / "clips", 60, seconds=0.5)
    out, untouched = tmp_path / "out", tmp_path / "untouched"
    drawn, kept = random.Random(0), []
    command = [sys.executable, "-c", _RUNS, str(folder), str(untouched)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as runs:

        def status(place, killed_at=0):
            runs.stdin.write(f"{killed_at} {place}\n")
            runs.stdin.flush()
            return int(runs.stdout.readline())

        for _ in range(20):
            ended = status(out, drawn.randrange(1, 30))
            kept.append((ended, len(list(out.glob("records/??/[!.]*.json")))))
        assert status(out) == 0
        runs.stdin.close()
    counts = [count for _, count in kept]
    assert counts == sorted(counts), "a record was lost"
    assert sum(status == -signal.SIGKILL for status, _ in kept) >= 15 and len(set(counts)) >= 8, kept
    assert (out / "scores.parquet").read_bytes() == (untouched / "scores.parquet").read_bytes()
    assert len(pq.read_table(out / "scores.parquet")) == 60


def test_a_run_clears_what_a_killed_writer_left_and_leaves_what_is_being_written(tmp_path):
    folder, records = sounds(tmp_path / "clips", 1), tmp_path / "out" / "records" / "ab"
    records.mkdir(parents=True)
    left, fresh, other = (records / name for name in (".x.json.0123456789ab", ".y.json.ba9876543210", ".mine"))
    for path in (left, fresh, other):
        path.write_text("{")
    for path in (left, other):
        os.utime(path, (1e9, 1e9))
    measured(folder, tmp_path / "out")
    assert not left.exists() and fresh.exists() and other.exists()
