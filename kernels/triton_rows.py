"""What the Triton kernels share: which tiles of rows a program works on, how kernels are launched, partial sums.

Kernels see activations [b, s, d] as tiles of ROWS rows and COLS columns: program (i, j) has every p-th row tile of
sample j from tile i on, p programs to a sample, and loops over the columns, so that any width works and what is held
at a time does not depend on it. The same source compiles with NVIDIA's Triton and with triton-ascend, which is Triton
3.2: only that language is used. Addresses within a tile are sums of multiples of `arange`, never quotients or
remainders of it: from other addresses triton-ascend makes transfers of single elements.

Gradients of vectors are summed in two stages without atomics, so that they are the same in every run: each program
adds up its rows in a row of its own of a float32 [b, p, d] tensor, and then those rows are added.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.triton_tiles import Tile, tile_of


class Grid(NamedTuple):
    """A launch's programs (p, b), of which p share the row tiles of each of b samples; compile-time values; warps."""

    programs: tuple[int, int]
    constants: dict[str, Any]
    warps: int


class KernelLaunch(NamedTuple):
    """One launch: the kernel, its positional arguments, its compile-time ones, and its warps."""

    kernel: Any
    args: tuple
    constants: dict[str, Any]
    warps: int


_recorded: ContextVar[list[KernelLaunch] | None] = ContextVar("recorded", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[KernelLaunch]]:
    """Collect launches instead of making them; results stay uninitialised. For shapes alone, and for compile checks."""
    launches: list[KernelLaunch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(kernel: Any, grid: Grid, *args: Any, **constants: Any) -> None:
    """Run `kernel` over `grid` on the device of its first argument, a tensor."""
    launches, constants = _recorded.get(), {**constants, **grid.constants}
    if launches is not None:
        launches.append(KernelLaunch(kernel, args, constants, grid.warps))
    elif 0 not in grid.programs:
        device = args[0].device
        # CPU tensors are there for Triton's interpreter.
        with contextlib.nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device):
            kernel[grid.programs](*args, **constants, num_warps=grid.warps)


def grid_of(kernel: Any, x: Tensor, b: int, s: int) -> Grid:
    """The grid of a kernel in which every row tile, of b samples with s rows each, is by itself; see `tiles_of`.

    x [.., d]: what the rows are made of.
    """
    tile = tile_of(kernel, x)
    constants = {"LOOP": tile.programs is not None, "ROWS": tile.rows, "COLS": tile.cols}
    return Grid((_share(b, s, tile, tile.programs), b), constants, tile.warps)


def row_tiles(kernel: Any, x: Tensor) -> Grid:
    """The same for x [b, s, d]."""
    return grid_of(kernel, x, x.shape[0], x.shape[1])


def row_sums(kernel: Any, x: Tensor) -> Grid:
    """The grid of a kernel that sums over the rows of x [b, s, d], each program over its row tiles."""
    (b, s, _), tile = x.shape, tile_of(kernel, x)
    return Grid((_share(b, s, tile, tile.sums), b), {"ROWS": tile.rows, "COLS": tile.cols}, tile.warps)


def _share(b: int, s: int, tile: Tile, most: int | None) -> int:
    """Programs for the row tiles of a sample: at most `most` for all b samples, but one for each."""
    tiles = triton.cdiv(s, tile.rows)
    return tiles if most is None else min(tiles, max(1, most // max(1, b)))


def partial_sums(x: Tensor, grid: Grid) -> Tensor:
    """Uninitialised float32 [b, p, d]: a row for each program of `row_sums`."""
    p, b = grid.programs
    return torch.empty(b, p, x.shape[-1], dtype=torch.float32, device=x.device)


def opaque(name: str) -> Callable[[Callable], Any]:
    """Make a function the operator `mova_triton::name`: torch.compile and checkpointing take it as one piece.

    The function itself tells the shapes and dtypes of its results: its launches are left out then.
    """

    def declare(function: Callable) -> Any:
        operator = torch.library.custom_op(f"mova_triton::{name}", function, mutates_args=())

        def fake(*args: Any, **kwargs: Any) -> Any:
            with recording():
                return function(*args, **kwargs)

        operator.register_fake(fake)
        return operator

    return declare


@triton.jit
def tiles_of(s, ROWS: tl.constexpr, LOOP: tl.constexpr):
    """(begin, end, step) of this program's row tiles: every p-th, or without LOOP only the one of its own number.

    Where it is one the compiler sees it, makes no loop and needs fewer registers.
    """
    begin = tl.program_id(0)
    end, step = begin + 1, 1
    if LOOP:
        end, step = tl.cdiv(s, ROWS), tl.num_programs(0)
    return begin, end, step


@triton.jit
def add_to_partial(partial, cols, mask, value, tile):
    """Add value [COLS] of row tile `tile` to the program's own partial sums, uninitialised before its first tile."""
    previous = tl.where(tile == tl.program_id(0), 0.0, tl.load(partial + cols, mask, 0.0))
    tl.store(partial + cols, previous + value, mask)
