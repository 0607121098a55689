"""`python -m mova_engine.inference`: files that a player and the measure read, and one line for every mistake."""

import json
import shutil
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import read_clip
from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic.bounce import generate
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.sample_settings import REFERENCE_NEGATIVE_PROMPT
from mova_engine.scores.bounce_sync import measure

SHAPE = ClipConfig(frames=9, height=32, width=48)


@pytest.fixture
def sample(run_folder, tmp_path):
    """Run the command on the tiny checkpoint; returns the folder written."""

    def run(*args, out="out"):
        folder = tmp_path / out
        common = {"--checkpoint": run_folder, "--out": folder, "--device": "cpu", "--steps": 2}
        given = [str(arg) for arg in args]
        given += [str(word) for option, value in common.items() if option not in given for word in (option, value)]
        assert main(given) == 0
        return folder

    return run


@pytest.fixture
def picture(tmp_path):
    """A picture file, 96x64, orange on the left, blue on the right."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48], pixels[:, 48:] = (230, 120, 20), (20, 60, 200)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    return tmp_path / "first.png"


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_prompt_becomes_an_mp4_with_sound_and_picture_in_step(sample, picture, capsys):
    folder = sample("--prompt", "two colours", "--image", picture, "--seed", 7)
    names = [".mova_written.jsonl", "000.json", "000.mp4", "contact_sheet.png", "metadata.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert "1 clip in" in capsys.readouterr().out
    with av.open(str(folder / "000.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.codec_context.width, video.codec_context.height) == (48, 32)
        durations = [stream.duration * stream.time_base for stream in (video, audio)]
        assert durations[0] == Fraction(9, 24)
        assert abs(durations[0] - durations[1]) < Fraction(1, 48)
        assert {stream.start_time for stream in (video, audio)} == {0}
        assert sum(1 for _ in container.decode(video)) == 9
    # The model was trained without the first frame, so that it is the picture.
    shown = read_clip(folder / "000.mp4", SHAPE, silent="zeros").video[0].astype(int)
    assert np.abs(shown[8:24, 4:20] - (230, 120, 20)).mean() < 25
    assert np.abs(shown[8:24, 28:44] - (20, 60, 200)).mean() < 25
    (row,) = rows(folder)
    assert row["caption"] == "two colours"
    assert (row["seed"], row["steps"], row["guidance"], row["source"]) == (7, 2, "text", str(picture))
    assert (row["video_shift"], row["audio_shift"]) == (3.0, 2.0)


def test_brackets_in_the_models_name_are_no_markup_and_warnings_are_single_lines(sample, run_folder, tmp_path, capsys):
    folder = tmp_path / "[red]run[" / "x]"
    shutil.copytree(run_folder, folder)
    sample("--prompt", "rain", "--checkpoint", folder)
    lines = capsys.readouterr().err.splitlines()
    (warning,) = [line for line in lines if line.startswith("warning: this model")]
    assert warning.endswith("it gets a white one")
    assert rows(tmp_path / "out")[0]["checkpoint"].startswith(str(folder))


def test_heldout_clips_become_a_folder_that_the_measure_reads(sample, tmp_path):
    generate(tmp_path / "heldout", 5, seed=1, split="heldout")
    entries = read_metadata(tmp_path / "heldout")
    folder = sample("--prompts", tmp_path / "heldout", "--batch", 2, "--seed", 10, "--guidance", "dual")
    assert measure(folder)["clips"] == 5
    assert [entry.caption for entry in read_metadata(folder)] == [entry.caption for entry in entries]
    assert [row["seed"] for row in rows(folder)] == [10, 11, 12, 13, 14]
    assert [row["source"] for row in rows(folder)] == [entry.id for entry in entries]
    assert [row["video_path"] for row in rows(folder)] == sorted(path.name for path in folder.glob("*.mp4"))
    # Their first frames are the clips' own: clip 3 alone, by seed and first frame, is the same clip.
    same = "--prompt", entries[3].caption, "--image", entries[3].path, "--seed", 13
    again = sample(*same, "--guidance", "dual", out="again")
    paths = folder / "003.mp4", again / "000.mp4", folder / "002.mp4"
    one, other, stranger = (read_clip(path, SHAPE, silent="zeros") for path in paths)
    # Near, not equal: where rounding moves one pixel by one level the encoder may decide otherwise for what follows.
    # That latents do not depend on the batch is tested where no encoder is in between.
    near, far = (np.abs(one.video.astype(int) - clip.video).mean() for clip in (other, stranger))
    assert near < 0.05 * far
    assert np.abs(one.audio - other.audio).max() < 1e-3


def test_count_takes_prompts_in_turn(sample, tmp_path):
    (tmp_path / "prompts.txt").write_text("rain\n\nwind\n")
    folder = sample("--prompts", tmp_path / "prompts.txt", "--count", 3, "--guidance", "none")
    assert [(row["caption"], row["seed"], row["source"]) for row in rows(folder)] == [
        ("rain", 0, None),
        ("wind", 1, None),
        ("rain", 2, None),
    ]
    first, _, third = (read_clip(folder / f"{i:03d}.mp4", SHAPE, silent="zeros") for i in range(3))
    assert (first.video[0] > 235).all()  # no picture: white
    assert not np.array_equal(first.audio, third.audio)


def test_samples_are_replaced_only_when_asked_to(sample):
    folder = sample("--prompt", "rain", "--count", 3)
    (folder / "mine.mp4").write_bytes(b"kept")
    with pytest.raises(MovaError, match="already holds samples"):
        sample("--prompt", "wind")
    assert len(rows(folder)) == 3
    sample("--prompt", "wind", "--overwrite")
    assert sorted(path.name for path in folder.glob("*.mp4")) == ["000.mp4", "mine.mp4"]
    assert [row["caption"] for row in rows(folder)] == ["wind"]


def test_overwrite_removes_nothing_that_the_sampler_did_not_write(sample, tmp_path):
    generate(tmp_path / "data", 1, split="train")
    with pytest.raises(MovaError, match="metadata.jsonl .*was not written by this command, or was changed since"):
        sample("--prompt", "wind", "--overwrite", out="data")
    assert (tmp_path / "data" / "train_00000.mp4").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--guidance", "txet"], "--guidance: unknown value 'txet'. Did you mean 'text'?"),
        (["--steps", "-1"], "steps must be at least 1, got -1"),
        (["--steps", "many"], "--steps: a whole number is wanted, got 'many'"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--threads", "0"], "threads must lie between 1 and 1024, got 0"),
        (["--threads", "100000000"], "threads must lie between 1 and 1024, got 100000000"),
        (["--count", "0"], "count must lie between 1 and 1000000, got 0"),
        (["--count", "99999999999"], "count must lie between 1 and 1000000, got 99999999999"),
        (["--lora-alpha", "3"], "--lora-alpha has no effect without --lora"),
        (["--parallel.timeout", "nan"], "parallel.timeout must be at least 1, got nan"),
        (["--seed", "-3"], "seed must lie between 0 and"),
        (["--clip.height", "40"], "clip.height must be a positive multiple of 16, got 40"),
        (["--clip.frames", "10"], "frames must be 4n+1, got 10"),
        (["--dtype", "bfloat"], "--dtype: unknown value 'bfloat'. Did you mean 'bfloat16'?"),
        (["--device", "gpu"], "unknown device 'gpu'."),
        (["--checkpoint", "nowhere"], "nowhere: no such folder"),
        (["--image", "nowhere.png"], "nowhere.png: no such file"),
        (["--image", "nowhere.mp4"], "nowhere.mp4: no such file"),
        (["--image", __file__], "not a readable picture"),
        (["--stpes", "3"], "unknown option --stpes. Did you mean --steps?"),
        (["--guidance", "text", "--bridge-scale", "2"], "--bridge-scale has no effect with guidance 'text'"),
        (["--guidance", "none", "--text-scale", "2"], "--text-scale has no effect with guidance 'none'"),
        (["--guidance", "none", "--negative-prompt", "x"], "--negative-prompt has no effect with guidance 'none'"),
        (["--video-shift", "0"], "video_shift must be positive, got 0.0"),
        (
            ["--prompts", "x.txt"],
            "give --prompt, a text, or --prompts, a folder of clips or a text file; one of the two",
        ),
    ],
)
def test_mistakes_are_one_line(sample, args, message):
    with pytest.raises(MovaError) as error:
        sample("--prompt", "rain", *args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_prompts_that_cannot_be_read_are_one_line(sample, tmp_path, picture):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "folder").mkdir()
    generate(tmp_path / "clips", 1, split="train")
    for args, message in (
        (["--prompts", tmp_path / "empty.txt"], "holds no prompts"),
        (["--prompts", tmp_path / "none.txt"], "none.txt: no such file"),
        (["--prompts", picture], "prompts are a folder of clips, or a .txt file"),
        (["--prompts", tmp_path / "folder"], "metadata.jsonl and metadata.json"),
        (["--prompts", tmp_path / "clips", "--image", picture], "both give first frames"),
        ([], "give --prompt, a text, or --prompts, a folder of clips or a text file; one of the two"),
    ):
        with pytest.raises(MovaError) as error:
            sample(*args)
        assert message in str(error.value)


def test_the_references_negative_prompt_has_a_word(sample):
    (row,) = rows(sample("--prompt", "x", "--guidance", "text", "--negative-prompt", "default"))
    assert row["negative_prompt"] == REFERENCE_NEGATIVE_PROMPT


def test_a_package_for_the_sheet_is_asked_for_before_the_work(sample, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("mova_engine.inference.sampling_run.load_pipeline", None)
    with pytest.raises(MovaError, match="contact sheet, contact_sheet.png, needs the package matplotlib, .*: pip"):
        sample("--prompt", "x")


def test_a_truncated_checkpoint_is_one_line_and_keeps_old_samples(sample, run_folder):
    folder = sample("--prompt", "rain")
    (weights,) = (run_folder / "checkpoints" / "step-000100" / "audio_dit").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(MovaError, match="damaged or incomplete"):
        sample("--prompt", "rain", "--overwrite")
    assert (folder / "000.mp4").exists()
