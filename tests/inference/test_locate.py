"""What a folder means is the same for every command: a table of commands and of the kinds of place they are given."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from mova_engine.adapters.lora import add_lora, save_lora
from mova_engine.checkpoints.folder import load_codecs, load_mova, mova_config_from_folder
from mova_engine.checkpoints.locate import ADAPTERS, find_adapters, find_components, find_model, open_model
from mova_engine.cli import main
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.errors import MovaError
from mova_engine.ops import bind
from mova_engine.train.model_setup import model_config
from mova_engine.train.trainer import Trainer

INDEX = "model_index.json"
COMMIT = "9f1c0a7d3b"
P360, P720 = ClipSettings(height=352, width=640), ClipSettings(height=720, width=1280)


class Stopped(Exception):
    """Raised in the place of a command's work, with the folder or file that it was about to read."""


@pytest.fixture(scope="module")
def places(saved_run, tmp_path_factory) -> Path:
    """One of every kind of place, by name."""
    top = tmp_path_factory.mktemp("places")
    whole = saved_run / "checkpoints" / "step-000100"
    shutil.copytree(saved_run, top / "run")
    shutil.copytree(whole, top / "model")
    (top / "link").symlink_to(top / "model")
    (top / "above").mkdir()
    (top / "above" / "tiny").symlink_to(top / "model")
    hub = top / "models--someone--tiny"
    shutil.copytree(whole, hub / "snapshots" / COMMIT)
    shutil.copytree(whole, hub / "snapshots" / "older")
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(f"{COMMIT}\n")
    shutil.copytree(whole / "audio_dit", top / "audio" / "checkpoints" / "step-000005" / "audio_dit")
    shutil.copytree(whole / "audio_dit", top / "component" / "audio_dit")
    (top / "empty").mkdir()
    (top / "clips").mkdir()
    (top / "clips" / "metadata.jsonl").write_text('{"video_path": "a.mp4", "caption": "a"}\n')
    step = top / "lora" / "checkpoints" / "step-000002"
    (step / "training").mkdir(parents=True)
    (top / "lora" / "checkpoints" / "step-000001").mkdir()
    config = {"model": {"checkpoint": "runs/base/checkpoints/step-000100"}}
    (step / "training" / "state.json").write_text(json.dumps({"config": config}))
    adapted = load_mova(whole, bind(_cpu()), device="cpu")
    add_lora(adapted, ["self_attn.q"], 2, 2.0)
    save_lora(adapted, step / ADAPTERS)
    loras = top / "models--someone--adapters" / "snapshots" / COMMIT
    loras.mkdir(parents=True)
    shutil.copy(step / ADAPTERS, loras / "pytorch_lora_weights.safetensors")
    return top


def _cpu():
    from mova_engine.backend import get_backend

    return get_backend("cpu")


@pytest.fixture(scope="module")
def trains():
    """The configurations of training runs, by the table's names: parsing takes longer than all that is asked here."""
    return {
        "train": load_config("nano"),
        "train lora": load_config("lora-nano"),
        "train codecs": load_config("nano"),
        "train audio": load_config("nano", task="audio"),
    }


@pytest.fixture
def about_to_read(trains, monkeypatch, tmp_path):
    """What a command would read, found by starting it with its work taken out."""

    def stop(place, *args, **kwargs):
        raise Stopped(place)

    monkeypatch.setattr("mova_engine.inference.sampling_run.load_pipeline", stop)
    monkeypatch.setattr("mova_engine.adapters.merge.open_component", lambda component: stop(component.parent))
    monkeypatch.setattr("mova_engine.data.encode_folder.load_codecs", stop)
    monkeypatch.setattr("mova_engine.model_tables.describe", lambda config: stop(config))
    monkeypatch.setattr("mova_engine.train.trainer.join_processes", lambda config, launch: stop(config.model))

    def run(command: str, place: Path, clip: ClipSettings = ClipSettings()):  # noqa: B008
        if command in trains:
            key = "codecs" if command == "train codecs" else "checkpoint"
            model = replace(trains[command].model, **{key: place})
            config = replace(trains[command], out=tmp_path / "out", model=model, clip=clip)
            with pytest.raises(Stopped) as stopped:
                Trainer(config, Console(quiet=True)).run()
            return getattr(stopped.value.args[0], key)
        out = str(tmp_path / "out")
        words = {
            "sample": ["sample", "--prompt", "rain", "--out", out, "--device", "cpu", "--checkpoint"],
            "lora merge": ["lora", "merge", "--lora", "unused", "--out", out, "--checkpoint"],
            "encode": ["encode", "--data", str(tmp_path), "--checkpoint"],
            "describe": ["describe"],
        }[command]
        (tmp_path / "metadata.jsonl").write_text('{"video_path": "a.mp4", "caption": "a"}\n')
        with pytest.raises(Stopped) as stopped:
            size = [f"--clip.{name}={value}" for name, value in asdict(clip).items() if value is not None]
            main([*words, str(place), *size])
        return stopped.value.args[0]

    return run


RUN_STEP = "run/checkpoints/step-000100"
SNAPSHOT = f"models--someone--tiny/snapshots/{COMMIT}"
MODELS = {
    "model": "model",
    "link": "link",
    "run": RUN_STEP,
    "run/checkpoints": RUN_STEP,
    RUN_STEP: RUN_STEP,
    "models--someone--tiny": SNAPSHOT,
    "models--someone--tiny/snapshots": SNAPSHOT,
    SNAPSHOT: SNAPSHOT,
    "models--someone--tiny/snapshots/older": "models--someone--tiny/snapshots/older",
}
BASE = "runs/base/checkpoints/step-000100"
NO_MODEL = {
    "nowhere": "nowhere: no such folder$",
    "run/checkpoints/step-000900": "step-000900: no such folder$",
    "nowhere/checkpoints/step-1": r"step-1: no such folder \(of its path, .* is there\)",
    f"model/{INDEX}": f"{INDEX} is a file: a model folder is a folder, such as .*model$",
    "model/audio_dit": "is one component of a model: name the folder above it, .*model$",
    "empty": f"empty is no model folder: it has no {INDEX} and is no training run",
    "clips": "clips holds clips, no model folder",
    "above": "above is no model folder, but holds .*above/tiny: name that",
    "lora": f"step-000002 holds adapters, no model folder: name the model that they were trained on, {BASE} .*--lora ",
    "lora/checkpoints/step-000002": f"holds adapters, .*on, {BASE} ",
    f"lora/checkpoints/step-000002/{ADAPTERS}": f"holds adapters, no model: name .*{BASE} .*--lora .*{ADAPTERS}",
    "models--someone--adapters": f"{COMMIT} is no model folder",
    "audio": "step-000005 holds an audio tower alone, which makes no clips",
    "component": "component holds an audio tower alone",
}
COMMANDS = ("sample", "lora merge", "encode", "describe", "train", "train lora", "train codecs", "train audio")


@pytest.mark.parametrize("place", MODELS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_kind_of_model_folder(about_to_read, places, command, place):
    found, wanted = about_to_read(command, places / place), places / MODELS[place]
    assert found == (mova_config_from_folder(wanted) if command == "describe" else wanted)


@pytest.mark.parametrize("place", NO_MODEL)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_is_no_model_and_what_to_name(about_to_read, places, command, place):
    if command == "train audio" and place in ("audio", "component"):
        step = "audio/checkpoints/step-000005" if place == "audio" else "component"
        assert about_to_read(command, places / place) == places / step
        return
    with pytest.raises(MovaError, match=NO_MODEL[place]) as caught:
        about_to_read(command, places / place)
    assert "\n" not in str(caught.value)


LORA_STEP = f"lora/checkpoints/step-000002/{ADAPTERS}"
DOWNLOADED = f"models--someone--adapters/snapshots/{COMMIT}"


@pytest.mark.parametrize("command", ["sample", "lora merge"])
@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("lora", LORA_STEP),
        ("lora/checkpoints", LORA_STEP),
        ("lora/checkpoints/step-000002", LORA_STEP),
        (LORA_STEP, LORA_STEP),
        ("models--someone--adapters", f"{DOWNLOADED}/pytorch_lora_weights.safetensors"),
        (DOWNLOADED, f"{DOWNLOADED}/pytorch_lora_weights.safetensors"),
        ("model", "model is a whole model, no file or run of adapters: name a LoRA run"),
        ("run", "step-000100 is a whole model, no file or run of adapters"),
        ("nowhere", "nowhere: no such folder"),
        ("empty", f"empty is no file or run of adapters: it has no {ADAPTERS}"),
        ("clips", "clips holds clips, no file or run of adapters"),
    ],
)
def test_adapters_are_a_run_a_checkpoint_or_a_file(places, monkeypatch, tmp_path, command, place, wanted):
    def stop(path):
        raise Stopped(path)

    monkeypatch.setattr("mova_engine.adapters.reading.read_stored_file", stop)
    more = ["--prompt", "rain", "--device", "cpu"] if command == "sample" else []
    words = [*command.split(), "--checkpoint", places / "model", "--lora", places / place]
    words += ["--out", tmp_path / "out", *more]
    with pytest.raises(Stopped if (places / wanted).is_file() else MovaError) as caught:
        main([str(word) for word in words])
    if (places / wanted).is_file():
        assert caught.value.args == (places / wanted,)
    else:
        assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_an_incomplete_checkpoint_is_passed_over_aloud(run_folder):
    whole, said = run_folder / "checkpoints" / "step-000100", []
    assert find_model(run_folder, said.append) == whole and not said
    broken = shutil.copytree(whole, run_folder / "checkpoints" / "step-000200")
    (weights,) = (broken / "audio_dit").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    assert find_model(run_folder, said.append) == whole
    assert len(said) == 1 and f"{weights} is damaged" in said[0] and f"taking {whole}" in said[0]
    # One that is named is the one that is meant.
    assert find_model(broken, said.append) == broken
    shutil.rmtree(whole)
    with pytest.raises(MovaError, match="checkpoints has no whole checkpoint: .* is damaged"):
        find_model(run_folder)


def test_an_incomplete_file_of_adapters_is_passed_over_aloud(places, tmp_path):
    run, said = shutil.copytree(places / "lora", tmp_path / "lora"), []
    whole = run / "checkpoints" / "step-000002"
    broken = shutil.copytree(whole, run / "checkpoints" / "step-000003") / ADAPTERS
    broken.write_bytes(broken.read_bytes()[:100])
    assert find_adapters(run, said.append) == whole / ADAPTERS
    assert len(said) == 1 and f"{broken} is damaged" in said[0]


def test_here_is_a_place_too(places, monkeypatch):
    """`.` has no name of its own."""
    here = {"run": RUN_STEP, "run/checkpoints": RUN_STEP, RUN_STEP: RUN_STEP}
    hub = "models--someone--tiny"
    for place, wanted in {**here, hub: SNAPSHOT, f"{hub}/snapshots": SNAPSHOT, SNAPSHOT: SNAPSHOT}.items():
        monkeypatch.chdir(places / place)
        assert find_model(".").resolve() == (places / wanted).resolve()


def test_places_that_the_system_refuses_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for name, words in {
        "gone": "gone is a link to .*nothing, which is not there",
        "round": "round is a link to .*round, which is not there",
        "x" * 300: "x: cannot be read .File name too long",
        "a\0b": "no such folder",
    }.items():
        for find in (find_model, find_adapters, find_components):
            with pytest.raises(MovaError, match=words):
                find(tmp_path / name)

    def refused(self, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(MovaError, match="cannot be read .Permission denied"):
        find_model(tmp_path)


def test_a_cache_folder_without_a_newest_download_asks_which(places, tmp_path):
    hub = shutil.copytree(places / "models--someone--tiny", tmp_path / "models--someone--tiny")
    (hub / "refs" / "main").unlink()
    with pytest.raises(MovaError, match=f"has 2 snapshots and no refs/main: name one of snapshots/{COMMIT}"):
        find_model(hub)
    shutil.rmtree(hub / "snapshots" / "older")
    assert find_model(hub) == hub / "snapshots" / COMMIT
    (hub / "refs" / "main").write_text("gone")
    with pytest.raises(MovaError, match="means snapshot 'gone', which is not there"):
        find_model(hub)


def test_several_files_of_adapters_are_a_question(places, tmp_path):
    for name in ("one", "two"):
        shutil.copy(places / LORA_STEP, tmp_path / f"{name}.safetensors")
    with pytest.raises(MovaError, match=r"holds 2 files: name one of one.safetensors, two.safetensors"):
        find_adapters(tmp_path)
    with pytest.raises(MovaError, match=r"is no model folder"):
        find_components(tmp_path)


@pytest.fixture
def released(places, tmp_path):
    """A folder, by a name, that does not state its clip, as released ones do not."""

    def make(name: str) -> Path:
        folder = shutil.copytree(places / "model", tmp_path / name)
        index = json.loads((folder / INDEX).read_text())
        del index["_mova_engine"]
        (folder / INDEX).write_text(json.dumps(index))
        return folder

    return make


@pytest.mark.parametrize(
    "name", ["MOVA-720p", "mova-720p", f"models--OpenMOSS-Team--MOVA-720p/snapshots/{COMMIT}", "MOVA-360p"]
)
def test_a_release_known_by_name_says_which_size_that_gives(released, name):
    folder, said = released(name), []
    found = open_model(folder, say=said.append)
    size = "mova-360p" if "360" in name else "mova-720p"
    assert found.config.clip == get_preset(size).clip
    assert len(said) == 1 and "by its name, " in said[0] and f"{found.config.clip.height}x" in said[0]
    assert found.config.name.lower() == size
    assert open_model(folder, P360, said.append).config.clip == get_preset("mova-360p").clip
    assert len(said) == (1 if "360" in name else 2)
    assert "360" in name or "was made for 193 frames of 720x1280 at 24 fps; this run takes" in said[1]


def test_a_folder_of_another_name_asks_for_the_size(released, places):
    folder = released(COMMIT)
    for read in (open_model, mova_config_from_folder):
        with pytest.raises(MovaError, match=f"'{COMMIT}' is no released model's name: give --clip.height .*720"):
            read(folder)
        with pytest.raises(MovaError, match="give --clip.height"):
            read(folder, ClipSettings(frames=97, height=720))
    assert open_model(folder, P720).config.clip == get_preset("mova-720p").clip
    assert load_codecs(folder).text is not None, "codecs have no size"
    config = load_config("nano", model={"checkpoint": folder}, clip=asdict(P720))
    assert model_config(config).clip == get_preset("mova-720p").clip
    with pytest.raises(MovaError, match="give --clip.height"):
        model_config(load_config("lora", model={"checkpoint": folder}))
    # What states its clip is not asked, whatever its name; who asks for another is told.
    said: list[str] = []
    found = open_model(places / "model", P720, said.append).config.clip
    assert (found.height, found.width) == (720, 1280)
    assert len(said) == 1 and "was made for" in said[0] and "720x1280" in said[0]
    assert open_model(places / "model").config.clip.height == 32


@pytest.mark.parametrize("command", ["sample", "lora merge", "encode", "describe", "train"])
def test_every_command_asks_for_the_size_and_takes_it(about_to_read, released, command):
    folder = released(COMMIT)
    with pytest.raises(MovaError, match="give --clip.height"):
        about_to_read(command, folder)
    found = about_to_read(command, folder, P720)
    assert found.clip == get_preset("mova-720p").clip if command == "describe" else found == folder


def test_a_model_is_sampled_as_it_was_trained(places):
    """Guidance by text where texts were dropped in training, none where never; else as the checkpoint."""
    nano = load_config("nano")
    assert model_config(nano).sampling == get_preset("nano").sampling
    dropped = load_config("nano", diffusion={"text_dropout": 0.1})
    assert (model_config(dropped).sampling.guidance, model_config(dropped).sampling.steps) == ("text", 16)
    scratch = load_config("nano", model={"preset": "bench-mid"})
    assert model_config(scratch).sampling.guidance == "none"
    tuned = load_config("nano", model={"checkpoint": places / "model"})
    assert model_config(tuned).sampling == mova_config_from_folder(places / "model").sampling
