"""Writes clips to mp4 files without loss: pictures as RGB, sound with 24 bits a sample. Few players show them."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.video.stream import VideoStream

from mova_engine.data.media.mp4_boxes import header_first
from mova_engine.data.media.pictures import exact_rate
from mova_engine.data.media.write import mux
from mova_engine.errors import MovaError

# Samples of an ALAC frame, and full scale of its 24 bits.
_FRAME, _FULL = 4096, 1 << 23


def encode_exact_mp4(path: str | Path, video: np.ndarray, audio: np.ndarray, fps: float, sample_rate: int) -> bytes:
    """Encode an mp4 file that `read_clip` reads as it was: pictures uint8 [f, h, w, 3] as H.264 of RGB without loss,
    mono sound float32 [n] in [-1, 1] as ALAC, rounded to 24 bits a sample: exact where it comes from 16 or 24 bits.

    path: of the file to be written, for error messages. The same clip gives the same bytes. Raises MovaError for shapes
    that the format cannot hold.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not len(video):
        raise MovaError(f"{path}: video must be uint8 [f, h, w, 3], got {video.dtype} {list(video.shape)}")
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise MovaError(f"{path}: audio must be mono [n] and finite, got {list(audio.shape)}")
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp4") as container:
            options = {"qp": "0", "threads": "1", "preset": "veryfast"}
            pictures = container.add_stream("libx264rgb", rate=exact_rate(fps), options=options)
            pictures.height, pictures.width, pictures.pix_fmt = video.shape[1], video.shape[2], "rgb24"
            sound = container.add_stream("alac", rate=sample_rate, layout="mono")
            sound.codec_context.format = "s32p"
            mux(container, _pictures(pictures, video, fps), _sound(sound, audio, sample_rate))
    except FFmpegError as error:
        raise MovaError(f"{path}: cannot be encoded ({error.strerror})") from None
    return header_first(buffer.getvalue())


def _pictures(stream: VideoStream, video: np.ndarray, fps: float) -> list[av.Packet]:
    found = list[av.Packet]()
    for index, pixels in enumerate(video):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = index, 1 / exact_rate(fps)
        found += stream.encode(frame)
    return [*found, *stream.encode(None)]


def _sound(stream: AudioStream, audio: np.ndarray, sample_rate: int) -> list[av.Packet]:
    found = list[av.Packet]()
    values = np.clip(np.round(audio.astype(np.float64) * _FULL), -_FULL, _FULL - 1).astype(np.int32) << 8
    for position in range(0, len(values), _FRAME):
        chunk = np.ascontiguousarray(values[None, position : position + _FRAME])
        frame = av.AudioFrame.from_ndarray(chunk, format="s32p", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, position, Fraction(1, sample_rate)
        found += stream.encode(frame)
    return [*found, *stream.encode(None)]
