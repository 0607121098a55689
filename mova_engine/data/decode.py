"""Real files to clips: pictures at the model's frame rate, sound at its sample rate, both on one clock.

The clock starts at the presentation time of the first picture (plus `start`). Pictures and sound are placed on it by
their timestamps, never by counting, so that a file of any frame rate, constant or variable, whose streams start at
different times, comes out in step.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.filter import Graph
from av.frame import Frame
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from mova_engine.config import ClipConfig
from mova_engine.data.transform import crop_resize
from mova_engine.errors import MovaError

Silent = Literal["refuse", "zeros"]
T = TypeVar("T")

# Below this peak (-80 dB) a track holds no sound: digital silence, or its dither.
SILENCE_PEAK = 1e-4
# A player would show a late or short track as silence; a clip with less than half its sound counts as silent.
LEAST_SOUND = 0.5
# Some containers round timestamps to milliseconds: a jump below this many seconds is not a gap in the sound.
AUDIO_JITTER = Fraction(5, 1000)
# Decoding begins this many seconds ahead of the wanted time, for decoder and resampler to settle.
PREROLL = Fraction(1)
SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class Clip:
    """Pictures uint8 [f, h, w, 3] (RGB) and sound float32 [n] (mono) in step.

    Picture k shows the instant k / fps, sample i sounds at i / sample_rate.
    """

    video: np.ndarray
    audio: np.ndarray


@dataclass(frozen=True)
class MediaInfo:
    """What a file declares. `duration` is of the pictures, in seconds; `sample_rate` is 0 where there is no sound."""

    width: int
    height: int
    fps: float
    duration: float
    sample_rate: int


def exact_rate(fps: float) -> Fraction:
    """A frame rate as the fraction it stands for (23.976023976 is 24000/1001)."""
    return Fraction(fps).limit_denominator(1001)


def probe(path: str | Path) -> MediaInfo:
    """Read what a file declares, without decoding it. MovaError when it is missing, unreadable or has no video."""
    with _open(path) as container:
        video = container.streams.video[0]
        length = video.duration * video.time_base if video.duration else Fraction(container.duration or 0, av.time_base)
        return MediaInfo(
            width=video.codec_context.width,
            height=video.codec_context.height,
            fps=float(video.average_rate or 0),
            duration=float(length),
            sample_rate=container.streams.audio[0].codec_context.sample_rate if container.streams.audio else 0,
        )


def read_clip(path: str | Path, clip: ClipConfig, *, start: float = 0.0, silent: Silent = "refuse") -> Clip:
    """Decode `clip.frames` pictures and `clip.audio_samples` samples, from `start` seconds after the first picture.

    Pictures: each is the source picture chosen by `pick_frames`, centre-cropped and resized by `crop_resize`.
    Sound: resampled to `clip.sample_rate`, mixed down to mono. Sound before the clock's zero is cut; where the track is
    late or ends early there are zeros. The samples beyond `clip.duration`, up to whole latents, are the sound that
    follows in the file: a cut to zeros would put a click into the last latent.

    silent: what to do with a file without sound (no track, a silent one, or one that covers less than half the clip):
    "refuse" raises, "zeros" gives what there is, zeros elsewhere.
    Raises MovaError, naming the file, when it is missing, damaged, without video, too short or silent.
    """
    if silent not in ("refuse", "zeros"):
        raise MovaError(f"silent must be 'refuse' or 'zeros', got '{silent}'")
    if not 0 <= start < float("inf"):
        raise MovaError(f"{path}: start must be seconds from 0 up, got {start}")
    offset = Fraction(start).limit_denominator(1_000_000)
    with _open(path) as container:
        origin, video = _read_pictures(container, path, clip, offset)
    with _open(path) as container:
        if container.streams.audio:
            audio, covered = _read_sound(container, path, clip, offset, origin)
        elif silent == "refuse":
            raise MovaError(f"{path}: has no sound track (silent='zeros' accepts it)")
        else:
            return Clip(video, np.zeros(clip.audio_samples, np.float32))
    if silent == "refuse":
        if covered < LEAST_SOUND * len(audio):
            sounding = f"{covered / clip.sample_rate:.3f} s of the clip's {clip.duration:.3f} s"
            raise MovaError(f"{path}: its sound covers only {sounding} (silent='zeros' accepts it)")
        if np.abs(audio).max() < SILENCE_PEAK:
            raise MovaError(f"{path}: its sound track is silent (silent='zeros' accepts it)")
    return Clip(video, audio)


def pick_frames(
    frames: Iterator[tuple[Fraction, T | None]], wanted: Sequence[Fraction], reach: Fraction
) -> Iterator[T]:
    """For each of the ascending `wanted` times, yield the frame whose own time is nearest (the earlier of two).

    A frame whose time is yet to come is taken only if it does within `reach`: where a picture stands for long, as with
    a variable frame rate, the one on display is right however near the next one is. `frames` ends with (time, None):
    the time at which the last frame leaves the display; from there on nothing is yielded.
    """
    shown_time, shown = next(frames)
    following_time, following = next(frames, (None, None))
    for time in wanted:
        while following_time is not None and (
            following_time <= time or (following is not None and following_time - time < min(time - shown_time, reach))
        ):
            shown_time, shown = following_time, following
            following_time, following = next(frames, (None, None))
        if shown is None:
            return
        yield shown


@contextmanager
def _open(path: str | Path) -> Iterator[InputContainer]:
    """Open a media file with video; a failure of the media library inside becomes one line that names the file."""
    if not Path(path).is_file():
        raise MovaError(f"{path}: no such file")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise MovaError(f"{path}: has no video")
            for stream in (*container.streams.video[:1], *container.streams.audio[:1]):
                if stream.codec_context is None:
                    raise MovaError(f"{path}: damaged, or its {stream.type} is of an unknown kind")
            yield container
    except av.FFmpegError as error:
        # Decoders report bad data as -1 too, which the system calls "Operation not permitted".
        reason = "" if error.errno == errno.EPERM else f" ({error.strerror})"
        raise MovaError(f"{path}: damaged or cut short: cannot be decoded{reason}") from None


def _decode(
    container: InputContainer, stream: Stream, path: str | Path, begin: Fraction | None = None
) -> Iterator[tuple[Fraction, Frame]]:
    """Frames of one stream in order of presentation, with their times in seconds on the container's clock.

    Damage before `begin` does not count: after seeking, the first frames may lack those that they refer to.
    """
    for frame in container.decode(stream):
        if frame.pts is None:
            raise MovaError(f"{path}: its {stream.type} carries no timestamps")
        time = frame.pts * frame.time_base
        if frame.is_corrupt and (begin is None or time >= begin):
            raise MovaError(f"{path}: damaged {stream.type} at {float(time):.3f} s")
        yield time, frame


def _decode_from(
    container: InputContainer, stream: Stream, path: str | Path, begin: Fraction, origin: Fraction
) -> Iterator[tuple[Fraction, Frame]]:
    """As `_decode`, from a frame not later than `begin`, if there is one after `origin`."""
    container.seek(int((begin - PREROLL) / stream.time_base), stream=stream)
    frames = _decode(container, stream, path, begin)
    first = next(frames, None)
    if first is None or first[0] > begin:
        # The container's index leads astray.
        container.seek(int(origin / stream.time_base), stream=stream)
        return _decode(container, stream, path)
    return chain([first], frames)


def _until_end(
    frames: Iterator[tuple[Fraction, VideoFrame]], stream: Stream
) -> Iterator[tuple[Fraction, VideoFrame | None]]:
    """Append the time at which the last frame leaves the display, with None."""
    time, frame = Fraction(0), None
    for time, frame in frames:
        yield time, frame
    if frame is not None and frame.duration:
        time += frame.duration * frame.time_base
    elif stream.average_rate:
        time += 1 / stream.average_rate
    yield time, None


def _read_pictures(
    container: InputContainer, path: str | Path, clip: ClipConfig, start: Fraction
) -> tuple[Fraction, np.ndarray]:
    """Return the first picture's time in seconds on the container's clock, and the pictures uint8 [f, h, w, 3]."""
    stream = container.streams.video[0]
    # A decoder with threads of its own may not be freed in another process, which forked workers can come to do; and
    # most of the time goes to what follows it.
    stream.codec_context.thread_count = 1
    frames = _decode(container, stream, path)
    first = next(frames, None)
    if first is None:
        raise MovaError(f"{path}: damaged or cut short: no picture can be decoded")
    origin = first[0]
    begin = origin + start
    frames = chain([first], frames) if start <= PREROLL else _decode_from(container, stream, path, begin, origin)

    rate = exact_rate(clip.fps)
    wanted = [begin + k / rate for k in range(clip.frames)]
    video = np.empty((clip.frames, clip.height, clip.width, 3), np.uint8)
    count, last = 0, None
    for frame in pick_frames(_until_end(frames, stream), wanted, reach=1 / (2 * rate)):
        if frame is last:
            video[count] = video[count - 1]
        else:
            video[count] = _to_pixels(frame, stream, clip)
        count, last = count + 1, frame
    if count < clip.frames:
        needed = start + Fraction(clip.frames) / rate
        declared = stream.duration * stream.time_base if stream.duration else Fraction(0)
        why = f"cut short (it declares {float(declared):.3f} s)" if declared >= needed else "too short"
        given = f"{count} of the clip's {clip.frames} frames ({clip.duration:.3f} s at {clip.fps:g} fps)"
        raise MovaError(f"{path}: {why}: it gives {given}" + (f" after {float(start):g} s" if start else ""))
    return origin, video


def _to_pixels(frame: VideoFrame, stream: Stream, clip: ClipConfig) -> np.ndarray:
    """RGB as a player would show it, cropped and resized: turned upright, with the file's pixel aspect."""
    pixels = frame.reformat(format="rgb24", interpolation=SCALER, threads=1).to_ndarray()
    aspect = float(stream.sample_aspect_ratio or 1)
    quarters = round(frame.rotation / 90) % 4
    if quarters:
        pixels = np.ascontiguousarray(np.rot90(pixels, quarters))
        aspect = 1 / aspect if quarters % 2 else aspect
    return crop_resize(pixels, clip.height, clip.width, aspect)


def _read_sound(
    container: InputContainer, path: str | Path, clip: ClipConfig, start: Fraction, origin: Fraction
) -> tuple[np.ndarray, int]:
    """Sound float32 [n] from `start` seconds after `origin`, and how many of its samples the file covers."""
    stream = container.streams.audio[0]
    begin, margin = origin + start, Fraction(1, 10)
    end = begin + Fraction(clip.audio_samples, clip.sample_rate)
    frames = _decode(container, stream, path)
    if start > PREROLL:
        frames = _decode_from(container, stream, path, begin - margin, origin)

    audio = np.zeros(clip.audio_samples, np.float32)
    covered = np.zeros(clip.audio_samples, bool)
    for run_start, run in _continuous_runs(frames, begin - margin, end + margin):
        samples = _resample(run, clip.sample_rate)
        first = round((run_start - begin) * clip.sample_rate)
        heard = slice(max(first, 0), max(min(first + len(samples), len(audio)), 0))
        audio[heard] = samples[heard.start - first : max(heard.stop - first, 0)]
        covered[heard] = True
    return audio, int(covered.sum())


def _continuous_runs(
    frames: Iterator[tuple[Fraction, AudioFrame]], begin: Fraction, end: Fraction
) -> Iterator[tuple[Fraction, list[AudioFrame]]]:
    """Group the frames that touch [begin, end) seconds into runs without a gap or a change of format."""
    run: list[AudioFrame] = []
    run_start = expected = Fraction(0)
    for time, frame in frames:
        if time >= end:
            break
        length = Fraction(frame.samples, frame.sample_rate)
        if time + length <= begin:
            continue
        if run and (abs(time - expected) > AUDIO_JITTER or _format(frame) != _format(run[0])):
            yield run_start, run
            run = []
        if not run:
            run_start = expected = time
        run.append(frame)
        expected += length
    if run:
        yield run_start, run


def _format(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


def _resample(run: list[AudioFrame], sample_rate: int) -> np.ndarray:
    """Mix one run down to mono at `sample_rate`, float32 [n]; the channels' weights add up to 1 (no overflow)."""
    sample_format, layout, rate = _format(run[0])
    graph = Graph()
    source = graph.add_abuffer(sample_rate=rate, format=sample_format, layout=layout, time_base=Fraction(1, rate))
    mix = graph.add("aresample", f"{sample_rate}:out_chlayout=mono:out_sample_fmt=flt:rematrix_maxval=1")
    sink = graph.add("abuffersink")
    graph.link_nodes(source, mix, sink).configure()
    position = 0
    for frame in run:
        # Counted anew: within a run the file's timestamps only jitter.
        frame.pts, frame.time_base = position, Fraction(1, rate)
        position += frame.samples
        graph.push(frame)
    graph.push(None)
    pieces = []
    while True:
        try:
            pieces.append(graph.pull().to_ndarray()[0])
        except (av.error.BlockingIOError, av.error.EOFError):
            break
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
