"""The ImageBind score: do picture and sound show the same kind of thing? (cosine, up)

Pictures are taken at 0.5 per second, every consecutive pair is embedded in three crops; three clips of 2 s of sound are
embedded. The score is the cosine of the two means of embeddings of length 1. Papers print it times 100. Sources:
facebookresearch/ImageBind, hkchengrex/av-benchmark, PyTorchVideo's ConstantClipsPerVideoSampler.

Conventions "mova" and "av-benchmark" prepare sound as published: only the first channel reaches the filter bank, but
the mean of all channels is subtracted from it, in place, so that a clip that overlaps an earlier one hears samples
altered by it (and at 16 kHz the next score too). "corrected" takes the mean of the channels and changes nothing.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.features.kaldi import fbank
from mova_engine.scores.features.picture_size import resize_shorter_side
from mova_engine.scores.features.resample import resample
from mova_engine.scores.networks.imagebind import SIDE, ImageBind

Convention = Literal["mova", "av-benchmark", "corrected"]
FRAME_RATE = 0.5
PICTURE_MEAN = (0.48145466, 0.4578275, 0.40821073)
PICTURE_STD = (0.26862954, 0.26130258, 0.27577711)
SAMPLE_RATE = 16000
CLIP_SECONDS = 2
CLIPS = 3
MEL_BINS = 128
COLUMNS = 204
MEL_MEAN = -4.268
MEL_STD = 9.138


@dataclass(frozen=True)
class PreparedSound:
    """mel [3, 128, 204], normalised. samples [channels, n] at 16 kHz as the preparation leaves them."""

    mel: Tensor
    samples: Tensor


def clip_times(seconds: float) -> list[tuple[Fraction, Fraction]]:
    """Start and end in seconds of the three clips of a sound: every third of what is left beside one clip."""
    spare = Fraction(max(seconds - CLIP_SECONDS, 0))
    starts = [spare / CLIPS * index for index in range(CLIPS)]
    return [(start, start + CLIP_SECONDS) for start in starts]


def clip_samples(count: int) -> list[tuple[int, int]]:
    """First sample and the one after the last of each clip of a sound of `count` samples at 16 kHz."""
    return [(int(start * SAMPLE_RATE), int(end * SAMPLE_RATE)) for start, end in clip_times(count / SAMPLE_RATE)]


def prepare_sound(samples: Tensor, sample_rate: int, convention: Convention = "mova") -> PreparedSound:
    """Mel energies of three clips of samples float32 [channels, n], which stay as they are.

    A sound of less than 2 s gives the same clip three times, padded with zeros in the logarithm. MovaError for a sound
    without a frame of 25 ms.
    """
    sound = resample(samples, sample_rate, SAMPLE_RATE)
    if convention == "corrected":
        sound = sound.mean(0, keepdim=True)
    if sound is samples or sound.data_ptr() == samples.data_ptr():
        sound = sound.clone()
    clips = []
    for start, end in clip_samples(sound.shape[1]):
        # A view: what is subtracted from this clip is missing in the next one that overlaps it.
        clip = sound[:, start:end] if convention != "corrected" else sound[:, start:end].clone()
        clip -= clip.mean()
        clips.append(_normalised(fbank(clip[0], SAMPLE_RATE, mels=MEL_BINS)))
    return PreparedSound(torch.stack(clips), sound)


def _normalised(energies: Tensor) -> Tensor:
    """Log mel energies [frames, 128] -> [128, 204]."""
    if not len(energies):
        raise MovaError("the sound is too short for the ImageBind score: it has no frame of 25 ms")
    padded = F.pad(energies.T, (0, COLUMNS - len(energies)))  # a negative count cuts
    return (padded - MEL_MEAN) / MEL_STD


def prepare_pictures(pictures: Tensor) -> Tensor:
    """Pictures [t, 3, h, w], red first, uint8 or float in 0..1 -> three crops [3, t, 3, 224, 224], normalised.

    The shorter side becomes 224 (bicubic, low-pass filtered; 8-bit pictures are rounded after it); the crops are at the
    start, the middle and the end of the longer side.
    """
    sized = resize_shorter_side(pictures, SIDE)
    unit = sized.to(torch.float32) / 255 if sized.dtype == torch.uint8 else sized.to(torch.float32)
    normal = normalise_pictures(unit)
    height, width = normal.shape[-2:]
    spare = max(height, width) - SIDE
    crops = []
    for offset in (0, (spare + 1) // 2, spare):
        top, left = (offset, 0) if height > width else (0, offset)
        crops.append(normal[..., top : top + SIDE, left : left + SIDE])
    return torch.stack(crops)


def normalise_pictures(pictures: Tensor) -> Tensor:
    """Pictures float [..., 3, h, w] in 0..1, less CLIP's mean and divided by its deviation."""
    mean, std = (torch.tensor(values, device=pictures.device)[:, None, None] for values in (PICTURE_MEAN, PICTURE_STD))
    return (pictures - mean) / std


@torch.no_grad()
def video_embedding(network: ImageBind, crops: Tensor) -> Tensor:
    """`prepare_pictures` of clips [b, 3, t, 3, 224, 224] -> [b, out], the mean over pairs and crops of unit embeddings.

    A single picture is paired with itself. The mean itself is shorter than 1.
    """
    if crops.shape[2] == 1:
        crops = crops.repeat(1, 1, 2, 1, 1, 1)
    pairs = torch.cat([crops[:, :, i : i + 2] for i in range(crops.shape[2] - 1)], 1)
    return network.vision(pairs.flatten(0, 1).transpose(1, 2)).unflatten(0, pairs.shape[:2]).mean(1)


@torch.no_grad()
def audio_embedding(network: ImageBind, mel: Tensor) -> Tensor:
    """Mel energies of clips [b, 3, 128, 204] -> [b, out], the mean over the three of embeddings of length 20."""
    return network.audio(mel.flatten(0, 1)[:, None]).unflatten(0, mel.shape[:2]).mean(1)


def score_imagebind(video: Tensor, audio: Tensor) -> Tensor:
    """The cosines [b] of embeddings [b, out] of pictures and of sound."""
    return F.cosine_similarity(video, audio, dim=-1)


def frame_count(seconds: float | Fraction) -> int:
    """Pictures that a clip of so many seconds gives."""
    return int(FRAME_RATE * seconds)
