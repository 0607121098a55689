"""Case 8: normalised latents and the first-frame condition; case 6: the audio VAE."""

from typing import Any

import torch
from torch import Tensor, nn

from mova_engine.codecs.dac import Dac, DacConfig
from mova_engine.codecs.toy.latent_stats import WAN_STATS, LatentStats
from mova_engine.diffusion.conditioning import MASK_CHANNELS, first_frame_condition, video_input
from mova_engine.parity import parameters
from mova_engine.parity.case import CaseDevice, GoldenCase


def wan_stats(config: dict[str, Any]) -> LatentStats:
    """The video latents' mean and std: the case's own, or the released video VAE's."""
    if "latents_mean" in config:
        return LatentStats(tuple(config["latents_mean"]), tuple(config["latents_std"]))
    return WAN_STATS


def run_condition(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """The condition's layout with a first frame, and with a last one as well."""
    _check_sizes(case)
    stats = wan_stats(case.config)
    normalised = stats.normalise(machine.put(case.tensors["in.image_latent_raw"]))
    latents = machine.put(case.tensors["in.latents"])
    produced = {
        "out.normalized_image_latent": normalised,
        "out.denormalized_roundtrip": stats.denormalise(normalised),
        "out.training.condition": first_frame_condition(normalised),
    }
    for name, last in (("first", False), ("first_last", True)):
        condition = first_frame_condition(normalised, last_frame=last)
        produced |= {f"out.{name}.condition": condition, f"out.{name}.model_input": video_input(latents, condition)}
    return produced


def _check_sizes(case: GoldenCase) -> None:
    """What the case states of its latents' sizes; the mask has a channel for each picture of a latent frame."""
    latents = list(case.tensors["in.latents"].shape)
    for name, found in zip("Thw", latents[2:], strict=True):
        parameters.require_size(case, name, case.parameter(name), "in.latents", found)
    picture = case.tensors["in.image"].shape[-1]
    known = {"z_dim": latents[1], "temporal_stride": MASK_CHANNELS, "spatial_stride": picture // latents[4]}
    for name, found in known.items():
        if name in case.config:
            parameters.require_size(case, name, case.config[name], "the condition", found)


@torch.no_grad()
def run_audio_vae(case: GoldenCase, machine: CaseDevice) -> dict[str, Tensor]:
    """The audio VAE: posterior, decoded waveforms, states inside both halves."""
    dac = case.load(Dac(DacConfig.from_dict(case.config)), "dac", machine)
    states = {}
    for name in ("encoder", *(f"encoder.block{i}" for i in range(len(dac.encoder.block)))):
        _record(dac, name, states)
    for i in range(len(dac.decoder.model)):
        _record(dac, f"decoder.model{i}", states)
    audio = case.tensors["in.audio"].to(machine.device)
    posterior = dac.encode(audio)
    produced = {
        "out.padded_length": torch.tensor([dac.pad(audio).shape[-1]]),
        "out.mean": posterior.mean,
        "out.logvar": posterior.logvar,
        "out.decode_mean": dac.decode(posterior.mean),
    }
    produced |= {f"mid.{name}": x for name, x in states.items()}
    produced["out.decode_z"] = dac.decode(case.tensors["in.z"].to(machine.device))
    return produced


def _record(dac: Dac, name: str, into: dict[str, Tensor]) -> None:
    """Store the output of the last call of a sub-module; "encoder.block1" names encoder.block[1]."""
    path = name.rstrip("0123456789")
    module = dac.get_submodule(path if path == name else f"{path}.{name[len(path) :]}")

    def store(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        into[name] = output

    module.register_forward_hook(store)
