"""A media file opened: its packets, in order of presentation and with their times, from any place on."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
from av.container import InputContainer
from av.frame import Frame
from av.stream import Stream

from mova_engine.errors import MovaError

# Decoding begins this many seconds ahead of the wanted time, for decoder and resampler to settle.
PREROLL = Fraction(1)


@contextmanager
def open_media(path: str | Path) -> Iterator[InputContainer]:
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


def decode(
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


def decode_from(
    container: InputContainer, stream: Stream, path: str | Path, begin: Fraction, origin: Fraction
) -> Iterator[tuple[Fraction, Frame]]:
    """As `decode`, from a frame not later than `begin`, if there is one after `origin`."""
    container.seek(int((begin - PREROLL) / stream.time_base), stream=stream)
    frames = decode(container, stream, path, begin)
    first = next(frames, None)
    if first is None or first[0] > begin:
        # The container's index leads astray.
        container.seek(int(origin / stream.time_base), stream=stream)
        return decode(container, stream, path)
    return chain([first], frames)
