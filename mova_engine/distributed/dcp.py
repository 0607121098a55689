"""Distributed saving to safetensors: all processes write their own rows into shared files, through
torch.distributed.checkpoint (DCP).

DCP's own storage keeps its metadata as a pickle. This storage writes the same files as a single process would: a weight
is contiguous in one file, and the rows of one process are one range of bytes. The coordinator (rank 0) reserves the
files, every process writes its ranges, and at the end the coordinator renames the folder to its final name. A reader
needs neither DCP nor the number of processes that wrote the folder.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import StorageWriter
from torch.futures import Future

from mova_engine.checkpoints.integrity import Ranges
from mova_engine.distributed.fsdp import LocalShard
from mova_engine.distributed.save_plan import RowsPlanner
from mova_engine.errors import MovaError
from mova_engine.files.folders import unfinished
from mova_engine.files.tensors import stored_tensors


def save_pieces(
    folder: Path,
    pieces: Mapping[str, LocalShard],
    opened: Callable[[Ranges], AbstractContextManager[Path]],
    prepare: Callable[[Path], None],
    group: dist.ProcessGroup,
) -> None:
    """Write `folder` together with all other processes of the CPU group `group`. Collective. The folder appears when it
    is complete, or not at all.

    pieces: this rank's rows, on the CPU. Keys are "FILE:NAME" (a file of the folder, without ".safetensors") or
    "COMPONENT:NAME" (a component's sub-folder).
    opened, prepare: called in rank 0 only. opened(ranges): a context manager such as `replaced_folder`, which yields
    the temporary folder `unfinished(folder)` and renames it when it ends; `ranges` then holds all byte ranges written.
    prepare(temporary folder): reserves all files and writes everything else that belongs into the folder.
    Raises MovaError in all processes if any of them fails.
    """
    with ExitStack() as stack:
        writer = _Writer(unfinished(Path(os.path.abspath(folder))), stack, opened, prepare)
        try:
            dcp.save(dict(pieces), storage_writer=writer, planner=RowsPlanner(), process_group=group)
        except CheckpointException as error:
            rank, (reason, _) = min(error.failures.items())
            said = str(reason) if isinstance(reason, MovaError) else f"cannot write {folder}: {reason}"
            raise MovaError(f"rank {rank}: {said}") from error


class _Writer(StorageWriter):
    def __init__(self, fresh: Path, stack: ExitStack, opened: Callable, prepare: Callable[[Path], None]) -> None:
        self.fresh, self.stack, self.opened, self.prepare = fresh, stack, opened, prepare
        self.written: Ranges = {}
        self.places: dict[str, dict[str, tuple[Path, int]]] = {}

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        """Does nothing: a writer writes one folder."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """Does nothing: the folder is made in `prepare_global_plan`."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Called in the coordinator, before any process writes: opens the folder and reserves its files."""
        self.prepare(self.stack.enter_context(self.opened(self.written)))
        return plans

    def write_data(self, plan: SavePlan, planner: dcp.SavePlanner) -> Future[list[tuple[str, np.ndarray]]]:
        """Write this rank's tensors. Returns, for each file, its name and the ranges written, as of `Ranges`."""
        files: dict[Path, int] = {}
        written: dict[str, list[tuple[int, int, int]]] = {}
        try:
            for item in plan.items:
                path, offset = self._place(*item.index.fqn.split(":", 1))
                if path not in files:
                    files[path] = os.open(path, os.O_WRONLY)
                data, described = planner.resolve_data(item), item.tensor_data
                assert isinstance(data, Tensor) and described is not None, "only tensors are planned"
                tensor, shape = data.contiguous(), described.size
                row = math.prod(shape[1:]) * tensor.element_size()
                first = item.index.offset[0] if shape and item.index.offset else 0
                _write_at(files[path], tensor, offset + first * row)
                data, name = _bytes(tensor), path.relative_to(self.fresh).as_posix()
                written.setdefault(name, []).append((offset + first * row, len(data), zlib.crc32(data)))
            for descriptor in files.values():
                os.fsync(descriptor)
        finally:
            for descriptor in files.values():
                os.close(descriptor)
        future: Future[list[tuple[str, np.ndarray]]] = Future()
        # Of a thousand ranks the coordinator gets millions of ranges: 24 bytes each.
        future.set_result([(name, np.array(ranges, np.int64)) for name, ranges in written.items()])
        return future

    def finish(self, metadata: object, results: list[list[tuple[str, np.ndarray]]]) -> None:
        """Called in the coordinator after all ranks have written and flushed: renames the folder to its final name."""
        found: dict[str, list[np.ndarray]] = {}
        for name, ranges in (each for result in results for each in result):
            found.setdefault(name, []).append(ranges)
        self.written |= {name: np.concatenate(ranges) for name, ranges in found.items()}
        self.stack.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return False

    def _place(self, part: str, name: str) -> tuple[Path, int]:
        """The file that holds a tensor, and the offset of the tensor's data in it, in bytes."""
        if part not in self.places:
            file = self.fresh / f"{part}.safetensors"
            paths = {file} if file.is_file() else {stored.file for stored in stored_tensors(self.fresh / part).values()}
            self.places[part] = {name: (path, place) for path in paths for name, place in _places(path).items()}
        return self.places[part][name]


def _places(path: Path) -> dict[str, int]:
    """Tensor name -> offset of its data in the safetensors file, in bytes."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _write_at(descriptor: int, tensor: Tensor, offset: int) -> None:
    data = _bytes(tensor)
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
