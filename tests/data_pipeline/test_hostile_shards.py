"""Shards that hold less than they seem to, and addresses with secrets in them."""

import base64
import io
import tarfile
import time

import pytest
from data_pipeline.fault_server import FaultServer, write_shard

from mova_engine.data.clip_sources import read_clips
from mova_engine.data.metadata import entry_of
from mova_engine.data.shard_files import FileInShard, Shard
from mova_engine.data.shard_index import read_shard, write_index
from mova_engine.errors import MovaError
from mova_engine.files import byte_ranges
from mova_engine.files.byte_ranges import UnreachableError, UnreadableError, opened, read_range, without_query

MEMBERS = {f"{n}.{kind}": bytes([n + 1]) * 700 for n in range(3) for kind in ("mp4", "txt")}


@pytest.fixture
def shard(tmp_path):
    return write_shard(tmp_path / "s.tar", MEMBERS)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_places(tmp_path, form):
    names = ["é" * 90 + "/a.mp4", "x" * 300 + ".mp4", "b.mp4"]
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as tar:
        for name in names:
            for member, content in ((name, name.encode()), (name.replace(".mp4", ".txt"), b"a ball")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    rows = read_shard(str(tmp_path / "s.tar")).rows
    assert [row["member"] for row in rows] == names
    data = (tmp_path / "s.tar").read_bytes()
    assert [data[row["offset"] :][: row["size"]].decode() for row in rows] == names


def test_a_damaged_header_does_not_end_a_shard(shard):
    """tarfile takes it for the end of the archive; the clips behind it would be lost without a word."""
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        places = [info.offset for info in tar]
    for place in places:
        data = bytearray(whole)
        data[place + 3] ^= 1
        shard.write_bytes(data)
        with pytest.raises(
            MovaError, match=rf"s.tar: cut short, damaged, or no tar file \(the header at byte {place}:"
        ):
            read_shard(str(shard))


def test_joined_shards(shard):
    shard.write_bytes(shard.read_bytes() * 2)
    with pytest.raises(MovaError, match=r"s.tar: goes on after its end \(joined by cat\?\): use tar --concatenate"):
        read_shard(str(shard))


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_links(tmp_path, kind):
    """tar stores the second name of a file as a link."""
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, what in (("folder.mp4", tarfile.DIRTYPE), ("0.txt", tarfile.REGTYPE), ("0.mp4", kind)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = what, "other.mp4" if what == kind else ""
            tar.addfile(info)
    with pytest.raises(MovaError, match="s.tar: 0.mp4 is a link or no regular file: write the shard with tar --deref"):
        read_shard(str(tmp_path / "s.tar"))


def test_several_captions(tmp_path):
    clip = {"a.mp4": b"", "a.de.txt": b"ein Ball", "a.txt": b"a ball"}
    assert read_shard(str(write_shard(tmp_path / "s.tar", clip))).rows[0]["caption"] == "a ball"
    clip["a.en.txt"] = clip.pop("a.txt")
    with pytest.raises(MovaError, match=r"s.tar: a.mp4: has several .txt files: a.de.txt and a.en.txt"):
        read_shard(str(write_shard(tmp_path / "s.tar", clip)))


def test_a_large_file_that_is_no_shard_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_ranges, "FIRST_WAIT_S", 30.0)
    (tmp_path / "s.tar").write_bytes(b"\x01" * (3 << 20))
    begin = time.monotonic()
    with pytest.raises(MovaError, match="s.tar: cut short, damaged, or no tar file"):
        read_shard(str(tmp_path / "s.tar"))
    assert time.monotonic() - begin < 10


def test_sizes_beyond_any_file(shard, monkeypatch):
    """An index may ask for anything; memory is not taken for it."""
    monkeypatch.setattr(byte_ranges, "FIRST_WAIT_S", 0.0)
    for size in (1 << 40, 1 << 62):
        with pytest.raises(UnreadableError, match=f"s.tar: is shorter than the index says .* of {size} bytes"):
            read_range(str(shard), 0, size)
    with pytest.raises(UnreadableError, match=r"is shorter than the index says \(0 of 1 bytes"):
        read_range(str(shard), 1 << 62, 1)


def test_secrets_in_addresses_are_not_told(shard, monkeypatch):
    monkeypatch.setattr(byte_ranges, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.1)
    with FaultServer(shard.parent).running() as server:
        signed = server.url.replace("://", "://me:se%40cret@") + "/s.tar?signature=secret/1.x"
        assert without_query(signed) == f"{server.url}/s.tar"
        assert read_range(signed, 512, 5) == b"\x01" * 5
        assert base64.b64decode((server.told["s.tar"] or "").removeprefix("Basic ")) == b"me:se@cret"
        server.always["s.tar"] = 403
        for address in (signed, signed.replace("secret/", "secret 1"), signed.replace("127.0.0.1", "secret x")):
            with pytest.raises(MovaError) as caught:
                read_range(address, 0, 5)
            assert "secret/" not in str(caught.value) and "cret@" not in str(caught.value)
            assert "signature" not in str(caught.value)
        # Two shards whose signatures end alike are two, and ids outlive a signature.
        row = {"shard": signed, "member": "a.mp4", "offset": 0, "size": 1, "sha256": "0" * 64, "caption": ""}
        assert entry_of(shard.parent, "line 1", row).id == "s/a.mp4"


def test_facts_are_asked_for_as_content_is(shard):
    """Signed addresses hold for GET alone; the server of these tests knows nothing else."""
    with FaultServer(shard.parent).running() as server:
        facts = byte_ranges.read_facts(f"{server.url}/s.tar?signature=1")
        FileInShard(Shard(f"{server.url}/s.tar", facts), "0.mp4", 512, 700, "").check_place()
        server.always["s.tar"] = "whole"
        assert byte_ranges.read_facts(f"{server.url}/s.tar") == facts
    assert facts.size == shard.stat().st_size and facts.etag


def test_an_index_of_a_shard_that_drips(shard, monkeypatch):
    monkeypatch.setattr(byte_ranges, "SILENCE_S", 5.0)
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.1)
    for place in ("SILENCE_S", "LEAST_RATE"):
        monkeypatch.setattr(f"mova_engine.data.shard_index.{place}", 0.1 if place == "SILENCE_S" else 1 << 30)
    with FaultServer(shard.parent).running() as server:
        server.faults["s.tar"] = [None, "drip"]
        with pytest.raises(UnreachableError, match="comes more slowly than"):
            read_shard(f"{server.url}/s.tar")
        with opened(f"{server.url}/s.tar") as stream:
            assert stream.read() == shard.read_bytes()


def test_a_shard_that_is_a_link_keeps_its_name(tmp_path, shard):
    """As stores that name files by their digests keep them: the index and the clips' ids have the link's name."""
    pytest.importorskip("pyarrow")
    (tmp_path / "given").mkdir()
    link = tmp_path / "given" / "000.tar"
    link.symlink_to(shard.rename(tmp_path / "0123abcd"))
    write_index([str(link)], tmp_path / "given" / "clips.parquet", say=lambda _: 0)
    [first, *_] = read_clips(tmp_path / "given" / "clips.parquet")
    assert first.id == "000/0.mp4" and isinstance(first.path, FileInShard)
    assert first.path.shard.address == str(link) and first.path.read() == MEMBERS["0.mp4"]


def test_a_refusal_does_not_wait_for_shards_that_are_tried_again(tmp_path, shard, monkeypatch):
    """Nor does Ctrl-C: whoever ends tells the threads that are waiting for a busy server."""
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(byte_ranges, "FIRST_WAIT_S", 30.0)
    write_shard(tmp_path / "busy.tar", MEMBERS)
    with FaultServer(tmp_path).running() as server:
        server.always["busy.tar"] = 503
        (tmp_path / "s.tar").write_bytes(b"\x01" * 1024)
        begin = time.monotonic()
        with pytest.raises(MovaError, match="s.tar: cut short, damaged, or no tar file"):
            write_index([f"{server.url}/s.tar", f"{server.url}/busy.tar"], tmp_path / "clips.parquet")
    assert time.monotonic() - begin < 15
