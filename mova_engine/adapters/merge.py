"""`python -m mova_engine.adapters.merge`: a checkpoint folder with a file of adapters merged into its weights.

What comes out is a new model folder like any other: for whoever samples, exports or trains on without adapters. Every
weight keeps its dtype; in bfloat16 the sum is rounded up or down at random, so that what adapters change is kept on
average, however small (`lora.merged_lora`).
"""

import sys
from pathlib import Path

import torch

from mova_engine.adapters.lora import load_lora, merged_lora
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_mova, save_mova
from mova_engine.checkpoints.locate import find_adapters, open_model
from mova_engine.config.clip import add_clip_options, given_clip
from mova_engine.errors import CommandParser, run_cli
from mova_engine.files.folders import check_replaceable
from mova_engine.files.writable import check_writable
from mova_engine.ops import bind

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    """Merge and write; returns 0. Raises MovaError for folders or files that do not fit."""
    parser = CommandParser(prog="python -m mova_engine.adapters.merge", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="the model folder that the adapters were made for"
    )
    add("--lora", type=Path, required=True, metavar="PATH", help="the adapters: a LoRA run, its checkpoint, or a file")
    add_clip_options(parser)
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    add("--alpha", type=float, metavar="X", help="the adapters' alpha, where their file does not say it")
    add("--dtype", choices=_DTYPES, help="of all weights (default: each as the checkpoint has it)")
    args = parser.parse_args(argv)
    check_writable(args.out.absolute().parent, "--out")
    check_replaceable(args.out)
    folder, config = open_model(args.checkpoint, given_clip(args))
    mova = load_mova(folder, bind(get_backend("cpu")), device="cpu", config=config)
    layers = load_lora(mova, find_adapters(args.lora), args.alpha)
    dtype = _DTYPES.get(args.dtype)
    with merged_lora(mova, dtype):
        save_mova(mova if dtype is None else mova.to(dtype), args.out, base=folder)
    sys.stdout.write(f"{len(layers)} layers merged into {args.out}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
