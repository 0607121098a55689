"""Attention in 8 bits or sparse within sampling: exact first steps, checked in each expert's first, refused by name."""

import json

import pytest
import torch

from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.denoising import LoopOptions, denoise, draw_noise
from mova_engine.inference.lossy_attention import LossyAttention
from mova_engine.inference.velocities import Conditions
from mova_engine.ops import lossy

# Six steps by the expert of high noise, two by the other.
STEPS = Schedule(boundary=0.6).inference(8)


def sample(mova, attention=None, **options):
    generator, steps = torch.Generator().manual_seed(3), []
    image = torch.randn(1, 16, *mova.config.clip.latent_shape, generator=generator)
    given = Conditions(first_frame_condition(image), *torch.randn(2, 1, 12, 16, generator=generator))
    noise = draw_noise(mova.config, (3,), mova.config.clip)
    denoise(
        mova, given, noise, STEPS, Guidance("text", 3.0), Prediction("x0"), on_step=steps.append,
        options=LoopOptions(attention=attention, **options),
    )  # fmt: skip
    return steps


def exact_until(plain, other):
    """The number of first steps whose states are the same to the bit."""
    same = [all(map(torch.equal, one.state, two.state)) for one, two in zip(plain, other, strict=True)]
    return same.index(False) if False in same else len(same)


@pytest.mark.parametrize(("exact_steps", "first"), [(None, 2), (1, 1), (3, 3), (8, 8)])
def test_the_first_steps_are_those_of_exact_attention_to_the_bit(mova, exact_steps, first):
    attention = LossyAttention("int8", exact_steps)
    plain, other = sample(mova), sample(mova, attention)
    assert exact_until(plain, other) == first
    assert 0 < attention.worst < 0.08
    # And afterwards near.
    assert (other[-1].state.video - plain[-1].state.video).norm() < 0.1 * plain[-1].state.video.norm()
    assert exact_until(plain, sample(mova)) == 8


def calls(mova, monkeypatch, exact_steps=2):
    """The evaluations in which the approximation is called, by step."""
    found, step = [], [0]
    attention = LossyAttention("int8", exact_steps)
    function, enter = attention.function, attention.enter
    attention.function = lambda *a, grid: found.append((step[0], grid)) or function(*a, grid=grid)
    monkeypatch.setattr(attention, "enter", lambda at, of: step.__setitem__(0, at) or enter(at, of))
    sample(mova, attention)
    return found


def test_every_layer_is_checked_in_the_first_step_of_each_expert(mova, monkeypatch):
    found = calls(mova, monkeypatch)
    # Two layers; checked in the first steps, used from the third on; but in the other expert's first it is exact.
    assert [step for step, _ in found] == [0, 0, *(s for s in range(2, 8) for _ in range(2))]
    t, h, w = mova.config.clip.latent_shape
    assert {grid for _, grid in found} == {(t, h // 2, w // 2)}


def test_in_the_first_step_of_an_expert_its_results_are_not_used(mova):
    """With all of the first expert's steps exact, the second's first is exact too."""
    assert exact_until(sample(mova), sample(mova, LossyAttention("int8", 6))) == 7


@pytest.mark.parametrize(
    "spoil", [lambda x: 1.1 * x, lambda x: x * torch.nan, lambda x: x.roll(1, 1), lambda x: x[:, 1:]]
)
def test_one_that_is_off_is_refused_by_name_before_it_is_used(mova, spoil):
    attention = LossyAttention("int8")
    attention.function = lambda q, k, v, grid: spoil(lossy.int8(q, k, v))
    with pytest.raises(MovaError, match=r"attention int8 is off by .* % in layer 1 in step 1, on cpu with 2 x"):
        sample(mova, attention)
    # The model is as it was.
    assert exact_until(sample(mova), sample(mova)) == 8


def test_one_that_is_off_in_the_second_expert_alone_is_found_at_its_first_step(mova):
    attention = LossyAttention("int8")
    attention.function = lambda q, k, v, grid: lossy.int8(q, k, v) * (1.2 if attention._step >= 6 else 1.0)
    with pytest.raises(MovaError, match="in layer 1 in step 7"):
        sample(mova, attention)


@pytest.fixture
def command(saved_run, tmp_path, capsys):
    def run(*more):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        # A signature states the settings, which differ where the clips do not.
        words = ["--checkpoint", saved_run, "--prompt", "rain", "--device", "cpu", "--no-provenance", *more]
        words += ["--steps", 4, "--out", out]
        assert main([str(word) for word in words]) == 0
        return (out / "000.mp4").read_bytes(), json.loads((out / "metadata.jsonl").read_text()), capsys.readouterr().err

    return run


def test_the_command_says_what_it_found(command):
    plain, _, _ = command()
    same, row, said = command("--attention", "int8", "--exact-steps", 4)
    assert same == plain and (row["attention"], row["exact_steps"]) == ("int8", 4)
    assert "attention int8: off by" in said and "warning: with 4 exact steps of 4 attention int8" in said
    other, row, said = command("--attention", "int8")
    assert "exact steps of" not in said
    assert other != plain and (row["attention"], row["exact_steps"]) == ("int8", None)


def test_what_cannot_be_is_refused_before_weights_are_read(command, monkeypatch):
    monkeypatch.setattr("mova_engine.inference.sampling_run.load_pipeline", None)
    for options, told in (
        (("--attention", "sage"), "implementation 'sage' cannot serve: runs on cuda, not on cpu"),
        (("--attention", "rainfusion"), "implementation 'rainfusion' cannot serve: runs on npu, not on cpu"),
        (("--attention", "int9"), "has no implementation 'int9'. Did you mean 'int8'"),
        (("--attention", "reference"), "leave --attention out"),
        (("--exact-steps", 3), "--exact-steps goes with --attention"),
        (("--attention", "int8", "--exact-steps", 0), "exact_steps must be at least 1"),
        (("--attention", "int8", "--audio-alone"), "leave --attention out"),
    ):
        with pytest.raises(MovaError, match=told):
            command(*options)
