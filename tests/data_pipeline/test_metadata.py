"""Lists of clips: the reference's format and ours; every mistake in one line that says where."""

import json

import pytest

from mova_engine.data.metadata import Entry, read_metadata
from mova_engine.errors import MovaError

ROW = {"video_path": "a.mp4", "caption": "a ball"}


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def test_the_reference_format(tmp_path):
    """metadata.json: a list of objects with video_path, relative to the folder, and caption."""
    rows = [{"video_path": "videos/1.mp4", "caption": "one"}, {"video_path": "videos/2.mp4", "caption": "", "fps": 24}]
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    assert read_metadata(tmp_path) == [
        Entry(tmp_path / "videos" / "1.mp4", "one", "videos/1.mp4"),
        Entry(tmp_path / "videos" / "2.mp4", "", "videos/2.mp4"),
    ]


def test_our_format(tmp_path):
    text = lines(ROW, "", {**ROW, "start": 2.5}, {**ROW, "start": 4, "id": "late", "caption": "ein Bällchen"})
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    first, second, third = read_metadata(tmp_path)
    assert (first.id, first.start) == ("a.mp4", 0.0)
    assert (second.id, second.start) == ("a.mp4@2.5", 2.5)
    assert (third.id, third.start, third.caption) == ("late", 4.0, "ein Bällchen")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines(ROW, {"video_path": "b.mp4"}), r"line 2: key 'caption' is missing \(it has: video_path\)"),
        (lines({"video": "b.mp4", "caption": ""}), r"line 1: key 'video_path' is missing \(it has: video, caption\)"),
        (lines({**ROW, "caption": 7}), "line 1: key 'caption' must be text, got 7"),
        (lines({**ROW, "video_path": ""}), "line 1: key 'video_path' is empty"),
        (lines({**ROW, "start": -1}), "line 1: key 'start' must be seconds from 0 up, got -1"),
        (lines({**ROW, "start": "2"}), "line 1: key 'start' must be seconds"),
        (lines(ROW, "{not json"), "line 2: not valid JSON"),
        (lines(ROW, "[1]"), "line 2: must be an object with video_path and caption, got list"),
        (lines(ROW, "", ROW), "line 3: id 'a.mp4' is taken by line 1"),
        ("", "metadata.jsonl: lists no clips"),
    ],
)
def test_mistakes_in_lines(tmp_path, text, message):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(MovaError, match=message) as caught:
        read_metadata(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([ROW, {"caption": "x"}]), "item 2: key 'video_path' is missing"),
        (json.dumps(ROW), "must be a list of objects, got dict"),
        ("[", "metadata.json: not valid JSON"),
    ],
)
def test_mistakes_in_a_list(tmp_path, text, message):
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(MovaError, match=message):
        read_metadata(tmp_path)


def test_folders_without_or_with_two_lists(tmp_path):
    with pytest.raises(MovaError, match="nowhere: no such folder"):
        read_metadata(tmp_path / "nowhere")
    with pytest.raises(MovaError, match="must hold one of metadata.jsonl and metadata.json, has none"):
        read_metadata(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps([ROW]))
    (tmp_path / "metadata.jsonl").write_text(lines(ROW))
    with pytest.raises(MovaError, match="has both"):
        read_metadata(tmp_path)
