"""The denoising loop: seeds, batches, guidance, experts, the given first frame.

The reference's recorded trajectory goes through the same loop in the parity suite.
"""

import copy
import itertools

import pytest
import torch

from mova_engine.config.memory import MemoryConfig
from mova_engine.config.recipes import load_config
from mova_engine.config.stages import EXPERTS, stages
from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import LoopOptions, denoise, draw_noise
from mova_engine.inference.velocities import Conditions, Latents
from mova_engine.memory.residency import Part, Residency
from mova_engine.memory.streaming import StreamedModel
from mova_engine.memory.weight_sources import HostArena
from mova_engine.models.modality import modalities
from mova_engine.models.mova import dual_tower_forward

STEPS = Schedule().inference(6)
VELOCITY = Prediction()
NONE = Guidance("none")


def conditions(mova, batch: int, seed: int = 1) -> Conditions:
    generator = torch.Generator().manual_seed(seed)
    t, h, w = mova.config.clip.latent_shape
    image = torch.randn(batch, 16, t, h, w, generator=generator)
    text, empty = torch.randn(2, batch, 12, 16, generator=generator)
    return Conditions(first_frame_condition(image), text, empty)


def sample(mova, guidance=NONE, *, seeds=(3,), given=None, steps=STEPS, prediction=VELOCITY, **kwargs) -> Latents:
    noise = draw_noise(mova.config, seeds, mova.config.clip)
    return denoise(mova, given or conditions(mova, len(seeds)), noise, steps, guidance, prediction, **kwargs)


def assert_same(a: Latents, b: Latents, tolerance: float = 1e-5) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() <= tolerance * y.abs().max()


def differ(a: Latents, b: Latents) -> bool:
    """Both modalities differ by far more than rounding."""
    return all((x - y).abs().max() > 1e-2 * y.abs().max() for x, y in zip(a, b, strict=True))


def test_a_seed_decides_the_noise_whatever_its_neighbours(mova):
    alone, among = draw_noise(mova.config, [7], mova.config.clip), draw_noise(mova.config, [1, 7, 2], mova.config.clip)
    for x, y in zip(alone, among, strict=True):
        assert torch.equal(x[0], y[1])
        assert not torch.equal(y[0], y[1])
        assert abs(y.mean()) < 0.1
        assert abs(y.std() - 1) < 0.05
    torch.rand(3)  # the default generator plays no part
    assert torch.equal(alone.video, draw_noise(mova.config, [7], mova.config.clip).video)


@pytest.mark.parametrize("form", ["none", "text", "text_bridge", "dual"])
def test_a_clip_does_not_depend_on_its_batch(mova, form):
    guidance, given = Guidance(form, 3.0, 2.0), conditions(mova, 3)
    together = sample(mova, guidance, seeds=(4, 9, 2), given=given)
    for i, seed in enumerate((4, 9, 2)):
        one = Conditions(*(x[i : i + 1] for x in (given.condition, given.text, given.empty_text)))
        assert_same(sample(mova, guidance, seeds=(seed,), given=one), Latents(*(x[i : i + 1] for x in together)))


def test_seed_text_image_and_bridge_all_matter(mova):
    base, given = sample(mova), conditions(mova, 1)
    assert_same(sample(mova), base, 0.0)
    assert differ(sample(mova, seeds=(4,)), base)
    other = conditions(mova, 1, seed=2)
    assert differ(sample(mova, given=Conditions(given.condition, other.text, given.empty_text)), base)
    assert differ(sample(mova, given=Conditions(other.condition, given.text, given.empty_text)), base)
    assert_same(sample(mova, given=Conditions(given.condition, given.text, other.text)), base, 0.0)
    assert differ(sample(mova, Guidance("text_bridge", 0.0)), sample(mova, Guidance("dual", 0.0, 1.0)))


def test_guidance_forms_reduce_to_each_other(mova):
    base = sample(mova)
    for form in ("text", "text_bridge", "dual"):
        assert_same(sample(mova, Guidance(form, 1.0, 1.0)), base)
    assert_same(sample(mova, Guidance("dual", 4.0, 1.0)), sample(mova, Guidance("text", 4.0)))
    assert_same(sample(mova, Guidance("dual", 4.0, 4.0)), sample(mova, Guidance("text_bridge", 4.0)))
    given = conditions(mova, 1)
    empty = Conditions(given.condition, given.empty_text, given.empty_text)
    assert_same(sample(mova, Guidance("text", 0.0)), sample(mova, given=empty))
    assert differ(sample(mova, Guidance("text", 4.0)), base)
    assert differ(sample(mova, Guidance("dual", 1.0, 4.0)), base)


@pytest.mark.parametrize(("form", "batches"), [("none", [1]), ("text", [2]), ("text_bridge", [1, 1]), ("dual", [1, 2])])
def test_evaluations_share_a_forward_where_they_can(mova, monkeypatch, form, batches):
    seen = []

    def spy(*args, **kwargs):
        seen.append((args[2] is not None, args[3].batch))
        return dual_tower_forward(*args, **kwargs)

    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", spy)
    shared = sample(mova, Guidance(form, 3.0, 2.0))
    assert sorted(n for _, n in seen[: len(batches)]) == batches
    assert len(seen) == len(batches) * len(STEPS.experts)
    seen.clear()
    single = sample(mova, Guidance(form, 3.0, 2.0), options=LoopOptions(batch_guidance=False))
    assert {n for _, n in seen} == {1}
    assert len(seen) == Guidance(form).evaluations * len(STEPS.experts)
    assert_same(shared, single)


@pytest.mark.parametrize("batch_guidance", [True, False])
def test_branches_of_a_streamed_model_pass_each_layer_while_it_is_there(mova, batch_guidance):
    guidance, options = Guidance("dual", 3.0, 2.0), LoopOptions(batch_guidance=batch_guidance)
    expected = sample(mova, guidance, options=options)
    streamed = copy.deepcopy(mova).requires_grad_(False)
    layers = StreamedModel(streamed, lambda units: HostArena(units, torch.device("cpu")), torch.device("cpu"))
    assert_same(sample(streamed, guidance, options=options), expected, 0.0)
    # No layer comes twice in a step, in whose two or three forwards it is used.
    report = layers.stream.report()
    assert report.unforeseen == 0 and report.copies <= layers.layers * len(STEPS.experts)


@pytest.mark.parametrize("count", [6, 25, 50])
def test_experts_switch_at_the_boundary(mova, monkeypatch, count):
    served = []

    def spy(video_dit, *args, **kwargs):
        served.append(0 if video_dit is mova.video_dit else 1)
        return dual_tower_forward(video_dit, *args, **kwargs)

    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", spy)
    steps = Schedule().inference(count)
    reported = []
    sample(mova, steps=steps, on_step=lambda step: reported.append(step.expert))
    high = {6: 2, 25: 9, 50: 18}[count]
    assert served == reported == [0] * high + [1] * (count - high)


def test_one_expert_serves_all_steps_and_offloading_changes_nothing(mova):
    base = sample(mova)
    assert_same(sample(mova, residency=experts(mova)), base, 0.0)
    mova.video_dit_2 = None
    assert differ(sample(mova), base)


def experts(mova) -> Residency:
    parts = [Part(name, getattr(mova, name).requires_grad_(False)) for name in EXPERTS]
    return Residency("cpu", parts, stages(MemoryConfig(expert="host")))


def test_a_residency_holds_one_expert_at_a_time(mova):
    residency = experts(mova)
    sample(mova, residency=residency)
    moves = [(event.part, event.what) for event in residency.report().events]
    assert moves == [(name, what) for name in EXPERTS for what in ("loaded", "evicted")]
    assert len(residency.report().peak) == 1


def test_a_clean_first_frame_follows_its_noise_level(mova):
    given, states = conditions(mova, 2), []
    noise = draw_noise(mova.config, (3, 4), mova.config.clip)
    options = LoopOptions(clean_first_frame=True)
    out = sample(mova, seeds=(3, 4), given=given, options=options, on_step=lambda step: states.append(step.state))
    image = given.condition[:, 4:, 0]
    assert torch.equal(out.video[:, :, 0], image)
    for state, sigma in zip(states, STEPS.video_sigmas[1:].tolist(), strict=True):
        expected = (1 - sigma) * image + sigma * noise.video[:, :, 0]
        assert (state.video[:, :, 0] - expected).abs().max() < 1e-6
    assert differ(sample(mova, seeds=(3, 4), given=given), out)


def test_steps_are_exact_euler_steps_of_the_reported_velocities(mova):
    noise, steps = draw_noise(mova.config, (3,), mova.config.clip), []
    out = sample(mova, Guidance("text", 2.0), on_step=steps.append)
    video, audio = noise
    for i, step in enumerate(steps):
        video = video + step.velocity.video * (STEPS.video_sigmas[i + 1] - STEPS.video_sigmas[i]).item()
        audio = audio + step.velocity.audio * (STEPS.audio_sigmas[i + 1] - STEPS.audio_sigmas[i]).item()
    assert_same(Latents(video, audio), out)
    assert out.video.dtype == out.audio.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 2, 8, 16, 50, 200])
def test_a_network_that_predicts_x0_and_knows_it_arrives_there(mova, monkeypatch, count):
    target, shipped = draw_noise(mova.config, (11,), mova.config.clip), load_config("nano").diffusion
    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", lambda *args, **kwargs: tuple(target))
    out = sample(mova, steps=Schedule.of(shipped).inference(count), prediction=Prediction.of(shipped))
    assert_same(out, target)


def test_more_steps_come_nearer_to_where_the_flow_leads(mova, monkeypatch):
    """Data of which the best x0 network, the flow and its end are known: normal, of deviation s.

    x0(x_t) = (1 - sigma) s^2 x_t / ((1 - sigma)^2 s^2 + sigma^2), and the flow takes noise z to s z.
    """
    deviation, shipped, channels = 0.6, load_config("nano").diffusion, mova.config.video.out_dim

    def best(video_dit, audio_dit, bridge, video, audio, **kwargs):
        def clean(x, timestep):
            sigma = (timestep / 1000).view(-1, *[1] * (x.ndim - 1))
            signal = (1 - sigma) * deviation**2
            return signal * x / ((1 - sigma) * signal + sigma**2)

        return clean(video.latents[:, :channels], video.timestep), clean(audio.latents, audio.timestep)

    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", best)
    noise, errors = draw_noise(mova.config, (3,), mova.config.clip), []
    for count in (8, 16, 50, 200):
        out = sample(mova, steps=Schedule.of(shipped).inference(count), prediction=Prediction.of(shipped))
        ends = [(x, deviation * z) for x, z in zip(out, noise, strict=True)]
        errors.append([float((x - end).norm() / end.norm()) for x, end in ends])
    for coarse, fine in itertools.pairwise(errors):
        assert all(after < 0.6 * before for before, after in zip(coarse, fine, strict=True)), errors
    assert max(errors[-1]) < 0.02, errors


def test_states_stay_float32_with_bfloat16_towers(mova):
    steps = []
    mova.to(torch.bfloat16)
    sample(mova, Guidance("text", 2.0), on_step=steps.append)
    assert {x.dtype for step in steps for x in (*step.state, *step.velocity)} == {torch.float32}
    assert any((step.state.video != step.state.video.bfloat16().float()).any() for step in steps)


def test_training_can_follow_sampling_in_one_process(mova):
    """Tables cached while sampling must be usable in a backward."""
    sample(mova)
    noise, given = draw_noise(mova.config, (3,), mova.config.clip), conditions(mova, 1)
    visual = torch.cat([noise.video, given.condition], 1)
    time = torch.tensor([500.0])
    towers = mova.video_dit, mova.audio_dit, mova.dual_tower_bridge
    video, audio = dual_tower_forward(*towers, *modalities(visual, noise.audio, given.text, time, time))
    (video.sum() + audio.sum()).backward()
    assert mova.dual_tower_bridge.audio_to_video_conditioners["0"].inner.k.weight.grad.abs().max() > 0


def test_latents_that_are_not_finite_are_an_error(mova):
    with torch.no_grad():
        mova.audio_dit.head.head.weight.fill_(float("inf"))
    with pytest.raises(MovaError, match="latents that are not finite"):
        sample(mova)
