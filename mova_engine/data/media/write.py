"""Writes clips to mp4 files that players show with sound and picture in step."""

import heapq
import io
import os
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from mova_engine.data.media.frames import SCALER
from mova_engine.data.media.mp4_boxes import header_first
from mova_engine.data.media.pictures import exact_rate
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic

# Samples per AAC frame.
AAC_FRAME = 1024
# H.264's quality, and AAC's bits a second.
CRF, AUDIO_BIT_RATE = 18, 192_000
# H.264's threads: the bytes depend on their number, which would be the machine's number of cores and a half.
THREADS = 4


def encode_mp4(
    path: str | Path,
    video: np.ndarray,
    audio: np.ndarray,
    fps: float = 24.0,
    sample_rate: int = 48000,
    *,
    crf: int = CRF,
    audio_bit_rate: int = AUDIO_BIT_RATE,
    threads: int = THREADS,
    preset: str | None = None,
) -> bytes:
    """Encode an mp4 file: pictures uint8 [f, h, w, 3] as H.264 (yuv420p, BT.709), mono sound float [n] as AAC.

    Picture k has the time k / fps, sample i the time i / sample_rate. The container's edit list cuts the encoder's
    priming samples, so that a decoder returns sample i at position i. Sound outside [-1, 1] is clipped. crf: H.264's
    quality, 0 to 51, lower is better. path: of the file to be written, for error messages. threads: of H.264's encoder,
    on whose number the bytes depend. preset: of x264, how long it looks for short forms; None: its own default.
    Returns the file's content. Raises MovaError for shapes that the format cannot hold.
    """
    audio = _checked_sound(path, audio)
    with closing(PictureEncoder(path, fps, crf, threads, preset)) as encoder:
        encoder.add(video)
        return encoder.with_sound(audio, sample_rate, audio_bit_rate)


class PictureEncoder:
    """Encodes an mp4 file whose pictures come in parts, and then its sound. Of what was encoded only the packets are
    kept; the file is that of `encode_mp4`, to the byte. Arguments and errors: as there.

    Close it, finished or not.
    """

    def __init__(
        self, path: str | Path, fps: float, crf: int = CRF, threads: int = THREADS, preset: str | None = None
    ) -> None:
        self._path, self._fps = path, fps
        given = {"crf": crf, "threads": threads, "preset": preset}
        self._options = {name: str(value) for name, value in given.items() if value is not None}
        self._buffer, self._packets = io.BytesIO(), list[Packet]()
        self._container: OutputContainer = av.open(self._buffer, "w", format="mp4")
        self._stream: VideoStream | None = None
        # Pictures that have been added.
        self.pictures = 0

    def add(self, video: np.ndarray) -> None:
        """Encode the next pictures, uint8 [n, h, w, 3]."""
        video = np.asarray(video)
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not len(video):
            raise MovaError(f"{self._path}: video must be uint8 [f, h, w, 3], got {video.dtype} {list(video.shape)}")
        if video.shape[1] % 2 or video.shape[2] % 2:
            raise MovaError(
                f"{self._path}: H.264 needs an even height and width, got {video.shape[1]}x{video.shape[2]}"
            )
        with self._said():
            if self._stream is None:
                self._stream = add_pictures(self._container, video, self._fps, **self._options)
            self._packets += encode_frames(self._stream, video, self._fps, self.pictures)
        self.pictures += len(video)

    def with_sound(self, audio: np.ndarray, sample_rate: int, bit_rate: int = AUDIO_BIT_RATE) -> bytes:
        """The file, with mono sound float [n] as AAC."""
        sound = np.clip(_checked_sound(self._path, audio), -1, 1)

        def packets(container: OutputContainer) -> Iterator[Packet]:
            return encode_sound(add_sound(container, sample_rate, bit_rate), sound, sample_rate)

        return self.finish(packets)

    def finish(self, sound: Callable[[OutputContainer], Iterable[Packet]]) -> bytes:
        """The file. sound: adds a stream to the container, and returns its packets."""
        if self._stream is None:
            raise MovaError(f"{self._path}: a clip needs at least one picture")
        with self._said():
            packets = sound(self._container)
            self._packets += self._stream.encode(None)
            mux(self._container, self._packets, packets)
            self._container.close()
        return header_first(self._buffer.getvalue())

    def close(self) -> None:
        """Give up what is not finished."""
        self._packets.clear()
        self._container.close()

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except FFmpegError as error:
            raise MovaError(f"{self._path}: cannot be encoded ({error.strerror})") from None


def _checked_sound(path: str | Path, audio: np.ndarray) -> np.ndarray:
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 1:
        raise MovaError(f"{path}: audio must be mono [n], got {list(audio.shape)}")
    if not np.isfinite(audio).all():
        raise MovaError(f"{path}: audio holds values that are not finite")
    return audio


def encode_wav(path: str | Path, audio: np.ndarray, sample_rate: int) -> bytes:
    """Mono sound float32 [n] as a wav file of 16 bits; outside [-1, 1] it is clipped. path: for error messages."""
    if audio.ndim != 1 or not np.isfinite(audio).all():
        raise MovaError(f"{path}: audio must be mono [n] and finite, got {list(audio.shape)}")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(np.round(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def write_mp4(path: str | Path, video: np.ndarray, audio: np.ndarray, **settings: Any) -> None:
    """Encode and write an mp4 file atomically. settings, errors: as of `encode_mp4`.

    Raises MovaError also if the file exists already, or if writing fails.
    """
    if os.path.lexists(path):
        raise MovaError(f"{path} exists and is not replaced: give another name, or remove it")
    write_atomic(path, encode_mp4(path, video, audio, **settings), sync=False)


def mux(container: OutputContainer, *streams: Iterable[Packet]) -> None:
    """Write the packets of several streams in the order of time, in which players read them."""
    for packet in heapq.merge(*streams, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
        container.mux(packet)


def add_pictures(container: OutputContainer, video: np.ndarray, fps: float, **options: str) -> VideoStream:
    """A stream of H.264 for pictures uint8 [f, h, w, 3]. options: of libx264; without any, quality CRF."""
    given = {"crf": str(CRF), "threads": str(THREADS), **options, **_repeatable()}
    pictures = container.add_stream("libx264", rate=exact_rate(fps), options=given)
    pictures.height, pictures.width = video.shape[1:3]
    pictures.pix_fmt = "yuv420p"
    colours = pictures.codec_context
    # Said in the file: left to guess, players decode small pictures with another matrix than large ones.
    colours.colorspace, colours.color_range = Colorspace.ITU709, ColorRange.MPEG
    colours.color_primaries, colours.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
    return pictures


def add_sound(container: OutputContainer, sample_rate: int, bit_rate: int = AUDIO_BIT_RATE) -> AudioStream:
    """A stream of AAC for mono sound."""
    # The faster of the encoder's two coders, and at this rate the nearer to the waveform by 3 to 15 dB.
    coder = {"aac_coder": "fast"}
    return container.add_stream("aac", rate=sample_rate, layout="mono", bit_rate=bit_rate, options=coder)


def encode_frames(stream: VideoStream, video: np.ndarray, fps: float, first: int = 0) -> Iterator[Packet]:
    """Packets of the pictures uint8 [f, h, w, 3], the first of which is picture `first` of the clip. Some come only
    with later pictures, the last ones when the stream is told of the end.
    """
    rate = exact_rate(fps)
    for index, pixels in enumerate(video, first):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=SCALER,
            threads=1,
        )
        frame.pts, frame.time_base = index, 1 / rate
        yield from stream.encode(frame)


def encode_sound(stream: AudioStream, audio: np.ndarray, sample_rate: int) -> Iterator[Packet]:
    """Packets of mono sound float32 [n] in [-1, 1]."""
    for position in range(0, len(audio), AAC_FRAME):
        chunk = np.ascontiguousarray(audio[None, position : position + AAC_FRAME])
        samples = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = sample_rate, position, Fraction(1, sample_rate)
        yield from stream.encode(samples)
    yield from stream.encode(None)


def _repeatable() -> dict[str, str]:
    """Options of x264 with which the same pictures give the same file each time. With AVX-512 its macroblock trees do
    not repeat themselves (core 165); with AVX2 they do, and are those of its plain C code.
    """
    # Imports torch, which readers of files do without.
    from mova_engine.backend.cpu import cpu_flags

    return {"x264-params": "asm=avx2"} if "avx512f" in cpu_flags() else {}
