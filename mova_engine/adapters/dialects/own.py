"""The engine's own: full names, safetensors, everything held. What training writes."""

import json
from collections.abc import Mapping
from dataclasses import replace

from mova_engine.adapters.dialect import MAGNITUDE, PARAMETER, A, B, Dialect, by_suffix
from mova_engine.adapters.form import Adapter, AlphaMissing, check_alpha
from mova_engine.adapters.layer_names import UNSAID, split_component
from mova_engine.adapters.stored_file import StoredFile
from mova_engine.errors import MovaError

_ALPHA, _ALPHAS = "alpha", "alphas"
_KEYS = {A: ".lora_A.weight", B: ".lora_B.weight", MAGNITUDE: ".lora_magnitude"}


class Own(Dialect):
    """`video_dit.blocks.0.self_attn.q.lora_A.weight`; alpha in metadata: one number, or `alphas` by layer."""

    name = "mova-engine"
    about = "this engine's; holds everything"
    suffixes = by_suffix(_KEYS, {PARAMETER: ".diff"})
    holds = frozenset({MAGNITUDE, PARAMETER})

    def recognises(self, file: StoredFile) -> bool:
        return not file.pickled and bool({_ALPHA, _ALPHAS} & set(file.metadata)) and self._full(file)

    def _full(self, file: StoredFile) -> bool:
        return any(split_component(key)[0] != UNSAID for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        component, layer = split_component(stem)
        return None if component == UNSAID else (component, layer)

    def read(self, file: StoredFile, alpha: float | None = None, skip_foreign: bool = False) -> Adapter:
        """As of `Dialect`; alphas from the metadata."""
        adapter = super().read(file, 1.0, skip_foreign)
        stated: Mapping[str, float] = {} if alpha is not None else _stated(file, list(adapter.layers))
        layers = {
            name: replace(pair, alpha=check_alpha(stated.get(name, alpha or 0.0), f"{file.path}: alpha"))
            for name, pair in adapter.layers.items()
        }
        return replace(adapter, layers=layers)

    def key(self, name: str, kind: str) -> str:
        return name + _KEYS.get(kind, ".diff")

    def metadata(self, adapter: Adapter, component: str) -> dict[str, str]:
        """One alpha where all layers share it."""
        alphas = {name: repr(float(pair.alpha)).removesuffix(".0") for name, pair in adapter.layers.items()}
        if len(set(alphas.values())) == 1:
            return {**super().metadata(adapter, component), _ALPHA: next(iter(alphas.values()))}
        return {**super().metadata(adapter, component), _ALPHAS: json.dumps({n: float(a) for n, a in alphas.items()})}


def _stated(file: StoredFile, names: list[str]) -> dict[str, float]:
    if _ALPHAS not in file.metadata and _ALPHA not in file.metadata:
        raise AlphaMissing(f"{file.path} does not say its alpha: give one, --alpha")
    try:
        if _ALPHAS in file.metadata:
            alphas = json.loads(file.metadata[_ALPHAS])
            return {name: float(alphas[name]) for name in names}
        return dict.fromkeys(names, float(file.metadata[_ALPHA]))
    except (ValueError, KeyError, TypeError) as error:
        text = file.metadata.get(_ALPHAS, file.metadata.get(_ALPHA, ""))
        raise MovaError(f"{file.path}: alpha '{text[:60]}' is not a number, or lacks layers") from error


DIALECT = Own()
