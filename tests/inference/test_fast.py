"""`--fast`: says what it turns on, refuses what contradicts it, and leaves all else as it is."""

import json
from pathlib import Path

import pytest

from mova_engine.commands.calibrate_steps import main as calibrate_command
from mova_engine.config.sample import SampleConfig
from mova_engine.diffusion.guidance import Guidance
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.command_settings import sample_settings
from mova_engine.inference.sample_settings import SampleSettings


def settings(of_model=50, /, **options):
    config = SampleConfig(checkpoint=Path("model"), prompt="rain", **options)
    return sample_settings(config, SampleSettings(of_model, Guidance("text")))


def test_without_it_all_settings_are_the_model_s():
    assert settings() == SampleSettings(50, Guidance("text"))
    assert settings(solver="euler", cache="1") == settings(cache="none") == settings()


def test_it_takes_sixteen_steps_of_unipc_and_never_more_than_the_model_s():
    assert settings(fast=True) == SampleSettings(16, Guidance("text"), solver="unipc")
    assert settings(8, fast=True) == SampleSettings(8, Guidance("text"), solver="unipc")
    assert settings(fast=True, solver="unipc", text_scale=3.0).guidance == Guidance("text", 3.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": 20}, "leave --steps out"),
        ({"sigmas": (1.0, 0.5)}, "leave --sigmas out"),
        ({"solver": "euler"}, "leave --solver euler out"),
        ({"solver": "heun"}, "leave --solver heun out"),
        ({"cache": "1.6"}, "leave --cache out"),
        ({"cache": "adaptive"}, "leave --cache out"),
        ({"audio_alone": True}, "--fast was measured with pictures"),
    ],
)
def test_what_contradicts_it_is_refused(options, told):
    with pytest.raises(MovaError, match=told):
        settings(fast=True, **options)


@pytest.fixture
def fast(run_folder, tmp_path, capsys):
    """Run the command; what it said, and the row of its clip."""

    def run(*more):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        words = ["--checkpoint", run_folder, "--prompt", "rain", "--device", "cpu", "--fast", "--out", out, *more]
        assert main([str(word) for word in words]) == 0
        return " ".join(capsys.readouterr().err.split()), json.loads((out / "metadata.jsonl").read_text())

    return run


def test_it_says_what_it_turned_on(fast, run_folder, tmp_path):
    said, row = fast()
    assert "--fast: solver unipc, 16 steps" in said
    assert (row["solver"], row["steps"], row["reused_steps"]) == ("unipc", 16, [])
    # A calibration is of the same steps, and is not used.
    file = run_folder / "step_cache.json"
    words = ["--checkpoint", run_folder, "--prompt", "rain", "--device", "cpu", "--fast", "--out", file]
    assert calibrate_command([str(word) for word in words]) == 0
    key = json.loads(file.read_text())["key"]
    assert (key["solver"], key["steps"]) == ("unipc", 16)
    assert {**fast()[1], "run": row["run"]} == row
