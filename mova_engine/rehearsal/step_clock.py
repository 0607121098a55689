"""Times a rehearsed step: the engine's own operations and collectives become tasks on the streams they are issued to.

A computation takes the cost model's seconds for what it is (matrix product, attention, passes over memory) on the
device's current stream. A collective takes its bytes over the link's rate and a latency on its group's stream; it
begins when the current stream has come to the call, and whoever waits for it waits at that place. All ranks are taken
to be at the same place at the same time. The host is taken to be ahead of the device everywhere.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops.fakes import FakeCall
from mova_engine.ops.table import OPERATORS
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import Job
from mova_engine.predict.operator_cost import attention_rates
from mova_engine.predict.step_time import link_rate
from mova_engine.rehearsal.collective_log import KINDS, bytes_sent, group_name, operands
from mova_engine.rehearsal.memory_tracker import tensors_in
from mova_engine.rehearsal.simulated_streams import COMPUTE, MAIN, NETWORK, NODE, StepTimeline, Task, play

# Functions of torch.distributed that the engine and FSDP2 call, by the names of several releases.
_FUNCTIONS = (
    *("all_to_all_single", "all_reduce", "broadcast", "batch_isend_irecv", "all_gather_into_tensor"),
    *("all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single"),
)
_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1, "_scaled_mm": 0, "_int_mm": 0}
_ATTENTIONS = ("attention", "attention_lse", "attention_backward")
# Attention's backward has five products where its forward has two.
_BACKWARD = 2.5


class Clock:
    """Records a step's tasks by the rates of a device. job: what is trained, for the rates of attention."""

    def __init__(self, hardware: Hardware, job: Job) -> None:
        self.hardware, self.job = hardware, job
        self.tasks: list[Task] = []
        self.streams = [_SimulatedStream(self, MAIN)]
        self.direction = "forward"
        self._launched: list[int] | None = None

    @property
    def stream(self) -> "_SimulatedStream":
        """The device's current stream."""
        return self.streams[-1]

    def begin(self) -> None:
        """Start a step: forget what was recorded. Streams and events of before wait for nothing."""
        self.tasks.clear()
        self.streams[0].waits.clear()
        self.streams[0].tail = None

    def timeline(self) -> StepTimeline:
        """Play what was recorded."""
        return play(self.tasks)

    def compute(self, seconds: float) -> None:
        """A computation on the current stream."""
        stream = self.stream
        last = None if stream.tail is None else self.tasks[stream.tail]
        if last is not None and not stream.waits and not stream.seen and last.direction == self.direction:
            # Nobody waits for the one before alone: the two are one task.
            last.seconds += seconds
        elif seconds or stream.waits:
            self._issue(stream, COMPUTE, seconds, "compute")

    def see(self, func: Any, args: tuple, kwargs: dict, result: Any, direction: str) -> None:
        """An operation of torch's dispatcher has run on tensors without data."""
        self.direction = direction
        if func.namespace == "c10d":
            self._collective(func, args, kwargs)
        elif func.namespace != "mova":
            self.compute(self._seconds(func, args, kwargs, result))

    def called(self, call: FakeCall) -> None:
        """A fused operator has been called, of which the dispatcher sees nothing."""
        hardware, achieved = self.hardware, self.hardware.achieved
        bandwidth = hardware.bandwidth * achieved.bandwidth
        if call.operator in _ATTENTIONS:
            (b, s, h, e), n = call.shapes["q"], call.shapes["k"][1]
            backward = call.backward or call.operator == "attention_backward"
            rate = attention_rates(hardware, self.job, call.operator != "attention", call.implementation)[backward]
            moved = b * h * e * (2 * s + 2 * n) * self.job.width
            factor = _BACKWARD if backward else 1.0
            self.compute(factor * max(4 * b * s * n * h * e / rate, moved / bandwidth))
            return
        found = OPERATORS[call.operator].passes(call.implementation)
        name = next(iter(call.shapes))
        size = math.prod(call.shapes[name]) * call.widths[name]
        passes = (2.0, 2.0) if found is None else found.of(call.gated)
        seconds = passes[call.backward] * size / bandwidth
        if call.operator == "linear_gelu":
            rows, (n, k) = math.prod(call.shapes["x"][:-1]), call.shapes["weight"]
            seconds += 2 * rows * n * k / (hardware.peak_flops(self.job.precision) * achieved.gemm)
        self.compute(seconds)

    def _seconds(self, func: Any, args: tuple, kwargs: dict, result: Any) -> float:
        """Of an operation of torch: of a product the longer of arithmetic and memory, of others each tensor once."""
        device, name = self.hardware.machine.kind, func.overloadpacket.__name__
        given = [x for x in tensors_in((*args, *kwargs.values())) if x.device.type == device]
        made = [x for x in tensors_in((result,)) if x.device.type == device]
        if (not given and not made) or "empty" in name:
            return 0.0
        storages = {x.untyped_storage()._cdata for x in given}
        fresh = [x for x in made if x.untyped_storage()._cdata not in storages]
        changed = func._schema.is_mutable
        if not fresh and not changed:
            return 0.0
        written = made if changed else fresh
        achieved = self.hardware.achieved
        seconds = sum(map(_bytes, (*given, *written))) / (self.hardware.bandwidth * achieved.bandwidth)
        flops = 0.0
        if name in _PRODUCTS:
            left, right = given[_PRODUCTS[name] :][:2]
            flops = 2.0 * left.numel() * right.shape[-1]
        elif "convolution" in name:
            flops = 2.0 * made[0].numel() * math.prod(given[1].shape[1:])
        precision = "fp8" if name == "_scaled_mm" and self.job.fp8 else self.job.precision
        return max(seconds, flops / (self.hardware.peak_flops(precision) * achieved.gemm))

    def _collective(self, func: Any, args: tuple, kwargs: dict) -> None:
        if self._launched is None:
            raise MovaError(f"the collective {func.name()} was started in a way that is not timed: add it to the clock")
        kind = KINDS[func.overloadpacket.__name__]
        values, tensors = operands(func, args, kwargs)
        group = dist.ProcessGroup.unbox(values["process_group"])
        ranks = dist.get_process_group_ranks(group)
        span = max(ranks) - min(ranks) + 1
        size = bytes_sent(kind, group.size(), group.rank(), tensors, values)
        if kind == "receive":
            # Links work in both directions; the message is timed where it is sent.
            return
        if kind == "broadcast":
            size = sum(_bytes(x) for x in tensors)
        rate = link_rate(self.hardware, group.size(), span, neighbours=kind == "send")
        resource = NODE if span <= self.hardware.link.devices else NETWORK
        stream = _SimulatedStream(self, f"group {group_name(group)}")
        stream.waits |= self.stream.now()
        label = f"{kind} {group_name(group)}"
        self._launched.append(self._issue(stream, resource, size / rate + self.hardware.latency, label))

    def _issue(self, stream: "_SimulatedStream", resource: str, seconds: float, what: str) -> int:
        self.tasks.append(Task(stream.name, resource, seconds, tuple(sorted(stream.waits)), what, self.direction))
        stream.tail, stream.seen = len(self.tasks) - 1, False
        stream.waits = set()
        return stream.tail

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Inside the with-block, the device's streams and events and torch.distributed's collectives are this clock's.

        The stand-in for the device (`fake_devices`) must be there.
        """
        module = getattr(torch, self.hardware.machine.kind)
        number = itertools.count()

        def stream(*args: Any, **kwargs: Any) -> _SimulatedStream:
            return _SimulatedStream(self, f"stream {next(number)}")

        @contextmanager
        def entered(given: _SimulatedStream | None) -> Iterator[None]:
            self.streams.append(given or self.stream)
            try:
                yield
            finally:
                self.streams.pop()

        def current(device: Any = None) -> _SimulatedStream:
            return self.stream

        def event(*args: Any, **kwargs: Any) -> _SimulatedEvent:
            return _SimulatedEvent(self)

        with ExitStack() as patches:
            for name, value in (("Stream", stream), ("Event", event), ("stream", entered), ("current_stream", current)):
                patches.enter_context(patch.object(module, name, value))
            patches.enter_context(patch.object(torch.accelerator, "current_stream", current))
            for name in (name for name in _FUNCTIONS if hasattr(dist, name)):
                patches.enter_context(patch.object(dist, name, self._timed(getattr(dist, name))))
            yield

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that starts collectives, and waits for them or gives the caller what does."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            before, self._launched = self._launched, []
            try:
                result = function(*args, **kwargs)
                launched = self._launched
            finally:
                self._launched = before
            if isinstance(result, list):
                return [_SimulatedWork(self, work, launched) for work in result]
            if kwargs.get("async_op"):
                return _SimulatedWork(self, result, launched)
            self.stream.waits |= set(launched)
            return result

        return timed


def _bytes(x: Tensor) -> int:
    """That are read or written; an expanded tensor has fewer than elements."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class _SimulatedStream:
    """A stream of the device: what it has come to, and what its next task waits for. seen: others wait for its tail."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock, self.name = clock, name
        self.waits: set[int] = set()
        self.tail: int | None = None
        self.seen = False

    def now(self) -> set[int]:
        """What has to be finished for all that was given to the stream."""
        self.seen = True
        return self.waits | ({self.tail} if self.tail is not None else set())

    def wait_event(self, event: "_SimulatedEvent | None") -> None:
        self.waits |= set() if event is None else event.after

    def wait_stream(self, other: "_SimulatedStream") -> None:
        self.waits |= other.now()

    def record_event(self, event: "_SimulatedEvent | None" = None) -> "_SimulatedEvent":
        return (event or _SimulatedEvent(self.clock)).record(self)

    def synchronize(self) -> None:
        """The host waits; it is taken to be ahead of the device again at once."""

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> "_SimulatedStream":
        self.clock.streams.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self.clock.streams.pop()


class _SimulatedEvent:
    """A place on a stream."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.after = clock, set[int]()

    def record(self, stream: _SimulatedStream | None = None) -> "_SimulatedEvent":
        self.after = (stream or self.clock.stream).now()
        return self

    def wait(self, stream: _SimulatedStream | None = None) -> None:
        (stream or self.clock.stream).wait_event(self)

    def synchronize(self) -> None:
        """As of a stream."""


class _SimulatedWork:
    """What a caller gets for collectives that run beside the current stream."""

    def __init__(self, clock: Clock, work: Any, launched: list[int]) -> None:
        self.clock, self.work, self.launched = clock, work, launched

    def wait(self, *args: Any) -> bool:
        self.clock.stream.waits |= set(self.launched)
        return True
