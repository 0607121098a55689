"""LightX2V's distilled adapters: ComfyUI's names, with full differences of norms, biases and modulations."""

from mova_engine.adapters.dialect import BIAS, MODULATION, WEIGHT, A, B
from mova_engine.adapters.dialects.comfy import PREFIX, Comfy
from mova_engine.adapters.layer_names import UNSAID, layer_of
from mova_engine.adapters.stored_file import StoredFile


class LightX2V(Comfy):
    """`diffusion_model.blocks.0.self_attn.q.lora_down.weight`, `.diff`, `.diff_b`, `.diff_m`; the prefix may lack."""

    name = "lightx2v"
    about = "LightX2V's distilled adapters, with full differences"
    holds = frozenset({WEIGHT, BIAS, MODULATION})

    def recognises(self, file: StoredFile) -> bool:
        return any(key.endswith((".diff", ".diff_b", ".diff_m")) for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        return super().place(stem, file) if stem.startswith(PREFIX) else (UNSAID, stem)

    def key(self, name: str, kind: str) -> str:
        suffix = {A: ".lora_down.weight", B: ".lora_up.weight"}.get(kind)
        return super().key(name, kind) if suffix is None else f"{PREFIX}{layer_of(name)}{suffix}"


DIALECT = LightX2V()
