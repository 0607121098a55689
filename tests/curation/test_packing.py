"""Where clips begin: what dynamic programming chooses is what trying everything finds."""

import numpy as np
import pytest

from mova_engine.curation.packing import COVERS, ONE_SHOT, PAUSE, Stretch, kind_of, packed
from mova_engine.curation.units import KINDS

SECONDS = 193 / 24


def stretch(seconds, transitions=(), speech=(), rate=24, pieces=None):
    times = np.arange(round(seconds * rate)) / rate
    return Stretch(times, pieces or [(0, len(times), seconds)], transitions, speech)


def starts(film, seconds=SECONDS, kinds=KINDS):
    return [float(film.times[i]) for i in packed(film, seconds, kinds)]


def test_clips_follow_each_other_without_a_picture_between():
    assert starts(stretch(30)) == pytest.approx([0, 193 / 24, 386 / 24])
    assert starts(stretch(193 / 24)) == [0]
    assert starts(stretch(192 / 24)) == []


def test_shots_are_kept_whole_where_that_costs_no_clip():
    assert starts(stretch(26, [(9.0, 9.0)])) == pytest.approx([0, 9, 9 + SECONDS])
    # Two clips fit with a cut in one of them, one without: both are taken.
    assert starts(stretch(17, [(4.0, 4.0)]))[0] in (0.0, 4.0) and len(starts(stretch(17, [(4.0, 4.0)]))) == 2


def test_a_clip_begins_with_its_shot_and_ends_before_the_next():
    film = stretch(30, [(2.0, 2.0), (2 + SECONDS, 2 + SECONDS)])
    begin, *_ = starts(film, kinds=("other-shot",))
    assert begin == 2.0 and film.cuts_within(np.array([2.0, 1.95, 2.05]), SECONDS).tolist() == [0, 1, 1]


def test_dissolves_are_cuts_as_long_as_they_last():
    film = stretch(30, [(8.0, 9.0)])
    assert film.cuts_within(np.array([0.0, 8.5, 9.0, 9.5]), 8.0).tolist() == [0, 1, 0, 0]


def test_words_are_not_cut_where_there_is_room():
    speech = [(0.5, 4.0), (4.5, 8.3), (8.9, 12.0), (12.5, 16.8)]
    film = stretch(18, speech=speech)
    found = starts(film)
    assert len(found) == 2
    for start in found:
        for edge in (start, start + SECONDS):
            assert not any(first + 0.03 < edge < last - 0.03 for first, last in speech)


def test_missing_pictures_are_in_no_clip():
    times = np.concatenate([np.arange(0, 240) / 24, 12 + np.arange(0, 240) / 24])
    film = Stretch(times, [(0, 240, 10.0), (250, 480, 22.0)], [], [])
    assert starts(film) == [0, float(times[250])]


def test_kinds_that_are_not_wanted_are_not_cut():
    film = stretch(40, [(20.0, 20.0)], [(0.0, 6.0)])
    assert starts(film, kinds=("speech-shot",)) == [0]
    assert all(start >= 20 for start in starts(film, kinds=("other-shot",))[1:])
    assert [kind_of(*each) for each in ((1, 0), (1, 2), (0.4, 0), (0, 1))] == list(KINDS)


@pytest.mark.parametrize("seed", range(6))
def test_no_other_choice_counts_more(seed):
    drawn = np.random.default_rng(seed)
    cuts = [(float(each), float(each)) for each in np.sort(drawn.integers(0, 40, 3)) / 4]
    edges = np.sort(drawn.choice(np.arange(1, 40), 6, replace=False)) / 4
    film = stretch(10, cuts, [(a, b) for a, b in edges.reshape(-1, 2).tolist()], rate=4)

    def worth(start):
        at = np.array([start, start + 2.0])
        whole = film.cuts_within(at[:1], 2.0)[0] == 0
        return COVERS + ONE_SHOT * whole + PAUSE * int((~film.in_words(at)).sum())

    possible = [float(start) for start in film.times if start + 2 <= 10]
    best = {}

    def most(after):
        if after not in best:
            best[after] = max([worth(each) + most(each + 2) for each in possible if each >= after], default=0)
        return best[after]

    assert sum(worth(each) for each in starts(film, 2.0)) == most(0.0)
