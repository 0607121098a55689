"""peft: a folder with adapter_model.safetensors and adapter_config.json."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mova_engine.adapters.dialect import MAGNITUDE, A, B, Content, Dialect, by_suffix
from mova_engine.adapters.form import Adapter, LowRank
from mova_engine.adapters.layer_names import UNSAID, split_component
from mova_engine.adapters.stored_file import StoredFile
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_json

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_KEYS = {A: ".lora_A.weight", B: ".lora_B.weight", MAGNITUDE: ".lora_magnitude_vector"}


class Peft(Dialect):
    """`base_model.model.video_dit.blocks.0.self_attn.q.lora_A.weight` of the whole model, or without the component of
    one tower; rank and alpha in adapter_config.json.
    """

    name = "peft"
    about = "peft's own folders"
    suffixes = by_suffix(_KEYS)
    holds = frozenset({MAGNITUDE})
    files = (WEIGHTS,)

    def recognises(self, file: StoredFile) -> bool:
        return any(key.startswith(_PREFIX) for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        return split_component(stem.removeprefix(_PREFIX)) if stem.startswith(_PREFIX) else None

    def read(self, file: StoredFile, alpha: float | None = None, skip_foreign: bool = False) -> Adapter:
        """As of `Dialect`. MovaError too for a configuration that asks for more than LoRA."""
        config = _config(file) or {}
        for name, usual in (("peft_type", "LORA"), ("bias", "none"), ("modules_to_save", None), ("lora_bias", False)):
            if config.get(name, usual) not in (usual, None, []):
                raise MovaError(f"{file.beside(CONFIG)}: {name} = {config[name]} is not supported")
        return super().read(file, alpha, skip_foreign)

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        config = _config(file)
        return None if config is None else alpha_of(config, name.removeprefix(f"{UNSAID}."), rank, CONFIG)

    def key(self, name: str, kind: str) -> str:
        return f"{_PREFIX}{name}{_KEYS[kind]}"

    def magnitude(self, pair: LowRank) -> Tensor:
        """[out]."""
        return super().magnitude(pair).reshape(-1)

    def write(self, adapter: Adapter) -> dict[str, Content]:
        """Both files of a folder."""
        config = config_of(adapter.layers)
        return {WEIGHTS: super().write(adapter)[""], CONFIG: Content(values=config)}


def config_of(pairs: Mapping[str, LowRank]) -> dict[str, Any]:
    """peft's configuration of layers, by the names that they have there: what most share, and patterns for the rest."""
    ranks, alphas = [pair.rank for pair in pairs.values()], [pair.alpha for pair in pairs.values()]
    rank, alpha = max(set(ranks), key=ranks.count), max(set(alphas), key=alphas.count)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: pair.rank for name, pair in pairs.items() if pair.rank != rank},
        "alpha_pattern": {name: pair.alpha for name, pair in pairs.items() if pair.alpha != alpha},
        "target_modules": sorted(pairs),
        "use_dora": any(pair.magnitude is not None for pair in pairs.values()),
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def alpha_of(config: Mapping[str, Any], name: str, rank: int, source: str) -> tuple[float, str]:
    """(alpha, the rule) of a layer by peft's configuration; patterns are regular expressions of a name's end."""
    patterns: Mapping[str, Any] = config.get("alpha_pattern") or {}
    found = [value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", name)]
    alpha = found[0] if found else config.get("lora_alpha")
    if not isinstance(alpha, float | int):
        raise MovaError(f"{source} has no lora_alpha")
    if config.get("use_rslora"):
        return float(alpha) * math.sqrt(rank), f"alpha is {source}'s times the root of the rank (use_rslora)"
    return float(alpha), f"alpha is that of {source}"


def _config(file: StoredFile) -> dict[str, Any] | None:
    path = file.beside(CONFIG)
    return read_json(path) if path.is_file() else None


DIALECT = Peft()
