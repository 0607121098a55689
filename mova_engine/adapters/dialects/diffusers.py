"""diffusers: its own names of a transformer's layers, a file per expert, rank and alpha as JSON in the metadata."""

import json
from collections.abc import Mapping
from typing import Any

from mova_engine.adapters.dialect import A, B, Dialect, alpha_is_rank, by_suffix
from mova_engine.adapters.dialects.peft import alpha_of, config_of
from mova_engine.adapters.form import Adapter
from mova_engine.adapters.layer_names import UNSAID, component_of, from_diffusers, layer_of, to_diffusers
from mova_engine.adapters.stored_file import StoredFile
from mova_engine.errors import MovaError

_METADATA = "lora_adapter_metadata"
_FIRST, _SECOND = "transformer.", "transformer_2."
_KEYS = {A: ".lora_A.weight", B: ".lora_B.weight"}


class Diffusers(Dialect):
    """`transformer.blocks.0.attn1.to_q.lora_A.weight`. A pipeline's transformer has the steps of high noise and its
    transformer_2 those of low noise, but a file for either is saved with `transformer.`: what it means is open, unless
    the other prefix stands beside it.
    """

    name = "diffusers"
    about = "diffusers"
    suffixes = by_suffix(_KEYS)
    components = ("video_dit", "video_dit_2")
    per_part = True

    def recognises(self, file: StoredFile) -> bool:
        return any(key.startswith((_FIRST, _SECOND)) for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        prefix = next((x for x in (_FIRST, _SECOND) if stem.startswith(x)), None)
        layer = None if prefix is None else from_diffusers(stem.removeprefix(prefix))
        if layer is None:
            return None
        if prefix == _SECOND:
            return "video_dit_2", layer
        both = any(key.startswith(_SECOND) for key in file.tensors)
        return "video_dit" if both else UNSAID, layer

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        text = file.metadata.get(_METADATA)
        if text is None:
            return alpha_is_rank(rank)
        try:
            stated: Mapping[str, Any] = json.loads(text)
        except ValueError as error:
            raise MovaError(f"{file.path}: {_METADATA} is not readable JSON: {error}") from None
        config = {key.removeprefix(_FIRST): value for key, value in stated.items()}
        return alpha_of(config, to_diffusers(layer_of(name)) or name, rank, "the metadata")

    def key(self, name: str, kind: str) -> str:
        return f"{_FIRST}{to_diffusers(layer_of(name))}{_KEYS[kind]}"

    def metadata(self, adapter: Adapter, component: str) -> dict[str, str]:
        """With peft's configuration under the prefix."""
        pairs = {
            to_diffusers(layer_of(name)) or name: pair
            for name, pair in adapter.layers.items()
            if component_of(name) == component
        }
        config = {f"{_FIRST}{key}": value for key, value in config_of(pairs).items() if key != "peft_type"}
        return {**super().metadata(adapter, component), _METADATA: json.dumps(config, indent=2, sort_keys=True)}


DIALECT = Diffusers()
