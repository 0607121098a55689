"""DiffSynth-Studio: a video expert's layers by their own names, a file per expert."""

from mova_engine.adapters.dialect import ALPHA, A, AlphaIsRank, B, by_suffix
from mova_engine.adapters.layer_names import UNSAID, layer_of
from mova_engine.adapters.stored_file import StoredFile

_KEYS = {A: ".lora_A.default.weight", B: ".lora_B.default.weight", ALPHA: ".alpha"}


class DiffSynth(AlphaIsRank):
    """`blocks.0.self_attn.q.lora_A.default.weight`. Its loader warns where an alpha is stated."""

    name = "diffsynth"
    about = "DiffSynth-Studio"
    suffixes = by_suffix(_KEYS)
    components = ("video_dit", "video_dit_2")
    per_part = True

    def recognises(self, file: StoredFile) -> bool:
        return any(key.endswith(_KEYS[A]) for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        return UNSAID, stem

    def key(self, name: str, kind: str) -> str:
        return layer_of(name) + _KEYS[kind]


DIALECT = DiffSynth()
