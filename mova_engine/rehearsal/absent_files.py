"""Streamed layers in a dry run: `memory.streaming` runs unchanged, on fake weights of a model folder that is not read.

The functions that would read files return fake tensors of the same sizes. Copies run in the calling thread instead of
the stream's own, because torch's dispatch modes, which count memory, belong to one thread.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mova_engine.memory import streaming, weight_sources
from mova_engine.memory.streaming import StreamedModel
from mova_engine.models.mova import Mova
from mova_engine.rehearsal.absent_weights import AbsentComponent
from mova_engine.rehearsal.memory_tracker import PARAMETERS, SLOTS, MemoryTracker


@contextmanager
def absent_files(dtype: torch.dtype, host: MemoryTracker, components: Mapping[str, AbsentComponent]) -> Iterator[None]:
    """Within the block `streamed_model.open_streamed` takes `components`, by name, as if their plain weights had
    `dtype`. host: the tracker of the host's memory.
    """

    def ranges(_: object, names: Iterable[str]) -> dict[str, weight_sources._Range]:
        split = {name: name.partition(".") for name in names}
        kinds = {name: components[part].dtypes.get(rest, dtype) for name, (part, _, rest) in split.items()}
        return {name: weight_sources._Range(Path(), 0, None, kind) for name, kind in kinds.items()}

    with ExitStack() as patches:
        for place, name, stand_in in (
            (streaming, "ThreadPoolExecutor", _AtOnce),
            (weight_sources, "describe_backend", lambda name: HostMemory(host, PARAMETERS)),
            (weight_sources, "_ranges", ranges),
            (weight_sources, "_opened", lambda file: (-1, (0, 0))),
            (weight_sources.StoredWeights, "_pread", lambda *_: None),
            # torch's Python backend has no events that the host can wait for.
            (weight_sources.StoredWeights, "_wait_for_copy", lambda self: None),
            (weight_sources.StoredWeights, "close", lambda self: None),
        ):
            patches.enter_context(patch.object(place, name, stand_in))
        yield


def take_slots(model: Mova, tracker: MemoryTracker) -> None:
    """Allocate the slots of a model with streamed layers now. No effect on other models."""
    if isinstance(model.streamed, StreamedModel):
        with tracker.within(SLOTS):
            model.streamed.stream.open()


def copied(model: Mova) -> dict[str, int]:
    """The number and bytes of the layers copied to the device; {} if layers are not streamed. `unforeseen`: copies that
    were not in the stream's plan, for which the device would have waited.
    """
    if not isinstance(model.streamed, StreamedModel):
        return {}
    found = model.streamed.stream.report()
    return {"copies": found.copies, "bytes": found.bytes, "unforeseen": found.unforeseen}


class HostMemory:
    """The part of a backend that allocates host memory to copy from; not pinned here. part: its purpose."""

    def __init__(self, host: MemoryTracker, part: str) -> None:
        self._host, self._part = host, part

    def host_memory(self, size: int) -> Tensor:
        with self._host.within(self._part):
            return torch.empty(size, dtype=torch.uint8)


class _AtOnce:
    """An executor that runs each function at once, in the calling thread."""

    def __init__(self, *_: Any) -> None:
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future

    def shutdown(self, wait: bool = True) -> None:
        pass
