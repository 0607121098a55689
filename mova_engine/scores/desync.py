"""DeSync: by how many seconds picture and sound disagree, as Synchformer sees it (seconds, down).

The clip is cut into segments of 0.64 s every 0.32 s. Synchformer gives logits of 21 offsets from -2 to 2 s for 14
segments, 4.8 s; DeSync is the mean of the offset's size over the first 14 and the last 14. It is a multiple of 0.1,
loses the sign, and cannot exceed 2. Source: v-iashin/Synchformer and hkchengrex/av-benchmark (both MIT).

Conventions "mova" and "av-benchmark" compute the same from pictures and samples; they differ in what is decoded.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.features.mel import mel_filter_bank, mel_spectrum
from mova_engine.scores.features.picture_size import centre_crop, resize_shorter_side
from mova_engine.scores.features.resample import resample
from mova_engine.scores.networks.synchformer import BANDS, CLASSES, COLUMNS, FRAMES, SEGMENTS, SIDE, Synchformer

FPS = 25
SAMPLE_RATE = 16000
FRAME_STEP = 8
SEGMENT_SAMPLES = 10240
SAMPLE_STEP = 5120
N_FFT = 1024
WINDOW = 400
HOP = 160
LOG_OFFSET = 1e-6
MEL_MEAN = -4.2677393
TWICE_MEL_STD = 9.1379948
# Segments of pictures that pass the network together: on a CPU more of them are slower, and need memory everywhere.
_AT_ONCE = {"cpu": 1}
_AT_ONCE_ELSEWHERE = 8


@dataclass(frozen=True)
class Desync:
    """seconds: DeSync, of the absolute offsets in the first and the last window. offsets: both in seconds, signed.

    A positive offset means that the sound is early.
    """

    seconds: float
    offsets: tuple[float, float]


def clip_lengths(seconds: float | Fraction) -> tuple[int, int]:
    """Pictures and samples of a clip of so many seconds, rounded down."""
    return int(FPS * seconds), int(SAMPLE_RATE * seconds)


def segment_counts(frames: int, samples: int) -> tuple[int, int]:
    """Segments of pictures and of sound."""
    return max(0, (frames - FRAMES) // FRAME_STEP + 1), max(0, (samples - SEGMENT_SAMPLES) // SAMPLE_STEP + 1)


def require_segments(segments: int) -> None:
    """MovaError where a clip has fewer segments than DeSync reads."""
    if segments < SEGMENTS:
        raise MovaError(f"DeSync needs {SEGMENTS} segments (120 pictures at 25 per second, 4.8 s), got {segments}")


def class_grid() -> Tensor:
    """The 21 offsets in seconds, float32, from -2 to 2."""
    return torch.from_numpy(np.linspace(-2, 2, CLASSES)).to(torch.float32)


def network_pictures(pictures: Tensor) -> Tensor:
    """Pictures [..., 3, h, w], red first, uint8 or float in 0..1 -> float32 [..., 3, 224, 224], about -1..1.

    The shorter side becomes 224 (bicubic, low-pass filtered), the middle is cut out. 8-bit pictures are rounded after
    resizing, floats neither rounded nor clamped: the reference does either, by its decoder.
    """
    square = centre_crop(resize_shorter_side(pictures, SIDE), SIDE)
    return (_unit_range(square) - 0.5) / 0.5


def _unit_range(pictures: Tensor) -> Tensor:
    return pictures.to(torch.float32) / 255 if pictures.dtype == torch.uint8 else pictures.to(torch.float32)


def mono_16k(samples: Tensor, sample_rate: int, count: int | None = None) -> Tensor:
    """The mean of channels [channels, n] at 16 kHz [count]; MovaError where the sound is shorter than count."""
    mono = resample(samples.mean(0), sample_rate, SAMPLE_RATE)
    if count is None:
        return mono
    if len(mono) < count:
        raise MovaError(f"the sound is too short for DeSync: {len(mono)} of {count} samples at {SAMPLE_RATE} Hz")
    return mono[:count]


def filter_bank() -> Tensor:
    """Synchformer's mel bands, HTK's scale without normalisation: float32 [513, 128]."""
    return mel_filter_bank(SAMPLE_RATE, N_FFT, BANDS, scale="htk", norm=None)


def sound_segments(samples: Tensor) -> Tensor:
    """Samples float32 [b, n] at 16 kHz -> normalised log mel energies [b, segments, 128, 66].

    A segment gives 65 columns; the 66th is 0 in the logarithm. MovaError where there is no whole segment.
    """
    if samples.shape[-1] < SEGMENT_SAMPLES:
        raise MovaError(f"{samples.shape[-1]} samples hold no segment of {SEGMENT_SAMPLES}")
    cut = samples.unfold(-1, SEGMENT_SAMPLES, SAMPLE_STEP)
    mel = mel_spectrum(cut, filter_bank(), HOP, n_fft=N_FFT, window_length=WINDOW).transpose(-1, -2)
    logarithm = F.pad(torch.log(mel + LOG_OFFSET), (0, COLUMNS - mel.shape[-1]))
    return (logarithm - MEL_MEAN) / TWICE_MEL_STD


@torch.no_grad()
def video_features(network: Synchformer, pictures: Tensor) -> Tensor:
    """`network_pictures` [b, t, 3, 224, 224] -> [b, segments, 8, 768]. MovaError where there is no whole segment."""
    if pictures.shape[1] < FRAMES:
        raise MovaError(f"{pictures.shape[1]} pictures hold no segment of {FRAMES}")
    starts = range(0, pictures.shape[1] - FRAMES + 1, FRAME_STEP)
    count = _AT_ONCE.get(pictures.device.type, _AT_ONCE_ELSEWHERE)
    features = []
    for i in range(0, len(starts), count):
        segments = torch.stack([pictures[:, s : s + FRAMES] for s in starts[i : i + count]], 1)
        features.append(network.video_features(segments))
    return torch.cat(features, 1)


@torch.no_grad()
def audio_features(network: Synchformer, samples: Tensor) -> Tensor:
    """Samples float32 [b, n] at 16 kHz -> [b, segments, 6, 768]."""
    return network.audio_features(sound_segments(samples))


@torch.no_grad()
def window_logits(network: Synchformer, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [b, 21] of the first and of the last 14 segments; with 14 segments both are the whole clip.

    MovaError below 14 segments: 120 pictures at 25 per second, 4.8 s.
    """
    require_segments(min(video.shape[1], audio.shape[1]))
    # Where pictures and sound end in different segments, the reference pairs the last ones of each.
    first = network.compare(video[:, :SEGMENTS], audio[:, :SEGMENTS])
    return first, network.compare(video[:, -SEGMENTS:], audio[:, -SEGMENTS:])


def score_desync(first: Tensor, last: Tensor) -> list[Desync]:
    """The scores of clips from `window_logits`, one for each."""
    grid = class_grid()
    chosen = torch.stack([grid[logits.argmax(-1).cpu()] for logits in (first, last)], 1).tolist()
    return [Desync((abs(a) + abs(b)) / 2, (a, b)) for a, b in chosen]


def measure_desync(network: Synchformer, pictures: Tensor, samples: Tensor) -> Desync:
    """DeSync of one clip.

    pictures: [t, 3, h, w] at 25 per second, as `network_pictures` reads them. samples: float32 [n] at 16 kHz, mono.
    """
    video = video_features(network, network_pictures(pictures)[None])
    return score_desync(*window_logits(network, video, audio_features(network, samples[None])))[0]
