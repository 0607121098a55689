"""Folders and published lists of films: read as they are published, with what is missing and bad counted."""

import json
import os

import pytest

from mova_engine.curation.list_rows import list_rows
from mova_engine.curation.media_folders import FileIndex, media_files
from mova_engine.curation.source_formats import MODULES, source_formats
from mova_engine.curation.source_lists import format_of, read_sources
from mova_engine.errors import MovaError

SHA = "f40492a05b8df569687c735e33c295efce06517630489d06f7f95f68527c4674"
# Of each format a small list, made by hand from its published description; the files that are there; of these
# (path, span, caption); how many of the listed clips are not there, and the reasons of bad rows.
PUBLISHED = {
    "VGGSound": (
        "vggsound.csv",
        "---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,waterfall burbling,train\n"
        '-xbZ02ZZ1eE,7,"cow, lowing",train\n'
        "short,1,x,train\n--0PQM4-hqg,soon,waterfall burbling,train\nabsent_____,5,gone,test\n",
        ["train/---g-f_I2yQ_000001.mp4", "--0PQM4-hqg.mkv", "deep/-xbZ02ZZ1eE_7000_17000.mp4"],
        [
            ("train/---g-f_I2yQ_000001.mp4", None, "people marching"),
            ("--0PQM4-hqg.mkv", (30.0, 40.0), "waterfall burbling"),
            ("deep/-xbZ02ZZ1eE_7000_17000.mp4", None, "cow, lowing"),
        ],
        (1, {"its YouTube ID has not 11 letters": 1, "its start is no whole number of seconds": 1}),
    ),
    "ACAV-100M": (
        "output.csv",
        "# SHARD_NAME,FILENAME,YOUTUBE_ID,SEGMENT\n"
        'shard-000009,qpxektwhzra_292.mp4,qpxektwhzra,"[292.3329999997, 302.3329999997]"\n'
        'shard-000009,bcdefghijkl_7.mp4,bcdefghijkl,"[7, 17]"\nshard-000010,gone_______1_2.mp4,gone_______1,"[2, 12]"\n'
        "shard-000010,gone_______1_2.mp4,gone_______1,now\n",
        ["shard-000009/qpxektwhzra_292.mp4", "A walk [bcdefghijkl].webm"],
        [
            ("shard-000009/qpxektwhzra_292.mp4", None, ""),
            ("A walk [bcdefghijkl].webm", (7.0, 17.0), ""),
        ],
        (1, {"its SEGMENT is not [start, end]": 1}),
    ),
    "OpenVid-1M": (
        "OpenVid-1M.csv",
        "video,caption,aesthetic score,motion score,temporal consistency score,camera motion,frame,fps,seconds\n"
        'a_3_0to100.mp4,"A man, in a room",5.1,2.5,0.99,static,100,25.0,4.0\n'
        "gone.mp4,A dog,5,3,0.98,pan_left,90,30,3\nshort,row\n",
        ["video/a_3_0to100.mp4"],
        [("video/a_3_0to100.mp4", None, "A man, in a room")],
        (1, {"has another number of cells than the first line": 1}),
    ),
    "ChronoMagic-Pro": (
        "ChronoMagic-Pro.csv",
        "videoid,name\nabc_12,Time-lapse of a plant that grows\nabc_13,\n,nothing\n",
        ["Videos/abc_12.mp4", "Videos/abc_13.mp4"],
        [("Videos/abc_12.mp4", None, "Time-lapse of a plant that grows"), ("Videos/abc_13.mp4", None, "")],
        (0, {"has no videoid": 1}),
    ),
    "AutoReCap": (
        "autorecap.json",
        '{"abcdefghijk": {"intervals": [{"start": 1.5, "end": 11.5, "text": "rain"}, {"start": 20, "end": 25}]}},\n'
        '{"bcdefghijkl": {"intervals": [{"start": 5, "end": 3, "text": "wrong"}]}}\n'
        '{"cdefghijklm": {"intervals": "none"}}\n{"broken\n'
        '{"gone_______": {"intervals": [{"start": 5, "end": 13, "text": "gone"}]}}\n',
        ["000000/abcdefghijk_000.mp4", "abcdefghijk.mp4"],
        [("000000/abcdefghijk_000.mp4", None, "rain"), ("abcdefghijk.mp4", (20.0, 25.0), "")],
        (
            1,
            {
                "its times are no span: from 0 on, and the end after the start": 1,
                "its intervals are no list": 1,
                "not valid JSON": 1,
            },
        ),
    ),
    "OpenHumanVid": (
        "openhumanvid.jsonl",
        json.dumps(
            {"path": f"part_1/{SHA}_010804_010895.mp4", "short_caption": "A man.", "long_caption": "A tall man."}
        )
        + "\n"
        + json.dumps({"path": f"part_1/{SHA}_000001_000090.mp4", "short_caption": "Gone."})
        + '\n{"short_caption": "no file"}\n[1]\n',
        [f"{SHA}_010804_010895.mp4"],
        [(f"{SHA}_010804_010895.mp4", None, "A tall man.")],
        (1, {"has no path or video_path or video or name or key": 1, "is no object of keys and values": 1}),
    ),
    "SpeakerVid-5M": (
        "speakervid.json",
        json.dumps(
            {
                "abcdefghijk_0003": {"youtube_id": "abcdefghijk", "start": 3, "end": 12.5, "caption": "she talks"},
                "bcdefghijkl_0001": {"youtube_id": "bcdefghijkl", "timestamp": [0, 9]},
                "cdefghijklm_0001": {"youtube_id": "cdefghijklm"},
                "gone_______0001": {"youtube_id": "gone_______", "start_time": 0, "end_time": 9},
            }
        ),
        ["abcdefghijk.mp4", "bcdefghijkl_0001.mp4"],
        [("abcdefghijk.mp4", (3.0, 12.5), "she talks"), ("bcdefghijkl_0001.mp4", None, "")],
        (1, {"has no start and end": 1}),
    ),
    "a list of one's own": (
        "mine.csv",
        "video_path,caption,start,end,mood\nfilms/a.mp4,a walk,,,calm\nfilms/a.mp4,its end,60,90,\n"
        "films/b.mp4,gone,,,\n"
        "films/a.mp4,open,60,,\n",
        ["films/a.mp4"],
        [("films/a.mp4", None, "a walk"), ("films/a.mp4", (60.0, 90.0), "its end")],
        (1, {"has a start and no end": 1}),
    ),
}


def test_every_format_has_a_list_here():
    assert {form.name for form in source_formats()} == PUBLISHED.keys() and len(PUBLISHED) == len(MODULES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_list_is_read_as_it_is(tmp_path, name):
    file, text, files, expected, (missing, bad) = PUBLISHED[name]
    media = tmp_path / "media"
    for each in files:
        (media / each).parent.mkdir(parents=True, exist_ok=True)
        (media / each).touch()
    (tmp_path / file).write_text(text)
    assert format_of(tmp_path / file).name == name
    (source,) = read_sources([tmp_path / file], [media])
    found = [(each.path.relative_to(media).as_posix(), each.span, each.caption) for each in source.files]
    assert found == expected
    assert (source.missing, dict(source.bad)) == (missing, bad)
    assert source.listed == len(expected) + missing and source.where.keys() == source.bad.keys()
    assert len({each.name for each in source.files}) == len(expected)
    assert all(each.name.startswith(f"{file}/") and each.source == file for each in source.files)
    assert next(source.lines()).endswith(f"of {source.listed} listed clips, {missing} not there")


def test_what_a_list_says_besides_is_kept(tmp_path):
    file, text = PUBLISHED["OpenVid-1M"][:2]
    (tmp_path / "a_3_0to100.mp4").touch()
    (tmp_path / file).write_text(text)
    (source,) = read_sources([tmp_path / file])
    assert source.files[0].facts["aesthetic score"] == "5.1" and "caption" not in source.files[0].facts


def test_a_parquet_list_is_read_without_the_films_in_it(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = [{"key": f"{SHA}_000001_000090", "video": b"film", "long_caption": "x", "score": 0.5}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    (tmp_path / f"{SHA}_000001_000090.mp4").touch()
    (source,) = read_sources([tmp_path / "list.parquet"])
    assert source.form == "OpenHumanVid" and source.files[0].facts == {"score": 0.5}
    assert source.files[0].caption == "x"


def test_it_is_an_error_where_everything_is_missing_or_nothing_known(tmp_path):
    (tmp_path / "vggsound.csv").write_text("--0PQM4-hqg,30,waterfall burbling,train\n")
    with pytest.raises(MovaError, match="vggsound.csv .VGGSound.: none of 1 listed clip is there: .*--films.media"):
        read_sources([tmp_path / "vggsound.csv"])
    (tmp_path / "other.csv").write_text("alpha,beta\n1,2\n")
    with pytest.raises(MovaError, match="no known format; known are VGGSound: ID,30") as caught:
        read_sources([tmp_path / "other.csv"])
    assert "\n" not in str(caught.value)
    for name in ("empty.csv", "empty.jsonl"):
        (tmp_path / name).touch()
        with pytest.raises(MovaError, match="no known format"):
            read_sources([tmp_path / name])
    with pytest.raises(MovaError, match="gone: no such file or folder"):
        read_sources([tmp_path / "gone"])
    (tmp_path / "none").mkdir()
    with pytest.raises(MovaError, match="none: holds no films"):
        read_sources([tmp_path / "none"])
    (tmp_path / "list.txt").touch()
    with pytest.raises(MovaError, match="a list of films ends in one of .csv"):
        read_sources([tmp_path / "list.txt"])


def test_folders_are_searched_with_all_in_them_and_odd_names(tmp_path):
    root = tmp_path / "films"
    names = ["b.mp4", "a/1\n2.mkv", "a/🎬 film.MP4", "a/b/c.wav", "é\u200b.webm"]
    for name in (*names, ".hidden.mp4", "a/.git/x.mp4", "notes.txt", "a/cover.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    os.mkfifo(root / "pipe.mp4")
    os.symlink(root / "gone.mp4", root / "link.mp4")
    os.symlink(root, root / "a" / "loop.mp4")
    with open(os.fsencode(root) + b"/\xff.mp4", "wb"):
        pass
    (root / "b.txt").write_text("  a ball\n")
    (root / "a" / "b" / "c.txt").write_bytes(b"x" * (1 << 20) + b"y")
    (source,) = read_sources([root])
    assert {each.name for each in source.files} == {f"films/{name}" for name in names}
    assert {each.path for each in source.files} == {root / name for name in names}
    assert {each.name: each.caption for each in source.files}["films/b.mp4"] == "a ball"
    assert dict(source.bad) == {
        "no regular file, or a link to none": 2,
        "its name is not UTF-8: rename it": 1,
        "the caption beside it is larger than 1 MiB, and is left out": 1,
    }
    assert all("\n" not in line for line in source.lines())
    assert [each.name for each in read_sources([root])[0].files] == [each.name for each in source.files]


def test_a_weight_stands_after_a_colon_unless_that_is_the_name(tmp_path):
    for name in ("films", "talk:2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    sources = read_sources([tmp_path / "films:3", tmp_path / "talk:2"])
    assert [(each.path.name, each.weight) for each in sources] == [("films", 3.0), ("talk:2", None)]
    with pytest.raises(MovaError, match=r"the weight of .*films must be a positive number, got -1"):
        read_sources([tmp_path / "films:-1"])


def test_a_folder_that_cannot_be_read_is_told(tmp_path):
    """A path of more than 4096 letters cannot be opened by anyone."""
    (tmp_path / "a.mp4").touch()
    here, place = os.open(tmp_path, os.O_RDONLY), "deep" * 60
    for _ in range(18):
        os.mkdir(place, dir_fd=here)
        inner = os.open(place, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    told = [each for each in media_files(tmp_path) if isinstance(each, tuple)]
    assert [reason for _, reason in told] == ["cannot be read (File name too long)"]
    (source,) = read_sources([tmp_path])
    assert len(source.files) == 1 and source.bad.total() == 1


def test_a_name_that_several_files_have_is_no_match(tmp_path):
    for name in ("a/x.mp4", "b/x.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "mine.csv").write_text("video_path,caption\nx.mp4,which\nb/x.mp4,this\nb/x.mp4,again\n")
    (source,) = read_sources([tmp_path / "mine.csv"])
    assert [each.name for each in source.files] == ["mine.csv/b/x.mp4"]
    assert source.missing == 1 and set(source.bad) == {
        "several files are called so: name fewer folders: x.mp4",
        "the same clip of the same film is listed before",
    }
    assert [each.relative for each in FileIndex([tmp_path]).find("x")] == ["a/x.mp4", "b/x.mp4"]
    assert [each.relative for each in FileIndex([tmp_path]).find("./a/x")] == ["a/x.mp4"]
    assert FileIndex([tmp_path]).find("x.mkv") == []


def test_damaged_rows_are_told_and_the_next_are_read(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(
        b'{"a": 1}\n\xff\xfe\n{"a": "\xc3\x28"}\nnull\n{"a": 2},\n' + b"[" * 99999 + b"\n7\n"
    )
    found = [(place, str(row)) for place, row in list_rows(tmp_path / "x.jsonl")]
    assert found == [
        ("line 1", "{'a': 1}"),
        ("line 2", "not UTF-8"),
        ("line 3", "not UTF-8"),
        ("line 4", "None"),
        ("line 5", "{'a': 2}"),
        ("line 6", "not valid JSON"),
        ("line 7", "7"),
    ]
    (tmp_path / "x.csv").write_bytes(b"a,b\n1,2\n\xff,3\n\n4\n" + b"x" * (20 << 20) + b",1\n5,6\n")
    rows = [str(row) for _, row in list_rows(tmp_path / "x.csv")]
    assert rows[:3] == ["{'a': '1', 'b': '2'}", "not UTF-8", "has another number of cells than the first line"]
    assert rows[-1] == "{'a': '5', 'b': '6'}" and any("field larger" in row for row in rows)


def test_a_folder_with_a_list_gives_what_that_lists(tmp_path):
    """As for --data; the list's files are the folder's own, whatever folders other lists have theirs in."""
    films, elsewhere = tmp_path / "films", tmp_path / "elsewhere"
    for folder in (films / "deep", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a.mp4").write_bytes(b"film")
    (films / "b.mp4").write_bytes(b"not listed")
    (films / "metadata.jsonl").write_text('{"video_path": "deep/a.mp4", "caption": "a walk", "start": 1, "end": 9}\n')
    for media in ([], [elsewhere]):
        (source,) = read_sources([films], media)
        assert [(each.path, each.name, each.caption, each.span) for each in source.files] == [
            (films / "deep" / "a.mp4", "films/deep/a.mp4@1-9", "a walk", (1.0, 9.0))
        ]
    (films / "metadata.json").write_text("[]")
    with pytest.raises(MovaError, match="must hold one of metadata.jsonl and metadata.json"):
        read_sources([films])


def test_parts_that_begin_together_are_two_parts_and_the_same_part_twice_is_one(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "own.csv").write_text("video_path,start,end\na.mp4,0,4\na.mp4,0,9\na.mp4,0,4\n")
    (source,) = read_sources([tmp_path / "own.csv"])
    assert [each.name for each in source.files] == ["own.csv/a.mp4@0-4", "own.csv/a.mp4@0-9"]
    assert source.bad == {"the same clip of the same film is listed before": 1}


def test_a_long_list_in_one_json_value_is_read(tmp_path, monkeypatch):
    from mova_engine.curation import list_rows

    monkeypatch.setattr(list_rows, "LARGEST", 100)
    (tmp_path / "a.mp4").touch()
    rows = [{"video_path": "a.mp4", "start": i, "end": i + 1} for i in range(9)]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    (source,) = read_sources([tmp_path / "own.json"])
    assert len(source.files) == 9 and not source.bad
    (tmp_path / "own.jsonl").write_text(
        "".join(json.dumps({**row, "caption": "x" * row["start"] * 9}) + "\n" for row in rows)
    )
    (source,) = read_sources([tmp_path / "own.jsonl"])
    assert 0 < len(source.files) < 9 and source.bad == {"longer than a row can be": 9 - len(source.files)}
