"""Several clips of a long file, and what becomes of sound that is odd, short, silent or no sound at all."""

import json

import numpy as np
import pytest
from data_pipeline.conftest import CLIP
from data_pipeline.media import click_time, clicks, every, write_media
from data_pipeline.test_sound import write

from mova_engine.codecs import build_audio_codec, build_text_encoder
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import get_preset
from mova_engine.data.dataset import open_dataset
from mova_engine.data.encode_folder import encode_folder
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.write_sound import FORMATS, encode_sound_file
from mova_engine.data.metadata import read_metadata
from mova_engine.data.windows import list_clips
from mova_engine.errors import MovaError

RATE = 48000
TONE = (0.4 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def listed(folder, *rows) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"caption": "c", **row}) + "\n" for row in rows))


def test_long_files_give_clips_at_equal_distances(tmp_path):
    times = [0.1, 0.5, 0.9]
    write(tmp_path / "long.wav", clicks(times, 1.0))
    write(tmp_path / "short.flac", clicks([0.05], 0.12), codec="flac")
    write_media(tmp_path / "film.mp4", every(24, 24), clicks([0.1], 1.0))
    (tmp_path / "no.wav").write_bytes(b"")
    rows = [{"video_path": name} for name in ("long.wav", "short.flac", "film.mp4", "no.wav")]
    listed(tmp_path, *rows, {"video_path": "long.wav", "start": 0.5, "id": "late"})
    found = list_clips(tmp_path, tmp_path, CLIP, 0.4, pictures=False)  # clips of 0.208 s
    assert [(entry.id, entry.start) for entry in found if entry.path.name == "long.wav"] == [
        ("long.wav", 0.0), ("long.wav@0.4", 0.4), ("late", 0.5),
    ]  # fmt: skip
    assert [entry.id for entry in found if entry.path.name in ("short.flac", "no.wav")] == ["short.flac", "no.wav"]
    assert [entry.start for entry in found if entry.path.name == "film.mp4"] == [0.0, 0.4]
    assert len({entry.id for entry in found}) == len(found)
    second = next(entry for entry in found if entry.start == 0.4)
    heard = read_clip(second.path, CLIP, start=second.start, pictures=False).audio
    assert abs(click_time(heard, 0.1) - 0.1) < 1e-3
    assert list_clips(tmp_path, tmp_path, CLIP, pictures=False) == read_metadata(tmp_path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_in_each_format_is_read_at_its_time(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode_sound_file(path, clicks([0.05, 0.15], 0.5)[0]))
    heard = read_clip(path, CLIP, pictures=False).audio
    assert all(abs(click_time(heard, time) - time) < 1e-3 for time in (0.05, 0.15))


@pytest.mark.parametrize(
    ("name", "sound", "says"),
    [
        ("a.aac", TONE, "sound is written as .wav, .flac"),
        ("a.wav", np.full(8, np.nan), "must be mono .* and finite"),
        ("a.wav", np.zeros((2, 8)), "must be mono"),
        ("a.wav", np.zeros(0), "must be mono"),
    ],
)
def test_what_no_file_can_hold_is_refused(name, sound, says):
    with pytest.raises(MovaError, match=says):
        encode_sound_file(name, sound)
    with pytest.raises(MovaError, match="cannot be encoded at 7 Hz"):
        encode_sound_file("a.mp3", TONE, 7)


def level_at(audio: np.ndarray, hertz: float) -> float:
    """Share of the power of a clip within 60 Hz of a frequency."""
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
    near = np.abs(np.fft.rfftfreq(len(audio), 1 / RATE) - hertz) < 60
    return float(power[near].sum() / power.sum())


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (11025, 1), (192000, 1), (44100, 2), (48000, 6)])
def test_any_rate_and_layout_comes_out_as_the_same_tone(tmp_path, rate, channels):
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    layout = {6: "5.1"}.get(channels)
    path = write(tmp_path / "a.flac", np.tile(tone, (channels, 1)), rate=rate, codec="flac", layout=layout)
    clip = read_clip(path, CLIP, pictures=False)
    assert clip.heard and clip.audio.shape == (CLIP.audio_samples,) and level_at(clip.audio, 440) > 0.99
    assert 0.3 < np.abs(clip.audio).max() <= 1


def test_a_wrong_extension_does_not_matter(tmp_path):
    right = write(tmp_path / "a.flac", TONE[None], codec="flac")
    wrong = tmp_path / "a.mp3"
    wrong.write_bytes(right.read_bytes())
    found, expected = (read_clip(path, CLIP, pictures=False).audio for path in (wrong, right))
    np.testing.assert_array_equal(found, expected)


def test_half_of_a_clip_is_enough_and_the_rest_is_silence(tmp_path):
    half = write(tmp_path / "half.wav", TONE[None, : round(0.6 * CLIP.audio_samples)])
    clip = read_clip(half, CLIP, pictures=False)
    assert clip.heard and not clip.audio[round(0.65 * CLIP.audio_samples) :].any()
    less = write(tmp_path / "less.wav", TONE[None, : round(0.4 * CLIP.audio_samples)])
    with pytest.raises(MovaError, match=r"less.wav: its sound covers only 0.088 s of the clip's 0.208 s"):
        read_clip(less, CLIP, pictures=False)


def test_what_is_no_sound_is_named_in_one_line(tmp_path):
    (tmp_path / "zero.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("no sound at all\n" * 50)
    write(tmp_path / "one.wav", TONE[None, :1])
    write(tmp_path / "quiet.wav", 0 * TONE[None])
    odd = TONE.copy()
    odd[100] = np.nan
    write(tmp_path / "nan.wav", odd[None], codec="pcm_f32le")
    for name, says in (
        ("zero.wav", "zero.wav: "),
        ("text.mp3", "text.mp3: "),
        ("one.wav", "one.wav: its sound covers only 0.000 s"),
        ("quiet.wav", "quiet.wav: its sound track is silent"),
        ("nan.wav", "nan.wav: its sound holds values that are not finite"),
        ("gone.wav", "gone.wav"),
    ):
        with pytest.raises(MovaError, match=says) as caught:
            read_clip(tmp_path / name, CLIP, pictures=False)
        assert "\n" not in str(caught.value)


@pytest.mark.long
def test_windows_that_are_encoded_ahead_are_those_that_training_takes(tmp_path):
    write(tmp_path / "long.wav", TONE[None])
    listed(tmp_path, {"video_path": "long.wav"})
    settings = ClipSettings(frames=CLIP.frames)
    encoded = encode_folder(tmp_path, settings, model="nano", task="audio", cut_every=0.25, cache=tmp_path / "cache")
    model = get_preset("nano")
    text = build_text_encoder("bytes", tokens=model.text_tokens, dim=model.video.text_dim)
    cache = LatentCache(tmp_path / "cache", settings.over(model.clip), None, build_audio_codec("mdct"), text)
    stored = [cache.read(entry) for entry in list_clips(tmp_path, tmp_path, cache.clip, 0.25, pictures=False)]
    assert encoded == 0 and len(stored) == 4 and all(clip is not None for clip in stored)
    done: list[tuple[int, int]] = []
    clips = open_dataset(tmp_path, cache, cut_every=0.25, progress=lambda *given: done.append(given))
    assert clips.ids == ("long.wav", "long.wav@0.25", "long.wav@0.5", "long.wav@0.75") and done[-1] == (4, 4)


def test_long_lists_are_not_opened_file_by_file(tmp_path, monkeypatch):
    listed(tmp_path, {"video_path": "a.wav"}, {"video_path": "b.wav"})
    monkeypatch.setattr("mova_engine.data.windows.LISTED", 1)
    with pytest.raises(MovaError, match="loader.cut_every opens each file .* here are 2: list the clips with their"):
        list_clips(tmp_path, tmp_path, CLIP, 1.0, pictures=False)
