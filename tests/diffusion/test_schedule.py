"""The schedule that trainer and sampler share."""

import math

import pytest
import torch

from mova_engine.diffusion.schedule import HIGH_NOISE, LOW_NOISE, Schedule, add_noise, euler_step, velocity_target
from mova_engine.errors import MovaError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sampling_ends_at_zero_noise_and_starts_at_one():
    steps = Schedule().inference(50)
    assert steps.video_sigmas[0] == 1
    assert steps.video_sigmas[-1] == 0
    assert len(steps.video_sigmas) == 51
    assert (steps.video_sigmas.diff() < 0).all()
    assert steps.experts.index(LOW_NOISE) == 18


def test_each_modality_obeys_its_own_shift():
    steps = Schedule(video_shift=5.0, audio_shift=1.0).inference(10)
    times = torch.linspace(1, 0.003 / 1.002, 10)
    torch.testing.assert_close(steps.audio_sigmas[:-1], times)
    torch.testing.assert_close(steps.video_sigmas[:-1], 5 * times / (1 + 4 * times))


@pytest.mark.parametrize("expert", [HIGH_NOISE, LOW_NOISE])
def test_training_times_stay_inside_the_expert_s_interval(expert):
    schedule = Schedule()
    times = schedule.draw(rng(), 500, expert)
    assert {schedule.expert(t) for t in times.video_timestep.tolist()} == {expert}
    assert 1000 * times.video_sigma.min() >= 1000 * 0.0029


def test_experts_are_drawn_with_the_share_of_their_interval():
    schedule = Schedule()
    shares = [schedule.expert_probability(expert) for expert in (HIGH_NOISE, LOW_NOISE)]
    assert sum(shares) == pytest.approx(1.0)
    # Over the whole interval the timesteps themselves fall to the experts in that proportion.
    drawn = schedule.draw(rng(), 20_000).video_timestep
    assert (drawn >= 900).double().mean().item() == pytest.approx(shares[0], abs=0.015)


def test_paired_times_share_one_draw_and_independent_times_do_not():
    schedule = Schedule(5.0, 1.0)
    paired = schedule.draw(rng(), 64, paired=True)
    s = paired.audio_sigma.double()
    torch.testing.assert_close(paired.video_sigma.double(), 5 * s / (1 + 4 * s), rtol=1e-5, atol=1e-6)
    apart = schedule.draw(rng(), 4000, LOW_NOISE, paired=False)
    correlation = torch.corrcoef(torch.stack([apart.video_sigma, apart.audio_sigma]))[0, 1]
    assert abs(correlation) < 0.06
    # The audio tower serves the whole interval, whichever video expert is trained.
    assert apart.audio_timestep.max() > 950


def test_stratified_draws_cover_the_interval_evenly():
    schedule = Schedule(1.0, 1.0)
    sigmas = schedule.draw(rng(), 8, stratified=True).video_sigma.sort().values
    low = schedule.min_time
    parts = ((sigmas - low) / (1 - low) * 8).floor().long()
    assert parts.tolist() == list(range(8))


def test_draws_are_reproducible():
    a, b = (Schedule().draw(rng(7), 5) for _ in range(2))
    assert torch.equal(a.video_sigma, b.video_sigma)


def test_one_step_along_the_true_velocity_recovers_the_clip():
    x, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    sigma = torch.tensor([0.7, 0.7])
    noisy = add_noise(x, noise, sigma)
    torch.testing.assert_close(euler_step(noisy, velocity_target(x, noise), 0.7, 0.0), x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Schedule(video_shift=0), "video_shift must be positive"),
        (lambda: Schedule(boundary=1.5), "boundary must lie between"),
        (lambda: Schedule().inference(0), "steps must be at least 1"),
    ],
)
def test_impossible_schedules_are_refused(build, message):
    with pytest.raises(MovaError, match=message):
        build()


def test_listed_noise_levels_take_no_shift_and_switch_where_told():
    schedule = Schedule(video_shift=5.0, audio_shift=1.0)
    steps = schedule.listed((1.0, 0.9375, 0.8333, 0.625), switch=1)
    assert steps.video_sigmas.tolist() == pytest.approx([1.0, 0.9375, 0.8333, 0.625, 0.0])
    assert torch.equal(steps.audio_sigmas, steps.video_sigmas)
    assert torch.equal(steps.video_timesteps, 1000 * steps.video_sigmas[:-1])
    assert steps.experts == (HIGH_NOISE, LOW_NOISE, LOW_NOISE, LOW_NOISE)
    assert schedule.listed((1.0, 0.9375, 0.8333)).experts == (HIGH_NOISE, HIGH_NOISE, LOW_NOISE)
    assert schedule.listed((1.0, 0.5), (0.9, 0.2)).audio_sigmas.tolist() == pytest.approx([0.9, 0.2, 0.0])


def test_parts_of_a_step_end_where_the_step_does_and_are_of_one_expert():
    steps = Schedule(boundary=0.9).listed((1.0, 0.6), (1.0, 0.8, 0.5, 0.3))
    assert steps.video_sigmas.tolist() == pytest.approx([1.0, 0.8, 0.6, 0.3, 0.0])
    assert steps.audio_sigmas.tolist() == pytest.approx([1.0, 0.8, 0.5, 0.3, 0.0])
    assert steps.experts == (HIGH_NOISE, HIGH_NOISE, LOW_NOISE, LOW_NOISE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((),), "sigmas must be noise levels"),
        (((0.5, 0.7),), "sigmas must be noise levels of at most 1 that fall"),
        (((1.0, 0.0),), "without the 0 at the end"),
        (((1.2, 0.5),), "at most 1"),
        (((math.nan, 0.5),), "sigmas must be"),
        (((1.0, 0.5), (1.0,)), "2 sigmas and 1 audio sigmas"),
        (((1.0, 0.5), (1.0, 0.5, 0.2)), "2 sigmas and 3 audio sigmas"),
        (((1.0, 0.5), None, 3), "between 0 and 2"),
    ],
)
def test_lists_that_cannot_be_followed_are_refused(arguments, message):
    with pytest.raises(MovaError, match=message):
        Schedule().listed(*arguments)
