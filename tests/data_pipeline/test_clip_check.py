"""mova data check: bad clips are named and counted, in the order of the list; a stopped check goes on where it was."""

import json
import os

import numpy as np
import pytest
from data_pipeline.conftest import CLIP
from data_pipeline.test_sound import write
from data_pipeline.test_windows import TONE, listed

from mova_engine.commands.data_check import main
from mova_engine.data import clip_check
from mova_engine.data.clip_check import check_clips
from mova_engine.data.media.decode import read_clip
from mova_engine.errors import MovaError


@pytest.fixture
def looked_at(monkeypatch):
    seen = []

    def counting(path, *args, **options):
        seen.append(path.name)
        return read_clip(path, *args, **options)

    monkeypatch.setattr(clip_check, "read_clip", counting)
    return seen


def checked(clips, ledger, **options):
    said = []
    return check_clips(clips, CLIP, ledger, say=said.append, **options), said


def test_bad_clips_are_named_and_counted_and_looked_at_once(clips, tmp_path, looked_at):
    (clips / "1.mp4").write_bytes(b"nonsense")
    (clips / "2.mp4").write_bytes(b"other nonsense")
    (clips / "5.mp4").unlink()
    ledger = tmp_path / "ledger.jsonl"
    found, said = checked(clips, ledger, workers=3)
    assert [line.split(": ")[1] for line in said[:3]] == ["1.mp4", "2.mp4", "5.mp4"]
    assert said[3] == f"{clips}: 3 clips of 7 cannot be used" and sorted(found.kinds.values()) == [1, 2]
    assert said[4].split(maxsplit=1)[0] == "2" and said[5].split(maxsplit=1) == ["1", "no such file"]
    assert sorted(looked_at) == [f"{n}.mp4" for n in (0, 1, 2, 3, 4, 6)]
    looked_at.clear()
    again, said_again = checked(clips, ledger)
    assert not looked_at and again.before == 7 and said_again[:3] == said[:3] and again.kinds == found.kinds
    # Half the ledger, its last line torn: the rest is looked at again. So is a file that has changed.
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:4]) + lines[4][:9])
    (clips / "0.mp4").write_bytes((clips / "6.mp4").read_bytes())
    os.utime(clips / "0.mp4", ns=(1, 1))
    assert checked(clips, ledger)[0].kinds == found.kinds
    assert sorted(looked_at) == [f"{n}.mp4" for n in (0, 3, 4, 6)]
    looked_at.clear()
    assert checked(clips, ledger)[0].before == 7 and not looked_at


def test_ledgers_of_something_else(clips, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("my notes\n")
    with pytest.raises(MovaError, match="ledger.jsonl is no ledger of a check: give another --out"):
        checked(clips, ledger)
    checked(clips, ledger, overwrite=True)
    with pytest.raises(MovaError, match="ledger.jsonl is of another check: give another --out, or --overwrite"):
        checked(clips, ledger, silent="zeros")


def test_the_command(clips, tmp_path, capsys):
    # Their own size: resizing takes torch, which each new reader imports.
    size = ["--clip.frames", "5", "--clip.height", str(CLIP.height), "--clip.width", str(CLIP.width)]
    options = ["--model", "nano", *size, "--out", str(tmp_path / "ledger.jsonl")]
    assert main(["--data", str(clips), *options]) == 0
    assert capsys.readouterr().out == f"{clips}: 0 clips of 7 cannot be used\n"
    (clips / "3.mp4").unlink()
    assert main(["--data", str(clips), *options]) == 1
    assert "cannot be used: 3.mp4: " in capsys.readouterr().out
    assert len([json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]) == 9


def test_each_window_of_a_long_file_is_looked_at(tmp_path):
    """A second of sound, the middle half of it silent: two windows of 0.2 s, of which one begins every 0.25 s."""
    sound = np.concatenate([TONE[:12_000], np.zeros(24_000, np.float32), TONE[:12_000]])
    write(tmp_path / "long.wav", sound[None])
    listed(tmp_path, {"video_path": "long.wav"})
    found, said = checked(tmp_path, tmp_path / "ledger.jsonl", pictures=False, cut_every=0.25)
    assert found.clips == 4 and [line.split(": ")[1] for line in said[:-2]] == ["long.wav@0.25", "long.wav@0.5"]
    assert checked(tmp_path, tmp_path / "ledger.jsonl", pictures=False, cut_every=0.25)[0].before == 4
    assert checked(tmp_path, tmp_path / "ledger.jsonl", pictures=False)[0].clips == 1
