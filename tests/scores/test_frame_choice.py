"""Frames and samples that reach a score, against what ffmpeg takes."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest

from mova_engine.errors import MovaError
from mova_engine.scores.features.converted_sound import averaged_stereo_32k, convert_sound
from mova_engine.scores.features.frame_choice import constant_rate, fps_filter, padded

# The first frames that ffmpeg 5.1.9 wrote with `-r 25` to AVI, and their number.
WRITTEN = [
    ("30", 241, 202, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 17]),
    ("60", 300, 126, [0, 1, 3, 5, 8, 10, 12, 15, 17, 20, 22, 24, 27, 29, 32, 34]),
    ("50", 300, 151, [0, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28]),
    ("15", 100, 166, [0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8, 9, 9]),
    ("12", 100, 207, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7]),
    ("8", 30, 93, [0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5]),
    ("14", 60, 106, [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9]),
]


@pytest.mark.parametrize(("fps", "frames", "count", "first"), WRITTEN)
def test_frames_at_a_constant_rate_are_those_that_ffmpeg_writes(fps, frames, count, first):
    rate = Fraction(fps)
    found = constant_rate([i / rate for i in range(frames)], Fraction(25), 1 / rate)
    assert (len(found), found[: len(first)]) == (count, first)


@pytest.mark.parametrize("rate", ["24", "24000/1001", "30", "50", "7"])
@pytest.mark.parametrize("target", ["25", "1/2", "8", "60"])
def test_the_fps_filter_s_frames_are_those_of_the_filter_itself(rate, target):
    """Each frame carries its number in its grey level."""
    rate, target = Fraction(rate), Fraction(target)
    graph = av.filter.Graph()
    base = 1 / (rate * 1000)
    head = graph.add_buffer(width=16, height=16, format="gray", time_base=base)
    filters = [head, graph.add("fps", f"{target}:round=near"), graph.add("buffersink")]
    for left, right in itertools.pairwise(filters):
        left.link_to(right)
    graph.configure()
    found = []
    for i in range(100):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16), i, np.uint8), format="gray")
        frame.pts, frame.time_base, frame.duration = 1000 * i, base, 0
        graph.push(frame)
    graph.push(None)
    while True:
        try:
            found.append(int(graph.pull().to_ndarray()[0, 0]))
        except (av.BlockingIOError, av.EOFError):
            break
    assert fps_filter([i / rate for i in range(100)], target) == found


def test_a_short_clip_s_last_frame_is_repeated():
    assert padded([3, 5], 4) == [3, 5, 5, 5]
    assert padded([3, 5, 7], 2) == [3, 5]


def test_a_mono_source_is_spread_over_stereo_at_equal_power():
    sound = (8000 * np.sin(np.arange(48000) / 20)).astype(np.int16)
    through_stereo = averaged_stereo_32k(sound, 48000)
    plain = convert_sound(sound, 48000, 32000).astype(np.float32) / 32768
    assert np.sqrt(np.square(through_stereo).mean() / np.square(plain).mean()) == pytest.approx(0.5**0.5, abs=1e-3)


def test_sound_of_another_type_is_refused():
    with pytest.raises(MovaError, match="int16 or float32, got float64"):
        convert_sound(np.zeros(10), 48000, 16000)
