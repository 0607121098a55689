"""The notes that are heard in a file: when each begins, and its fundamental, in seconds and hertz.

Only the file is read, by a reader that shares no code with the loader's: an error of timing there must show here. All
that is assumed is that notes of one clip are about equally loud, and that there is quiet between them.
"""

# PyAV's decoder gives what its container holds, and SciPy types its functions for several array libraries at once.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from scipy.signal import hilbert

from mova_engine.errors import MovaError

RATE = 48000  # Hz, to which any file's sound is resampled

SMOOTHING = 0.012  # seconds of the envelope's window: more than two periods of the lowest fundamental
MIN_LEVEL = 0.02  # of full scale: a clip whose envelope stays below is silent
# Of the clip's loudest: a note begins where the envelope rises above the first, ends where it falls below the other.
BEGINS, ENDS = 0.5, 0.25
MIN_NOTE = 0.02  # seconds above the level at which a note ends: what is shorter is no note

RANGE = (150.0, 1300.0)  # Hz, in which fundamentals are looked for
PITCH_FROM, PITCH_SPAN = 0.01, 0.08  # seconds after the onset, and how long, of what a pitch is taken from
# Of the highest peak of the autocorrelation: the first one of so much is the period, later ones are its multiples.
FIRST_PEAK = 0.85


@dataclass(frozen=True)
class NoteEvents:
    """One file as heard. onsets: seconds, ascending. pitches: Hz of the fundamental, nan where there is none; one for
    each onset. caption: None where the folder's metadata has none.
    """

    name: str
    onsets: tuple[float, ...]
    pitches: tuple[float, ...]
    caption: str | None = None


def hear(path: str | Path, caption: str | None = None) -> NoteEvents:
    """Listen to one file of sound, or to the sound of a video. MovaError where it has none or is damaged."""
    path = Path(path)
    sound = read_samples(path)
    onsets = find_onsets(sound)
    return NoteEvents(path.name, onsets, tuple(find_fundamental(sound, onset) for onset in onsets), caption)


def read_samples(path: Path) -> np.ndarray:
    """A file's sound, float64 [n] at 48 kHz, mono; sample k sounds k / 48000 seconds after the first."""
    pieces: list[av.AudioFrame] = []
    try:
        with av.open(str(path)) as container:
            to_mono = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
            for frame in container.decode(*container.streams.audio[:1]) if container.streams.audio else ():
                pieces += to_mono.resample(frame)
            pieces += to_mono.resample(None) if pieces else []
    except (av.FFmpegError, OSError) as error:
        raise MovaError(f"{path}: cannot be decoded ({error.strerror})") from None
    if not pieces:
        raise MovaError(f"{path}: has no sound")
    times = [float(piece.time or 0) for piece in pieces]
    starts = [round((time - times[0]) * RATE) for time in times]
    sound = np.zeros(max(start + piece.samples for start, piece in zip(starts, pieces, strict=True)))
    for start, piece in zip(starts, pieces, strict=True):
        sound[start : start + piece.samples] = piece.to_ndarray()[0]
    return sound


def find_onsets(sound: np.ndarray) -> tuple[float, ...]:
    """Seconds at which notes begin in `sound` [n] at 48 kHz.

    A note lasts from where the smoothed envelope rises above half of its greatest value to where it falls below a
    quarter.
    """
    if len(sound) < RATE // 20:
        return ()
    window = np.hanning(round(SMOOTHING * RATE) | 1)
    envelope = np.convolve(np.abs(hilbert(sound)), window / window.sum(), mode="same")
    loudest = envelope.max()
    if not loudest >= MIN_LEVEL:
        return ()
    onsets, position = [], 0
    while len(above := np.flatnonzero(envelope[position:] > BEGINS * loudest)):
        first = position + above[0]
        below = np.flatnonzero(envelope[first:] < ENDS * loudest)
        position = first + below[0] if len(below) else len(envelope)
        if position - first >= MIN_NOTE * RATE:
            onsets.append(float(first / RATE))
        if not len(below):
            break
    return tuple(onsets)


def find_fundamental(sound: np.ndarray, onset: float) -> float:
    """Fundamental in Hz of the note that begins at `onset` seconds, by the autocorrelation; nan where it has none.

    The autocorrelation is divided by that of the window (Boersma 1993), so that later periods do not weigh less.
    """
    first = round((onset + PITCH_FROM) * RATE)
    piece = sound[first : first + round(PITCH_SPAN * RATE)]
    shortest, longest = int(RATE / RANGE[1]), int(RATE / RANGE[0]) + 1
    if len(piece) < 2 * longest:
        return float("nan")
    window = np.hanning(len(piece))
    lags = _autocorrelation((piece - piece.mean()) * window, longest) / _autocorrelation(window, longest)
    if not lags[0] > 0:
        return float("nan")
    peaks = np.flatnonzero((lags[1:-1] >= lags[:-2]) & (lags[1:-1] > lags[2:])) + 1
    peaks = peaks[peaks >= shortest]
    if not len(peaks) or lags[peaks].max() <= 0:
        return float("nan")
    peak = next(peak for peak in peaks if lags[peak] >= FIRST_PEAK * lags[peaks].max())
    before, here, after = lags[peak - 1 : peak + 2]
    return float(RATE / (peak + 0.5 * (before - after) / (before - 2 * here + after)))


def _autocorrelation(x: np.ndarray, longest: int) -> np.ndarray:
    """At lags of 0 to `longest` samples."""
    size = 1 << (2 * len(x) - 1).bit_length()
    return np.fft.irfft(np.abs(np.fft.rfft(x, size)) ** 2, size)[: longest + 1]
