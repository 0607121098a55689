"""Writes mp4 files one stream of which is another file's, its packets copied as they are, without decoding them.

Sound for given pictures goes beside the pictures themselves, and pictures for a given sound beside the sound itself.
"""

import io
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream
from av.video.stream import VideoStream

from mova_engine.data.media.container import audio_stream, channel_order, open_media, video_stream
from mova_engine.data.media.flac_layout import flac_layout
from mova_engine.data.media.mp4_boxes import header_first
from mova_engine.data.media.pictures import first_picture
from mova_engine.data.media.sound import first_sound
from mova_engine.data.media.write import PictureEncoder, add_sound, encode_sound, mux
from mova_engine.errors import MovaError

# Sound that mp4 holds and players know; other kinds are stored without loss, as FLAC.
COPIED_SOUND = ("aac", "mp3", "alac", "flac", "opus", "ac3", "eac3")


def check_copied_pictures(source: str | Path) -> None:
    """MovaError if a file's pictures cannot be copied into mp4."""
    with_new_sound(source, np.zeros(1, np.float32), 48000, packets=1)


def check_source_sound(source: str | Path, start: float) -> None:
    """MovaError for a file whose sound from `start` seconds on `with_source_sound` cannot keep."""
    with open_media(source, pictures=False) as given:
        stream = audio_stream(given)
        assert stream is not None
        if not _is_copied(stream, start):
            _flac_layout(stream, source)


def with_new_sound(
    source: str | Path, audio: np.ndarray, sample_rate: int, *, name: str | Path = "", packets: int | None = None
) -> bytes:
    """An mp4 file with the pictures of `source`, packet by packet, and the mono sound `audio` [n], which begins with
    the first of them. packets: copy no more than so many, for a trial. name: of the file to be written, for errors.

    Raises MovaError for pictures of a kind that mp4 does not hold.
    """
    buffer = io.BytesIO()
    with open_media(source) as given:
        stream = video_stream(given, source)
        kind = stream.codec_context.name
        copied = list(_packets(given, stream, packets))
        if not copied:
            raise MovaError(f"{source}: damaged or cut short: no packet of its pictures can be read")
        # Packets before the first picture that is shown, as files have that were cut without encoding them again, are
        # needed by later ones: they come along, and remain hidden.
        with open_media(source) as again:
            first = round(first_picture(again, source) / (stream.time_base or Fraction(1)))
        try:
            with av.open(buffer, "w", format="mp4") as container:
                pictures = container.add_stream_from_template(stream)
                sound = add_sound(container, sample_rate)
                samples = encode_sound(sound, np.clip(audio, -1, 1), sample_rate)
                mux(container, _shifted(copied, pictures, first), samples)
        except (FFmpegError, ValueError) as error:
            raise MovaError(
                f"{name or source}: pictures of the kind {kind} cannot be copied into mp4 ({error}): convert "
                f"{source} to H.264 first"
            ) from None
    return header_first(buffer.getvalue())


def with_source_sound(
    source: str | Path, encoder: PictureEncoder, fps: float, *, start: float = 0.0, name: str | Path = ""
) -> bytes:
    """An mp4 file with the pictures that `encoder` was given, and the sound of `source` from `start` seconds on, as
    long as the pictures last: its packets where mp4 holds their kind and the sound is taken from its beginning, else
    its samples as FLAC, without loss. name: of the file to be written, for errors.
    """
    duration = Fraction(encoder.pictures) / Fraction(fps).limit_denominator(1001)
    try:
        with open_media(source, pictures=False) as given:
            return encoder.finish(partial(_sound_of, given, source, start, duration))
    except FFmpegError as error:
        raise MovaError(f"{name or source}: cannot be encoded ({error.strerror})") from None


def _sound_of(
    given: InputContainer, source: str | Path, start: float, duration: Fraction, container: OutputContainer
) -> Iterator[Packet]:
    """Packets of a stretch of a file's sound, for a stream of it that is added to `container`."""
    stream = audio_stream(given)
    assert stream is not None
    if not _is_copied(stream, start):
        return _lossless(container, given, stream, source, start, duration)
    sound = container.add_stream_from_template(stream)
    # The first sample that is heard; an encoder's priming lies before it.
    unit = stream.time_base or Fraction(1)
    with open_media(source, pictures=False) as again:
        first = round(first_sound(again, source) / unit)
    end = first + duration / unit
    copied = [x for x in _packets(given, stream, None) if x.pts is not None and x.pts < end]
    return _shifted(copied, sound, first)


def _packets(container: InputContainer, stream: VideoStream | AudioStream, most: int | None) -> Iterator[Packet]:
    """A stream's packets, in their order."""
    for number, packet in enumerate(container.demux(stream)):
        # The last one is empty: it flushes decoders.
        if packet.size and (most is None or number < most):
            yield packet


def _shifted(packets: list[Packet], stream: Stream, first: int) -> Iterator[Packet]:
    """Packets of another file for the stream, their times shifted so that `first` becomes 0."""
    for packet in packets:
        if packet.dts is not None:
            packet.dts -= first
        if packet.pts is not None:
            packet.pts -= first
        packet.stream = stream
        yield packet


def _is_copied(stream: AudioStream, start: float) -> bool:
    return stream.codec_context.name in COPIED_SOUND and not start


def _flac_layout(stream: AudioStream, source: str | Path) -> tuple[str, list[int]]:
    try:
        return flac_layout(channel_order(stream))
    except MovaError as error:
        raise MovaError(f"{source}: {error}") from None


def _lossless(
    container: OutputContainer,
    given: InputContainer,
    stream: AudioStream,
    source: str | Path,
    start: float,
    duration: Fraction,
) -> Iterator[Packet]:
    """The decoded samples of a stretch, as FLAC of the same rate, channels and, up to 24 bits, depth."""
    layout, order = _flac_layout(stream, source)
    context = stream.codec_context
    kind = "s32" if (context.format.bytes if context.format else 4) > 2 else "s16"
    sound = container.add_stream("flac", rate=context.sample_rate, layout=layout, format=kind)
    resampler = av.AudioResampler(kind)
    begin, count = round(start * context.sample_rate), round(duration * context.sample_rate)
    position = written = 0
    samples: Any
    kept: Any
    for frame in given.decode(stream):
        if written == count:
            break
        for part in resampler.resample(frame):
            samples = part.to_ndarray().reshape(-1, len(order))
            lead = max(0, begin - position)
            position += len(samples)
            kept = np.ascontiguousarray(samples[lead : lead + count - written, order])
            if len(kept):
                chunk = av.AudioFrame.from_ndarray(kept.reshape(1, -1), kind, layout)
                chunk.sample_rate, chunk.pts = context.sample_rate, written
                chunk.time_base = Fraction(1, context.sample_rate)
                written += len(kept)
                yield from sound.encode(chunk)
    yield from sound.encode(None)
