"""A dialect: how one tool spells adapters in a file. A subclass of `Dialect` in a file of `dialects/`, and a line in
the table there.

Most dialects say which suffix of a key means what, where a key's stem belongs, and how a name of ours is spelled; the
rest is the same for all of them and stands here.
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

# What a suffix may mean. Of a layer: its A, B, alpha, and DoRA's lengths of rows; of parameters: their difference.
A, B, ALPHA, MAGNITUDE = "a", "b", "alpha", "magnitude"
WEIGHT, BIAS, MODULATION = "weight", "bias", "modulation"
# PARAMETER: the difference of the parameter that the stem names in full.
PARAMETER = "parameter"
DELTAS = (WEIGHT, BIAS, MODULATION, PARAMETER)
# In metadata of files that hold one part of the model: which.
PART = "mova_part"
# What metadata says of a file's own form, and so nothing of another one's: alphas, hashes of its bytes.
_FORM = ("format", "alpha", "alphas", "lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", PART)


@dataclass
class Content:
    """A file to be written: tensors and metadata as safetensors; values instead: a JSON object, or with tensors in it a
    pickle, by the name's ending.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    values: dict[str, Any] | None = None


class Dialect:
    """How a tool spells adapters.

    name, about: for tables and messages. suffixes: of keys, and what each means. holds: what it can say beside
    A and B. components: those that it knows. per_part: a file for each component, whose keys do not say which.
    one_scale: all layers have the same rank and alpha. has_alpha=False: it cannot say alpha, which is the rank. files:
    what its folders hold, by names or patterns.
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
        """Whether a file is of this dialect."""
        raise NotImplementedError

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        """(component, layer) of a key without its suffix; the component may be UNSAID. None: no layer of a model."""
        return split_component(stem)

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        """(alpha, the rule in words) of a layer, by full name, whose keys do not state it; None: it must be given."""
        return None

    def key(self, name: str, kind: str) -> str:
        """The key of one tensor: of a layer, by full name, its A, B, ALPHA or MAGNITUDE; or of a parameter's
        difference.
        """
        raise NotImplementedError

    def stated_alpha(self, pair: LowRank) -> Tensor | None:
        """What the file says of a layer's alpha; None: nothing, as it goes by a rule, or stands elsewhere."""
        return None

    def file_name(self, component: str) -> str:
        """The name of a component's file, where each has one."""
        known = {"video_dit": "high_noise", "video_dit_2": "low_noise"}
        return f"{known.get(component, PART_OF[component])}.safetensors"

    # What follows is the same for most dialects.

    def read(self, file: StoredFile, alpha: float | None = None, skip_foreign: bool = False) -> Adapter:
        """The adapter of a file. alpha: wins over what the file says. skip_foreign: leave out keys that have no place
        in MOVA. MovaError for such keys otherwise, halves of pairs, values that are not finite, and a missing alpha.
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
        """Files by name: "" for the only one. The adapter holds nothing that the dialect does not."""
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
        """DoRA's lengths in the shape that the dialect has: [out, 1], or [out]."""
        assert pair.magnitude is not None
        return pair.magnitude.reshape(-1, 1)

    def metadata(self, adapter: Adapter, component: str) -> dict[str, str]:
        """A written file's metadata. component: that of a file for one; "": all."""
        return dict(adapter.metadata) | ({PART: PART_OF[component]} if component else {})

    def holds_part(self, name: str, adapter: Adapter) -> str | None:
        """Why the dialect cannot hold what an adapter has under a name; None where it can."""
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
    """Kind by suffix, of mappings from kinds to suffixes."""
    return {suffix: kind for some in keys for kind, suffix in some.items()}


def alpha_tensor(pair: LowRank) -> Tensor:
    """alpha as a scalar in the dtype of A, as trainers save it, or in the first wider one that does not round it."""
    made = (torch.tensor(pair.alpha, dtype=dtype) for dtype in (pair.a.dtype, torch.float32, torch.float64))
    return next(scalar for scalar in made if float(scalar) == pair.alpha)


def alpha_is_rank(rank: int) -> tuple[float, str]:
    """The rule of tools that know no alpha: B A is the update."""
    return float(rank), "alpha is taken as each layer's rank, as this dialect has it where none is stated"


class AlphaIsRank(Dialect):
    """A dialect whose trainer has alpha = rank and writes none; its loader takes one where there is."""

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        return alpha_is_rank(rank)

    def stated_alpha(self, pair: LowRank) -> Tensor | None:
        return None if pair.alpha == pair.rank else alpha_tensor(pair)


def merged(adapters: list[Adapter], source: Path) -> Adapter:
    """Several files' adapters as one. MovaError where two change the same."""
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
