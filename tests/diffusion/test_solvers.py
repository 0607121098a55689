"""Solvers on an equation whose solution is known: data with a normal distribution."""

import math

import pytest
import torch

from mova_engine.diffusion.schedule import shift_time
from mova_engine.diffusion.solvers import SOLVERS, solver
from mova_engine.errors import MovaError

MEAN, DEVIATION = 1.5, 0.4
Z = torch.linspace(-2, 2, 9, dtype=torch.float64)


def velocity(x, sigma):
    """E[noise - x0 | x] for x0 ~ N(MEAN, DEVIATION^2)."""
    alpha = 1 - sigma
    centred = (x - alpha * MEAN) / (alpha**2 * DEVIATION**2 + sigma**2)
    return sigma * centred - (MEAN + alpha * DEVIATION**2 * centred)


def solution(sigma):
    """Of the sampling equation, through noise Z at sigma 1."""
    return (1 - sigma) * MEAN + math.sqrt((1 - sigma) ** 2 * DEVIATION**2 + sigma**2) * Z


def grid(steps, first, last, shift=3.0):
    ends = [each / (shift - (shift - 1) * each) for each in (first, last)]
    return shift_time(torch.linspace(*ends, steps + 1, dtype=torch.float64), shift).tolist()


def error(name, steps, first, last):
    sigmas = grid(steps, first, last)
    integrator, x = solver(name)(sigmas), solution(sigmas[0])
    for evaluation in SOLVERS[name].evaluations(steps):
        x = integrator.advance(x, velocity(x, sigmas[evaluation.level]))
    return (x - solution(sigmas[-1])).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("unipc", 2)])
def test_errors_fall_with_the_solver_s_order(name, order):
    coarse, fine = (error(name, steps, 0.95, 0.1) for steps in (32, 64))
    assert order - 0.1 < math.log2(coarse / fine) < order + 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_from_noise_to_clean_samples(name):
    """At both ends the log signal-to-noise ratio is infinite."""
    errors = [error(name, steps, 1.0, 0.0) for steps in (1, 2, 8, 64)]
    assert all(map(math.isfinite, errors))
    assert errors[-1] < errors[-2] / 4


@pytest.mark.parametrize("name", SOLVERS)
def test_a_single_step_ends_at_the_predicted_clean_sample(name):
    x = solution(1.0)
    end = solver(name)([1.0, 0.0]).advance(x, velocity(x, 1.0))
    torch.testing.assert_close(end, x - velocity(x, 1.0))


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_unipc_is_that_of_diffusers(shift):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
    theirs = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    theirs.set_timesteps(10)
    sigmas = theirs.sigmas.double().tolist()
    integrator, x = solver("unipc")(sigmas), Z.view(1, 1, 3, 3)
    y = x
    for sigma, timestep in zip(sigmas, theirs.timesteps, strict=False):
        x = integrator.advance(x, velocity(x, sigma))
        y = theirs.step(velocity(y, sigma), timestep, y, return_dict=False)[0]
        # Their sigmas are float32.
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


def test_evaluations_of_steps():
    assert [tuple(each) for each in SOLVERS["unipc"].evaluations(2)] == [(0, 0), (1, 1)]
    assert [tuple(each) for each in SOLVERS["heun"].evaluations(3)] == [(0, None), (1, 0), (1, None), (2, 1), (2, 2)]


def test_an_unknown_solver_is_named():
    with pytest.raises(MovaError, match="unknown solver 'uni'. Did you mean 'unipc'"):
        solver("uni")
