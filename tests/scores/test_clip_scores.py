"""Scores of whole files: known sounds give known numbers, and every odd clip a number or a reason."""

import importlib.util
import struct

import av
import numpy as np
import pytest
from lossless_clip import write_lossless
from scipy.io import wavfile
from scores.drawn_films import scene

from mova_engine.data.media.write import write_mp4
from mova_engine.errors import MovaError
from mova_engine.scores import clip_reader, clip_scores
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.score_file import chosen_scores, score_file
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.score_table import COLUMNS, SCORES
from mova_engine.scores.sound_quality import band_edge, clipping_share, silence_shares

RATE = 48000
FPS = 24


def tone(frequency, seconds, level=0.3):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def moving():
    """A picture that moves: noise, shifted by a pixel a frame."""
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    return np.stack([np.roll(picture, i, 1) for i in range(49)])


def test_silence_is_measured_absolutely_and_by_place():
    sound = np.concatenate([np.zeros(RATE), tone(440, 2), np.zeros(RATE // 2), tone(440, 0.5), np.full(RATE, 1e-4)])
    found = silence_shares(sound.astype(np.float32), RATE)
    assert found.total == pytest.approx(2.5 / 5, abs=0.01)
    assert found.digital == pytest.approx(1.5 / 5, abs=0.01)
    assert (found.leading, found.trailing) == (pytest.approx(1 / 5, abs=0.01), pytest.approx(1 / 5, abs=0.01))
    quiet = silence_shares(np.zeros(RATE, np.float32), RATE)
    assert (quiet.total, quiet.digital, quiet.leading, quiet.trailing) == (1, 1, 1, 0)
    with pytest.raises(MovaError, match="too short"):
        silence_shares(np.zeros(10, np.float32), RATE)


def test_channels_of_opposite_phase_are_sound_and_have_no_loudness_in_mono(tmp_path):
    wave = tone(440, 2)
    write_stereo(tmp_path / "against.wav", wave, -wave)
    write_stereo(tmp_path / "alike.wav", wave, wave)
    against, alike = (
        score_file(tmp_path / f"{name}.wav", ["sound-quality", "loudness"]) for name in ("against", "alike")
    )
    for name in ("silence", "digital_silence", "band_edge", "clipping"):
        assert against.values[name] == alike.values[name]
    assert "lufs" in alike.values and "lufs" not in against.values
    assert "opposite phases" in against.reasons["loudness"]


def write_stereo(path, left, right):
    wavfile.write(path, RATE, np.stack([left, right], 1))


def test_loudness_has_the_silence_before_a_late_start(tmp_path, moving):
    """Sound of 1 s that begins a second after the pictures: the mean square is half of its own."""
    sound = np.concatenate([np.zeros(RATE, np.float32), tone(440, 1)])
    write_lossless(tmp_path / "whole.mkv", moving, sound, rate=RATE, fps=FPS)
    write_lossless(tmp_path / "late.mkv", moving, sound[RATE:], rate=RATE, fps=FPS, sound_start=1.0)
    whole, late = (score_file(tmp_path / f"{name}.mkv", ["loudness"]).values for name in ("whole", "late"))
    assert DecodedClip.read(tmp_path / "late.mkv").soundtrack.start == pytest.approx(1, abs=1e-3)
    assert late == pytest.approx(whole, rel=1e-3)
    assert late["rms"] == pytest.approx(0.3 / 2, rel=1e-3)


@pytest.mark.parametrize("edge", [4000, 8000, 16000])
def test_the_band_edge_is_where_noise_was_cut(edge):
    noise = np.random.default_rng(0).standard_normal(4 * RATE)
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(len(noise), 1 / RATE) > edge] = 0
    found = band_edge(np.fft.irfft(spectrum).astype(np.float32), RATE)
    assert found == pytest.approx(edge, abs=4 * RATE / 512)
    with pytest.raises(MovaError, match="silence"):
        band_edge(np.zeros(RATE, np.float32), RATE)


def test_clipping_counts_samples_that_stay_at_full_scale():
    assert clipping_share(tone(440, 1, level=0.99)) == 0
    cut = np.clip(tone(440, 1, level=2), -1, 1)
    assert clipping_share(cut) == pytest.approx(2 / 3, abs=0.01)  # |sin| >= 1/2 for two thirds of a period
    lone = np.zeros(100, np.float32)
    lone[50] = 1
    assert clipping_share(lone) == 0


def write_sound(path, samples, layout):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def write_pictures(path, pictures):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS, width=pictures.shape[2], height=pictures.shape[1])
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def odd_clips(tmp_path_factory, moving):
    """{name: (file, scores that have numbers)} of clips that lack something."""
    folder = tmp_path_factory.mktemp("odd")
    heard = {"loudness", "sound-quality", "sound-quality-mova", "dnsmos", "speech-activity"}
    seen = {"shots", "motion"}
    clips = {
        "silent": (moving, np.zeros(2 * RATE, np.float32), {*heard - {"dnsmos"}, "av-align", *seen}),
        "one-frame": (moving[:1], tone(300, 2), {*heard, "shots"}),
        "portrait": (moving.transpose(0, 2, 1, 3), tone(300, 2), {*heard, "av-align", *seen}),
    }
    files = {}
    for name, (pictures, sound, numbers) in clips.items():
        files[name] = folder / f"{name}.mp4", numbers
        write_mp4(files[name][0], np.ascontiguousarray(pictures), sound, fps=FPS, sample_rate=RATE)
    files["no-sound"] = folder / "no-sound.mkv", seen
    write_pictures(files["no-sound"][0], moving)
    six = np.stack([tone(300, 1)] * 6, 1)
    write_sound(folder / "six.wav", (six * 32767).astype(np.int16), "5.1")
    files["no-picture-5.1"] = folder / "six.wav", heard
    return files


@pytest.mark.parametrize("name", ["silent", "one-frame", "portrait", "no-sound", "no-picture-5.1"])
def test_an_odd_clip_gives_numbers_or_reasons(odd_clips, name):
    file, numbers = odd_clips[name]
    # Lips are found in noise now and then. DNSMOS takes seconds: once is enough.
    usual = {name for name, score in SCORES.items() if not (score.on_request or score.weights or score.transcripts)}
    asked = usual - {"speech-lag"} - ({"dnsmos"} if name in ("one-frame", "portrait") else set())
    found = score_file(file, sorted(asked))
    measured = {name for name in asked if any(column.name in found.values for column in SCORES[name].columns)}
    assert measured | found.reasons.keys() == asked
    assert measured == numbers & asked
    assert all(found.reasons.values())
    for column, value in found.values.items():
        low, high = COLUMNS[column].low, COLUMNS[column].high
        assert (low is None or value >= low) and (high is None or value <= high), column


def test_two_equal_channels_are_as_loud_as_one(tmp_path):
    """ffmpeg's float mono of stereo is 3 dB louder, beyond full scale; published loudness is of the channels' mean."""
    cut = np.clip(4 * tone(440, 1, level=0.5), -1, 1)
    found = []
    for count in (1, 2):
        sound = (np.stack([cut] * count, 1) * 32767).astype(np.int16)
        wavfile.write(tmp_path / "x.wav", RATE, sound)
        found.append(score_file(tmp_path / "x.wav", ["loudness", "sound-quality"]).values)
    assert found[1] == pytest.approx(found[0], rel=1e-6) and found[0]["rms"] < 1
    # Beside a quiet channel the mean is nowhere at full scale.
    wavfile.write(tmp_path / "x.wav", RATE, (np.stack([cut, cut / 9], 1) * 32767).astype(np.int16))
    one = score_file(tmp_path / "x.wav", ["sound-quality"]).values["clipping"]
    assert one == pytest.approx(found[0]["clipping"] / 2) and one > 0.1


@pytest.mark.long
def test_motion_and_onsets_are_those_of_a_film_whatever_its_size(tmp_path):
    """Steps of a pixel in 288, each with a click: corrected AV-Align finds them in a large film and in a small one; as
    published, those of the small one, 0.08 pixel, are too short."""
    texture = scene(1, seconds=0.05, size=(288, 504))[0]
    pictures, sound = [], np.zeros(2 * RATE, np.float32)
    for i in range(2 * FPS):
        step = i // 12
        pictures.append(np.roll(texture, step, 1))
        if step and i % 12 == 0:
            sound[i * RATE // FPS :][:400] = 0.8 * np.sin(np.arange(400))
    large = np.stack(pictures)
    found = {}
    small = large.reshape(len(large), 24, 12, 42, 12, 3).mean((2, 4)).round().astype(np.uint8)
    for name, film in (("large", large), ("small", small)):
        write_lossless(tmp_path / f"{name}.mkv", film, sound, rate=RATE, fps=FPS)
        for convention in ("corrected", "mova"):
            values = score_file(
                tmp_path / f"{name}.mkv", ["av-align"], runner=ScoreRunner(convention=convention)
            ).values
            found[name, convention] = values["av_align"]
    assert found["large", "corrected"] == found["small", "corrected"] == 1
    assert found["large", "mova"] == 1 > found["small", "mova"]


def test_what_neither_moves_nor_sounds_has_no_alignment(tmp_path, moving):
    still = np.repeat(moving[:1], 12, 0)
    write_lossless(tmp_path / "still.mkv", still, np.zeros(RATE // 2, np.float32), rate=RATE, fps=FPS)
    found = score_file(tmp_path / "still.mkv", ["av-align"])
    assert found.reasons == {"av-align": "there is neither an onset of sound nor a peak of motion"} and not found.values
    assert score_file(tmp_path / "still.mkv", ["av-align"], runner=ScoreRunner(convention="mova")).values == {
        "av_align": 0
    }


def test_a_score_that_is_named_twice_is_one():
    assert [score.name for score in chosen_scores(["shots", "loudness", "shots"])[0]] == ["shots", "loudness"]


def test_slow_scores_are_measured_where_they_are_asked_for():
    slow = {score.name for score in SCORES.values() if score.on_request}
    usual, _ = chosen_scores([])
    every, _ = chosen_scores(["all"])
    assert slow and not slow & {score.name for score in usual}
    assert {score.name for score in every} == slow | {score.name for score in usual}
    named, _ = chosen_scores([min(slow)])
    assert [score.name for score in named] == [min(slow)]


def test_a_file_that_is_cut_short_is_refused_by_name(odd_clips, tmp_path):
    whole = odd_clips["portrait"][0].read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MovaError, match=r"cut\.mp4"):
        score_file(tmp_path / "cut.mp4")


def test_a_file_is_decoded_once_for_all_scores(odd_clips, monkeypatch):
    decoded = []

    class Counted(DecodedClip):
        @classmethod
        def read(cls, path, store=None, **part):
            decoded.append(path)
            return super().read(path, store, **part)

    monkeypatch.setattr(clip_reader, "DecodedClip", Counted)
    monkeypatch.setattr(clip_reader, "_read_into", clip_reader._read_into.__wrapped__)
    score_file(odd_clips["portrait"][0], ["loudness", "av-align"])
    assert len(decoded) == 1


def test_sound_is_placed_by_the_clock_of_the_pictures(tmp_path, moving):
    """A click at 1 s stays at 1 s when the sound's track starts late or early against the pictures."""
    sound = np.zeros(2 * RATE, np.float32)
    sound[RATE : RATE + 20] = 0.9
    write_mp4(tmp_path / "click.mp4", moving, sound, fps=FPS, sample_rate=RATE)
    found = DecodedClip.read(tmp_path / "click.mp4").sound_with_pictures(RATE)
    assert np.abs(found).argmax() == pytest.approx(RATE, abs=0.002 * RATE)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_samples_that_are_no_numbers_are_a_reason(tmp_path, value):
    sound = np.full(RATE, 0.1, np.float32)
    sound[100] = value
    wavfile.write(tmp_path / "x.wav", RATE, sound)
    found = score_file(tmp_path / "x.wav", ["loudness", "sound-quality"])
    assert not found.values and all("no numbers" in found.reasons[name] for name in ("loudness", "sound-quality"))


def test_a_result_that_is_no_number_is_a_reason_and_leaves_the_other_scores(tmp_path, monkeypatch):
    wavfile.write(tmp_path / "x.wav", RATE, np.full(RATE, 0.1, np.float32))
    monkeypatch.setattr(clip_scores, "loudness", lambda clip: {"rms": float("inf")})
    found = score_file(tmp_path / "x.wav", ["loudness", "sound-quality"])
    assert found.reasons == {"loudness": "rms came out as inf"} and "rms" not in found.values
    assert "silence" in found.values


def test_a_fault_of_native_code_is_a_reason_and_one_of_ours_is_not(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    wavfile.write(tmp_path / "x.wav", RATE, np.full(RATE, 0.1, np.float32))
    monkeypatch.setattr(clip_scores, "loudness", lambda clip: cv2.resize(np.zeros((0, 0)), (2, 2)))
    found = score_file(tmp_path / "x.wav", ["loudness", "sound-quality"])
    assert found.reasons["loudness"].startswith("OpenCV failed on this clip: ") and "silence" in found.values
    monkeypatch.setattr(clip_scores, "loudness", lambda clip: [][0])
    with pytest.raises(IndexError):
        score_file(tmp_path / "x.wav", ["loudness"])


def test_what_a_machine_lacks_is_left_out_with_what_installs_it_unless_it_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "silero_vad" else find_spec(name))
    scores, skipped = chosen_scores([])
    assert "pip install --no-deps silero-vad" in skipped["speech-activity"]
    assert {score.name for score in scores} >= {"loudness", "speech-lag"} and "speech-activity" not in {
        score.name for score in scores
    }


def test_pictures_are_upright_as_players_show_them(tmp_path, moving):
    """A phone's video: stored on its side, with a display matrix in the header of its track."""
    write_mp4(tmp_path / "flat.mp4", moving[:2], tone(300, 1), fps=FPS, sample_rate=RATE)
    flat, data = DecodedClip.read(tmp_path / "flat.mp4"), bytearray((tmp_path / "flat.mp4").read_bytes())
    one = 1 << 16
    upright, turned = (struct.pack(">9i", *m, 0, 0, 1 << 30) for m in ((one, 0, 0, 0, one, 0), (0, one, 0, -one, 0, 0)))
    track = data.index(upright, data.index(b"tkhd"))  # the first track's; the film's own matrix comes before
    data[track : track + len(upright)] = turned
    (tmp_path / "turned.mp4").write_bytes(data)
    found = DecodedClip.read(tmp_path / "turned.mp4")
    assert found.size == flat.size[::-1]
    assert np.array_equal(next(found.pictures_of([1])), np.rot90(next(flat.pictures_of([1])), -1))
    wide, high = flat.pictures_at(FPS, 16, 32), found.pictures_at(FPS, 32, 16)
    assert np.array_equal(high, np.rot90(wide, -1, (1, 2)))


def test_sound_that_changes_its_channels_is_refused_by_name(tmp_path):
    """Two streams of MPEG-TS one after the other, as some recorders join them."""
    parts = []
    for layout, channels in (("mono", 1), ("stereo", 2)):
        with av.open(str(tmp_path / f"{layout}.ts"), "w") as container:
            stream = container.add_stream("aac", rate=RATE, layout=layout)
            frame = av.AudioFrame.from_ndarray(np.zeros((channels, RATE // 4), np.float32), "fltp", layout)
            frame.sample_rate = RATE
            container.mux([*stream.encode(frame), *stream.encode(None)])
        parts.append((tmp_path / f"{layout}.ts").read_bytes())
    (tmp_path / "joined.mp4").write_bytes(b"".join(parts))
    with pytest.raises(MovaError, match=r"joined\.mp4: the sound changes its rate or its channels"):
        score_file(tmp_path / "joined.mp4", ["loudness"])
