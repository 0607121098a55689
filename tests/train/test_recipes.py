"""Recipes and the command line over them: values, inheritance, and errors of one line."""

from pathlib import Path

import pytest

from mova_engine.commands.encode import ENCODE, EncodeConfig
from mova_engine.config.command import to_plain, to_yaml
from mova_engine.config.recipes import TRAIN, load_config, read_recipe, recipe_names, with_defaults
from mova_engine.errors import MovaError
from mova_engine.train.__main__ import main
from mova_engine.train.training_state import differences


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_gives_a_configuration_and_comes_back_from_its_yaml(name, tmp_path):
    config = load_config(name)
    path = tmp_path / f"{name}.yaml"
    path.write_text(to_yaml(config))
    assert load_config(str(path)) == config


def test_the_papers_phases_differ_as_published():
    one, two, three = (load_config(f"joint-phase{n}") for n in (1, 2, 3))
    assert [c.diffusion.audio_shift for c in (one, two, three)] == [1.0, 5.0, 5.0]
    assert {c.diffusion.video_shift for c in (one, two, three)} == {5.0}
    assert [c.diffusion.text_dropout for c in (one, two, three)] == [0.5, 0.2, 0.2]
    assert [c.parallel.context_parallel for c in (one, two, three)] == [8, 8, 16]
    assert [c.model.preset for c in (one, two, three)] == ["mova-360p", "mova-360p", "mova-720p"]
    assert [c.model.init_from_scratch for c in (one, two, three)] == [("dual_tower_bridge",), (), ()]
    assert {(c.optim.lr, c.optim.bridge_lr) for c in (one, two, three)} == {(1e-5, 2e-5)}


def test_the_command_line_overrides_the_recipe_which_overrides_the_defaults():
    argv = ["--optim.lr", "1e-3", "--model.no-bridge", "--steps=7", "--ops.attention=reference"]
    config = TRAIN.parse(argv)
    assert (config.optim.lr, config.model.bridge, config.steps) == (1e-3, False, 7)
    assert config.ops == {"attention": "reference"}
    assert config.optim.betas == (0.9, 0.98) and config.optim.eps == 1e-8
    assert config.name == "nano"


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--recipe", "nan"], ("unknown recipe 'nan'", "'nano'")),
        (["--recipe", "nowhere.yaml"], ("no configuration file nowhere.yaml",)),
        (["--optim.lrr", "1"], ("--optim.lrr", "Did you mean --optim.lr")),
        (["--optim.lr", "fast"], ("--optim.lr", "fast")),
        (["--diffusion.prediction-type", "x1"], ("x1", "x0")),
        (["--model.preset", "nanoo"], ("nanoo", "'nano'")),
        (["--loader.batch", "0"], ("loader.batch", "at least 1")),
        (["--optim.ema", "1.5"], ("optim.ema", "1.5")),
        (["--diffusion.given-start", "0.6", "--diffusion.given-audio", "0.6"], ("their sum is 1.4",)),
        (["--diffusion.start-frames", "8"], ("diffusion.start_frames", "4n+1", "8")),
        (["--loader.synthetic-midway", "-0.5"], ("loader.synthetic_midway", "-0.5")),
        (["--validation.every", "5", "--validation.synthetic-clips", "0"], ("validation.data",)),
        (["--task", "audio", "--model.no-bridge"], ("audio task",)),
        (["stray"], ("stray",)),
    ],
)
def test_mistakes_are_one_line_that_names_them(argv, words):
    with pytest.raises(MovaError) as error:
        TRAIN.parse(argv)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_recipe_file_with_an_unknown_key_names_the_nearest(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: nano\noptim: {lrr: 1}\n")
    with pytest.raises(MovaError, match=r"lrr.*Did you mean --optim\.lr"):
        load_config(str(path))


def test_recipes_build_on_their_base_and_not_on_themselves(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: nano\noptim: {lr: 1}\n")
    recipe = read_recipe(str(path))
    assert recipe["optim"]["lr"] == 1 and recipe["optim"]["ema"] == 0.99
    path.write_text(f"base: {path}\n")
    with pytest.raises(MovaError, match="its own base"):
        read_recipe(str(path))


def test_print_config_prints_a_recipe_and_help_names_the_options(capsys):
    assert main(["--print-config", "--seed", "5"]) == 0
    assert "seed: 5" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "--optim.bridge-lr" in capsys.readouterr().out


def test_context_parallelism_is_refused_in_words(clips, tmp_path):
    with pytest.raises(MovaError, match="this is one process: start so many with torchrun --nproc-per-node 8"):
        main(["--recipe", "joint-phase1", "--data", str(clips), "--out", str(tmp_path)])


def test_one_of_several_processes_without_the_others_is_refused(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MovaError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"):
        main(["--data", str(clips), "--out", str(tmp_path)])


@pytest.mark.parametrize(
    "extra, words",
    [
        ([], "starts from other components' weights|pretrained codecs"),
        (["--model.empty-init-from-scratch"], "pretrained codecs"),
    ],
)
def test_phase_one_asks_for_the_weights_that_it_starts_from(clips, tmp_path, extra, words):
    common = ["--recipe", "joint-phase1", "--parallel.context-parallel", "1", "--parallel.no-shard"]
    common += ["--device", "cpu"]
    with pytest.raises(MovaError, match=words):
        main([*common, "--data", str(clips), "--out", str(tmp_path), *extra])


def test_a_run_without_clips_asks_for_them(tmp_path):
    with pytest.raises(MovaError, match="give --data"):
        main(["--loader.synthetic-clips", "0", "--device", "cpu", "--out", str(tmp_path)])


def test_a_setting_that_came_after_a_checkpoint_differs_only_where_it_is_set():
    config = load_config("nano")
    old = to_plain(config)
    del old["loader"]["dtype"], old["checkpoint"]["on_error"]
    assert differences(with_defaults(old), to_plain(config)) == []
    chosen = load_config("nano", loader={"dtype": "bfloat16"})
    assert differences(with_defaults(old), to_plain(chosen)) == ['loader.dtype: "float32" -> "bfloat16"']


@pytest.mark.parametrize("given", ["given_audio", "given_start"])
def test_given_sound_must_be_heard(given):
    other = {"given_audio": "given_start", "given_start": "given_audio"}[given]
    with pytest.raises(MovaError, match="loader.silent_audio mask keeps clips that have none"):
        load_config("nano-any", diffusion={other: 0.0}, loader={"silent_audio": "mask"})
    assert load_config("nano-any", diffusion={given: 0.0, other: 0.0}, loader={"silent_audio": "mask"})


def test_settings_that_a_command_writes_are_read_as_they_were():
    """Also those whose list is empty: what a dry run, and several processes that encode, are given."""
    config = load_config("nano")
    assert TRAIN.fill(to_plain(config), "a file") == config
    several = EncodeConfig(data=(Path("clips"),), model="nano", workers=2)
    assert ENCODE.fill(to_plain(several), "a file") == several
