"""Sound that several scores read is converted once, within a bound of memory, and cannot be changed."""

import numpy as np
import pytest
from lossless_clip import write_lossless

from mova_engine.scores import decoded_clip, lip_sync
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.features.kept_sounds import KeptSounds
from mova_engine.scores.network_scores.clip_lip_sync import clip_lip_sync


def test_each_form_of_a_clip_s_sound_is_converted_once(tmp_path, monkeypatch):
    made = []
    convert = decoded_clip.convert_sound
    monkeypatch.setattr(decoded_clip, "convert_sound", lambda *a, **k: made.append(k["channels"]) or convert(*a, **k))
    sound = np.random.default_rng(0).normal(0, 3000, (4800, 2)).astype(np.int16)
    clip = DecodedClip.read(write_lossless(tmp_path / "clip.mkv", sound=sound, rate=48000))
    first, again = clip.sound(16000), clip.sound(16000)
    assert first is again and made == ["mono"]
    assert clip.sound(16000, "stereo").shape == (1600, 2) and made == ["mono", "stereo"]
    with pytest.raises(ValueError, match="read-only"):
        first -= first.mean()
    own = clip.channels()
    own -= own.mean()  # a copy, for whoever works in place
    assert np.array_equal(clip.channels(), (sound.T / np.float32(32768)).astype(np.float32))


def test_the_forms_that_were_wanted_last_are_kept():
    kept, made = KeptSounds(most=3000), []

    def get(key):
        return kept.get(key, lambda: made.append(key) or np.zeros(1000, np.uint8))

    for key in "abcabda":
        get(key)
    assert made == ["a", "b", "c", "d"]  # c gave way to d
    get("c")
    assert made[-1] == "c"
    assert kept.get("large", lambda: np.zeros(9000, np.uint8)).nbytes == 9000  # alone it may be larger than the bound


def test_published_lip_sync_hears_the_voice_23_ms_late(tmp_path, monkeypatch):
    """1105 samples of MP3's encoder at 48 kHz are 368 at 16 kHz."""
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(0, 3000, 48000))
    spectrum[1000:] = 0  # far below the third of a sample that 16 kHz leaves over
    sound = np.fft.irfft(spectrum).astype(np.int16)
    clip = DecodedClip.read(write_lossless(tmp_path / "a.mkv", np.zeros((25, 64, 64, 3), np.uint8), sound, rate=48000))
    heard = {}

    def listen(detector, network, pictures, samples, shots, convention):
        assert samples.dtype == np.int16 and len(pictures) == 25
        heard[convention] = samples.astype(np.float64)
        return lip_sync.ClipLips((0,) * 25, ())

    monkeypatch.setattr(lip_sync, "score_clip", listen)
    for convention in ("mova", "corrected"):
        found = clip_lip_sync(clip, {"s3fd": None, "syncnet": None}, convention)
        assert found.reason == "no picture has a face"
    assert len(heard["corrected"]) == 16000
    late = [np.corrcoef(heard["mova"][k : k + 15000], heard["corrected"][:15000])[0, 1] for k in range(360, 377)]
    assert 360 + int(np.argmax(late)) == 368 and max(late) > 0.99
