"""Case 4: one dual-tower step (float32 and bfloat16), and two training steps."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from mova_engine.config.diffusion import LossWeights
from mova_engine.diffusion.conditioning import first_frame_condition, video_input
from mova_engine.diffusion.loss import velocity_loss
from mova_engine.diffusion.reference_compat import Table
from mova_engine.diffusion.schedule import add_noise, velocity_target
from mova_engine.models.layers import Trace
from mova_engine.models.modality import Modality, modalities
from mova_engine.models.mova import dual_tower_forward
from mova_engine.parity import parameters
from mova_engine.parity.case import CaseDevice, GoldenCase, input_gradients
from mova_engine.parity.latents import wan_stats

# A state's name in our trace -> in the recording.
_STATES = {r"(visual|audio)\.block(\d+)\.out": r"\1_block\2", r"(bridge\d+\.(?:visual|audio))": r"\1"}


def components(case: GoldenCase, machine: CaseDevice, video_weights: str = "video") -> dict[str, Any]:
    """The models of a dual-tower case, by their component names."""
    case.model_config()  # sizes that do not fit each other are refused
    return {
        "video_dit": case.video_dit(machine, video_weights, case.config["video"]),
        "audio_dit": case.audio_dit(machine, case.config["audio"]),
        "dual_tower_bridge": case.bridge(machine, case.config["bridge"]),
    }


def _forward(
    models: dict[str, Any], inputs: tuple[Modality, Modality], fps: float, trace: Trace | None = None
) -> tuple[Tensor, Tensor]:
    """`dual_tower_forward` of the models of `components`."""
    video_dit, audio_dit, bridge = models.values()
    return dual_tower_forward(video_dit, audio_dit, bridge, *inputs, fps=fps, trace=trace)


def gradients(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Every parameter gradient under its full name."""
    return {
        f"{component}.{name}": p.grad
        for component, model in models.items()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


def run_step(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """The dual-tower step: outputs, states and gradients; and the outputs of a bfloat16 copy."""
    recorded, produced = case.tensors, {}
    models = components(case, machine)
    for batch in sorted({m[1] for name in recorded if (m := re.match(r"in\.(b\d+)\.visual_latents$", name))}):
        keys = ("visual_latents", "audio_latents", "context")
        leaves = {key: machine.put(recorded[f"in.{batch}.{key}"]).requires_grad_() for key in keys}
        times = [recorded[f"in.{batch}.{key}"].to(machine.device) for key in ("timestep", "audio_timestep")]
        fps = parameters.number(case, "fps")
        for model in models.values():
            model.zero_grad(set_to_none=True)
        inputs = modalities(*(leaves[key] for key in keys), *times)
        outputs = _forward(models, inputs, fps)
        cotangents = (machine.put(recorded[f"in.{batch}.cot_{key}"]) for key in ("visual", "audio"))
        torch.autograd.backward(outputs, list(cotangents))
        produced |= _pair(f"out.{batch}.", outputs)
        grads = gradients(models) | input_gradients(leaves)
        produced |= {f"grad.{batch}.{name}": g.clone() for name, g in grads.items()}
        with torch.no_grad():
            _forward(models, inputs, fps, _Recorder(f"mid.{batch}.", produced))
    half = CaseDevice(machine.ops, machine.device, torch.bfloat16)
    for model in models.values():
        model.to(torch.bfloat16)
    with torch.no_grad():
        for name in [n for n in recorded if n.startswith("out.") and n.endswith("_eager.visual")]:
            batch = name.split(".")[1]
            inputs = (half.put(recorded[f"in.{batch}.{key}"]) for key in ("visual_latents", "audio_latents", "context"))
            times = [recorded[f"in.{batch}.{key}"].to(machine.device) for key in ("timestep", "audio_timestep")]
            outputs = _forward(models, modalities(*inputs, *times), parameters.number(case, "fps"))
            # The recording rounds at two sets of places; one bound holds for both.
            for variant in ("bf16_eager", "bf16_fused"):
                produced |= _pair(f"out.{batch}.{variant}.", outputs)
    return produced


class _Recorder:
    """A trace that stores states under their recorded names."""

    def __init__(self, prefix: str, into: dict[str, Tensor]) -> None:
        self.prefix, self.into = prefix, into

    def __call__(self, name: str, x: Tensor) -> None:
        for pattern, replacement in _STATES.items():
            if re.fullmatch(pattern, name):
                self.into[self.prefix + re.sub(pattern, replacement, name)] = x


def _pair(prefix: str, outputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {prefix + "visual": outputs[0], prefix + "audio": outputs[1]}


def run_training(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """Two training steps: even steps train the high-noise expert, odd ones the low-noise expert, at table timesteps."""
    recorded, produced = case.tensors, {}
    schedule, stats = parameters.schedule(case), wan_stats(case.config)
    table = Table(schedule, schedule.num_train_timesteps)
    parameters.require_grid(case, "in.video_latents_raw")
    clean = stats.normalise(machine.put(recorded["in.video_latents_raw"]))
    audio = machine.put(recorded["in.audio_latents"])
    condition = first_frame_condition(stats.normalise(machine.put(recorded["in.image_latents_raw"])))
    context = machine.put(recorded["in.context"])
    for step in sorted({int(m[1]) for name in recorded if (m := re.match(r"in\.s(\d+)\.", name))}):
        expert = step % 2
        index = table.training_index(recorded[f"in.s{step}.uniform_draw"], expert)
        sigma, timestep = table.sigmas[index], table.timesteps[index].to(machine.device)
        noise = [machine.put(recorded[f"in.s{step}.{modality}_noise"]) for modality in ("video", "audio")]
        noisy = [add_noise(x, n, sigma) for x, n in zip((clean, audio), noise, strict=True)]
        models = components(case, machine, "video_2" if expert else "video")
        inputs = modalities(video_input(noisy[0], condition), noisy[1], context, timestep, timestep)
        outputs = _forward(models, inputs, parameters.number(case, "fps"))
        targets = [velocity_target(x, n) for x, n in zip((clean, audio), noise, strict=True)]
        losses = velocity_loss(outputs[0], targets[0], outputs[1], targets[1], LossWeights())
        losses.total.backward()
        grads = gradients(models)
        norm = torch.stack([g.float().norm() for g in grads.values()]).norm()
        made = {
            "loss": losses.total.view(1),
            "video_loss": losses.video.view(1),
            "audio_loss": losses.audio.view(1),
            "timestep": timestep,
            "audio_timestep": timestep,
            "noisy_video": noisy[0],
            "noisy_audio": noisy[1],
            "condition": condition,
            "video_pred": outputs[0],
            "audio_pred": outputs[1],
            "grad_norm_all": norm.view(1),
        }
        produced |= {f"out.s{step}.{name}": x for name, x in made.items()}
        # The recording names the expert of a step either by its own name or as the model that was trained.
        names = grads | {name.replace("video_dit.", "video_dit_2.", 1): g for name, g in grads.items() if expert}
        produced |= {f"grad.s{step}.{name}": g for name, g in names.items()}
    return produced
