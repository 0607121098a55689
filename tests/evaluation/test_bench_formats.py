"""Benches are read as their authors publish them, and a damaged file is one line that says where."""

import json
import shutil

import pytest

from mova_engine.errors import MovaError
from mova_engine.evaluation.benches.bench_formats import read_bench
from source_tree import ROOT

DATA = ROOT / "tests" / "data" / "benches"


def test_verse_bench_has_sets_prompts_and_what_is_said():
    bench = read_bench("verse", DATA / "verse")
    assert bench.categories == ("set1", "set2", "set3") and len(bench.items) == 6
    said = {item.id: item.transcript for item in bench.items if item.transcript}
    assert said == {
        "00000000": "[S01] Good morning.",
        "00001000": "[S01] 每一步都算数。",
        "00001001": "[S01] Here is the news.",
    }
    assert bench.items[2].prompt == "A dog barks at a gate."
    assert "set1 2 of 205, set2 2 of 295, set3 2 of 100" in bench.notes[0]
    assert {number.categories for number in bench.numbers if number.name in ("DNSMOS", "LSE-D")} == {("set3",)}


def test_the_whole_of_verse_bench_is_no_other_bench(tmp_path):
    sizes = {"set1": 205, "set2": 295, "set3": 100}
    content = {name: {f"{name}_{i:03d}": {"prompt": "x"} for i in range(n)} for name, n in sizes.items()}
    (tmp_path / "all.json").write_text(json.dumps(content))
    assert read_bench("verse", tmp_path).notes == () and len(read_bench("verse", tmp_path / "all.json").items) == 600


def test_mybench_s_transcripts_are_those_of_its_speakers_in_the_order_of_numbers():
    bench = read_bench("mybench", DATA / "mybench")
    said = {(item.category, item.id): item.transcript for item in bench.items}
    assert said["multi-speaker", "1"].startswith("[S01] Is this seat")
    assert said["multi-speaker", "2"].startswith("[S01] 你吃")
    assert said["multi-speaker", "10"].startswith("[S01] Hold")
    assert said["movie", "1"] == said["games", "3"] == ""


def test_another_number_of_transcripts_is_refused_and_none_is_noted(tmp_path):
    shutil.copytree(DATA / "mybench", tmp_path, dirs_exist_ok=True)
    lines = (tmp_path / "references.txt").read_text().splitlines()
    (tmp_path / "references.txt").write_text("\n".join(lines[:2]))
    with pytest.raises(MovaError, match=r"references.txt: 2 transcripts for 3 clips of multi-speaker"):
        read_bench("mybench", tmp_path)
    (tmp_path / "references.txt").write_text("\n".join([*lines[:2], "no speaker"]))
    with pytest.raises(MovaError, match="line 3: no speaker is tagged"):
        read_bench("mybench", tmp_path)
    (tmp_path / "references.txt").unlink()
    assert "no cpCER" in read_bench("mybench", tmp_path).notes[-1]


def test_audio_s_recordings_are_found_by_their_own_names():
    bench = read_bench("audio", DATA / "audio")
    assert [item.id for item in bench.items] == ["11", "12", "21", "31"]
    places = [None if item.reference is None else item.reference.name for item in bench.items]
    assert places == ["Y-abc_DE1fgh.wav", "Y-abc_DE1fgh.wav", "zz9yyXX8www_0.wav", None]
    assert bench.items[3].prompt == 'A man says "hello"' and "1 clip without a recording" in bench.notes[0]


def test_a_folder_of_one_s_own():
    bench = read_bench(str(DATA / "folder"), None)
    ball, talk = bench.items
    assert (bench.name, ball.category, talk.transcript) == ("folder", "balls", "[S01] hello [S02] good day")
    assert talk.reference is not None and talk.reference.name == "talk_reference.wav" and ball.reference is None
    assert bench.numbers == ()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("verse", {"a.json": "{"}, "not valid JSON"),
        ("verse", {"a.json": "[1]"}, "must be an object of categories"),
        (
            "verse",
            {"a.json": '{"set1": {"1": {"video_prompt": "x"}}}'},
            "set1: 1: must be an object with a text 'prompt'",
        ),
        ("verse", {"a.json": "{}"}, "lists no clips"),
        ("verse", {"a.json": '{"set1": {"": {"prompt": "x"}}}'}, "id '' cannot be"),
        ("verse", {"a.json": "{}", "b.json": "{}"}, "must hold one .json file, has 2"),
        ("verse", {}, "must hold one .json file, has 0"),
        ("audio", {"a.csv": "id,text\n1,x\n"}, "needs 'caption'"),
        ("audio", {"a.csv": 'id,caption\n1,"x\n'}, "not valid CSV"),
        ("audio", {"a.csv": "id,caption\n1,x\n1,y\n"}, "id '1' is twice in all"),
        (None, {}, "has no metadata.jsonl"),
        (None, {"metadata.jsonl": '{"id": 1}'}, "line 1: must be an object with a text 'id'"),
        (None, {"metadata.jsonl": '\n{"id": "a", "category": 3}'}, "line 2: 'category' must be text, is int"),
        (None, {"metadata.jsonl": '{"id": "a", "reference": "b.wav"}'}, "b.wav is no file"),
        (None, {"metadata.jsonl": '{"id": "a\\nb"}'}, "cannot be part of a file's name"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, content, reason):
    for file, text in content.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(MovaError, match=reason.replace("(", r"\(")) as found:
        read_bench(name or str(tmp_path), tmp_path if name else None)
    assert "\n" not in str(found.value)


def test_names_and_files_must_go_together(tmp_path):
    with pytest.raises(MovaError, match="needs --bench-data"):
        read_bench("verse", None)
    with pytest.raises(MovaError, match="neither a known bench"):
        read_bench("vers", None)
    with pytest.raises(MovaError, match="holds its own"):
        read_bench(str(DATA / "folder"), tmp_path)
