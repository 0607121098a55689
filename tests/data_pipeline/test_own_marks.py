"""What files say of their own wholeness, which the media library reads past: chains, checksums, numbers."""

import av
import numpy as np
import pytest

from mova_engine.data.media import avi, gif
from mova_engine.data.media.matroska import Clusters
from mova_engine.data.media.mxf import why_broken
from mova_engine.data.media.numbered import ffv1_is_whole, flac_sample
from mova_engine.data.media.ogg import Pages


@pytest.mark.long
def test_flac_says_where_its_frames_belong(files):
    with av.open(str(files("ogg, flac"))) as container:
        stream = container.streams.audio[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        blocks = [flac_sample(packet, packets[0].duration) for packet in packets]
    # From the 128th frame on the number takes two bytes.
    assert blocks == [packet.pts for packet in packets] and len(blocks) > 30
    for data, number in (
        (b"\xff\xf8\xc9\x18\x7f", 127 * 4608),
        (b"\xff\xf8\xc9\x18\xc2\x80", 128 * 4608),
        (b"\xff\xf9\xc9\x18\xe1\x80\x80", 4096),
        (b"\xff\xf9\xc9\x18\xfe\xbf\xbf\xbf\xbf\xbf\xbf", 2**36 - 1),
        (b"\xff\xf8\xc9\x18\xc2\x00", None),
        (b"\xff\xf8\xc9\x18\x80", None),
        (b"\xfe\xf8\xc9\x18\x01", None),
    ):
        assert flac_sample(av.Packet(data.ljust(16, b"\0")), 4608) == number


def test_ffv1_says_which_packets_are_whole(files):
    with av.open(str(files("mkv, ffv1"))) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]
    assert all(ffv1_is_whole(av.Packet(data)) for data in packets)
    rng = np.random.default_rng(0)
    for data in packets[:20]:
        place = int(rng.integers(len(data)))
        spoilt = data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]
        assert not ffv1_is_whole(av.Packet(spoilt)) and not ffv1_is_whole(av.Packet(data[:-1]))


def test_clusters_of_matroska_say_whether_they_are_whole(files, tmp_path):
    data, path = files("mkv").read_bytes(), tmp_path / "clip.mkv"
    with av.open(str(files("mkv"))) as container:
        places = [packet.pos for packet in container.demux() if packet.size]
    starts = [k for k in range(len(data)) if data.startswith(b"\x1f\x43\xb6\x75", k)]
    assert len(starts) > 3

    def spoilt(changed: bytes) -> list[bool]:
        path.write_bytes(changed)
        clusters = Clusters(path)
        return [clusters.is_spoilt(place) for place in places]

    third = [starts[2] <= place < starts[3] for place in places]
    middle = (starts[2] + starts[3]) // 2
    assert not any(spoilt(data))
    assert spoilt(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]) == third
    # Its size, its name, its checksum's name.
    for place in (starts[2] + 4, starts[2] + 6, starts[2], starts[2] + 7):
        assert spoilt(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]) == third
    # Cut short within it: of its rest nothing is known.
    assert not any(gone for gone, place in zip(spoilt(data[:middle]), places, strict=True) if place < middle)
    webm = files("webm")
    assert not Clusters(webm).is_spoilt(len(webm.read_bytes()) // 2)


def test_pages_of_ogg_are_numbered(files, tmp_path):
    data, path = files("ogg, vp8").read_bytes(), tmp_path / "clip.ogv"
    places = [k for k in range(len(data)) if data.startswith(b"OggS\0", k)]
    ends = [*places[1:], len(data)]
    own = [place for place in places if data[place + 14 : place + 18] == data[14:18]]
    with av.open(str(files("ogg, vp8"))) as container:
        seen = {(packet.stream_index, packet.pos) for packet in container.demux() if packet.size}

    def beside(changed: bytes) -> set[tuple[int, int]]:
        path.write_bytes(changed)
        pages = Pages(path)
        assert not pages.lacks_beginning(0) and not pages.lacks_beginning(1)
        return {(stream, place) for stream, place in seen if pages.is_beside_a_loss(stream, place)}

    assert {place for stream, place in seen if stream == 0} <= set(own) and len(own) > 8
    # Another recording follows, with numbers of its own.
    assert beside(data) == beside(data + data) == set()
    begin, end = own[5], ends[places.index(own[5])]
    after = 0, own[6]
    # It is lost, comes too late, and is spoilt: the media library skips it.
    assert beside(data[:begin] + bytes(end - begin) + data[end:]) == {after}
    assert after in beside(data[:begin] + bytes(end - begin) + data[end:] + data[begin:end])
    for place in (begin, begin + 20, begin + 24, end - 1):
        assert beside(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]) == {after}
    assert beside(data[: own[-1]]) == set()


def test_a_packet_that_ends_on_a_lost_page_is_known(tmp_path):
    """One of 300 bytes on pages of 255, as no muxer here writes them; the page between is lost."""

    def page(number: int, granule: int, lengths: list[int], flags: int = 0) -> bytes:
        head = b"OggS\0" + bytes([flags]) + granule.to_bytes(8, "little", signed=True) + b"abcd"
        head += number.to_bytes(4, "little")
        rest = bytes([len(lengths), *lengths]) + b"x" * sum(lengths)
        found = 0
        for byte in head + bytes(4) + rest:
            found ^= byte << 24
            for _ in range(8):
                found = (found << 1 ^ (0x04C11DB7 if found >> 31 else 0)) & 0xFFFFFFFF
        return head + found.to_bytes(4, "little") + rest

    pages = [page(0, 0, [9], 2), page(1, 5, [255]), page(2, 8, [45, 255]), page(3, 9, [45, 7])]
    path = tmp_path / "pages.ogg"
    for lost, beside, beginning in ((None, [], False), (1, [0, 1, 0], True), (2, [0, 1, 1], False)):
        path.write_bytes(b"".join(page for k, page in enumerate(pages) if k != lost))
        left = [sum(len(page) for m, page in enumerate(pages[:k]) if m != lost) for k in range(4) if k != lost]
        found = Pages(path)
        assert [found.is_beside_a_loss(0, place) for place in left] == (beside or [False] * 4)
        assert found.lacks_beginning(0) == beginning


def test_avi_and_gif_are_chains(files, tmp_path):
    for kind, why in (("avi, mjpeg", avi.why_broken), ("gif", gif.why_broken)):
        data, path = files(kind).read_bytes(), tmp_path / "clip"
        third = len(data) // 3
        for whole in (data, data[: 2 * third], data + data, data + b"and more", b""):
            path.write_bytes(whole)
            assert why(path) is None
        for changed in (data[:third] + data[third + 64 :], data[:third] + b"." * 64 + data[third:]):
            path.write_bytes(changed)
            assert "bytes are missing or wrong" in why(path)


def test_chunks_of_avi_at_odd_places(files, tmp_path):
    """Some programs do not pad them."""
    data, path = files("avi, mjpeg").read_bytes(), tmp_path / "odd.avi"
    at = data.index(b"movi") + 4
    length = int.from_bytes(data[at + 4 : at + 8], "little")
    assert length % 2 and data[at + 8 + length] == 0
    path.write_bytes(data[: at + 8 + length] + data[at + 9 + length :])
    assert avi.why_broken(path) is None


def test_an_avi_of_several_parts_is_a_chain(tmp_path):
    """OpenDML: further parts, with indices among the chunks."""
    rng, path = np.random.default_rng(0), tmp_path / "parts.avi"

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + len(data).to_bytes(4, "little") + data + b"\0" * (len(data) % 2)

    pictures = b"".join(chunk(b"00dc", rng.bytes(int(rng.integers(3, 99)))) for _ in range(9))
    first = chunk(b"LIST", b"hdrl" + rng.bytes(80)) + chunk(b"JUNK", bytes(9))
    first += chunk(b"LIST", b"movi" + pictures + chunk(b"ix00", rng.bytes(64)) + chunk(b"LIST", b"rec " + pictures))
    second = chunk(b"RIFF", b"AVIX" + chunk(b"LIST", b"movi" + pictures + chunk(b"ix01", b"abcd")))
    data = chunk(b"RIFF", b"AVI " + first + chunk(b"idx1", rng.bytes(64))) + second
    path.write_bytes(data)
    assert avi.why_broken(path) is None
    path.write_bytes(data[:-300] + data[-290:])
    assert "bytes are missing or wrong" in avi.why_broken(path)


def test_mxf_is_a_chain(files, tmp_path):
    data, path = files("mxf").read_bytes(), tmp_path / "clip.mxf"
    assert why_broken(files("mxf")) is None
    for ahead in (b"", b"a run-in"):
        path.write_bytes(ahead + data)
        assert why_broken(path) is None
    third = len(data) // 3
    for changed in (data[:third] + data[third + 64 :], data[:third] + b"." * 64 + data[third:]):
        path.write_bytes(changed)
        assert "missing or wrong before byte" in why_broken(path)
    path.write_bytes(data[: 2 * third])
    assert "its index is missing" in why_broken(path)
    path.write_bytes(b"")
    assert why_broken(path)
