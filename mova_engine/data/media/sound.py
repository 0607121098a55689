"""Reads the sound of a clip: placed by its timestamps, resampled, mixed down to one channel.

`clock` interprets a file's timestamps, `downmix` gives the weights of its channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.filter import Graph

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.clock import STEP, PacketRun, displaced, find_runs
from mova_engine.data.media.container import CUT_ANYWHERE, PREROLL, Reader, audio_stream, channel_order
from mova_engine.data.media.downmix import mono_weights, pairs
from mova_engine.data.media.warn import warn
from mova_engine.errors import MovaError

# A channel whose peak is below this (-80 dB) is silent: digital silence, or its dither.
SILENCE_PEAK = 1e-4
# If the correlation of left and right is below this, they are one sound, inverted in one channel by wrong wiring.
OPPOSITE = -0.95
# If the downmix is below this fraction of its loudest channel, the channels have cancelled out.
CANCELLED = 1e-2
# Seconds of sound before and after a clip that are read to check the clip's timestamps.
AROUND = Fraction(1)
# Codecs whose frames need the previous frame to be decoded.
OVERLAPPING = ("aac", "ac3", "eac3", "mp3", "mp3float", "vorbis", "wmav1", "wmav2", "wmapro")
# The largest number of priming frames that a codec puts before the sound.
PRIMING = 3
# Seconds of the fade where sound begins or ends within the clip, and of the cross-fade where parts overlap.
FADE = 2e-3


@dataclass(frozen=True)
class Sound:
    """The sound of a clip. mono: float32 [n] in [-1, 1]. covered: number of samples for which the file has sound.
    silent: whether all channels of the downmix are silent.
    """

    mono: np.ndarray
    covered: int
    silent: bool


@dataclass(frozen=True)
class _Piece:
    """A decoded frame. time, length: start and duration in seconds on the clip's clock. samples: float32 [c, n]."""

    time: Fraction
    length: Fraction
    rate: int
    channels: tuple[str, ...]
    samples: np.ndarray


def first_sound(container: InputContainer, path: str | Path) -> Fraction:
    """The time of the file's first sample, in seconds on the container's clock. Raises MovaError if there is none."""
    stream = audio_stream(container)
    assert stream is not None, "`open_media` refuses a file without sound here"
    channel_order(stream)
    first = Reader(container, stream, path).first()
    if first is None:
        raise MovaError(f"{path}: damaged or cut short: no sound can be decoded")
    return first[0]


def read_sound(
    container: InputContainer, path: str | Path, clip: ClipConfig, start: Fraction, origin: Fraction
) -> Sound:
    """Read the clip's sound, from `start` seconds after `origin`.

    Gaps are filled with zeros, with a short fade on both sides. If the downmix exceeds full scale, the whole clip is
    scaled down. Raises MovaError for sound whose timestamps or channels cannot be used.
    """
    stream = audio_stream(container)
    assert stream is not None, "called for a container with sound"
    order = channel_order(stream)
    begin, margin = origin + start, Fraction(1, 10)
    end = begin + Fraction(clip.audio_samples, clip.sample_rate)
    reader = Reader(container, stream, path)
    frames = reader.frames(begin - margin, search=start > PREROLL)
    pieces = list(_pieces(frames, order, begin, end, margin, path))
    if reader.restart is not None and reader.restart < end - margin:
        where = f"{float(reader.restart - origin):.3f} s from the start"
        raise MovaError(f"{path}: the clock of its sound restarts {where} (joined files?)")
    weights, loudest = _weights(pieces, end - begin, path)
    audio, covered = np.zeros(clip.audio_samples, np.float32), np.zeros(clip.audio_samples, bool)
    try:
        runs = [each for part in _same_rate(pieces) for each in _runs(part)]
    except MovaError as error:
        raise MovaError(f"{path}: {error}") from None
    _refuse_displaced([run for run, _ in runs], float(end - begin), reader.restart, container.format.name, path)
    for number, (run, part) in enumerate(runs):
        if number and stream.codec_context.name in OVERLAPPING and not _is_priming(*runs[number - 1]):
            _silence_first(part, run.times[0] - runs[number - 1][0].times[-1])
        mono = np.concatenate([weights[x.channels] @ x.samples for x in part]).astype(np.float32)
        first, samples = _placed(mono, part[0].rate, run, clip.sample_rate)
        _lay(audio, covered, first, samples, round(FADE * clip.sample_rate))
    peak = float(np.abs(audio).max(initial=0))
    silent = loudest < SILENCE_PEAK
    if not silent and peak < CANCELLED * loudest:
        raise MovaError(f"{path}: its channels cancel each other in the downmix to one; mix its sound down first")
    return Sound(audio / peak if peak > 1 else audio, int(covered.sum()), silent)


def _refuse_displaced(
    runs: list[PacketRun], duration: float, restart: Fraction | None, container: str, path: str | Path
) -> None:
    """Raise MovaError if sound of the clip, which lasts from 0 to `duration` seconds, may have a wrong time.

    container: FFmpeg's name of the format. In program and transport streams one stamp covers several frames, so that
    sound just before a step may belong after it. Ogg stamps only the end of a page, so that sound up to a second after
    a step may belong before it.
    """
    for step, run in displaced(runs):
        if run.times[0] < duration and run.times[-1] > 0:
            raise MovaError(
                f"{path}: has sound whose timestamps step by {1000 * step:+.0f} ms and back: some are wrong"
            )
    starts = [later.times[0] for earlier, later in pairwise(runs) if abs(later.times[0] - earlier.times[-1]) > STEP]
    if restart is not None and any(start < duration for start in starts):
        raise MovaError(f"{path}: its sound has a gap before its clock goes back: some of its timestamps are wrong")
    where = next((start for start in starts if -AROUND < start < duration), None)
    if container == "ogg" and where is not None:
        raise MovaError(
            f"{path}: damaged audio: a gap at {where:.3f} s of the clip: Ogg stamps the end of a page alone, and "
            "what is lost may be anywhere on it"
        )
    where = next((start for start in starts if start > 0), None)
    if container in CUT_ANYWHERE and where is not None:
        raise MovaError(
            f"{path}: damaged audio: a gap at {where:.3f} s of the clip or shortly before: program and transport "
            "streams do not stamp every frame"
        )


def _pieces(
    frames: Iterator[tuple[Fraction, AudioFrame]],
    order: tuple[str, ...],
    begin: Fraction,
    end: Fraction,
    margin: Fraction,
    path: str | Path,
) -> Iterator[_Piece]:
    """Yield the frames of the clip, and those within AROUND seconds of it. order: as of `channel_order`.

    Damage more than `margin` seconds after the clip is no error; the frames end there.
    """
    floats, last = _Floats(), begin
    while True:
        try:
            time, frame = next(frames)
        except StopIteration:
            return
        except (MovaError, av.FFmpegError):
            if last >= end + margin:
                return
            raise
        last = time
        if time >= end + AROUND:
            return
        length = Fraction(frame.samples, frame.sample_rate)
        if time + length <= begin - AROUND or not frame.samples:
            continue
        samples = floats(frame)
        if not np.isfinite(samples).all():
            raise MovaError(f"{path}: its sound holds values that are not finite at {float(time):.3f} s")
        known = len(order) == frame.layout.nb_channels
        channels = order if known else tuple(channel.name for channel in frame.layout.channels)
        yield _Piece(time - begin, length, frame.sample_rate, channels, samples)


class _Floats:
    """Converts frames of any format to samples float32 [channels, n], full scale 1."""

    def __init__(self) -> None:
        self._converters: dict[tuple[str, str, int], av.AudioResampler] = {}

    def __call__(self, frame: AudioFrame) -> np.ndarray:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        # A packed format: for planar sound with 8 or more channels PyAV reads beyond the frame's memory.
        converter = self._converters.setdefault(kind, av.AudioResampler(format="flt"))
        found = [part.to_ndarray().reshape(-1, frame.layout.nb_channels).T for part in converter.resample(frame)]
        return np.concatenate(found, axis=1)


def _weights(
    pieces: list[_Piece], duration: Fraction, path: str | Path
) -> tuple[dict[tuple[str, ...], np.ndarray], float]:
    """Channel layout -> downmix weights, float32, and the peak in the clip of the channels with a weight."""
    weights, loudest = {}, 0.0
    for channels in dict.fromkeys(piece.channels for piece in pieces):
        try:
            own = mono_weights(channels).astype(np.float32)
        except MovaError as error:
            raise MovaError(f"{path}: {error}") from None
        heard = np.concatenate([_samples_in_clip(x, duration) for x in pieces if x.channels == channels], axis=1)
        loudest = max(loudest, float(np.abs(heard[own != 0]).max(initial=0)))
        for left, right in pairs(channels):
            if _are_opposite(heard[left], heard[right]):
                warn(path, "left and right are in opposite phase, and one of them is taken inverted")
                own[right] *= -1
        weights[channels] = own
    return weights, loudest


def _samples_in_clip(piece: _Piece, duration: Fraction) -> np.ndarray:
    """The piece's samples within the clip."""
    first, last = -piece.time * piece.rate, (duration - piece.time) * piece.rate
    return piece.samples[:, max(0, int(first)) : max(0, int(last))]


def _are_opposite(left: np.ndarray, right: np.ndarray) -> bool:
    left, right = left.astype(np.float64), right.astype(np.float64)
    energy = np.sqrt((left @ left) * (right @ right))
    return bool(energy) and bool(left @ right < OPPOSITE * energy)


def _same_rate(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Split the pieces into parts of equal sample rate."""
    part: list[_Piece] = []
    for piece in pieces:
        if part and piece.rate != part[0].rate:
            yield part
            part = []
        part.append(piece)
    if part:
        yield part


def _runs(part: list[_Piece]) -> Iterator[tuple[PacketRun, list[_Piece]]]:
    times, lengths = (np.array([float(getattr(x, name)) for x in part]) for name in ("time", "length"))
    for run in find_runs(times, lengths):
        yield run, part[run.first : run.last]


def _is_priming(run: PacketRun, part: list[_Piece]) -> bool:
    """Whether a run before the clip consists of a codec's priming frames, after which some containers have a gap."""
    return run.times[-1] <= 0 and len(part) <= PRIMING


def _silence_first(part: list[_Piece], gap: float) -> None:
    """Silence the first frame after a gap with lost frames: it was decoded with the state of the wrong frame."""
    if gap > 0.9 * part[0].length:
        part[0].samples[:] = 0


def _placed(mono: np.ndarray, rate: int, run: PacketRun, sample_rate: int) -> tuple[int, np.ndarray]:
    """Resample a run to `sample_rate`; return the index in the clip of its first sample (may be negative), and its
    samples.
    """
    if not run.stretched:
        return round(run.times[0] * sample_rate), _resample(mono, rate, sample_rate)
    from scipy.ndimage import map_coordinates

    # At twice the rate the error of interpolating with a spline of degree 5 is negligible.
    fine = _resample(mono, rate, 2 * sample_rate)
    first, last = int(np.ceil(run.times[0] * sample_rate)), int(run.times[-1] * sample_rate)
    nominal = np.interp(np.arange(first, last + 1) / sample_rate, run.times, run.nominal)
    return first, map_coordinates(fine, nominal[None] * (2 * sample_rate), order=5, mode="nearest")


def _lay(audio: np.ndarray, covered: np.ndarray, first: int, samples: np.ndarray, fade: int) -> None:
    """Write a run into the clip, over earlier runs. It fades in or out where it begins or ends within the clip."""
    ramp = np.sin(np.linspace(0, np.pi / 2, min(fade, len(samples)) + 2)[1:-1]).astype(np.float32) ** 2
    over = np.ones(len(samples), np.float32)
    if first > 0:
        over[: len(ramp)] = ramp
    if first + len(samples) < len(audio):
        samples = samples.copy()
        samples[len(samples) - len(ramp) :] *= ramp[::-1]
    heard = slice(max(first, 0), max(min(first + len(samples), len(audio)), 0))
    own = slice(heard.start - first, max(heard.stop - first, 0))
    audio[heard] += over[own] * (samples[own] - audio[heard])
    covered[heard] = True


def _resample(mono: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Resample float32 [n] to another rate."""
    if rate == sample_rate:
        return mono
    graph = Graph()
    source = graph.add_abuffer(sample_rate=rate, format="flt", layout="mono", time_base=Fraction(1, rate))
    convert = graph.add("aresample", f"{sample_rate}:out_sample_fmt=flt")
    sink = graph.add("abuffersink")
    graph.link_nodes(source, convert, sink).configure()
    frame = av.AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    graph.push(frame)
    graph.push(None)
    found = []
    while True:
        try:
            found.append(graph.pull().to_ndarray()[0])
        except (av.BlockingIOError, av.EOFError):
            break
    return np.concatenate(found) if found else np.zeros(0, np.float32)
