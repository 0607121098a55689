"""Writing components with quantised weights, layer by layer: what is in memory is one of them, however large the model.

The layouts are those of `checkpoints.quantised_files`; a component in NF4 has in its configuration what diffusers asks
for.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mova_engine.checkpoints.integrity import write_checksums
from mova_engine.checkpoints.quantised_files import (
    FILE_ABSMAX,
    FILE_NESTED_ABSMAX,
    NESTED_QUANT_MAP,
    QUANT_MAP,
    QUANT_STATE,
    StoredComponent,
)
from mova_engine.checkpoints.released import INDEX, OWN_ENTRY, QUANTISATION
from mova_engine.config.model import MovaConfig
from mova_engine.files.folders import nearest_folder
from mova_engine.files.stored_tensor import STORED_DTYPES
from mova_engine.files.streamed import write_streamed
from mova_engine.files.tensors import (
    MAX_SHARD_BYTES,
    read_config,
    read_json,
    read_stored,
    write_component,
    write_json,
)
from mova_engine.models.weight_formats import (
    ABSMAX,
    NESTED_ABSMAX,
    NESTED_OFFSET,
    NF4,
    NF4_PLAIN_SCALES,
    SCALE,
    WEIGHT,
    Held,
    Spec,
    WeightFormat,
)
from mova_engine.ops.nf4 import BLOCK, DYNAMIC_MAP, NESTED_BLOCK, VALUES

# Bytes of an NF4 weight's description: the length must be known before the numbers in it are. Filled up with spaces.
_STATE = 256
_STATE_NAME = QUANT_STATE + NF4.name


def file_specs(layer: str, weight_format: WeightFormat, o: int, i: int) -> dict[str, Spec]:
    """The tensors that a file has of a layer's weight [o, i] in a format, by their names there."""
    specs, name = weight_format.tensors(o, i), f"{layer}.weight"
    if weight_format not in (NF4, NF4_PLAIN_SCALES):
        return {name: specs[WEIGHT], f"{layer}.{SCALE}": specs[SCALE]}
    found: dict[str, Spec] = {
        name: (torch.uint8, (o * i // 2, 1)),
        name + FILE_ABSMAX: (specs[ABSMAX][0], (o * i // BLOCK,)),
        name + QUANT_MAP: (torch.float32, (len(VALUES),)),
        name + _STATE_NAME: (torch.uint8, (_STATE,)),
    }
    if weight_format is NF4:
        found[name + FILE_NESTED_ABSMAX] = specs[NESTED_ABSMAX]
        found[name + NESTED_QUANT_MAP] = (torch.float32, (len(DYNAMIC_MAP),))
    return found


def file_tensors(
    layer: str, weight_format: WeightFormat, o: int, i: int, held: Held, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The same with their values. dtype: in which bitsandbytes gives the weight back."""
    specs, name = file_specs(layer, weight_format, o, i), f"{layer}.weight"
    if weight_format not in (NF4, NF4_PLAIN_SCALES):
        return {name: held[WEIGHT], f"{layer}.{SCALE}": held[SCALE]}
    state: dict[str, Any] = {"quant_type": NF4.name, "blocksize": BLOCK}
    state |= {"dtype": str(dtype).removeprefix("torch."), "shape": [o, i]}
    found = {name: held[WEIGHT], name + FILE_ABSMAX: held[ABSMAX], name + QUANT_MAP: torch.tensor(VALUES)}
    if weight_format is NF4:
        offset = float(held[NESTED_OFFSET])
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        found[name + FILE_NESTED_ABSMAX] = held[NESTED_ABSMAX]
        found[name + NESTED_QUANT_MAP] = torch.tensor(DYNAMIC_MAP)
    text = json.dumps(state).encode().ljust(_STATE)
    found[name + _STATE_NAME] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return {key: found[key].reshape(shape) for key, (_, shape) in specs.items()}


def quantisation_config(weight_format: WeightFormat, plain: Sequence[str]) -> dict[str, Any]:
    """What goes into a component's configuration, as diffusers reads it. plain: layers that are not quantised."""
    if weight_format not in (NF4, NF4_PLAIN_SCALES):
        return {}
    return {
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "_load_in_4bit": True,
            "_load_in_8bit": False,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": NF4.name,
            "bnb_4bit_use_double_quant": weight_format is NF4,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": list(plain),
            "llm_int8_threshold": 6.0,
        }
    }


@dataclass
class ComponentWriter:
    """What a component's new files hold, made when it is written.

    formats: of the layers that are quantised there. held: from a layer's name to what is held of its weight, see
    `WeightFormat`. plain: from a name and a tensor as it is stored to the tensor that is written, of the same shape and
    dtype.
    """

    stored: StoredComponent
    formats: Mapping[str, WeightFormat]
    held: Callable[[str], Held]
    plain: Callable[[str, Tensor], Tensor]

    def __post_init__(self) -> None:
        self._owner: dict[str, str] = {}
        self._ready: dict[str, Tensor] = {}
        self.tensors: dict[str, Tensor] = {}
        layers = {f"{layer}.weight": layer for layer in self.formats}
        names = [*self.stored.plain, *(name for name in layers if name not in self.stored.plain)]
        for name in names:
            if name not in layers:
                kept = self.stored.plain[name]
                self.tensors[name] = torch.empty(kept.shape, dtype=STORED_DTYPES[kept.dtype], device="meta")
                continue
            layer = layers[name]
            specs = file_specs(layer, self.formats[layer], *self._shape(layer))
            self.tensors |= {key: torch.empty(shape, dtype=kind, device="meta") for key, (kind, shape) in specs.items()}
            self._owner |= dict.fromkeys(specs, layer)

    @property
    def bytes(self) -> int:
        """Of the files, without their headers."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def write(self, folder: Path, extra: Mapping[str, Any]) -> None:
        """Write the component's new folder: its configuration with `extra`, and its weights."""
        config = {**read_config(self.stored.folder), **extra}

        def streamed(path: Path, tensors: Mapping[str, Tensor]) -> None:
            write_streamed(path, {name: (x.dtype, x.shape) for name, x in tensors.items()}, self._make)

        write_component(self.tensors, config, folder, config.get("_class_name", ""), MAX_SHARD_BYTES, streamed)

    def _shape(self, layer: str) -> tuple[int, int]:
        if layer in self.stored.quantised:
            return self.stored.quantised[layer].shape
        o, i = self.stored.plain[f"{layer}.weight"].shape
        return o, i

    def _make(self, name: str) -> Tensor:
        layer = self._owner.get(name)
        if layer is None:
            return self.plain(name, read_stored(self.stored.plain[name], name))
        if name not in self._ready:
            # A layer's tensors follow one another.
            kept = self.stored.plain.get(f"{layer}.weight")
            dtype = torch.bfloat16 if kept is None else STORED_DTYPES[kept.dtype]
            self._ready = file_tensors(layer, self.formats[layer], *self._shape(layer), self.held(layer), dtype)
        return self._ready.pop(name)


def copied_bytes(source: Path, out: Path, new: Sequence[str]) -> int:
    """Bytes that `rewrite` copies of a model folder: 0 where `out` can link to the files."""
    if os.stat(source).st_dev == os.stat(nearest_folder(out)).st_dev:
        return 0
    files = (path for entry in _others(source, new) for path in (entry.rglob("*") if entry.is_dir() else [entry]))
    return sum(path.stat().st_size for path in files if path.is_file())


def rewrite(
    source: Path,
    fresh: Path,
    config: MovaConfig,
    writers: Mapping[str, tuple[ComponentWriter, Mapping[str, Any]]],
    facts: Callable[[], Mapping[str, Any]] | None = None,
) -> None:
    """Fill the folder `fresh` with a model folder whose components `writers` are new and the rest is that of `source`,
    linked or copied. writers: with what is added to their configurations. facts: for `quantisation.json`, asked for
    when all is written; None: it has none. For use inside `replaced_folder`.
    """
    for entry in _others(source, list(writers)):
        if entry.is_dir():
            shutil.copytree(entry, fresh / entry.name, copy_function=_link)
        else:
            _link(str(entry), str(fresh / entry.name))
    for name, (writer, extra) in writers.items():
        writer.write(fresh / name, extra)
    index = read_json(source / INDEX)
    own = {"name": config.name, "text_tokens": config.text_tokens}
    own |= {"clip": asdict(config.clip), "sampling": asdict(config.sampling)}
    write_json(fresh / INDEX, {**index, OWN_ENTRY: {**index.get(OWN_ENTRY, {}), **own}})
    if facts is not None:
        write_json(fresh / QUANTISATION, facts())
    (fresh / "training").mkdir()
    write_checksums(fresh, {})


def _others(source: Path, new: Sequence[str]) -> list[Path]:
    """What a model folder holds beside the components that are new and what belongs to a training run."""
    left = {*new, INDEX, QUANTISATION, "training"}
    return [path for path in sorted(source.iterdir()) if path.name not in left and not path.name.startswith(".")]


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy where there cannot be one."""
    real = os.path.realpath(source)
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)
