"""What `mova eval selftest` computes: for each kind of example a function of its input that returns {number: value}.

given: the input as the table states it. media: the files that the example needs, by name.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mova_engine.evaluation.benches.bench_items import BenchItem
from mova_engine.evaluation.benches.clip_matching import match_files
from mova_engine.scores import av_align, desync, distances
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.dnsmos import RATE as DNSMOS_RATE
from mova_engine.scores.dnsmos import Dnsmos, windows_of
from mova_engine.scores.dover_score import DoverScore
from mova_engine.scores.lip_sync import LipFeatures, score_lip_sync
from mova_engine.scores.loudness import loudness
from mova_engine.scores.networks.syncnet import SyncNet
from mova_engine.scores.score_file import score_file
from mova_engine.scores.sound_quality import band_edge, silence_shares
from mova_engine.scores.speaker_errors import cp_cer

Given = Mapping[str, Any]
Media = Mapping[str, Path]
Numbers = dict[str, float]
_RATE = 48000
# Length of SyncNet's features of sound and picture, about, on real clips.
_FEATURE_NORM, _FEATURES = 9.6, 1024


def inception_score(given: Given, media: Media) -> Numbers:
    kind = given["probabilities"]
    if kind == "one-hot":
        p = np.eye(given["classes"])
    elif kind == "uniform":
        p = np.full((given["classes"], given["classes"]), 1 / given["classes"])
    else:
        logits = np.random.default_rng(0).standard_normal((given["clips"], given["classes"]))
        p = distances.softmax_of_logits(logits)
    return {"inception_score": distances.inception_score(p)}


def frechet_distance(given: Given, media: Media) -> Numbers:
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


def frechet_bias(given: Given, media: Media) -> Numbers:
    drawn = np.random.default_rng(0)
    size = (given["clips"], given["dimensions"])
    return {"frechet_distance": distances.frechet_distance(drawn.standard_normal(size), drawn.standard_normal(size))}


def kl_divergence(given: Given, media: Media) -> Numbers:
    real, generated = (np.log(np.array([given[which]] * 3)) for which in ("real", "generated"))
    return {"kl": distances.kl_divergence(real, generated)}


def kernel_distance(given: Given, media: Media) -> Numbers:
    first, second = (np.array([given[which]] * 4, np.float64) for which in _SETS)
    return {"kid": distances.kernel_distance(first, second, subsets=1).mean}


def dnsmos(given: Given, media: Media) -> Numbers:
    samples = _sound(given, media)
    found = Dnsmos().rate(samples, DNSMOS_RATE, convention="mova")
    return {"p808": found.p808_mos, "sig": found.sig, "bak": found.bak, "ovrl": found.ovrl}


def _sound(given: Given, media: Media) -> np.ndarray:
    if "media" in given:
        found = DecodedClip.read(media[given["media"]]).sound(DNSMOS_RATE, sample_format="s16")
        return np.asarray(found, np.float64)[: given.get("samples")] / 32768
    count = given["samples"]
    if given["sound"] == "sine":
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(count) / DNSMOS_RATE)
    return 0.1 * np.random.default_rng(0).standard_normal(count) if given["sound"] == "white-noise" else np.zeros(count)


def dnsmos_windows(given: Given, media: Media) -> Numbers:
    windows, asked = windows_of(np.ones(given["seconds"] * DNSMOS_RATE), given["convention"])
    return {"asked": asked, "rated": len(windows)}


def desync_segments(given: Given, media: Media) -> Numbers:
    frames, samples = desync.clip_lengths(given["seconds"])
    return {"frames": frames, "samples": samples, "segments": min(desync.segment_counts(frames, samples))}


def desync_classes(given: Given, media: Media) -> Numbers:
    return {f"class_{i}": float(x) for i, x in enumerate(desync.class_grid())}


def lip_sync(given: Given, media: Media) -> Numbers:
    drawn = torch.Generator().manual_seed(0)

    def features(windows: int) -> torch.Tensor:
        x = torch.randn(windows, _FEATURES, generator=drawn)
        return x * (_FEATURE_NORM / x.norm(dim=1, keepdim=True))

    lip = features(given.get("windows", 100))
    sound = features(len(lip)) if given["streams"] == "unrelated" else lip.roll(given.get("by", 0), 0)
    found = score_lip_sync(LipFeatures(lip, sound))
    return {"lse_d": found.distance, "lse_c": found.confidence, "offset": found.offset}


def syncnet_parameters(given: Given, media: Media) -> Numbers:
    with torch.device("meta"):
        network = SyncNet()
    tensors = {name: x for name, x in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    return {"parameters": sum(x.numel() for x in tensors.values())}


def speaker_errors(given: Given, media: Media) -> Numbers:
    found = cp_cer(given["reference"], given["hypothesis"]).count
    return {"errors": found.errors, "characters": found.characters}


def whole_ids(given: Given, media: Media) -> Numbers:
    items = [BenchItem(str(i), "") for i in range(1, given["ids"] + 1)]
    found = match_files([Path(f"{item.id}_a prompt.mp4") for item in items], items).item_of
    return {"wrong": sum(item.id != file.name.split("_")[0] for file, item in found.items())}


def sine_loudness(given: Given, media: Media) -> Numbers:
    times = torch.arange(5 * _RATE, dtype=torch.float64) / _RATE
    return {"lufs": loudness(given["level"] * torch.sin(2 * torch.pi * given["frequency"] * times), _RATE)}


def silence(given: Given, media: Media) -> Numbers:
    tone = np.sin(2 * np.pi * 440 * np.arange(given["tone"] * _RATE) / _RATE)
    found = silence_shares(np.pad(tone, (0, given["nothing"] * _RATE)).astype(np.float32), _RATE)
    return {"silence": found.total, "digital_silence": found.digital}


def cut_noise(given: Given, media: Media) -> Numbers:
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(4 * _RATE))
    spectrum[np.fft.rfftfreq(4 * _RATE, 1 / _RATE) > given["edge"]] = 0
    return {"band_edge": band_edge(np.fft.irfft(spectrum).astype(np.float32), _RATE)}


def events_at_peaks(given: Given, media: Media) -> Numbers:
    return {"av_align": av_align.intersection_over_union(given["onsets"], given["peaks"], given["fps"])}


def dover_fusion(given: Given, media: Media) -> Numbers:
    found = DoverScore(given["technical"], given["aesthetic"])
    return {"technical": found.technical, "aesthetic": found.aesthetic, "overall": found.overall}


def speech_lag(given: Given, media: Media) -> Numbers:
    return score_file(media[given["media"]], ["speech-lag"]).values


CHECKS: dict[str, Callable[[Given, Media], Numbers]] = {
    "inception_score": inception_score,
    "frechet_distance": frechet_distance,
    "frechet_bias": frechet_bias,
    "kl_divergence": kl_divergence,
    "kernel_distance": kernel_distance,
    "dnsmos": dnsmos,
    "dnsmos_windows": dnsmos_windows,
    "desync_segments": desync_segments,
    "desync_classes": desync_classes,
    "lip_sync": lip_sync,
    "syncnet_parameters": syncnet_parameters,
    "cp_cer": speaker_errors,
    "whole_ids": whole_ids,
    "loudness": sine_loudness,
    "silence": silence,
    "band_edge": cut_noise,
    "av_align": events_at_peaks,
    "dover_fusion": dover_fusion,
    "speech_lag": speech_lag,
}
