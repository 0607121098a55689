"""SyncNet: both towers, cepstra, distances, and scores end to end from pictures and samples."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import description, enlarged, enlarged_last, every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import lip_sync
from mova_engine.scores.features.mfcc import MfccConfig, band_energies, filter_bank, mfcc
from mova_engine.scores.features.resize import resize_bilinear_u8
from mova_engine.scores.lip_sync import LipFeatures, LipSync
from mova_engine.scores.networks import syncnet

_KEPT = 3  # features end to end that a case keeps: every n-th, as it says


def run_syncnet(case: StatedCase, device: torch.device) -> EvaluationOutcome:
    """Every tensor of the case; names of clips, cepstra and shifts come from the case."""
    config = _config(case)
    network = case.load("syncnet", syncnet.SyncNet()).to(device)
    assert isinstance(network, syncnet.SyncNet)
    x = case.tensors
    values: dict[str, Any] = {}
    tensors = _towers(case, network, device) | _cepstra(case, config)
    for name in case.values:
        if stated := re.fullmatch(r"pdist\.vshift(\d+)", name):
            pair = LipFeatures(x["in.pdist.lip"].to(device), x["in.pdist.aud"].to(device))
            shift = int(stated[1])
            distances = lip_sync.shift_distances(pair, shift)
            tensors[f"out.{name}.distances"] = distances
            tensors[f"out.{name}.mean"] = lip_sync.mean_distances(distances)
            values[name] = _named(lip_sync.score_lip_sync(pair, shift))
        elif f"in.{name}.audio" in x:
            made, values[name] = _end_to_end(case, name, network)
            tensors |= made
    if "in.resize.frame" in x:
        step = every(case, "out.resize.frame", "rows and columns")
        resized = resize_bilinear_u8(x["in.resize.frame"].numpy(), syncnet.SIDE, syncnet.SIDE)
        tensors["out.resize.frame"] = torch.from_numpy(resized)[::step, ::step]
    if "several_faces" in case.values:
        values["several_faces"] = _several(case.values["several_faces"])
    return EvaluationOutcome(tensors, values)


def _config(case: StatedCase) -> MfccConfig:
    case.describes("mfcc.window", "mfcc.frames", "mfcc.dct", "mfcc.lifter")
    case.require("fps", lip_sync.FPS)
    case.require("sample_rate", lip_sync.SAMPLE_RATE)
    case.require("window_frames", syncnet.WINDOW)
    case.require("mfcc_frames_per_video_frame", lip_sync.COLUMNS_PER_PICTURE)
    case.require("mfcc_frames_per_window", syncnet.COLUMNS)
    case.require("mfcc.numcep", syncnet.COEFFICIENTS)
    config = MfccConfig(
        sample_rate=case.parameter("sample_rate"),
        window=case.parameter("mfcc.winlen"),
        step=case.parameter("mfcc.winstep"),
        coefficients=case.parameter("mfcc.numcep"),
        bands=case.parameter("mfcc.nfilt"),
        fft=case.parameter("mfcc.nfft"),
        lowest=case.parameter("mfcc.lowfreq"),
        highest=case.parameter("mfcc.highfreq"),
        preemphasis=case.parameter("mfcc.preemph"),
        lifter=case.parameter("mfcc.ceplifter"),
        energy_first=case.parameter("mfcc.appendEnergy"),
    )
    case.require("mfcc", case.parameter("mfcc"))
    return config


def _towers(case: StatedCase, network: syncnet.SyncNet, device: torch.device) -> dict[str, Tensor]:
    pictures = enlarged(case, "in.lip.frames_lowres").to(device, torch.float32)
    kept: dict[str, Tensor] = {}
    with _recording(network.netcnnlip, kept, "mid.lip", {"conv0": 0, "pool3": 3, "pool7": 7}):
        features = network.lip_convolutions(pictures)
    tensors: dict[str, Tensor] = {"mid.lip.features512": features, "out.lip.embedding": network.netfclip(features)}
    with _recording(network.netcnnaud, kept, "mid.aud", {"pool7": 7, "pool17": 17, "conv20": 20}):
        tensors["out.aud.embedding"] = network.sound(case.tensors["in.aud.mfcc"].to(device))
    for name, made in kept.items():
        if name in case.tensors:
            if "::" in description(case, name):
                made = made[:, :: every(case, name, "channels")]
            if name.startswith("mid.lip"):
                step = every(case, name, "rows and columns")
                made = made[..., ::step, ::step]
            tensors[name] = made
    return tensors


class _recording:
    """While open, outputs of layers of a sequence are copied to `kept` under "prefix.name"."""

    def __init__(self, layers: nn.Sequential, kept: dict[str, Tensor], prefix: str, names: dict[str, int]) -> None:
        self._made = (layers, kept, prefix, names)
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        layers, kept, prefix, names = self._made
        for name, index in names.items():

            def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = f"{prefix}.{name}") -> None:
                kept[name] = output.clone()

            self._hooks.append(layers[index].register_forward_hook(keep))

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
