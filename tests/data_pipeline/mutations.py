"""What can happen to a media file: its bytes, its packets and their stamps, the order and number of its streams.

Each mutation takes (rng, the file, a place for the mutant) and returns what it has made; None where this file has no
such mutant.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mova_engine.data.media.reader_process import in_reader_process

Rng = np.random.Generator


@dataclass(frozen=True)
class Mutant:
    """later: whether it may begin at a later picture than the file does, because its beginning is lost.

    untold: why nothing in the file tells that sound stands at a wrong place; None where something does.
    """

    later: bool = False
    untold: str | None = None


# Blocks in which some containers store, and lose, their data.
BLOCKS = {".ts": 188, ".m2ts": 192, ".mpg": 2048, ".vob": 2048}
# Seconds of sound on a page of Ogg, which states the time of its end alone.
PAGE = 1


def _block(path: Path) -> int:
    return BLOCKS.get(path.suffix, 64)


def _pieces(rng: Rng, path: Path) -> tuple[bytes, int, int]:
    """The file and a part of it, of some blocks, that begins after the first tenth."""
    data, block = path.read_bytes(), _block(path)
    first = rng.integers(len(data) // 10, len(data) - 2 * block) // block * block
    return data, int(first), int(min(first + block * rng.integers(1, 40), len(data)))


def flipped(rng: Rng, path: Path, out: Path) -> Mutant:
    """Some bytes are others."""
    data = bytearray(path.read_bytes())
    for place in rng.integers(len(data), size=rng.choice([1, 3, 20, 100])):
        data[place] ^= 1 << rng.integers(8)
    out.write_bytes(data)
    return Mutant(later=True)


def zeroed(rng: Rng, path: Path, out: Path) -> Mutant:
    """A part that was never written."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:first] + bytes(last - first) + data[last:])
    return Mutant(later=True)


def lost(rng: Rng, path: Path, out: Path) -> Mutant:
    """A part is missing."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:first] + data[last:])
    return Mutant(later=True)


def doubled(rng: Rng, path: Path, out: Path) -> Mutant:
    """A part stands twice."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:last] + data[first:])
    return Mutant(later=True)


def swapped(rng: Rng, path: Path, out: Path) -> Mutant:
    """Two parts stand in each other's place."""
    data, first, last = _pieces(rng, path)
    half = first + (last - first) // 2 // _block(path) * _block(path)
    out.write_bytes(data[:first] + data[half:last] + data[first:half] + data[last:])
    return Mutant(later=True)


def noisy(rng: Rng, path: Path, out: Path) -> Mutant:
    """A part is noise."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:first] + rng.bytes(last - first) + data[last:])
    return Mutant(later=True)


def inserted(rng: Rng, path: Path, out: Path) -> Mutant:
    """Noise between two parts."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:first] + rng.bytes(last - first) + data[first:])
    return Mutant(later=True)


def truncated(rng: Rng, path: Path, out: Path) -> Mutant:
    """The end is missing."""
    data = path.read_bytes()
    out.write_bytes(data[: rng.integers(len(data))])
    return Mutant()


def beheaded(rng: Rng, path: Path, out: Path) -> Mutant:
    """The beginning is missing."""
    data = path.read_bytes()
    out.write_bytes(data[rng.integers(1, len(data) // 2) // _block(path) * _block(path) :])
    return Mutant(later=True)


def trailing(rng: Rng, path: Path, out: Path) -> Mutant:
    """Something else follows."""
    out.write_bytes(path.read_bytes() + rng.bytes(rng.integers(1, 5000)))
    return Mutant()


def joined(rng: Rng, path: Path, out: Path) -> Mutant:
    """The file twice: the clock restarts in the middle."""
    data = path.read_bytes()
    out.write_bytes(data + data)
    return Mutant()


def joined_to_its_middle(rng: Rng, path: Path, out: Path) -> Mutant:
    """The file, its end lost, and then the file from its middle on."""
    data, block = path.read_bytes(), _block(path)
    cut = len(data) * rng.integers(3, 9) // 10 // block * block
    out.write_bytes(data[:cut] + data[len(data) // 2 // block * block :])
    return Mutant()


Packets = list[av.Packet]


def _remuxed(path: Path, out: Path, change: Callable[[Packets], Packets | None], later: bool = False) -> Mutant | None:
    """Write the file's packets, as `change` leaves them, into a new one."""
    if path.suffix in (".avi", ".mxf", ".gif", ".apng"):
        return None  # packets have no stamps there, or only durations: what is changed leaves no trace
    with av.open(str(path)) as source:
        muxer = source.format.name.split(",")[0]
        muxer = {"mov": "mp4", "mpeg": "mpeg", "gif": "gif"}.get(muxer, muxer)
        muxer = {".mov": "mov", ".3gp": "3gp", ".vob": "vob", ".webm": "webm", ".ogv": "ogv"}.get(path.suffix, muxer)
        try:
            with av.open(str(out), "w", format=muxer) as sink:
                streams = {s.index: sink.add_stream_from_template(s) for s in source.streams}
                packets = change([packet for packet in source.demux() if packet.size])
                if packets is None:
                    return None
                for packet in packets:
                    packet.stream = streams[packet.stream_index]
                    sink.mux_one(packet)
        except (av.FFmpegError, ValueError, OverflowError):
            return None  # this container cannot be written so
    return Mutant(later)


def _some(rng: Rng, packets: Packets, share: float = 0.1) -> list[int]:
    """Places of one packet, or a few in a row, of one stream."""
    stream = packets[rng.integers(len(packets))].stream_index
    places = [k for k, packet in enumerate(packets) if packet.stream_index == stream]
    first = rng.integers(len(places))
    return places[first : first + rng.integers(1, max(2, len(places) * share))]


def dropped(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """Packets are missing."""
    untold = None

    def change(packets: Packets) -> Packets | None:
        nonlocal untold
        gone = set(_some(rng, packets))
        first = packets[min(gone)]
        if path.suffix == ".ogv" and first.stream.type == "audio" and first.pts * first.time_base < PAGE:
            untold = "without packets of its first page, sound in Ogg is as sound that begins later"
        if path.suffix == ".mov" and first.stream.codec.name.startswith("pcm"):
            return None  # samples are counted there: a gap cannot be written
        return [packet for k, packet in enumerate(packets) if k not in gone]

    made = _remuxed(path, out, change, later=True)
    return made and replace(made, untold=untold)


def spoilt(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """The content of packets is spoilt."""

    def change(packets: Packets) -> Packets:
        for k in _some(rng, packets, 0.05):
            data = bytearray(bytes(packets[k]))
            for place in rng.integers(len(data), size=rng.choice([1, 5, 50])):
                data[place] = rng.integers(256)
            packets[k].update(bytes(data)) if hasattr(packets[k], "update") else None
        return packets

    return _remuxed(path, out, change, later=True)


def _stamps(rng: Rng, path: Path, out: Path, change: Callable[[av.Packet], None], whole: bool = False) -> Mutant | None:
    untold = None

    def all_of(packets: Packets) -> Packets:
        nonlocal untold
        stream = packets[rng.integers(len(packets))].stream_index
        chosen = [k for k, p in enumerate(packets) if whole or p.stream_index == stream]
        chosen = chosen if whole else _some(rng, packets)
        for k in chosen:
            change(packets[k])
        stream = packets[chosen[0]].stream_index
        own = [k for k, p in enumerate(packets) if p.stream_index == stream]
        ends = chosen[0] == own[0] or chosen[-1] == own[-1]
        if not whole and ends and packets[chosen[0]].stream.type == "audio":
            untold = "stamps of a part that the stream begins or ends with are as those after or before a gap"
        return packets

    made = _remuxed(path, out, all_of, later=whole)
    return made and replace(made, untold=untold)


def moved(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """Some presentation stamps are too early or too late."""
    by = Fraction(int(rng.integers(-300, 300)), 1000)

    def change(packet: av.Packet) -> None:
        if packet.pts is not None:
            packet.pts += round(by / packet.time_base)

    return _stamps(rng, path, out, change)


def moved_both(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """Some stamps, of presentation and decoding, are too late."""
    by = Fraction(int(rng.choice([20, 33, 40, 100, 300, 5000])), 1000)

    def change(packet: av.Packet) -> None:
        for name in ("pts", "dts"):
            if getattr(packet, name) is not None:
                setattr(packet, name, getattr(packet, name) + round(by / packet.time_base))

    return _stamps(rng, path, out, change)


def huge(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """A stamp beyond all others."""

    def change(packet: av.Packet) -> None:
        packet.pts = int(rng.choice([2**31 - 1, 2**32, 2**33 - 1, 2**40, 2**53]))

    return _stamps(rng, path, out, change)


def unstamped(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """Stamps are missing."""

    def change(packet: av.Packet) -> None:
        packet.pts = None

    return _stamps(rng, path, out, change)


def wrong_durations(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """Packets last too long or not at all."""

    def change(packet: av.Packet) -> None:
        packet.duration = int(rng.choice([0, 1, max(1, packet.duration or 1) * 7, 10**6]))

    return _stamps(rng, path, out, change)


def shifted(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """The whole clock begins elsewhere, also below zero or shortly before the 33 bits of MPEG's are full."""
    by = Fraction(int(rng.choice([-2000, -40, 1400, 3_600_000, 95_442_000, 95_443_000])), 1000)

    def change(packet: av.Packet) -> None:
        for name in ("pts", "dts"):
            if getattr(packet, name) is not None:
                setattr(packet, name, getattr(packet, name) + round(by / packet.time_base))

    # A container without negative times may cut what would have them.
    return _stamps(rng, path, out, change, whole=True)


def exchanged(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """Two packets of a stream have each other's stamps."""

    def change(packets: Packets) -> Packets | None:
        places = _some(rng, packets, 0.3)
        if len(places) < 2:
            return None
        a, b = packets[places[0]], packets[places[-1]]
        a.pts, b.pts = b.pts, a.pts
        return packets

    return _remuxed(path, out, change)


def twice(rng: Rng, path: Path, out: Path) -> Mutant | None:
    """A packet's presentation stamp is that of the one before."""

    def change(packets: Packets) -> Packets | None:
        places = _some(rng, packets, 0.3)
        if len(places) < 2:
            return None
        packets[places[1]].pts = packets[places[0]].pts
        return packets

    return _remuxed(path, out, change)


BYTES = (flipped, zeroed, lost, doubled, swapped, noisy, inserted, truncated, beheaded, trailing, joined)
PACKETS = (dropped, spoilt, moved, moved_both, huge, unstamped, wrong_durations, shifted, exchanged, twice)
MUTATIONS = {mutation.__name__: mutation for mutation in (*BYTES, joined_to_its_middle, *PACKETS)}


@in_reader_process
def mutate(path: Path, name: str, seed: int, out: Path) -> Mutant | None:
    """Apply a mutation, in a process of its own: writing odd packets may end it as reading them may."""
    return MUTATIONS[name](np.random.default_rng(seed), path, out)
