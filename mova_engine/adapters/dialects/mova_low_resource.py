"""MOVA's low-resource trainer: one .pt file with tensors, rank and alpha."""

from mova_engine.adapters.dialect import A, B, Content, Dialect, by_suffix
from mova_engine.adapters.form import Adapter
from mova_engine.adapters.layer_names import UNSAID, layer_of, split_component
from mova_engine.adapters.stored_file import StoredFile

_STATE = "lora_state_dict"


class MovaLowResource(Dialect):
    """`video_dit.blocks.0.self_attn.q.lora_A`; rank and alpha beside them, the same for all layers."""

    name = "mova-low-resource"
    about = "MOVA's low-resource trainer"
    suffixes = by_suffix({A: ".lora_A", B: ".lora_B"})
    one_scale = True

    def recognises(self, file: StoredFile) -> bool:
        return file.pickled and any(key.endswith(tuple(self.suffixes)) for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        component, layer = split_component(stem)
        return None if component == UNSAID else (component, layer)

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        alpha = file.values.get("alpha")
        return (float(alpha), "alpha is the file's one for all layers") if isinstance(alpha, float | int) else None

    def key(self, name: str, kind: str) -> str:
        return f"{name}.lora_{kind.upper()}"

    def write(self, adapter: Adapter) -> dict[str, Content]:
        """One pickle of tensors and numbers. The adapter has one alpha and rank."""
        pair = next(iter(adapter.layers.values()))
        targets = sorted({layer_of(name).rpartition(".")[2] for name in adapter.layers})
        values = {
            _STATE: super().write(adapter)[""].tensors,
            "rank": pair.rank,
            "alpha": pair.alpha,
            "dropout": 0.0,
            "target_modules": targets,
        }
        return {"": Content(values=values)}


DIALECT = MovaLowResource()
