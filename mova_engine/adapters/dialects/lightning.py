"""Wan2.2-Lightning: a folder with a file per expert, float32, alpha in each layer."""

import torch
from torch import Tensor

from mova_engine.adapters.dialect import ALPHA, A, B, Content, Dialect, alpha_tensor, by_suffix
from mova_engine.adapters.dialects.comfy import PREFIX
from mova_engine.adapters.form import Adapter, LowRank
from mova_engine.adapters.layer_names import UNSAID, layer_of
from mova_engine.adapters.stored_file import StoredFile

_KEYS = {A: ".lora_down.weight", B: ".lora_up.weight", ALPHA: ".alpha"}


class Lightning(Dialect):
    """`diffusion_model.blocks.0.self_attn.q.lora_down.weight`, `.lora_up.weight`, `.alpha`; the prefix may lack."""

    name = "lightning"
    about = "Wan2.2-Lightning's few-step adapters"
    suffixes = by_suffix(_KEYS)
    components = ("video_dit", "video_dit_2")
    per_part = True

    def recognises(self, file: StoredFile) -> bool:
        keys = file.tensors
        dotted = all(key.startswith((PREFIX, "blocks.")) for key in keys)
        return dotted and any(key.endswith(_KEYS[A]) for key in keys) and any(key.endswith(".alpha") for key in keys)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        return UNSAID, stem.removeprefix(PREFIX)

    def stated_alpha(self, pair: LowRank) -> Tensor | None:
        return alpha_tensor(pair)

    def key(self, name: str, kind: str) -> str:
        return f"{PREFIX}{layer_of(name)}{_KEYS[kind]}"

    def file_name(self, component: str) -> str:
        return f"{'high' if component == 'video_dit' else 'low'}_noise_model.safetensors"

    def write(self, adapter: Adapter) -> dict[str, Content]:
        """As of `Dialect`, in float32, which is all that Lightning reads."""
        contents = super().write(adapter)
        for content in contents.values():
            content.tensors = {key: x if x.dtype == torch.float64 else x.float() for key, x in content.tensors.items()}
        return contents


DIALECT = Lightning()
