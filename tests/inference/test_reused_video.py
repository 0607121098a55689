"""Steps in which the video moves along the velocity of the step before, while the audio is evaluated on it."""

import copy
from dataclasses import replace

import pytest
import torch

from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule, Steps, euler_step
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import LoopOptions, denoise, draw_noise
from mova_engine.inference.given_latents import GivenLatents
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.step_plan import StepPlan
from mova_engine.inference.velocities import Conditions, Latents, VelocityModel
from mova_engine.memory.streaming import StreamedModel
from mova_engine.memory.weight_sources import HostArena
from mova_engine.models.context_parallel import NO_CP

# Six steps by the expert of high noise, two by the other.
STEPS = Schedule(boundary=0.6).inference(8)
LAST_OF_HIGH = 5
TEXT, DUAL = Guidance("text", 3.0), Guidance("dual", 3.0, 2.0)


def conditions(mova, clips=(3,)):
    """Of clips with seeds of their own, so that a clip is the same in every batch."""
    parts = []
    for seed in clips:
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(16, *mova.config.clip.latent_shape, generator=generator)
        parts.append((image, *torch.randn(2, 12, 16, generator=generator)))
    image, text, empty = (torch.stack(each) for each in zip(*parts, strict=True))
    return Conditions(first_frame_condition(image), text, empty)


def sample(mova, guidance=TEXT, clips=(3,), given=None, on_step=None, **options):
    return denoise(
        mova,
        given or conditions(mova, clips),
        draw_noise(mova.config, clips, mova.config.clip),
        STEPS,
        guidance,
        Prediction("x0"),
        options=LoopOptions(**options),
        on_step=on_step,
    )


def equal(found, expected):
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def deaf(mova):
    """The model without what the bridge brings the video from the audio."""
    made = copy.deepcopy(mova)
    for conditioner in made.dual_tower_bridge.audio_to_video_conditioners.values():
        torch.nn.init.zeros_(conditioner.inner.o.weight)
        torch.nn.init.zeros_(conditioner.inner.o.bias)
    return made


@pytest.fixture(autouse=True)
def _six_steps_of_the_first_expert():
    assert STEPS.experts == (0,) * (LAST_OF_HIGH + 1) + (1,) * 2


@pytest.mark.parametrize("guidance", [TEXT, DUAL])
@pytest.mark.parametrize("batch_guidance", [True, False])
def test_the_audio_is_evaluated_on_the_video_of_the_step_before(mova, guidance, batch_guidance):
    """Both towers, run in every step with the video's state and noise level of the last step that was no reuse, give
    the same bits, where the video does not depend on the audio.
    """
    model, given, reused = deaf(mova), conditions(mova, (3, 4)), (2, 3, 7)
    evaluated = VelocityModel(model, given, Prediction("x0"), 24.0, True, batch_guidance, NO_CP)
    state = stale = draw_noise(model.config, (3, 4), model.config.clip)
    levels = STEPS
    with torch.no_grad():
        for step in range(8):
            if step not in reused:
                stale = state
                levels = replace(
                    STEPS,
                    video_sigmas=STEPS.video_sigmas[step].expand(9),
                    video_timesteps=STEPS.video_timesteps[step].expand(8),
                )
            mixed = Latents(stale.video, state.audio)
            found = evaluated.evaluate(guidance.branches, mixed, levels, step)
            velocity = guidance.combine(lambda *branch, found=found: found[branch])
            sigmas = STEPS.video_sigmas, STEPS.audio_sigmas
            state = Latents(
                *(
                    euler_step(x, v, *each[step : step + 2].tolist())
                    for x, v, each in zip(state, velocity, sigmas, strict=True)
                )
            )
    assert equal(sample(model, guidance, (3, 4), reused=reused, batch_guidance=batch_guidance), state)


def test_the_video_s_velocity_stays_and_the_audio_s_does_not(mova, monkeypatch):
    experts, steps = [], []
    real = type(mova).forward
    monkeypatch.setattr(
        type(mova),
        "forward",
        lambda self, *a, expert, **k: experts.append(expert) or real(self, *a, expert=expert, **k),
    )
    sample(mova, reused=(2, 3, 7), on_step=steps.append)
    # Every expert's own.
    assert experts == [0, 0, 0, 0, 1]
    for step, before in ((2, 1), (3, 1), (7, 6)):
        assert torch.equal(steps[step].velocity.video, steps[before].velocity.video)
        assert not torch.equal(steps[step].velocity.audio, steps[step - 1].velocity.audio)


def test_the_audio_takes_several_steps_in_each_of_the_video(mova, monkeypatch):
    """The video's steps, one by one, are those of the run without sub-steps; the audio's are taken on what was read of
    the video at the first.
    """
    video, audio = (0.9, 0.7, 0.4), (1.0, 0.9, 0.8, 0.6, 0.4, 0.2)
    settings = SampleSettings(sigmas=video, audio_sigmas=audio, switch=2)
    assert (settings.count, settings.reused) == (6, (1, 3, 5))
    steps, model, forwards = settings.noise_levels(Schedule()), deaf(mova), []
    assert steps.experts == (0, 0, 0, 0, 1, 1)
    real = type(mova).forward
    monkeypatch.setattr(type(mova), "forward", lambda self, *a, **k: forwards.append(1) or real(self, *a, **k))
    arguments = conditions(model), draw_noise(model.config, (3,), model.config.clip)
    options = LoopOptions(reused=settings.reused)
    found = denoise(model, *arguments, steps, TEXT, Prediction("x0"), options=options)
    assert len(forwards) == len(video)
    # By hand: the deaf video alone, and the audio on the video of each of its steps.
    plain = Schedule().listed(video, switch=2)
    states = [arguments[1].video]
    denoise(model, *arguments, plain, TEXT, Prediction("x0"), on_step=lambda step: states.append(step.state.video))
    torch.testing.assert_close(found.video, states[-1])
    evaluated = VelocityModel(model, arguments[0], Prediction("x0"), 24.0, True, True, NO_CP)
    sound, ends = arguments[1].audio, (*audio, 0.0)
    with torch.no_grad():
        for step, experts in enumerate(steps.experts):
            level = step // 2
            levels = Steps(
                plain.video_sigmas[level].expand(2),
                torch.tensor(ends[step : step + 2]),
                plain.video_timesteps[level].expand(1),
                torch.tensor([1000 * ends[step]]),
                (experts,),
            )
            branches = evaluated.evaluate(TEXT.branches, Latents(states[level], sound), levels, 0)
            _, velocity = TEXT.combine(lambda *branch, branches=branches: branches[branch])
            sound = euler_step(sound, velocity, *ends[step : step + 2])
    torch.testing.assert_close(found.audio, sound, rtol=1e-4, atol=1e-4)


def test_one_step_of_the_audio_in_each_of_the_video_is_the_plain_run(mova):
    one = SampleSettings(sigmas=(1.0, 0.5), audio_sigmas=(0.9, 0.2))
    assert (one.count, one.reused, one.audio_substeps) == (2, (), 1)
    steps = one.noise_levels(Schedule())
    assert steps.video_sigmas.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("more", [{"solver": "unipc"}, {"cache": StepPlan((), 4, 4, 4, 0.0, 0.0)}])
def test_steps_of_the_audio_alone_go_with_euler_and_without_a_cache(more):
    with pytest.raises(MovaError, match="solver euler"):
        SampleSettings(sigmas=(1.0, 0.5), audio_sigmas=(0.9, 0.7, 0.4, 0.2), **more)


def test_no_reuse_is_the_plain_run(mova):
    assert equal(sample(mova, reused=()), sample(mova))
    assert not equal(sample(mova, reused=(4,)), sample(mova))


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_clips_one_after_another_and_side_by_side_are_each_as_alone(mova, solver):
    options = {"reused": (1, 2, 4, 7), "solver": solver}
    alone = [sample(mova, DUAL, (seed,), **options) for seed in (3, 4)]
    assert not equal(*alone)
    after = sample(mova, DUAL, (4,), **options)
    together = sample(mova, DUAL, (3, 4), **options)
    assert equal(after, alone[1])
    for i in range(2):
        for x, y in zip(together, alone[i], strict=True):
            assert torch.allclose(x[i : i + 1], y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"solver": "unipc"}, {"batch_guidance": False}])
def test_streamed_layers_come_in_the_loop_s_order(mova, options):
    options = {"reused": (1, 2, 4, 7), **options}
    expected = sample(mova, DUAL, **options)
    streamed = copy.deepcopy(mova).requires_grad_(False)
    layers = StreamedModel(streamed, lambda units: HostArena(units, torch.device("cpu")), torch.device("cpu"))
    assert equal(sample(streamed, DUAL, **options), expected)
    assert layers.stream.report().unforeseen == 0


def test_nothing_is_reused_beyond_an_expert_nor_where_guidance_changes(mova):
    for guidance, step in (
        (TEXT, 0),
        (TEXT, LAST_OF_HIGH + 1),
        (replace(TEXT, begin=0.25), 2),
        (replace(TEXT, end=0.5), 4),
    ):
        with pytest.raises(MovaError, match=f"step {step + 1} cannot reuse the video of the step before"):
            sample(mova, guidance, reused=(step,))
    with pytest.raises(MovaError, match="there are 8 steps"):
        sample(mova, reused=(8,))


def test_where_nothing_can_be_reused_is_said(mova):
    with pytest.raises(MovaError, match="solver heun corrects each step .* take euler or unipc"):
        sample(mova, reused=(2,), solver="heun")
    video = GivenLatents.whole(draw_noise(mova.config, (8,), mova.config.clip).video)
    with pytest.raises(MovaError, match="are for videos that are made"):
        sample(mova, given=replace(conditions(mova), video=video), reused=(2,))
    pooled = copy.deepcopy(mova)
    pooled.config = replace(mova.config, bridge=replace(mova.config.bridge, pooled_adaln=True))
    with pytest.raises(MovaError, match="pooled variant reads the video at every step"):
        sample(pooled, reused=(2,))
