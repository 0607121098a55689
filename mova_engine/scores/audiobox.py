"""Audiobox-Aesthetics: content enjoyment (CE), usefulness (CU), production complexity (PC) and quality (PQ), 1 to 10.

Convention, that of the package `audiobox_aesthetics`: 16 kHz mono, windows of 10 s one after the other, the last filled
with zeros that are masked; a sound's rating is the mean of its windows' ratings, weighted by their real length. CE, CU
and PQ are better up; PC is a property. The released means and deviations (`target_transform`) lie beside the weights.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.features.resample import resample
from mova_engine.scores.networks.audiobox_axes import AXES, AudioboxNetwork, AudioboxSizes
from mova_engine.scores.networks.official_files import network_of_weights, read_weights
from mova_engine.scores.networks.wavlm import WAVLM_BASE, WavlmSizes

RATE = 16000
WINDOW = 10 * RATE


@dataclass(frozen=True)
class RatingScale:
    """An axis' rating is the network's output times `deviation` plus `mean`."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class SoundWindows:
    """Windows of several sounds: samples [w, n], padding [w, n] (True beyond an end), weights and sound of each [w]."""

    samples: Tensor
    padding: Tensor
    weights: Tensor
    sound: Tensor


def mono_at_16k(sound: Tensor, sample_rate: int) -> Tensor:
    """Sound [channels, n] -> [n'] at 16 kHz: resampled, then the mean of the channels."""
    return resample(sound, sample_rate, RATE).mean(0)


def cut_windows(sounds: Sequence[Tensor], window: int = WINDOW) -> SoundWindows:
    """Mono sounds [n] of any lengths as windows one after the other. MovaError without sound."""
    if not sounds or any(len(sound) == 0 for sound in sounds):
        raise MovaError("there is no sound to rate")
    pieces = [(i, piece) for i, sound in enumerate(sounds) for piece in sound.split(window)]
    lengths = torch.tensor([len(piece) for _, piece in pieces], device=sounds[0].device)
    samples = torch.stack([F.pad(piece, (0, window - len(piece))) for _, piece in pieces])
    padding = torch.arange(window, device=samples.device) >= lengths[:, None]
    sound = torch.tensor([i for i, _ in pieces], device=samples.device)
    return SoundWindows(samples, padding, lengths / window, sound)


@torch.no_grad()
def rate(
    network: AudioboxNetwork, scales: Mapping[str, RatingScale], sounds: Sequence[Tensor], *, batch: int = 8
) -> list[dict[str, float]]:
    """Ratings by axis of mono sounds [n] at 16 kHz. batch: windows in one forward."""
    cut = cut_windows(sounds)
    parts = zip(cut.samples.split(batch), cut.padding.split(batch), strict=True)
    return weighted_ratings(torch.cat([network(*part) for part in parts]), cut, scales)


def weighted_ratings(raw: Tensor, cut: SoundWindows, scales: Mapping[str, RatingScale]) -> list[dict[str, float]]:
    """Each sound's ratings from its windows' raw ones [w, 4]."""
    mean, deviation = (raw.new_tensor([getattr(scales[axis], name) for axis in AXES]) for name in ("mean", "deviation"))
    ratings = raw * deviation + mean
    found = []
    for i in range(int(cut.sound.max()) + 1):
        weights = cut.weights[cut.sound == i, None]
        whole = (ratings[cut.sound == i] * weights).sum(0) / weights.sum()
        found.append(dict(zip(AXES, whole.tolist(), strict=True)))
    return found


def load_audiobox(path: Path, encoder: WavlmSizes = WAVLM_BASE) -> tuple[AudioboxNetwork, dict[str, RatingScale]]:
    """The released checkpoint: `checkpoint.pt`, or `model.safetensors` with its `config.json` beside it.

    The projections' layers follow from the names. Raises MovaError for what is missing or does not fit.
    """
    found = read_weights(path)
    stated = found.get("target_transform") if path.suffix != ".safetensors" else _config(path).get("target_transform")
    if not isinstance(stated, Mapping) or not all(axis in stated for axis in AXES):
        raise MovaError(f"{path} comes without 'target_transform', the means and deviations of {', '.join(AXES)}")
    scales = {axis: RatingScale(float(stated[axis]["mean"]), float(stated[axis]["std"])) for axis in AXES}
    weights = found["state_dict"] if isinstance(found.get("state_dict"), Mapping) else found
    named = {name.removeprefix("model."): x for name, x in weights.items() if isinstance(x, Tensor)}
    first = [x for name, x in named.items() if name.startswith(f"proj_layer.{AXES[0]}.") and name.endswith(".weight")]
    sizes = AudioboxSizes(encoder, sum(x.ndim == 2 for x in first), any(x.ndim == 1 for x in first))
    return network_of_weights(lambda: AudioboxNetwork(sizes), named, path), scales


def _config(path: Path) -> dict[str, Any]:
    config = path.with_name("config.json")
    try:
        found = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise MovaError(f"{path} needs its configuration beside it, and {config} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}
