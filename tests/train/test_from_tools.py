"""Configurations of musubi-tuner and ai-toolkit: each key becomes a setting, or is named with what to do."""

import copy
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

from mova_engine.config.from_tools import aitk_job, musubi_options
from mova_engine.config.from_tools.musubi_files import read_options
from mova_engine.config.from_tools.translation import Same
from mova_engine.config.memory import memory_of_word
from mova_engine.config.recipes import TRAIN, load_config
from mova_engine.errors import MovaError

FILES = Path(__file__).parents[1] / "data" / "from_tools"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The files, with four captioned clips."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    (tmp_path / "clips").mkdir()
    for name in "abcd":
        (tmp_path / "clips" / f"{name}.mp4").touch()
        (tmp_path / "clips" / f"{name}.txt").write_text("a cat")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_script_of_musubi_tuner(here, capsys):
    """Four clips thrice, two a step: 6 steps an epoch. What is not said is that tool's default, not the recipe's."""
    config = TRAIN.parse(["--from-musubi", "train.sh", "--model.checkpoint", "MOVA"])
    expected = load_config(
        "lora",
        name="cat-lora",
        out="output/cat-lora",
        data="clips",
        seed=42,
        steps=96,
        global_batch_size=2,
        dtype="bfloat16",
        model={"checkpoint": "MOVA"},
        clip={"width": 640, "height": 352, "frames": 81},
        lora={"rank": 32, "alpha": 16.0, "export": ["musubi"]},
        loader={"batch": 1, "workers": 2},
        diffusion={"video_shift": 3.0, "boundary": 0.9, "text_dropout": 0.0},
        optim={"lr": 2e-4, "moments": "8bit", "weight_decay": 0.1, "betas": [0.9, 0.99], "clip": 0.5, "lora_plus": 4.0,
               "warmup": 10, "decay_start": 10 / 96, "final_lr": 0.0},
        checkpoint={"every": 12, "keep_every": 12},
        validation={"every": 25, "prompts": "prompts.txt", "at_start": True},
        memory="auto",
    )  # fmt: skip
    assert config == expected and config.memory == memory_of_word("auto", "lora")
    said = capsys.readouterr().out.splitlines()
    assert "train.sh: max_train_epochs 16 -> steps: 96 (an epoch is 6 steps)" in said
    assert any(x.startswith("train.sh: unused: gradient_checkpointing, blocks_to_swap 20 (memory auto") for x in said)


def test_a_number_of_steps_on_the_command_line_is_that_of_the_decay(here):
    config = TRAIN.parse(["--from-musubi", "train.sh", "--steps", "40"])
    assert config.steps == 40 and config.optim.decay_start == 0.25


def test_lines_of_a_script_as_people_write_them(here):
    """A comment after a variable's value, an environment before the command, a name that looks like a number."""
    command = "accelerate launch src/musubi_tuner/wan_train_network.py --dataset_config dataset.toml"
    Path("a.sh").write_text(
        f"LR=1e-4 # high\nNAME='001 # cat'\nCUDA_VISIBLE_DEVICES=0 {command} --learning_rate $LR --network_dim 32 "
        '--output_name "$NAME"\n'
    )
    found = musubi_options.translate(Path("a.sh")).settings
    assert (found["optim"]["lr"], found["lora"]["rank"], found["name"]) == (1e-4, 32, "001 # cat")
    Path("a.sh").write_text(f"{command} --output_name 001")
    assert musubi_options.translate(Path("a.sh")).settings["name"] == "001"


def test_every_word_of_a_file_is_answered(here):
    """By its name, in what is printed or, after its value is changed to what has no counterpart, in the refusal."""
    lines = " ".join(musubi_options.translate(Path("train.sh")).lines)
    words = Path("train.sh").read_text().split("wan_train_network.py")[1].split()
    names = [x[2:].partition("=")[0] for x in words if x.startswith("--")]
    assert len(names) > 30 and not [x for x in names if x not in lines and x != "dataset_config"]
    lines = " ".join(aitk_job.translate(Path("job.yaml")).lines)
    parts = yaml.safe_load(Path("job.yaml").read_text())["config"]["process"][0]
    inner = [key for part in (*parts.values(), parts["datasets"][0]) if isinstance(part, dict) for key in part]
    assert len(inner) > 40 and not [x for x in inner if x not in lines and x != "model_kwargs"]


def test_a_job_of_ai_toolkit_and_options_over_it(here):
    config = TRAIN.parse(["--from-aitk", "job.yaml", "--steps", "7", "--memory.weights", "host"])
    prompts = ["a cat sits on a wall --i cat.png --d 42", "a cat purrs --d 7"]
    expected = load_config(
        "lora",
        name="cat_lora",
        out="output/cat_lora",
        data="clips",
        steps=7,
        global_batch_size=4,
        clip={"frames": 81, "fps": 24},
        lora={"rank": 16, "alpha": 8.0, "export": ["comfy"]},
        loader={"batch": 2},
        diffusion={"video_shift": 1.0, "text_dropout": 0.05},
        optim={"lr": 1e-4, "moments": "8bit", "weight_decay": 1e-4, "warmup": 0, "decay_start": 1.0, "ema": 0.98},
        checkpoint={"every": 250, "keep_last": 4},
        validation={"every": 250, "prompt": prompts, "steps": 25, "at_start": True},
        memory="auto",
    )
    assert config.memory.weights == "host"
    assert {**vars(config), "memory": 0} == {**vars(expected), "memory": 0}


def test_a_printed_translation_is_a_recipe(here, capsys):
    assert TRAIN.parse(["--from-aitk", "job.yaml", "--print-config"]) is None
    printed = capsys.readouterr().out
    Path("mine.yaml").write_text(printed)
    assert printed.startswith("# job.yaml: name cat_lora -> name: cat_lora")
    assert TRAIN.parse(["--config", "mine.yaml", "--recipe", "lora"]) == TRAIN.parse(["--from-aitk", "job.yaml"])


def test_a_data_set_alone_goes_with_any_recipe(here):
    config = TRAIN.parse(["--from-musubi", "dataset.toml", "--recipe", "lora-24gb"])
    assert config.data == (Path("clips"),) and (config.clip.width, config.clip.frames) == (640, 81)
    assert config.optim == load_config("lora-24gb").optim and config.memory.weights == "files"


def test_options_in_a_toml_are_those_of_a_script(here):
    Path("options.toml").write_text(
        '[training]\nnetwork_dim = 8\nmax_train_steps = 5\n[data]\ndataset_config = "dataset.toml"\n'
    )
    config = TRAIN.parse(["--from-musubi", "options.toml"])
    assert (config.lora.rank, config.lora.alpha, config.steps, config.optim.lr) == (8, 1.0, 5, 2e-6)
    Path("short.sh").write_text("python wan_train_network.py --config_file options --network_dim 4\n")
    assert TRAIN.parse(["--from-musubi", "short.sh"]).lora.rank == 4


@pytest.mark.parametrize(
    "old, new, says",
    [
        (
            "--seed 42",
            "--network_dropout 0.1 --scale_weight_norms 1",
            "2 keys have no counterpart; network_dropout 0.1:",
        ),
        ("--seed 42", "--min_timestep 900", "min_timestep 900: both experts are trained"),
        ("--seed 42", "--frobnicate 3", "frobnicate 3: unknown here: remove it"),
        ("adamw8bit", "prodigy", "optimizer_type prodigy: AdamW is the only optimizer"),
        ("sampling sigma", "sampling shift", "timestep_sampling shift: .*give --diffusion.video-shift"),
        ("scheduler cosine", "scheduler polynomial", "lr_scheduler polynomial: rates are constant or fall by a cosine"),
        ("loraplus_lr_ratio=4", "conv_dim=4", "network_args .*: adapters here take no conv_dim"),
        ("networks.lora_wan", "networks.loha", "network_module networks.loha: low-rank adapters"),
        ("bf16 --fp8", "fp16 --fp8", "mixed_precision fp16: computed in no or bf16 here"),
        ("$OUT", "$NOWHERE", "the variable NOWHERE is not set"),
        ("wan_train_network", "wan_generate_video", "holds no command of a"),
        ("2e-4", "fast", r"\[optim\]\[lr\] from recipe lora and .*\(train.sh: learning_rate fast\)"),
        ("2e-4", "-1", r"optim.lr must be at least 0, got -1.0 \(train.sh: learning_rate -1\)"),
        ("workers 2", "workers 2.5", r"--loader.workers .* \(train.sh: max_data_loader_n_workers 2.5\)"),
        ("boundary 900", "boundary -1", r"expert boundary must .* \(train.sh: timestep_boundary -1\)"),
        ("epochs 16", "epochs -1", "train.sh: max_train_epochs must be a whole number from 0 on, got -1"),
        ("dataset.toml", "none.toml", "dataset_config none.toml: there is no such file"),
    ],
)
def test_what_musubi_tuner_has_and_this_has_not(here, old, new, says):
    text = Path("train.sh").read_text()
    assert old in text
    Path("train.sh").write_text(text.replace(old, new))
    with pytest.raises(MovaError, match=says) as error:
        TRAIN.parse(["--from-musubi", "train.sh"])
    assert "\n" not in str(error.value)


def places(content, above=()):
    """The way to each value of nested mappings and lists."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (*above, key)
        yield from places(value, (*above, key))


def spoiled(content, way, value):
    content = copy.deepcopy(content)
    inner = content
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    return content


@pytest.mark.parametrize("value", ["abc", [1], {"a": 1}, -1, 1.5, None, float("nan")], ids=str)
def test_a_wrong_value_is_told_by_file_and_key(here, value):
    """In every place of a job, of a data set, and of a script's options: taken, or refused in one line."""
    job, data = yaml.safe_load(Path("job.yaml").read_text()), tomllib.loads(Path("dataset.toml").read_text())
    options = read_options(Path("train.sh"))
    cases = [
        *((aitk_job, "job.yaml", way, "read_yaml", spoiled(job, way, value)) for way in places(job)),
        *((musubi_options, "dataset.toml", way, "read_options", spoiled(data, way, value)) for way in places(data)),
        *((musubi_options, "train.sh", way, "read_options", spoiled(options, way, value)) for way in places(options)),
    ]
    refused = 0
    for tool, file, way, reader, content in cases:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tool, reader, lambda path, content=content: content)
            try:
                tool.translate(Path(file))
            except MovaError as error:
                refused += 1
                told, key = str(error), next(key for key in way[::-1] if isinstance(key, str))
                # Folders and files that are not there are told by their names, parts by what they lack or hold.
                found = key in told or len(way) < 5 or "no such" in told or "names no" in told or "a 1: unknown" in told
                assert "\n" not in told and (file in told or "no such" in told) and found, (way, told)
    assert len(cases) > 100 and refused > 15


@pytest.mark.parametrize(
    "old, new, says, settled",
    [
        ("[81]", "[1, 25, 45]", "target_frames .*: all clips have one length", ["--clip.frames", "81"]),
        (
            "enable_bucket = false",
            "enable_bucket = true",
            "enable_bucket: a run has one size",
            ["--clip.height", "352"],
        ),
        ('"head"', '"uniform"', "frame_extraction uniform: .*metadata.jsonl", ["--clip.frames", "81"]),
        ("video_directory", "image_directory", "image_directory clips: clips are videos with sound", None),
        ("num_repeats = 3", "num_repeats = 3\n[[datasets]]", "2 data sets, and a run takes one folder", None),
    ],
)
def test_what_data_sets_of_musubi_tuner_have(here, old, new, says, settled):
    """An option on the command line settles what would be refused."""
    text = Path("dataset.toml").read_text()
    Path("dataset.toml").write_text(text.replace(old, new))
    command = ["--from-musubi", "train.sh", "--steps", "9"]
    with pytest.raises(MovaError, match=says):
        TRAIN.parse(command)
    if settled is not None:
        assert TRAIN.parse([*command, *settled]).steps == 9


@pytest.mark.parametrize(
    "old, new, says",
    [
        ("lr: 0.0001", "lr: 0.0001\n        noise_offset: 0.1", "train.noise_offset 0.1: not there: remove it"),
        (
            "fps: 24\n          do",
            "fps: 24\n          resolution: [512]\n          do",
            r"datasets.resolution \[512\]: a run",
        ),
        ("frames: false", "frames: true", "datasets.shrink_video_to_frames: clips keep their speed"),
        ("train_low_noise: true", "train_low_noise: false", "train_low_noise False: both experts are trained"),
        ("type: lora", "type: lokr", "network.type lokr: low-rank adapters"),
        ("a cat purrs", "'[trigger] purrs'", r"a prompt has \[trigger\]"),
        ("device: cuda:0", "trigger_word: p3r5on", "trigger_word p3r5on: write the word into the captions"),
        ("job: extension", "job: extension\nfoo: 1", "foo 1: unknown here"),
    ],
)
def test_what_ai_toolkit_has_and_this_has_not(here, old, new, says):
    text = Path("job.yaml").read_text()
    assert old in text
    Path("job.yaml").write_text(text.replace(old, new))
    with pytest.raises(MovaError, match=says):
        TRAIN.parse(["--from-aitk", "job.yaml"])


def test_one_tool_at_a_time_and_a_file_that_is_there(here):
    with pytest.raises(MovaError, match="--from-musubi and --from-aitk: give one of them"):
        TRAIN.parse(["--from-aitk", "job.yaml", "--from-musubi", "train.sh"])
    with pytest.raises(MovaError, match="--from-aitk: there is no file none.yaml"):
        TRAIN.parse(["--from-aitk", "none.yaml"])
    Path("job.yaml").write_text("a: 1")
    with pytest.raises(MovaError, match="job.yaml is no job of ai-toolkit"):
        TRAIN.parse(["--from-aitk", "job.yaml"])


def test_tables_name_settings_that_there_are(here):
    options = TRAIN.options()
    rules = [*musubi_options._TABLE.values(), *aitk_job._TABLE.values()]
    settings = {rule.setting for rule in rules if isinstance(rule, Same)}
    assert len(settings) > 10 and {f"--{x.replace('_', '-')}" for x in settings} <= options
