"""Opens media files, chooses their streams, and reads frames in order of presentation from any time on.

The times and positions that a container states are checked. `Reader` yields frames whose times never decrease, that no
damage before them can have changed, and that begin no later than the requested time; otherwise it raises MovaError.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mova_engine.data.media import avi, gif, mxf
from mova_engine.data.media.matroska import Clusters
from mova_engine.data.media.numbered import ffv1_is_whole, flac_sample
from mova_engine.data.media.ogg import pages_of
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file

# Decoding begins this many seconds ahead of the wanted time, for decoder and resampler to settle.
PREROLL = Fraction(1)
# Sound this many seconds after a damaged packet is decoded from whole packets alone.
SOUND_RECOVERS = Fraction(1, 10)
# Formats whose files are what they seem: playlists, which open other files or addresses, and text shown as pictures
# are not among them.
FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif,apng,mxf,nut,rm,ivf,dv,yuv4mpegpipe,webp_pipe,h264,hevc,m4v,"
    "mpegvideo,mjpeg,av1,obu,wtv,gxf,mpegtsraw,wav,w64,mp3,flac,aac,ac3,eac3,aiff,caf,au,amr,voc,tta,wv,ape"
)
# Formats with an index of exact times. In the others a time is searched for among stamps that may come twice.
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Formats without stamps or checksums, whose parts form a chain.
CHAINED = {"avi": avi.why_broken, "gif": gif.why_broken, "mxf": mxf.why_broken}
# Formats that may be cut anywhere: their first packets may belong to a frame whose beginning is missing.
CUT_ANYWHERE = ("mpeg", "mpegts")
# What decoders look for: checksums, impossible values, data that end too early; errors are not concealed.
CHECKS = "crccheck+bitstream+buffer+explode"
# Seconds by which a time in Ogg may be off against what came before.
JUMP = Fraction(5, 1000)
# Packets among which one that is whole shows what the stream is.
FIRST_PACKETS = 32
# How far to go back, in seconds, until a frame is found that is early enough.
STEPS_BACK = (PREROLL, Fraction(8), Fraction(60))

STILLS = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails

# Layouts that are never freed: see `channel_order`.
_kept: list[Any] = []

MediaStream = TypeVar("MediaStream", bound=Stream)
MediaFrame = TypeVar("MediaFrame", VideoFrame, AudioFrame)


@contextmanager
def open_media(path: str | Path, *, pictures: bool = True) -> Iterator[InputContainer]:
    """Open a local media file that has video (pictures=False: that has sound).

    An error of the media library in the with-block becomes a MovaError of one line that names the file. The path is
    always taken as a file's (not as an address), and no other file or address that it refers to is opened.
    """
    require_file(path)
    # Without a folder in front a name such as 12:30.mp4 reads as a protocol's.
    url = f"file:{Path(path).absolute()}"
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        container = av.open(url, container_options=options, metadata_errors="replace")
    except av.ArgumentError:
        raise MovaError(f"{path}: not a media file of a known format (playlists are not read)") from None
    except (av.FFmpegError, MemoryError) as error:
        raise MovaError(_damaged(path, error)) from None
    why_broken = CHAINED.get(container.format.name)
    if why_broken is not None and (reason := why_broken(path)) is not None:
        container.close()
        raise MovaError(f"{path}: damaged or cut short: {reason}")
    try:
        with container:
            sound = audio_stream(container)
            if not pictures and sound is None:
                raise MovaError(f"{path}: has no sound track")
            for stream in (video_stream(container, path) if pictures else None, sound):
                if stream is not None and stream.codec_context is None:
                    raise MovaError(f"{path}: damaged, or its {stream.type} is of an unknown kind")
            yield container
    except (av.FFmpegError, MemoryError) as error:
        raise MovaError(_damaged(path, error)) from None


def _damaged(path: str | Path, error: Exception) -> str:
    # Decoders report bad data as -1 too, which the system calls "Operation not permitted".
    told = getattr(error, "errno", errno.ENOMEM) != errno.EPERM
    reason = f" ({getattr(error, 'strerror', None) or 'not enough memory'})" if told else ""
    return f"{path}: damaged or cut short: cannot be decoded{reason}"


def video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """The stream of moving pictures: the one marked as default, or the first; covers and thumbnails do not count.

    Raises MovaError if there is none.
    """
    moving = [s for s in container.streams.video if not s.disposition & STILLS]
    if not moving:
        cover = ", only a cover picture" if len(container.streams.video) else ""
        alone = " (sound alone serves to train the audio tower: --task audio)" if len(container.streams.audio) else ""
        raise MovaError(f"{path}: has no video{cover}{alone}")
    return _default(moving)


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The sound's stream: the one marked as default, or the first; None if there is none."""
    streams = list(container.streams.audio)
    if len(streams) > 1 and container.format.name == "mpegts":
        # A transport stream may carry several programs: choose the sound of the pictures' program.
        moving = [s for s in container.streams.video if not s.disposition & STILLS]
        best = container.streams.best("audio", related=_default(moving) if moving else None)
        return cast("AudioStream | None", best)  # by the kind that was asked for
    return _default(streams) if streams else None


def _default(streams: list[MediaStream]) -> MediaStream:
    return next((s for s in streams if s.disposition & Disposition.default), streams[0])


def _has_checksums(path: str | Path, index: int) -> bool:
    """Whether a stream of FFV1 has them: any of its first packets has a right one."""
    with open_media(path) as container:
        packets = islice(container.demux(container.streams[index]), FIRST_PACKETS)
        return any(packet.size and ffv1_is_whole(packet) for packet in packets)


def channel_order(stream: AudioStream) -> tuple[str, ...]:
    """Names of the channels of a sound stream in the order of the file ("FL", "FC", ...). To be called before decoding.

    A layout with an order of its own (film order in QuickTime) owns memory, which PyAV 17.1 to 18.1 frees once with
    each Python object that stands for it: the process dies of it. The object is therefore kept for ever, and the
    decoder is given an ordinary layout of as many channels, so that its frames own nothing.
    """
    layout = stream.codec_context.layout
    _kept.append(layout)
    names = tuple(channel.name for channel in layout.channels)
    if "+" in layout.name or "(" in layout.name or "@" in layout.name:
        ordinary = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
        # PyAV takes a layout's name here, which its stubs do not say.
        cast(Any, stream.codec_context).layout = ordinary.get(len(names), f"{len(names)}C")
    else:
        _kept.pop()
    return names


def _seconds(stamp: int, time_base: Fraction | None) -> Fraction:
    """A time stamp in seconds."""
    assert time_base is not None, "a decoded frame and its stream have a time base"
    return stamp * time_base


class Reader(Generic[MediaFrame]):
    """Yields one stream's frames as (time in seconds on the container's clock, frame), in order of presentation.

    decoder: used instead of the stream's own.
    Attributes: `begin`: only damage that can reach frames from this time on is an error; None: all damage is.
    `second`: the time of the stream's second frame, once `first` was called; None if there is none.
    `restart`: the time after which the stream's clock goes back to `resumed` (None: unknown). The frames end there,
    because another recording follows. None as long as that was not found.
    """

    @overload
    def __init__(
        self: "Reader[VideoFrame]",
        container: InputContainer,
        stream: VideoStream,
        path: str | Path,
        decoder: VideoCodecContext | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self: "Reader[AudioFrame]",
        container: InputContainer,
        stream: AudioStream,
        path: str | Path,
        decoder: AudioCodecContext | None = None,
    ) -> None: ...

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream | AudioStream,
        path: str | Path,
        decoder: VideoCodecContext | AudioCodecContext | None = None,
    ) -> None:
        self.container, self.stream, self.path = container, stream, path
        self._decoder = decoder or stream.codec_context
        # Decoders shall fail instead of concealing errors.
        self._decoder.options = {**self._decoder.options, "err_detect": CHECKS}
        self.begin: Fraction | None = None
        self.second: Fraction | None = None
        self._indexed = container.format.name in INDEXED
        self.states_durations = self._indexed
        self._cut = container.format.name in CUT_ANYWHERE
        self._moving = stream.type == "video"
        # Pictures of program streams are stamped a frame or two off, see `timeline`.
        self._jitter = Fraction(1, 5) if self._moving and container.format.name == "mpeg" else 0
        # Whether FFV1 has checksums.
        self._summed = self._decoder.name == "ffv1" and _has_checksums(path, stream.index)
        self._clusters = Clusters(path) if container.format.name == "matroska,webm" else None
        self._pages = pages_of(path) if container.format.name == "ogg" else None
        self._packets = self._demuxed()
        self._fed: list[Packet] = []
        self._clear()

    def _clear(self) -> None:
        """Reset what is known about the frames so far: the next ones come from another place."""
        self.restart: Fraction | None = None
        self.resumed: Fraction | None = None
        self._last: Fraction | None = None
        self._expected: Fraction | None = None
        self._damage: Fraction | None = None
        self._latest = Fraction(0)  # of the damage since then; a spoilt key frame mends nothing
        # Until a frame that stands alone, the first ones may show what they refer to and do not have.
        self._waits = self._moving and self._cut

    def first(self) -> tuple[Fraction, MediaFrame] | None:
        """Return the stream's first frame, and set `second`. `frames` yields the first frame again.

        All times of a clip are relative to it: raises MovaError if a page of Ogg is missing before it.
        """
        if self._pages is not None and self._pages.lacks_beginning(self.stream.index):
            raise MovaError(
                f"{self.path}: damaged {self.stream.type}: its first page is missing "
                "(of a recorded live stream, a copy by ffmpeg -c copy can be read)"
            )
        found: list[tuple[Fraction, MediaFrame]] = []
        for packet in self._packets:
            self._fed.append(packet)
            found += [checked for frame in self._decoded(packet) if (checked := self._checked(frame)) is not None]
            if len(found) > 1 or (found and self.restart is not None):
                break
        self._decoder.flush_buffers()
        self.second = found[1][0] if len(found) > 1 else None
        return found[0] if found else None

    def frames(self, begin: Fraction, *, search: bool = True) -> Iterator[tuple[Fraction, MediaFrame]]:
        """Yield frames, starting at one that is not later than `begin` if there is one.

        search=False: read from the file's first frame on, for a `begin` that is near.
        """
        self.begin = begin
        if self.container.format.name == "ogg":
            self._refuse_jumps(begin)
        packets = chain(self._fed, self._packets)
        if not search:
            yield from self._from(packets)
            return
        if self._indexed:
            for back in STEPS_BACK:
                frames = self._from(self._sought(begin - back), alone=True)
                early = next(frames, None)
                if early is not None and early[0] <= begin:
                    yield from chain([early], frames)
                    return
            # The index is wrong: read everything.
            packets = self._sought(Fraction(-10))
        yield from self._from(self._skipped(packets, begin))

    def _refuse_jumps(self, begin: Fraction) -> None:
        """Ogg stamps pages, not packets: after a lost page times are counted on, wrongly, until they jump.

        Those of FLAC never do, but its frames have numbers. Where packets are left over at the end of the sound, it is
        times after a jump that are wrong.
        """
        decoder = self._decoder
        numbered = decoder.name == "flac"
        with open_media(self.path, pictures=self._moving) as container:
            expected = block = origin = jumped = None
            over = 0
            for packet in container.demux(container.streams[self.stream.index]):
                if packet.pts is None:
                    continue
                time = packet.pts * packet.time_base
                jumps = expected is not None and abs(time - expected) > JUMP
                if numbered and isinstance(decoder, AudioCodecContext):
                    block = block or packet.duration or 0
                    sample = flac_sample(packet, block)
                    zero = origin if sample is None else time - Fraction(sample, decoder.sample_rate)
                    origin = zero if origin is None else origin
                    jumps = jumps or (zero is not None and origin is not None and abs(zero - origin) > JUMP)
                if jumps and time >= begin:
                    raise self._error(time)
                jumped = time if jumps else jumped
                over += not self._moving and (packet.duration or 0) <= 1
                expected = time + packet.duration * packet.time_base if packet.duration else None
        if jumped is not None and over > 1:
            raise self._error(jumped)

    def _sought(self, time: Fraction) -> Iterator[Packet]:
        self.container.seek(int(time / _seconds(1, self.stream.time_base)), stream=self.stream)
        self._decoder.flush_buffers()
        return self._demuxed()

    def _demuxed(self) -> Iterator[Packet]:
        # A program stream cut amid a picture: its first stamp went to the rest of that, so that all that are counted
        # from it are wrong. Those of later blocks are right.
        stamps = 2 if self._moving and self.container.format.name == "mpeg" else 0
        try:
            for k, packet in enumerate(self.container.demux(self.stream)):
                stamps = 0 if k == 0 and packet.is_keyframe else stamps
                stamps -= stamps > 0 and packet.pos is not None
                if not stamps or not packet.size:
                    yield packet
        except IndexError:
            # PyAV's way of saying that a stream has turned up which was not there when the file was opened.
            raise MovaError(f"{self.path}: damaged: it has a stream that its beginning does not name") from None

    def _skipped(self, packets: Iterator[Packet], begin: Fraction) -> Iterator[Packet]:
        """Packets without those that the frames around `begin` do not need."""
        held: list[Packet] = []
        latest, falls = None, False
        # Pictures of a program stream are counted, see `timeline`; sound has to settle.
        enough = begin - (PREROLL if not self._moving or self.container.format.name == "mpeg" else 0)
        for packet in packets:
            decoded, shown = self._time(packet.dts), self._time(packet.pts)
            if decoded is not None and latest is not None and decoded < latest - self._jitter:
                falls = True
                break
            latest = decoded if decoded is not None else latest
            if packet.is_keyframe and shown is not None and shown <= enough and not packet.is_corrupt:
                held.clear()
                self._waits = self._moving
            held.append(packet)
            if decoded is None or decoded > begin:
                break
        yield from held
        if falls:
            self.restart = latest
        else:
            yield from packets

    def _from(self, packets: Iterator[Packet], alone: bool = False) -> Iterator[tuple[Fraction, MediaFrame]]:
        self._clear()
        self._waits |= alone and self._moving
        for packet in packets:
            for frame in self._decoded(packet):
                checked = self._checked(frame)
                if self.restart is not None:
                    return
                if checked is not None:
                    yield checked
        if self._damage is not None and (self.begin is None or self._damage >= self.begin):
            raise self._error(self._damage)

    def _decoded(self, packet: Packet) -> list[MediaFrame]:
        if packet.size == 0 and packet.pts is not None:
            return []  # it repeats the last picture; the decoder would take it for the end
        if packet.is_corrupt or self._is_known_to_be_spoilt(packet):
            self._spoilt(packet)
        try:
            return cast("list[MediaFrame]", self._decoder.decode(packet))  # of the kind of the stream, see __init__
        except av.FFmpegError as error:
            if isinstance(error, OSError) and error.errno == errno.ENOMEM:
                raise
            self._spoilt(packet)
            return []

    def _is_known_to_be_spoilt(self, packet: Packet) -> bool:
        """Whether something that the media library ignores tells so: a checksum of FFV1 or of a Matroska cluster, or
        the number of a page of Ogg.
        """
        if not packet.size:
            return False
        if self._pages is not None and packet.pos is not None:
            return self._pages.is_beside_a_loss(self.stream.index, packet.pos)
        if self._clusters is not None and packet.pos is not None and self._clusters.is_spoilt(packet.pos):
            return True
        return self._summed and not ffv1_is_whole(packet)

    def _spoilt(self, packet: Packet) -> None:
        """Note that frames from this packet's decoding time on may be wrong."""
        if self._last is None and self._cut:
            return
        time = self._time(packet.dts if packet.dts is not None else packet.pts)
        self._note(time if time is not None else self._last or Fraction(0), self._time(packet.pts))

    def _note(self, time: Fraction, shown: Fraction | None = None) -> None:
        shown = time if shown is None else shown
        self._latest = shown if self._damage is None else max(self._latest, shown)
        self._damage = time if self._damage is None else min(self._damage, time)

    def _checked(self, frame: MediaFrame) -> tuple[Fraction, MediaFrame] | None:
        """The frame with its time; None if it must not be shown, or if the clock restarts at it."""
        if frame.pts is not None:
            time = _seconds(frame.pts, frame.time_base)
        elif self._expected is not None:
            time = self._expected  # of a packet with several frames of sound
        else:
            raise MovaError(f"{self.path}: its {self.stream.type} carries no timestamps")
        if isinstance(frame, AudioFrame) and frame.sample_rate:
            self._expected = time + Fraction(frame.samples, frame.sample_rate)
        if self._last is not None and time < self._last - self._jitter:
            self.restart, self.resumed = self._last, time
            return None
        alone = self._moving and frame.key_frame and not frame.is_corrupt
        if self._waits:
            if not alone:
                return None
            self._waits = False
        if frame.is_corrupt:
            self._note(time)
        if self._damage is not None and time >= self._damage:
            latest = max(self._damage, self._latest)
            healed = alone and time > latest if self._moving else time >= latest + SOUND_RECOVERS
            if self.begin is None or (time > self.begin if healed else time >= self.begin):
                raise self._error(self._damage)
            if not healed:
                return None
            self._damage = None
        self._last = time
        return time, frame

    def _time(self, stamp: int | None) -> Fraction | None:
        return None if stamp is None else _seconds(stamp, self.stream.time_base)

    def _error(self, time: Fraction) -> MovaError:
        return MovaError(f"{self.path}: damaged {self.stream.type} at {float(time):.3f} s")
