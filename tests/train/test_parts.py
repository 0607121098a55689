"""The parts of a step: draws, learning rates, weights and their average, losses."""

import math
from dataclasses import replace
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch

from mova_engine.backend import get_backend
from mova_engine.config.diffusion import GIVEN, DiffusionSettings, LossWeights
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import get_preset
from mova_engine.config.optim_settings import OptimSettings
from mova_engine.config.recipes import load_config
from mova_engine.diffusion.loss import Share, velocity_loss
from mova_engine.diffusion.schedule import LOW_NOISE, Schedule
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.train.batch import LatentBatch
from mova_engine.train.masters import Weights
from mova_engine.train.micro_batch import Preparer
from mova_engine.train.optimizer import build_optimizer, lr_factor, optimizer_tensors, set_lr
from mova_engine.train.step import Updater, micro_losses
from mova_engine.train.timestep_sampling import draw_noise, draw_step, generator

OPS = bind(get_backend("cpu"))
NOTHING_GIVEN = dict.fromkeys(GIVEN, 0.0)


@pytest.fixture
def model() -> Mova:
    mova = Mova(get_preset("nano"), OPS)
    mova.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # heads and the bridge's outputs start at zero, which hides gradients
        for parameter in mova.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return mova


def latents(clips: int, seed: int = 0) -> LatentBatch:
    g = torch.Generator().manual_seed(seed)
    shapes = {"audio": (128, 69), "text": (12, 64), "video": (16, 9, 6, 6), "image": (16, 9, 6, 6)}
    tensors = {name: torch.randn(clips, *shape, generator=g) for name, shape in shapes.items()}
    return LatentBatch(empty_text=torch.zeros(1, 12, 64), ids=tuple(map(str, range(clips))), **tensors)


def part(batch: LatentBatch, first: int, count: int) -> LatentBatch:
    here = slice(first, first + count)
    tensors = {name: getattr(batch, name)[here] for name in ("audio", "text", "video", "image")}
    return LatentBatch(empty_text=batch.empty_text, ids=batch.ids[here], **tensors)


def test_a_steps_draws_depend_on_seed_and_step_alone():
    settings = DiffusionSettings(text_dropout=0.5)
    one, again = draw_step(settings, 2, 7, 3, 6), draw_step(settings, 2, 7, 3, 6)
    other = draw_step(settings, 2, 7, 4, 6)
    assert torch.equal(one.times.video_sigma, again.times.video_sigma) and torch.equal(one.drop_text, again.drop_text)
    assert not torch.equal(one.times.video_sigma, other.times.video_sigma)
    assert torch.equal(one.part(2, 3).times.audio_timestep, one.times.audio_timestep[2:5])


def test_noise_belongs_to_the_clips_place_in_the_step_whatever_the_split():
    shapes = ((128, 5), (16, 3, 2, 2))
    whole = draw_noise(shapes, 0, 11, 0, 5)
    halves = [draw_noise(shapes, 0, 11, 0, 2), draw_noise(shapes, 0, 11, 2, 3)]
    for index in range(2):
        assert torch.equal(whole[index], torch.cat([half[index] for half in halves]))
    assert not torch.equal(whole[0][0], whole[0][1])
    assert abs(float(whole[0].mean())) < 0.1 and abs(float(whole[0].std()) - 1) < 0.1


def test_experts_are_drawn_by_their_share_and_serve_their_interval():
    settings = DiffusionSettings()
    draws = [draw_step(settings, 2, 0, step, 2) for step in range(400)]
    share = sum(draw.expert == 0 for draw in draws) / len(draws)
    assert share == pytest.approx(Schedule.of(settings).expert_probability(0), abs=0.08)
    for draw in draws:
        assert all((t >= 900) == (draw.expert == 0) for t in draw.times.video_timestep.tolist())
    assert draw_step(settings, 1, 0, 0, 2).expert is None


def test_text_is_dropped_at_the_configured_rate():
    dropped = torch.cat([draw_step(DiffusionSettings(text_dropout=0.3), 1, 0, s, 8).drop_text for s in range(250)])
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=0.04)
    batch = latents(2)
    context = batch.context(torch.tensor([True, False]))
    assert torch.equal(context[0], batch.empty_text[0]) and torch.equal(context[1], batch.text[1])


def test_the_learning_rate_warms_up_holds_and_falls_as_a_cosine():
    settings = OptimSettings(warmup=10, decay_start=0.4, final_lr=0.1)
    course = [lr_factor(step, 100, settings) for step in range(100)]
    assert course[0] == pytest.approx(0.1) and course[9] == 1.0
    assert set(course[9:40]) == {1.0}
    assert course[70] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert course[99] == pytest.approx(0.1, abs=1e-3) and all(a >= b for a, b in pairwise(course[40:]))
    assert {lr_factor(step, 100, OptimSettings(decay_start=1.0)) for step in (0, 50, 99)} == {1.0}


def test_bridge_and_towers_have_their_own_learning_rates(model):
    weights = Weights(model, torch.float32)
    optimizer = build_optimizer(weights.masters, OptimSettings(lr=1e-5, bridge_lr=2e-5), OPS)
    rates = set_lr(optimizer, 0.5)
    assert rates == {"video_dit": 5e-6, "audio_dit": 5e-6, "dual_tower_bridge": 1e-5}
    held = {id(p) for group in optimizer.param_groups if group["name"] == "dual_tower_bridge" for p in group["params"]}
    assert held == {id(p) for p in model.dual_tower_bridge.parameters()}


def test_the_average_follows_its_formula_and_gives_the_weights_back(model):
    weights = Weights(model, torch.float32, ema_decay=0.9)
    parameter = model.audio_dit.head.head.weight
    start = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(1.0)
    weights.average()
    with weights.averaged():
        torch.testing.assert_close(model.audio_dit.head.head.weight.detach(), start + 0.1)
    assert torch.equal(model.audio_dit.head.head.weight.detach(), start + 1.0)


def test_bf16_keeps_float32_masters_and_sums_gradients_in_float32(model):
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = Weights(model, torch.bfloat16, ema_decay=0.5)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(w.tensor, exact[w.name]) for w in weights.masters)
    bias = model.audio_dit.head.head.bias
    big, little = torch.ones_like(bias), torch.full_like(bias, 1e-3)
    (bias * big).sum().backward()
    (bias * little).sum().backward()  # 1 + 0.001 is 1 in bfloat16
    master = next(w.tensor for w in weights.masters if w.name == "audio_dit.head.head.bias")
    assert bias.grad is None
    torch.testing.assert_close(master.grad, torch.full_like(master, 1 + float(little[0])))
    master.add_(1e-4)
    weights.renew_copies()
    weights.average()
    assert torch.equal(bias.detach(), master.to(torch.bfloat16))
    with weights.averaged():
        place = [w.name for w in weights.masters].index("audio_dit.head.head.bias")
        assert torch.equal(bias.detach(), weights.ema[place].bfloat16())
    assert torch.equal(bias.detach(), master.to(torch.bfloat16))


def run_updates(model: Mova, steps: int = 1, **overrides) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """Steps on the same eight clips with plain gradient descent; returns values of each step and the weights after."""
    config = load_config("nano", **overrides)
    weights = Weights(model, torch.float32)
    descent = torch.optim.SGD([{"params": weights.tensors(), "name": "all", "peak_lr": 0.05}], lr=0.05)
    updater = Updater(config, model, weights, descent, OPS)
    size, eight = config.loader.batch, latents(8)
    parts = [part(eight, first, size) for first in range(0, 8, size)]
    micro = chain.from_iterable(parts for _ in range(steps))
    ready = updater.prepared(0, micro, lambda batch: batch)
    values = [updater.step(step, ready, detailed=True).values for step in range(steps)]
    return values, {w.name: w.tensor.detach().clone() for w in weights.masters}


def test_accumulation_equals_the_big_batch(model):
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole, after_whole = run_updates(model, loader={"batch": 8}, global_batch_size=8)
    model.load_state_dict(start)
    split, after_split = run_updates(model, loader={"batch": 2}, global_batch_size=8)
    assert split[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    assert split[0]["grad_norm"] == pytest.approx(whole[0]["grad_norm"], rel=1e-4)
    for name, tensor in after_whole.items():
        torch.testing.assert_close(after_split[name], tensor, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(after_whole[name], start[name]) for name in start)


def heard_batches(clips: LatentBatch, heard: list[int], size: int) -> list[dict]:
    """Micro-batches as a loader gives them."""
    return [
        {"clips": part(clips, first, size), "heard": torch.tensor(heard[first : first + size]).float()[:, None]}
        for first in range(0, len(clips.ids), size)
    ]


def masked_update(model: Mova, heard: list[int], size: int) -> tuple[dict, dict[str, torch.Tensor]]:
    """One step that learns the sound of some clips; returns its values and the gradients."""
    loader, optim = {"batch": size, "silent_audio": "mask"}, {"clip": 1e9}
    config = load_config("nano", loader=loader, global_batch_size=len(heard), optim=optim, diffusion=NOTHING_GIVEN)
    weights = Weights(model, torch.float32)
    descent = torch.optim.SGD([{"params": weights.tensors(), "name": "all", "peak_lr": 0.0}], lr=0.0)
    batches = iter(heard_batches(latents(len(heard)), heard, size))
    updater = Updater(config, model, weights, descent, OPS)
    values = updater.step(0, updater.prepared(0, batches, lambda batch: batch["clips"])).values
    return values, {w.name: w.tensor.grad.clone() for w in weights.masters if w.tensor.grad is not None}


@pytest.mark.parametrize("heard", [[1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
def test_a_masked_clips_sound_is_not_learned(model, heard):
    """The gradient is that of all clips' video loss and of the heard ones' audio loss, each a mean over its own clips,
    however the step is divided; each clip's own gradient is computed here by itself.
    """
    config = load_config("nano", diffusion=NOTHING_GIVEN)
    whole = latents(4)
    draw = draw_step(config.diffusion, 1, config.seed, 0, 4)
    noise = draw_noise(whole.noise_shapes(), config.seed, 0, 0, 4)
    model.zero_grad()
    expected = {"video": 0.0, "audio": 0.0}
    for k in range(4):
        losses = micro_losses(model, part(whole, k, 1), draw.part(k, 1), tuple(x[k : k + 1] for x in noise), config)
        share = heard[k] / max(sum(heard), 1)
        (losses.video / 4 + config.diffusion.audio_weight * share * losses.audio).backward()
        expected["video"] += float(losses.video.detach()) / 4
        expected["audio"] += float(losses.audio.detach()) * share
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for size in (4, 2):
        values, found = masked_update(model, heard, size)
        assert found.keys() == gradients.keys() and values["heard"] == pytest.approx(sum(heard) / 4)
        assert values["loss/video"] == pytest.approx(expected["video"], rel=1e-5)
        assert ("loss/audio" in values) == any(heard)
        assert not any(heard) or values["loss/audio"] == pytest.approx(expected["audio"], rel=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("given, learned", [("given_video", "audio"), ("given_audio", "video")])
def test_what_is_given_in_all_clips_of_a_step_has_no_loss_among_the_metrics(model, given, learned):
    config = load_config("nano", loader={"batch": 2}, global_batch_size=2, diffusion={**NOTHING_GIVEN, given: 1.0})
    weights = Weights(model, torch.float32)
    descent = torch.optim.SGD([{"params": weights.tensors(), "name": "all", "peak_lr": 0.0}], lr=0.0)
    updater = Updater(config, model, weights, descent, OPS)
    values = updater.step(0, updater.prepared(0, iter([latents(2)]), lambda batch: batch)).values
    assert [name for name in values if name in ("loss/video", "loss/audio")] == [f"loss/{learned}"]


def test_the_norm_of_all_gradients_is_that_of_the_towers_together(model):
    (values,), _ = run_updates(model, loader={"batch": 8})
    towers = [values[f"grad_norm/{name}"] for name in ("video_dit", "audio_dit", "dual_tower_bridge")]
    assert values["grad_norm"] == pytest.approx(math.hypot(*towers), rel=1e-5)
    assert values["loss"] == pytest.approx(values["loss/video"] + 4 * values["loss/audio"], rel=1e-5)


def losses_of(mova: Mova, batch: LatentBatch, **overrides):
    config = load_config("nano", **overrides)
    draw = draw_step(config.diffusion, 1, 0, 0, len(batch.ids))
    return micro_losses(mova, batch, draw, draw_noise(batch.noise_shapes(), 0, 0, 0, len(batch.ids)), config)


def test_a_step_that_is_not_finite_changes_no_bit_and_what_follows_is_as_without_it(model):
    """The optimizer skips it on the device: the host learns of it when all of the step has been launched."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def trained(steps: list[int]) -> tuple[list[bool], list[dict[str, torch.Tensor]]]:
        """Which of the steps were taken, and what each left. The clips of step 1 are not finite."""
        model.load_state_dict(start)
        config = load_config("nano", loader={"batch": 2}, global_batch_size=2, optim={"ema": 0.9})
        weights = Weights(model, torch.float32, 0.9)
        optimizer = build_optimizer(weights.masters, config.optim, OPS)
        assert optimizer.skips_on_device
        updater, taken, left = Updater(config, model, weights, optimizer, OPS), [], []
        prepare = updater.preparer(lambda batch: batch)
        for step in steps:
            clips = latents(2)
            if step == 1:
                clips = replace(clips, audio=clips.audio * math.inf)
            taken.append(updater.step(step, iter([prepare(step, clips)])).taken)
            state = optimizer_tensors(optimizer, weights.masters) | {w.name: w.tensor for w in weights.masters}
            state |= {f"average {w.name}": x for w, x in zip(weights.masters, weights.ema, strict=True)}
            left.append({name: x.detach().clone() for name, x in state.items()})
        return taken, left

    taken, (first, skipped, last) = trained([0, 1, 2])
    assert taken == [True, False, True]
    assert all(torch.equal(skipped[name], x) for name, x in first.items()) and skipped.keys() == first.keys()
    assert any(not torch.equal(last[name], x) for name, x in first.items())
    _, (_, without) = trained([0, 2])
    assert all(torch.equal(last[name], x) for name, x in without.items())


def test_a_perfect_x0_network_has_no_loss_where_a_velocity_network_has(model, monkeypatch):
    batch = latents(2)
    monkeypatch.setattr(
        "mova_engine.models.mova.dual_tower_forward", lambda *args, **kwargs: (batch.video, batch.audio)
    )
    perfect = losses_of(model, batch, diffusion={"prediction_type": "x0"})
    wrong = losses_of(model, batch, diffusion={"prediction_type": "velocity"})
    assert float(perfect.total) == 0.0 and float(wrong.video) > 0.1 and float(wrong.audio) > 0.1


def test_a_perfect_velocity_network_has_no_loss(model, monkeypatch):
    batch = latents(2)
    audio_noise, video_noise = draw_noise(batch.noise_shapes(), 0, 0, 0, 2)
    exact = (video_noise - batch.video, audio_noise - batch.audio)
    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", lambda *args, **kwargs: exact)
    assert float(losses_of(model, batch, diffusion={"prediction_type": "velocity"}).total) < 1e-10


@torch.no_grad()
def test_the_given_first_frame_counts_only_if_asked_to(model):
    for parameter in model.parameters():
        parameter.zero_()  # a blind network: what it is shown cannot matter, only what it is compared with
    batch = latents(2)
    shifted = LatentBatch(batch.audio, batch.text, batch.empty_text, batch.video.clone(), batch.image, batch.ids)
    shifted.video[:, :, 0] += 5
    for skip in (True, False):
        before, after = (losses_of(model, b, diffusion={"skip_first_frame": skip}).video for b in (batch, shifted))
        assert torch.equal(before, after) == skip


def test_without_a_bridge_its_weights_take_no_part(model):
    losses_of(model, latents(2), model={"bridge": False}).total.backward()
    assert all(parameter.grad is None for parameter in model.dual_tower_bridge.parameters())
    assert any(parameter.grad is not None for parameter in model.audio_dit.parameters())


def test_generators_of_different_purposes_are_different():
    keys = (("a",), ("b",), ("a", 1), ("a", 11), ("a1", 1))
    draws = {float(torch.rand((), generator=generator(0, *key))) for key in keys}
    assert len(draws) == 5 and float(torch.rand((), generator=generator(0, "a"))) in draws


def test_given_modalities_have_no_noise_and_no_loss():
    settings = DiffusionSettings(given_video=0.25, given_audio=0.5, timestep_sampling="independent")
    draw, plain = (draw_step(each, 1, 0, 3, 4000) for each in (settings, DiffusionSettings()))
    video, audio = draw.times.video_sigma == 0, draw.times.audio_sigma == 0
    assert video.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert audio.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not (video & audio).any()
    assert torch.equal(draw.times.video_timestep == 0, video)
    assert torch.equal(draw.video_factors == 0, video) and torch.equal(draw.audio_factors == 0, audio)
    assert draw.video_factors.mean().item() == pytest.approx(1) == draw.audio_factors.mean().item()
    # All else is drawn as without.
    assert torch.equal(draw.times.video_sigma[~video], plain.times.video_sigma[~video])
    assert torch.equal(draw.drop_text, plain.drop_text)
    part = draw.part(8, 4)
    assert torch.equal(part.video_factors, draw.video_factors[8:12])
    # The expert of high noise sees no clean video.
    for step in range(40):
        drawn = draw_step(settings, 2, 0, step, 50)
        assert (drawn.times.video_sigma == 0).any() == (drawn.expert == LOW_NOISE)


def test_of_clips_that_go_on_from_others_the_rest_is_drawn_as_without():
    settings = DiffusionSettings(given_video=0.25, given_start=0.5)
    draw, plain = (draw_step(each, 1, 0, 3, 4000) for each in (settings, DiffusionSettings(given_video=0.25)))
    assert draw.starts.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not (draw.starts & (draw.times.video_sigma == 0)).any()
    assert torch.equal(draw.times.video_sigma, plain.times.video_sigma)
    assert torch.equal(draw.audio_factors, plain.audio_factors)
    assert torch.equal(draw.part(8, 4).starts, draw.starts[8:12])
    assert plain.starts is None and draw_step(DiffusionSettings(), 1, 0, 3, 4).starts is None


@torch.no_grad()
def test_a_given_beginning_is_seen_clean_and_only_the_rest_is_learned(model, monkeypatch):
    """9 of 33 pictures are 3 of 9 latent frames, and their sound the first 18 of 69 latents of 20 ms."""
    batch, noise = latents(2), draw_noise(((128, 69), (16, 9, 6, 6)), 0, 0, 0, 2)
    config = load_config("nano", diffusion={"given_start": 0.5})
    draw = replace(draw_step(config.diffusion, 1, 0, 0, 2), starts=torch.tensor([True, False]))
    seen = {}

    def spy(video_dit, audio_dit, bridge, video, audio, **_):
        seen.update(video=video, audio=audio)
        return torch.zeros_like(batch.video), torch.zeros_like(batch.audio)

    monkeypatch.setattr("mova_engine.models.mova.dual_tower_forward", spy)
    losses = micro_losses(model, batch, draw, noise, config)
    for name, given in (("video", 3), ("audio", 18)):
        modality, clean = seen[name], getattr(batch, name)
        latent = modality.latents[:, : clean.shape[1]]
        timestep = getattr(draw.times, f"{name}_timestep")
        rows, index = modality.noise_levels()
        assert torch.equal(rows[:, list(index)][0], torch.where(torch.arange(clean.shape[2]) < given, 0, timestep[0]))
        assert (rows[:, list(index)][1] == timestep[1]).all()
        assert torch.equal(latent[0, :, :given], clean[0, :, :given])
        assert far_from(latent[0, :, given:], clean[0, :, given:]) and far_from(latent[1], clean[1])
        # Each clip's loss is the mean over what is learned of it: x0 over max(sigma, 0.25), and no first latent frame.
        sigma = getattr(draw.times, f"{name}_sigma").clamp(min=0.25)
        squares = [clean[0, :, given:] / sigma[0], clean[1, :, 1 if name == "video" else 0 :] / sigma[1]]
        expected = sum(each.square().mean() for each in squares) / 2
        torch.testing.assert_close(getattr(losses, name), expected)


def far_from(a, b):
    return ((a - b).abs() > 1e-3).float().mean() > 0.9


def test_a_beginning_that_no_clip_of_the_step_has_changes_nothing(model):
    batch, noise = latents(2), draw_noise(((128, 69), (16, 9, 6, 6)), 0, 0, 0, 2)
    config = load_config("nano", diffusion={"given_start": 0.5})
    draw = draw_step(config.diffusion, 1, 0, 0, 2)
    none, plain = (
        micro_losses(model, batch, replace(draw, starts=starts), noise, config)
        for starts in (torch.zeros(2, dtype=torch.bool), None)
    )
    torch.testing.assert_close(none.total, plain.total)


def test_losses_are_means_over_the_clips_that_count():
    video, audio = torch.randn(4, 16, 3, 2, 2), torch.randn(4, 128, 5)
    factors = torch.tensor([0.0, 2.0, 2.0, 0.0])
    losses = velocity_loss(
        video, 0 * video, audio, 0 * audio, LossWeights(), video_factors=factors, audio_factors=2 - factors
    )
    torch.testing.assert_close(losses.video, video[1:3].square().mean())
    torch.testing.assert_close(losses.audio, audio[[0, 3]].square().mean())
    own = (torch.arange(3) < 2).float().view(1, 1, 3, 1, 1)
    shares = [
        velocity_loss(video, 0 * video, audio, 0 * audio, LossWeights(), Share(part, 0.5), factors, 2 - factors)
        for part in (own, 1 - own)
    ]
    torch.testing.assert_close(shares[0].total + shares[1].total, losses.total)


def test_steps_without_the_bridge():
    drawn = [draw_step(DiffusionSettings(bridge_dropout=0.3), 1, 0, step, 1).bridge for step in range(400)]
    assert sum(drawn) / 400 == pytest.approx(0.7, abs=0.07)
    assert all(draw_step(DiffusionSettings(), 1, 0, step, 1).bridge for step in range(20))


def test_sound_alone_is_trained_as_if_nothing_were_given():
    """The recipe gives some clips their pictures or sound; the audio task has no pictures, and draws as without."""
    shares, none = (load_config("nano", task="audio", diffusion=given) for given in ({}, NOTHING_GIVEN))
    clips = SimpleNamespace(audio=torch.zeros(8, 1), noise_shapes=lambda: ((2, 3),))
    drawn, expected = (Preparer(c, 1, MeshShape(), 0, lambda batch: clips)(3, {}).draw for c in (shares, none))
    assert shares.diffusion.given > 0
    assert drawn.audio_factors is None
    assert torch.equal(drawn.times.audio_sigma, expected.times.audio_sigma)
