"""Clips in tar shards: the index, reading by ranges from disk and over HTTP, and whatever goes wrong on the way."""

import errno
import hashlib
import json
import os
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from data_pipeline.conftest import CLIP, COUNT
from data_pipeline.fault_server import FaultServer, write_shard

from mova_engine.commands.data_index import main
from mova_engine.config.train import LoaderSettings
from mova_engine.data.clip_check import check_clips
from mova_engine.data.clip_sources import read_clips
from mova_engine.data.dataset import open_dataset
from mova_engine.data.media import reader_process
from mova_engine.data.media.decode import probe, read_clip
from mova_engine.data.metadata import read_metadata
from mova_engine.data.preview import preview
from mova_engine.data.shard_index import read_shard, write_index
from mova_engine.data.windows import cut_windows
from mova_engine.errors import MovaError
from mova_engine.files import byte_ranges
from mova_engine.files.byte_ranges import UnreachableError, UnreadableError, read_range
from mova_engine.train.clip_data import _readable

pytest.importorskip("pyarrow")


@pytest.fixture
def shards(made_clips, tmp_path):
    """The seven clips in two shards, with their captions as text and as JSON."""
    folder = tmp_path / "shards"
    entries = read_metadata(made_clips)
    first = {}
    for entry in entries[:4]:
        first |= {entry.id: entry.path, entry.id.replace("mp4", "txt"): entry.caption.encode() + b"\n"}
    second = {"README": b"nothing", "x.cls": b"3"}
    for entry in entries[4:]:
        second |= {
            f"deep/{entry.id}": entry.path,
            f"deep/{entry.id[0]}.json": f'{{"caption": "{entry.caption}"}}'.encode(),
        }
    write_shard(folder / "a.tar", first)
    write_shard(folder / "b.tar", second)
    return folder


@pytest.fixture
def server(shards):
    with FaultServer(shards).running() as running:
        yield running


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    for name, value in (("PATIENCE_S", 30.0), ("FIRST_WAIT_S", 0.01), ("LONGEST_WAIT_S", 0.2), ("SILENCE_S", 5.0)):
        monkeypatch.setattr(byte_ranges, name, value)


def index(where, *, base=None, overwrite=False):
    """The clips of both shards by an index in the folder `where` of shards."""
    out = where / "clips.parquet"
    write_index(
        [str(where / name) for name in ("a.tar", "b.tar")], out, base=base, overwrite=overwrite, say=lambda _: 0
    )
    return read_clips(out)


def test_an_index_says_where_each_clip_lies(shards, made_clips, capsys):
    out = shards / "clips.parquet"
    assert main([str(shards / "a.tar"), str(shards / "b.tar"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 7 clips of 2 shards\n"
    entries, files = read_clips(out), read_metadata(made_clips)
    names = [f"a/{n}.mp4" for n in range(4)] + [f"b/deep/{n}.mp4" for n in range(4, 7)]
    assert [entry.id for entry in entries] == names
    assert [entry.caption for entry in entries] == [entry.caption for entry in files]
    for entry, file in zip(entries, files, strict=True):
        content = file.path.read_bytes()
        assert entry.path.read() == content and entry.path.sha256 == hashlib.sha256(content).hexdigest()
        assert entry.path.shard.facts.size == os.path.getsize(entry.path.shard.address)
    with tarfile.open(shards / "a.tar") as tar:
        assert entries[2].path.offset == tar.getmember("2.mp4").offset_data
    with pytest.raises(MovaError, match="is there already: give another --out, or --overwrite"):
        main([str(shards / "a.tar"), "--out", str(out)])
    # The folder may be moved: shards below that of the index are named relative to it.
    moved = shutil.move(shards, shards.with_name("moved"))
    assert read_clips(moved / "clips.parquet")[0].path.read() == files[0].path.read_bytes()


def test_several_clips_of_one_file(tmp_path, made_clips):
    clips = [{"caption": "one", "start": 0}, {"caption": "two", "start": 0.05, "id": "second", "other": [1]}]
    film = {"film.mp4": made_clips / "0.mp4", "film.json": json.dumps(clips).encode()}
    write_index([str(write_shard(tmp_path / "s.tar", film))], tmp_path / "clips.parquet", say=lambda _: 0)
    one, two = read_clips(tmp_path / "clips.parquet")
    assert (one.id, one.caption, one.start) == ("s/film.mp4", "one", 0)
    assert (two.id, two.caption, two.start) == ("second", "two", 0.05)
    assert one.path == two.path


MP4, TXT = b"not looked at", b"a ball"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.mp4": MP4}, r"s.tar: a.mp4: has no caption: add a .txt file, or a .json file with the key 'caption'"),
        ({"a.mp4": MP4, "a.wav": MP4, "a.txt": TXT}, "s.tar: sample a holds both a.mp4 and a.wav"),
        ({"a.mp4": MP4, "a.json": b"{"}, "s.tar: a.json: not valid JSON"),
        ({"a.mp4": MP4, "a.json": b'["x"]'}, "s.tar: a.mp4: its JSON must be an object or a list of them, got str"),
        ({"a.mp4": MP4, "a.json": b'{"caption": 7}'}, "s.tar: a.mp4: key 'caption' must be text, got 7"),
        ({"a.mp4": MP4, "a.txt": b"\xff"}, "s.tar: a.txt: not UTF-8"),
        ({"a.txt": TXT}, "1 shard hold no clips"),
        (
            {"a.mp4": MP4, "b.mp4": MP4, **{f"{k}.json": b'{"caption": "", "id": "x"}' for k in "ab"}},
            "s.tar: b.mp4: id 'x' is taken by s.tar: a.mp4",
        ),
    ],
)
def test_samples_that_cannot_be_used_are_named(tmp_path, members, message):
    shard = write_shard(tmp_path / "s.tar", members)
    with pytest.raises(MovaError, match=message):
        write_index([str(shard)], tmp_path / "clips.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["s.tar"]


def test_shards_that_cannot_be_used_are_named(shards):
    whole = (shards / "a.tar").read_bytes()
    for cut in (300, 512, len(whole) // 2, len(whole) // 512 * 512 - 20 * 512, 9999):
        (shards / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(MovaError, match=r"cut.tar: cut short"):
            read_shard(str(shards / "cut.tar"))
    with tarfile.open(shards / "a.tar") as tar:
        last = max(-(-(m.offset_data + m.size) // 512) * 512 for m in tar)
    (shards / "cut.tar").write_bytes(whole[:last])
    with pytest.raises(MovaError, match="cut.tar: cut short: the blocks of zeros that end a tar file are missing"):
        read_shard(str(shards / "cut.tar"))
    with tarfile.open(shards / "twice.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("a.mp4"))
    for name, message in (
        ("twice.tar", "twice.tar: holds a.mp4 twice"),
        ("nowhere.tar", "nowhere.tar: no such file"),
        ("a.tar.gz", "a shard is an uncompressed tar file and ends in .tar"),
    ):
        with pytest.raises(MovaError, match=message):
            read_shard(str(shards / name))
    with pytest.raises(MovaError, match="two shards are called a.tar: their names tell clips apart"):
        write_index([str(shards / "a.tar"), "http://host/a.tar?x"], shards / "x.parquet")
    with pytest.raises(MovaError, match="--out s3:/bucket/x.parquet: an index is a file of this machine"):
        write_index([str(shards / "a.tar")], Path("s3://bucket/x.parquet"))
    with pytest.raises(MovaError, match="s3:/bucket/x.parquet: lists and folders of clips lie on this machine: copy"):
        read_clips(Path("s3://bucket/x.parquet"))


def test_clips_in_shards_are_decoded_as_files_are(shards, made_clips):
    """Without a copy on disk; errors and warnings bear the name that the file has in its shard."""
    for entry, file in zip(index(shards), read_metadata(made_clips), strict=True):
        one, other = read_clip(entry.path, CLIP), read_clip(file.path, CLIP)
        assert np.array_equal(one.pictures, other.pictures) and np.array_equal(one.audio, other.audio)
    assert probe(entry.path) == probe(file.path)
    write_shard(shards / "b.tar", {"bad.mp4": made_clips.joinpath("0.mp4").read_bytes()[:900], "bad.txt": b""})
    bad = index(shards, overwrite=True)[-1]
    with pytest.raises(MovaError) as caught:
        read_clip(bad.path, CLIP)
    assert str(caught.value).startswith(f"{shards / 'b.tar'}: bad.mp4: ") and "/proc" not in str(caught.value)


def test_without_names_for_open_files(shards, made_clips, monkeypatch):
    """As on macOS: the bytes are copied to a file that is gone afterwards."""
    real = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).startswith("/proc/self/fd") and real(path))
    given = os.memfd_create("given")
    os.write(given, b"content")
    with reader_process._as_file(reader_process._Given("shard: name"), given) as path:
        assert str(path) == "shard: name" and open(path, "rb").read() == b"content"  # noqa: SIM115
        place = os.fspath(path)
    assert not real(place)
    os.close(given)


def test_shards_share_the_cache_with_files(shards, made_clips, make_cache):
    """The same bytes are the same clip, wherever they lie: nothing is encoded again, or even read."""
    files = open_dataset(made_clips, make_cache(), preload=False)
    index(shards)
    (shards / "a.tar").unlink()
    found = open_dataset(shards / "clips.parquet", make_cache(), preload=False)
    assert len(found) == COUNT
    for row in range(COUNT):
        one, other = found.batch([row]), files.batch([row])
        assert all(one[name].equal(other[name]) for name in ("video_latents", "audio_latents", "text"))


@pytest.mark.parametrize(
    "fault", [None, 503, 500, 429, "busy", "silent", "short", "reset", "whole", "elsewhere", "wrong"]
)
def test_faults_that_pass_are_overcome(server, shards, made_clips, monkeypatch, fault):
    if fault == "silent":
        monkeypatch.setattr(byte_ranges, "SILENCE_S", 0.3)
    entries = index(shards, base=server.url)
    server.faults["a.tar"] = [fault, fault]
    assert entries[1].path.read() == (made_clips / "1.mp4").read_bytes()
    assert server.asked["a.tar"] == (1 if fault is None else 3)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (503, UnreachableError, r"a.tar: the server answers 503 Service Unavailable \(\d+ tries in \d s\)"),
        ("busy", UnreachableError, "a.tar: the server answers 503"),
        ("silent", UnreachableError, "a.tar: no byte came for 0.3 s"),
        ("short", UnreachableError, "a.tar: the transfer broke off"),
        (404, UnreadableError, "a.tar: 1.mp4: the server answers 404 Not Found"),
        (403, UnreadableError, "a.tar: 1.mp4: the server answers 403 Forbidden"),
        ("whole", UnreadableError, r"a.tar: 1.mp4: the server refuses ranges \(status 200 instead of 206\)"),
        ("elsewhere", UnreadableError, r"a.tar: 1.mp4: the server has sent 'bytes \d+-\d+' instead of bytes \d+-\d+"),
        ("packed", UnreadableError, r"a.tar: 1.mp4: the server sends it compressed \(gzip\)"),
        ("loop", UnreadableError, "a.tar: 1.mp4: the server answers 302 The HTTP server returned a redirect error"),
        ("wrong", UnreadableError, "a.tar: 1.mp4: its bytes are not those that were indexed .damaged on disk or on"),
    ],
)
def test_faults_that_stay_are_named(server, shards, monkeypatch, fault, kind, message):
    if fault == "silent":
        monkeypatch.setattr(byte_ranges, "SILENCE_S", 0.3)
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.5)
    entries = index(shards, base=server.url)
    server.always["a.tar"] = fault
    before = server.sent
    with pytest.raises(kind, match=message) as caught:
        entries[1].path.read()
    assert "\n" not in str(caught.value)
    assert server.sent - before < 40_000 or fault in ("whole", "wrong", "short")


def test_a_server_that_sends_a_byte_now_and_then(server, shards, monkeypatch):
    entries = index(shards, base=server.url)
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.5)
    monkeypatch.setattr(byte_ranges, "LEAST_RATE", 1 << 30)
    monkeypatch.setattr(byte_ranges, "SILENCE_S", 0.3)
    server.always["a.tar"] = "drip"
    with pytest.raises(UnreachableError, match="comes more slowly than"):
        entries[1].path.read()


def test_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.3)
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:9/a.tar: cannot be reached \(.*refused"):
        read_range("http://127.0.0.1:9/a.tar?signature=secret", 0, 10)
    with pytest.raises(MovaError, match="nosuch:// cannot be read: Protocol not known"):
        read_range("nosuch://a.tar", 0, 10)


def test_shards_through_fsspec(shards, made_clips):
    """With fsspec's file system in memory in the place of S3's: the same calls, other errors."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for name in ("a.tar", "b.tar"):
        files.pipe(f"/bucket/{name}", (shards / name).read_bytes())
    try:
        write_index(["memory://bucket/a.tar", "memory://bucket/b.tar"], shards / "clips.parquet", say=lambda _: 0)
        entries = read_clips(shards / "clips.parquet")
        assert [e.path.read() for e in entries] == [(made_clips / f"{n}.mp4").read_bytes() for n in range(COUNT)]
        files.pipe("/bucket/a.tar", b"short")
        with pytest.raises(UnreadableError, match=r"memory://bucket/a.tar: 0.mp4: is shorter than the index says"):
            entries[0].path.read()
        files.rm("/bucket/a.tar")
        with pytest.raises(UnreadableError, match="memory://bucket/a.tar: 0.mp4: no such file"):
            entries[0].path.read()
    finally:
        files.rm("/bucket", recursive=True)


def test_errors_of_fsspec_that_may_pass_are_tried_again(shards, monkeypatch):
    """As s3fs reports that a server asks to slow down, or has failed within; and what is no such error."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/a.tar", (shards / "a.tar").read_bytes())
    errors = [
        OSError(errno.EBUSY, "Please reduce your request rate."),
        OSError(errno.EREMOTEIO, "an internal error"),
    ] * 3
    given = type(files).cat_file

    def busy(self, path, **where):
        if errors:
            raise errors.pop()
        return given(self, path, **where)

    monkeypatch.setattr(type(files), "cat_file", busy)
    try:
        assert read_range("memory://bucket/a.tar", 0, 512) == (shards / "a.tar").read_bytes()[:512]
        assert not errors
        errors += [OSError(errno.EINVAL, "The requested range is not satisfiable")] * 6
        size = (shards / "a.tar").stat().st_size
        with pytest.raises(UnreadableError, match=r"is shorter than the index says \(0 of 9 bytes are there\)"):
            read_range("memory://bucket/a.tar", size + 1, 9)
        with pytest.raises(UnreadableError, match="cannot be read .*not satisfiable"):
            read_range("memory://bucket/a.tar", size - 9, 9)
    finally:
        files.rm("/bucket", recursive=True)


def test_a_replaced_shard_is_noticed(server, shards, made_clips):
    """Longer, shorter, and of the same size; on disk and over HTTP. What has not changed goes on."""
    local = index(shards)
    remote = index(shards, base=server.url, overwrite=True)
    swapped = [made_clips / f"{n}.mp4" for n in (1, 0, 2, 3)]
    texts = {f"{n}.txt": b"other" for n in range(4)}
    os.utime(shards / "a.tar", (1, 1))
    again = {}
    for number, file in enumerate(swapped):
        again[f"{number}.mp4"] = file
    write_shard(shards / "a.tar", {**again, **texts, "more.mp4": bytes(20480)})
    for entries in (local, remote):
        with pytest.raises(
            UnreadableError, match=r"a.tar: 0.mp4: the shard was replaced since it was indexed \(\d+ by"
        ):
            entries[0].path.read()
    (shards / "a.tar").write_bytes((shards / "a.tar").read_bytes()[:1024])
    for entries in (local, remote):
        with pytest.raises(UnreadableError, match=r"a.tar: 0.mp4: is shorter than the index says"):
            entries[0].path.read()
        with pytest.raises(UnreadableError, match="the shard is cut short or was replaced since it was indexed"):
            entries[0].path.check_place()
    assert local[5].path.read() == remote[5].path.read() == (made_clips / "5.mp4").read_bytes()
    data = bytearray((shards / "b.tar").read_bytes())
    data[local[4].path.offset + 7] ^= 1
    (shards / "b.tar").write_bytes(data)
    os.utime(shards / "b.tar", (1, 1))
    with pytest.raises(UnreadableError, match=r"the shard was replaced \(it was written since\): run mova data index"):
        local[4].path.read()
    etagged = index_over_http(server, shards)
    data[local[4].path.offset + 7] ^= 1
    (shards / "b.tar").write_bytes(data)
    with pytest.raises(UnreadableError, match=r"the shard was replaced \(its ETag is another one\)"):
        etagged[0].path.read()


def index_over_http(server, shards):
    write_index([f"{server.url}/b.tar?token=1"], shards / "remote.parquet", say=lambda _: 0)
    return read_clips(shards / "remote.parquet")


def test_an_index_is_made_over_http_through_faults(server, shards, made_clips):
    server.faults["b.tar"] = [503, None, "short", "reset"]
    entries = index_over_http(server, shards)
    assert [entry.id for entry in entries] == [f"b/deep/{n}.mp4" for n in (4, 5, 6)]
    assert entries[0].path.shard.facts.etag and entries[0].path.read() == (made_clips / "4.mp4").read_bytes()
    server.always["b.tar"] = 404
    with pytest.raises(MovaError, match=r"b.tar: the server answers 404"):
        index_over_http(server, shards.parent)


def test_lost_shards_are_bad_clips_and_silent_servers_are_not(server, shards, make_cache, caplog, monkeypatch):
    """A shard that is gone is left out or refused as a bad clip is; if its server fails, the run stops."""
    index(shards, base=server.url)
    server.always["a.tar"] = 404
    found = open_dataset(shards / "clips.parquet", make_cache())
    assert found.ids == ("b/deep/4.mp4", "b/deep/5.mp4", "b/deep/6.mp4")
    assert "clip 'a/0.mp4' cannot be used: " in caplog.text and "404 Not Found" in caplog.text
    with pytest.raises(MovaError, match="4 of 7 clips cannot be used: .*404"):
        open_dataset(shards / "clips.parquet", make_cache(), bad_clips="stop")
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.3)
    server.always["a.tar"] = 503
    for ahead in (True, False):
        with pytest.raises(UnreachableError, match="a.tar: the server answers 503"):
            open_dataset(shards / "clips.parquet", make_cache(), ahead=ahead)


def test_encoded_clips_do_not_need_their_shards(shards, make_cache):
    """Also where clips are encoded when they are first used: none of them is taken for a bad one."""
    index(shards)
    assert open_dataset(shards / "clips.parquet", make_cache()).left_out == {}
    (shards / "a.tar").unlink()
    found = open_dataset(shards / "clips.parquet", make_cache(), ahead=False)
    assert found.left_out == {} and found.batch([0])["id"] == ["a/0.mp4"]


def test_a_server_that_fails_during_training(server, shards, make_cache, monkeypatch):
    """No other clip takes the place of one that cannot be read for the moment: that would be another stream."""
    index(shards, base=server.url)
    found = open_dataset(shards / "clips.parquet", make_cache(), ahead=False)
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.3)
    server.always["a.tar"] = 503
    with pytest.raises(UnreachableError, match="a.tar: the server answers 503"):
        found.batch([0])
    server.always["a.tar"] = None
    assert found.batch([0])["id"] == ["a/0.mp4"]
    server.always["a.tar"] = 404
    assert found.batch([1])["id"] == ["b/deep/4.mp4"]
    assert sorted(found.left_out) == ["a/1.mp4", "a/2.mp4", "a/3.mp4"]


def test_a_server_that_fails_before_training(server, shards, make_cache, tmp_path, monkeypatch):
    """Its clips are neither replaced where codecs are fitted, nor cut into fewer windows, nor said to be bad."""
    pytest.importorskip("matplotlib")
    entries = index(shards, base=server.url)
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.1)
    server.always["a.tar"] = 503
    for attempt in (
        lambda: cut_windows(entries, CLIP, 1.0),
        lambda: preview(shards / "clips.parquet", CLIP, tmp_path / "sheet.png", say=lambda _: 0),
        lambda: list(_readable(entries, CLIP, LoaderSettings(), True, [])),
    ):
        with pytest.raises(UnreachableError, match="a.tar: the server answers 503"):
            attempt()


def test_a_silent_place_is_waited_for_once(server, shards, make_cache, tmp_path, monkeypatch):
    """Not once more for the clips that wait for a thread."""
    index(shards, base=server.url)
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.0)
    server.always = dict.fromkeys(("a.tar", "b.tar"), 503)
    with pytest.raises(UnreachableError, match="the server answers 503"):
        open_dataset(shards / "clips.parquet", make_cache())
    assert server.asked.total() <= 2
    server.asked.clear()
    with pytest.raises(UnreachableError, match="the server answers 503"):
        check_clips(shards / "clips.parquet", CLIP, tmp_path / "ledger.jsonl", workers=2, say=lambda _: 0)
    assert server.asked.total() <= 2


def test_many_threads_read_at_once(server, shards, made_clips):
    entries, found = index(shards, base=server.url), {}

    def read(row):
        found[row] = [entries[row].path.read() for _ in range(5)]

    threads = [threading.Thread(target=read, args=(row,)) for row in range(COUNT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[row] == [(made_clips / f"{row}.mp4").read_bytes()] * 5 for row in range(COUNT))
