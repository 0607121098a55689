"""Mel-frequency cepstral coefficients as SyncNet was trained on: the definition of python_speech_features.

Frames of 25 ms every 10 ms without a window, pre-emphasis 0.97 over the whole sound, |FFT|^2 / n, triangles between mel
points that are rounded down to bins, logarithm, orthonormal DCT-II, lifter, and the frame's energy in place of
coefficient 0. All in float64.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct

from mova_engine.errors import MovaError

Array = NDArray[np.float64]
# What a band or frame without energy is given before the logarithm.
_NOTHING = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class MfccConfig:
    """The sizes; the defaults are SyncNet's. Times in seconds, frequencies in Hz."""

    sample_rate: int = 16000
    window: float = 0.025
    step: float = 0.01
    coefficients: int = 13
    bands: int = 26
    fft: int = 512
    lowest: float = 0.0
    highest: float = 8000.0
    preemphasis: float = 0.97
    lifter: int = 22
    energy_first: bool = True

    @property
    def frame(self) -> tuple[int, int]:
        """Samples of a frame, and from one frame to the next."""
        return _half_up(self.window * self.sample_rate), _half_up(self.step * self.sample_rate)


class Energies(NamedTuple):
    """power [frames, fft / 2 + 1], bands [frames, bands], frame [frames]: |FFT|^2 / fft and its sums."""

    power: Array
    bands: Array
    frame: Array


def mfcc(samples: ArrayLike, config: MfccConfig | None = None) -> Array:
    """Coefficients [frames, coefficients] in float64 of one channel of samples [n].

    SyncNet hears 16-bit integers as they are (-32768..32767), not fractions of full scale. A sound shorter than a
    window gives one frame, the end of the last frame is padded with zeros.
    """
    config = config or MfccConfig()
    energies = band_energies(samples, config)
    cepstra = np.asarray(dct(np.log(energies.bands), type=2, axis=1, norm="ortho"))[:, : config.coefficients]
    if config.lifter > 0:
        index = np.arange(cepstra.shape[1])
        cepstra = cepstra * (1 + config.lifter / 2 * np.sin(np.pi * index / config.lifter))
    if config.energy_first:
        cepstra[:, 0] = np.log(energies.frame)
    return cepstra


def frame_count(samples: int, config: MfccConfig | None = None) -> int:
    """Frames of a sound of so many samples; at least one, the last one filled with zeros."""
    length, step = (config or MfccConfig()).frame
    return 1 + max(0, math.ceil((samples - length) / step))


def band_energies(samples: ArrayLike, config: MfccConfig | None = None) -> Energies:
    """Power spectra of the frames and their sums by band and in all, before the logarithm; none of them is 0.

    MovaError for anything but one channel of at least one sample.
    """
    config = config or MfccConfig()
    sound = np.asarray(samples, np.float64)
    if sound.ndim != 1 or not len(sound):
        raise MovaError(f"expected one channel of samples [n], got an array of {list(sound.shape)}")
    length, step = config.frame
    if length > config.fft:
        raise MovaError(f"a frame of {length} samples does not fit an FFT of {config.fft}")
    emphasised = np.append(sound[0], sound[1:] - config.preemphasis * sound[:-1])
    frames = frame_count(len(sound), config)
    padded = np.zeros((frames - 1) * step + length)
    padded[: len(sound)] = emphasised[: len(padded)]
    cut = np.lib.stride_tricks.sliding_window_view(padded, length)[::step]
    power = np.abs(np.fft.rfft(cut, config.fft)) ** 2 / config.fft
    bands, total = power @ filter_bank(config).T, power.sum(1)
    return Energies(power, np.where(bands == 0, _NOTHING, bands), np.where(total == 0, _NOTHING, total))


def filter_bank(config: MfccConfig | None = None) -> Array:
    """Triangles [bands, fft / 2 + 1] of height 1 between bins that are equally far apart in mel, rounded down."""
    config = config or MfccConfig()
    mel = np.linspace(_mel(config.lowest), _mel(config.highest), config.bands + 2)
    bins = np.floor((config.fft + 1) * 700 * (10 ** (mel / 2595) - 1) / config.sample_rate).astype(int)
    bank = np.zeros((config.bands, config.fft // 2 + 1))
    for row, (left, middle, right) in zip(bank, zip(bins, bins[1:], bins[2:], strict=False), strict=True):
        row[left:middle] = (np.arange(left, middle) - left) / max(middle - left, 1)
        row[middle:right] = (right - np.arange(middle, right)) / max(right - middle, 1)
    return bank


def _mel(frequency: float) -> float:
    return 2595 * math.log10(1 + frequency / 700)


def _half_up(number: float) -> int:
    """Halves upward, exactly in decimal digits: 0.025 * 16000 is 400."""
    return math.floor(round(number, 6) + 0.5)
