"""Case 5: sampling and training schedules, the reference's table, noise and Euler steps."""

import re

import torch
from torch import Tensor

from mova_engine.diffusion.reference_compat import Table
from mova_engine.diffusion.schedule import Schedule, Steps, add_noise, euler_step, velocity_target
from mova_engine.errors import MovaError
from mova_engine.parity import parameters
from mova_engine.parity.case import CaseDevice, GoldenCase

_NUMBER = r"\d+(?:\.\d+)?"
_SAMPLING = re.compile(rf"n(\d+)_shift({_NUMBER})\.")
_DUAL = re.compile(rf"dual_v({_NUMBER})_a({_NUMBER})\.")


def run_schedule(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """Every schedule of the case."""
    produced = {}
    for n, shift in _steps(case):
        produced |= _sampling(case, n, shift)
    for name, schedule in zip(("traj", "traj_dual"), parameters.schedules(case), strict=True):
        produced |= _trajectory(name, case, machine, schedule)
    return produced | _training(case, machine)


def check_values(case: GoldenCase) -> list[str]:
    """Recorded single numbers (expert boundary) that ours differ from, described; empty when all agree."""
    wrong = []
    table = _table(case, parameters.schedule(case), "train.timesteps")
    known = {
        "train.boundary_count": table.boundary_index,
        "train.boundary_fraction": table.boundary_index / table.entries,
    }
    for name, recorded in case.meta.get("values", {}).items():
        ours = known.get(name)
        match = _SAMPLING.match(name)
        if match and name[match.end() :] == "first_step_of_low_noise_expert":
            experts = parameters.schedule(case, float(match[2])).inference(int(match[1])).experts
            ours = experts.index(1) if 1 in experts else None
        if ours is None or ours != recorded:
            wrong.append(f"{name}: {ours}, recorded {recorded}")
    return wrong


def _steps(case: GoldenCase) -> list[tuple[int, float]]:
    """The (number of steps, shift) of the sampling schedules, each of which has tensors."""
    recorded = {(int(m[1]), float(m[2])) for name in case.tensors if (m := _SAMPLING.match(name))}
    stated = case.parameter("steps")
    try:
        pairs = [(int(n), float(shift)) for n, shift in stated]
        if pairs != [tuple(pair) for pair in stated]:
            raise ValueError
    except (TypeError, ValueError):
        raise MovaError(f"{case.path}: steps must be pairs of a number of steps and a shift, got {stated}") from None
    for n, shift in pairs:
        if (n, shift) not in recorded:
            raise MovaError(f"{case.path}: steps names {n} steps with shift {shift:g}, of which no tensor is recorded")
    return pairs


def _table(case: GoldenCase, schedule: Schedule, like: str) -> Table:
    """The table of a schedule: as long as the recorded tensor `like`, or as there are training timesteps."""
    return Table(schedule, len(case.tensors[like]) if like in case.tensors else schedule.num_train_timesteps)


def _pairs(steps: Steps) -> dict[str, Tensor]:
    return {
        "pairs_timesteps": torch.stack([steps.video_timesteps, steps.audio_timesteps], 1),
        "pairs_sigmas": torch.stack([steps.video_sigmas[:-1], steps.audio_sigmas[:-1]], 1),
    }


def _sampling(case: GoldenCase, n: int, shift: float) -> dict[str, Tensor]:
    """Tensors of `n` steps with one shift, and of what pairs it with another for the audio."""
    produced = {}
    for prefix, steps_of, shift_of in {(m[0], m[1], m[2]) for name in case.tensors if (m := _SAMPLING.match(name))}:
        if (int(steps_of), float(shift_of)) != (n, shift):
            continue
        schedule = parameters.schedule(case, shift)
        steps, table = schedule.inference(n), _table(case, schedule, f"{prefix}train_timesteps")
        made = {"timesteps": steps.video_timesteps, "sigmas": steps.video_sigmas[:-1]} | _pairs(steps)
        made["snapped_sigmas"] = table.snapped(steps).video_sigmas[:-1]
        made |= {"train_timesteps": table.timesteps, "train_sigmas": table.sigmas}
        duals = {(m[0], m[1], m[2]) for key in case.tensors if (m := _DUAL.match(key.removeprefix(prefix)))}
        for name, video_shift, audio_shift in duals:
            dual = parameters.schedule(case, float(video_shift), float(audio_shift)).inference(n)
            # The look-up is in the one table that the recorded scheduler has.
            found = table.snapped(dual)
            made |= {name + key: x for key, x in _pairs(dual).items()}
            made[f"{name}snapped_sigmas"] = found.video_sigmas[:-1]
            made[f"{name}snapped_audio_sigmas"] = found.audio_sigmas[:-1]
        produced |= {prefix + key: x for key, x in made.items()}
    return produced


def _trajectory(name: str, case: GoldenCase, machine: CaseDevice, schedule: Schedule) -> dict[str, Tensor]:
    recorded = case.tensors
    exact = schedule.inference(parameters.number(case, "traj_steps", whole=True))
    steps = _table(case, schedule, "train.timesteps").snapped(exact)
    produced = {f"{name}.pairs": _pairs(exact)["pairs_timesteps"]}
    for modality, sigmas in (("visual", steps.video_sigmas), ("audio", steps.audio_sigmas)):
        x, states = recorded[f"in.traj.{modality}_x0"].to(machine.device), []
        velocities = recorded[f"in.traj.{modality}_velocity"].to(machine.device)
        parameters.require_size(case, "traj_steps", len(sigmas) - 1, f"in.traj.{modality}_velocity", len(velocities))
        for index, velocity in enumerate(velocities):
            x = euler_step(x, velocity, *sigmas[index : index + 2].tolist())
            states.append(x)
        produced[f"{name}.{modality}_states"] = torch.stack(states)
    return produced


def _training(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    recorded = case.tensors
    table = _table(case, parameters.schedule(case), "train.timesteps")
    sigmas, timesteps, weights = table.sigmas, table.timesteps, table.weights
    produced = {"train.timesteps": timesteps, "train.sigmas": sigmas, "train.weights": weights}
    for expert, name in enumerate(("high_noise", "low_noise")):
        index = table.training_index(recorded["in.train.uniform_draws"], expert)
        produced |= {f"train.{name}.timestep_ids": index, f"train.{name}.timesteps": timesteps[index]}
    nearest = table.nearest(recorded["in.noise.timestep"])
    produced |= {"noise.sigma": sigmas[nearest], "noise.training_weight": weights[nearest]}
    sample, noise = (recorded[f"in.noise.{key}"].to(machine.device) for key in ("sample", "noise"))
    produced["noise.target"] = velocity_target(sample, noise)
    for name, dtype in (("noise.noisy", torch.float32), ("noise.noisy_bf16", torch.bfloat16)):
        noisy = [add_noise(sample.to(dtype), noise.to(dtype), sigma.view(1)) for sigma in sigmas[nearest]]
        produced[name] = torch.stack(noisy)
    return produced
