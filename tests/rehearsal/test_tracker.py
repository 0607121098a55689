"""The tracker and the log of collectives: what they count, without data and with it, and what is refused."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mova_engine.bench.peak_memory import LiveTensors
from mova_engine.errors import MovaError
from mova_engine.rehearsal.collective_log import check_fit
from mova_engine.rehearsal.memory_tracker import ACTIVATIONS, PARAMETERS, WORKING, MemoryTracker


def _step(tracker):
    with tracker:
        weight = torch.zeros(64, 64, requires_grad=True)
        tracker.label([weight], PARAMETERS)
        x = torch.zeros(100, 64)
        (x @ weight).tanh().square().sum().backward()
    return tracker.peak()


def test_a_storage_counts_once_from_its_operation_to_its_release():
    tracker = MemoryTracker("cpu")
    with tracker:
        x = torch.zeros(1000)
        x.view(10, 100).add_(1)
        y = x + 1
        del x
        assert sum(tracker.now().values()) == y.untyped_storage().nbytes() == 4000
    assert tracker.peak().bytes == 8000


def test_what_a_forward_leaves_to_its_backward_is_told_apart():
    peak = _step(MemoryTracker("cpu"))
    assert peak.parts[PARAMETERS] == 64 * 64 * 4
    # x, tanh's output for its own gradient and for the square's, and the backward's own.
    assert peak.parts[ACTIVATIONS] >= 2 * 100 * 64 * 4 and peak.parts[WORKING] > 0
    assert sum(peak.parts.values()) == peak.bytes


def test_without_data_the_same_is_counted():
    with FakeTensorMode():
        fake = _step(MemoryTracker("cpu"))
    assert fake.parts == _step(MemoryTracker("cpu")).parts


def test_it_counts_what_the_yardstick_of_real_runs_counts():
    live = LiveTensors()
    with live:
        peak = _step(MemoryTracker("cpu"))
    assert peak.bytes == live.peak()


def test_memory_taken_back_and_given_again_counts():
    tracker = MemoryTracker("cpu")
    with tracker:
        x = torch.zeros(1000)
        x.untyped_storage().resize_(0)
        assert sum(tracker.now().values()) == 0
        x.untyped_storage().resize_(4000)
        assert sum(tracker.now().values()) == 4000


def test_devices_are_told_apart():
    tracker = MemoryTracker("cpu")
    with tracker:
        torch.zeros(1000, device="meta")
    assert tracker.peak().bytes == 0


def test_a_collective_must_fit_its_group():
    x = torch.zeros(16)
    check_fit("all_to_all", "ulysses", 4, [x, x], [4] * 4, [4] * 4)
    check_fit("all_gather", "world", 4, [x, torch.zeros(4)])
    with pytest.raises(MovaError, match="receives 4 pieces: it is meant for another group"):
        check_fit("all_to_all", "ring", 2, [x, x], [4] * 4, [4] * 4)
    with pytest.raises(MovaError, match="sends pieces of 15 elements in a tensor of 16"):
        check_fit("all_to_all", "ulysses", 4, [x, x], [4] * 4, [4, 4, 4, 3])
    with pytest.raises(MovaError, match="16 elements for 8 of each rank"):
        check_fit("all_gather", "world", 4, [x, torch.zeros(8)])
    with pytest.raises(MovaError, match="different devices or dtypes"):
        check_fit("reduce_scatter", "world", 4, [torch.zeros(4), x.bfloat16()])
