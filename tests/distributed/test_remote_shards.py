"""Several processes train from tar shards on a server that fails now and then; the number of processes changes."""

import json
import re
from collections.abc import Iterator
from itertools import chain

import pytest
from data_pipeline.fault_server import FaultServer, write_shard
from distributed.runs import contents_taken

from mova_engine.data.metadata import read_metadata
from mova_engine.data.shard_index import write_index

pytest.importorskip("pyarrow")
SHARDS = {"a": 3, "b": 4}
CLIPS = sum(SHARDS.values())


@pytest.fixture
def server(clips, tmp_path) -> Iterator[FaultServer]:
    """Serves two shards of seven clips, which an index lists by their addresses."""
    entries = iter(read_metadata(clips))
    for name, count in SHARDS.items():
        members = {}
        for number in range(count):
            entry = next(entries)
            told = json.dumps({"caption": entry.caption, "id": f"{name}{number}"}).encode()
            members |= {f"{number}.mp4": entry.path, f"{number}.json": told}
        write_shard(tmp_path / "shards" / f"{name}.tar", members)
    with FaultServer(tmp_path / "shards").running() as running:
        addresses = [f"{running.url}/{name}.tar" for name in SHARDS]
        write_index(addresses, tmp_path / "clips.parquet", say=lambda _: None)
        yield running


@pytest.mark.parametrize("encode", ["online", "ahead"])
def test_each_clip_once_an_epoch_from_one_process_to_three_to_two(worlds, server, tmp_path, encode):
    """Three epochs of seven clips: five steps of one process, four of three, two of two; counted by what each process
    trained on, of which a digest says that it is the clip's own.
    """
    given = {"clips": str(tmp_path / "clips.parquet"), "out": str(tmp_path / "run"), "batch": 1}
    given |= {"parallel": {"context_parallel": 1}, "loader": {"encode": encode, "preload": False}}
    stream: list[tuple[str, str]] = []
    for size, steps in ((1, 5), (3, 9), (2, 11)):
        for name in SHARDS:
            server.faults[f"{name}.tar"] += [503, "short", "wrong", "whole"]
        found = (
            [contents_taken(steps=steps, **given)]
            if size == 1
            else worlds(size).run("contents_taken", steps=steps, **given)
        )
        assert len(found) == size and len({len(each) for each in found}) == 1
        for batches in zip(*found, strict=True):
            stream += chain.from_iterable(batches)
    assert len(stream) == 3 * CLIPS and len(set(stream)) == CLIPS == len({name for name, _ in stream})
    epochs = [stream[first : first + CLIPS] for first in range(0, 3 * CLIPS, CLIPS)]
    assert all(len(set(epoch)) == CLIPS for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert sum(server.asked.values()) > CLIPS + 4


@pytest.mark.parametrize("encode", ["online", "ahead"])
def test_a_shard_that_one_process_cannot_read_stops_all_before_the_first_step(worlds, server, tmp_path, encode):
    settings = {"clips": str(tmp_path / "clips.parquet"), "out": str(tmp_path / "run"), "steps": 2, "batch": 1}
    settings |= {"parallel": {"context_parallel": 1}, "loader": {"encode": encode}}
    (said, _), (other, _) = worlds(2).run("run_shared", fault="shard gone", **settings)
    first = said if said != "SystemExit: 2" else other
    told = (
        r"the processes do not agree on the clips: 'b0' only in rank 0 \(rank 1: http://.*404.*\), 'b1' .*start again"
    )
    assert re.search(told, first) and "\n" not in first, (said, other)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
