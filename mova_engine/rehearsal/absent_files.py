"""Streamed layers in a dry run: `memory.streaming` runs unchanged, on fake weights of a model folder that is not read.

The functions that would read files return fake tensors of the same sizes. Copies run in the calling thread instead of
the stream's own, because torch's dispatch modes, which count memory, belong to one thread.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mova_engine.checkpoints.quantised_files import StoredComponent
from mova_engine.files.tensors import take_stored_dtypes
from mova_engine.memory import streamed_model, streaming, weight_sources
from mova_engine.memory.streaming import StreamedModel
from mova_engine.models.mova import Mova
from mova_engine.rehearsal.memory_tracker import PARAMETERS, SLOTS, MemoryTracker
from mova_engine.rehearsal.weights import place_weights


@contextmanager
def absent_files(dtype: torch.dtype, host: MemoryTracker) -> Iterator[None]:
    """Within the block `streamed_model.open_streamed` accepts any folder, as if its weights had `dtype`. host: the
    tracker of the host's memory.
    """

    def ranges(folder: Path, names: Iterable[str]) -> dict[str, weight_sources._Range]:
        return {name: weight_sources._Range(folder, 0, None, dtype) for name in names}

    with ExitStack() as patches:
        for place, name, stand_in in (
            (streamed_model, "open_component", _AbsentComponent),
            (streaming, "ThreadPoolExecutor", _AtOnce),
            (weight_sources, "describe_backend", lambda name: _HostMemory(host)),
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


class _AbsentComponent(StoredComponent):
    """A component's folder without files, whose weights are plain."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})

    def fit(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        take_stored_dtypes(module, {}, dtype)

    def load(
        self,
        module: nn.Module,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None,
        only: Collection[str] | None = None,
    ) -> None:
        place_weights(module, torch.device(device), dtype or torch.float32, only)


class _HostMemory:
    """The part of a backend that allocates host memory to copy from; not pinned here."""

    def __init__(self, host: MemoryTracker) -> None:
        self._host = host

    def host_memory(self, size: int) -> Tensor:
        with self._host.within(PARAMETERS):
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
