"""Lists of clips: the reference's format and ours; every mistake in one line that says where."""

import contextlib
import json
import os

import numpy as np
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
        (lines({**ROW, "start": -1}), r"line 1: key 'start' must be seconds from 0 up to 1e\+09, got -1"),
        (lines({**ROW, "start": "2"}), "line 1: key 'start' must be seconds"),
        (lines({**ROW, "start": True}), "line 1: key 'start' must be seconds .*, got true"),
        (lines({**ROW, "start": 1e308}), r"line 1: key 'start' must be seconds .*, got 1e\+308"),
        (lines({**ROW, "start": 10**400}), r"line 1: key 'start' must be seconds .*, got 10{79}\.\.\."),
        (lines({**ROW, "start": float("nan")}), "line 1: key 'start' must be seconds .*, got NaN"),
        (lines({**ROW, "start": [0]}), "line 1: key 'start' must be seconds .*, got list"),
        (lines(ROW)[:-2] + ', "start": ' + "9" * 5000 + "}", r"line 1: not valid JSON \(Exceeds the limit"),
        (lines(ROW)[:-2] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}", r"line 1: not valid JSON \(nested too"),
        (lines(ROW)[:-2] + ', "caption": "b"}', r"line 1: not valid JSON \(key 'caption' occurs twice"),
        (lines({**ROW, "caption": "a ball \ud83d"}), "line 1: key 'caption' holds half a surrogate pair"),
        (lines({**ROW, "video_path": "a\udc80.mp4"}), "line 1: key 'video_path' holds half a surrogate pair"),
        (lines({**ROW, "video_path": "a\0.mp4"}), "line 1: key 'video_path' holds a control character"),
        (lines({**ROW, "video_path": "a\n.mp4"}), "line 1: key 'video_path' holds a control character or a line break"),
        (lines({**ROW, "id": "a\u2028b"}), "line 1: key 'id' holds a control character or a line break"),
        (lines({**ROW, "id": ""}), "line 1: key 'id' is empty"),
        (lines({"a\n\ud83d": 1}), r"line 1: key 'video_path' is missing \(it has: a\\n\\ud83d\)"),
        (lines(ROW, "{not json"), "line 2: not valid JSON"),
        (lines(ROW, "[1]"), "line 2: must be an object with video_path and caption, got list"),
        (lines(ROW, "", ROW), "line 3: id 'a.mp4' is taken by line 1: give each of them an 'id' of its own"),
        ("", "metadata.jsonl: lists no clips"),
    ],
)
def test_mistakes_in_lines(tmp_path, text, message):
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(MovaError, match=message) as caught:
        read_metadata(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_texts_of_other_programs(tmp_path):
    """A byte order mark in front, line ends of Windows, line separators and characters beyond 16 bits in a caption."""
    caption = "one\u2028two\u2029three\x85four \U0001f600"
    for text in (json.dumps({**ROW, "caption": caption}), json.dumps({**ROW, "caption": caption}, ensure_ascii=False)):
        (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
        assert read_metadata(tmp_path) == [Entry(tmp_path / "a.mp4", caption, "a.mp4")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lines(ROW).encode("utf-16"), "metadata.jsonl: is UTF-16, must be UTF-8"),
        (lines(ROW).encode() + b'{"caption": "caf\xe9"}', "metadata.jsonl: line 2: not UTF-8 .byte 0xe9"),
    ],
)
def test_other_encodings_are_refused(tmp_path, data, message):
    (tmp_path / "metadata.jsonl").write_bytes(data)
    with pytest.raises(MovaError, match=message):
        read_metadata(tmp_path)


ODD = [
    *(0, -0.0, -1, 1e308, 1e9, 10**400, float("nan"), float("inf"), True, None, [], [[1]], {}, {"start": 1}),
    *("", " ", "a\0b", "\ud83d", "\udc80x", "\u2028", "\n", "../x", "/x", "x" * 5000, "http://x/y.mp4", "12:3.mp4"),
]
SPLICES = [
    *("\\ud83d", "\\u0000", "\ufeff", "[" * 3000, "9" * 5000, "NaN", "}{", '"', "\\", ",", "\r", "\x00", "1e999"),
    *("-", "{", "\U0010ffff", "\\udc80"),
]


def test_any_line_is_taken_or_refused_in_one_line(tmp_path):
    """Seeded fuzzing: keys with odd values, bytes changed, pieces spliced in. What is taken can be worked with."""
    rng = np.random.default_rng(0)
    taken = 0
    for number in range(600):
        rows = []
        for _ in range(rng.integers(1, 4)):
            row = {**ROW, "id": f"{rng.integers(6)}", "start": 2.5, "fps": 24}
            for key in rng.choice(list(row), rng.integers(3)):
                row[key] = ODD[rng.integers(len(ODD))]
            rows.append(row)
        text = json.dumps(rows, ensure_ascii=bool(rng.integers(2))) if number % 3 == 0 else lines(*rows)
        for _ in range(rng.integers(3)):
            place = rng.integers(len(text))
            text = text[:place] + SPLICES[rng.integers(len(SPLICES))] + text[place + rng.integers(2) :]
        data = bytearray(text.encode("utf-8", "surrogatepass"))
        if number % 4 == 0:
            data[rng.integers(len(data))] = rng.integers(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / ("metadata.json" if number % 3 == 0 else "metadata.jsonl")).write_bytes(data)
        try:
            entries = read_metadata(folder)
        except MovaError as error:
            assert str(error).isprintable() and str(folder) in str(error)
            continue
        taken += 1
        assert len({entry.id for entry in entries}) == len(entries)
        for entry in entries:
            assert (entry.caption + entry.id).encode() and entry.id.splitlines() == [entry.id]
            assert 0 <= entry.start <= 1e9
            with contextlib.suppress(OSError):
                os.stat(entry.path)
    assert 50 < taken < 550


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


def test_captions_in_text_files_beside_the_clips(tmp_path):
    for name in ("b.MP4", "a.wav", "._a.wav", "cover.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "cache").mkdir()
    (tmp_path / "a.txt").write_text("\ufeffa bell\n", encoding="utf-8")
    with pytest.raises(MovaError, match=r"b.MP4: has no caption: write it to b.txt, or list the clips in metadata"):
        read_metadata(tmp_path)
    (tmp_path / "b.txt").write_text("a ball\nthat bounces")
    assert read_metadata(tmp_path) == [
        Entry(tmp_path / "a.wav", "a bell", "a.wav"),
        Entry(tmp_path / "b.MP4", "a ball\nthat bounces", "b.MP4"),
    ]
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(MovaError, match="b.txt: line 1: not UTF-8"):
        read_metadata(tmp_path)


def test_folders_without_or_with_two_lists(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MovaError, match="file: a file, not a folder of clips"):
        read_metadata(tmp_path / "file")
    with pytest.raises(MovaError, match="nowhere: no such folder"):
        read_metadata(tmp_path / "nowhere")
    with pytest.raises(MovaError, match=r"must hold one of metadata.jsonl and metadata.json, or clips .* has none"):
        read_metadata(tmp_path)
    (tmp_path / "metadata.json").write_text(json.dumps([ROW]))
    (tmp_path / "metadata.jsonl").write_text(lines(ROW))
    with pytest.raises(MovaError, match="has both"):
        read_metadata(tmp_path)
