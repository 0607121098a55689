"""Case 5: sampling and training schedules, the reference's table, noise and Euler steps."""

import re

import torch
from torch import Tensor

from mova_engine.diffusion import reference_compat
from mova_engine.diffusion.schedule import Schedule, Steps, add_noise, euler_step, velocity_target
from mova_engine.parity.case import GoldenCase, Machine


def run_schedule(case: GoldenCase, machine: Machine) -> dict[str, Tensor]:
    """Every schedule of the case."""
    recorded, produced = case.tensors, {}
    for n, shift in case.parameters["steps"]:
        produced |= _sampling(f"n{n}_shift{shift:g}.", n, shift, recorded)
    produced |= _trajectory("traj", case, machine, Schedule())
    produced |= _trajectory("traj_dual", case, machine, Schedule(audio_shift=1.0))
    return produced | _training(case, machine)


def check_values(case: GoldenCase) -> list[str]:
    """Recorded single numbers (expert boundary) that ours differ from, described; empty when all agree."""
    wrong = []
    for name, recorded in case.meta.get("values", {}).items():
        if match := re.match(r"n(\d+)_shift([\d.]+)\.first_step_of_low_noise_expert$", name):
            shift = float(match[2])
            ours = Schedule(shift, shift).inference(int(match[1])).experts.index(1)
        elif name == "train.boundary_count":
            ours = reference_compat.boundary_index(Schedule().boundary)
        elif name == "train.boundary_fraction":
            ours = reference_compat.boundary_index(Schedule().boundary) / reference_compat.ENTRIES
        else:
            ours = None
        if ours != recorded:
            wrong.append(f"{name}: {ours}, recorded {recorded}")
    return wrong


def _pairs(steps: Steps) -> dict[str, Tensor]:
    return {
        "pairs_timesteps": torch.stack([steps.video_timesteps, steps.audio_timesteps], 1),
        "pairs_sigmas": torch.stack([steps.video_sigmas[:-1], steps.audio_sigmas[:-1]], 1),
    }


def _sampling(prefix: str, n: int, shift: float, recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    steps = Schedule(shift, shift).inference(n)
    table = reference_compat.table_sigmas()
    made = {"timesteps": steps.video_timesteps, "sigmas": steps.video_sigmas[:-1]} | _pairs(steps)
    made["snapped_sigmas"] = reference_compat.snapped(steps).video_sigmas[:-1]
    made |= {"train_timesteps": table * reference_compat.ENTRIES, "train_sigmas": table}
    for name in {m[0] for key in recorded if (m := re.match(re.escape(prefix) + r"dual_v[\d.]+_a[\d.]+\.", key))}:
        video_shift, audio_shift = (float(x) for x in re.findall(r"[va]([\d.]+)(?=_|\.)", name[len(prefix) :]))
        dual = Schedule(video_shift, audio_shift).inference(n)
        produced = _pairs(dual) | {"snapped_audio_sigmas": reference_compat.snapped(dual).audio_sigmas[:-1]}
        made |= {name[len(prefix) :] + key: x for key, x in produced.items()}
    return {prefix + key: x for key, x in made.items()}


def _trajectory(name: str, case: GoldenCase, machine: Machine, schedule: Schedule) -> dict[str, Tensor]:
    recorded = case.tensors
    exact = schedule.inference(case.parameters["traj_steps"])
    steps = reference_compat.snapped(exact)
    produced = {f"{name}.pairs": _pairs(exact)["pairs_timesteps"]}
    for modality, sigmas in (("visual", steps.video_sigmas), ("audio", steps.audio_sigmas)):
        x, states = recorded[f"in.traj.{modality}_x0"].to(machine.device), []
        for index, velocity in enumerate(recorded[f"in.traj.{modality}_velocity"].to(machine.device)):
            x = euler_step(x, velocity, *sigmas[index : index + 2].tolist())
            states.append(x)
        produced[f"{name}.{modality}_states"] = torch.stack(states)
    return produced


def _training(case: GoldenCase, machine: Machine) -> dict[str, Tensor]:
    recorded, schedule = case.tensors, Schedule()
    sigmas = reference_compat.table_sigmas()
    timesteps = sigmas * reference_compat.ENTRIES
    weights = reference_compat.training_weights()
    produced = {"train.timesteps": timesteps, "train.sigmas": sigmas, "train.weights": weights}
    for expert, name in enumerate(("high_noise", "low_noise")):
        index = reference_compat.training_index(recorded["in.train.uniform_draws"], expert, schedule.boundary)
        produced |= {f"train.{name}.timestep_ids": index, f"train.{name}.timesteps": timesteps[index]}
    asked = recorded["in.noise.timestep"]
    nearest = reference_compat.nearest_sigma(asked)
    produced["noise.sigma"] = nearest
    produced["noise.training_weight"] = weights[(timesteps - asked.unsqueeze(1)).abs().argmin(1)]
    sample, noise = (recorded[f"in.noise.{key}"].to(machine.device) for key in ("sample", "noise"))
    produced["noise.target"] = velocity_target(sample, noise)
    for name, dtype in (("noise.noisy", torch.float32), ("noise.noisy_bf16", torch.bfloat16)):
        produced[name] = torch.stack([add_noise(sample.to(dtype), noise.to(dtype), sigma.view(1)) for sigma in nearest])
    return produced
