"""Manifests of every format list the same clips, in memory or in a table on disk; mistakes name file, row and key."""

import json
import threading
from pathlib import Path

import pytest

from mova_engine.data.clip_changes import order_digest
from mova_engine.data.clip_columns import blocks_of
from mova_engine.data.clip_sources import default_cache, read_clips
from mova_engine.data.clip_table import ClipTable
from mova_engine.data.dataset import LatentDataset
from mova_engine.data.metadata import Entry, read_metadata
from mova_engine.data.shard_files import FileInShard, Shard
from mova_engine.errors import MovaError
from mova_engine.files.byte_ranges import FileFacts

ROWS = [
    {"video_path": "a.mp4", "caption": "a ball"},
    {"video_path": "a.mp4", "caption": 'two lines\nwith "quotes", and a comma', "start": 2.5},
    {"video_path": "/elsewhere/ü.wav", "caption": "", "id": "late", "start": 0.1},
    {"video_path": "b/c.mp4", "caption": "ein Bällchen \U0001f600", "id": "last"},
]
SHA = "ab" * 32
IN_SHARD = {"shard": "s/000.tar", "member": "k.mp4", "offset": 512, "size": 99, "sha256": SHA, "caption": "in a shard"}


def write_csv(path: Path, rows) -> Path:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    quoted = [['"' + str(row.get(key, "")).replace('"', '""') + '"' for key in keys] for row in rows]
    path.write_bytes("\r\n".join([",".join(keys), *(",".join(cells) for cells in quoted), ""]).encode())
    return path


def write_parquet(path: Path, rows) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in keys}), path)
    return path


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def write_json(path: Path, rows) -> Path:
    path.write_text(json.dumps(rows))
    return path


WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet}


@pytest.mark.parametrize("kind", WRITERS)
def test_all_formats_list_the_same_clips(tmp_path, kind):
    write_jsonl(tmp_path / "metadata.jsonl", ROWS)
    expected = read_metadata(tmp_path)
    manifest = WRITERS[kind](tmp_path / f"clips.{kind}", ROWS)
    assert read_clips(manifest) == expected == read_clips(tmp_path)
    assert not default_cache(manifest).exists()  # a short list is kept in memory
    table = read_clips(manifest, listed=3)
    assert isinstance(table, ClipTable) and list(table) == expected and table[-1] == expected[-1]
    assert list(table[1::2]) == expected[1::2] and list(table[1:][1:]) == expected[2:]
    assert table.order_digest == order_digest([entry.id for entry in expected], True)
    with pytest.raises(IndexError):
        table[len(ROWS)]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("listed", [100, 0])
def test_files_in_shards(tmp_path, kind, listed):
    rows = [*ROWS, IN_SHARD, {**IN_SHARD, "start": 4.0, "shard": "https://host/1.tar?key=secret", "shard_etag": "x"}]
    rows.append({**IN_SHARD, "id": "third", "shard_size": 7168, "shard_modified": 1.5})
    found = read_clips(WRITERS[kind](tmp_path / f"clips.{kind}", rows), listed=listed)
    assert [entry.path for entry in found[:2]] == [tmp_path / "a.mp4"] * 2
    local = Shard(str(tmp_path / "s/000.tar"))
    assert found[4] == Entry(FileInShard(local, "k.mp4", 512, 99, SHA), "in a shard", "000/k.mp4")
    remote = Shard("https://host/1.tar?key=secret", FileFacts(etag="x"))
    assert found[5] == Entry(FileInShard(remote, "k.mp4", 512, 99, SHA), "in a shard", "1/k.mp4@4", 4.0)
    assert str(found[5].path) == "https://host/1.tar: k.mp4"  # without the signature
    assert found[6].path.shard.facts == FileFacts(7168, 1.5, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("offset", -1, "key 'offset' must be a whole number of bytes, got -1"),
        ("size", "many", "key 'size' must be a whole number of bytes, got \"many\""),
        ("sha256", "beef", "key 'sha256' must be 64 hexadecimal digits, got 'beef'"),
        ("member", None, "key 'member' is missing"),
        ("caption", None, "key 'caption' is missing"),
    ],
)
def test_mistakes_in_rows_of_shards(tmp_path, key, value, message):
    row = {name: x for name, x in {**IN_SHARD, key: value}.items() if x is not None}
    with pytest.raises(MovaError, match=f"clips.jsonl: line 2: {message}"):
        read_clips(write_jsonl(tmp_path / "clips.jsonl", [ROWS[0], row]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video_path,caption\na.mp4,x\nb.mp4\n", "line 3: has 1 cells, the first line names 2 keys"),
        ('video_path,caption\na.mp4,"x\ny"\n,z\n', r"line 4: key 'video_path' is missing \(it has: caption\)"),
        ("video_path,caption,caption\n", "line 1: column 'caption' occurs twice"),
        ('video_path,caption\na.mp4,"x', r"line 2: not valid CSV \(unexpected end of data"),
        ("video_path,caption,start\na.mp4,x,soon\n", "line 2: key 'start' must be seconds .*, got \"soon\""),
        ("video_path,caption\na.mp4,x\n\na.mp4,y\n", "line 4: id 'a.mp4' is taken by line 2"),
        ("video_path,caption\n", "clips.csv: lists no clips"),
        ("", "clips.csv: lists no clips"),
    ],
)
@pytest.mark.parametrize("listed", [100, 0])
def test_mistakes_in_csv(tmp_path, text, message, listed):
    (tmp_path / "clips.csv").write_text(text)
    with pytest.raises(MovaError, match=message) as caught:
        read_clips(tmp_path / "clips.csv", listed=listed)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("facts.json"))


def test_mistakes_in_parquet(tmp_path):
    (tmp_path / "clips.parquet").write_bytes(b"nonsense")
    with pytest.raises(MovaError, match=r"clips.parquet: cannot be read as Parquet \("):
        read_clips(tmp_path / "clips.parquet")
    write_parquet(tmp_path / "clips.parquet", [*ROWS, {"video_path": "x.mp4"}])
    with pytest.raises(MovaError, match="clips.parquet: row 5: key 'caption' is missing"):
        read_clips(tmp_path / "clips.parquet")
    write_parquet(tmp_path / "clips.parquet", [*ROWS, ROWS[0]])
    with pytest.raises(MovaError, match="clips.parquet: row 5: id 'a.mp4' is taken by row 1"):
        read_clips(tmp_path / "clips.parquet", listed=0)


def test_what_is_no_source(tmp_path):
    (tmp_path / "clips.txt").touch()
    for source, message in (
        (
            tmp_path / "clips.txt",
            r"a file, not a folder of clips, nor a list of them \(.jsonl, .json, .csv, .parquet\)",
        ),
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "nowhere.csv", "no such file"),
        ((), "no clips: name a folder or a manifest"),
    ):
        with pytest.raises(MovaError, match=message):
            read_clips(source)


def test_several_sources_are_one_list(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_jsonl(tmp_path / "one" / "metadata.jsonl", ROWS)
    second = write_csv(tmp_path / "two" / "films.csv", ROWS[:2])
    found = read_clips([tmp_path / "one", second], listed=3)
    assert len(found) == 6 and list(found) == [found[row] for row in range(6)]
    assert [entry.id for entry in found[3:5]] == ["one/last", "films/a.mp4"]
    assert found[5].path == tmp_path / "two" / "a.mp4" and found[-1].start == 2.5
    assert len(list((tmp_path / "one" / "cache" / "tables").glob("*/facts.json"))) == 1
    with pytest.raises(MovaError, match="two are called one: their names tell clips apart"):
        read_clips([tmp_path / "one", write_csv(tmp_path / "two" / "one.csv", ROWS)])


def test_a_table_is_made_once_and_anew_for_another_list(tmp_path, monkeypatch):
    manifest = write_csv(tmp_path / "clips.csv", ROWS)
    read_clips(manifest, listed=0)
    with monkeypatch.context() as patch:
        patch.setattr("mova_engine.data.clip_sources.write_table", lambda *_: pytest.fail("was made again"))
        assert len(read_clips(manifest, listed=0)) == 4
    write_csv(manifest, ROWS[:3])
    assert len(read_clips(manifest, listed=0)) == 3
    for facts in (tmp_path / "cache" / "tables").glob("*/facts.json"):
        facts.write_text("{")
    with pytest.raises(MovaError, match="not a whole table of clips .*: remove it"):
        read_clips(manifest, listed=0)


def test_processes_that_need_a_table_at_once_make_it_once(tmp_path):
    manifest, found = write_csv(tmp_path / "clips.csv", ROWS), []
    threads = [threading.Thread(target=lambda: found.append(read_clips(manifest, listed=0))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [list(each) for each in found] == [list(read_clips(manifest))] * 6
    assert not [path for path in (tmp_path / "cache" / "tables").iterdir() if path.name.startswith(".")]


def test_a_folder_that_cannot_be_written(tmp_path):
    manifest = write_csv(tmp_path / "clips.csv", ROWS)
    (tmp_path / "cache").touch()
    with pytest.raises(MovaError, match=r"cannot write .*--loader.cache FOLDER keeps it elsewhere"):
        read_clips(manifest, listed=0)


def test_a_data_set_of_a_table_is_that_of_a_list(made_clips, make_cache):
    """Batches, order and fingerprints, so that a run goes on whichever of the two it began with."""
    entries = read_metadata(made_clips)
    cache = make_cache()
    cache.fill(entries)
    table = read_clips(made_clips / "metadata.jsonl", cache.folder, listed=0)
    one, other = LatentDataset(entries, cache), LatentDataset(table, cache)
    assert one.ids == other.ids and one.marks == other.marks and one.order_digest() == other.order_digest()
    assert other.order_digest(shuffle=False) == one.order_digest(shuffle=False) != one.order_digest()
    assert one.batch([2, 5])["id"] == other.batch([2, 5])["id"] == ["2.mp4", "5.mp4"]


def test_a_table_is_the_same_from_wherever_it_is_named(tmp_path, monkeypatch):
    """Paths are relative to the manifest, however a process names that; members of shards are no paths."""
    (tmp_path / "d").mkdir()
    manifest = write_jsonl(tmp_path / "d" / "clips.jsonl", [{**IN_SHARD, "member": "d/k.mp4"}, ROWS[0]])
    monkeypatch.chdir(tmp_path)
    written = read_clips(Path("d/clips.jsonl"), tmp_path, listed=0)
    monkeypatch.chdir(manifest.parent)
    for name in (manifest, Path("clips.jsonl")):
        first, second = read_clips(name, tmp_path, listed=0)
        listed = read_clips(name)
        assert isinstance(first.path, FileInShard) and first.path.name == "d/k.mp4"
        assert [first, second] == listed and Path(first.path.shard.address).absolute() == tmp_path / "d/s/000.tar"
    assert len(list((tmp_path / "tables").glob("*.lock"))) == 1 and len(written) == 2


@pytest.mark.parametrize("name", ["start.f64", "id.ends.u64", "caption.utf8", "sha256.bin"])
def test_a_table_that_has_lost_rows_is_named(tmp_path, name):
    manifest = write_jsonl(tmp_path / "clips.jsonl", [IN_SHARD, ROWS[0]])
    table = read_clips(manifest, tmp_path, listed=0)
    assert isinstance(table, ClipTable)
    with open(table.folder / name, "r+b") as file:
        file.truncate(0)
    with pytest.raises(MovaError, match=rf"{table.folder}: not a whole table of clips .*: remove it"):
        read_clips(manifest, tmp_path, listed=0)


@pytest.mark.parametrize("listed", [0, 99])
def test_parquet_columns_of_any_type(tmp_path, listed):
    """Those that do not count are not read; others of a wrong type are named."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"video_path": ["a.mp4"], "caption": ["x"], "when": pa.array([2001], pa.timestamp("ns"))}
    columns["deep"] = pa.array([{"caption": [1]}])
    pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
    assert read_clips(tmp_path / "clips.parquet", listed=listed)[0].caption == "x"
    for key, value, told in (
        ("caption", pa.array([b"x"]), "row 1: key 'caption' must be text, got bytes"),
        ("start", pa.array([2001], pa.duration("ns")), r"column 'start' holds duration\[ns\], which is neither text"),
        ("start", pa.array([1], pa.decimal128(9, 2)), "row 1: key 'start' must be seconds .* got Decimal"),
    ):
        pq.write_table(pa.table({**columns, key: value}), tmp_path / "clips.parquet")
        with pytest.raises(MovaError, match=f"clips.parquet: {told}"):
            read_clips(tmp_path / "clips.parquet", listed=listed)
    del columns["video_path"]
    for left, told in ((columns, "row 1: key 'video_path' is missing"), ({"when": [1]}, "has no column 'video_path'")):
        pq.write_table(pa.table(left), tmp_path / "clips.parquet")
        with pytest.raises(MovaError, match=rf"{told} \(it has: .*when"):
            read_clips(tmp_path / "clips.parquet", listed=listed)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_an_index_that_a_tool_has_filtered(tmp_path, kind):
    """Tools make whole numbers fractions, and what is missing not a number, where some rows have no value."""
    rows = [{**IN_SHARD, "member": f"{n}.mp4", "shard_size": 9999.0, "offset": 512.0} for n in range(3)]
    manifest = WRITERS[kind](tmp_path / f"clips.{kind}", [{**row, "shard_modified": float("nan")} for row in rows])
    table = read_clips(manifest, listed=0)
    assert isinstance(table, ClipTable) and list(table) == read_clips(manifest, tmp_path / "other")
    assert table[2].path == FileInShard(
        Shard(str(tmp_path / "s/000.tar"), FileFacts(9999, None, None)), "2.mp4", 512, 99, SHA
    )
    assert len(json.loads((table.folder / "facts.json").read_bytes())["shards"]) == 1
    manifest = WRITERS[kind](manifest, [{**rows[0], "offset": 0.5}])
    with pytest.raises(MovaError, match="key 'offset' must be a whole number of bytes, got 0.5"):
        read_clips(manifest)


def test_blocks_refuse_places_that_rows_refuse(tmp_path):
    """Of long lists only the first rows are read one by one."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {key: [value] for key, value in {**IN_SHARD, "id": "x"}.items()}
    for key in ("offset", "size"):
        pq.write_table(pa.table({**columns, key: pa.array([1 << 63], pa.uint64())}), tmp_path / "clips.parquet")
        with pytest.raises(MovaError, match=f"row 1: key '{key}' must be a whole number of bytes"):
            list(blocks_of(tmp_path / "clips.parquet", 9))
