"""Silence, ratio and bandwidth of MOVA's evaluation: closed forms, and what its code gives for known sounds."""

import numpy as np
import pytest
from scipy import signal

from mova_engine.errors import MovaError
from mova_engine.scores import clip_scores
from mova_engine.scores.published_sound import published_bandwidth, published_silence

RATE = 48000
TIME = np.arange(8 * RATE) / RATE


def sound(samples):
    return np.asarray(samples, np.float32)


def test_silence_after_sound_is_none_and_so_is_digital_silence():
    tone = sound(0.5 * np.sin(2 * np.pi * 440 * TIME))
    for samples in (np.where(TIME < 1, tone, 0), np.where(TIME > 7, tone, 0), np.zeros(len(tone)), tone):
        assert published_silence(sound(samples)).ratio == 0
        assert published_silence(sound(samples)).snr is None


def test_silence_between_sounds_is_measured_with_its_noise():
    """A quarter of noise at -60 dB between tones: frames of 2048 samples that reach a tone are none of it."""
    least = 0.25 - 2 * (1024 + 512) / len(TIME)
    noise = 0.5e-3 * np.random.default_rng(0).standard_normal(len(TIME))
    inside = (TIME >= 3) & (TIME < 5)
    found = published_silence(sound(np.where(inside, noise, 0.5 * np.sin(2 * np.pi * 440 * TIME))))
    assert least <= found.ratio <= 0.25
    assert found.snr == pytest.approx(10 * np.log10(0.75 * 0.125 / 0.25e-6), abs=0.1)
    # Without noise in it there is silence but no ratio.
    empty = published_silence(sound(np.where(inside, 0, 0.5 * np.sin(2 * np.pi * 440 * TIME))))
    assert least <= empty.ratio <= 0.25 and empty.snr is None


def test_bandwidth_is_the_spread_of_the_spectrum():
    white = 0.1 * np.random.default_rng(0).standard_normal(len(TIME))
    low = signal.sosfilt(signal.butter(10, 4000, fs=RATE, output="sos"), white)
    pair = 0.3 * np.sin(2 * np.pi * 100 * TIME) + 0.3 * np.sin(2 * np.pi * 20000 * TIME)
    for samples, expected in (
        (0.5 * np.sin(2 * np.pi * 440 * TIME), 36),
        (pair, 9948),
        (white, 6932),
        (low, 1311),
    ):
        assert published_bandwidth(sound(samples), RATE) == pytest.approx(expected, abs=0.6)
    assert published_bandwidth(np.zeros(RATE, np.float32), RATE) == 0


def test_no_sound_is_refused():
    for measure in (published_silence, lambda samples: published_bandwidth(samples, RATE)):
        with pytest.raises(MovaError, match="no sound"):
            measure(np.zeros(0, np.float32))


def test_an_infinite_ratio_is_a_missing_number_with_a_reason():
    class Clip:
        soundtrack = type("Track", (), {"rate": RATE})

        def channels(self):
            return sound([np.sin(2 * np.pi * 440 * TIME), np.zeros(len(TIME))])

    found = clip_scores.sound_quality_of_mova(Clip())
    assert found.values.keys() == {"silence_mova", "bandwidth_mova"} and "no silence between sounds" in found.reason
