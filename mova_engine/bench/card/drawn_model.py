"""A model with random weights, on the device or streamed from the host's memory, and the time that its copies take."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mova_engine.adapters.lora import adapted_layers, add_lora, draw_a
from mova_engine.backend import NAMES
from mova_engine.bench.jobs import LORA_TARGETS
from mova_engine.bench.workloads import SEED, draw_parameter
from mova_engine.config.model import MovaConfig
from mova_engine.memory.streaming import StreamedModel, WeightStream
from mova_engine.memory.weight_sources import Chunk, HostArena, LayerUnit, WeightSource
from mova_engine.models.mova import Mova
from mova_engine.ops import OpTable


class _Instant:
    """Now, on the current stream of a device; on a CPU by its clock."""

    def __init__(self, device: torch.device) -> None:
        self._event: torch.Event | None = None
        if device.type == NAMES[0]:
            self._seconds = time.perf_counter()
        else:
            self._event = torch.Event(device, enable_timing=True)
            self._event.record(torch.accelerator.current_stream(device))

    def seconds_until(self, later: "_Instant") -> float:
        """Seconds between two instants, which both must have passed."""
        if self._event is None or later._event is None:
            return later._seconds - self._seconds
        return self._event.elapsed_time(later._event) / 1e3


class _TimedSource:
    """A source of weights that notes when each copy begins and ends on the stream that copies."""

    def __init__(self, source: WeightSource, device: torch.device) -> None:
        self._source, self._device = source, device
        self.copies: list[tuple[_Instant, _Instant]] = []

    def read(self, unit: int, buffer: Tensor) -> None:
        begin = _Instant(self._device)
        self._source.read(unit, buffer)
        self.copies.append((begin, _Instant(self._device)))

    def close(self) -> None:
        self._source.close()


class TimedStream:
    """A stream of weights that notes how long the computing stream stands still until a layer's weights are there.

    It has the methods of `WeightStream`, whose place in a `StreamedModel` it takes.
    """

    def __init__(self, stream: WeightStream, source: _TimedSource) -> None:
        self._stream, self._source = stream, source
        self._waits: list[tuple[_Instant, _Instant]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def enter(self, unit: int) -> None:
        """As `WeightStream.enter`."""
        begin = _Instant(self._stream.device)
        self._stream.enter(unit)
        self._waits.append((begin, _Instant(self._stream.device)))

    def reset(self) -> None:
        """Forget what was noted."""
        self._waits.clear()
        self._source.copies.clear()

    def seconds(self) -> dict[str, float]:
        """Of the copies since the last reset: in all, exposed (the computation waited for them) and hidden. All work
        of the device must be done. What a layer's entry itself takes counts as exposed.
        """
        copied, waited = (sum(a.seconds_until(b) for a, b in pairs) for pairs in (self._source.copies, self._waits))
        return {"copies_s": copied, "exposed_s": waited, "hidden_s": max(copied - waited, 0.0)}


class _DrawnWeights:
    """Draws the weights that a `HostArena` keeps, on the device, which is faster at it."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def fill(self, chunk: Chunk, part: Tensor) -> None:
        for place in chunk.places:
            place.of(part, chunk.begin).copy_(draw_parameter(place.name, place.shape, self._generator))

    def close(self) -> None:
        """Nothing is held."""


def drawn_model(
    config: MovaConfig,
    ops: OpTable,
    device: torch.device,
    dtype: torch.dtype,
    *,
    streamed: bool,
    lora_rank: int | None = None,
) -> tuple[Mova, TimedStream | None]:
    """A frozen model with random weights in `dtype`, and its stream. streamed: the layers' weights are in the host's
    memory, and come one by one. lora_rank: of trained adapters in `dtype` on the device; None: without.
    """
    generator = torch.Generator(device).manual_seed(SEED)
    mova = Mova(config, ops, "meta", dtype).requires_grad_(False)
    stream = _streamed(mova, generator, device) if streamed else None
    elsewhere = set() if stream is None else {place.name for unit in stream.units for place in unit.places}
    for name, parameter in list(mova.named_parameters()):
        if name not in elsewhere:
            holder, _, key = name.rpartition(".")
            values = draw_parameter(name, parameter.shape, generator).to(dtype)
            mova.get_submodule(holder)._parameters[key] = nn.Parameter(values, requires_grad=False)
    if lora_rank is not None:
        add_lora(mova, LORA_TARGETS, lora_rank, alpha=float(lora_rank))
        for layer in adapted_layers(mova).values():
            # A layer whose weights are elsewhere gave its adapter no device.
            values = draw_a(lora_rank, layer.in_features), torch.zeros(layer.out_features, lora_rank)
            for half, value in zip((layer.lora_A, layer.lora_B), values, strict=True):
                assert half is not None, "just added"
                half.weight = nn.Parameter(value.to(device, dtype))
    return mova, stream


def _streamed(mova: Mova, generator: torch.Generator, device: torch.device) -> TimedStream:
    made: list[_TimedSource] = []

    def source(units: Sequence[LayerUnit]) -> WeightSource:
        made.append(_TimedSource(HostArena(units, device, _DrawnWeights(generator)), device))
        return made[0]

    model = StreamedModel(mova, source, device)
    stream = TimedStream(model.stream, made[0])
    model.stream = stream  # pyright: ignore[reportAttributeAccessIssue] it has all that a stream has
    return stream
