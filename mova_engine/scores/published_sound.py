"""Silence, signal-to-noise ratio and bandwidth as MOVA's evaluation computes them, for comparison with its numbers.

What they are called is not what they say. Silence is what lies 40 dB below the loudest frame of the same sound, and
counts only between sounds: 7 s of silence after 1 s of tone are none, and digital silence is none. The noise of the
ratio is that inner silence, so a sound without has no ratio (there: infinite). "Bandwidth" is the standard deviation of
the spectrum around its centroid: 36 Hz for a tone of 440 Hz, 9,948 Hz for tones of 100 Hz and 20 kHz. The steps are
those of librosa's `effects.split` and `feature.spectral_bandwidth`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import get_window

from mova_engine.errors import MovaError

Floats = NDArray[np.float32]
_FRAME, _HOP = 2048, 512
_SILENT_DB = -40.0
_LEAST_AMPLITUDE = 1e-5
# Noise of less power makes no ratio.
_LEAST_NOISE = 1e-10
# Frames whose spectra are in memory at once.
_TOGETHER = 512


@dataclass(frozen=True)
class PublishedSilence:
    """ratio: inner silence's share of the sound; snr: power of the sound against that of the inner silence in dB, None
    where there is no such silence, or next to no power in it.
    """

    ratio: float
    snr: float | None


def published_silence(sound: Floats) -> PublishedSilence:
    """Silence and signal-to-noise ratio of mono sound [n] in -1..1. MovaError for no sound."""
    inner = [(start, end) for start, end in _silences(sound) if start > 0 and end < len(sound)]
    ratio = sum(end - start for start, end in inner) / len(sound)
    noise = np.concatenate([sound[start:end] for start, end in inner]) if inner else np.zeros(1, np.float32)
    power = float(np.mean(noise**2))
    if power < _LEAST_NOISE:
        return PublishedSilence(ratio, None)
    return PublishedSilence(ratio, float(10 * np.log10(np.mean(sound**2) / power)))


def published_bandwidth(sound: Floats, sample_rate: int) -> float:
    """The mean over frames of 2048 samples, every 512, of the spectrum's standard deviation in Hz, by magnitude.

    Mono sound [n]; a frame of digital silence counts as 0. MovaError for no sound.
    """
    window = np.asarray(get_window("hann", _FRAME), np.float32)
    frequencies = np.fft.rfftfreq(_FRAME, 1 / sample_rate)
    found = []
    for frames in _frames(sound):
        magnitude = np.abs(np.fft.rfft(frames * window)).astype(np.float64)
        total = magnitude.sum(1, keepdims=True)
        share = np.divide(magnitude, total, out=np.zeros_like(magnitude), where=total > np.finfo(np.float32).tiny)
        centroid = share @ frequencies
        found.append(np.sqrt((share * (frequencies - centroid[:, None]) ** 2).sum(1)))
    return float(np.concatenate(found).mean())


def _silences(sound: Floats) -> list[tuple[int, int]]:
    """Samples [(start, end)] of what is 40 dB below the loudest frame and more, before, between and after sounds."""
    amplitude = np.concatenate([np.sqrt(np.mean(frames**2, 1)) for frames in _frames(sound)])
    level = 20 * np.log10(np.maximum(_LEAST_AMPLITUDE, amplitude))
    heard = np.concatenate(([False], level > level.max() + _SILENT_DB, [False]))
    edges = np.minimum(np.flatnonzero(heard[1:] != heard[:-1]) * _HOP, len(sound)).tolist()
    return list(zip([0, *edges[1::2]], [*edges[::2], len(sound)], strict=True))


def _frames(sound: Floats) -> Iterator[Floats]:
    """Frames [m, 2048] of the sound every 512 samples, centred, with zeros beyond both ends."""
    if not len(sound):
        raise MovaError("there is no sound")
    padded = np.pad(sound, _FRAME // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP]
    for start in range(0, len(frames), _TOGETHER):
        yield frames[start : start + _TOGETHER]
