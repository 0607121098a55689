"""Copies of clips that do not tell whose they are: mp4 without metadata, and clips damaged on purpose.

A copy keeps the packets of pictures and sound as they are, where browsers play them. Names, comments and encoders'
notes are left out: of the container all, of H.264 and AV1 the units that carry them. Where loudness is levelled the
sound is encoded anew, and with `encode` the pictures too.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from mova_engine.data.media.container import audio_stream, open_media, video_stream
from mova_engine.data.media.pictures import exact_rate, first_picture
from mova_engine.data.media.reader_process import in_reader_process
from mova_engine.data.media.write import add_pictures, encode_frames, mux
from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import DecodedClip

# What browsers play from mp4, and the units of a coding that hold notes of its encoder.
PLAYED_PICTURES, PLAYED_SOUND = ("h264", "av1", "vp9"), ("aac", "mp3", "opus", "flac")
_NOTES = {"h264": "filter_units=remove_types=6", "av1": "filter_units=remove_types=5|15"}
_PLAYED_FORMATS = ("yuv420p", "yuvj420p")
_CRF, _BIT_RATE, _BLOCK = 12, 256_000, 1024
_LOUDNESS_RATE, _BOTH_SIDES = 48000, 10 * math.log10(2)
# Of a damaged copy: pixels joined to squares of this side, noise as loud as the sound, and its delay in seconds.
_MOSAIC, _QUIETEST, _DELAY = 16, 0.02, 0.8

_Samples = np.ndarray


@dataclass(frozen=True)
class InspectedClip:
    """What decoding a whole clip showed. seconds: of its pictures. sound: of its sound. lufs: its loudness as two
    loudspeakers give it, None without. unplayable: why browsers do not play it as it is, "" where they do.
    """

    seconds: float
    sound: float
    height: int
    width: int
    lufs: float | None
    unplayable: str


@in_reader_process
def inspect_clip(path: str | Path) -> InspectedClip:
    """Decode every picture and sample. MovaError for what cannot be played with sound and pictures."""
    # torch is imported by those who measure, in their own process; the server does without.
    import torch

    from mova_engine.scores.loudness import loudness

    clip = DecodedClip.read(path)
    try:
        track, (height, width) = clip.soundtrack, clip.size
        seconds = float(clip.times[-1]) + 1 / clip.fps
    except MovaError as error:
        raise MovaError(f"{path}: {error}") from None
    try:
        channels = "mono" if track.samples.shape[1] == 1 else "stereo"
        sound = np.asarray(clip.sound(_LOUDNESS_RATE, channels), np.float32).reshape(-1, 1 if channels == "mono" else 2)
        # Channels one after the other have the mean of their powers; two loudspeakers give the sum, of mono sound too.
        lufs = loudness(torch.from_numpy(sound.T.flatten()), _LOUDNESS_RATE) + _BOTH_SIDES
    except MovaError:
        lufs = None  # silent, or too short for a block
    return InspectedClip(seconds, len(track.samples) / track.rate, height, width, lufs, _unplayable(path))


def _unplayable(path: str | Path) -> str:
    with open_media(path) as container:
        pictures, sound = video_stream(container, path).codec_context, audio_stream(container)
        if pictures.name not in PLAYED_PICTURES and pictures.codec.canonical_name not in PLAYED_PICTURES:
            return f"its pictures are {pictures.codec.canonical_name}"
        if pictures.pix_fmt not in _PLAYED_FORMATS:
            return f"its pictures are stored as {pictures.pix_fmt}"
        if sound is not None and sound.codec_context.codec.canonical_name not in PLAYED_SOUND:
            return f"its sound is {sound.codec_context.codec.canonical_name}"
        if next(container.decode(video_stream(container, path))).rotation:
            return "its pictures are turned by a display matrix"
    return ""


@in_reader_process
def blind_mp4(path: str | Path, encode: bool, gain_db: float | None) -> bytes:
    """The copy. encode: encode pictures and sound anew, for what browsers do not play. gain_db: change the sound's
    level by so much, which encodes it anew; None leaves it as it is.
    """
    if encode:
        clip = DecodedClip.read(path)
        return _encoded(clip, path, clip.pictures_of, _scaled(clip, gain_db or 0.0))
    sound = None if gain_db is None else _scaled(DecodedClip.read(path), gain_db)
    return _copied(path, sound)


@in_reader_process
def damaged_mp4(path: str | Path, gain_db: float | None, seed: int) -> bytes:
    """A copy that anyone who looks and listens finds worse, whatever is asked of it: pictures in coarse squares, noise
    as loud as the sound, the sound late by 0.8 s.
    """
    clip = DecodedClip.read(path)
    samples, rate, start = _scaled(clip, gain_db or 0.0)
    drawn = np.random.default_rng(seed)
    level = max(_QUIETEST, float(np.sqrt(np.mean(np.square(samples)))))
    late = np.concatenate([np.zeros((round(_DELAY * rate), samples.shape[1]), np.float32), samples])[: len(samples)]
    noisy = late + level * drawn.standard_normal(samples.shape).astype(np.float32)

    def coarse(indices: Iterable[int]) -> Iterator[np.ndarray]:
        for pixels in clip.pictures_of(list(indices)):
            height, width = pixels.shape[:2]
            step = max(2, min(height, width) // _MOSAIC)
            rows, columns = (np.arange(size) // step * step for size in (height, width))
            yield pixels[rows][:, columns]

    return _encoded(clip, path, coarse, (np.clip(noisy, -1, 1), rate, start))


def _scaled(clip: DecodedClip, gain_db: float) -> tuple[_Samples, int, float]:
    """Samples float32 [n, 1 or 2] with a changed level, their rate, and when they begin."""
    track = clip.soundtrack
    channels = "mono" if track.samples.shape[1] == 1 else "stereo"
    samples = np.asarray(clip.sound(track.rate, channels), np.float32).reshape(-1, 1 if channels == "mono" else 2)
    return np.clip(samples * 10 ** (gain_db / 20), -1, 1).astype(np.float32), track.rate, track.start


def _encoded(
    clip: DecodedClip,
    path: str | Path,
    pictures: Callable[[list[int]], Iterable[np.ndarray]],
    sound: tuple[_Samples, int, float],
) -> bytes:
    def streams(container: OutputContainer) -> list[Iterator[Packet]]:
        rate = clip.fps
        height, width = clip.size
        # H.264 of this form has even sides: an odd row or column goes.
        height, width = height - height % 2, width - width % 2
        steady = np.round(np.array([float(time) for time in clip.times]) * rate).astype(int)
        count = int(steady[-1]) + 1
        chosen = np.searchsorted(steady, np.arange(count), side="right") - 1
        stream = add_pictures(container, np.empty((1, height, width, 3), np.uint8), rate, crf=str(_CRF))

        def packets() -> Iterator[Packet]:
            for first, pixels in enumerate(pictures(chosen.tolist())):
                yield from encode_frames(stream, pixels[None, :height, :width], rate, first)
            yield from stream.encode(None)

        return [packets(), _sound_packets(container, sound, float(count / exact_rate(rate)))]

    return _mp4(path, streams)


def _copied(path: str | Path, sound: tuple[_Samples, int, float] | None) -> bytes:
    with open_media(path) as again:
        first = first_picture(again, path)
    with open_media(path) as given:
        pictures, track = video_stream(given, path), audio_stream(given)
        packets = _all_packets(given, [pictures] if sound is not None or track is None else [pictures, track])

        def streams(container: OutputContainer) -> list[Iterator[Packet]]:
            kept = [_shifted(packets[pictures.index], pictures, container.add_stream_from_template(pictures), first)]
            if sound is not None:
                kept.append(_sound_packets(container, sound, None))
            elif track is not None:
                kept.append(_shifted(packets[track.index], track, container.add_stream_from_template(track), first))
            return kept

        return _mp4(path, streams)


def _all_packets(container: InputContainer, streams: list[Stream]) -> dict[int, list[Packet]]:
    found: dict[int, list[Packet]] = {stream.index: [] for stream in streams}
    for packet in container.demux(streams):
        if packet.size:
            found[packet.stream.index].append(packet)
    return found


def _shifted(packets: list[Packet], source: Stream, target: Stream, first: Fraction) -> Iterator[Packet]:
    """Packets with times counted from the first picture, without their encoder's notes."""
    unit = Fraction(source.time_base or 1)
    back = round(first / unit)
    name = source.codec_context.codec.canonical_name
    notes = BitStreamFilterContext(_NOTES[name], source) if name in _NOTES else None
    for packet in packets:
        for clean in [packet] if notes is None else notes.filter(packet):
            clean.pts = None if clean.pts is None else clean.pts - back
            clean.dts = None if clean.dts is None else clean.dts - back
            clean.time_base = unit
            clean.stream = target
            yield clean


def _sound_packets(
    container: OutputContainer, sound: tuple[_Samples, int, float], longest: float | None
) -> Iterator[Packet]:
    """AAC of samples [n, channels], from the first picture on and not beyond `longest` seconds."""
    samples, rate, start = sound
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    stream = container.add_stream("aac", rate=rate, layout=layout, bit_rate=_BIT_RATE, options={"aac_coder": "fast"})
    late = round(start * rate)
    samples = samples[max(0, -late) :]
    if longest is not None:
        samples = samples[: max(1, round(longest * rate) - max(0, late))]

    def packets() -> Iterator[Packet]:
        for position in range(0, len(samples), _BLOCK):
            block = np.ascontiguousarray(samples[position : position + _BLOCK].T)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = position + max(0, late)
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return packets()


def _mp4(path: str | Path, streams: Callable[[OutputContainer], list[Iterator[Packet]]]) -> bytes:
    """A file whose index comes first, so that players begin at once; nothing in it says when or by what it was made."""
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    # The index is moved to the front by reading the file again, which takes a file.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "copy.mp4"
        try:
            with av.open(str(file), "w", format="mp4", options=options) as container:
                mux(container, *streams(container))
        except (FFmpegError, ValueError) as error:
            raise MovaError(f"{path}: cannot be copied for browsers ({error})") from None
        return file.read_bytes()
