"""Which process stands out, by the seconds of each phase."""

import time

import pytest

from mova_engine.backend import get_backend
from mova_engine.distributed.phase_clock import EXCHANGE, PhaseClock
from mova_engine.train.straggler import Straggler, find_straggler


def times(*forward: float, data: float = 0.01) -> list[dict[str, float]]:
    return [{"data": data, "forward_backward": x, "optimizer": 0.1, EXCHANGE: 2 - x} for x in forward]


def test_a_process_that_stands_out_is_named():
    found = find_straggler(times(1.0, 1.1, 1.0, 1.4))
    assert found == Straggler(3, "forward_backward", pytest.approx(1.4))
    assert (
        found.words(7, ["a", "b", "c", "d"])
        == "straggler: rank 3 (d) is 1.4 x the median in forward and backward (step 7)"
    )
    assert find_straggler(times(1.0, 1.5)).rank == 1


def test_nobody_stands_out_by_little_or_in_what_takes_no_time():
    assert find_straggler(times(1.0, 1.1, 1.0, 1.15)) is None
    slow = times(1.0, 1.0, 1.0)
    slow[1]["data"] = 0.09
    assert find_straggler(slow) is None
    slow[1]["data"] = 0.5
    assert find_straggler(slow) == Straggler(1, "data", pytest.approx(50))


def test_exchanges_are_taken_out_of_the_phase_in_which_they_are(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    clock = PhaseClock(get_backend("cpu"))
    with clock.exchange():
        assert clock.seconds() is None
    clock.begin()
    clock.phase("data")  # 0
    clock.phase("forward_backward")  # 1
    with clock.exchange():  # 2 to 3
        pass
    clock.phase("data")  # 4
    clock.phase("optimizer")  # 5
    with clock.exchange():  # 6 to 7
        pass
    assert clock.seconds() is None
    clock.end()  # 8
    assert clock.seconds() == {EXCHANGE: 2.0, "data": 2.0, "forward_backward": 2.0, "optimizer": 2.0}
