"""musubi-tuner, and others that write kohya's form."""

from torch import Tensor

from mova_engine.adapters.dialect import ALPHA, MAGNITUDE, A, B, Dialect, alpha_tensor, by_suffix
from mova_engine.adapters.form import LowRank
from mova_engine.adapters.layer_names import UNSAID, layer_of, unflattened
from mova_engine.adapters.stored_file import StoredFile

_PREFIX = "lora_unet_"
KEYS = {A: ".lora_down.weight", B: ".lora_up.weight", ALPHA: ".alpha", MAGNITUDE: ".dora_scale"}


class Musubi(Dialect):
    """`lora_unet_blocks_0_self_attn_q.lora_down.weight`, `.lora_up.weight`, `.alpha`; a file per expert."""

    name = "musubi"
    about = "musubi-tuner, kohya"
    suffixes = by_suffix(KEYS)
    holds = frozenset({MAGNITUDE})
    components = ("video_dit", "video_dit_2")
    per_part = True

    def recognises(self, file: StoredFile) -> bool:
        return any(key.startswith(_PREFIX) for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        if not stem.startswith(_PREFIX) or "." in stem:
            return None
        return UNSAID, unflattened(stem.removeprefix(_PREFIX))

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        # musubi itself refuses such a file; the alpha of its training may stand in the metadata.
        try:
            alpha = float(file.metadata["ss_network_alpha"])
        except (KeyError, ValueError):
            return None
        return alpha, "alpha is that of the metadata, ss_network_alpha"

    def stated_alpha(self, pair: LowRank) -> Tensor | None:
        return alpha_tensor(pair)

    def key(self, name: str, kind: str) -> str:
        return f"{_PREFIX}{layer_of(name).replace('.', '_')}{KEYS[kind]}"


DIALECT = Musubi()
