"""When somebody speaks: silero-vad's network (MIT), in the wheel `silero-vad`, and intervals from its probabilities.

The network hears 16 kHz mono in frames of 32 ms, each with the last 4 ms before it, and remembers what it heard. Of the
files in the wheel this is the one that takes many frames a call: as exact as the one for single frames, twice as fast.
Rules and defaults of the intervals are those of the package's `get_speech_timestamps`.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mova_engine.errors import MovaError
from mova_engine.scores.wheel_networks import WheelFile

Floats = NDArray[np.float32]
RATE = 16000
FRAME, CONTEXT = 512, 64
NETWORK = WheelFile(
    "silero_vad",
    "silero-vad==6.2.3",
    "Speech activity",
    ("data/silero_vad_16k_sequence.onnx",),
    "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
)
_STATE = (1, 1, 128)
# Frames given to the network at once: 16 s.
_BLOCK = 512


@dataclass(frozen=True)
class SpeechRules:
    """How probabilities become intervals.

    Speech begins at a probability of `threshold` and ends where it stays below `exit_threshold` for `shortest_pause`
    seconds. Intervals shorter than `shortest` seconds are dropped; the others grow by `padding` seconds on both sides,
    or by half the pause where that is less.
    """

    threshold: float = 0.5
    exit_threshold: float = 0.35
    shortest: float = 0.25
    shortest_pause: float = 0.1
    padding: float = 0.03

    def __post_init__(self) -> None:
        if not 0 < self.exit_threshold <= self.threshold < 1:
            raise MovaError(
                f"thresholds of speech must be 0 < exit <= enter < 1; got {self.exit_threshold} and {self.threshold}"
            )


DEFAULT = SpeechRules()


class SpeechDetector:
    """The network, opened. Raises MovaError where onnxruntime or the wheel is missing."""

    def __init__(self) -> None:
        self._session: Any = NETWORK.session()

    def probabilities(self, sound: Floats) -> Floats:
        """The probability [ceil(n / 512)] of speech in each frame of 32 ms of mono sound [n] at 16 kHz, in -1..1."""
        count = -(-len(sound) // FRAME)
        padded = np.pad(np.asarray(sound, np.float32), (CONTEXT, count * FRAME - len(sound)))
        frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME] if count else []
        hidden, cell = np.zeros(_STATE, np.float32), np.zeros(_STATE, np.float32)
        found = [np.zeros(0, np.float32)]
        for start in range(0, count, _BLOCK):
            block = np.ascontiguousarray(frames[start : start + _BLOCK])
            values, hidden, cell = self._session.run(
                ["speech_probs", "hn", "cn"], {"input": block, "h": hidden, "c": cell}
            )
            found.append(values.reshape(-1))
        return np.concatenate(found)

    def intervals(self, sound: Floats, rules: SpeechRules = DEFAULT) -> list[tuple[float, float]]:
        """Seconds [(start, end)] in which somebody speaks, in order, of mono sound [n] at 16 kHz."""
        return speech_intervals(self.probabilities(sound), len(sound), rules)


def speech_intervals(
    probabilities: NDArray[np.floating[Any]], samples: int, rules: SpeechRules = DEFAULT
) -> list[tuple[float, float]]:
    """Seconds [(start, end)] of speech, from the probability of each frame of a sound of so many samples at 16 kHz."""
    runs = [
        (start, end)
        for start, end in _runs(probabilities, samples, rules)
        if end - start > round(rules.shortest * RATE)
    ]
    edges = [[start, end] for start, end in runs]
    padding = round(rules.padding * RATE)
    for i, (start, end) in enumerate(runs):
        before = start - runs[i - 1][1] if i else 2 * start
        after = runs[i + 1][0] - end if i + 1 < len(runs) else 2 * (samples - end)
        edges[i] = [start - min(padding, before // 2), end + min(padding, after // 2)]
    return [(start / RATE, end / RATE) for start, end in edges]


def _runs(probabilities: NDArray[np.floating[Any]], samples: int, rules: SpeechRules) -> list[tuple[int, int]]:
    """Samples [(start, end)] of speech before padding: hysteresis between the two thresholds."""
    runs: list[tuple[int, int]] = []
    start = pause = None
    for i, probability in enumerate(probabilities):
        at = i * FRAME
        if probability >= rules.threshold:
            pause = None
            start = at if start is None else start
        elif probability < rules.exit_threshold and start is not None:
            pause = at if pause is None else pause
            if at - pause >= round(rules.shortest_pause * RATE):
                runs.append((start, pause))
                start = pause = None
    if start is not None:
        runs.append((start, samples))
    return runs


def longest_pause(intervals: list[tuple[float, float]]) -> float:
    """Seconds of the longest pause between two intervals; 0 where there is none."""
    return max((later[0] - earlier[1] for earlier, later in itertools.pairwise(intervals)), default=0.0)
