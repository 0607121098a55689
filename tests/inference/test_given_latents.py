"""Latents that are given: whole modalities and stretches of time; solvers, and guidance of some steps."""

import copy
from dataclasses import replace

import pytest
import torch

from mova_engine.diffusion.conditioning import first_frame_condition, video_input
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.diffusion.solvers import SOLVERS, solver
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import LoopOptions, denoise, draw_noise
from mova_engine.inference.given_latents import GivenLatents
from mova_engine.inference.velocities import Conditions, Latents
from mova_engine.memory.streaming import StreamedModel
from mova_engine.memory.weight_sources import HostArena
from mova_engine.models.modality import modalities
from mova_engine.models.mova import dual_tower_forward

STEPS = Schedule().inference(4)
TEXT = Guidance("text", 3.0)


def conditions(mova, batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    t, h, w = mova.config.clip.latent_shape
    image = torch.randn(batch, 16, t, h, w, generator=generator)
    text, empty = torch.randn(2, batch, 12, 16, generator=generator)
    return Conditions(first_frame_condition(image), text, empty)


def noise_of(mova, batch=1):
    return draw_noise(mova.config, range(3, 3 + batch), mova.config.clip)


def sample(mova, given, guidance=TEXT, steps=STEPS, **options):
    noise = noise_of(mova, len(given.text))
    on_step = options.pop("on_step", None)
    return denoise(mova, given, noise, steps, guidance, Prediction(), options=LoopOptions(**options), on_step=on_step)


def clean(mova, seed, batch=1):
    """Latents of a clip, as its codecs would give them."""
    return draw_noise(mova.config, range(seed, seed + batch), mova.config.clip)


def positions(latents, *chosen):
    return tuple(i in chosen for i in range(latents.shape[2]))


def far(a, b):
    return (a - b).abs().max() > 1e-2 * b.abs().max()


@pytest.mark.parametrize("name", ["video", "audio"])
def test_a_given_modality_stays_and_the_other_follows_it(mova, name):
    base, kept = conditions(mova), clean(mova, 8)
    other = "audio" if name == "video" else "video"
    run = [
        sample(mova, replace(base, **{name: GivenLatents.whole(getattr(latents, name))}))
        for latents in (kept, clean(mova, 9))
    ]
    assert torch.equal(getattr(run[0], name), getattr(kept, name))
    assert far(getattr(run[0], other), getattr(run[1], other))


def test_a_given_modality_is_seen_clean_by_the_expert_of_low_noise(mova, monkeypatch):
    seen = []

    def spy(video_dit, audio_dit, bridge, video, audio, **kwargs):
        seen.append((video_dit is mova.video_dit_2, video.noise_levels()[0].unique().tolist()))
        return dual_tower_forward(video_dit, audio_dit, bridge, video, audio, **kwargs)

    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", spy)
    sample(mova, replace(conditions(mova), video=GivenLatents.whole(clean(mova, 8).video)))
    assert seen == [(True, [0.0])] * len(STEPS.experts)
    seen.clear()
    sample(mova, replace(conditions(mova), audio=GivenLatents.whole(clean(mova, 8).audio)))
    assert [low for low, _ in seen] == [bool(expert) for expert in STEPS.experts]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("clean_ones", [True, False])
def test_given_stretches_are_in_the_result_to_the_bit(mova, solver, clean_ones):
    kept, base = clean(mova, 8), conditions(mova)
    video, audio = positions(kept.video, 0, 1), positions(kept.audio, 2, 3, 4)
    given = replace(
        base,
        video=GivenLatents(kept.video, video, clean_ones),
        audio=GivenLatents(kept.audio, audio, clean_ones),
    )
    states = []
    out = sample(mova, given, solver=solver, on_step=lambda step: states.append(step.state))
    for x, y, where in zip(out, kept, (video, audio), strict=True):
        where = torch.tensor(where)
        assert torch.equal(x[:, :, where], y[:, :, where])
        assert far(x[:, :, ~where], y[:, :, ~where])
    # On the way they are clean, or at the noise level.
    assert torch.equal(states[0].audio[:, :, 3], kept.audio[:, :, 3]) is clean_ones
    # The rest follows what is given.
    other = GivenLatents(clean(mova, 9).audio, audio, clean_ones)
    assert not torch.equal(sample(mova, replace(given, audio=other), solver=solver).video, out.video)


@pytest.mark.parametrize(
    "video, audio, shown_clean",
    [((0, 1), (0, 1, 2), True), ((0, 1), (2, 3), False), ((1,), (0, 1), False), ((0, 1), (), False)],
)
def test_a_model_that_was_trained_so_is_shown_a_beginning_of_both_clean(mova, video, audio, shown_clean):
    """Anything else is kept by replacement: at the noise level of each step."""
    kept, states = clean(mova, 8), []
    given = replace(
        conditions(mova),
        video=GivenLatents(kept.video, positions(kept.video, *video), clean=False),
        audio=GivenLatents(kept.audio, positions(kept.audio, *audio), clean=False) if audio else None,
    )
    sample(mova, given, clean_start=True, on_step=lambda step: states.append(step.state))
    assert torch.equal(states[0].video[:, :, video], kept.video[:, :, video]) is shown_clean
    assert not torch.equal(sample(mova, given, clean_start=True).video, sample(mova, given).video) or not shown_clean


@pytest.mark.parametrize("guidance", [TEXT, Guidance("none"), Guidance("dual", 3.0, 2.0)])
def test_audio_on_a_recorded_video_is_the_joint_forward_s(mova, guidance):
    """Recording at every evaluation but reading at none, or with the same video at all, changes no bit."""
    given = replace(conditions(mova, 2), video=GivenLatents.whole(clean(mova, 8, 2).video))
    silent = copy.deepcopy(mova)
    for conditioner in silent.dual_tower_bridge.audio_to_video_conditioners.values():
        torch.nn.init.zeros_(conditioner.inner.o.weight)
        torch.nn.init.zeros_(conditioner.inner.o.bias)
    exact = sample(silent, given, guidance)
    assert torch.equal(sample(silent, given, guidance, video_every=0).audio, exact.audio)
    assert torch.equal(sample(silent, given, guidance, video_every=3).audio, exact.audio)
    # What the bridge brings the video from the audio is what the ways differ in.
    joint, often, once = (sample(mova, given, guidance, video_every=every).audio for every in (1, 2, 0))
    assert torch.equal(once, exact.audio)
    assert not torch.equal(joint, often)
    assert not torch.equal(often, once)


def test_the_video_tower_runs_as_often_as_told(mova, monkeypatch):
    calls = []

    def spy(*args, **kwargs):
        calls.append(1)
        return dual_tower_forward(*args, **kwargs)

    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", spy)
    given = replace(conditions(mova), video=GivenLatents.whole(clean(mova, 8).video))
    for every, passes in ((1, 4), (3, 2), (0, 1)):
        calls.clear()
        sample(mova, given, video_every=every)
        assert len(calls) == passes
    # Guidance that begins later needs the empty text's video as well.
    calls.clear()
    sample(mova, given, replace(TEXT, begin=0.5), video_every=0)
    assert len(calls) == 2


@pytest.mark.parametrize("options", [{"video_every": 0}, {"solver": "heun"}, {}])
def test_streamed_layers_come_in_the_loop_s_order(mova, options):
    guidance = replace(TEXT, form="dual", begin=0.3)
    given = conditions(mova)
    if "video_every" in options:
        given = replace(given, video=GivenLatents.whole(clean(mova, 8).video))
    expected = sample(mova, given, guidance, **options)
    streamed = copy.deepcopy(mova).requires_grad_(False)
    layers = StreamedModel(streamed, lambda units: HostArena(units, torch.device("cpu")), torch.device("cpu"))
    for x, y in zip(sample(streamed, given, guidance, **options), expected, strict=True):
        assert torch.equal(x, y)
    assert layers.stream.report().unforeseen == 0


def test_guidance_of_some_steps_costs_its_evaluations_alone(mova, monkeypatch):
    batches = []

    def spy(*args, **kwargs):
        batches.append(args[3].batch)
        return dual_tower_forward(*args, **kwargs)

    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", spy)
    sample(mova, conditions(mova), replace(TEXT, begin=0.25, end=0.5))
    assert batches == [1, 2, 1, 1]


@pytest.mark.parametrize("name", SOLVERS)
def test_both_modalities_follow_the_solver_at_their_own_noise_levels(mova, name):
    schedule, given, noise = Schedule(5.0, 2.0), conditions(mova), noise_of(mova)
    steps = schedule.inference(3)
    sigmas = Latents(steps.video_sigmas, steps.audio_sigmas)
    integrators = [solver(name)(each.tolist()) for each in sigmas]
    state = noise
    for level, _ in SOLVERS[name].evaluations(3):
        times = (each[level : level + 1] * 1000 for each in sigmas)
        inputs = modalities(video_input(state.video, given.condition), state.audio, given.text, *times)
        with torch.no_grad():
            velocity = mova(*inputs, expert=steps.experts[level])
        state = Latents(*(s.advance(x, v.float()) for s, x, v in zip(integrators, state, velocity, strict=True)))
    for x, y in zip(sample(mova, given, Guidance("none"), steps, solver=name), state, strict=True):
        assert torch.equal(x, y)


def test_a_number_that_is_not_finite_is_found_in_its_step(mova):
    reached = []

    def spoil(step):
        reached.append(step.index)
        if step.index == 1:
            step.state.audio.fill_(torch.nan)

    with pytest.raises(MovaError, match="not finite in step 3"):
        sample(mova, conditions(mova), on_step=spoil)
    assert reached == [0, 1]


def test_what_does_not_fit_is_refused(mova):
    base, kept = conditions(mova), clean(mova, 8)
    for change, message in (
        ({"video": GivenLatents.whole(kept.video[..., :1])}, "given video latents are"),
        ({"audio": GivenLatents(kept.audio, (True,))}, "given audio: 1 positions, but the clip has"),
    ):
        with pytest.raises(MovaError, match=message):
            sample(mova, replace(base, **change))
    with pytest.raises(MovaError, match="only where the whole video is given"):
        sample(mova, base, video_every=0)
    with pytest.raises(MovaError, match="video_every must be at least 0"):
        LoopOptions(video_every=-1)
    assert isinstance(sample(mova, base), Latents)
