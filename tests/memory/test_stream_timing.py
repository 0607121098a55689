"""When copies run and what waits for them, on a device whose clock the test moves: copies and layers take set times."""

import pytest
import torch
from torch import nn

from mova_engine.memory import streaming
from mova_engine.memory.streaming import WeightStream
from mova_engine.memory.weight_sources import LayerUnit

# Bytes of a layer of size 1, which takes a second to copy.
UNIT = 1024
# Sizes of the layers of a forward: three quarters have a bridge.
LAYERS = [9, 9, 9, 6] * 4


class Event:
    """A moment of a clocked stream."""

    def __init__(self, at: float) -> None:
        self.at = at

    def synchronize(self) -> None:
        pass


class Stream:
    """What a device does in turn: `now` is when it has done all that it was given."""

    def __init__(self) -> None:
        self.now = 0.0

    def record_event(self) -> Event:
        return Event(self.now)

    def wait_event(self, event: Event) -> None:
        self.now = max(self.now, event.at)

    def synchronize(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Source:
    """Fills a unit's buffer with its number. A copy takes as many seconds as the unit's size."""

    def __init__(self, copying: Stream, sizes: list[int]) -> None:
        self.copying, self.sizes = copying, sizes

    def read(self, unit: int, buffer: torch.Tensor) -> None:
        buffer.fill_(unit % 251)
        self.copying.now += self.sizes[unit]

    def close(self) -> None:
        pass


def run(monkeypatch, order, sizes, seconds_per_copy, slots=2):
    """(time that layers waited, time that they computed, time of all copies, report) of layers that compute for
    `seconds_per_copy` times as long as their copies take.
    """
    units = []
    for size in sizes:
        module = nn.Module()
        module.register_buffer("weight", torch.empty(size * UNIT, dtype=torch.uint8, device="meta"))
        units.append(LayerUnit.of({"layer": module}))
    computing, copying = Stream(), Stream()
    stream = WeightStream(units, Source(copying, sizes), "cpu", slots)
    stream._apart, stream._stream = True, copying
    monkeypatch.setattr(streaming.torch.accelerator, "current_stream", lambda device=None: computing)
    computed = 0.0
    stream.plan(order)
    for unit in order:
        stream.enter(unit)
        (place,) = units[unit].places
        assert place.holder[place.key].eq(unit % 251).all(), f"layer {unit} has another one's weights"
        computing.now += sizes[unit] * seconds_per_copy
        computed += sizes[unit] * seconds_per_copy
    stream.leave()
    report = stream.report()
    stream.close()
    return computing.now - computed, computed, report


def order_of(count):
    """Forwards through two experts and a step with a backward through the second."""
    first, second = range(count), range(count, 2 * count)
    return [*first, *first, *second, *second, *second[::-1]]


@pytest.mark.parametrize("slots", [2, 3])
def test_copies_hide_behind_layers_that_compute_for_longer(monkeypatch, slots):
    sizes = LAYERS * 2
    order = order_of(len(LAYERS)) * 3
    # The largest layer's copy against the smallest layer's work: 9 s beside 9.6.
    stalled, computed, report = run(monkeypatch, order, sizes, 1.6, slots)
    # Nothing can hide the first copy of all. At the change of experts, nothing is waited for.
    assert stalled == sizes[0] and stalled < 0.02 * computed
    # Where the order turns back, what the ring holds is there already.
    kept = sum(sizes[unit] for unit in order[len(order) // 3 - len(LAYERS) :][:slots])
    assert report.unforeseen == 0 and report.copies == len(order) - 3 * slots
    assert report.bytes == (sum(sizes[unit] for unit in order) - 3 * kept) * UNIT


@pytest.mark.parametrize("slots", [2, 3])
def test_where_copies_take_longer_nothing_but_copies_is_waited_for(monkeypatch, slots):
    sizes = LAYERS * 2
    order = list(range(len(sizes))) * 2
    stalled, computed, report = run(monkeypatch, order, sizes, 0.5, slots)
    copies = sum(sizes) * 2
    assert report.copies == len(order) and report.bytes == sum(sizes) * 2 * UNIT
    # The bus works all the time: the last layer's work comes after the last copy.
    assert stalled + computed == copies + sizes[-1] * 0.5
