"""`mova data preview`: what training sees of a folder of clips."""

import numpy as np
import pytest
from data_pipeline.media import clicks, every, write_media
from data_pipeline.test_sound import write
from data_pipeline.test_windows import TONE
from PIL import Image

from mova_engine.commands.data_preview import main
from mova_engine.config.model import ClipConfig
from mova_engine.data import preview as module
from mova_engine.data.media.decode import read_clip
from mova_engine.data.preview import preview
from mova_engine.errors import MovaError

CLIP = ClipConfig(frames=5, height=32, width=48)


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        write_media(tmp_path / f"{name}.mp4", every(24, 12), clicks([0.1], 0.6))
        (tmp_path / f"{name}.txt").write_text(f"clip {name}")
    (tmp_path / "d.mp4").write_bytes(b"no video")
    (tmp_path / "d.txt").write_text("broken")
    return tmp_path


def test_the_sheet_has_what_the_loader_reads(folder, monkeypatch):
    drawn, said = [], []
    draw = module.contact_sheet_png
    monkeypatch.setattr(module, "contact_sheet_png", lambda clips: drawn.extend(clips) or draw(clips))
    assert preview(folder, CLIP, folder / "sheet.png", count=2, say=said.append) == 1
    for name, clip in zip("ab", drawn, strict=True):
        read = read_clip(folder / f"{name}.mp4", CLIP)
        assert np.array_equal(clip.video, read.pictures) and np.array_equal(clip.audio, read.audio)
        assert f"clip {name}" in clip.caption
    assert Image.open(folder / "sheet.png").size[0] > 100
    assert any(line.startswith("not used: d.mp4: ") for line in said)
    assert said[-1].endswith("2 clips of 4, each 5 frames of 32x48 at 24 a second; 1 cannot be used")


def test_the_command_answers_by_its_status(folder, capsys):
    command = ["--data", str(folder), "--model", "nano", "--clip.frames", "5", "--out", str(folder / "sheet.png")]
    assert main(command) == 1 and "not used: d.mp4" in capsys.readouterr().out
    with pytest.raises(MovaError, match="sheet.png is there already"):
        main(command)
    (folder / "d.mp4").unlink()
    assert main([*command, "--overwrite"]) == 0
    with pytest.raises(MovaError, match="give --checkpoint, a model folder or run, or --model"):
        main(["--data", str(folder)])


def test_sound_alone_is_shown_as_a_spectrogram_above_its_waveform(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.wav", TONE[None])
    write(tmp_path / "b.flac", clicks([0.05], 0.3), codec="flac")
    (tmp_path / "c.mp3").write_bytes(b"no sound")
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"sound {name}")
    drawn, draw = [], module.contact_sheet_png
    monkeypatch.setattr(module, "contact_sheet_png", lambda clips: drawn.extend(clips) or draw(clips))
    command = ["--data", str(tmp_path), "--model", "nano", "--clip.frames", "5", "--task", "audio"]
    assert main([*command, "--out", str(tmp_path / "sheet.png")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a.wav: 0 to 0.21 s of 1.00: sound a" and said[2].startswith("not used: c.mp3: ")
    assert said[-1].endswith("sheet.png: 2 clips of 3, each 0.21 s of sound; 1 cannot be used")
    for name, clip in zip(("a.wav", "b.flac"), drawn, strict=True):
        assert np.array_equal(clip.audio, read_clip(tmp_path / name, CLIP, pictures=False).audio)
    # 440 Hz is one bright line, near the bottom, from the first frame to the last.
    rows = drawn[0].video[..., 0].astype(int).mean((0, 2))
    assert len(drawn[0].video) == 5 and 0.9 < rows.argmax() / len(rows) < 1 and rows[: len(rows) // 2].max() < 100
    assert Image.open(tmp_path / "sheet.png").size[0] > 100
