"""Silence, band edge and clipping of sound, by levels that do not depend on the clip's own loudness."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import get_window

from mova_engine.errors import MovaError

Floats = NDArray[np.float32]
FRAME_SECONDS = 0.02
SILENT_DBFS = -50.0
# The band edge: the highest frequency within this many dB of the strongest one, in the mean power spectrum.
EDGE_DB = -50.0
_EDGE_FFT, _EDGE_HOP_SECONDS = 512, 0.01
FULL_SCALE = 32767 / 32768


@dataclass(frozen=True)
class SilenceShares:
    """Shares 0..1 of the sound's frames of 20 ms. total: below -50 dBFS; digital: exactly zero; leading and trailing:
    silent at the start and at the end; a wholly silent clip counts as leading.
    """

    total: float
    digital: float
    leading: float
    trailing: float


def silence_shares(sound: Floats, sample_rate: int) -> SilenceShares:
    """How much of sound [n] or [channels, n] in -1..1 is silent, by the mean power of its channels: what cancels out
    in their sum is heard all the same. MovaError for less than a frame.
    """
    size, count = round(FRAME_SECONDS * sample_rate), sound.shape[-1]
    if count < size:
        raise MovaError(f"{count / sample_rate:.3g} s of sound are too short: a frame of silence has {FRAME_SECONDS} s")
    frames = np.atleast_2d(sound)[:, : count // size * size].reshape(-1, count // size, size).astype(np.float64)
    power = np.square(frames).mean((0, 2))
    silent = power < 10 ** (SILENT_DBFS / 10)
    heard = np.flatnonzero(~silent)
    leading = int(heard[0]) if len(heard) else len(silent)
    trailing = len(silent) - 1 - int(heard[-1]) if len(heard) else 0
    count = len(silent)
    return SilenceShares(float(silent.mean()), float((power == 0).mean()), leading / count, trailing / count)


def band_edge(sound: Floats, sample_rate: int) -> float:
    """The highest frequency, in Hz, within 50 dB of the strongest in the mean power spectrum of sound [n] or
    [channels, n].

    As NeMo Curator measures bandwidth: windows of 512 samples (Blackman-Harris) every 10 ms. Raises MovaError for
    sound shorter than a window, and for digital silence.
    """
    if sound.shape[-1] < _EDGE_FFT:
        raise MovaError(f"{sound.shape[-1]} samples are too few for a spectrum of {_EDGE_FFT}")
    hop = max(1, round(_EDGE_HOP_SECONDS * sample_rate))
    windows = np.lib.stride_tricks.sliding_window_view(np.atleast_2d(sound), _EDGE_FFT, axis=-1)[:, ::hop]
    window = np.asarray(get_window("blackmanharris", _EDGE_FFT), np.float32)
    spectra = np.fft.rfft(windows * window)
    power = np.square(np.abs(spectra)).mean((0, 1))
    if power.max() <= 0:
        raise MovaError("digital silence has no band")
    return float(np.flatnonzero(power >= power.max() * 10 ** (EDGE_DB / 10))[-1] * sample_rate / _EDGE_FFT)


def clipping_share(sound: Floats) -> float:
    """Share 0..1 of samples at full scale that have a neighbour there too: one alone is a peak, not a cut."""
    full = np.abs(sound) >= FULL_SCALE
    beside = np.zeros_like(full)
    beside[1:] |= full[:-1]
    beside[:-1] |= full[1:]
    return float((full & beside).mean()) if len(sound) else 0.0
