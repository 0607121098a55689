"""SyncNet: both towers, cepstra, distances, and scores end to end from pictures and samples."""

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome
from mova_engine.parity.evaluation.described import description, enlarged, enlarged_last, every
from mova_engine.parity.evaluation.evaluation_runner import CaseRunner
from mova_engine.parity.evaluation.recorded import recorded
from mova_engine.parity.evaluation.stated import StatedCase
from mova_engine.scores import lip_sync
from mova_engine.scores.features.mfcc import MfccConfig, band_energies, filter_bank, mfcc
from mova_engine.scores.features.picture_size import resize_bilinear_u8
from mova_engine.scores.lip_sync import LipFeatures, LipSync
from mova_engine.scores.networks import syncnet

# Names of a layer's output end in its number within its tower.
_LAYER = re.compile(r"mid\.(lip|aud)\.(?:conv|pool)(\d+)")


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
    return MfccConfig(
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


def _towers(case: StatedCase, network: syncnet.SyncNet, device: torch.device) -> dict[str, Tensor]:
    pictures = enlarged(case, "in.lip.frames_lowres").to(device, torch.float32)
    lip, aud = network.netcnnlip, network.netcnnaud
    towers = {"lip": lip, "aud": aud}
    stated = (_LAYER.fullmatch(name) for name in case.tensors)
    layers = {found[0]: towers[found[1]][int(found[2])] for found in stated if found}
    with recorded(layers) as kept:
        features = network.lip_convolutions(pictures)
        tensors: dict[str, Tensor] = {"mid.lip.features512": features, "out.lip.embedding": network.netfclip(features)}
        tensors["out.aud.embedding"] = network.sound(case.tensors["in.aud.mfcc"].to(device))
    for name in kept.keys() & case.tensors.keys():
        made = kept[name]
        if "channels ::" in description(case, name):
            made = made[:, :: every(case, name, "channels")]
        if name.startswith("mid.lip"):
            step = every(case, name, "rows and columns")
            made = made[..., ::step, ::step]
        tensors[name] = made
    return tensors


def _cepstra(case: StatedCase, config: MfccConfig) -> dict[str, Tensor]:
    tensors: dict[str, Any] = {"mid.mfcc.filterbank": filter_bank(config)}
    for name in case.tensors:
        if not (stated := re.fullmatch(r"in\.mfcc\.(.+)", name)):
            continue
        clip, sound = stated[1], case.tensors[name].numpy()
        energies = band_energies(sound, config)
        tensors[f"mid.mfcc.{clip}.filterbank_energies"] = energies.bands
        tensors[f"mid.mfcc.{clip}.frame_energy"] = energies.frame
        tensors[f"out.mfcc.{clip}"] = mfcc(sound, config)
        first = "mid.mfcc.first_frames_power"
        if first in case.tensors and description(case, first).startswith(f"{clip}:"):
            tensors[first] = energies.power[: len(case.tensors[first])]
    return {name: torch.from_numpy(np.asarray(made)) for name, made in tensors.items()}


def _end_to_end(case: StatedCase, clip: str, network: syncnet.SyncNet) -> tuple[dict[str, Tensor], dict[str, Any]]:
    frames = enlarged_last(case, f"in.{clip}.frames_lowres")
    samples = case.tensors[f"in.{clip}.audio"].numpy()
    max_shift = case.parameter("vshift")
    # The case stores blue first, as the reference reads pictures; ours are red first.
    pair = lip_sync.lip_features(network, frames[..., ::-1], samples, case.parameter("batch_size"))
    distances = lip_sync.shift_distances(pair, max_shift)
    best = lip_sync.mean_distances(distances).sort().values
    made = {f"mid.{clip}.lip": pair.lip, f"mid.{clip}.aud": pair.sound}
    tensors = {name: features[:, :: every(case, name, "features")] for name, features in made.items()}
    tensors[f"mid.{clip}.distances"] = distances
    scored = lip_sync.score_lip_sync(pair, max_shift)
    values = _named(scored) | {
        "frames": len(frames),
        "samples": len(samples),
        "vshift": max_shift,
        "windows": scored.windows,
        "gap_between_best_and_second_mean_distance": float(best[1] - best[0]),
    }
    return tensors, values


def _named(scored: LipSync) -> dict[str, Any]:
    return {"offset": scored.offset, "LSE_C": scored.confidence, "LSE_D": scored.distance}


def _several(faces: dict[str, Any]) -> dict[str, Any]:
    confidences, distances = faces["LSE_C_of_each_face"], faces["LSE_D_of_each_face"]
    tracks = [LipSync(0, c, d, 1) for c, d in zip(confidences, distances, strict=True)]
    best, mean = lip_sync.best_track(tracks), lip_sync.mean_over_tracks(tracks)
    assert best is not None and mean is not None
    return {
        "video_LSE_C": best.confidence,
        "video_LSE_D": best.distance,
        "mean_LSE_C": mean[0],
        "mean_LSE_D": mean[1],
    }


CASE = CaseRunner(
    run_syncnet,
    {
        "mid.mfcc.*": Bound(1e-9),
        "out.mfcc.*": Bound(1e-9),
        "out.resize.*": Bound(0.0, "absolute"),
        "mid.*": Bound(1e-4),
        "out.*": Bound(1e-4),
        "values.*.LSE_*": Bound(1e-4, "relative"),
        # The difference of two mean distances, each within 1e-4 of distances of about a hundred.
        "values.*.gap_*": Bound(0.02, "absolute"),
        "values.several_faces.*": Bound(1e-9, "relative"),
    },
    unjudged={"values.several_faces.*_of_each_face": "given to the run"},
)
