"""What can happen to a media file: its bytes, its packets and their stamps, the order and number of its streams.

Each mutation takes (rng, the file, a place for the mutant) and returns whether the mutant may begin at a later picture
than the file does, because its beginning is lost; None where this file has no such mutant.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mova_engine.data.media.reader_process import apart

Rng = np.random.Generator
# Blocks in which some containers store, and lose, their data.
BLOCKS = {".ts": 188, ".m2ts": 192, ".mpg": 2048, ".vob": 2048}


def _block(path: Path) -> int:
    return BLOCKS.get(path.suffix, 64)


def _pieces(rng: Rng, path: Path) -> tuple[bytes, int, int]:
    """The file and a part of it, of some blocks, that begins after the first tenth."""
    data, block = path.read_bytes(), _block(path)
    first = rng.integers(len(data) // 10, len(data) - 2 * block) // block * block
    return data, int(first), int(min(first + block * rng.integers(1, 40), len(data)))


def flipped(rng: Rng, path: Path, out: Path) -> bool:
    """Some bytes are others."""
    data = bytearray(path.read_bytes())
    for place in rng.integers(len(data), size=rng.choice([1, 3, 20, 100])):
        data[place] ^= 1 << rng.integers(8)
    out.write_bytes(data)
    return True


def zeroed(rng: Rng, path: Path, out: Path) -> bool:
    """A part that was never written."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:first] + bytes(last - first) + data[last:])
    return True


def lost(rng: Rng, path: Path, out: Path) -> bool:
    """A part is missing."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:first] + data[last:])
    return True


def doubled(rng: Rng, path: Path, out: Path) -> bool:
    """A part stands twice."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:last] + data[first:])
    return True


def swapped(rng: Rng, path: Path, out: Path) -> bool:
    """Two parts stand in each other's place."""
    data, first, last = _pieces(rng, path)
    half = first + (last - first) // 2 // _block(path) * _block(path)
    out.write_bytes(data[:first] + data[half:last] + data[first:half] + data[last:])
    return True


def noisy(rng: Rng, path: Path, out: Path) -> bool:
    """A part is noise."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:first] + rng.bytes(last - first) + data[last:])
    return True


def inserted(rng: Rng, path: Path, out: Path) -> bool:
    """Noise between two parts."""
    data, first, last = _pieces(rng, path)
    out.write_bytes(data[:first] + rng.bytes(last - first) + data[first:])
    return True


def truncated(rng: Rng, path: Path, out: Path) -> bool:
    """The end is missing."""
    data = path.read_bytes()
    out.write_bytes(data[: rng.integers(len(data))])
    return False


def beheaded(rng: Rng, path: Path, out: Path) -> bool:
    """The beginning is missing."""
    data = path.read_bytes()
    out.write_bytes(data[rng.integers(1, len(data) // 2) // _block(path) * _block(path) :])
    return True


def trailing(rng: Rng, path: Path, out: Path) -> bool:
    """Something else follows."""
    out.write_bytes(path.read_bytes() + rng.bytes(rng.integers(1, 5000)))
    return False


def joined(rng: Rng, path: Path, out: Path) -> bool:
    """The file twice: the clock restarts in the middle."""
    data = path.read_bytes()
    out.write_bytes(data + data)
    return False


def joined_to_its_middle(rng: Rng, path: Path, out: Path) -> bool:
    """The file, its end lost, and then the file from its middle on."""
    data, block = path.read_bytes(), _block(path)
    cut = len(data) * rng.integers(3, 9) // 10 // block * block
    out.write_bytes(data[:cut] + data[len(data) // 2 // block * block :])
    return False


Packets = list[av.Packet]


def _remuxed(path: Path, out: Path, change: Callable[[Packets], Packets | None]) -> bool | None:
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
    return False


def _some(rng: Rng, packets: Packets, share: float = 0.1) -> list[int]:
    """Places of one packet, or a few in a row, of one stream."""
    stream = packets[rng.integers(len(packets))].stream_index
    places = [k for k, packet in enumerate(packets) if packet.stream_index == stream]
    first = rng.integers(len(places))
    return places[first : first + rng.integers(1, max(2, len(places) * share))]


def dropped(rng: Rng, path: Path, out: Path) -> bool | None:
    """Packets are missing."""

    def change(packets: Packets) -> Packets | None:
        gone = set(_some(rng, packets))
        if path.suffix == ".mov" and packets[min(gone)].stream.codec.name.startswith("pcm"):
            return None  # samples are counted there: a gap cannot be written
        return [packet for k, packet in enumerate(packets) if k not in gone]

    return _remuxed(path, out, change) is not None or None


def spoilt(rng: Rng, path: Path, out: Path) -> bool | None:
    """The content of packets is spoilt."""

    def change(packets: Packets) -> Packets:
        for k in _some(rng, packets, 0.05):
            data = bytearray(bytes(packets[k]))
            for place in rng.integers(len(data), size=rng.choice([1, 5, 50])):
                data[place] = rng.integers(256)
            packets[k].update(bytes(data)) if hasattr(packets[k], "update") else None
        return packets

    return _remuxed(path, out, change) is not None or None


def _stamps(rng: Rng, path: Path, out: Path, change: Callable[[av.Packet], None], whole: bool = False) -> bool | None:
    def all_of(packets: Packets) -> Packets:
        stream = packets[rng.integers(len(packets))].stream_index
        chosen = [k for k, p in enumerate(packets) if whole or p.stream_index == stream]
        chosen = chosen if whole else _some(rng, packets)
        for k in chosen:
            change(packets[k])
        return packets

    return _remuxed(path, out, all_of)


def moved(rng: Rng, path: Path, out: Path) -> bool | None:
    """Some presentation stamps are too early or too late."""
    by = Fraction(int(rng.integers(-300, 300)), 1000)

    def change(packet: av.Packet) -> None:
        if packet.pts is not None:
            packet.pts += round(by / packet.time_base)

    return _stamps(rng, path, out, change)


def moved_both(rng: Rng, path: Path, out: Path) -> bool | None:
    """Some stamps, of presentation and decoding, are too late."""
    by = Fraction(int(rng.choice([20, 33, 40, 100, 300, 5000])), 1000)

    def change(packet: av.Packet) -> None:
        for name in ("pts", "dts"):
            if getattr(packet, name) is not None:
                setattr(packet, name, getattr(packet, name) + round(by / packet.time_base))

    return _stamps(rng, path, out, change)


def huge(rng: Rng, path: Path, out: Path) -> bool | None:
    """A stamp beyond all others."""

    def change(packet: av.Packet) -> None:
        packet.pts = int(rng.choice([2**31 - 1, 2**32, 2**33 - 1, 2**40, 2**53]))

    return _stamps(rng, path, out, change)


def unstamped(rng: Rng, path: Path, out: Path) -> bool | None:
    """Stamps are missing."""

    def change(packet: av.Packet) -> None:
        packet.pts = None

    return _stamps(rng, path, out, change)


def wrong_durations(rng: Rng, path: Path, out: Path) -> bool | None:
    """Packets last too long or not at all."""

    def change(packet: av.Packet) -> None:
        packet.duration = int(rng.choice([0, 1, max(1, packet.duration or 1) * 7, 10**6]))

    return _stamps(rng, path, out, change)


def shifted(rng: Rng, path: Path, out: Path) -> bool | None:
    """The whole clock begins elsewhere, also below zero or shortly before the 33 bits of MPEG's are full."""
    by = Fraction(int(rng.choice([-2000, -40, 1400, 3_600_000, 95_442_000, 95_443_000])), 1000)

    def change(packet: av.Packet) -> None:
        for name in ("pts", "dts"):
            if getattr(packet, name) is not None:
                setattr(packet, name, getattr(packet, name) + round(by / packet.time_base))

    # A container without negative times may cut what would have them.
    return _stamps(rng, path, out, change, whole=True) is not None or None


def exchanged(rng: Rng, path: Path, out: Path) -> bool | None:
    """Two packets of a stream have each other's stamps."""

    def change(packets: Packets) -> Packets | None:
        places = _some(rng, packets, 0.3)
        if len(places) < 2:
            return None
        a, b = packets[places[0]], packets[places[-1]]
        a.pts, b.pts = b.pts, a.pts
        return packets

    return _remuxed(path, out, change)


def twice(rng: Rng, path: Path, out: Path) -> bool | None:
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


@apart
def mutate(path: Path, name: str, seed: int, out: Path) -> bool | None:
    """Apply a mutation, in a process of its own: writing odd packets may end it as reading them may."""
    return MUTATIONS[name](np.random.default_rng(seed), path, out)
