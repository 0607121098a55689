"""VideoX-Fun's MOVA trainer with peft: a folder per component under its own name."""

from mova_engine.adapters.dialect import ALPHA, A, AlphaIsRank, B, by_suffix
from mova_engine.adapters.dialects.videox_kohya import PLACES, component_of_folder, file_of
from mova_engine.adapters.layer_names import UNSAID, layer_of
from mova_engine.adapters.stored_file import StoredFile

_KEYS = {A: ".lora_A.weight", B: ".lora_B.weight", ALPHA: ".alpha"}


class VideoXPeft(AlphaIsRank):
    """`transformer_2/lora_diffusion_pytorch_model.safetensors`: `blocks.0.self_attn.q.lora_A.weight`, or with
    `.lora_A.default.`.
    """

    name = "videox-peft"
    about = "VideoX-Fun, LoRA by peft"
    suffixes = by_suffix(_KEYS, {A: ".lora_A.default.weight", B: ".lora_B.default.weight"})
    per_part = True
    files = PLACES

    def recognises(self, file: StoredFile) -> bool:
        bare = any(key.endswith(_KEYS[A]) and "base_model." not in key for key in file.tensors)
        return bare or (component_of_folder(file) != UNSAID and any(".lora_A." in key for key in file.tensors))

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        return component_of_folder(file), stem

    def key(self, name: str, kind: str) -> str:
        return layer_of(name) + _KEYS[kind]

    def file_name(self, component: str) -> str:
        return file_of(component)


DIALECT = VideoXPeft()
