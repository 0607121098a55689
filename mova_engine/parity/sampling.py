"""Case 7: a sampling trajectory with guidance and the change of expert, through the sampler's own loop."""

import torch
from torch import Tensor

from mova_engine.diffusion.conditioning import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.reference_compat import Table
from mova_engine.inference.denoising import Step, denoise
from mova_engine.inference.velocities import Conditions, Latents
from mova_engine.models.mova import Mova
from mova_engine.parity import parameters
from mova_engine.parity.case import CaseDevice, GoldenCase
from mova_engine.parity.latents import wan_stats

_WEIGHTS = {"video_dit": "video", "video_dit_2": "video_2", "audio_dit": "audio", "dual_tower_bridge": "bridge"}
# The released models' scale.
_GUIDANCE = 5.0


def build_mova(case: GoldenCase, machine: CaseDevice) -> Mova:
    """The whole two-expert model of a case."""
    mova = Mova(case.model_config(), machine.ops)
    for component, weights in _WEIGHTS.items():
        case.load(getattr(mova, component), weights, machine)
    return mova.to(machine.device, machine.dtype)


def run_sampling(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """The trajectory with equal shifts, and the one in which the audio has its own."""
    mova = build_mova(case, machine)
    stats = wan_stats(case.config)
    put = {
        name: machine.put(case.tensors[f"in.{name}"]) for name in ("text_positive", "text_negative", "image_latent_raw")
    }
    condition = first_frame_condition(stats.normalise(put["image_latent_raw"]))
    conditions = Conditions(condition, put["text_positive"], put["text_negative"])
    parameters.require_grid(case, "in.visual_noise")
    guidance = Guidance("text", parameters.number(case, "guidance_scale", _GUIDANCE, least=0))
    noise = Latents(*(case.tensors[f"in.{name}_noise"].to(machine.device) for name in ("visual", "audio")))
    produced = {"mid.condition": condition}
    for infix, schedule in zip(("", "dual."), parameters.schedules(case), strict=True):
        exact = schedule.inference(parameters.number(case, "steps", whole=True))
        steps: list[Step] = []
        # The recording's state updates use table sigmas; the network gets exact timesteps.
        final = denoise(
            mova,
            conditions,
            noise,
            Table(schedule, schedule.num_train_timesteps).snapped(exact),
            guidance,
            Prediction(),
            fps=parameters.number(case, "fps"),
            on_step=steps.append,
        )
        produced |= {
            f"out.{infix}visual_final": final.video,
            f"out.{infix}audio_final": final.audio,
            f"out.{infix}visual_final_denormalized": stats.denormalise(final.video),
            f"mid.{infix}visual_states": torch.stack([s.state.video for s in steps]),
            f"mid.{infix}audio_states": torch.stack([s.state.audio for s in steps]),
            f"mid.{infix}visual_guided_velocity": torch.stack([s.velocity.video for s in steps]),
            f"mid.{infix}audio_guided_velocity": torch.stack([s.velocity.audio for s in steps]),
            f"mid.{infix}expert_of_step": torch.tensor([s.expert for s in steps]),
            f"mid.{infix}pairs": torch.stack([exact.video_timesteps, exact.audio_timesteps], 1),
        }
    return produced
