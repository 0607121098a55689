"""What the Triton kernels share: the tile of rows that a program works on, how kernels are launched, partial sums.

Kernels see activations [b, s, d] as tiles of ROWS rows and COLS columns: program (i, j) has row tile i of sample j and
loops over the columns, so that any width works and what is held at a time does not depend on it. A float32 tile is
16 KB; a kernel holds at most eight at once, which leaves room in the 192 KB of an Ascend vector core.

Gradients of vectors are summed in two stages without atomics, so that they are the same in every run: each program
adds up its rows in a row of its own of a float32 [b, p, d] tensor, and then those rows are added.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLS, WARPS = 8, 512, 8
# Programs of a backward kernel, each with a row of partial sums: about two for each multiprocessor of a large GPU.
PROGRAMS = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Launch(NamedTuple):
    """One launch: the kernel, its positional arguments, and its compile-time ones."""

    kernel: Any
    args: tuple
    constants: dict[str, Any]


_recorded: list[Launch] | None = None


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of making them; results stay uninitialised. For checks that compile without a device."""
    global _recorded
    _recorded = launches = []
    try:
        yield launches
    finally:
        _recorded = None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel` over `grid` on the device of its first argument, a tensor."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, args, constants))
    elif 0 not in grid:
        with torch.cuda.device_of(args[0]):
            kernel[grid](*args, **constants, num_warps=WARPS)


def row_tiles(x: Tensor) -> tuple[int, int]:
    """The grid of a kernel with one program for each row tile of x [b, s, d]."""
    return triton.cdiv(x.shape[1], ROWS), x.shape[0]


def row_programs(x: Tensor) -> tuple[int, int]:
    """The grid of a kernel that sums over rows: (p, b), each program with every p-th row tile."""
    tiles, b = row_tiles(x)
    return min(tiles, max(1, PROGRAMS // max(1, b))), b


def partial_sums(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Uninitialised float32 [b, p, d]: a row for each program of `row_programs`."""
    p, b = grid
    return torch.empty(b, p, x.shape[-1], dtype=torch.float32, device=x.device)


def unit_rows(x: Tensor) -> Tensor:
    """x itself where its last axis is contiguous (rows may lie anywhere), else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def row_strides(x: Tensor) -> tuple[int, int]:
    """Strides of b and s of x [b, s, d]."""
    return x.stride(0), x.stride(1)


def per_sample(x: Tensor, vector: Tensor | None) -> Tensor | None:
    """A modulation vector as [b, d] for x [b, s, d]: one [1, d] that all samples share is expanded; None stays."""
    return vector if vector is None or vector.shape[:1] != (1,) else vector.expand(x.shape[0], -1)


def check_inputs(
    name: str, x: Tensor, *, like_x: dict | None = None, per_sample: dict | None = None, vectors: dict | None = None
) -> None:
    """Raise ValueError or TypeError unless x and `like_x` are [b, s, d], `per_sample` [b, d] and `vectors` [d].

    All must be of a dtype that the kernels take and on one device. None stands for an optional tensor left out.
    """
    if x.dim() != 3:
        raise ValueError(f"{name}: x must be [b, s, d], got {list(x.shape)}")
    b, s, d = x.shape
    expected = {"x": (x, (b, s, d))}
    for group, shape in ((like_x, (b, s, d)), (per_sample, (b, d)), (vectors, (d,))):
        expected |= {key: (tensor, shape) for key, tensor in (group or {}).items() if tensor is not None}
    for key, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: {key} must be {list(shape)} beside x {[b, s, d]}, got {list(tensor.shape)}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: {key} is {tensor.dtype}; the Triton kernel takes {', '.join(map(str, DTYPES))}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: {key} is on {tensor.device}, x on {x.device}")


def opaque(name: str, fake: Callable[..., Any]) -> Callable[[Callable], Any]:
    """Make a function the operator `mova_triton::name`: torch.compile and checkpointing take it as one piece.

    `fake` gives uninitialised results of the right shapes and dtypes.
    """

    def declare(function: Callable) -> Any:
        operator = torch.library.custom_op(f"mova_triton::{name}", function, mutates_args=())
        operator.register_fake(fake)
        return operator

    return declare


@triton.jit
def add_to_partial(partial, cols, mask, value, tile):
    """Add value [COLS] of row tile `tile` to the program's own partial sums, uninitialised before its first tile."""
    previous = tl.load(partial + cols, mask & (tile != tl.program_id(0)), 0.0)
    tl.store(partial + cols, previous + value, mask)
