"""VideoX-Fun's MOVA trainer in kohya's form: two underscores, and a folder per component under its own name."""

from torch import Tensor

from mova_engine.adapters.dialect import ALPHA, A, B, Dialect, alpha_is_rank, alpha_tensor, by_suffix
from mova_engine.adapters.form import LowRank
from mova_engine.adapters.layer_names import UNSAID, layer_of, unflattened
from mova_engine.adapters.stored_file import StoredFile

# VideoX-Fun's names are swapped: its `transformer` is the expert of low noise.
FOLDERS = {
    "transformer": "video_dit_2",
    "transformer_2": "video_dit",
    "transformer_audio": "audio_dit",
    "dual_tower_bridge": "dual_tower_bridge",
}
FILE = "lora_diffusion_pytorch_model.safetensors"
# Of a folder that holds several components.
PLACES = tuple(f"{folder}/{FILE}" for folder in FOLDERS)
_PREFIX = "lora_unet__"
_KEYS = {A: ".lora_down.weight", B: ".lora_up.weight", ALPHA: ".alpha"}


def component_of_folder(file: StoredFile) -> str:
    """The component whose adapter VideoX-Fun keeps in the file's folder; UNSAID for another folder or file."""
    return FOLDERS.get(file.path.parent.name, UNSAID) if file.path.name == FILE else UNSAID


def file_of(component: str) -> str:
    """Where VideoX-Fun has a component's adapter."""
    return f"{next(folder for folder, name in FOLDERS.items() if name == component)}/{FILE}"


class VideoXKohya(Dialect):
    """`transformer_2/lora_diffusion_pytorch_model.safetensors`: `lora_unet__blocks_0_self_attn_q.lora_down.weight`."""

    name = "videox-kohya"
    about = "VideoX-Fun, its own LoRA"
    suffixes = by_suffix(_KEYS)
    per_part = True
    files = PLACES

    def recognises(self, file: StoredFile) -> bool:
        return any(key.startswith(_PREFIX) for key in file.tensors)

    def place(self, stem: str, file: StoredFile) -> tuple[str, str] | None:
        if not stem.startswith(_PREFIX) or "." in stem:
            return None
        return component_of_folder(file), unflattened(stem.removeprefix(_PREFIX))

    def unstated_alpha(self, file: StoredFile, name: str, rank: int) -> tuple[float, str] | None:
        return alpha_is_rank(rank)

    def stated_alpha(self, pair: LowRank) -> Tensor | None:
        return alpha_tensor(pair)

    def key(self, name: str, kind: str) -> str:
        return f"{_PREFIX}{layer_of(name).replace('.', '_')}{_KEYS[kind]}"

    def file_name(self, component: str) -> str:
        return file_of(component)


DIALECT = VideoXKohya()
