"""Sound that several scores read is converted once, within a bound of memory, and cannot be changed."""

import numpy as np
import pytest
from lossless_clip import write_lossless

from mova_engine.scores import decoded_clip
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.features.kept_sounds import KeptSounds


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
