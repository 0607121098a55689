"""What is measured of sampled clips: sync, pitch, silence, and how far the sound is from clicks as they should be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import stft

from mova_engine.codecs.toy.mdct_audio import MdctAudioCodec
from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic.bounce import COLOURS, SAMPLE_RATE, click_sound
from mova_engine.scores.bounce_events import Events, events, find_clicks, find_pitch, read_streams
from mova_engine.scores.bounce_sync import PITCH_TOLERANCE, RESAMPLES, TOLERANCES_MS, Figure, agree, named_colour, score
from mova_engine.scores.decoded_clip import DecodedClip

Sound = NDArray[np.float64]
# Of a click: the seconds behind its onset that are compared, in windows of 20 ms every 5 ms, and the band that the
# codec keeps and clicks fill. Levels count down to so many dB below full scale, of clicks and of the background.
CLICK_SECONDS, WINDOW, HOP = 0.1, 960, 240
BAND = (300.0, 3000.0)
CLICK_FLOOR, FLOOR = -50.0, -70.0
# A clip's background: what its quieter half does not exceed.
QUIET = 50


@dataclass(frozen=True)
class SampledClip:
    """A clip as seen and heard. distance: dB, of its clicks from clicks as they should be, nan without clicks.
    background: dB of full scale.
    """

    seen: Events
    distance: float
    background: float


def observe_all(folder: Path) -> list[SampledClip]:
    """All clips of a folder of samples, in its order: mp4 files, or sounds."""
    return [_observed(entry.path, entry.caption) for entry in read_metadata(folder) if isinstance(entry.path, Path)]


def through_codec(folder: Path) -> list[SampledClip]:
    """The clips of a folder, their sound through the embedded codec: the best that a model can do."""
    return [
        _observed(entry.path, entry.caption, True) for entry in read_metadata(folder) if isinstance(entry.path, Path)
    ]


def _observed(path: Path, caption: str, coded: bool = False) -> SampledClip:
    if path.suffix == ".mp4":
        frames, times, sound = read_streams(path)
        sound = _coded(sound) if coded else sound
        seen = events(path.name, frames, times, sound, caption)
    else:
        sound = np.asarray(DecodedClip.read(path).sound(SAMPLE_RATE), np.float64)
        clicks = find_clicks(sound)
        seen = Events(path.name, 0.0, (), clicks, tuple(find_pitch(sound, click) for click in clicks), None, caption)
    colour = named_colour(caption)
    distance = click_distance(sound, seen.clicks, COLOURS[colour][1]) if colour else np.nan
    return SampledClip(seen, distance, background(sound))


def _coded(sound: Sound) -> Sound:
    codec = MdctAudioCodec()
    given = torch.from_numpy(sound.astype(np.float32))[None, None]
    return codec.decode(codec.encode(given))[0, 0, : len(sound)].double().numpy()


def click_distance(sound: Sound, clicks: Sequence[float], carrier: float) -> float:
    """Log-spectral distance in dB of clicks [s] heard in `sound` [n] at 48 kHz from ideal ones of `carrier` Hz at the
    same instants: the root of the mean over frequencies, then the mean over windows. nan without clicks, or where no
    window begins within one.
    """
    if not clicks:
        return float("nan")
    ideal = click_sound(np.arange(len(sound)), clicks, carrier)
    (times, heard), (_, wanted) = _levels(sound, CLICK_FLOOR), _levels(ideal, CLICK_FLOOR)
    near = np.any([(times >= click) & (times < click + CLICK_SECONDS) for click in clicks], axis=0)
    return float(np.sqrt(np.square(heard - wanted).mean(0))[near].mean()) if near.any() else float("nan")


def background(sound: Sound) -> float:
    """What the quieter half of the windows does not exceed, dB of full scale, FLOOR at least."""
    return float(np.percentile(_levels(sound, FLOOR)[1].max(0), QUIET))


def _levels(sound: Sound, floor: float) -> tuple[Sound, Sound]:
    """Times [w] in seconds of windows, and levels [frequencies, w] in dB of full scale."""
    frequencies, times, values = stft(sound, SAMPLE_RATE, "hann", WINDOW, WINDOW - HOP, boundary=None, padded=False)  # pyright: ignore[reportArgumentType]
    inside = (frequencies >= BAND[0]) & (frequencies <= BAND[1])
    amplitude = 2 * np.abs(values[inside])
    return times, np.maximum(20 * np.log10(np.maximum(amplitude, 1e-9)), floor)


def summary(clips: Sequence[SampledClip], seed: int = 0) -> dict[str, Figure | int | None]:
    """The figures of a folder with 95% bootstrap intervals over clips. Those of bounces: None of sound alone."""
    seen = [clip.seen for clip in clips]
    rng = np.random.default_rng(seed)
    resamples = rng.integers(0, len(clips), (RESAMPLES, len(clips)))
    pictures = any(clip.last_frame > 0 for clip in seen)
    report: dict[str, Any] = score(seen, seed)
    within = f"within_{TOLERANCES_MS[0]}_ms"
    chance = report["shuffled_sound"]
    return {
        "clips": len(clips),
        "f1": report["own_sound"][within]["f1"] if pictures else None,
        "chance": chance[within]["f1"] if pictures and chance else None,
        "error_ms": report["own_sound"]["median_error_ms"] if pictures else None,
        "pitch": report["pitch_matches_caption"],
        "distance": _mean([clip.distance for clip in clips], resamples),
        "background": _mean([clip.background for clip in clips], resamples),
        "silent": sum(not clip.clicks for clip in seen),
    }


def differences(clips: Sequence[SampledClip], without: Sequence[SampledClip], seed: int = 0) -> dict[str, Figure]:
    """By how much the figures of `clips` exceed those of `without`, with paired intervals: the same prompts, in the
    same order.
    """
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([np.arange(len(clips))[None], rng.integers(0, len(clips), (RESAMPLES, len(clips)))])
    found = {}
    for name, figure in (("f1", _f1s), ("pitch", _pitches), ("distance", _distances), ("silent", _silent)):
        values = figure(clips, drawn) - figure(without, drawn)
        spread = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(spread, (0.025, 0.975)) if len(spread) else (np.nan, np.nan)
        found[name] = Figure(float(values[0]), float(low), float(high))
    return found


def _f1s(clips: Sequence[SampledClip], drawn: NDArray[np.intp]) -> Sound:
    agreed = [agree(clip.seen, clip.seen, TOLERANCES_MS[:1]) for clip in clips]
    counts = np.array([(each.hits[0], each.missed[0] + each.extra[0]) for each in agreed], float)
    hits, wrong = counts[drawn].sum(1).T
    return 2 * hits / np.maximum(2 * hits + wrong, 1)


def _pitches(clips: Sequence[SampledClip], drawn: NDArray[np.intp]) -> Sound:
    counts = np.zeros((len(clips), 2))
    for row, clip in zip(counts, clips, strict=True):
        colour = named_colour(clip.seen.caption)
        if colour:
            right = [abs(pitch - COLOURS[colour][1]) <= PITCH_TOLERANCE for pitch in clip.seen.pitches]
            row[:] = sum(right), len(right)
    right, heard = counts[drawn].sum(1).T
    return np.divide(right, heard, out=np.full(len(heard), np.nan), where=heard > 0)


def _distances(clips: Sequence[SampledClip], drawn: NDArray[np.intp]) -> Sound:
    return _means(np.array([clip.distance for clip in clips]), drawn)


def _silent(clips: Sequence[SampledClip], drawn: NDArray[np.intp]) -> Sound:
    return _means(np.array([float(not clip.seen.clicks) for clip in clips]), drawn)


def _means(values: Sound, drawn: NDArray[np.intp]) -> Sound:
    chosen = values[drawn]
    known = np.isfinite(chosen)
    count = known.sum(1)
    total = np.where(known, chosen, 0.0).sum(1)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _mean(values: Sequence[float], resamples: NDArray[np.intp]) -> Figure:
    whole = np.concatenate([np.arange(len(values))[None], resamples])
    means = _means(np.array(values), whole)
    spread = means[1:][np.isfinite(means[1:])]
    low, high = np.quantile(spread, (0.025, 0.975)) if len(spread) else (np.nan, np.nan)
    return Figure(float(means[0]), float(low), float(high))
