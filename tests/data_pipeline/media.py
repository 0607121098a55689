"""Real media files, made on the spot: every picture shows its own number, every sound is a click at a known time."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CLOCK = Fraction(1, 120_000)  # seconds; divides the periods of 24, 30 and 24000/1001 frames a second
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


@contextmanager
def usual_scheduling() -> Iterator[None]:
    """Around an encoder that raises its caller's priority: SVT-AV1, run by root, makes the thread a real-time one, and
    whatever is started later inherits that; a process that polls then starves the machine.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def every(rate: Fraction | int, count: int, start: Fraction | int = 0) -> list[Fraction]:
    """Times in seconds of `count` pictures at a constant rate."""
    return [start + Fraction(k) / rate for k in range(count)]


def barcode(index: int, height: int, width: int) -> np.ndarray:
    """Picture uint8 [h, w, 3] that shows a number below 4096 as 3 x 4 dark or bright blocks."""
    bits = np.array([index >> bit & 1 for bit in range(12)]).reshape(3, 4)
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    return np.repeat((40 + 170 * bits)[rows][:, columns, None], 3, axis=2).astype(np.uint8)


def read_barcode(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    rows, columns = (2 * np.arange(3) + 1) * height // 6, (2 * np.arange(4) + 1) * width // 8
    bits = picture[rows][:, columns].mean(axis=-1) > 125
    return int((bits.ravel() << np.arange(12)).sum())


def clicks(times: Sequence[float], duration: float, sample_rate: int = 48000, channels: int = 1) -> np.ndarray:
    """Sound [channels, n] with short clicks, of low bandwidth, centred at `times` seconds."""
    t = np.arange(round(duration * sample_rate)) / sample_rate
    mono = sum(0.8 * np.exp(-(((t - time) / 0.0008) ** 2)) for time in times)
    return np.tile(mono, (channels, 1))


def click_time(sound: np.ndarray, near: float, sample_rate: int = 48000) -> float:
    """Centre in seconds of the click within 20 ms of `near`."""
    first = max(0, round((near - 0.02) * sample_rate))
    piece = np.maximum(sound[first : round((near + 0.02) * sample_rate)] - 0.1, 0)
    assert piece.any(), f"no click near {near} s"
    return (first + (piece * np.arange(len(piece))).sum() / piece.sum()) / sample_rate


def write_media(
    path: Path,
    times: Sequence[Fraction],
    sound: np.ndarray | None,
    *,
    sample_rate: int = 48000,
    sound_start: int = 0,
    size: tuple[int, int] = (48, 48),
    hold: Fraction = Fraction(1, 24),
    gop: int = 250,
    faststart: bool = False,
    lost: tuple[float, float] = (0.0, 0.0),
) -> Path:
    """Write H.264 pictures that appear at `times` (seconds; the last stays for `hold`) and AAC sound [channels, n].

    sound_start: when the sound begins, in samples. lost: from when to when, in seconds, no sound is written.
    gop: most pictures from one that stands alone to the next. faststart: the index first, so that a cut file opens.
    """
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        video = container.add_stream("libx264", rate=24, options={"crf": "5", "g": str(gop)})
        video.height, video.width, video.pix_fmt = *size, "yuv420p"
        video.time_base = video.codec_context.time_base = CLOCK
        if sound is not None:
            layout = LAYOUTS[len(sound)]
            audio = container.add_stream("aac", rate=sample_rate, layout=layout, bit_rate=128_000 * len(sound))
        for index, (time, end) in enumerate(zip(times, [*times[1:], times[-1] + hold], strict=True)):
            frame = av.VideoFrame.from_ndarray(barcode(index, *size), format="rgb24")
            frame.pts, frame.time_base, frame.duration = int(time / CLOCK), CLOCK, int((end - time) / CLOCK)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for position in range(0, 0 if sound is None else sound.shape[1], 1024):
            if lost[0] <= position / sample_rate < lost[1]:
                continue
            chunk = np.ascontiguousarray(sound[:, position : position + 1024], np.float32)
            frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = sample_rate, Fraction(1, sample_rate)
            frame.pts = sound_start + position
            container.mux(audio.encode(frame))
        if sound is not None:
            container.mux(audio.encode(None))
    return path
