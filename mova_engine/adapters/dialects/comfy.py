"""ComfyUI's native names, which diffusion-pipe, ai-toolkit and kijai's nodes write and read."""

from collections.abc import Mapping

from mova_engine.adapters.dialect import (
    ALPHA,
    BIAS,
    MAGNITUDE,
    MODULATION,
    WEIGHT,
    A,
    AlphaIsRank,
    B,
)
from mova_engine.adapters.layer_names import UNSAID, layer_of
from mova_engine.adapters.stored_file import StoredFile

PREFIX = "diffusion_model."
# Where ai-toolkit has both experts in one file.
_EXPERTS = {"transformer_1": "video_dit", "transformer_2": "video_dit_2"}
SUFFIXES: Mapping[str, str] = {
    ".lora_A.weight": A,
    ".lora_B.weight": B,
    ".lora_down.weight": A,
    ".lora_up.weight": B,
    ".alpha": ALPHA,
    ".dora_scale": MAGNITUDE,
    ".diff": WEIGHT,
    ".diff_b": BIAS,
    ".diff_m": MODULATION,
}
KEYS = {
    A: ".lora_A.weight",
    B: ".lora_B.weight",
    ALPHA: ".alpha",
    MAGNITUDE: ".dora_scale",
    WEIGHT: ".diff",
    BIAS: ".diff_b",
    MODULATION: ".diff_m",
}


class Comfy(AlphaIsRank):
    """`diffusion_model.blocks.0.self_attn.q.lora_A.weight`, a file per expert."""

    name = "comfy"
    about = "ComfyUI, diffusion-pipe, ai-toolkit, kijai"
    suffixes = SUFFIXES
    holds = frozenset({MAGNITUDE, WEIGHT, BIAS, MODULATION})
    components = ("video_dit", "video_dit_2")
    per_part = True

    def recognises(self, file: StoredFile) -> bool:
        return any(key.startswith(PREFIX) for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        if not stem.startswith(PREFIX):
            return None
        name = stem.removeprefix(PREFIX)
        first, _, rest = name.partition(".")
        return (_EXPERTS[first], rest) if first in _EXPERTS else (UNSAID, name)

    def key(self, name: str, kind: str) -> str:
        layer = layer_of(name)
        if kind in (WEIGHT, BIAS, MODULATION):
            layer = layer.removesuffix(f".{kind}")
        return f"{PREFIX}{layer}{KEYS[kind]}"


DIALECT = Comfy()
