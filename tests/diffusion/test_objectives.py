"""Loss, output conversion, guidance and condition."""

import math

import pytest
import torch

from mova_engine.config.diffusion import LossWeights
from mova_engine.diffusion.conditioning import first_frame_condition, video_input
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.loss import velocity_loss
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule, add_noise
from mova_engine.errors import MovaError


def test_loss_is_the_weighted_sum_of_means():
    video, audio = torch.ones(2, 16, 3, 2, 2), torch.full((2, 128, 5), 2.0)
    losses = velocity_loss(video, 0 * video, audio, 0 * audio, LossWeights(video=1.0, audio=0.5))
    assert (losses.video.item(), losses.audio.item(), losses.total.item()) == (1.0, 4.0, 3.0)


def test_the_first_latent_frame_can_be_left_out():
    video, audio = torch.zeros(1, 16, 3, 2, 2), torch.zeros(1, 128, 5)
    target = video.clone()
    target[:, :, 0] = 7
    assert velocity_loss(video, target, audio, audio, LossWeights(skip_first_frame=True)).video == 0
    assert velocity_loss(video, target, audio, audio, LossWeights()).video > 0
    one = video[:, :, :1]
    with pytest.raises(MovaError, match="nothing of a clip of one latent frame"):
        velocity_loss(one, one, audio, audio, LossWeights(skip_first_frame=True))


@pytest.mark.parametrize("sigma", [0.9, 0.3, 0.1, 0.003])
def test_a_perfect_x0_network_has_no_loss_and_the_right_velocity(sigma):
    prediction, source = Prediction("x0", sigma_floor=0.25), torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 2, 4, 5, generator=source, dtype=torch.float64)
    sigmas = torch.full((2,), sigma, dtype=torch.float64)
    noisy = (1 - sigma) * x + sigma * noise
    ours, wanted = prediction.compared(x, x, noise, noisy, sigmas)
    assert torch.equal(ours, wanted)
    torch.testing.assert_close(wanted, (noise - x) * sigma / max(sigma, 0.25))
    # What the sampler integrates knows no floor.
    velocity = prediction.velocity(x, noisy, sigmas)
    torch.testing.assert_close(velocity, noise - x)
    torch.testing.assert_close(noisy - sigma * velocity, x)


def test_an_error_of_x0_counts_by_the_floor_below_it():
    prediction, x, noise = Prediction("x0", sigma_floor=0.25), torch.zeros(4, 3), torch.ones(4, 3)
    sigmas = torch.tensor([0.01, 0.25, 0.5, 1.0])
    ours, wanted = prediction.compared(x + 1, x, noise, add_noise(x, noise, sigmas), sigmas)
    weights = (ours - wanted).square().mean(dim=1)
    torch.testing.assert_close(weights, torch.tensor([16.0, 16.0, 4.0, 1.0]))


def test_no_step_begins_at_sigma_0():
    x = torch.zeros(1, 3)
    with pytest.raises(MovaError, match="no velocity at sigma 0"):
        Prediction("x0").velocity(x, x, torch.zeros(1))
    with pytest.raises(MovaError, match="min_time must lie between 0 and 1, got 0"):
        Schedule(min_time=0.0)


def test_a_velocity_network_is_taken_as_it_is():
    out, noisy, x, noise = (torch.randn(2, 4) for _ in range(4))
    sigma = torch.tensor([0.5, 0.5])
    assert Prediction().velocity(out, noisy, sigma) is out
    ours, wanted = Prediction().compared(out, x, noise, noisy, sigma)
    assert ours is out and torch.equal(wanted, noise - x)


class Model:
    """Three known evaluations, counted."""

    def __init__(self):
        self.calls = []
        self.values = {(True, True): 7.0, (False, True): 3.0, (False, False): 1.0}

    def __call__(self, with_text, with_bridge):
        self.calls.append((with_text, with_bridge))
        value = self.values[with_text, with_bridge]
        return torch.full((1,), value), torch.full((1,), 10 * value)


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (Guidance("none"), 7.0),
        (Guidance("text", 5.0), 3 + 5 * (7 - 3)),
        (Guidance("text_bridge", 5.0), 1 + 5 * (7 - 1)),
        (Guidance("dual", 5.0, 2.0), 1 + 2 * (3 - 1) + 5 * (7 - 3)),
        (Guidance("dual", 1.0, 1.0), 7.0),
        (Guidance("dual", 5.0, 1.0), 3 + 5 * (7 - 3)),
        (Guidance("dual", 4.0, 4.0), 1 + 4 * (7 - 1)),
    ],
)
def test_guidance_forms(guidance, expected):
    model = Model()
    video, audio = guidance.combine(model)
    assert video.item() == pytest.approx(expected)
    assert audio.item() == pytest.approx(10 * expected)
    assert len(model.calls) == guidance.evaluations


def test_each_modality_may_have_scales_of_its_own():
    video, audio = Guidance("dual", 5.0, 2.0, audio_text_scale=3.0, audio_bridge_scale=4.0).combine(Model())
    assert video.item() == pytest.approx(1 + 2 * (3 - 1) + 5 * (7 - 3))
    assert audio.item() == pytest.approx(10 * (1 + 4 * (3 - 1) + 3 * (7 - 3)))


def test_guidance_outside_its_steps_is_none():
    guidance = Guidance("dual", begin=0.2, end=0.6)
    assert [guidance.at(level / 5).form for level in range(5)] == ["none", "dual", "dual", "none", "none"]


def test_rescaled_velocities_have_the_deviation_of_the_unguided():
    full, empty = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))

    def evaluate(with_text, with_bridge):
        return (full if with_text else empty,) * 2

    plain, half, whole = (Guidance("text", 5.0, rescale=share).combine(evaluate)[0] for share in (0.0, 0.5, 1.0))
    torch.testing.assert_close(whole.std((1, 2)), full.std((1, 2)))
    torch.testing.assert_close(half, (plain + whole) / 2)
    assert (plain.std((1, 2)) > 2 * full.std((1, 2))).all()


def test_guided_velocities_are_float32():
    guided = Guidance("text", 5.0).combine(lambda t, b: (torch.ones(1, dtype=torch.bfloat16),) * 2)
    assert [v.dtype for v in guided] == [torch.float32] * 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Guidance("txt"), "unknown guidance 'txt'. Did you mean 'text'"),
        (lambda: Prediction("velocty"), "unknown prediction 'velocty'. Did you mean 'velocity'"),
        (lambda: Prediction("x0", 0.0), "sigma_floor must be positive"),
        (lambda: Prediction("x0", math.nan), "sigma_floor must be positive, got nan"),
        (lambda: Guidance("text", math.nan), "text_scale must be a finite number, got nan"),
        (lambda: Guidance("dual", 5.0, -math.inf), "bridge_scale must be a finite number, got -inf"),
        (lambda: Guidance("text", audio_text_scale=math.nan), "audio_text_scale must be a finite number, got nan"),
        (lambda: Guidance("text", rescale=1.5), "guidance rescale must lie between 0 and 1, got 1.5"),
        (lambda: Guidance("text", begin=0.6, end=0.6), "0 <= begin < end <= 1, got 0.6 and 0.6"),
        (lambda: Schedule(video_shift=math.nan), "video_shift must be positive, got nan"),
        (lambda: Schedule(audio_shift=math.inf), "audio_shift must be positive, got inf"),
        (lambda: first_frame_condition(torch.zeros(1, 16, 4, 4)), "image latents must be"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(MovaError, match=message):
        build()


def test_condition_marks_the_given_frames():
    condition = first_frame_condition(torch.full((2, 16, 3, 2, 2), 5.0), last_frame=True)
    assert condition.shape == (2, 20, 3, 2, 2)
    assert condition[:, :4, 0].eq(1).all()
    assert condition[:, :3, 1:].eq(0).all()
    assert condition[:, 3, 2].eq(1).all()
    assert condition[:, 3, 1].eq(0).all()
    assert video_input(torch.zeros(2, 16, 3, 2, 2), condition).shape == (2, 36, 3, 2, 2)
