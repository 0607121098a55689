"""How the work of a Triton kernel is cut up: the built-in tile of each kernel, and tables of measured ones.

A table of measured tiles is a JSON file for one architecture, `sm_90.json`, in the folder of `measured_tables`.
`python -m mova_kernels.tune` writes it:

    {"arch": "sm_90", ..., "tiles": {"rms_norm_fwd_kernel": {"5120 bfloat16": {"rows": 8, "cols": 512, "warps": 8,
     "programs": null, "sums": 256}}}}

It is read once. A kernel, width or dtype that it does not name has the built-in tile.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.backends
from torch import Tensor

from mova_kernels.measured_tables import tables_folder


class Tile(NamedTuple):
    """How the work is cut up: rows and columns of a tile, warps of a program, and programs at most of a grid.

    programs: None for one to each row tile. sums: programs at most where each has a row of partial sums.
    """

    rows: int
    cols: int
    warps: int
    programs: int | None
    sums: int


_GPU = Tile(rows=8, cols=512, warps=8, programs=None, sums=256)
_NPU = Tile(rows=8, cols=512, warps=1, programs=48, sums=48)
# By the backend that the installed Triton brings, and by kernel where it is not the target's usual one.
TILES: dict[str, dict[str, Tile]] = {
    # Rows of partial sums for about two programs on each multiprocessor of a large GPU.
    "nvidia": {
        "": _GPU,
        "merge_lse_fwd_kernel": _GPU._replace(rows=16, cols=128),
        # Larger ones spill: 8 rows on sm_80, 4 x 512 in float32 on sm_100. Half the warps, so twice the programs.
        "rms_norm_rope_bwd_kernel": _GPU._replace(rows=4, cols=256, warps=4, sums=512),
    },
    # One program for each vector core of an Ascend 910B2 (a grid of more than 65,535 cannot be launched there), and
    # what leaves room in its 192 KB for every buffer twice: one is filled while the other is worked on.
    "ascend": {
        "": _NPU,
        "merge_lse_fwd_kernel": _NPU._replace(rows=16, cols=128),
        "rms_norm_rope_bwd_kernel": _NPU._replace(rows=4),
    },
}


class Key(NamedTuple):
    """What a measured tile is for: a kernel's name, the width of its rows, their dtype's name."""

    kernel: str
    width: int
    dtype: str


def built_in(kernel: str) -> Tile:
    """The tile of a kernel on the target of the installed Triton where none has been measured."""
    tiles = TILES["ascend" if "ascend" in triton.backends.backends else "nvidia"]
    return tiles.get(kernel, tiles[""])


def key_of(kernel: Any, x: Tensor) -> Key:
    return Key(kernel.fn.__name__, x.shape[-1], str(x.dtype).removeprefix("torch."))


def tile_of(kernel: Any, x: Tensor) -> Tile:
    """The tile of a kernel for activations x [.., d]: one measured for the architecture of x's device, or built in."""
    key, arch = key_of(kernel, x), _compiled_for.get() or architecture(x.device)
    measured = tuned(arch).get(key) if arch else None
    return measured or built_in(key.kernel)


_compiled_for: ContextVar[str | None] = ContextVar("compiled_for", default=None)


@contextlib.contextmanager
def compiling_for(arch: str | None) -> Iterator[None]:
    """Inside the block tiles are those of `arch` ("sm_90"), whatever the tensors' device: for compile checks."""
    token = _compiled_for.set(arch)
    try:
        yield
    finally:
        _compiled_for.reset(token)


@cache
def architecture(device: torch.device) -> str | None:
    """ "sm_90" of a GPU of compute capability 9.0; None for other devices."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def table_file(arch: str) -> Path:
    """Where the measured tiles of `arch` are looked for; ValueError where MOVA_TILES names no folder."""
    return tables_folder() / f"{arch}.json"


@cache
def tuned(arch: str) -> dict[Key, Tile]:
    """The measured tiles of an architecture, empty where there is no file; ValueError for a file that is no table."""
    path = table_file(arch)
    return read_table(path, arch) if path.exists() else {}


def read_table(path: Path, arch: str) -> dict[Key, Tile]:
    """The tiles of a file; ValueError, with what is wrong and what to do, unless it is a table for `arch`."""
    try:
        table = json.loads(path.read_text())
        if table["arch"] != arch:
            raise ValueError(f"it is for {table['arch']}, not for {arch}")
        tiles = {}
        for kernel, entries in table["tiles"].items():
            for name, fields in entries.items():
                width, dtype = name.split()
                tiles[Key(kernel, int(width), dtype)] = _checked(f"{kernel} {name}", Tile(**fields))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
        remedy = "write it anew with `python -m mova_kernels.tune`, or remove it"
        raise ValueError(f"{path} is no table of tiles: {reason}; {remedy}") from error
    return tiles


def _checked(name: str, tile: Tile) -> Tile:
    for field in ("rows", "cols", "warps"):
        value = getattr(tile, field)
        if type(value) is not int or value < 1 or value & (value - 1):
            raise ValueError(f"{field} of {name} is {value!r}, not a power of two")
    for field, value in (("sums", tile.sums), ("programs", 1 if tile.programs is None else tile.programs)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{field} of {name} is {value!r}, not a positive number")
    return tile


def write_table(path: Path, arch: str, tiles: dict[Key, Tile], **about: str) -> None:
    """Write what `read_table` reads, with what else is to be known of the measurement; whole, or not at all."""
    entries: dict[str, dict[str, dict]] = {}
    for key, tile in sorted(tiles.items()):
        entries.setdefault(key.kernel, {})[f"{key.width} {key.dtype}"] = tile._asdict()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps({"arch": arch, **about, "tiles": entries}, indent=1) + "\n")
    fresh.replace(path)
