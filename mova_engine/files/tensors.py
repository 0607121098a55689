"""A component's folder: `config.json` and safetensors, sharded with an index where large (the diffusers layout).

Files are memory-mapped and each tensor goes straight to the target device and dtype. Pickle files are never opened.
Folders and files are written beside their place, flushed to disk, and moved in when complete: a full disk or a kill
leaves what was there before. Nothing is replaced but what the engine can be shown to have written.
"""

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.files.folders import flush, replaced, replaced_folder, write_error
from mova_engine.files.gguf_file import SUFFIX, GgufFile, open_gguf
from mova_engine.files.stored_tensor import WEIGHT_DTYPES, StoredTensor

CONFIG = "config.json"
# File stems of diffusers and of transformers.
STEMS = ("diffusion_pytorch_model", "model")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_SHARD_BYTES = 10_000_000_000
_SHOWN = 3


class KeyReport(NamedTuple):
    """Names that a lenient load left out: in the model but not in the files, and the other way round."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def read_json(path: str | Path) -> dict[str, Any]:
    """Return a JSON object; MovaError when it is missing, unreadable, or not an object."""
    path = Path(path)
    if not path.is_file():
        raise MovaError(f"{path} does not exist{_interrupted(path.parent)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MovaError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise MovaError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return a component's `config.json`."""
    return read_json(Path(folder) / CONFIG)


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Find every tensor of a component's folder, reading headers only.

    Raises MovaError for a missing or damaged file, an index that names a file or tensor which is not there, and a
    folder that only has pickle files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MovaError(f"{folder} is not a folder{_interrupted(folder)}")
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _sharded(index)
        if (single := folder / f"{stem}.safetensors").is_file():
            return tensors_of_file(single)
    names = sorted(path.name for path in folder.iterdir())
    ggufs = [name for name in names if name.endswith(SUFFIX)]
    if len(ggufs) > 1:
        raise MovaError(f"{folder} holds several GGUF files ({', '.join(ggufs[:_SHOWN])}): leave one of them there")
    if ggufs:
        return tensors_of_file(folder / ggufs[0])
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise MovaError(
            f"{folder} has its weights as pickle ({pickles[0]}), which can run code when opened and is never loaded: "
            f"convert it to safetensors"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    found = f"; it holds {', '.join(others[:_SHOWN])}" if others else ""
    raise MovaError(f"{folder} has no {STEMS[0]}.safetensors or {STEMS[0]}.safetensors.index.json{found}")


def load_component(
    module: nn.Module,
    folder: str | Path,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None,
    strict: bool = True,
    only: Collection[str] | None = None,
) -> KeyReport:
    """Load a component's weights into `module`, which may live on the meta device. only: names of those that are read;
    the others stay as they are.

    Its parameters are replaced by new ones on `device`, floating point ones in `dtype` (None: as stored), and keep
    their `requires_grad`; create optimizers afterwards. strict: every name must match. Raises one MovaError that names
    missing, unexpected and mis-shaped tensors (the last also when not strict) before anything is read.
    """
    stored = stored_tensors(folder)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if only is not None:
        stored = {name: tensor for name, tensor in stored.items() if name in only}
        expected = {name: shape for name, shape in expected.items() if name in only}
    report = compare_shapes(folder, stored, expected, strict)
    for file in sorted({stored[name].file for name in expected if name in stored}):
        with _opened(file) as tensors:
            names = [name for name in expected if name in stored and stored[name].file == file]
            loaded = {name: _placed(tensors.get_tensor(name), device, dtype) for name in names}
        module.load_state_dict(loaded, strict=False, assign=True)
    return report


def check_component(module: nn.Module, folder: str | Path) -> None:
    """Raise MovaError, as `load_component` would, where a component's weights do not fit. Reads headers only."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    compare_shapes(folder, stored_tensors(folder), expected)


def take_stored_dtypes(module: nn.Module, stored: Mapping[str, StoredTensor], dtype: torch.dtype | None) -> None:
    """Give the parameters of a module without data the dtypes that its files have, or `dtype` where it is given.

    A parameter that the files lack becomes float32. MovaError for weights in a dtype that is not in WEIGHT_DTYPES.
    """
    for name, parameter in module.named_parameters():
        if parameter.dtype not in WEIGHT_DTYPES.values():
            continue  # quantised: it is what it is
        kind = stored[name].dtype if name in stored else "F32"
        if kind not in WEIGHT_DTYPES:
            known = ", ".join(WEIGHT_DTYPES)
            raise MovaError(f"{stored[name].file} holds {name} in {kind}; weights are read in {known}")
        parameter.data = parameter.data.to(dtype or WEIGHT_DTYPES[kind])


def read_rows(folder: str | Path, rows: Mapping[str, tuple[tuple[int, ...], slice, Tensor]]) -> None:
    """Fill tensors with rows of a component's weights, of which nothing else is read. rows: by name, the weight's
    shape, which of its rows, and the tensor that takes them.

    Raises MovaError as `load_component` does where names or shapes do not fit.
    """
    stored = stored_tensors(folder)
    compare_shapes(folder, stored, {name: shape for name, (shape, _, _) in rows.items()})
    for file in sorted({stored[name].file for name in rows}):
        with _opened(file) as tensors:
            for name, (shape, wanted, tensor) in rows.items():
                if stored[name].file == file and tensor.numel():
                    tensor.copy_(tensors.get_slice(name)[wanted] if shape else tensors.get_tensor(name))


def compare_shapes(
    folder: str | Path,
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    strict: bool = True,
) -> KeyReport:
    """Which names are not on both sides; MovaError where that or a shape forbids loading."""
    missing = tuple(name for name in expected if name not in stored)
    unexpected = tuple(name for name in stored if name not in expected)
    shapes = [
        f"{name} is {list(stored[name].shape)}, the model needs {list(shape)}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    problems = [_counted(shapes, "of another shape")]
    if strict:
        problems += [_counted(missing, "missing"), _counted(unexpected, "unexpected")]
    if any(problems):
        raise MovaError(f"{folder} does not fit the model: {'; '.join(filter(None, problems))}")
    return KeyReport(missing, unexpected)


def save_component(
    module_or_state_dict: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any],
    folder: str | Path,
    class_name: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a component's folder: `config` with its class, and weights in shards of at most `max_shard_bytes`.

    Raises MovaError where the folder exists and is not empty, for tensors without data (meta), for a module that
    carries LoRA adapters (save those with `lora.save_lora`, or merge them first), and when writing fails.
    """
    with replaced_folder(folder) as fresh:
        write_component(module_or_state_dict, config, fresh, class_name, max_shard_bytes)


def write_component(
    module_or_state_dict: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any],
    folder: Path,
    class_name: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    write: Callable[[Path, Mapping[str, Tensor]], None] | None = None,
) -> None:
    """`save_component` into an empty or new folder, without the exchange: for use inside `replaced_folder`.

    write: how a file of tensors is written (default: at once); `reserve_tensors` needs no more than their shapes.
    """
    write = write or write_tensors
    is_module = isinstance(module_or_state_dict, nn.Module)
    tensors = module_or_state_dict.state_dict() if is_module else module_or_state_dict
    for name, tensor in tensors.items():
        if tensor.is_meta and write is write_tensors:
            raise MovaError(f"{name} is on the meta device and has no data to save")
        if ".lora_A." in f".{name}":
            raise MovaError(f"the model carries a LoRA adapter ({name}): save it with save_lora, or merge it first")
        quantised = tensor.dtype not in WEIGHT_DTYPES.values() and name.endswith(".weight")
        if quantised and not any(other != name and other.startswith(name) for other in tensors):
            raise MovaError(f"{name} is held quantised, without the scales that belong to it; save the adapters alone")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {"_class_name": class_name, **config})
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        write(folder / f"{STEMS[0]}.safetensors", tensors)
        return
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"{STEMS[0]}-{number:05d}-of-{len(shards):05d}.safetensors"
        write(folder / file, {name: tensors[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    metadata = {"total_size": sum(_bytes(tensor) for tensor in tensors.values())}
    write_json(folder / f"{STEMS[0]}.safetensors.index.json", {"metadata": metadata, "weight_map": weight_map})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object as diffusers does: sorted, indented by two."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file with ordinary permissions. Raises OSError or SafetensorError."""
    path.touch()
    mode = path.stat().st_mode  # safetensors makes its files private to the user
    # Copied where storage is shared or padded (tied weights, views): safetensors wants each tensor's bytes apart.
    plain, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        storage = tensor.untyped_storage()
        own = tensor.is_contiguous() and storage.nbytes() == _bytes(tensor) and storage.data_ptr() not in storages
        plain[name] = tensor if own else tensor.clone(memory_format=torch.contiguous_format)
        storages.add(storage.data_ptr())
    save_file(plain, path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(mode)


def write_new_file(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write one safetensors file in a single step: complete, or not at all.

    Raises MovaError when writing fails, and where there is such a file: it is not replaced.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise MovaError(f"{path} exists and is not replaced: give another name, or remove it")
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(fresh, tensors, metadata)
        flush(fresh)
        fresh.replace(path)
        flush(path.parent)
    except (OSError, SafetensorError) as error:
        fresh.unlink(missing_ok=True)
        raise write_error(path, error) from error


def read_tensors(
    path: str | Path,
    device: torch.device | str = "cpu",
    rows: Callable[[str, tuple[int, ...]], slice | None] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors of one safetensors file and its metadata. Raises MovaError as `stored_tensors` does.

    rows: told a tensor's name and shape, which of its rows are wanted; None: all. No others are read.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise MovaError(f"{path} is a pickle, which can run code when opened and is never loaded: use safetensors")
    with _opened(path) as file:
        tensors = {name: _placed(_rows(file, name, rows), device, None) for name in file.keys()}  # noqa: SIM118
        return tensors, dict(file.metadata() or {})


def _rows(file: Any, name: str, rows: Callable[[str, tuple[int, ...]], slice | None] | None) -> Tensor:
    stored = file.get_slice(name)
    wanted = None if rows is None else rows(name, tuple(stored.get_shape()))
    return file.get_tensor(name) if wanted is None else stored[wanted]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise MovaError(f"{path} does not exist")
    try:
        if path.suffix == SUFFIX:
            yield open_gguf(path)
            return
        with _mapped(path) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise MovaError(f"{path} is damaged or incomplete ({error}): copy or download it again") from error


def _mapped(path: Path) -> Any:
    """A safetensors file, opened. MovaError where the process may not have the address space that it takes."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (RuntimeError, MemoryError) as error:
        raise MovaError(f"cannot map {path} into memory ({error}): raise the process's limit (ulimit -v)") from error


def read_stored(tensor: StoredTensor, name: str) -> Tensor:
    """One tensor of a file, by its name there, on the CPU. Raises MovaError as `stored_tensors` does."""
    return next(value for _, value in read_several({name: tensor}))


def read_several(wanted: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of files one by one, by their names there, on the CPU; each file is opened once."""
    for path in sorted({tensor.file for tensor in wanted.values()}):
        with _opened(path) as file:
            for name, tensor in wanted.items():
                if tensor.file == path:
                    yield name, _placed(file.get_tensor(name), "cpu", None)


def byte_ranges(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes begin and end in a file whose header `stored_tensors` has read and found good."""
    if path.suffix == SUFFIX:
        return open_gguf(path).ranges
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    places = {name: entry["data_offsets"] for name, entry in header.items()}
    return {name: (8 + size + begin, 8 + size + end) for name, (begin, end) in places.items()}


def tensors_of_file(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name. Reads the header only; MovaError where it is missing or damaged."""
    with _opened(path) as file:
        if isinstance(file, GgufFile):
            return file.tensors
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: StoredTensor(path, tuple(x.get_shape()), x.get_dtype()) for name, x in found.items()}


def _sharded(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise MovaError(f"{index} has no weight_map from tensor names to files")
    headers = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise MovaError(f"{index} names '{file}', which is not a file of its own folder")
        if not (index.parent / file).is_file():
            raise MovaError(f"{index} names {file}, which is not there: the checkpoint is incomplete")
        headers[file] = tensors_of_file(index.parent / file)
    absent = [f"{name} in {file}" for name, file in weight_map.items() if name not in headers[file]]
    if absent:
        raise MovaError(f"{index} names tensors that are not there: {_counted(absent, 'absent')}")
    everything = {name: tensor for header in headers.values() for name, tensor in header.items()}
    return everything | {name: headers[file][name] for name, file in weight_map.items()}


def _placed(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    # A copy also on the CPU: the file is mapped privately, but it may be replaced or truncated while the model lives.
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None, copy=True)


def _counted(names: Iterable[str], what: str) -> str:
    """`"5 missing (a, b, c, ...)"`, or "" for none."""
    names = list(names)
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})" if names else ""


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _split(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Names by shard, in order; a tensor above the limit has a shard to itself."""
    if limit < 1:
        raise MovaError(f"a shard must hold at least one byte, got {limit}")
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + _bytes(tensor) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(tensor)
    return shards


def _interrupted(folder: Path) -> str:
    """Where a save that was killed between its two renames left the folder."""
    old = replaced(folder)
    return f", but an interrupted save left it as {old}" if old.is_dir() and not folder.exists() else ""
