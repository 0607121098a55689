"""How far the mouth of a talking clip lags behind its voice: `mova eval lag FILE...`.

Somewhere in the picture brightness follows the loudness of the voice (an opening mouth is darker or brighter than a
closed one). The picture is cut into cells; for every lag the brightness of each is correlated with the loudness
envelope, and the lag at which the best cells correlate most is the answer. No face detector, no place known beforehand.
Signs are those of ITU-R BT.1359: positive where the sound is ahead of the picture, negative where it is late.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mova_engine.errors import MovaError
from mova_engine.scores.clip_reader import read_clip
from mova_engine.scores.decoded_clip import DecodedClip

# Samples a second of the sound.
SOUND_RATE = 48000
# Pixels of a cell's side.
CELL = 8
# A mouth covers several cells; the mean of as many is steadier than the best one.
BEST_CELLS = 4
# Seconds: changes slower than this (light, camera, a drifting head) say nothing about speech.
SLOWEST = 1.0
# Grey levels: a cell whose brightness varies less shows nothing but compression noise.
LEAST_CHANGE = 0.5
# What unrelated sound and picture do not reach.
LEAST_SCORE = 0.5


@dataclass(frozen=True)
class Lag:
    """`frames` by which the picture lags behind the sound (negative: sound late); `score`: correlation, 0 to 1."""

    frames: int
    score: float


def measure_lag(video: np.ndarray, audio: np.ndarray, *, fps: float, sample_rate: int, max_lag: int = 12) -> Lag:
    """Lag of pictures uint8 [f, h, w, 3] behind sound float [n] that starts with them; up to +-`max_lag` frames.

    Raises MovaError when the clip is too short for it, or when no part of the picture follows the sound.
    """
    if len(video) < 4 * max_lag:
        raise MovaError(f"{len(video)} frames are too few for lags up to {max_lag}; {4 * max_lag} are needed")
    period = round(SLOWEST * fps)
    envelope = _without_trend(loudness(audio, len(video), fps=fps, sample_rate=sample_rate)[:, None], period)
    cells = _without_trend(cell_brightness(video), period)
    cells = cells[:, cells.std(axis=0) > LEAST_CHANGE]
    if cells.shape[1] < BEST_CELLS or not envelope.any():
        raise MovaError("the picture does not move" if envelope.any() else "the sound does not change")
    lags = np.arange(-max_lag, max_lag + 1)
    scores = np.array([_score(envelope, cells, lag) for lag in lags.tolist()])
    best = int(scores.argmax())
    if scores[best] < LEAST_SCORE:
        raise MovaError(f"no part of the picture follows the sound (correlation {scores[best]:.2f} at best)")
    return Lag(int(lags[best]), float(scores[best]))


def clip_lag(clip: DecodedClip, fps: float = 24.0, max_lag: int = 12) -> Lag:
    """`measure_lag` of a clip at `fps` pictures a second, in small pictures."""
    pictures = clip.small_pictures[clip.shown_at(fps)]
    sound = np.asarray(clip.sound_with_pictures(SOUND_RATE), np.float32)
    return measure_lag(pictures, sound, fps=fps, sample_rate=SOUND_RATE, max_lag=max_lag)


def measure_file(path: str | Path, fps: float = 24.0, max_lag: int = 12) -> Lag:
    """The lag in a whole media file, in frames of `fps` a second."""
    clip = read_clip(path)
    try:
        return clip_lag(clip, fps, max_lag)
    except MovaError as error:
        raise MovaError(f"{path}: {error}") from None


def loudness(audio: np.ndarray, frames: int, *, fps: float, sample_rate: int) -> np.ndarray:
    """Root mean square [frames] of sound [n] while each picture is on display."""
    edges = np.round(np.arange(frames + 1) * sample_rate / fps).astype(int)
    energy = np.concatenate([[0.0], np.cumsum(audio.astype(np.float64) ** 2)])[np.minimum(edges, len(audio))]
    return np.sqrt(np.diff(energy) / np.diff(edges))


def cell_brightness(video: np.ndarray) -> np.ndarray:
    """Mean grey level [f, cells] of the picture's cells of CELL x CELL pixels; a remainder at the edges is left out."""
    frames, rows, columns = len(video), video.shape[1] // CELL, video.shape[2] // CELL
    whole = video[:, : rows * CELL, : columns * CELL]
    return whole.reshape(frames, rows, CELL, columns, CELL * 3).mean(axis=(2, 4)).reshape(frames, -1)


def _without_trend(series: np.ndarray, period: int) -> np.ndarray:
    """[f, c] minus its running mean over `period` frames (over what there is, at the ends)."""
    total = np.concatenate([np.zeros((1, series.shape[1])), np.cumsum(series, axis=0)])
    index = np.arange(len(series))
    first, last = np.maximum(index - period, 0), np.minimum(index + period + 1, len(series))
    return series - (total[last] - total[first]) / (last - first)[:, None]


def _score(envelope: np.ndarray, cells: np.ndarray, lag: int) -> float:
    """Mean |correlation| of the best cells [f, c] with the envelope [f, 1] heard `lag` frames before."""
    heard = envelope[max(-lag, 0) : len(envelope) - max(lag, 0)]
    seen = cells[max(lag, 0) : len(cells) + min(lag, 0)]
    heard, seen = heard - heard.mean(axis=0), seen - seen.mean(axis=0)
    norm = np.sqrt((heard**2).sum(axis=0) * (seen**2).sum(axis=0))
    correlation = np.abs((heard * seen).sum(axis=0)) / np.maximum(norm, 1e-12)
    return float(np.sort(correlation)[-BEST_CELLS:].mean())
