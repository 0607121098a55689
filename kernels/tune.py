"""`python -m mova_kernels.tune`: measure tiles for the Triton kernels on this GPU, and write the table that they read.

For every kernel, width and dtype: of the candidates those that compile without spilling and find their shared memory,
of these those whose results are the built-in tile's, and of these the fastest over all forms in which MOVA calls the
kernel, by the median of repeated calls. What gains less than 3% is left as it is built in. The table is written anew
after each kernel, and keeps what it held for others; `triton_tiles.py` says where it lies. It is for this architecture
alone. Exit status 2 without a GPU.

The CUDA C++ kernels have nothing to tune: the width of a row decides how it is held and moved.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from mova_kernels.triton_variants import DTYPES, HEAD_DIM, WIDTHS

# Video tokens of MOVA's 360p clip.
_ROWS = 43120


def unavailable() -> str | None:
    """Why nothing can be measured here; None when it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed; a CUDA build of torch brings it"
    if not torch.cuda.is_available():
        return "tiles are measured on a GPU of the kind that they are for; torch sees no NVIDIA GPU here"
    return None


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    reason = unavailable()
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    import triton

    device = torch.device("cuda", torch.cuda.current_device())
    tune(args, device, torch.cuda.get_device_name(device), partial(triton.testing.do_bench, return_mode="median"))
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mova_kernels.tune", description=__doc__.split("\n\n")[0])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16"], help="default: bfloat16")
    parser.add_argument("--width", type=_width, nargs="+", default=WIDTHS, help="default: 1536 5120")
    parser.add_argument("--rows", type=int, default=_ROWS, help=f"rows of the activations; default: {_ROWS}")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels with this in their name")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: where the kernels look for the table")
    return parser.parse_args(argv)


def _width(text: str) -> int:
    if not text.isdigit() or not int(text) or int(text) % HEAD_DIM:
        raise argparse.ArgumentTypeError(f"'{text}' is no multiple of a head's {HEAD_DIM} channels")
    return int(text)


def tune(args: argparse.Namespace, device: torch.device, name: str, time: Callable[[Callable], float]) -> None:
    """Choose, report and write. name: the device's, for the record. time: see `triton_tuner.choose`."""
    import triton

    from mova_kernels.triton_tiles import architecture, read_table, table_file, tuned, write_table
    from mova_kernels.triton_tuner import choose, keys

    arch = architecture(device)
    capability, out, tiles = int(arch.removeprefix("sm_")), args.out or table_file(arch), dict(tuned(arch))
    if args.out is not None and args.out.exists():
        # Kept and added to; ValueError where it is anything but a table for this architecture.
        tiles = read_table(args.out, arch)
    print(f"{name}, {arch}, {args.rows} rows; ms of all forms together: built in, and with the tile chosen")
    for dtype in args.dtype:
        for key, forms in keys(tuple(args.width), getattr(torch, dtype), capability).items():
            if args.only not in key.kernel:
                continue
            choice = choose(key, forms, capability, args.rows, device, time)
            tiles.pop(key, None)
            if choice.time < choice.built_in:
                tiles[key] = choice.tile
            write_table(out, arch, tiles, device=name, torch=torch.__version__, triton=triton.__version__)
            left = f"{choice.unfit} of {choice.tried} candidates do not fit, {choice.wrong} compute something else"
            line = f"{choice.tile.rows} x {choice.tile.cols}, {choice.tile.warps} warps, {choice.tile.sums} sums"
            print(
                f"{' '.join(map(str, key)):48} {choice.built_in:8.3f} {choice.time:8.3f} {line:34} {left}", flush=True
            )
    print(f"written: {out}")


if __name__ == "__main__":
    raise SystemExit(main())
