"""What `mova eval selftest` computes: for each kind of example a function of its input that returns {number: value}.

given: the input as the table states it. inputs: the recordings and weights that the example needs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mova_engine.errors import MovaError
from mova_engine.evaluation.benches.bench_items import BenchItem
from mova_engine.evaluation.benches.clip_matching import match_files
from mova_engine.evaluation.votes.bradley_terry import CENTRE, ELO, fit_strengths
from mova_engine.evaluation.votes.cast_votes import CastVotes
from mova_engine.evaluation.votes.strength_intervals import standard_errors
from mova_engine.scores import av_align, desync, distances
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.dnsmos import RATE as DNSMOS_RATE
from mova_engine.scores.dnsmos import Dnsmos, windows_of
from mova_engine.scores.dover_score import DoverScore
from mova_engine.scores.features.picture_size import centre_crop
from mova_engine.scores.lip_sync import SAMPLE_RATE as RATE_16K
from mova_engine.scores.lip_sync import LipFeatures, lip_features, score_lip_sync
from mova_engine.scores.loudness import loudness
from mova_engine.scores.networks.synchformer import SIDE
from mova_engine.scores.networks.syncnet import SyncNet
from mova_engine.scores.score_file import score_file
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.sound_events import event_probabilities
from mova_engine.scores.sound_quality import band_edge, silence_shares
from mova_engine.scores.speaker_errors import cp_cer
from mova_engine.scores.weights_folder import WeightsFolder

Given = Mapping[str, Any]
Numbers = dict[str, float]
_RATE = 48000
_CPU = torch.device("cpu")
# The first of 120 pictures in the middle of 125, as Synchformer's transforms take them.
_MIDDLE = 2
# Length of SyncNet's features of sound and picture, about, on real clips.
_FEATURE_NORM, _FEATURES = 9.6, 1024


@dataclass(frozen=True)
class SelftestInputs:
    """media: recordings by their names. weights: the user's folder, which holds what the example needs."""

    media: Mapping[str, Path]
    weights: WeightsFolder


def inception_score(given: Given, inputs: SelftestInputs) -> Numbers:
    kind = given["probabilities"]
    if kind == "one-hot":
        p = np.eye(given["classes"])
    elif kind == "uniform":
        p = np.full((given["classes"], given["classes"]), 1 / given["classes"])
    else:
        logits = np.random.default_rng(0).standard_normal((given["clips"], given["classes"]))
        p = distances.softmax_of_logits(logits)
    return {"inception_score": distances.inception_score(p)}


def frechet_distance(given: Given, inputs: SelftestInputs) -> Numbers:
    sets = [_with_moments(given[which]["mean"], given[which]["deviation"], seed=i) for i, which in enumerate(_SETS)]
    if given.get("turned"):
        turn = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
        sets = [x @ turn for x in sets]
    return {"frechet_distance": distances.frechet_distance(*sets)}


_SETS = ("first", "second")


def _with_moments(mean: list[float], deviation: list[float], seed: int) -> np.ndarray:
    """Features [50, d] whose mean and covariance are exactly these, the covariance diagonal."""
    x = np.random.default_rng(seed).standard_normal((50, len(mean)))
    x -= x.mean(0)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    return x @ (vectors / np.sqrt(values)) @ vectors.T * np.array(deviation) + np.array(mean)


def frechet_bias(given: Given, inputs: SelftestInputs) -> Numbers:
    drawn = np.random.default_rng(0)
    size = (given["clips"], given["dimensions"])
    return {"frechet_distance": distances.frechet_distance(drawn.standard_normal(size), drawn.standard_normal(size))}


def kl_divergence(given: Given, inputs: SelftestInputs) -> Numbers:
    real, generated = (np.log(np.array([given[which]] * 3)) for which in ("real", "generated"))
    return {"kl": distances.kl_divergence(real, generated)}


def kernel_distance(given: Given, inputs: SelftestInputs) -> Numbers:
    first, second = (np.array([given[which]] * 4, np.float64) for which in _SETS)
    return {"kid": distances.kernel_distance(first, second, subsets=1).mean}


def dnsmos(given: Given, inputs: SelftestInputs) -> Numbers:
    samples = _sound(given, inputs)
    found = Dnsmos().rate(samples, DNSMOS_RATE, convention="mova")
    return {"p808": found.p808_mos, "sig": found.sig, "bak": found.bak, "ovrl": found.ovrl}


def _sound(given: Given, inputs: SelftestInputs) -> np.ndarray:
    if "media" in given:
        found = DecodedClip.read(inputs.media[given["media"]]).sound(DNSMOS_RATE, sample_format="s16")
        return np.asarray(found, np.float64)[: given.get("samples")] / 32768
    count = given["samples"]
    if given["sound"] == "sine":
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(count) / DNSMOS_RATE)
    return 0.1 * np.random.default_rng(0).standard_normal(count) if given["sound"] == "white-noise" else np.zeros(count)


def dnsmos_windows(given: Given, inputs: SelftestInputs) -> Numbers:
    windows, asked = windows_of(np.ones(given["seconds"] * DNSMOS_RATE), given["convention"])
    return {"asked": asked, "rated": len(windows)}


def desync_segments(given: Given, inputs: SelftestInputs) -> Numbers:
    frames, samples = desync.clip_lengths(given["seconds"])
    return {"frames": frames, "samples": samples, "segments": min(desync.segment_counts(frames, samples))}


def desync_classes(given: Given, inputs: SelftestInputs) -> Numbers:
    return {f"class_{i}": float(x) for i, x in enumerate(desync.class_grid())}


def shifted_sound(given: Given, inputs: SelftestInputs) -> Numbers:
    """The offset of one window, as Synchformer's example finds it: sound taken from `offset` seconds later in the file
    than the pictures, of the 14 segments in the middle of 5 s; of pictures of 256 rows the middle is cut out.
    """
    clip = DecodedClip.read(inputs.media[given["media"]])
    start, frames, samples = given["start"], 120, 76800
    first = round(start * desync.FPS) + _MIDDLE
    pictures = torch.from_numpy(np.stack(list(clip.pictures_of(range(first, first + frames))))).permute(0, 3, 1, 2)
    begin = round((start + given["offset"] + _MIDDLE / desync.FPS) * desync.SAMPLE_RATE)
    sound = torch.from_numpy(np.asarray(clip.sound(desync.SAMPLE_RATE), np.float32)[begin : begin + samples].copy())
    network = inputs.weights.open("synchformer", _CPU)
    video = desync.video_features(network, desync.network_pictures(centre_crop(pictures, SIDE))[None])
    logits, _ = desync.window_logits(network, video, desync.audio_features(network, sound[None]))
    return {"offset": float(desync.class_grid()[logits.argmax()])}


def lip_sync(given: Given, inputs: SelftestInputs) -> Numbers:
    drawn = torch.Generator().manual_seed(0)

    def features(windows: int) -> torch.Tensor:
        x = torch.randn(windows, _FEATURES, generator=drawn)
        return x * (_FEATURE_NORM / x.norm(dim=1, keepdim=True))

    lip = features(given.get("windows", 100))
    sound = features(len(lip)) if given["streams"] == "unrelated" else lip.roll(given.get("by", 0), 0)
    found = score_lip_sync(LipFeatures(lip, sound))
    return {"lse_d": found.distance, "lse_c": found.confidence, "offset": found.offset}


def syncnet_parameters(given: Given, inputs: SelftestInputs) -> Numbers:
    with torch.device("meta"):
        network = SyncNet()
    tensors = {name: x for name, x in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    return {"parameters": sum(x.numel() for x in tensors.values())}


def speaker_errors(given: Given, inputs: SelftestInputs) -> Numbers:
    found = cp_cer(given["reference"], given["hypothesis"]).count
    return {"errors": found.errors, "characters": found.characters}


def whole_ids(given: Given, inputs: SelftestInputs) -> Numbers:
    items = [BenchItem(str(i), "") for i in range(1, given["ids"] + 1)]
    found = match_files([Path(f"{item.id}_a prompt.mp4") for item in items], items).item_of
    return {"wrong": sum(item.id != file.name.split("_")[0] for file, item in found.items())}


def sine_loudness(given: Given, inputs: SelftestInputs) -> Numbers:
    times = torch.arange(5 * _RATE, dtype=torch.float64) / _RATE
    return {"lufs": loudness(given["level"] * torch.sin(2 * torch.pi * given["frequency"] * times), _RATE)}


def silence(given: Given, inputs: SelftestInputs) -> Numbers:
    tone = np.sin(2 * np.pi * 440 * np.arange(given["tone"] * _RATE) / _RATE)
    found = silence_shares(np.pad(tone, (0, given["nothing"] * _RATE)).astype(np.float32), _RATE)
    return {"silence": found.total, "digital_silence": found.digital}


def cut_noise(given: Given, inputs: SelftestInputs) -> Numbers:
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(4 * _RATE))
    spectrum[np.fft.rfftfreq(4 * _RATE, 1 / _RATE) > given["edge"]] = 0
    return {"band_edge": band_edge(np.fft.irfft(spectrum).astype(np.float32), _RATE)}


def events_at_peaks(given: Given, inputs: SelftestInputs) -> Numbers:
    return {"av_align": av_align.intersection_over_union(given["onsets"], given["peaks"], given["fps"])}


def dover_fusion(given: Given, inputs: SelftestInputs) -> Numbers:
    found = DoverScore(given["technical"], given["aesthetic"])
    return {"technical": found.technical, "aesthetic": found.aesthetic, "overall": found.overall}


def speech_lag(given: Given, inputs: SelftestInputs) -> Numbers:
    return score_file(inputs.media[given["media"]], ["speech-lag"]).values


def syncnet_of_faces(given: Given, inputs: SelftestInputs) -> Numbers:
    """A recording of a cropped face, every picture of it, as syncnet_python's demonstration measures it."""
    clip = DecodedClip.read(inputs.media[given["media"]])
    faces = np.stack(list(clip.pictures_of(range(len(clip.times)))))
    voice = np.asarray(clip.sound(RATE_16K, sample_format="s16"), np.int16)
    found = score_lip_sync(lip_features(inputs.weights.open("syncnet", _CPU), faces, voice))
    return {"lse_d": found.distance, "lse_c": found.confidence, "offset": found.offset}


def sound_classes(given: Given, inputs: SelftestInputs) -> Numbers:
    """Probabilities of AudioSet's classes of these numbers."""
    clip = DecodedClip.read(inputs.media[given["media"]])
    sound = torch.from_numpy(np.asarray(clip.sound(RATE_16K), np.float32))
    found = event_probabilities(inputs.weights.open("eat", _CPU), [sound], RATE_16K)[0]
    return {name: float(found[number]) for name, number in given["classes"].items()}


def score_of_file(given: Given, inputs: SelftestInputs) -> Numbers:
    """A declared score of a recording, in a convention."""
    runner = ScoreRunner(inputs.weights, convention=given["convention"])
    found = score_file(inputs.media[given["media"]], [given["score"]], runner=runner)
    if given["score"] in found.reasons:
        raise MovaError(found.reasons[given["score"]])
    return found.values


def vote_strengths(given: Given, inputs: SelftestInputs) -> Numbers:
    """Elo of systems A, B, ... from wins[i][j], how often system i beat j; Elo and its standard error."""
    games = [(i, j) for i, row in enumerate(given["wins"]) for j, count in enumerate(row) for _ in range(count)]
    left, right = (list(side) for side in zip(*games, strict=True))
    names = [chr(ord("A") + i) for i in range(len(given["wins"]))]
    fitted = fit_strengths(CastVotes.plain(names, left, right, [1.0] * len(games)))
    errors = standard_errors(fitted, ELO * np.eye(len(names)), "information")
    found = {f"elo_{name}": float(CENTRE + ELO * fitted.beta[i]) for i, name in enumerate(names)}
    return found | {f"error_{name}": float(errors[i]) for i, name in enumerate(names)}


CHECKS: dict[str, Callable[[Given, SelftestInputs], Numbers]] = {
    "inception_score": inception_score,
    "frechet_distance": frechet_distance,
    "frechet_bias": frechet_bias,
    "kl_divergence": kl_divergence,
    "kernel_distance": kernel_distance,
    "dnsmos": dnsmos,
    "dnsmos_windows": dnsmos_windows,
    "desync_segments": desync_segments,
    "desync_classes": desync_classes,
    "shifted_sound": shifted_sound,
    "lip_sync": lip_sync,
    "syncnet_parameters": syncnet_parameters,
    "cp_cer": speaker_errors,
    "whole_ids": whole_ids,
    "loudness": sine_loudness,
    "silence": silence,
    "band_edge": cut_noise,
    "av_align": events_at_peaks,
    "dover_fusion": dover_fusion,
    "vote_strengths": vote_strengths,
    "speech_lag": speech_lag,
    "syncnet_of_faces": syncnet_of_faces,
    "sound_classes": sound_classes,
    "score_of_file": score_of_file,
}
