"""The sound of a clip: placed by its timestamps, resampled, mixed down to one channel."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.filter import Graph

from mova_engine.config import ClipConfig
from mova_engine.data.container import PREROLL, Reader, audio_stream, channel_order
from mova_engine.errors import MovaError

# Some containers round timestamps to milliseconds: a jump below this many seconds is not a gap in the sound.
AUDIO_JITTER = Fraction(5, 1000)


def read_sound(
    container: InputContainer, path: str | Path, clip: ClipConfig, start: Fraction, origin: Fraction
) -> tuple[np.ndarray, int]:
    """Sound float32 [n] from `start` seconds after `origin`, and how many of its samples the file covers."""
    stream = audio_stream(container)
    channel_order(stream)
    begin, margin = origin + start, Fraction(1, 10)
    end = begin + Fraction(clip.audio_samples, clip.sample_rate)
    reader = Reader(container, stream, path)
    frames = reader.frames(begin - margin, search=start > PREROLL)

    audio = np.zeros(clip.audio_samples, np.float32)
    covered = np.zeros(clip.audio_samples, bool)
    for run_start, run in _continuous_runs(frames, begin - margin, end + margin):
        samples = _resample(run, clip.sample_rate)
        first = round((run_start - begin) * clip.sample_rate)
        heard = slice(max(first, 0), max(min(first + len(samples), len(audio)), 0))
        audio[heard] = samples[heard.start - first : max(heard.stop - first, 0)]
        covered[heard] = True
    if reader.restart is not None and reader.restart < end - margin:
        where = f"{float(reader.restart - origin):.3f} s after its first picture"
        raise MovaError(f"{path}: the clock of its sound restarts {where} (joined files?)")
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
