"""Where clips begin in a stretch of film: as many as fit, whole words and single shots where that can be had.

Clips do not overlap, begin with a picture, and hold none that is missing. Each counts COVERS, ONE_SHOT more without a
cut, and PAUSE more for its start and for its end where nobody is in the middle of a word. The choice is the one that
counts most, found by dynamic programming; of equal ones that which begins earliest. A clip is therefore given up only
where that mends the cuts or the words of several others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mova_engine.curation.units import ClipKind

Interval = tuple[float, float]
Floats = NDArray[np.float64]
COVERS, ONE_SHOT, PAUSE = 4, 2, 1
# Seconds of speech that make a clip one with speech.
LEAST_SPEECH = 0.5
# Seconds by which the detector of speech widens what it found, where that is not yet in the middle of a word.
WIDENED = 0.03
# Stamps are rounded to milliseconds in some files.
_ROUNDED = 1e-3


@dataclass(frozen=True)
class Stretch:
    """What stands where. times: of the pictures, ascending. pieces: (first picture, one after the last, end in seconds)
    of the parts in which clips may lie. transitions: [start, end) of dissolves, equal for cuts. speech: [start, end).
    reach: half the time of a clip's picture; a picture that begins so much before a clip's end is not in it.
    """

    times: Floats
    pieces: Sequence[tuple[int, int, float]]
    transitions: Sequence[Interval]
    speech: Sequence[Interval]
    reach: float = 1 / 48

    def shows(self, transition: Interval, start: float, seconds: float) -> bool:
        """Whether a clip at `start` shows a transition: not if it begins with the picture after it."""
        return transition[1] > start + _ROUNDED and transition[0] < start + seconds - self.reach

    def cuts_within(self, starts: Floats, seconds: float) -> NDArray[np.intp]:
        """How many transitions clips of this length show that begin at `starts`, as `shows` has it."""
        begins, ends = (np.array([each[side] for each in self.transitions], float) for side in (0, 1))
        before = np.searchsorted(ends, starts + _ROUNDED, "right")
        return np.maximum(np.searchsorted(begins, starts + seconds - self.reach, "left") - before, 0)

    def speech_within(self, starts: Floats, seconds: float) -> Floats:
        """Seconds of speech in each."""
        edges = np.array([0.0, *(side for each in self.speech for side in each)])
        spoken = np.repeat(np.cumsum([0.0, *(end - start for start, end in self.speech)]), 2)[: len(edges)]
        return np.interp(starts + seconds, edges, spoken) - np.interp(starts, edges, spoken)

    def in_words(self, at: Floats) -> NDArray[np.bool_]:
        """Whether somebody is in the middle of a word at these times."""
        if not self.speech:
            return np.zeros(len(at), bool)
        begins, ends = (np.array([each[side] for each in self.speech]) for side in (0, 1))
        last = np.searchsorted(begins + WIDENED, at, "left") - 1
        return (last >= 0) & (at < ends[last] - WIDENED)


def kind_of(speech: float, cuts: int) -> ClipKind:
    """A clip's kind, of its seconds of speech and the number of its cuts."""
    if speech >= LEAST_SPEECH:
        return "speech-cuts" if cuts else "speech-shot"
    return "other-cuts" if cuts else "other-shot"


def packed(stretch: Stretch, seconds: float, kinds: Sequence[ClipKind]) -> list[int]:
    """The numbers of the pictures at which clips of this length and of these kinds begin."""
    found: list[int] = []
    for first, last, end in stretch.pieces:
        times = stretch.times[first:last]
        starts = times[times + seconds <= end + _ROUNDED]
        found += [first + i for i in _chosen(starts, _worth(stretch, starts, seconds, kinds), seconds)]
    return found


def _worth(stretch: Stretch, starts: Floats, seconds: float, kinds: Sequence[ClipKind]) -> NDArray[np.int64]:
    """What a clip at each start counts; 0 where it is of no kind that is wanted."""
    cuts, speech = stretch.cuts_within(starts, seconds), stretch.speech_within(starts, seconds)
    pauses = sum((~stretch.in_words(at)).astype(np.int64) for at in (starts, starts + seconds))
    worth = COVERS + ONE_SHOT * (cuts == 0) + PAUSE * pauses
    wanted = [kind_of(*each) in kinds for each in zip(speech.tolist(), cuts.tolist(), strict=True)]
    return np.where(wanted, worth, 0)


def _chosen(starts: Floats, worth: NDArray[np.int64], seconds: float) -> list[int]:
    following = np.searchsorted(starts, starts + seconds - _ROUNDED, "left").tolist()
    best = [0] * (len(starts) + 1)
    values = worth.tolist()
    for i in range(len(starts) - 1, -1, -1):
        best[i] = max(best[i + 1], values[i] + best[following[i]] if values[i] else 0)
    found, i = [], 0
    while i < len(starts):
        if values[i] and best[i] == values[i] + best[following[i]]:
            found.append(i)
            i = following[i]
        else:
            i += 1
    return found
