"""Turns, medians and the interval of a ratio, on times that are known."""

import time
from functools import partial

import pytest

from mova_engine.bench.timing import LEAST, Timing, interleave, median_ratio, stopwatch


def test_turns_are_taken():
    order = []

    def turn(name):
        order.append(name)
        return float(len(order))

    times = interleave({name: partial(turn, name) for name in "ab"}, rounds=7)
    assert order == ["a", "b"] * 8
    # The first of each was a warm-up.
    assert times == {"a": [3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0], "b": [4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]}


def test_a_stopwatch_tells_the_seconds_of_a_run(backend):
    assert 0.05 <= stopwatch(partial(time.sleep, 0.05), backend)() < 5


def test_time_that_is_up_ends_it_but_not_below_the_least():
    times = interleave({"a": lambda: 1.0}, rounds=100, seconds=0.0)
    assert len(times["a"]) == LEAST


def test_the_interval_of_a_constant_ratio_is_a_point():
    ratio = median_ratio([2.0, 4.0, 6.0] * 10, [1.0, 2.0, 3.0] * 10)
    assert (ratio.value, ratio.low, ratio.high, ratio.pairs) == (2.0, 2.0, 2.0, 30)


def test_pairs_hide_what_both_sides_suffer():
    """A machine that slows down to a third during the run: each pair still has the ratio 1.5."""
    pace = [1 + i / 10 for i in range(20)]
    ratio = median_ratio([1.5 * p for p in pace], pace)
    assert ratio.low == pytest.approx(1.5)
    assert ratio.high == pytest.approx(1.5)


@pytest.mark.long
def test_the_interval_covers_the_median_about_as_often_as_it_says():
    import random

    draw = random.Random(0)
    covered = 0
    for _ in range(100):
        times = [draw.lognormvariate(0.0, 0.3) * 1.3 for _ in range(30)]
        ratio = median_ratio(times, [1.0] * 30)
        covered += ratio.low <= 1.3 <= ratio.high
    assert 85 <= covered <= 100


def test_wider_spread_wider_interval():
    narrow, wide = ([1.0 + s * (i % 7 - 3) for i in range(30)] for s in (0.01, 0.1))
    narrow, wide = median_ratio(narrow, [1.0] * 30), median_ratio(wide, [1.0] * 30)
    assert narrow.high - narrow.low < wide.high - wide.low
    assert median_ratio([1.0, 2.0, 4.0], [1.0] * 3) == median_ratio([1.0, 2.0, 4.0], [1.0] * 3)


def test_a_timing_is_its_median_and_extremes():
    assert Timing.of([3.0, 1.0, 2.0]) == Timing(2.0, 1.0, 3.0, 3)
