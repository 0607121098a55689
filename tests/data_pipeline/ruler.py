"""Clips that tell where they were read: every picture shows its number, the sound is a noise known by heart.

`write` makes one of any container; `judge` says of what was read whether it is right: each picture within half a frame
of the instant that it stands for, each 50 ms of sound within 1 ms, or silent.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import Clip

SIZE = 64
SECONDS = 5
RATE = 48000
CLIP = ClipConfig(frames=33, height=SIZE, width=SIZE)
WINDOW = RATE // 20
TOLERANCE = RATE // 1000  # samples
_ROWS, _COLUMNS, _BITS = 4, 6, 12


@dataclass(frozen=True)
class Kind:
    """A container with its codecs, as FFmpeg names them. The pictures may have an order of their own (B frames)."""

    suffix: str
    video: str = "libx264"
    audio: str | None = "aac"
    muxer: str | None = None
    pix: str = "yuv420p"
    fps: Fraction = Fraction(30)
    options: tuple[tuple[str, str], ...] = ()
    muxing: tuple[tuple[str, str], ...] = ()
    rate: int = RATE


_X264 = (("preset", "veryfast"), ("crf", "12"), ("g", "48"))
_FAST = (("preset", "veryfast"), ("crf", "12"), ("g", "20"), ("bf", "0"))
_Q = (("qscale", "2"), ("g", "12"))
_VPX = (("deadline", "realtime"), ("cpu-used", "8"), ("crf", "10"), ("b", "2M"), ("g", "40"))
KINDS = {
    "mp4": Kind("mp4", options=_X264),
    "mp4, faststart": Kind("mp4", options=_FAST, muxing=(("movflags", "faststart"),), fps=Fraction(25)),
    "mp4, fragments": Kind("mp4", options=_X264, muxing=(("movflags", "frag_keyframe+empty_moov"),)),
    "mp4, mpeg4": Kind("mp4", "mpeg4", options=(*_Q, ("bf", "2"))),
    "mov": Kind("mov", "mjpeg", "pcm_s16le", pix="yuvj420p", options=_Q, fps=Fraction(24000, 1001)),
    "3gp": Kind("3gp", options=_FAST),
    "mkv": Kind("mkv", options=_X264, fps=Fraction(30000, 1001)),
    "mkv, ffv1": Kind("mkv", "ffv1", "flac"),
    "mkv, mpeg2": Kind("mkv", "mpeg2video", "ac3", options=(*_Q, ("bf", "2")), fps=Fraction(25)),
    "webm": Kind("webm", "libvpx", "libopus", options=_VPX),
    "webm, vp9": Kind("webm", "libvpx-vp9", "libopus", options=_VPX),
    "avi": Kind("avi", "mpeg4", "pcm_s16le", options=_Q),
    "avi, bframes": Kind("avi", "mpeg4", "pcm_s16le", options=(*_Q, ("bf", "2")), fps=Fraction(25)),
    "avi, h264": Kind("avi", audio="pcm_s16le", options=_X264),
    "avi, mjpeg": Kind("avi", "mjpeg", "pcm_s16le", pix="yuvj420p", options=_Q),
    "ts": Kind("ts", options=_X264),
    "ts, mpeg2": Kind("ts", "mpeg2video", "mp2", options=(*_Q, ("bf", "2")), fps=Fraction(25)),
    "m2ts": Kind("m2ts", audio="ac3", options=_X264, muxing=(("mpegts_m2ts_mode", "1"),)),
    "mpg": Kind("mpg", "mpeg2video", "mp2", "mpeg", options=_Q),
    "mpg, mpeg1": Kind("mpg", "mpeg1video", "mp2", "mpeg", options=(*_Q, ("bf", "2")), fps=Fraction(25)),
    "vob": Kind("vob", "mpeg2video", "ac3", "vob", options=(*_Q, ("bf", "2")), fps=Fraction(25)),
    "flv": Kind("flv", options=_X264),
    "flv, flv1": Kind("flv", "flv", "libmp3lame", options=_Q, rate=44100),
    "ogg, vp8": Kind("ogv", "libvpx", "libopus", "ogv", options=_VPX),
    "ogg, flac": Kind("ogv", "libvpx", "flac", "ogv", options=_VPX),
    "wmv": Kind("wmv", "wmv2", "wmav2", "asf", options=_Q),
    "wmv, msmpeg4": Kind("wmv", "msmpeg4", "wmav1", "asf", options=_Q, fps=Fraction(25)),
    "nut": Kind("nut", "mpeg4", "pcm_s16le", options=(*_Q, ("bf", "2"))),
    "mxf": Kind("mxf", "mpeg2video", "pcm_s16le", options=_Q, fps=Fraction(25)),
    "mov, prores": Kind("mov", "prores_ks", "pcm_s16le", pix="yuv422p10le", fps=Fraction(25)),
    "mp4, hevc": Kind("mp4", "libx265", options=(("preset", "ultrafast"), ("x265-params", "log-level=none:keyint=30"))),
    "ts, hevc": Kind("ts", "libx265", options=(("preset", "ultrafast"), ("x265-params", "log-level=none:keyint=30"))),
    "gif": Kind("gif", "gif", None, pix="gray", fps=Fraction(25)),
    "apng": Kind("apng", "apng", None, "apng", pix="gray", fps=Fraction(25)),
}


def numbered(n: int) -> np.ndarray:
    """Picture uint8 [SIZE, SIZE, 3]: the bits of n, and their complements, as 4 x 6 blocks with some grain."""
    bits = [n >> bit & 1 for bit in range(_BITS)]
    blocks = np.array(bits + [1 - bit for bit in bits]).reshape(_ROWS, _COLUMNS)
    rows, columns = np.arange(SIZE) * _ROWS // SIZE, np.arange(SIZE) * _COLUMNS // SIZE
    grain = np.random.default_rng(n).integers(-20, 21, (SIZE, SIZE))  # so that a picture takes as much as real ones do
    return np.repeat(((40 + 170 * blocks)[rows][:, columns] + grain)[:, :, None], 3, axis=2).astype(np.uint8)


def read_number(picture: np.ndarray) -> int | None:
    """The number that a picture shows, None where any of its blocks is spoilt."""
    grey = picture.astype(float).mean(axis=-1)
    rows, columns = np.arange(SIZE) * _ROWS // SIZE, np.arange(SIZE) * _COLUMNS // SIZE
    blocks = np.array([[grey[rows == r][:, columns == c].mean() for c in range(_COLUMNS)] for r in range(_ROWS)])
    bits = (blocks > 125).ravel().astype(int)
    if (np.abs(blocks - 40 - 170 * bits.reshape(blocks.shape)) > 45).any() or (bits[:_BITS] == bits[_BITS:]).any():
        return None
    return int((bits[:_BITS] << np.arange(_BITS)).sum())


def _likeness(picture: np.ndarray, number: int) -> float:
    """How well a picture's grain correlates with that of picture `number`."""
    exact = numbered(number)[..., 0].astype(float)
    blocks = np.where(exact > 125, 210.0, 40.0)
    seen, grain = picture.astype(float).mean(axis=-1) - blocks, exact - blocks
    seen -= seen.mean()
    return float((seen * grain).sum() / (np.linalg.norm(seen) * np.linalg.norm(grain) + 1e-9))


def read_numbers(pictures: np.ndarray) -> list[int | None]:
    """The numbers that pictures show. Where their codec keeps the grain, a picture without its own shows none: that
    spoilt blocks make up another number is chance.
    """
    numbers = [read_number(picture) for picture in pictures]
    alike = [0.0 if n is None else _likeness(picture, n) for n, picture in zip(numbers, pictures, strict=True)]
    keeps = np.median([x for x, n in zip(alike, numbers, strict=True) if n is not None] or [0]) > 0.5
    return [None if keeps and x < 0.25 else n for x, n in zip(alike, numbers, strict=True)]


def noise(seconds: float = SECONDS + 1, rate: int = RATE) -> np.ndarray:
    """Sound float32 [n] between 300 and 3000 Hz that never repeats; the same at every sample rate."""
    count = round(seconds * 8000)
    spectrum = np.fft.rfft(np.random.default_rng(7).standard_normal(count))
    frequencies = np.fft.rfftfreq(count, 1 / 8000)
    spectrum[(frequencies < 300) | (frequencies > 3000)] = 0
    wide = np.zeros(round(seconds * rate) // 2 + 1, complex)
    wide[: len(spectrum)] = spectrum
    sound = np.fft.irfft(wide, round(seconds * rate))
    return (0.7 * sound / np.abs(sound).max()).astype(np.float32)


def write(path: Path, kind: Kind, *, first: int = 0, seconds: float = SECONDS) -> Path:
    """Write a clip of `kind`; its first picture shows `first`, its sound is the noise from first / fps on."""
    count = round(seconds * kind.fps)
    with av.open(str(path), "w", format=kind.muxer, options=dict(kind.muxing)) as container:
        video = container.add_stream(kind.video, rate=kind.fps, options=dict(kind.options))
        video.width = video.height = SIZE
        video.pix_fmt = kind.pix
        audio, sound, position, packets = None, None, 0, []
        if kind.audio:
            audio = container.add_stream(kind.audio, rate=kind.rate, layout="mono", bit_rate=192_000)
            whole = noise(rate=kind.rate)
            offset = round(first / kind.fps * kind.rate)
            sound = whole[offset : offset + round(seconds * kind.rate)]
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(first + k), format="rgb24")
            frame.pts, frame.time_base = k, 1 / kind.fps
            packets += video.encode(frame)
            while audio and position < min(len(sound), (k + 1) / kind.fps * kind.rate):
                piece = np.ascontiguousarray(sound[None, position : position + 1024])
                samples = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                samples.sample_rate, samples.pts, samples.time_base = kind.rate, position, Fraction(1, kind.rate)
                packets += audio.encode(samples)
                position += 1024
        packets += video.encode(None)
        if audio:
            packets += audio.encode(None)
        # In order, so that a container without negative times moves all streams alike.
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return path


@dataclass(frozen=True)
class Truth:
    """What the file that a mutant comes from shows: picture n from n / fps on; the noise, or nothing, from `sound` on.

    later: whether the mutant may begin at a later picture than the first.
    """

    fps: Fraction
    audible: bool = True
    sound: float = 0.0
    later: bool = False


def judge(clip: Clip, start: float, truth: Truth) -> str | None:
    """What is wrong with the clip read from `start` on, or None; "spoilt ..." if things stand in their place."""
    numbers = read_numbers(clip.video)
    whole = [(k, number) for k, number in enumerate(numbers) if number is not None]
    shift = 0.0
    if truth.later and whole:
        k, number = whole[0]
        shift = max(0, number - round((start + k / 24) * truth.fps)) / float(truth.fps)
    for k, number in whole:
        late = start + shift + k / 24 - number / float(truth.fps)
        frame = 1 / float(truth.fps)
        slack = frame if truth.later else 0.0
        # The nearest of two, or the one on display where no other follows; stamps may be rounded, to a millisecond.
        if not -0.5 / 24 - 0.003 - slack < late < max(0.5 / 24 + 0.003, frame + 0.001) + slack:
            return f"picture {k} is number {number}, {late:.3f} s late"
    wrong = _judge_sound(clip.audio, start + shift - truth.sound, truth)
    if wrong is None and None in numbers:
        return f"spoilt is picture {numbers.index(None)}"
    return wrong


def _judge_sound(audio: np.ndarray, begin: float, truth: Truth) -> str | None:
    reference = noise() if truth.audible else np.zeros(RATE * (SECONDS + 1), np.float32)
    lags = round(RATE / float(truth.fps)) if truth.later else 0
    spoilt = None
    level = np.sqrt((noise() ** 2).mean())
    for place in range(0, len(audio) - WINDOW, WINDOW):
        heard = audio[place : place + WINDOW]
        if np.sqrt((heard**2).mean()) < 0.6 * level:
            continue
        at = round(begin * RATE) + place
        reach = TOLERANCE + lags
        if at < reach:
            if at < -WINDOW - reach:
                return f"sound at {place / RATE:.2f} s, before the noise begins"
            continue
        piece = reference[at - reach : at + WINDOW + reach]
        if len(piece) < WINDOW:
            return f"sound at {place / RATE:.2f} s, after the noise has ended"
        energy = np.concatenate([[0.0], np.cumsum(piece.astype(np.float64) ** 2)])
        norms = np.sqrt(energy[WINDOW:] - energy[:-WINDOW]) * np.linalg.norm(heard) + 1e-9
        likeness = np.correlate(piece, heard, "valid") / norms
        if likeness.max() < 0.5:
            there = _find(heard, reference)
            if there is not None:
                return f"the sound at {place / RATE:.2f} s is that of {(there - at) / RATE:+.3f} s"
            spoilt = spoilt or f"spoilt is the sound at {place / RATE:.2f} s"
    return spoilt


def _find(heard: np.ndarray, reference: np.ndarray) -> int | None:
    """Where in the reference a piece of sound stands, if it does anywhere."""
    size = 1 << (len(reference) + len(heard)).bit_length()
    product = np.fft.irfft(np.fft.rfft(reference, size) * np.fft.rfft(heard, size).conj(), size)
    place = int(product[: len(reference) - len(heard)].argmax())
    there = reference[place : place + len(heard)]
    return place if product[place] > 0.6 * np.linalg.norm(there) * np.linalg.norm(heard) else None
