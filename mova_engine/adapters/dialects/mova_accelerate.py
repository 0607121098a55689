"""MOVA's accelerate trainer: a folder with lora_weights.pt and lora_config.pt, or the same keys as safetensors."""

from typing import Any

from mova_engine.adapters.dialect import A, B, Content, Dialect, by_suffix
from mova_engine.adapters.form import Adapter
from mova_engine.adapters.layer_names import UNSAID, split_component
from mova_engine.adapters.stored_file import StoredFile, read_pickle

WEIGHTS, CONFIG = "lora_weights.pt", "lora_config.pt"


class MovaAccelerate(Dialect):
    """`video_dit.blocks.0.self_attn.q.lora_A.weight`, or with `.lora_A.default.`; its loader takes the same alpha for
    all layers from the training's configuration.
    """

    name = "mova"
    about = "MOVA's accelerate trainer"
    suffixes = by_suffix(
        {A: ".lora_A.weight", B: ".lora_B.weight"}, {A: ".lora_A.default.weight", B: ".lora_B.default.weight"}
    )
    one_scale = True
    files = (WEIGHTS,)

    def recognises(self, file: StoredFile) -> bool:
        keys = [key for key in file.tensors if split_component(key)[0] != UNSAID]
        return bool(keys) and all(key.endswith(".weight") for key in keys)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        component, layer = split_component(stem)
        return None if component == UNSAID else (component, layer)

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        config = file.beside(CONFIG)
        if not (file.pickled and config.is_file()):
            return None
        alpha = read_pickle(config).get("alpha")
        if not isinstance(alpha, float | int):
            return None
        return float(alpha), f"alpha is {alpha:g} by {CONFIG}, where MOVA writes 16 whatever was trained"

    def key(self, name: str, kind: str) -> str:
        return f"{name}.lora_{kind.upper()}.weight"

    def write(self, adapter: Adapter) -> dict[str, Content]:
        """Both files of a folder. The adapter has one alpha and rank."""
        pair = next(iter(adapter.layers.values()))
        tensors = super().write(adapter)[""].tensors
        config: dict[str, Any] = {"rank": pair.rank, "alpha": pair.alpha, "target_modules": []}
        return {WEIGHTS: Content(values=dict(tensors)), CONFIG: Content(values=config)}

    def _alpha_hint(self) -> str:
        return " (MOVA's files never do; its default is 16)"


DIALECT = MovaAccelerate()
