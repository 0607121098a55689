"""The base class of dialects. A dialect is the format of one tool's adapter files: its names for keys, its metadata,
its rule for alpha. Each is a subclass of `Dialect` in a file of `dialects/`, with a line in the table there.

A dialect defines the suffixes of keys, the layer that the rest of a key (the *stem*) means, and the key for a layer.
The base class reads and writes by them.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from mova_engine.adapters.form import Adapter, AlphaMissing, LowRank, check_finite, check_pair, listed
from mova_engine.adapters.layer_names import (
    PART_OF,
    UNSAID,
    component_of,
    full_name,
    full_parameter,
    split_component,
    why_foreign,
)
from mova_engine.adapters.stored_file import StoredFile
from mova_engine.config.model import COMPONENTS
from mova_engine.errors import MovaError, counted

# Kinds of tensors that a suffix may mean: a layer's A, B, alpha and DoRA magnitude; differences of its parameters.
A, B, ALPHA, MAGNITUDE = "a", "b", "alpha", "magnitude"
WEIGHT, BIAS, MODULATION = "weight", "bias", "modulation"
# PARAMETER: the difference of the parameter whose full name is the stem.
PARAMETER = "parameter"
DELTAS = (WEIGHT, BIAS, MODULATION, PARAMETER)
# Metadata key of the part of the model that a file adapts.
PART = "mova_part"
# Metadata keys that describe the file itself (alphas, hashes) and are not copied to a converted one.
_FORM = ("format", "alpha", "alphas", "lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", PART)


@dataclass
class Content:
    """A file to write. tensors, metadata: of a safetensors file. values: if not None, the content of a JSON file, or of
    a pickle (values may hold tensors), by the suffix of the file's name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    values: dict[str, Any] | None = None


class Dialect:
    """One tool's format of adapters.

    name, about: for tables and messages. suffixes: of keys, with the kind of tensor that each means. holds: kinds that
    it supports besides A and B. components: those that it supports. per_part: it has one file for each component, whose
    keys do not name the component. one_scale: all layers share one rank and alpha. has_alpha: False if it stores no
    alpha, which is then the rank. files: names or patterns of the files in its folders.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    suffixes: ClassVar[Mapping[str, str]]
    holds: ClassVar[frozenset[str]] = frozenset()
    components: ClassVar[tuple[str, ...]] = COMPONENTS
    per_part: ClassVar[bool] = False
    one_scale: ClassVar[bool] = False
    has_alpha: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ()

    def recognises(self, file: StoredFile) -> bool:
        """Whether a file has this dialect."""
        raise NotImplementedError

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        """(component, layer) of a key without its suffix; component may be UNSAID. None: MOVA has no such layer."""
        return split_component(stem)

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        """Return (alpha, the rule as text) for a layer (full name) whose keys state no alpha; None: the user must give
        it.
        """
        return None

    def key(self, name: str, kind: str) -> str:
        """Return the key of a tensor. name: the full name of a layer (kind A, B, ALPHA or MAGNITUDE) or of a parameter
        (the kinds of DELTAS).
        """
        raise NotImplementedError

    def stated_alpha(self, pair: LowRank) -> Tensor | None:
        """The alpha tensor to write for a layer; None to write none, if a rule implies it or it is stored elsewhere."""
        return None

    def file_name(self, component: str) -> str:
        """The name of a component's file, for dialects with one file for each component."""
        known = {"video_dit": "high_noise", "video_dit_2": "low_noise"}
        return f"{known.get(component, PART_OF[component])}.safetensors"

    # Most dialects do not override what follows.

    def read(self, file: StoredFile, alpha: float | None = None, skip_foreign: bool = False) -> Adapter:
        """Read a file's adapter. alpha: replaces the file's. skip_foreign: leave out keys for which MOVA has no layer.
        Raises MovaError for such keys otherwise, for A without B or B without A, for values that are not finite, and
        for a missing alpha.
        """
        found: dict[str, dict[str, Tensor]] = {}
        deltas: dict[str, Tensor] = {}
        foreign: list[str] = []
        for key, tensor in file.tensors.items():
            place = self._place(key, file)
            if place is None:
                foreign.append(key)
                continue
            name, kind = place
            if kind in found.get(name, ()) or name in deltas:
                raise MovaError(f"{file.path} says {kind} of {name} twice; the second time as {key}")
            if kind in DELTAS:
                check_finite(key, tensor, file.path)
                deltas[name] = tensor
            else:
                found.setdefault(name, {})[kind] = tensor
        halves = [f"{name} has no {'A' if A not in x else 'B'}" for name, x in found.items() if not {A, B} <= set(x)]
        if halves:
            raise MovaError(f"{file.path} is incomplete: it must hold A, B pairs{listed(sorted(halves), '; see')}")
        if foreign and not skip_foreign:
            self._refuse(file, foreign)
        if not found and not deltas:
            raise MovaError(f"{file.path} holds nothing that {self.name} would: no layer of MOVA is adapted")
        notes = [f"left out, with no place in MOVA: {counted(len(foreign), 'key')}{listed(foreign, ':')}"] * bool(
            foreign
        )
        layers, rules = self._pairs(file, found, alpha)
        metadata = {key: value for key, value in file.metadata.items() if key not in _FORM}
        return Adapter(layers, deltas, metadata, self.name, (*notes, *sorted(rules)))

    def write(self, adapter: Adapter) -> dict[str, Content]:
        """Return the files to write, by name; "" if there is only one. The adapter must not hold anything that the
        dialect does not support.
        """
        contents: dict[str, Content] = {}
        for component in adapter.components if self.per_part else [""]:
            names = [name for name in adapter.names if not component or component_of(name) == component]
            content = Content(metadata=self.metadata(adapter, component))
            for name in names:
                if name in adapter.layers:
                    content.tensors |= self.pair_tensors(name, adapter.layers[name])
                else:
                    kind = name.rpartition(".")[2]
                    content.tensors[self.key(name, kind)] = adapter.deltas[name]
            contents[self.file_name(component) if component else ""] = content
        return contents

    def pair_tensors(self, name: str, pair: LowRank) -> dict[str, Tensor]:
        """A layer's tensors by key."""
        tensors = {self.key(name, A): pair.a, self.key(name, B): pair.b}
        if (alpha := self.stated_alpha(pair)) is not None:
            tensors[self.key(name, ALPHA)] = alpha
        if pair.magnitude is not None:
            tensors[self.key(name, MAGNITUDE)] = self.magnitude(pair)
        return tensors

    def magnitude(self, pair: LowRank) -> Tensor:
        """DoRA's magnitudes in the shape that the dialect uses: [out, 1] or [out]."""
        assert pair.magnitude is not None
        return pair.magnitude.reshape(-1, 1)

    def metadata(self, adapter: Adapter, component: str) -> dict[str, str]:
        """Metadata of a file to write. component: the one that the file holds; "": all."""
        return dict(adapter.metadata) | ({PART: PART_OF[component]} if component else {})

    def holds_part(self, name: str, adapter: Adapter) -> str | None:
        """The reason why the dialect cannot hold what an adapter has for a layer or parameter; None if it can."""
        if component_of(name) not in self.components:
            return component_of(name)
        if name in adapter.deltas:
            held = PARAMETER in self.holds or name.rpartition(".")[2] in self.holds
            return None if held else "full differences"
        return "DoRA magnitudes" if adapter.layers[name].magnitude is not None and MAGNITUDE not in self.holds else None

    def _place(self, key: str, file: StoredFile) -> tuple[str, str] | None:
        """(full name, kind) of a key."""
        suffix = max((x for x in self.suffixes if key.endswith(x)), key=len, default=None)
        if suffix is None or (place := self.place(key.removesuffix(suffix), file)) is None:
            return None
        (component, layer), kind = place, self.suffixes[suffix]
        if component == UNSAID and file.metadata.get(PART) in PART_OF.values():
            component = next(name for name, part in PART_OF.items() if part == file.metadata[PART])
        if kind not in DELTAS:
            full = full_name(layer, component)
        else:
            full = full_parameter(layer if kind == PARAMETER else f"{layer}.{kind}", component)
        return None if full is None else (full, kind)

    def _refuse(self, file: StoredFile, foreign: list[str]) -> NoReturn:
        reason = next((reason for key in foreign if (reason := why_foreign(key))), "")
        raise MovaError(
            f"{file.path}: {counted(len(foreign), 'key')} with no place in MOVA{listed(foreign, ':')}"
            f"{f' ({reason})' if reason else ''}; mova lora convert --skip-foreign leaves such keys out"
        )

    def _pairs(
        self, file: StoredFile, found: Mapping[str, Mapping[str, Tensor]], alpha: float | None
    ) -> tuple[dict[str, LowRank], set[str]]:
        layers: dict[str, LowRank] = {}
        rules: set[str] = set()
        for name, tensors in sorted(found.items()):
            a, b = tensors[A], tensors[B]
            if alpha is not None:
                value = alpha
            elif ALPHA in tensors:
                value = float(tensors[ALPHA]) if tensors[ALPHA].numel() == 1 else float("nan")
            else:
                rule = self.unstated_alpha(file, name, a.shape[0] if a.ndim else 0)
                if rule is None:
                    raise AlphaMissing(f"{file.path} does not say its alpha{self._alpha_hint()}: give one, --alpha")
                value = rule[0]
                rules.add(rule[1])
            layers[name] = LowRank(a, b, value, tensors.get(MAGNITUDE))
            check_pair(name, layers[name], file.path)
        return layers, rules

    def _alpha_hint(self) -> str:
        return ""


def by_suffix(*keys: Mapping[str, str]) -> Mapping[str, str]:
    """Invert mappings from kinds to suffixes: suffix -> kind."""
    return {suffix: kind for some in keys for kind, suffix in some.items()}


def alpha_tensor(pair: LowRank) -> Tensor:
    """alpha as a scalar tensor in A's dtype, as trainers save it; in the next wider dtype if A's would round it."""
    made = (torch.tensor(pair.alpha, dtype=dtype) for dtype in (pair.a.dtype, torch.float32, torch.float64))
    return next(scalar for scalar in made if float(scalar) == pair.alpha)


def alpha_is_rank(rank: int) -> tuple[float, str]:
    """The rule of tools without alpha: the update is B A, so alpha is the rank."""
    return float(rank), "alpha is taken as each layer's rank, as this dialect has it where none is stated"


class AlphaIsRank(Dialect):
    """Dialects whose trainer writes no alpha, since it is the rank, but whose loader uses a stored one."""

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        return alpha_is_rank(rank)

    def stated_alpha(self, pair: LowRank) -> Tensor | None:
        return None if pair.alpha == pair.rank else alpha_tensor(pair)


def merged(adapters: list[Adapter], source: Path) -> Adapter:
    """Merge the adapters of several files into one. Raises MovaError if two change the same layer or parameter."""
    layers: dict[str, LowRank] = {}
    deltas: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for adapter in adapters:
        twice = [name for name in adapter.names if name in layers or name in deltas]
        if twice:
            raise MovaError(f"{source} holds the same layers in several files{listed(twice, ':')}: name one file")
        layers |= adapter.layers
        deltas |= adapter.deltas
        metadata |= adapter.metadata
    metadata.pop(PART, None)
    notes = dict.fromkeys(note for adapter in adapters for note in adapter.notes)
    return Adapter(layers, deltas, metadata, adapters[0].dialect, tuple(notes))
