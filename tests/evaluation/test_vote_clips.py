"""What a study compares, and what of it reaches a browser: lists, copies without names, ranges, sizes that tell
nothing.
"""

import av
import numpy as np
import pytest

from mova_engine.data.media.write import encode_mp4
from mova_engine.errors import MovaError
from mova_engine.evaluation.votes.blind_copies import blind_mp4, damaged_mp4, inspect_clip
from mova_engine.evaluation.votes.clip_responses import LEAST_FILLING, filled_bytes
from mova_engine.evaluation.votes.serve_study import read_questions, read_raters
from mova_engine.evaluation.votes.study_clips import read_study
from mova_engine.evaluation.votes.study_copies import CheckedClip, StudyCopies, check_clips, length_warnings
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.web.range_header import parse_range

RATE, FPS = 48000, 24


def clip_bytes(seed=0, frames=18, name="tell-tale-system"):
    """A short clip whose container names its maker."""
    drawn = np.random.default_rng(seed)
    pictures = np.repeat(drawn.integers(0, 255, (1, 32, 48, 3), np.uint8), frames, 0)
    sound = 0.1 * drawn.standard_normal(frames * RATE // FPS).astype(np.float32)
    plain = encode_mp4("x.mp4", pictures, sound, fps=FPS, sample_rate=RATE)
    if not name:
        return plain
    import io

    out = io.BytesIO()
    with av.open(io.BytesIO(plain)) as given, av.open(out, "w", format="mp4") as container:
        container.metadata.update({"title": name, "comment": f"made by {name}"})
        target = {stream.index: container.add_stream_from_template(stream) for stream in given.streams}
        for stream in target.values():
            stream.metadata["handler_name"] = name
        for packet in given.demux():
            if packet.size:
                packet.stream = target[packet.stream.index]
                container.mux(packet)
    return out.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    path.write_bytes(clip_bytes())
    return path


@pytest.fixture
def study_folder(tmp_path):
    for system in ("one", "two"):
        (tmp_path / system).mkdir()
        for prompt in ("a", "b"):
            (tmp_path / system / f"{prompt}.mp4").touch()
    (tmp_path / "one" / "c.mp4").touch()
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_a_folder_of_systems_with_texts_beside(study_folder):
    (study_folder / "metadata.jsonl").write_text(
        '{"id": "a", "caption": "a ball"}\n{"video_path": "b.mp4", "prompt": "x"}\n'
    )
    study = read_study(study_folder)
    assert study.systems == ("one", "two") and study.prompts == {"a": "a ball", "b": "x"}
    assert study.lonely == ("c",) and study.missing == {"one": 0, "two": 0} and len(study.files) == 4


def test_systems_by_name_and_texts_from_a_file(study_folder):
    (study_folder / "p.txt").write_text("a\tfirst text\nb\tsecond\n")
    given = [f"x={study_folder / 'one'}", f"y={study_folder / 'two'}"]
    study = read_study(None, given, study_folder / "p.txt")
    assert study.systems == ("x", "y") and study.prompts == {"a": "first text", "b": "second"}
    (study_folder / "two" / "b.mp4").unlink()
    third = read_study(None, [*given, f"z={study_folder / 'one'}"])
    assert third.missing == {"x": 0, "y": 2, "z": 0}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_a_list_of_clips(study_folder, kind):
    rows = [(system, prompt, f"{system}/{prompt}.mp4") for system in ("one", "two") for prompt in "ab"]
    if kind == "csv":
        text = "system,id,path,prompt\n" + "".join(f'{s},{p},{path},"a, {p}"\n' for s, p, path in rows)
    else:
        made = [f'{{"system": "{s}", "id": "{p}", "path": "{path}", "prompt": "a, {p}"}}' for s, p, path in rows]
        text = "\n".join(made) if kind == "jsonl" else f"[{', '.join(made)}]"
    (study_folder / f"list.{kind}").write_text(text)
    study = read_study(study_folder / f"list.{kind}")
    assert study.prompts == {"a": "a, a", "b": "a, b"} and study.files["two", "b"] == study_folder / "two" / "b.mp4"


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("l.csv", "system,path\none,one/a.mp4\n", "line 2: 'id' is missing"),
        ("l.jsonl", '{"system": "one", "id": "a", "path": "no.mp4"}', "line 1: .*no.mp4: no such file"),
        ("l.json", '[{"system": "one", "id": "a", "path": "one/a.mp4"}]', "at least two systems"),
        ("l.json", "[1]", "item 1: must be an object, got int"),
        ("l.json", "{", "no JSON"),
        (
            "l.jsonl",
            '{"system":"o","id":"a","path":"one/a.mp4"}\n{"system":"o","id":"a","path":"one/b.mp4"}',
            "both the",
        ),
        ("l.xml", "", "must be a folder, or a list"),
    ],
)
def test_a_list_that_cannot_be_used_names_its_line(study_folder, name, text, says):
    (study_folder / name).write_text(text)
    with pytest.raises(MovaError, match=says) as caught:
        read_study(study_folder / name)
    assert "\n" not in str(caught.value)


def test_what_is_no_study_is_refused(tmp_path, study_folder):
    for given, says in (
        ((None,), "name a folder"),
        ((tmp_path / "nowhere",), "no such folder"),
        ((None, ["x"]), "NAME=FOLDER|name=FOLDER"),
        ((study_folder / "one",), "at least two systems"),
        ((study_folder, [f"one={study_folder / 'two'}"]), "given twice"),
    ):
        with pytest.raises(MovaError, match=says):
            read_study(*given)
    (study_folder / "one" / "a.webm").touch()
    with pytest.raises(MovaError, match="are both the clip of 'one' for 'a'"):
        read_study(study_folder)


def test_questions_and_raters(tmp_path):
    assert read_questions(("sync", "mood=Which is sadder?"))["mood"] == "Which is sadder?"
    for given in (("mood",), ("sync", "sync")):
        with pytest.raises(MovaError, match="--question"):
            read_questions(given)
    (tmp_path / "raters").write_text("k1\n\n k2  x \n")
    assert read_raters(tmp_path / "raters") == {"k1", "k2 x"} and read_raters(None) is None


def test_a_copy_is_the_clip_without_its_names(clip):
    before, copy = clip.read_bytes(), blind_mp4.__wrapped__(clip, False, None)
    for word in (b"tell-tale-system", b"x264", b"Lavf"):
        assert word in before and word not in copy
    path = clip.with_name("copy.mp4")
    path.write_bytes(copy)
    one, two = DecodedClip.read(clip), DecodedClip.read(path)
    assert [float(t) for t in one.times] == [
        float(t) for t in two.times
    ] and one.soundtrack.start == two.soundtrack.start
    assert all(map(np.array_equal, one.pictures_of([0, 17]), two.pictures_of([0, 17])))
    assert np.array_equal(one.soundtrack.samples, two.soundtrack.samples)
    assert copy.find(b"moov") < copy.find(b"mdat"), "players begin before all has come"


def test_mono_sound_is_as_loud_as_the_same_sound_in_both_channels(tmp_path):
    """So do browsers play it. Sine of 997 Hz at full scale on both sides: 0 LUFS (BS.1770-4, annex 2: -3.01 on one)."""
    tone = np.sin(2 * np.pi * 997 * np.arange(2 * RATE) / RATE)
    (tmp_path / "pictures.mp4").write_bytes(
        encode_mp4("x", np.zeros((2 * FPS, 32, 48, 3), np.uint8), 0 * tone, FPS, RATE)
    )
    found = {}
    for layout, channels in (("mono", 1), ("stereo", 2)):
        path = tmp_path / f"{layout}.mkv"
        with av.open(tmp_path / "pictures.mp4") as given, av.open(str(path), "w") as container:
            moving = container.add_stream_from_template(given.streams.video[0])
            sound = container.add_stream("pcm_s16le", rate=RATE, layout=layout)
            for packet in given.demux(given.streams.video[0]):
                if packet.size:
                    packet.stream = moving
                    container.mux(packet)
            samples = np.repeat((0.5 * 32767 * tone).astype(np.int16), channels)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
            frame.sample_rate, frame.pts = RATE, 0
            for packet in [*sound.encode(frame), *sound.encode(None)]:
                container.mux(packet)
        found[layout] = inspect_clip.__wrapped__(path).lufs
    assert found["mono"] == pytest.approx(20 * np.log10(0.5), abs=0.05)
    assert found["stereo"] == pytest.approx(found["mono"], abs=0.1), "but for blocks that hold both channels' ends"


def test_levelling_changes_the_loudness_and_nothing_else(clip):
    path = clip.with_name("quiet.mp4")
    path.write_bytes(blind_mp4.__wrapped__(clip, False, -6.0))
    before, after = inspect_clip.__wrapped__(clip), inspect_clip.__wrapped__(path)
    assert after.lufs - before.lufs == pytest.approx(-6, abs=0.3)
    assert (after.seconds, after.height, after.width) == (before.seconds, before.height, before.width)
    pictures = [next(iter(DecodedClip.read(each).pictures_of([9]))) for each in (clip, path)]
    assert np.array_equal(*pictures)


@pytest.mark.parametrize(
    "make", [lambda c: blind_mp4.__wrapped__(c, True, None), lambda c: damaged_mp4.__wrapped__(c, None, 0)]
)
def test_encoded_copies_keep_their_length_and_are_near_or_plainly_damaged(clip, make):
    path = clip.with_name("made.mp4")
    path.write_bytes(make(clip))
    one, two = DecodedClip.read(clip), DecodedClip.read(path)
    assert len(one.times) == len(two.times) and b"tell-tale" not in path.read_bytes()
    assert abs(len(one.soundtrack.samples) - len(two.soundtrack.samples)) <= 1024
    error = np.abs(next(iter(one.pictures_of([9]))).astype(float) - next(iter(two.pictures_of([9])))).mean()
    damaged = "damaged" in str(make.__code__.co_names)
    assert error > 40 if damaged else error < 30


def test_levels_come_down_to_the_quietest_of_a_prompt(tmp_path, monkeypatch):
    loud = {"one": -14.0, "two": -20.0, "three": -60.0, "four": None}
    from mova_engine.evaluation.votes import study_copies
    from mova_engine.evaluation.votes.blind_copies import InspectedClip

    for name in loud:
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.mp4").write_text(name)
    monkeypatch.setattr(
        study_copies,
        "inspect_clip",
        lambda path: InspectedClip(2.0 if path.parent.name == "two" else 1.0, 1.0, 2, 2, loud[path.parent.name], ""),
    )
    study = read_study(tmp_path)
    clips = check_clips(study, None, "level", "packets", 1)
    assert {key[0]: clip.gain_db for key, clip in clips.items()} == {
        "one": -21.0,
        "two": -15.0,
        "three": 0.0,
        "four": 0.0,
    }, "never louder, and not below -35 LUFS"
    assert all(clip.gain_db is None for clip in check_clips(study, None, "asis", "packets", 1).values())
    (line,) = length_warnings(clips, 0.25)
    assert "'p'" in line and "1.00 s" in line and "2.00 s of two" in line and not length_warnings(clips, 1.0)


def test_clips_that_cannot_be_shown_are_named_and_counted(tmp_path, monkeypatch):
    from mova_engine.evaluation.votes import study_copies

    monkeypatch.setattr(study_copies, "inspect_clip", inspect_clip.__wrapped__)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.mp4").write_bytes(b"no clip" if name == "two" else clip_bytes())
    with pytest.raises(MovaError, match=r"1 clip of 2 cannot be shown: .*two.p\.mp4"):
        check_clips(read_study(tmp_path), None, "asis", "packets", 1)


def test_all_copies_of_a_prompt_have_one_size(tmp_path, monkeypatch):
    from mova_engine.evaluation.votes import study_copies
    from mova_engine.evaluation.votes.blind_copies import InspectedClip

    monkeypatch.setattr(study_copies, "blind_mp4", lambda path, *_: path.read_bytes())
    monkeypatch.setattr(study_copies, "damaged_mp4", lambda path, *_: b"d" * 5000)
    clips = {}
    for system, size in (("one", 100), ("two", 3000)):
        path = tmp_path / system
        path.write_bytes(b"x" * size)
        digest = study_copies.file_digest(path)
        clips[system, "p"] = CheckedClip(path, digest, InspectedClip(1, 1, 2, 2, None, ""))
    copies = StudyCopies(tmp_path / "copies", clips, "packets", 0)
    copies.prepare([("one", "p")], 1)
    sizes = {copies.copy(system, "p", damaged)[1] for system in ("one", "two") for damaged in (False, True)}
    assert sizes == {5000 + LEAST_FILLING}
    path, size = copies.copy("one", "p")
    sent, beside = (b"".join(filled_bytes(path, size, token, 0, size)) for token in ("left", "right"))
    assert len(sent) == size and sent[:100] == path.read_bytes() and sent[104:108] == b"free"
    assert sent[108:140] != beside[108:140], "a clip beside itself would be told by its digest"
    assert sent[:108] == beside[:108] and not sent[140:].strip(b"\0")
    assert int.from_bytes(sent[100:104], "big") == size - 100
    for begin, end in ((0, 1), (50, 103), (99, 110), (102, 106), (107, size), (4000, 4001)):
        assert b"".join(filled_bytes(path, size, "left", begin, end)) == sent[begin:end]
    clips["two", "p"].path.write_bytes(b"changed")
    again = StudyCopies(tmp_path / "others", clips, "packets", 0)
    with pytest.raises(MovaError, match="changed since it was checked"):
        again.copy("two", "p")


@pytest.mark.parametrize(
    "header, wanted",
    [
        (None, None),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-10", (90, 100)),
    ]
    + [("bytes=-1000", (0, 100)), ("bytes=-", None), ("bytes=0-1,5-6", None), ("items=0-1", None), ("bytes=9-3", None)]
    + [("bytes=a-b", None), ("bytes=99999999999999999999-", None)],
)
def test_ranges(header, wanted):
    assert parse_range(header, 100) == wanted


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=500-600", "bytes=-0"])
def test_ranges_outside_are_told(header):
    with pytest.raises(ValueError, match="outside"):
        parse_range(header, 100)
