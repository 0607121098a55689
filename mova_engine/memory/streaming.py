"""Layers whose weights come to the device when they are wanted, and are overwritten by the next ones.

The device holds a ring of a few slots, each with room for the largest layer. While a layer computes, the next ones of a
known order are copied into the other slots, by a thread of its own and on a stream of its own; weights go to the device
only, never back. A model of any size runs in the memory of the slots, at the resident speed where a layer computes for
longer than its copy takes. (The scheme is that of block swapping in musubi-tuner and of LTX-2's block streaming.)

Entering a layer ends the use of the one before it. That holds in the backward too: with checkpointing, the weights of a
layer are entered when it is recomputed, autograd runs nodes in the reverse order of their making, and a layer before it
is recomputed only after its last node.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mova_engine.config.stages import STREAM_SLOTS
from mova_engine.errors import MovaError
from mova_engine.memory.weight_sources import LayerUnit, WeightSource, without_data
from mova_engine.models.layers import ResidualStream
from mova_engine.models.mova import DIRECT, DualTowerLayers, LayerRunner, Mova


@dataclass(eq=False)
class _Slot:
    """A part of the device's memory that holds one unit's weights.

    unit: which; None: none. filled: the thread's work on it. ready: when its copy has ended, released: when what
    computes with it has, on the device.
    """

    buffer: Tensor
    unit: int | None = None
    filled: Future | None = None
    ready: torch.Event | None = None
    released: torch.Event | None = None


@dataclass(frozen=True)
class StreamReport:
    """What a stream did so far. copies: units copied to the device; bytes: of them; waits: units that were not there
    when they were entered, of which `unforeseen` were not in the plan; ring_bytes: memory of the slots.
    """

    copies: int
    bytes: int
    waits: int
    unforeseen: int
    ring_bytes: int


class WeightStream:
    """Brings units of weights to the device in turn. One thread uses a stream.

    units: what the layers need. source: where their weights wait. slots: how many the device holds at once.
    poison: fill slots with NaN before they are used again; for tests.
    """

    def __init__(
        self,
        units: Sequence[LayerUnit],
        source: WeightSource,
        device: torch.device | str,
        slots: int = STREAM_SLOTS,
        poison: bool = False,
    ) -> None:
        if slots < 2:
            raise MovaError(
                f"a ring needs at least 2 slots, one of which is filled while the other computes, got {slots}"
            )
        self.units, self.source, self.device, self._poison = tuple(units), source, torch.device(device), poison
        self._count = slots
        self._slots: list[_Slot] = []
        self._apart = self.device.type != "cpu"
        self._stream = torch.Stream(self.device) if self._apart else None
        self._worker = ThreadPoolExecutor(1, "weights")
        self._views: dict[tuple[int, int], list[Tensor]] = {}
        self._absent: dict[int, list[Tensor]] = {}
        self._plan: deque[int] = deque()
        self._entered: _Slot | None = None
        self._copies = self._bytes = self._waits = self._unforeseen = 0

    def open(self) -> None:
        """Take the slots' memory, where they have none; `plan` and `enter` do so too."""
        if not self._slots:
            size = max(unit.bytes for unit in self.units)
            self._slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=self.device)) for _ in range(self._count)]
            if self._apart:
                # Whoever had this memory before may still compute with it.
                for slot in self._slots:
                    slot.released = torch.accelerator.current_stream(self.device).record_event()

    def free(self) -> None:
        """Leave, and give the slots' memory back until the stream is used again."""
        self.leave()
        self._plan.clear()
        for slot in self._slots:
            if slot.filled is not None:
                slot.filled.exception()
        if self._stream is not None:
            self._stream.synchronize()
        self._slots.clear()
        self._views.clear()

    def plan(self, order: Iterable[int]) -> None:
        """Say in which order units will be entered next; the first of them begin to come at once."""
        self._plan = deque(order)
        self._fetch_ahead()

    @property
    def planned(self) -> bool:
        """Whether units are still named that were not entered."""
        return bool(self._plan)

    def enter(self, unit: int) -> None:
        """Put a unit's weights into its modules. Those of the unit entered before leave theirs.

        A unit that the plan does not name next is brought at once, and the plan is dropped up to it, or as a whole.
        Errors of the source are raised here.
        """
        if self._entered is not None and self._entered.unit == unit:
            self._follow(unit)
            return
        self.open()
        self.leave()
        if not self._follow(unit):
            self._unforeseen += 1
        slot = next((slot for slot in self._slots if slot.unit == unit), None)
        if slot is None:
            slot = self._fetch(unit, keep=())
        if slot.filled is not None:
            self._waits += not slot.filled.done()
            filled, slot.filled = slot.filled, None
            try:
                filled.result()
            except BaseException:
                slot.unit = None
                raise
        if slot.ready is not None:
            torch.accelerator.current_stream(self.device).wait_event(slot.ready)
        self._entered = slot
        for place, tensor in zip(self.units[unit].places, self._tensors(slot, unit), strict=True):
            place.holder[place.key] = tensor
        self._fetch_ahead()

    def leave(self) -> None:
        """Take the weights of the unit entered last out of its modules."""
        slot, self._entered = self._entered, None
        if slot is None or slot.unit is None:
            return
        if self._apart:
            slot.released = torch.accelerator.current_stream(self.device).record_event()
        places = self.units[slot.unit].places
        if slot.unit not in self._absent:
            self._absent[slot.unit] = [without_data(tensor) for tensor in self._tensors(slot, slot.unit)]
        for place, tensor in zip(places, self._absent[slot.unit], strict=True):
            place.holder[place.key] = tensor

    def close(self) -> None:
        """Free the slots for good, end the thread, close the source; the units have no weights then."""
        self.free()
        self._worker.shutdown(wait=True)
        self.source.close()

    def report(self) -> StreamReport:
        ring = self._count * max(unit.bytes for unit in self.units)
        return StreamReport(self._copies, self._bytes, self._waits, self._unforeseen, ring)

    def _follow(self, unit: int) -> bool:
        """Whether the plan names the unit; it is dropped up to there."""
        if unit not in self._plan:
            self._plan.clear()
            return False
        while self._plan.popleft() != unit:
            pass
        return True

    def _fetch_ahead(self) -> None:
        """Fill the slots that are free with the units that come next and are not there."""
        self.open()
        current = self._entered.unit if self._entered is not None else None
        wanted: list[int] = []
        for unit in self._plan:
            if unit != current and unit not in wanted:
                wanted.append(unit)
            if len(wanted) == len(self._slots) - (current is not None):
                break
        here = {slot.unit for slot in self._slots}
        for unit in wanted:
            if unit not in here:
                self._fetch(unit, keep=(current, *wanted))

    def _fetch(self, unit: int, keep: Iterable[int | None]) -> _Slot:
        """Begin to fill a slot whose unit is none of `keep`."""
        kept = {each for each in keep if each is not None}
        slot = next(slot for slot in self._slots if slot.unit not in kept and slot is not self._entered)
        if slot.filled is not None:
            # A copy that nobody came for.
            slot.filled.exception()
        slot.unit, slot.ready = unit, None
        slot.filled = self._worker.submit(self._fill, slot, unit)
        self._copies += 1
        self._bytes += self.units[unit].bytes
        return slot

    def _fill(self, slot: _Slot, unit: int) -> None:
        buffer = slot.buffer[: self.units[unit].bytes]
        with torch.no_grad(), nullcontext() if self._stream is None else self._stream:
            if self._stream is not None and slot.released is not None:
                self._stream.wait_event(slot.released)
            if self._poison:
                slot.buffer.fill_(0xFF)  # NaN in every floating-point format
            self.source.read(unit, buffer)
            if self._stream is not None:
                slot.ready = self._stream.record_event()

    def _tensors(self, slot: _Slot, unit: int) -> list[Tensor]:
        """The unit's tensors in the slot, the same objects each time."""
        key = (self._slots.index(slot), unit)
        if key not in self._views:
            views = []
            for place in self.units[unit].places:
                view = place.of(slot.buffer)
                is_parameter = isinstance(place.holder[place.key], nn.Parameter)
                views.append(nn.Parameter(view, requires_grad=False) if is_parameter else view)
            self._views[key] = views
        return self._views[key]


def model_layers(mova: Mova) -> list[dict[str, nn.Module]]:
    """The modules of each layer of each expert, by their names in the model: expert 0's layers, then expert 1's."""
    names = ["video_dit"] if mova.video_dit_2 is None else ["video_dit", "video_dit_2"]
    found = []
    for name in names:
        for layer in range(layer_count(mova)):
            modules: dict[str, nn.Module] = {}
            for tower, blocks in ((name, getattr(mova, name).blocks), ("audio_dit", mova.audio_dit.blocks)):
                if layer < len(blocks):
                    modules[f"{tower}.blocks.{layer}"] = blocks[layer]
            bridge = mova.dual_tower_bridge
            if layer in bridge.config.layers:
                for side in ("audio_to_video_conditioners", "video_to_audio_conditioners"):
                    modules[f"dual_tower_bridge.{side}.{layer}"] = getattr(bridge, side)[str(layer)]
            found.append(modules)
    return found


def layer_count(mova: Mova) -> int:
    """Layers of one forward."""
    return max(len(mova.video_dit.blocks), len(mova.audio_dit.blocks))


class StreamedModel:
    """The layers of a model, brought by a stream: the model's `streamed`."""

    def __init__(
        self,
        mova: Mova,
        make_source: Callable[[Sequence[LayerUnit]], WeightSource],
        device: torch.device,
        slots: int = STREAM_SLOTS,
        poison: bool = False,
    ) -> None:
        """make_source: from the units to where their weights wait. The rest: see `WeightStream`."""
        self.layers, self.experts = layer_count(mova), 1 if mova.video_dit_2 is None else 2
        units = [LayerUnit.of(modules) for modules in model_layers(mova)]
        self.stream = WeightStream(units, make_source(units), device, slots, poison)
        mova.streamed = self

    def plan(self, evaluations: Iterable[tuple[int, int]]) -> None:
        """Say what the next forwards, none of which has a backward, go through: (expert, number of forwards that enter
        each of its layers side by side).
        """
        self.stream.plan(unit for expert, n in evaluations for unit in self.units(expert) for _ in range(n))

    def enter(self, expert: int, layer: int) -> None:
        """Bring the weights of a layer of a forward through an expert."""
        self.stream.enter(self.units(expert)[layer])

    def free(self) -> None:
        """Give back the memory of the slots until the next forward."""
        self.stream.free()

    def units(self, expert: int, backward: bool = False) -> range:
        """Numbers of the units of one forward through an expert, in order; of its backward, in that order."""
        first = self.layers * min(expert, self.experts - 1)
        numbers = range(first, first + self.layers)
        return numbers[::-1] if backward else numbers

    def runner(self, expert: int, inner: LayerRunner = DIRECT, together: int = 1) -> LayerRunner:
        """Runs the layers of one forward through an expert, or of `together` forwards side by side. inner: how they are
        run once their weights are there; with checkpointing also when they are recomputed. Where nothing is planned,
        these forwards and their backwards are.
        """
        if not self.stream.planned:
            backward = self.units(expert, backward=True) if torch.is_grad_enabled() else ()
            order = (*self.units(expert), *backward)
            self.stream.plan(unit for unit in order for _ in range(together))
        return _StreamedLayers(self.stream, self.units(expert), inner)


class _StreamedLayers:
    """A LayerRunner that enters each layer before it is run, or run again."""

    def __init__(self, stream: WeightStream, units: range, inner: LayerRunner) -> None:
        self._stream, self._units, self._inner = stream, units, inner

    def run(
        self, layers: DualTowerLayers, layer: int, video: ResidualStream, audio: ResidualStream
    ) -> tuple[ResidualStream, ResidualStream]:
        if self._inner is not DIRECT:
            return self._inner.run(_Entering(layers, self._enter), layer, video, audio)  # type: ignore[arg-type]
        if torch.is_grad_enabled():
            raise MovaError(
                "layers whose weights come and go keep none of them for a backward: choose memory.checkpointing full, "
                "selective or out, or run under torch.no_grad()"
            )
        self._enter(layer)
        return layers.run(layer, video, audio)

    def _enter(self, layer: int) -> None:
        self._stream.enter(self._units[layer])


class _Entering:
    """The layers of a forward whose weights `enter` brings."""

    def __init__(self, layers: DualTowerLayers, enter: Callable[[int], None]) -> None:
        self._layers, self.enter = layers, enter

    def __getattr__(self, name: str) -> object:
        return getattr(self._layers, name)
