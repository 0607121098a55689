"""Safetensors files that all processes write together, each its own rows, through torch.distributed.checkpoint (DCP).

DCP's own files keep their metadata as a pickle. Here a whole weight lies in one file as if one process had written it:
its rows follow each other, so that those of a process are one range of bytes. The coordinator reserves the files, every
process fills in its ranges, and when all of them have, the coordinator gives the folder its name. Who reads such a
folder needs to know neither how many processes wrote it nor DCP.
"""

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter
from torch.futures import Future

from mova_engine.checkpoints.integrity import Range, Ranges
from mova_engine.distributed.fsdp import LocalShard
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
    """Write a folder together with all other processes of the group, which must be a CPU's; it appears when it is
    complete, or not at all.

    pieces: on the CPU, by "FILE:NAME" or "COMPONENT:NAME", a file of the folder without its suffix or a component's
    folder in it. In the first process: opened: gives the folder to fill, `unfinished` of `folder`, as `replaced_folder`
    does, and is told what has been written into it by the time it ends; prepare: called with that folder: reserves all
    files and writes whatever else belongs there. Raises MovaError in all processes where any of them failed.
    """
    with ExitStack() as stack:
        writer = _Writer(unfinished(Path(os.path.abspath(folder))), stack, opened, prepare)
        try:
            dcp.save(dict(pieces), storage_writer=writer, planner=_Planner(), process_group=group)
        except CheckpointException as error:
            rank, (reason, _) = min(error.failures.items())
            said = str(reason) if isinstance(reason, MovaError) else f"cannot write {folder}: {reason}"
            raise MovaError(f"rank {rank}: {said}") from error


class _Planner(dcp.DefaultSavePlanner):
    """Plans pieces as what they are: rows of a whole. DCP checks that together they are all of it."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_item(key, piece) for key, piece in self.state_dict.items() if piece.tensor.numel()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].tensor


def _item(key: str, piece: LocalShard) -> WriteItem:
    shape, own = torch.Size(piece.shape), piece.tensor.shape
    offsets = torch.Size([piece.first, *[0] * (len(shape) - 1)] if shape else [])
    return WriteItem(
        MetadataIndex(key, offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(offsets, own), TensorProperties.create_from_tensor(piece.tensor), shape
        ),
    )


class _Writer(StorageWriter):
    def __init__(self, fresh: Path, stack: ExitStack, opened: Callable, prepare: Callable[[Path], None]) -> None:
        self.fresh, self.stack, self.opened, self.prepare = fresh, stack, opened, prepare
        self.written: Ranges = {}
        self.places: dict[str, dict[str, tuple[Path, int]]] = {}

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        """Nothing: a writer writes one folder."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: object, **kwargs: object) -> None:
        """Nothing: the folder is made when the plan is complete."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """In the coordinator, before anybody writes."""
        self.prepare(self.stack.enter_context(self.opened(self.written)))
        return plans

    def write_data(self, plan: SavePlan, planner: dcp.SavePlanner) -> Future[list[tuple[str, Range]]]:
        """Its results tell what was written, and where."""
        files: dict[Path, int] = {}
        written = []
        try:
            for item in plan.items:
                path, offset = self._place(*item.index.fqn.split(":", 1))
                if path not in files:
                    files[path] = os.open(path, os.O_WRONLY)
                tensor, shape = planner.resolve_data(item).contiguous(), item.tensor_data.size
                row = math.prod(shape[1:]) * tensor.element_size()
                first = item.index.offset[0] if shape else 0
                _write_at(files[path], tensor, offset + first * row)
                data, name = _bytes(tensor), path.relative_to(self.fresh).as_posix()
                written.append((name, (offset + first * row, len(data), f"{zlib.crc32(data):08x}")))
            for descriptor in files.values():
                os.fsync(descriptor)
        finally:
            for descriptor in files.values():
                os.close(descriptor)
        future: Future[list[tuple[str, Range]]] = Future()
        future.set_result(written)
        return future

    def finish(self, metadata: object, results: list[list[tuple[str, Range]]]) -> None:
        """In the coordinator, after all ranks have written and flushed: renames the folder to its final name."""
        for name, each in (found for result in results for found in result):
            self.written.setdefault(name, []).append(each)
        self.stack.close()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return False

    def _place(self, part: str, name: str) -> tuple[Path, int]:
        """The file that a tensor lies in, and where in it its data begin."""
        if part not in self.places:
            file = self.fresh / f"{part}.safetensors"
            paths = {file} if file.is_file() else {stored.file for stored in stored_tensors(self.fresh / part).values()}
            self.places[part] = {name: (path, place) for path in paths for name, place in _places(path).items()}
        return self.places[part][name]


def _places(path: Path) -> dict[str, int]:
    """Where each tensor's data begin in a file."""
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
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())
