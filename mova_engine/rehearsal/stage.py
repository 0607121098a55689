"""The environment of a dry run: fake tensors, fake process groups, memory tracker, collective log, and the values that
fake tensors return when code reads them.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mova_engine.backend import describe_backend
from mova_engine.config.mesh import MeshShape
from mova_engine.distributed.processes import Launch, Processes, start_processes
from mova_engine.memory import host_offload
from mova_engine.models.mova import Mova
from mova_engine.ops import REFERENCE, OpTable, choose
from mova_engine.ops.fakes import fake_table
from mova_engine.ops.machine import Machine
from mova_engine.predict.memory_use import Memory
from mova_engine.rehearsal.absent_files import HostMemory, absent_files, copied
from mova_engine.rehearsal.absent_weights import AbsentComponent
from mova_engine.rehearsal.collective_log import CollectiveLog
from mova_engine.rehearsal.fake_processes import AbsentBackend, fake_world, join_fake_group
from mova_engine.rehearsal.host_waits import HostWaits
from mova_engine.rehearsal.memory_tracker import ACTIVATIONS, MemoryTracker, is_wrapped
from mova_engine.rehearsal.result import Rehearsal, without_codecs
from mova_engine.rehearsal.simulated import Simulation
from mova_engine.rehearsal.step_clock import Clock
from mova_engine.rehearsal.weights import weights_by_dtype

_swap = torch.utils.swap_tensors


class Stage:
    """Rank 0 of `world_size` on a device that this machine need not have.

    Create process groups inside `world()`; build and run the model inside `play()`. Call `fake_devices.prepare_device`
    in this process before. streamed: the dtype of the plain weights if layers are streamed; the host's memory is
    counted too then. None: layers are not streamed. components: of the model's folder, by name. clock: times the step;
    None: it is not timed.
    """

    def __init__(
        self,
        machine: Machine,
        world_size: int = 1,
        streamed: torch.dtype | None = None,
        components: Mapping[str, AbsentComponent] | None = None,
        clock: Clock | None = None,
    ) -> None:
        device = machine.kind
        self.machine = machine
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.backend = AbsentBackend(describe_backend(device))
        self.launch = Launch(0, 0, world_size)
        self.clock = clock
        self.tracker, self.log = MemoryTracker(device, None if clock is None else clock.see), CollectiveLog()
        self.waits = HostWaits(device)
        self.streamed, self.host = streamed, MemoryTracker("cpu")
        self.components = components or {}
        self.seconds: dict[str, float] = {}

    def operators(self, wanted: Mapping[str, str], dtypes: Iterable[torch.dtype], training: bool = True) -> OpTable:
        """The implementations that the assumed machine would bind, as fake implementations. Raises MovaError for an
        operator without one.
        """
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        chosen = choose(self.machine, wanted, training=training, dtype=names)
        if self.clock is None:
            return fake_table(self.machine.kind, chosen)
        return fake_table(self.machine.kind, chosen, watch=self.clock.called)

    def processes(self, shape: MeshShape, timeout_s: float, sampling: bool = False) -> Processes:
        """This rank's `Processes`, built by the function that the real run calls."""
        return start_processes(self.backend, self.launch, shape, timeout_s, sampling)

    @contextmanager
    def world(self) -> Iterator[None]:
        """A with-block for the whole dry run: process groups are fake, and the backward runs in the calling thread."""
        with ExitStack() as stack:
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            stack.enter_context(patch.object(torch.utils, "swap_tensors", _take_over))
            kept = HostMemory(self.host, ACTIVATIONS)
            stack.enter_context(patch.object(host_offload, "describe_backend", lambda name: kept))
            if self.launch.world > 1:
                join_fake_group(self.backend.name, self.launch)
                stack.callback(torch.distributed.destroy_process_group)
                stack.enter_context(fake_world(self.mode))
            if self.clock is not None:
                stack.enter_context(self.clock.installed())
            if self.streamed is not None:
                stack.enter_context(absent_files(self.streamed, self.host, self.components))
            yield

    @contextmanager
    def play(self, part: str) -> Iterator[None]:
        """Tensors made inside the with-block are fake. Their memory and collectives are counted; the time is added to
        `seconds[part]`.
        """
        started = time.perf_counter()
        apart = self.streamed is not None and self.machine.kind != "cpu"
        with self.mode, _ToldValues(), self.waits, self.log, self.host if apart else nullcontext(), self.tracker:
            yield
        self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - started, 2)

    def forget(self) -> None:
        """Begin to count anew, with the memory that is taken."""
        for each in (self.tracker, self.host, self.log, self.waits):
            each.forget()
        if self.clock is not None:
            self.clock.begin()

    def report(
        self,
        *,
        command: str,
        recipe: str,
        model: Mova,
        shape: MeshShape,
        clips_per_step: int,
        operators: OpTable,
        given: dict[str, Tensor],
        predicted: Memory,
        simulation: Simulation | None = None,
    ) -> Rehearsal:
        """The result. given: the step's inputs by name. predicted: memory by the cost model."""
        clip = model.config.clip
        shapes = {name: list(x.shape) for name, x in given.items()}
        dtypes = {name: str(x.dtype).removeprefix("torch.") for name, x in given.items()}
        for (component, dtype), count in weights_by_dtype(model).items():
            shapes[f"{component}, weights in {dtype}"] = [count]
            dtypes[f"{component}, weights in {dtype}"] = dtype
        peak = self.tracker.peak()
        return Rehearsal(
            command=command,
            recipe=recipe,
            device=self.machine.kind,
            machine=str(self.machine),
            world_size=self.launch.world,
            mesh=str(shape),
            height=clip.height,
            width=clip.width,
            frames=clip.frames,
            video_tokens=0 if model.video_dit is None else clip.video_tokens,
            audio_tokens=clip.audio_tokens,
            clips_per_step=clips_per_step,
            operators={x.operator: x.implementation for x in operators.choices if x.implementation != REFERENCE},
            shapes=shapes,
            dtypes=dtypes,
            collectives=self.log.collectives(),
            host_waits=self.waits.counts(),
            peak_memory_bytes=peak.parts,
            largest_tensors=peak.largest,
            predicted_memory_bytes=without_codecs(predicted.device),
            host_memory_bytes=self.host.peak().parts,
            predicted_host_memory_bytes=without_codecs(predicted.host) if self.streamed is not None else {},
            copied=copied(model),
            operations=self.tracker.operations,
            seconds=self.seconds,
            simulation=simulation,
            timeline=None if self.clock is None else self.clock.timeline(),
        )


def _take_over(old: Tensor, new: Tensor) -> None:
    """Replaces `swap_tensors` in `Module.to` by what it does to real weights. torch swaps fake tensors instead, which
    fails for tensors with weak references.
    """
    if is_wrapped((type(old),)) or new.device != old.device:
        _swap(old, new)
    else:
        old.data = new.data


_VALUE_OF = torch.ops.aten._local_scalar_dense.default
_PINNED = torch.ops.aten._pin_memory.default


class _ToldValues(TorchDispatchMode):
    """Answers for fake tensors what torch cannot: their values are 1 or True, so that losses and norms are finite."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is _VALUE_OF and isinstance(args[0], FakeTensor):
            return True if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        if func is _PINNED and isinstance(args[0], FakeTensor):
            return args[0].clone()
        return func(*args, **(kwargs or {}))
