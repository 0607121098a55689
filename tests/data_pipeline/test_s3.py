"""Shards on an S3 server, through s3fs: the same bytes and losses as from disk, and its errors told apart."""

import json
import os

import pytest
from data_pipeline.fault_server import write_shard
from data_pipeline.s3_server import S3Server
from data_pipeline.test_same_losses import _small, losses, placed  # noqa: F401 (fixtures)

from mova_engine.commands.data_index import main
from mova_engine.data.clip_sources import read_clips
from mova_engine.files import byte_ranges
from mova_engine.files.byte_ranges import UnreachableError, UnreadableError, read_facts, read_range

for package in ("s3fs", "moto", "pyarrow"):
    pytest.importorskip(package, reason=f"no {package}: pip install -r requirements/s3.txt, or make test-object-store")
pytestmark = pytest.mark.serving
WHAT_PASSES = ("SlowDown", "ServiceUnavailable", "InternalError")


@pytest.fixture
def server():
    with S3Server().running() as running:
        yield running


@pytest.fixture
def clips(server, tmp_path):
    """Two shards of noise on the server, their index, and the bytes of each clip."""
    data = [os.urandom(50_000 + number) for number in range(4)]
    files = {}
    for name, numbers in (("a.tar", (0, 1)), ("b.tar", (2, 3))):
        members = {f"{n}.txt": b"noise" for n in numbers}
        for number in numbers:
            (tmp_path / f"{number}.mp4").write_bytes(data[number])
            members[f"{number}.mp4"] = tmp_path / f"{number}.mp4"
        write_shard(tmp_path / name, members)
        files[name] = tmp_path / name
    index = tmp_path / "clips.parquet"
    assert main([*server.put(files), "--out", str(index)]) == 0
    return read_clips(index), data


def test_clips_of_an_s3_server_have_the_bytes_that_were_stored(server, clips):
    entries, data = clips
    assert [entry.path.read() for entry in entries] == data
    assert {str(entry.path.shard) for entry in entries} == {"s3://bucket/a.tar", "s3://bucket/b.tar"}


@pytest.mark.parametrize("code", WHAT_PASSES)
def test_what_passes_is_tried_again_and_never_a_bad_clip(server, clips, monkeypatch, code):
    entries, data = clips
    server.faults["a.tar"] = [code] * 12
    assert entries[0].path.read() == data[0]
    assert not server.faults["a.tar"]
    server.always["a.tar"] = code
    monkeypatch.setattr(byte_ranges, "PATIENCE_S", 0.2)
    with pytest.raises(UnreachableError, match=r"s3://bucket/a.tar: cannot be read \(.*\d+ tries in"):
        entries[0].path.read()


def test_what_does_not_pass_is_a_bad_clip(server, clips):
    entries, data = clips
    server.always["a.tar"] = "AccessDenied"
    with pytest.raises(UnreadableError, match="s3://bucket/a.tar: 0.mp4: no permission to read it"):
        entries[0].path.read()
    server.always.clear()
    # Of the same size, with other bytes; and shorter, where a clip begins beyond the end.
    whole = read_range("s3://bucket/a.tar", 0, read_facts("s3://bucket/a.tar").size)
    server.put({"a.tar": whole.replace(data[0], bytes(len(data[0])))})
    with pytest.raises(UnreadableError, match=r"the shard was replaced \(its ETag is another one\)"):
        entries[0].path.read()
    assert entries[1].path.read() == data[1]
    server.put({"a.tar": b"short"})
    with pytest.raises(UnreadableError, match=r"is shorter than the index says \(0 of 50001 bytes are there\)"):
        entries[1].path.read()
    server.remove("a.tar")
    with pytest.raises(UnreadableError, match="no such file"):
        entries[1].path.read()


@pytest.mark.parametrize("key, bucket", [("none.tar", "bucket"), ("a.tar", "another")])
def test_what_is_not_there(server, key, bucket):
    with pytest.raises(UnreadableError, match=f"s3://{bucket}/{key}: no such file"):
        read_range(f"s3://{bucket}/{key}", 0, 10)


def test_a_file_system_that_was_used_before_a_fork(server, clips):
    """As the loader's processes do, whose parent has read of the same server."""
    entries, data = clips
    assert entries[0].path.read() == data[0]
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, b"right" if entries[1].path.read() == data[1] else b"wrong")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        assert answer.read() == b"right"
    os.waitpid(child, 0)


def test_shards_of_an_s3_server_give_the_losses_of_the_folder(server, placed, tmp_path):  # noqa: F811
    root, rows = placed
    files = {}
    for name, some in {"a": rows[:2], "b": rows[2:]}.items():
        members = {}
        for row in some:
            told = json.dumps({"caption": row["caption"], "id": row["id"]}).encode()
            members |= {row["video_path"]: root / "cut" / row["video_path"], f"{row['id']}.json": told}
        write_shard(tmp_path / f"{name}.tar", members)
        files[f"{name}.tar"] = tmp_path / f"{name}.tar"
    index = tmp_path / "index" / "clips.parquet"
    index.parent.mkdir()
    assert main([*server.put(files), "--out", str(index)]) == 0
    folder = losses(root / "cut", tmp_path / "folder")
    server.faults["a.tar"] = ["SlowDown", "InternalError"]
    assert losses(index, tmp_path / "ahead") == folder
    before = server.asked["a.tar"]
    assert losses(index, tmp_path / "online", encode="online", workers=1) == folder
    assert server.asked["a.tar"] > before
