"""`python -m mova_engine.models.merge`: a checkpoint folder with a file of adapters merged into its weights.

What comes out is a model folder like any other: for whoever samples, exports or trains on without adapters.
"""

import sys
from pathlib import Path

import torch

from mova_engine.backend import get_backend
from mova_engine.errors import CommandParser, run_cli
from mova_engine.models.checkpoint import load_mova, save_mova
from mova_engine.models.locate import find_adapters, open_model
from mova_engine.models.lora import load_lora, merged_lora
from mova_engine.ops import bind

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    """Merge and write; returns 0. Raises MovaError for folders or files that do not fit."""
    parser = CommandParser(prog="python -m mova_engine.models.merge", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--checkpoint", type=Path, required=True, metavar="DIR", help="the model folder that the adapters were made for"
    )
    add("--lora", type=Path, required=True, metavar="PATH", help="the adapters: a LoRA run, its checkpoint, or a file")
    add("--size", metavar="NAME", help="the clip's, as mova-720p, where the model's folder states none")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    add("--alpha", type=float, metavar="X", help="the adapters' alpha, where their file does not say it")
    add("--dtype", choices=_DTYPES, default="float32", help="of the merged weights; bfloat16 rounds small updates away")
    args = parser.parse_args(argv)
    folder, config = open_model(args.checkpoint, args.size)
    mova = load_mova(folder, bind(get_backend("cpu")), device="cpu", config=config)
    layers = load_lora(mova, find_adapters(args.lora), args.alpha)
    with merged_lora(mova, _DTYPES[args.dtype]):
        save_mova(mova, args.out, base=folder)
    sys.stdout.write(f"{len(layers)} layers merged into {args.out}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
