"""Scores from PANNs' tags of sound: features for FD, KL and KID (Cnn14 at 16 kHz) and the inception score.

Conventions, because published numbers differ in them and cannot be compared:

* `mova`, MOVA's table: Cnn14 at 32 kHz hears each clip zero-padded (or cut) to 10 s, so that a clip of 8 s carries 2 s
  of silence; distributions are the softmax of log(p) - log(1 - p) of its sigmoid outputs in float32, where an output of
  exactly 1 gives NaN; one split.
* `av-benchmark`: Cnn14 at 16 kHz, clips as long as they are, softmax of logits, 10 splits after a shuffle.
* `corrected`: Cnn14 at 32 kHz, clips as long as they are, softmax of logits, one split.

Sources: MOVA `evaluation/metrics/audio_is_clap/IS.py`, hkchengrex/av-benchmark `metrics/isc.py`.
"""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.distances import (
    inception_score,
    probabilities_of_outputs,
    softmax_of_logits,
    split_inception_score,
)
from mova_engine.scores.features.resample import resample
from mova_engine.scores.networks.cnn14 import Cnn14, TaggedSound

TaggingConvention = Literal["mova", "av-benchmark", "corrected"]
# Seconds of sound that MOVA's inception score gives to the network, and that features of FD and KL are taken from.
IS_SECONDS = 10.0
FD_SECONDS = 8.0


def features_input(sound: Tensor, sample_rate: int, *, rate: int = 16000, seconds: float = FD_SECONDS) -> Tensor:
    """Sound [channels, n] -> what Cnn14 hears for FD and KL [at most seconds * rate]: mono, without its mean,
    resampled.

    As in MOVA's `media_dataset.py`: the mean of the channels, minus the mean over the whole sound, torchaudio's
    `Resample`, then the first `seconds`.
    """
    mono = sound.mean(0)
    return resample(mono - mono.mean(), sample_rate, rate)[: int(seconds * rate)]


def padded_or_cut(samples: Tensor, length: int) -> Tensor:
    """Samples [..., n] with zeros at the end, or cut there -> [..., length]."""
    return F.pad(samples, (0, length - samples.shape[-1]))


@torch.no_grad()
def tag_clips(network: Cnn14, clips: Iterable[Tensor], *, seconds: float | None = None) -> TaggedSound:
    """Tags of mono clips [n] of any lengths, at the network's rate and on its device; each clip is a forward of its
    own.

    seconds: pad with silence or cut to this length; None leaves the clips as long as they are. Raises MovaError without
    a clip.
    """
    length = None if seconds is None else int(seconds * network.config.sample_rate)
    found = [network((clip if length is None else padded_or_cut(clip, length))[None]) for clip in clips]
    if not found:
        raise MovaError("there is no clip to tag")
    return TaggedSound(torch.cat([x.embedding for x in found]), torch.cat([x.logits for x in found]))


def clips_inception_score(network: Cnn14, clips: Iterable[Tensor], *, convention: TaggingConvention) -> float:
    """The inception score of mono clips [n], up is better: between 1 and the number of classes.

    Of several categories, `mova` takes the mean of their scores. Raises MovaError for a network of another rate than
    the convention's, and for fewer clips than splits.
    """
    rate = 16000 if convention == "av-benchmark" else 32000
    if network.config.sample_rate != rate:
        raise MovaError(
            f"convention {convention} needs Cnn14 at {rate} Hz, this one hears {network.config.sample_rate} Hz"
        )
    tags = tag_clips(network, clips, seconds=IS_SECONDS if convention == "mova" else None)
    if convention == "mova":
        return inception_score(probabilities_of_outputs(tags.clipwise.cpu().numpy()))
    if convention == "av-benchmark":
        return split_inception_score(tags.logits.cpu().numpy()).mean
    return inception_score(softmax_of_logits(tags.logits.cpu().numpy()))
