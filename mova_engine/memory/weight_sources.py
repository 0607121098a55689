"""Sources of the weights of streamed layers: one block of host memory, or a model folder's files.

A *unit* is the weights that one layer of the forward needs: a block of one video expert, both directions of a bridge
layer, a block of the audio tower. Its tensors have fixed offsets in one byte buffer, so that a unit is copied at once.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from mova_engine.backend import describe_backend
from mova_engine.checkpoints.quantised_files import StoredComponent
from mova_engine.errors import MovaError
from mova_engine.files.stored_tensor import STORED_DTYPES, StoredTensor
from mova_engine.files.tensors import byte_ranges

# Alignment of tensors in bytes, for matrix products on every device.
ALIGNMENT = 256
# Bytes per read, small enough that a stop or an error is noticed soon.
_PIECE = 64 << 20


class Place(NamedTuple):
    """A tensor of a unit: the dict of its module that holds it, its name there, and its byte range in the unit's
    buffer.
    """

    holder: dict[str, Tensor | None]
    key: str
    name: str
    shape: torch.Size
    dtype: torch.dtype
    offset: int

    @property
    def bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize

    def of(self, buffer: Tensor, begin: int = 0) -> Tensor:
        """The tensor, as a view of a unit's buffer (uint8), or of the part of it that starts at byte `begin`."""
        start = self.offset - begin
        return buffer[start : start + self.bytes].view(self.dtype).view(self.shape)


class Chunk(NamedTuple):
    """The bytes of one module in a unit's buffer. The units of both experts share bridge and audio modules."""

    module: nn.Module
    begin: int
    end: int
    places: tuple[Place, ...]


@dataclass(frozen=True)
class LayerUnit:
    """A layer's weights: chunks at consecutive offsets of a buffer."""

    chunks: tuple[Chunk, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """All tensors, in their order."""
        return tuple(place for chunk in self.chunks for place in chunk.places)

    @property
    def bytes(self) -> int:
        """Size of the buffer."""
        return self.chunks[-1].end if self.chunks else 0

    @classmethod
    def of(cls, modules: Mapping[str, nn.Module]) -> "LayerUnit":
        """The unit of a layer's modules, by their names in the model: frozen parameters and buffers. Trained parameters
        and all adapters are left out.
        """
        chunks: list[Chunk] = []
        end = 0
        for prefix, module in modules.items():
            begin, places = end, []
            for path, each in module.named_modules(prefix=prefix):
                if ".lora_" in f".{path}":
                    continue
                for holder in cast(tuple[dict[str, Any], ...], (each._parameters, each._buffers)):
                    for key, tensor in holder.items():
                        if tensor is None or tensor.requires_grad:
                            continue
                        offset = -(-end // ALIGNMENT) * ALIGNMENT
                        places.append(Place(holder, key, f"{path}.{key}", tensor.shape, tensor.dtype, offset))
                        end = offset + places[-1].bytes
            end = -(-end // ALIGNMENT) * ALIGNMENT
            chunks.append(Chunk(module, begin, end, tuple(places)))
        return cls(tuple(chunks))


class WeightSource(Protocol):
    """Fills buffers with units, by number. It is called from one thread at a time, but not always the same."""

    def read(self, unit: int, buffer: Tensor) -> None:
        """Fill `buffer` (uint8, of the unit's size) with its weights. buffer on a device: the copy may still run on the
        current stream when this returns.
        """
        ...

    def close(self) -> None:
        """Release the source's memory and files. No copy to a device may be pending."""
        ...


class ChunkFiller(Protocol):
    """Where the weights come from that a `HostArena` keeps: it is asked once for each module, and closed then."""

    def fill(self, chunk: Chunk, part: Tensor) -> None:
        """Write one module's weights into its part of the arena, on the host."""
        ...

    def close(self) -> None: ...


class HostArena:
    """All units in one block of host memory of exactly their size (`Backend.host_memory`), so that copies overlap with
    computation. A module that several units share is stored once.

    stored: from which it is filled when the first unit is read. None: the weights are moved out of the modules
    now, one by one, so that the host never holds all of them twice.
    """

    def __init__(self, units: Sequence[LayerUnit], device: torch.device, stored: ChunkFiller | None = None) -> None:
        self._units, self._device, self._stored = units, device, stored
        self._by_module = {id(chunk.module): chunk for unit in units for chunk in unit.chunks}
        self._chunks: dict[int, Tensor] = {}
        self.arena = torch.empty(0, dtype=torch.uint8)
        if stored is None:
            self._fill(self._take)

    def _fill(self, fill: Callable[[Chunk, Tensor], None]) -> None:
        size = sum(x.end - x.begin for x in self._by_module.values())
        self.arena = describe_backend(self._device.type).host_memory(size)
        start = 0
        for key, chunk in self._by_module.items():
            part = self.arena[start : start + chunk.end - chunk.begin]
            start += len(part)
            fill(chunk, part)
            self._chunks[key] = part

    @staticmethod
    def _take(chunk: Chunk, part: Tensor) -> None:
        for place in chunk.places:
            tensor = place.holder[place.key]
            if tensor is None or tensor.is_meta:
                raise MovaError(f"{place.name} has no data to keep on the host")
            place.of(part, chunk.begin).copy_(tensor.detach())
            place.holder[place.key] = without_data(tensor)

    def read(self, unit: int, buffer: Tensor) -> None:
        if self._stored is not None:
            self._fill(self._stored.fill)
            self._stored.close()
            self._stored = None
        for chunk in self._units[unit].chunks:
            buffer[chunk.begin : chunk.end].copy_(self._chunks[id(chunk.module)], non_blocking=True)

    def close(self) -> None:
        if self._stored is not None:
            self._stored.close()
        self._chunks.clear()
        self.arena = torch.empty(0, dtype=torch.uint8)


def without_data(tensor: Tensor) -> Tensor:
    """A tensor that stands for a weight that is not loaded: computing with it raises an error."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


class _Range(NamedTuple):
    """Where a tensor lies. end: after its last byte; None: nothing is there, and nothing is read."""

    file: Path
    offset: int
    end: int | None
    dtype: torch.dtype


class StoredWeights:
    """Units that are read from the files of a model folder each time; quantised weights as they are stored.

    Bytes are read directly into a buffer on the host if the dtype is the stored one. For a buffer on a device, and for
    dtype conversion, they pass through one host buffer of the largest unit's size. Raises MovaError if the files lack a
    weight, and if one changes while it is in use.
    """

    def __init__(
        self, units: Sequence[LayerUnit], components: Mapping[str, StoredComponent], device: torch.device
    ) -> None:
        """components: those that the weights belong to, as opened, by the first part of the weights' names."""
        self._units = units
        names = {place.name for unit in units for place in unit.places}
        self._ranges = _ranges(components, names)
        for unit in units:
            for place in unit.places:
                found = self._ranges.get(place.name)
                if found is None:
                    component, _, name = place.name.partition(".")
                    raise MovaError(f"{components[component].folder} does not hold {name}")
                size = place.shape.numel() * found.dtype.itemsize
                if isinstance(found, _Range) and found.end is not None and found.end - found.offset != size:
                    raise MovaError(
                        f"{found.file}: {place.name} has {found.end - found.offset} bytes, the model needs {size}"
                    )
        self._files: dict[Path, tuple[int, tuple[int, int]]] = {}
        self._staged: Tensor | None = None
        self._copied: torch.Event | None = None
        if device.type != "cpu":
            size = max(unit.bytes for unit in units)
            self._staged = describe_backend(device.type).host_memory(size)
        for file in sorted({found.file for found in self._ranges.values() if isinstance(found, _Range)}):
            self._files[file] = _opened(file)

    def read(self, unit: int, buffer: Tensor) -> None:
        if self._staged is None:
            for chunk in self._units[unit].chunks:
                self.fill(chunk, buffer[chunk.begin : chunk.end])
            return
        self._wait_for_copy()
        staged = self._staged[: buffer.numel()]
        for chunk in self._units[unit].chunks:
            self.fill(chunk, staged[chunk.begin : chunk.end])
        buffer.copy_(staged, non_blocking=True)
        self._copied = torch.accelerator.current_stream(buffer.device).record_event()

    def _wait_for_copy(self) -> None:
        """Wait until the copy of the preceding unit out of the buffer is complete."""
        if self._copied is not None:
            self._copied.synchronize()

    def fill(self, chunk: Chunk, part: Tensor) -> None:
        """Read one module's weights into its part of a buffer, on the host."""
        for place in chunk.places:
            found, target = self._ranges[place.name], place.of(part, chunk.begin)
            if isinstance(found, Tensor):
                target.copy_(found)
            elif found.dtype == place.dtype:
                self._pread(found, target)
            else:
                stored = torch.empty(place.shape, dtype=found.dtype)
                self._pread(found, stored)
                target.copy_(stored)

    def _pread(self, found: _Range, target: Tensor) -> None:
        descriptor, state = self._files[found.file]
        view = target.view(-1).view(torch.uint8).numpy().data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done : done + _PIECE]], found.offset + done)
            except OSError as error:
                raise MovaError(f"cannot read {found.file}: {error.strerror}") from error
            if count == 0:
                raise MovaError(f"{found.file} has become shorter while weights are read from it")
            done += count
        if _state(descriptor) != state:
            raise MovaError(f"{found.file} was changed while weights are read from it: start again")

    def close(self) -> None:
        for descriptor, _ in self._files.values():
            os.close(descriptor)
        self._files.clear()


def _opened(file: Path) -> tuple[int, tuple[int, int]]:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise MovaError(f"cannot read {file}: {error.strerror}") from error
    return descriptor, _state(descriptor)


def _state(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns


def _ranges(components: Mapping[str, StoredComponent], names: Iterable[str]) -> dict[str, _Range | Tensor]:
    """The byte ranges of tensors that components hold, by component and name: file, first byte, dtype. A value that
    files state otherwise than as a tensor (an offset in JSON) is returned itself.
    """
    wanted = set(names)
    found: dict[str, _Range | Tensor] = {}
    ranges: dict[Path, dict[str, tuple[int, int]]] = {}

    def add(full: str, name: str, tensor: StoredTensor) -> None:
        if full not in wanted:
            return
        if tensor.file not in ranges:
            ranges[tensor.file] = byte_ranges(tensor.file)
        # What else there is are kinds of GGUF, in bytes.
        dtype = STORED_DTYPES.get(tensor.dtype, torch.uint8)
        found[full] = _Range(tensor.file, *ranges[tensor.file][name], dtype)

    for component in sorted({name.partition(".")[0] for name in wanted}):
        stored = components[component]
        for name, tensor in stored.plain.items():
            add(f"{component}.{name}", name, tensor)
        for layer, weight in stored.quantised.items():
            for key, (name, tensor) in weight.sources.items():
                add(f"{component}.{layer}.{key}", name, tensor)
            found |= {f"{component}.{layer}.{key}": value for key, value in weight.given.items()}
    return found
