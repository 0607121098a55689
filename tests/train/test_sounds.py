"""The audio tower's pre-training: from sound files mixed by weight, without a trace of video; what comes of it."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from mova_engine.checkpoints.folder import is_sound_alone, load_codecs
from mova_engine.cli import main
from mova_engine.config.command import to_plain
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.data.media.decode import read_clip
from mova_engine.data.mixture import MixedLoader
from mova_engine.data.synthetic.notes import generate_sounds
from mova_engine.data.windows import list_clips
from mova_engine.diffusion.guidance import Guidance
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_tensors
from mova_engine.inference.sound_pipeline import SoundPipeline
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.train import trainer

WEIGHTS = "audio_dit/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    generate_sounds(folder, 18, seed=3)
    return folder


@pytest.fixture
def mixed(small, sounds):
    """Configurations of small audio runs: `mixed("run", steps=2)`."""

    def make(out: str = "run", **overrides):
        mix = (f"{sounds}/music:2", f"{sounds}/speech")
        return small(out, **{"task": "audio", "data": (), "mix": mix, **overrides})

    return make


def checkpoint(done, step: int) -> Path:
    return done.config.folder / "checkpoints" / f"step-{step:06d}"


def test_a_run_on_sounds_holds_nothing_of_the_video(mixed, ran, monkeypatch):
    parts = []
    assemble = trainer.assemble
    monkeypatch.setattr(trainer, "assemble", lambda *given: parts.append(assemble(*given)) or parts[0])
    monkeypatch.setattr("mova_engine.train.clip_data.build_video_codec", None)
    done = ran(mixed(steps=3, loader={"batch": 4}))
    [run] = parts
    assert run.codecs.video is None
    assert [name for name, _ in run.model.named_children()] == ["audio_dit"]
    # Weights on any device, and what the optimizer and the average hold of them: the tower's and no more.
    with torch.device("meta"):
        tower = sum(x.numel() for x in AudioDiT(run.sizes.audio, run.ops).parameters())
    assert sum(x.numel() for x in run.model.parameters()) == tower
    assert sum(weight.tensor.numel() for weight in run.state.weights.masters) == tower
    assert isinstance(run.loader, MixedLoader) and set(run.loader.dataset.batch([0])) == {
        "audio_latents", "heard", "text", "caption", "id",
    }  # fmt: skip
    assert "mixed by weight: music 6 clips (66.7 %), speech 6 clips (33.3 %)" in done.said
    row = done.rows[-1]
    assert (row["epoch/music"], row["epoch/speech"], row["epoch"]) == (1, 0, 0)
    assert not any("video" in name for name in row)


@pytest.mark.long
def test_a_stopped_run_goes_on_to_the_bit_and_another_mix_is_noticed(mixed, ran):
    whole = ran(mixed("whole", steps=4))
    stopped = mixed("again", steps=2)
    ran(stopped)
    again = ran(mixed("again", steps=4))
    assert again.losses[2:] == whole.losses[2:]
    other = mixed("again", steps=5, mix=(f"{stopped.mix[0].removesuffix(':2')}:3", stopped.mix[1]))
    with pytest.raises(MovaError, match="music weighs 3, not 2.*--loader.changed go-on"):
        ran(other)
    gone_on = ran(mixed("again", steps=5, mix=other.mix, loader={"changed": "go-on"}))
    assert "the mix is not that of the checkpoint: music weighs 3, not 2" in gone_on.said


@pytest.mark.long
def test_the_recipe_runs_from_sound_files_in_windows(small, ran, sounds):
    """audio-pretrain at nano's size, on shorter clips than its own; several of each file."""
    recipe = to_plain(load_config("audio-pretrain", model={"preset": "nano"}))
    recipe["loader"] |= {"batch": 2, "workers": 0, "cut_every": 0.4, "silent_audio": "zeros"}
    config = small(
        "pretrain", steps=1, data=(sounds,), clip={"frames": 17}, dtype=recipe["dtype"], task=recipe["task"],
        diffusion=recipe["diffusion"], loader=recipe["loader"], optim=recipe["optim"],
    )  # fmt: skip
    done = ran(config)
    assert np.isfinite(done.rows[-1]["loss"])
    found = list_clips(sounds, sounds / "cache", config.clip.over(get_preset("nano").clip), 0.4, pictures=False)
    assert f"{len(found)} clips of 0.71 s" in done.said and len(found) == 36


def test_sound_is_sampled_from_the_runs_checkpoint(mixed, ran, sounds, tmp_path, capsys):
    done = ran(mixed(steps=1))
    folder = checkpoint(done, 1)
    assert is_sound_alone(folder) and not (folder / "video_dit").exists() and not (folder / "video_vae").exists()
    index = json.loads((folder / "model_index.json").read_text())
    assert index["video_dit"] == index["dual_tower_bridge"] == index["video_vae"] == [None, None]
    common = ["sample", "--checkpoint", str(done.config.folder), "--device", "cpu", "--steps", "2"]
    made = tmp_path / "made"
    assert main([*common, "--prompts", str(sounds / "music"), "--audio-alone", "--count", "2", "--out", str(made)]) == 0
    rows = [json.loads(line) for line in (made / "metadata.jsonl").read_text().splitlines()]
    assert [row["video_path"] for row in rows] == ["000.wav", "001.wav"]
    first = json.loads((sounds / "music" / "metadata.jsonl").read_text().splitlines()[0])
    assert rows[0]["caption"] == first["caption"] and rows[0]["source"] == first["video_path"]
    sound = read_clip(made / "000.wav", get_preset("nano").clip, pictures=False, silent="zeros")
    assert np.isfinite(sound.audio).all()
    pipeline = SoundPipeline.from_pretrained(done.config.folder, device="cpu")
    again = pipeline([row["caption"] for row in rows], seed=0, steps=2)
    assert [each.seed for each in again] == [row["seed"] for row in rows] == [0, 1]
    for row, each in zip(rows, again, strict=True):
        # Not by `read_clip`: it fades where a file ends before the clip's last latent does.
        with wave.open(str(made / row["video_path"])) as file:
            written = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        assert each.audio.shape == (1, len(written)) and abs(written).max() > 10
        assert np.array_equal(written, np.round(each.audio[0] * 32767)), "the command's to the bit, but for 16 bits"
    assert again[0].save(tmp_path / "again.flac").stat().st_size > 100
    with pytest.raises(MovaError, match="again.flac is there already"):
        again[0].save(tmp_path / "again.flac")
    with pytest.raises(MovaError, match="guidance must be none or text"):
        pipeline("one low beep", guidance=Guidance("dual"))
    for words, says in (
        ([], "holds an audio tower alone, which makes no clips .*--audio-alone"),
        (["--audio-alone", "--vram", "8GB"], "holds an audio tower alone, which is read as a whole"),
        (["--audio-alone", "--memory.weights", "files"], "holds an audio tower alone, which is read as a whole"),
    ):
        with pytest.raises(MovaError, match=says):
            main([*common, "--prompt", "one low beep", "--out", str(tmp_path / "none"), *words])
    assert not (tmp_path / "none").exists()


@pytest.mark.long
def test_a_joint_run_takes_the_tower_over_with_its_codec(mixed, small, ran):
    tower = ran(mixed("tower", steps=2, optim={"ema": 0.0, "lr": 1e-2}))
    start = checkpoint(tower, 2)
    plain = ran(small("plain", steps=1, optim={"lr": 0.0, "ema": 0.0}))
    joint = ran(small("joint", steps=1, optim={"lr": 0.0, "ema": 0.0}, model={"audio_from": tower.config.folder}))
    assert joint.trainer.config.model.audio_from == start
    folders = start, checkpoint(joint, 1), checkpoint(plain, 1)
    learnt, there, drawn = (read_tensors(folder / WEIGHTS)[0] for folder in folders)
    assert learnt.keys() == there.keys() and all(torch.equal(there[name], x) for name, x in learnt.items())
    assert any(not torch.equal(drawn[name], x) for name, x in learnt.items())
    video = "video_dit/diffusion_pytorch_model.safetensors"
    one, other = (read_tensors(checkpoint(run, 1) / video)[0] for run in (joint, plain))
    assert all(torch.equal(one[name], x) for name, x in other.items())
    # The latents keep the scale that the tower has learnt, and not that of the joint run's clips.
    scales = [load_codecs(folder, parts=("audio",)).audio.state() for folder in folders]
    assert scales[0] == scales[1] != scales[2]
    # It goes on by itself from then on.
    again = ran(small("joint", steps=2, model={"audio_from": tower.config.folder}))
    assert again.rows[-1]["step"] == 2
    assert load_codecs(checkpoint(again, 2), parts=("audio",)).audio.state() == scales[0]


def test_where_a_tower_cannot_come_from_is_refused(mixed, small, ran, tmp_path):
    with pytest.raises(MovaError, match="model.audio_from is for joint training"):
        mixed(model={"audio_from": tmp_path})
    with pytest.raises(MovaError, match="model.audio_from is for joint training"):
        small(lora={"rank": 2}, model={"audio_from": tmp_path, "checkpoint": tmp_path})
    with pytest.raises(MovaError, match="says what audio_dit starts from"):
        small(model={"audio_from": tmp_path, "checkpoint": tmp_path, "init_from_scratch": ("audio_dit",)})
    with pytest.raises(MovaError, match="no such folder"):
        ran(small(model={"audio_from": tmp_path / "nowhere"}))
    with pytest.raises(MovaError, match="loader.synthetic sounds have no pictures to learn"):
        load_config("nano", loader={"synthetic": "sounds"})


@pytest.mark.long
def test_a_tower_of_another_size_is_refused_before_any_work(mixed, small, ran, monkeypatch):
    tower = ran(mixed("tower", steps=1))
    monkeypatch.setattr("mova_engine.train.assembly.build_codecs", lambda *given: pytest.fail("work was begun"))
    config = small("joint", model={"audio_from": tower.config.folder, "preset": "bench-mid"})
    with pytest.raises(MovaError, match=r"audio_dit"):
        ran(config)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: [f.unlink() for f in folder.glob("*.*")], "must hold one of metadata.jsonl"),
        (lambda folder: [f.write_bytes(b"") for f in folder.glob("train_*")], "none of 6 clips can be read"),
        (lambda folder: (folder / "metadata.jsonl").unlink(), "has no caption: write it to"),
    ],
)
def test_a_folder_of_a_mix_that_gives_nothing_is_named(mixed, ran, sounds, tmp_path, spoil, says):
    folder = tmp_path / "spoilt"
    folder.mkdir()
    for file in (sounds / "speech").iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    spoil(folder)
    with pytest.raises(MovaError, match=f"spoilt.*{says}"):
        ran(mixed(mix=(f"{sounds}/music", str(folder))))
