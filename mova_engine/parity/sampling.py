"""Case 7: a sampling trajectory with guidance and the change of expert, through the sampler's own loop."""

import torch
from torch import Tensor

from mova_engine.config import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.diffusion import reference_compat
from mova_engine.diffusion.condition import first_frame_condition
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.models.mova import Mova
from mova_engine.parity.case import GoldenCase, Machine, tower_config
from mova_engine.parity.latents import wan_stats
from mova_engine.sample.sampler import Conditions, Latents, Step, denoise

_WEIGHTS = {"video_dit": "video", "video_dit_2": "video_2", "audio_dit": "audio", "dual_tower_bridge": "bridge"}
_GUIDANCE = 5.0


def build_mova(case: GoldenCase, machine: Machine) -> Mova:
    """The whole two-expert model of a case."""
    config = MovaConfig(
        case.name,
        tower_config(VideoDiTConfig, case.config["video"]),
        tower_config(AudioDiTConfig, case.config["audio"]),
        tower_config(BridgeConfig, case.config["bridge"]),
        ClipConfig(frames=1, height=16, width=16),
    )
    mova = Mova(config, machine.ops)
    for component, weights in _WEIGHTS.items():
        getattr(mova, component).load_state_dict(case.weights(weights))
    return mova.to(machine.device, machine.dtype)


def run_sampling(case: GoldenCase, machine: Machine) -> dict[str, Tensor]:
    """The trajectory with equal shifts, and the one with video shift 5 and audio shift 1."""
    mova = build_mova(case, machine)
    stats = wan_stats(case.config)
    put = {
        name: machine.put(case.tensors[f"in.{name}"]) for name in ("text_positive", "text_negative", "image_latent_raw")
    }
    condition = first_frame_condition(stats.normalise(put["image_latent_raw"]))
    conditions = Conditions(condition, put["text_positive"], put["text_negative"])
    noise = Latents(*(case.tensors[f"in.{name}_noise"].to(machine.device) for name in ("visual", "audio")))
    produced = {"mid.condition": condition}
    for infix, schedule in (("", Schedule()), ("dual.", Schedule(audio_shift=1.0))):
        exact = schedule.inference(case.parameters["steps"])
        steps: list[Step] = []
        # The recording's state updates use table sigmas; the network gets exact timesteps.
        final = denoise(
            mova,
            conditions,
            noise,
            reference_compat.snapped(exact),
            Guidance("text", _GUIDANCE),
            Prediction(),
            fps=case.parameters["fps"],
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
