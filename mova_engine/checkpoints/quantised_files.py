"""Quantised weights in a component's files: which there are, whether they fit, reading them into a model's layers.

Each weight is known by its own tensors, whatever the configuration says:

    format  tensors of a weight X [o, i]
    nf4     X.weight U8 [o i / 2, 1], X.weight.absmax, .quant_map and, where scales are 8-bit, .nested_absmax and
            .nested_quant_map; X.weight.quant_state.bitsandbytes__nf4, JSON: as bitsandbytes and diffusers write them
    int8    X.weight I8 [o, i], X.weight_scale F32 [o] or [o, 1], as compressed-tensors has it
    fp8     X.weight F8_E4M3 [o, i], X.weight_scale the same; ComfyUI's X.scale_weight is read where it has a row each
    GGUF    one file *.gguf in the place of safetensors

A layer that cannot hold a weight quantised (an embedding, the head) gets it dequantised: other tools quantise them too.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mova_engine.errors import MovaError
from mova_engine.files.stored_tensor import WEIGHT_DTYPES, StoredTensor
from mova_engine.files.tensors import (
    compare_shapes,
    load_component,
    read_several,
    read_stored,
    stored_tensors,
    take_stored_dtypes,
)
from mova_engine.models.layers import Linear
from mova_engine.models.weight_formats import (
    ABSMAX,
    FORMATS,
    FP8,
    INT8,
    NESTED_ABSMAX,
    NESTED_OFFSET,
    NF4,
    NF4_PLAIN_SCALES,
    SCALE,
    WEIGHT,
    WeightFormat,
    gguf_format,
)
from mova_engine.ops.gguf import GGUF_KINDS
from mova_engine.ops.nf4 import BLOCK, DYNAMIC_MAP, NESTED_BLOCK, VALUES

# What bitsandbytes adds to a weight's name.
FILE_ABSMAX, FILE_NESTED_ABSMAX = ".absmax", ".nested_absmax"
QUANT_MAP, NESTED_QUANT_MAP = ".quant_map", ".nested_quant_map"
QUANT_STATE = ".quant_state.bitsandbytes__"
# Of scales for each row.
_SCALES = (".weight_scale", ".scale_weight")
_BY_DTYPE = {"F8_E4M3": FP8, "I8": INT8}
# A quant_map that was computed elsewhere may miss ours in its last bit.
_SAME = 1e-6


class QuantisedWeight(NamedTuple):
    """The weight of one layer in files. sources: by the name in the layer, the name in the file and where it lies.
    given: what is said otherwise, such as in JSON.
    """

    format: WeightFormat
    shape: tuple[int, int]
    sources: Mapping[str, tuple[str, StoredTensor]]
    given: Mapping[str, Tensor]


@dataclass(frozen=True)
class StoredComponent:
    """A component's folder: its plain tensors, and its quantised weights by their layers' names."""

    folder: Path
    plain: Mapping[str, StoredTensor]
    quantised: Mapping[str, QuantisedWeight] = field(default_factory=dict)

    @property
    def formats(self) -> list[str]:
        """The names of the formats that there are."""
        return sorted({weight.format.name for weight in self.quantised.values()})

    def check_frozen(self, frozen: str) -> None:
        """MovaError where weights are quantised already that memory.frozen would bring into another format."""
        if self.formats and frozen != "activations":
            raise MovaError(
                f"memory.frozen {frozen}: {self.folder} is in {', '.join(self.formats)} already; leave memory.frozen "
                "out"
            )

    def fit(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Give a module's layers the formats of their files, without data, and its other parameters their dtypes:
        `dtype`, or those that are stored. Raises one MovaError for names and shapes that do not fit.
        """
        layers = dict(module.named_modules())
        wrong: list[str] = []
        for name, layer in layers.items():
            if not isinstance(layer, Linear):
                continue
            weight, (o, i) = self.quantised.get(name), (layer.out_features, layer.in_features)
            if weight is not None and weight.shape == (o, i):
                layer.hold(weight.format, weight.format.absent(o, i))
            elif layer.weight_format is not None:
                layer.hold(None, {WEIGHT: torch.empty(o, i, device="meta")})
        for name, weight in self.quantised.items():
            layer = layers.get(name)
            here = getattr(layer, "weight", None)
            shape = (layer.out_features, layer.in_features) if isinstance(layer, Linear) else getattr(here, "shape", ())
            if tuple(shape) != weight.shape:
                found = list(shape) if layer is not None else "no such layer"
                wrong.append(f"{name} is {list(weight.shape)} in {weight.format.name}, the model has {found}")
        if wrong:
            raise MovaError(f"{self.folder} does not fit the model: {wrong[0]}{_more(wrong)}")
        quantised = {f"{name}.weight" for name in self.quantised}
        expected = {key: tuple(x.shape) for key, x in module.state_dict().items() if key not in quantised}
        compare_shapes(self.folder, self.plain, expected)
        take_stored_dtypes(module, self.plain, dtype)

    def held(self, layer: str) -> dict[str, Tensor]:
        """What is held of one layer's weight, see `WeightFormat`, read onto the CPU."""
        weight = self.quantised[layer]
        specs, found = weight.format.tensors(*weight.shape), dict(weight.given)
        for key, (name, tensor) in weight.sources.items():
            kind, shape = specs[key]
            found[key] = read_stored(tensor, name).reshape(shape).to(kind)
        return {key: found[key] for key in specs}

    def load(
        self,
        module: nn.Module,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None,
        only: Collection[str] | None = None,
    ) -> None:
        """`fit`, and read the weights onto `device`. only: of these parameters; the others of a module that was fitted
        stay as they are.
        """
        if only is None:
            self.fit(module, dtype)
        wanted = {name for name in self.plain if only is None or name in only}
        load_component(module, self.folder, device=device, dtype=dtype, only=wanted)
        chosen = {name for name in self.quantised if only is None or f"{name}.weight" in only}
        tensors = {stored[0]: stored[1] for name in chosen for stored in self.quantised[name].sources.values()}
        places = {stored[0]: (name, key) for name in chosen for key, stored in self.quantised[name].sources.items()}
        held: dict[str, dict[str, Tensor]] = {}
        for file_name, value in read_several(tensors):
            name, key = places[file_name]
            weight = self.quantised[name]
            parts = held.setdefault(name, dict(weight.given))
            kind, shape = weight.format.tensors(*weight.shape)[key]
            parts[key] = value.reshape(shape).to(kind)
            if parts.keys() == weight.format.tensors(*weight.shape).keys():
                _put(module.get_submodule(name), weight.format, held.pop(name), device, dtype)


def _put(
    layer: nn.Module, weight_format: WeightFormat, held: dict[str, Tensor], device: torch.device | str, dtype: Any
) -> None:
    if isinstance(layer, Linear):
        ordered = weight_format.tensors(layer.out_features, layer.in_features)
        layer.hold(weight_format, {name: held[name].to(device) for name in ordered})
        return
    trained = layer.get_parameter(WEIGHT).requires_grad
    value = weight_format.dequantise(held).to(device, dtype or torch.float32)
    layer.register_parameter(WEIGHT, nn.Parameter(value, requires_grad=trained))


def open_component(folder: str | Path) -> StoredComponent:
    """What a component's folder holds, by headers, and by bitsandbytes' few bytes of JSON. Raises MovaError as
    `stored_tensors`, and by name for weights in formats that the engine does not read.
    """
    folder = Path(folder)
    stored = stored_tensors(folder)
    states = {name.partition(QUANT_STATE)[0]: name for name in stored if QUANT_STATE in name}
    documents = dict(read_several({name: stored[name] for name in states.values()}))
    found: dict[str, QuantisedWeight] = {}
    used: set[str] = set()
    for name, tensor in stored.items():
        layer, _, last = name.rpartition(".")
        if last != WEIGHT:
            continue
        if name in states:
            found[layer], more = _nf4(name, states[name], documents[states[name]], stored)
            used |= more
        elif tensor.dtype in _BY_DTYPE:
            found[layer] = _with_rows(layer, tensor, stored)
            used |= {source for source, _ in found[layer].sources.values()}
        elif tensor.dtype not in WEIGHT_DTYPES:
            found[layer] = _ggml(name, tensor)
            used.add(name)
    if not found:
        return StoredComponent(folder, stored)
    _check_maps({name: x for name, x in stored.items() if name.endswith((QUANT_MAP, NESTED_QUANT_MAP))})
    return StoredComponent(folder, {name: x for name, x in stored.items() if name not in used}, found)


def load_weights(
    module: nn.Module, folder: str | Path, *, device: torch.device | str, dtype: torch.dtype | None
) -> None:
    """Load a component's weights, plain or quantised, into `module`, which may live on the meta device.

    Plain ones become parameters on `device` in `dtype` (None: as stored); quantised ones stay so. Raises MovaError as
    `open_component` and `StoredComponent.fit`, before any weight is read.
    """
    open_component(folder).load(module, device=device, dtype=dtype)


def base_of(components: Iterable[StoredComponent]) -> str:
    """How a model's components hold the weights of layers, as the planner counts them: "nf4", "int8" or "fp8";
    "activations" for plain weights, several formats and others.
    """
    parts = [tuple(each.formats) for each in components]
    found = {each for formats in parts for each in formats}
    # A component of plain weights beside quantised ones counts as all plain, which is the safe side.
    alike = len(found) == 1 and all(parts) and found <= set(FORMATS)
    return found.pop() if alike else "activations"


def refuse_quantised(components: Iterable[StoredComponent], why: str) -> None:
    """MovaError where one of the components holds quantised weights. why: what cannot be done with them."""
    for component in components:
        if component.formats:
            raise MovaError(
                f"{component.folder} holds weights in {', '.join(component.formats)}: {why}; name the folder that it "
                "was made of"
            )


def _nf4(
    name: str, state: str, document: Tensor, stored: Mapping[str, StoredTensor]
) -> tuple[QuantisedWeight, set[str]]:
    """A weight as bitsandbytes writes it, and all names that belong to it."""
    tensor = stored[name]
    kind = state.partition(QUANT_STATE)[2]
    if kind != NF4.name:
        raise MovaError(f"{tensor.file}: {name} is in {kind.upper()}, which the engine does not read; NF4 it does")
    try:
        said = json.loads(bytes(document.tolist()))
        o, i = (int(n) for n in said["shape"])
        block, nested = int(said["blocksize"]), "nested_blocksize" in said
        nested_block = int(said["nested_blocksize"]) if nested else NESTED_BLOCK
        offset = torch.tensor(float(said["nested_offset"]) if nested else 0.0)
    except (ValueError, KeyError, TypeError) as error:
        raise MovaError(f"{tensor.file}: {state} is no description of an NF4 weight ({error!r})") from None
    if (block, nested_block) != (BLOCK, NESTED_BLOCK):
        sizes = f"{block} and {nested_block}" if nested else f"{block}"
        raise MovaError(
            f"{tensor.file}: {name} has NF4 blocks of {sizes}; the engine reads blocks of {BLOCK}, and scales in "
            f"blocks of {NESTED_BLOCK}"
        )
    form = NF4 if nested else NF4_PLAIN_SCALES
    if not form.fits(o, i):
        raise MovaError(f"{tensor.file}: {name} [{o}, {i}]: NF4 is read where rows are multiples of {BLOCK}")
    names = {WEIGHT: name, ABSMAX: name + FILE_ABSMAX}
    maps = [name + QUANT_MAP]
    if nested:
        names[NESTED_ABSMAX] = name + FILE_NESTED_ABSMAX
        maps.append(name + NESTED_QUANT_MAP)
    lacking = [each for each in (*names.values(), *maps) if each not in stored]
    if lacking:
        raise MovaError(f"{tensor.file}: {lacking[0]}, which belongs to an NF4 weight, is missing")
    weight = _checked(form, (o, i), {key: (each, stored[each]) for key, each in names.items()}, nested, offset)
    return weight, {*names.values(), *maps, state}


def _with_rows(layer: str, tensor: StoredTensor, stored: Mapping[str, StoredTensor]) -> QuantisedWeight:
    """A weight with a scale for each row."""
    form, name = _BY_DTYPE[tensor.dtype], f"{layer}.weight"
    scale = next((layer + each for each in _SCALES if layer + each in stored), None)
    if scale is None:
        raise MovaError(f"{tensor.file}: {name} is {tensor.dtype} without {layer}.weight_scale, which it needs")
    if len(tensor.shape) != 2:
        raise MovaError(f"{tensor.file}: {name} is {tensor.dtype} {list(tensor.shape)}; weights [o, i] are read so")
    rows = stored[scale].shape
    if rows not in ((tensor.shape[0],), (tensor.shape[0], 1)) or stored[scale].dtype not in WEIGHT_DTYPES:
        raise MovaError(
            f"{tensor.file}: {scale} is {stored[scale].dtype} {list(rows)}: the engine reads {form.name} weights with "
            f"a scale for each of the {tensor.shape[0]} rows"
        )
    o, i = tensor.shape
    if not form.fits(o, i):
        raise MovaError(f"{tensor.file}: {name} [{o}, {i}]: {form.name} takes multiples of {form.multiples[0]}")
    return QuantisedWeight(form, (o, i), {WEIGHT: (name, tensor), SCALE: (scale, stored[scale])}, {})


def _ggml(name: str, tensor: StoredTensor) -> QuantisedWeight:
    """A weight in the blocks of a GGUF file."""
    kind = GGUF_KINDS.get(tensor.dtype)
    if kind is None or len(tensor.shape) != 2:
        raise MovaError(
            f"{tensor.file}: {name} is {tensor.dtype} {list(tensor.shape)}, which the engine does not read as a weight"
        )
    shape = tensor.shape[0], tensor.shape[1] // kind.size * kind.values
    return QuantisedWeight(gguf_format(tensor.dtype), shape, {WEIGHT: (name, tensor)}, {})


def _checked(
    form: WeightFormat,
    shape: tuple[int, int],
    sources: dict[str, tuple[str, StoredTensor]],
    nested: bool,
    offset: Tensor,
) -> QuantisedWeight:
    """The weight, where its tensors have the sizes and dtypes that the format wants."""
    wanted = {torch.uint8: "U8", torch.float32: "F32"}
    for key, (name, tensor) in sources.items():
        kind, of = form.tensors(*shape)[key]
        if torch.Size(tensor.shape).numel() != torch.Size(of).numel() or tensor.dtype != wanted[kind]:
            raise MovaError(
                f"{tensor.file}: {name} is {tensor.dtype} {list(tensor.shape)}, and a weight {list(shape)} in NF4 has "
                f"{torch.Size(of).numel()} values of {wanted[kind]} there"
            )
    return QuantisedWeight(form, shape, sources, {NESTED_OFFSET: offset} if nested else {})


def _check_maps(maps: Mapping[str, StoredTensor]) -> None:
    """MovaError where codes mean other values than ours."""
    for name, value in read_several(maps):
        ours = torch.tensor(VALUES if name.endswith(".weight" + QUANT_MAP) else DYNAMIC_MAP)
        if value.shape != ours.shape or not bool(((value.float() - ours).abs() <= _SAME).all()):
            raise MovaError(f"{maps[name].file}: {name} has other values than NF4's, which the engine does not read")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
