"""The adaptive step cache: the first layer's change decides, by clip, expert and forward; no skip changes nothing."""

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch

from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.denoising import LoopOptions, denoise, draw_noise
from mova_engine.inference.first_block import FirstBlockCache, KeptLayers
from mova_engine.inference.velocities import Conditions
from mova_engine.memory.streaming import StreamedModel
from mova_engine.memory.weight_sources import HostArena
from mova_engine.models.mova import DualTowerLayers

# Six steps by the expert of high noise, two by the other.
STEPS = Schedule(boundary=0.6).inference(8)
TEXT, DUAL = Guidance("text", 3.0), Guidance("dual", 3.0, 2.0)


def sample(mova, guidance=TEXT, seed=3, on_step=None, clips=1, levels=STEPS, output="x0", **options):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(clips, 16, *mova.config.clip.latent_shape, generator=generator)
    given = Conditions(first_frame_condition(image), *torch.randn(2, clips, 12, 16, generator=generator))
    noise = draw_noise(mova.config, range(seed, seed + clips), mova.config.clip)
    return denoise(
        mova, given, noise, levels, guidance, Prediction(output), options=LoopOptions(**options), on_step=on_step
    )


def passes(mova, *args, **options):
    steps = []
    sample(mova, *args, on_step=steps.append, **options)
    return [step.video_passes for step in steps]


def equal(found, expected):
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("guidance", "options"),
    [(TEXT, {"solver": "unipc"}), (DUAL, {}), (replace(TEXT, end=0.5), {"batch_guidance": False}),
     (TEXT, {"bridge": False})],
)  # fmt: skip
def test_a_threshold_of_zero_is_the_run_without_a_cache(mova, guidance, options):
    assert equal(sample(mova, guidance, first_block=0.0, **options), sample(mova, guidance, **options))


def test_everything_that_may_be_is_left_out_at_a_large_threshold(mova):
    """All but the first step of each expert, and of each stretch with other branches."""
    assert passes(mova, first_block=9e9) == [(2, 2), *[(0, 2)] * 5, (2, 2), (0, 2)]
    assert passes(mova, replace(TEXT, end=0.5), first_block=9e9) == [
        (2, 2), (0, 2), (0, 2), (0, 2), (1, 1), (0, 1), (1, 1), (0, 1),
    ]  # fmt: skip
    assert passes(mova, DUAL, first_block=9e9)[:2] == [(3, 3), (0, 3)]
    assert passes(mova) == [(2, 2)] * 8
    assert passes(mova, reused=(2, 7)) == [(2, 2), (2, 2), (0, 2), *[(2, 2)] * 4, (0, 2)]


def test_the_decision_is_the_relative_change_since_the_last_whole_forward():
    cache, first = FirstBlockCache(0.1), torch.ones(1, 3, 4)
    cache.enter(0)
    assert cache.similar("a", first) is None
    cache.keep("a", KeptLayers(first, first, None))
    assert cache.similar("a", 1.09 * first) is not None
    # Not since the last step: no drift in small steps.
    assert cache.similar("a", 1.11 * first) is None
    assert cache.similar("b", first) is None
    # One element of the batch, as a branch of guidance is, may not.
    pair = torch.cat([first, first])
    cache.keep("a", KeptLayers(pair, pair, None))
    assert cache.similar("a", pair * torch.tensor([1.0, 1.2]).view(2, 1, 1)) is None
    cache.enter(0)
    assert cache.similar("a", pair) is not None
    cache.enter(4)
    assert cache.similar("a", pair) is None


def test_the_other_layers_add_what_they_added_and_the_audio_is_computed(mova, monkeypatch):
    """In a step whose inputs are those of the one before, all that is left out is known: the bits are the same but for
    the rounding of one sum.
    """
    run, ran = DualTowerLayers.run, []
    monkeypatch.setattr(DualTowerLayers, "run", lambda self, layer, *a: ran.append(layer) or run(self, layer, *a))
    levels = replace(STEPS, video_sigmas=STEPS.video_sigmas * 0 + 0.5, audio_sigmas=STEPS.audio_sigmas * 0 + 0.5)
    levels = replace(
        levels,
        video_timesteps=STEPS.video_timesteps * 0 + 500,
        audio_timesteps=STEPS.audio_timesteps * 0 + 500,
        experts=(0,) * 8,
    )
    found = {}
    for threshold in (None, 1e-6):
        steps = []
        ran.clear()
        sample(mova, levels=levels, output="velocity", first_block=threshold, on_step=steps.append)
        found[threshold] = steps, list(ran)
    (plain, _), (cached, layers) = found[None], found[1e-6]
    assert layers == [0, 1, *[0] * 7]
    for one, other in zip(plain, cached, strict=True):
        for x, y in zip(one.velocity, other.velocity, strict=True):
            assert torch.allclose(x, y, rtol=1e-4, atol=1e-5)


def test_the_audio_s_velocity_moves_in_steps_without_the_video_tower(mova):
    steps = []
    sample(mova, first_block=9e9, on_step=steps.append)
    for before, after in itertools.pairwise(steps[:6]):
        assert not torch.equal(before.velocity.audio, after.velocity.audio)


def test_runs_one_after_another_are_each_as_alone(mova):
    alone = sample(copy.deepcopy(mova), seed=4, first_block=0.3)
    sample(mova, seed=3, first_block=0.3)
    assert equal(sample(mova, seed=4, first_block=0.3), alone)


def test_where_it_cannot_be_it_is_refused(mova):
    with pytest.raises(MovaError, match=r"takes one at a time \(batch 1\)"):
        sample(mova, clips=2, first_block=0.1)
    for options, told in (
        ({"solver": "heun"}, "with the step cache take euler or unipc"),
        ({"reused": (2,)}, "planned or adaptive, not both"),
    ):
        with pytest.raises(MovaError, match=told):
            sample(mova, first_block=0.1, **options)
    streamed = copy.deepcopy(mova).requires_grad_(False)
    StreamedModel(streamed, lambda units: HostArena(units, torch.device("cpu")), torch.device("cpu"))
    with pytest.raises(MovaError, match="with streamed weights take a planned one"):
        sample(streamed, first_block=0.1)


@pytest.mark.long
def test_the_command_says_how_much_it_left_out(saved_run, tmp_path, capsys):
    words = ["--checkpoint", str(saved_run), "--prompt", "rain", "--count", "2", "--device", "cpu", "--steps", "6"]
    # A signature states the settings, which differ where the clips do not.
    words += ["--no-provenance"]
    given = {"none": "none", "zero": "adaptive:0", "all": "adaptive:9e9", "plain": "adaptive"}
    said = {}
    for name, cache in given.items():
        assert main([*words, "--guidance", "text", "--out", str(tmp_path / name), "--cache", cache]) == 0
        said[name] = " ".join(capsys.readouterr().err.split())
    assert "passes of the video tower were left out" not in said["none"]
    assert "step cache: 0 of 24 passes of the video tower were left out" in said["zero"]
    # All but the first steps of two experts, of two clips with two branches each.
    assert "step cache: 16 of 24 passes of the video tower were left out" in said["all"]
    assert "has changed by less than 0.05 of its size" in said["plain"]
    none, zero, every = ((tmp_path / name / "000.mp4").read_bytes() for name in ("none", "zero", "all"))
    assert none == zero != every
    row = json.loads((tmp_path / "all" / "metadata.jsonl").read_text().splitlines()[0])
    assert row["cache_threshold"] == 9e9
