"""When somebody speaks: the rules of the intervals by hand, and the real network on speech, tones and noise."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mova_engine.errors import MovaError
from mova_engine.scores.decoded_clip import DecodedClip
from mova_engine.scores.speech_activity import (
    CONTEXT,
    FRAME,
    RATE,
    SpeechDetector,
    SpeechRules,
    longest_pause,
    speech_intervals,
)
from mova_engine.scores.speech_scores import speech_activity

TALKING = Path(__file__).parents[1] / "data" / "media" / "talking_real_speech.mp4"
absent = [name for name in ("onnxruntime", "silero_vad") if importlib.util.find_spec(name) is None]
needs_network = pytest.mark.skipif(bool(absent), reason=f"{' and '.join(absent)} not installed; `make setup-dev`")
BARE = SpeechRules(padding=0)


def frames(*runs):
    """Probabilities: (value, frames) one after the other."""
    return np.concatenate([np.full(count, value, np.float32) for value, count in runs])


def in_frames(intervals):
    return [(start * RATE / FRAME, end * RATE / FRAME) for start, end in intervals]


def test_speech_ends_where_the_probability_stays_below_the_lower_threshold():
    found = speech_intervals(frames((0.1, 4), (0.6, 10), (0.4, 10), (0.6, 5), (0.3, 20)), 49 * FRAME, BARE)
    assert in_frames(found) == [(4, 29)]


def test_short_pauses_are_speech_and_short_speech_is_none():
    # 0.1 s are 1600 samples: a pause of 4 frames is still one sound, for its end is looked at when 3 have passed.
    found = speech_intervals(frames((0.9, 10), (0.1, 4), (0.9, 10), (0.1, 5), (0.9, 7), (0.1, 9)), 45 * FRAME, BARE)
    assert in_frames(found) == [(0, 24)]
    # Of 0.25 s, 4000 samples, a sound must have more: 8 frames have.
    found = speech_intervals(frames((0.1, 5), (0.9, 8), (0.1, 9)), 22 * FRAME, BARE)
    assert in_frames(found) == [(5, 13)]


def test_speech_to_the_end_ends_with_the_sound():
    assert speech_intervals(frames((0.9, 20)), 20 * FRAME - 100, BARE) == [(0.0, (20 * FRAME - 100) / RATE)]
    assert speech_intervals(frames((0.1, 20)), 20 * FRAME) == []


def test_padding_shares_what_lies_between():
    rules = SpeechRules(padding=0.2, shortest_pause=0.1)
    found = speech_intervals(frames((0.1, 2), (0.9, 10), (0.1, 6), (0.9, 10), (0.1, 20)), 48 * FRAME, rules)
    (a, b), (c, d) = found
    assert (a, d) == (0.0, pytest.approx((28 * FRAME) / RATE + 0.2))
    assert b == c == 15 * FRAME / RATE
    assert longest_pause(found) == 0 and longest_pause([(0, 1), (1.5, 2), (4, 5)]) == 2


def test_thresholds_that_contradict_are_refused():
    with pytest.raises(MovaError, match="exit <= enter"):
        SpeechRules(threshold=0.3)


class Mean:
    """In the network's place: the mean of a frame, added to what was heard before."""

    def run(self, names, inputs):
        values = inputs["input"].mean(1) + np.arange(1, len(inputs["input"]) + 1) + inputs["h"].ravel()[0]
        return values, np.full((1, 1, 128), values[-1], np.float32), inputs["c"]


def test_frames_have_the_samples_before_them_and_blocks_hand_the_state_on():
    detector = SpeechDetector.__new__(SpeechDetector)
    detector._session = Mean()
    sound = np.random.default_rng(0).standard_normal(1100 * FRAME - 7).astype(np.float32)
    found = detector.probabilities(sound)
    padded = np.pad(sound, (CONTEXT, 7))
    means = [padded[i * FRAME : i * FRAME + CONTEXT + FRAME].mean() for i in range(1100)]
    carried = [0.0, *(found[i] for i in (511, 1023))]
    expected = [means[i] + 1 + i % 512 + carried[i // 512] for i in range(1100)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert len(detector.probabilities(np.zeros(0, np.float32))) == 0


@needs_network
def test_the_real_network_hears_speech_and_nothing_else():
    found = speech_activity(DecodedClip.read(TALKING))
    ((start, end),) = found.evidence
    assert (start, end) == (pytest.approx(0.706, abs=0.05), pytest.approx(7.42, abs=0.05))
    assert found.values["speech_seconds"] == pytest.approx(end - start)
    time = np.arange(4 * RATE) / RATE
    for sound in (
        0.1 * np.random.default_rng(0).standard_normal(len(time)),
        0.5 * np.sin(2 * np.pi * 440 * time),
        sum(0.2 * np.sin(2 * np.pi * pitch * time) for pitch in (220, 277, 330)),
        np.zeros(len(time)),
    ):
        assert SpeechDetector().intervals(sound.astype(np.float32)) == []
