"""`mova lora merge`: a checkpoint folder with a file of adapters merged into its weights.

What comes out is a new model folder like any other: for whoever samples, exports or trains on without adapters. Every
weight keeps its dtype; in bfloat16 the sum is rounded up or down at random, so that what adapters change is kept on
average, however small (`lora.merged_lora`).
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

from pathlib import Path

from mova_engine.adapters.lora import load_lora, merged_lora
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_mova, save_mova
from mova_engine.checkpoints.locate import find_adapters, open_model
from mova_engine.config.clip import ClipSettings
from mova_engine.errors import MovaError, suggest
from mova_engine.files.folders import check_replaceable
from mova_engine.files.writable import check_writable
from mova_engine.ops import DTYPES, bind


def merge_folder(
    checkpoint: str | Path,
    lora: str | Path,
    out: str | Path,
    clip: ClipSettings | None = None,
    alpha: float | None = None,
    dtype: str | None = None,
) -> int:
    """Write to `out` the model of `checkpoint` with the adapters `lora` merged in; returns the number of changed
    layers.

    checkpoint: a model folder or a training run. lora: a LoRA run, its checkpoint or a file. out: a new or empty
    folder. clip: the clips' size, where the folder states none. alpha: the adapters', where their file does not state
    it. dtype: "float32" or "bfloat16" for all weights; None: each as it is stored. Raises MovaError for folders or
    files that do not fit.
    """
    if dtype is not None and dtype not in DTYPES:
        raise MovaError(f"unknown dtype '{dtype}'.{suggest(dtype, DTYPES)} Known: {', '.join(DTYPES)}")
    out = Path(out)
    check_writable(out.absolute().parent, "out")
    check_replaceable(out)
    folder, config = open_model(checkpoint, clip or ClipSettings())
    mova = load_mova(folder, bind(get_backend("cpu")), device="cpu", config=config)
    layers = load_lora(mova, find_adapters(lora), alpha)
    wanted = None if dtype is None else DTYPES[dtype]
    with merged_lora(mova, wanted):
        save_mova(mova if wanted is None else mova.to(wanted), out, base=folder)
    return len(layers)
