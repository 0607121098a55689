"""What a clip looks and sounds like in a few bits, which stay nearly the same when it is encoded anew.

Pictures: of each of four, made small and grey, whether each of its 64 lowest frequencies is above their median (the
perceptual hash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Sound: of 16
stretches of time and 12 classes of pitch, whether the class is louder there than it usually is in the clip (after the
chroma of Bartsch and Wakefield, "To Catch a Chorus", 2001). Neither brightness nor loudness changes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import DecodedClip

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Bits = NDArray[np.bool_]
Words = NDArray[np.uint64]
# Pictures of a clip that are looked at: in the middle of so many equal parts of it.
PICTURES = 4
# Rows and columns of the small picture; its frequencies that are kept, the lowest first, of so many rows and columns.
_SMALL, _KEPT, _SIDE = 32, 64, 11
# Rate at which the sound is heard, samples of a spectrum and between two, stretches of time, classes of pitch.
RATE = 16000
_SPECTRUM, _HOP = 4096, 1024
STRETCHES, CLASSES = 16, 12
# Hz between which pitches are heard.
_LOW, _HIGH = 80.0, 5000.0
# A sound whose every sample is below this has no fingerprint: -60 dB of full scale.
_SILENT = 1e-3
# Bits of each fingerprint.
PICTURE_BITS, SOUND_BITS = PICTURES * _KEPT, STRETCHES * CLASSES


@dataclass(frozen=True)
class ClipFingerprint:
    """pictures: 64 hexadecimal digits; None where they show nothing, or are missing. sound: 48 of them, "" for silence
    and for a clip without sound.
    """

    pictures: str | None
    sound: str


def clip_fingerprint(clip: DecodedClip) -> ClipFingerprint:
    """The fingerprint of a clip. Raises MovaError for one that cannot be read, but not for what is missing in it."""
    try:
        sound = sound_fingerprint(np.asarray(clip.sound_with_pictures(RATE), np.float32))
    except MovaError:
        sound = ""
    try:
        return ClipFingerprint(picture_fingerprint(list(clip.pictures_of(picture_places(clip.times)))), sound)
    except MovaError:
        return ClipFingerprint(None, sound)


def picture_places(times: Sequence[float | Fraction]) -> list[int]:
    """Which pictures of a clip the fingerprint is made of: those at the middles of equal parts of its time. times: of
    each picture in seconds, the first one 0.
    """
    middles = [float(times[-1]) * (2 * k + 1) / (2 * PICTURES) for k in range(PICTURES)]
    return (np.searchsorted(np.array(times, np.float64), np.array(middles) + 1e-6, side="right") - 1).tolist()


def picture_fingerprint(pictures: Sequence[Pixels]) -> str:
    """64 hexadecimal digits of four pictures uint8 [h, w, 3], RGB, of any size: those of `picture_places`.

    Raises MovaError for pictures of one colour, which look like any others of that kind.
    """
    bits = np.concatenate([_picture_bits(picture) for picture in pictures])
    return np.packbits(bits).tobytes().hex()


def sound_fingerprint(sound: Floats) -> str:
    """48 hexadecimal digits of mono samples float32 [n] at 16 kHz; "" for silence, and for less than 4096 samples."""
    if len(sound) < _SPECTRUM or float(np.abs(sound).max(initial=0)) < _SILENT:
        return ""
    levels = _levels(sound)
    return np.packbits(levels > np.median(levels, axis=0)).tobytes().hex()


def words_of(fingerprints: list[str], bits: int) -> Words:
    """Fingerprints of so many bits as uint64 [n, bits / 64]; "" gives zeros. MovaError for text of another length."""
    digits = bits // 4
    try:
        data = bytes.fromhex("".join(each or "0" * digits for each in fingerprints))
    except ValueError:
        data = b""
    if len(data) != len(fingerprints) * bits // 8:
        raise MovaError(f"a fingerprint must have {digits} hexadecimal digits, or none")
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(len(fingerprints), bits // 64)


def _picture_bits(picture: Pixels) -> Bits:
    grey = picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    small = _averages(_averages(grey, _SMALL).T, _SMALL).T
    lowest = (_COSINES @ small @ _COSINES.T).ravel()[_LOWEST]
    if np.abs(lowest).max() < 1:
        raise MovaError("its pictures show nothing that they could be told by")
    return lowest > np.median(lowest)


def _averages(values: Floats, count: int) -> Floats:
    """Rows [n, m] -> means [count, m] of equal shares of them, parts of rows included."""
    edges = np.linspace(0, len(values), count + 1)
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, 0, dtype=np.float64)])
    whole = np.minimum(edges.astype(int), len(values) - 1)
    at = sums[whole] + (edges - whole)[:, None] * values[whole]
    return np.asarray(np.diff(at, axis=0) * count / len(values), np.float32)


def _cosines() -> Floats:
    """The lowest frequencies [11, 32] of a cosine transform."""
    k, at = np.arange(_SIDE)[:, None], np.arange(_SMALL) + 0.5
    return np.asarray(np.cos(np.pi * k * at / _SMALL) * (2 / _SMALL) ** 0.5, np.float32)


def _levels(sound: Floats) -> Floats:
    """Log energies [stretches, classes] of a sound."""
    count = 1 + (len(sound) - _SPECTRUM) // _HOP
    frames = np.lib.stride_tricks.sliding_window_view(sound, _SPECTRUM)[::_HOP][:count]
    power = np.abs(np.fft.rfft(frames * np.hanning(_SPECTRUM).astype(np.float32))) ** 2
    energies = power @ _PITCH_CLASSES
    middle = (np.arange(count) * _HOP + _SPECTRUM / 2) / len(sound)
    parts = np.minimum((middle * STRETCHES).astype(int), STRETCHES - 1)
    summed = np.zeros((STRETCHES, CLASSES))
    np.add.at(summed, parts, energies)
    counts = np.maximum(np.bincount(parts, minlength=STRETCHES), 1)[:, None]
    return np.asarray(np.log(summed / counts + 1e-9 * energies.max()), np.float32)


def _pitch_classes() -> Floats:
    """Weights [bins, 12] by which a spectrum's bins count for the classes of pitch."""
    hertz = np.fft.rfftfreq(_SPECTRUM, 1 / RATE)
    inside = (hertz >= _LOW) & (hertz <= _HIGH)
    octave = np.zeros((len(hertz), CLASSES), np.float32)
    pitch = 12 * np.log2(np.maximum(hertz, 1) / 440)
    octave[np.arange(len(hertz)), np.round(pitch).astype(int) % CLASSES] = 1
    return octave * inside[:, None]


_COSINES = _cosines()
# Places of the kept ones among the frequencies of rows and columns; the first of all, the mean, is none of them.
_LOWEST = sorted(range(_SIDE * _SIDE), key=lambda i: (i // _SIDE + i % _SIDE, i))[1 : _KEPT + 1]
_PITCH_CLASSES = _pitch_classes()
