"""Turns, medians and the interval of a ratio, on times that are known."""

import pytest

from mova_engine.bench.timing import LEAST, Timing, interleave, median_ratio


def test_turns_are_taken(backend):
    order = []
    runs = {name: (lambda n=name: order.append(n)) for name in "ab"}
    times = interleave(runs, backend, rounds=7)
    assert order == ["a", "b"] * 8  # one warm-up each
    assert {name: len(t) for name, t in times.items()} == {"a": 7, "b": 7}


def test_time_that_is_up_ends_it_but_not_below_the_least(backend):
    times = interleave({"a": lambda: None}, backend, rounds=100, seconds=0.0)
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
