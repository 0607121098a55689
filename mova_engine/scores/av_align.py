"""AV-Align: how many onsets of the sound meet peaks of the picture's motion.

Onsets: spectral flux of a mel spectrogram with peak picking, with the defaults of librosa's `onset_strength` and
`onset_detect` (Boeck et al. 2012). Motion: the mean magnitude of Farneback's optical flow, by OpenCV. Source of the
score: Yariv et al. 2023 (arXiv 2309.16429); options as in MOVA's evaluation.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mova_engine.errors import MovaError
from mova_engine.scores.features.mel import decibels, mel_filter_bank, mel_spectrum
from mova_engine.scores.optional_opencv import opencv

Array = NDArray[np.float64]
SAMPLE_RATE = 44100
HOP = 512
_N_FFT, _MELS, _RANGE_DB = 2048, 128, 80.0
# librosa's peak picking: seconds before and after a peak for its maximum, for its mean, and to the next; the excess.
_MAX_BEFORE, _MEAN_AROUND, _WAIT, _DELTA = 0.03, 0.10, 0.03, 0.07
FLOW = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}
LEAST_FLOW = 0.1  # pixels, as published
# The same of a picture of 720 rows, in heights of the picture, whatever its size.
LEAST_SHIFT = LEAST_FLOW / 720


def onset_strength(sound: NDArray[np.float32], sample_rate: int = SAMPLE_RATE, hop: int = HOP) -> NDArray[np.float32]:
    """Mean rise in dB over the mel bands at each hop, [1 + n // hop] for mono sound [n] in -1..1."""
    bank = mel_filter_bank(sample_rate, _N_FFT, _MELS, scale="slaney", norm="slaney")
    mel = mel_spectrum(torch.from_numpy(sound), bank, hop, n_fft=_N_FFT, pad_mode="constant")
    levels = decibels(mel).numpy()
    levels = np.maximum(levels, levels.max() - _RANGE_DB)
    rise = np.maximum(0, levels[1:] - levels[:-1]).mean(1)
    # A frame is centred on its hop: a rise shows half a window late.
    shift = 1 + _N_FFT // (2 * hop)
    return np.pad(rise, (shift, 0))[: len(levels)]


def onset_times(strength: NDArray[np.floating[Any]], sample_rate: int = SAMPLE_RATE, hop: int = HOP) -> list[float]:
    """Seconds of the onsets: local maxima of the strength that exceed its mean around them, scaled to 0..1."""
    if not strength.any():
        return []
    x = strength - strength.min()
    x = x / (x.max() + np.finfo(x.dtype).tiny)
    before, around, wait = (int(each * sample_rate // hop) for each in (_MAX_BEFORE, _MEAN_AROUND, _WAIT))
    peaks, n = [], 0
    while n < len(x):
        # The first frame has nothing before it; maxima are sought up to the frame itself.
        highest = x[max(0, n - before) : n + 1].max()
        mean = x[max(0, n - around) : n + around + 1].mean()
        if x[n] == highest and x[n] >= mean + _DELTA:
            peaks.append(n)
            n += wait
        n += 1
    return [peak * hop / sample_rate for peak in peaks]


def grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [h, w, 3], RGB, in grey [h, w] by OpenCV's weights."""
    cv2 = opencv("AV-Align")
    return cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)


def flow_between(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Farneback's flow [h, w, 2] in pixels (x, y) between two grey pictures."""
    return opencv("AV-Align").calcOpticalFlowFarneback(before, after, None, *FLOW.values())


def mean_flow(greys: Iterable[NDArray[np.uint8]]) -> Array:
    """The mean flow of each picture from the one before it, in pixels; the first entry repeats the second.

    Raises MovaError for fewer than two pictures.
    """
    cv2 = opencv("AV-Align")
    found, last = [], None
    for picture in greys:
        if last is not None:
            flow = flow_between(last, picture)
            found.append(cv2.mean(cv2.magnitude(flow[..., 0], flow[..., 1]))[0])
        last = picture
    if not found:
        raise MovaError("AV-Align wants at least two pictures")
    return np.array([found[0], *found])


def motion_peaks(flow: Array, fps: float, least: float = LEAST_FLOW) -> list[float]:
    """Seconds of the strict local maxima that reach `least`; the first and last pictures never count."""
    inner = flow[1:-1]
    peaks = (flow[:-2] < inner) & (inner > flow[2:]) & (inner >= least)
    return [int(i + 1) / fps for i in np.flatnonzero(peaks)]


def intersection_over_union(onsets: Sequence[float], peaks: Sequence[float], fps: float) -> float:
    """Matches / (onsets + peaks - matches): each onset takes the first free peak closer than a frame. 0 without any."""
    free, matches = list(peaks), 0
    for onset in onsets:
        for peak in free:
            if peak - 1 / fps < onset < peak + 1 / fps:
                free.remove(peak)
                matches += 1
                break
    union = len(onsets) + len(peaks) - matches
    return matches / union if union else 0.0
